//! Both files of the CA, read and held against each other.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::Issuer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::certificate::CaCertificate;
use super::error::AuthorityError;
use super::key::CaKey;
use super::{mint, secret};

/// A CA that is ready to sign: certificate and key, checked. Dropping it zeroes the key.
pub struct Authority {
    certificate: Arc<CaCertificate>,
    issuer: Issuer<'static, CaKey>,
}

impl Authority {
    /// Reads a certificate and its key (PEM; RSA, or ECDSA on P-256 or P-384; PKCS#1, SEC1 or PKCS#8). From then on
    /// this process leaves no core dump.
    ///
    /// # Errors
    /// [`AuthorityError`]: a file that cannot be read ([`AuthorityError::is_unreadable`]), a key file with permissions
    /// broader than 0600 or of another user, a certificate that is no CA's or does not count now, two files that are
    /// no pair.
    pub fn load(cert: &Path, key: &Path) -> Result<Authority, AuthorityError> {
        let certificate = CaCertificate::read(cert, SystemTime::now())?;
        // Before the first byte of the key is in memory.
        secret::forbid_core_dumps()
            .map_err(|source| AuthorityError::Protection { operation: "no core dumps", source })?;
        let private = CaKey::read(key)?;
        let same = certificate.with_parsed(|parsed| *parsed.public_key().subject_public_key.data == *private.public());
        if same != Some(true) {
            return Err(AuthorityError::Mismatch { certificate: cert.to_owned(), key: key.to_owned() });
        }
        let issuer = Issuer::from_ca_cert_der(certificate.der(), private)
            .map_err(|error| AuthorityError::certificate(cert, format!("cannot be used: {error}")))?;
        let authority = Authority { certificate: Arc::new(certificate), issuer };
        authority.sign_a_sample().map_err(|reason| AuthorityError::certificate(cert, reason))?;
        Ok(authority)
    }

    /// What its certificate says.
    #[must_use]
    pub fn certificate(&self) -> &Arc<CaCertificate> {
        &self.certificate
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, CaKey> {
        &self.issuer
    }

    /// Signs a leaf that nobody gets and looks at it: its issuer must be the CA's subject byte for byte, which the
    /// library that writes certificates cannot promise for every name.
    fn sign_a_sample(&self) -> Result<(), String> {
        let (leaf, _) =
            mint::certificate(self, "sample.invalid", SystemTime::now(), std::time::Duration::from_secs(60))
                .map_err(|error| format!("cannot sign: {error}"))?;
        let issuer = X509Certificate::from_der(&leaf).ok().map(|(_, leaf)| leaf.issuer().as_raw().to_vec());
        let same = self.certificate.with_parsed(|parsed| Some(parsed.subject().as_raw().to_vec()) == issuer);
        if same == Some(true) {
            Ok(())
        } else {
            Err("has a subject that cannot be written into leaves as it stands (an attribute twice, or an unusual \
                 encoding); use a CA with a plain one, `outcall ca init` makes it"
                .to_owned())
        }
    }
}

impl std::fmt::Debug for Authority {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate.subject()).finish_non_exhaustive()
    }
}
