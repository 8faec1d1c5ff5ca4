//! One leaf: a key pair of its own, a certificate for one name, the TLS settings that show it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;

use super::load::Authority;
use super::{ALPN, CaCertificate};

/// How long before its making a leaf counts, for clients whose clock is behind.
const BACKDATED: Duration = Duration::from_secs(3600);

/// How long a leaf outlives its place in the cache, for handshakes that began with it.
const GRACE: Duration = Duration::from_secs(300);

/// Longest common name (RFC 5280, `ub-common-name`). Clients go by the subject alternative name.
const COMMON_NAME_MAX: usize = 64;

/// A leaf that was asked for, or why there is none. Goes from the thread `leaves` to the proxy.
pub struct Minted {
    pub(super) name: Box<str>,
    pub(super) result: Result<Made, MintError>,
}

/// A leaf.
pub(super) struct Made {
    pub(super) config: Arc<ServerConfig>,
    /// How long it may be shown to new clients.
    pub(super) lasts: Duration,
}

/// Why a leaf was not made.
#[derive(Debug)]
pub enum MintError {
    /// The CA's own certificate does not count any more.
    Expired,
    /// The certificate could not be written or signed.
    Sign(rcgen::Error),
    /// The TLS library does not take it.
    Tls(rustls::Error),
    /// The kernel gave no random bytes.
    Random,
}

impl std::fmt::Display for MintError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MintError::Expired => f.write_str("the CA has expired; make a new pair with `outcall ca init` and restart"),
            MintError::Sign(error) => write!(f, "the certificate cannot be signed: {error}"),
            MintError::Tls(error) => write!(f, "the certificate cannot be shown: {error}"),
            MintError::Random => f.write_str("no random bytes for the serial number"),
        }
    }
}

impl std::error::Error for MintError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            MintError::Sign(error) => Some(error),
            MintError::Tls(error) => Some(error),
            MintError::Expired | MintError::Random => None,
        }
    }
}

/// A leaf for `name`, with its key.
pub(super) fn certificate(
    authority: &Authority,
    name: &str,
    now: SystemTime,
    ttl: Duration,
) -> Result<(CertificateDer<'static>, KeyPair), MintError> {
    let ca: &CaCertificate = authority.certificate();
    if now >= ca.not_after() {
        return Err(MintError::Expired);
    }
    let mut params = CertificateParams::default();
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|_| MintError::Random)?;
    // Positive and never short (RFC 5280 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = now.checked_sub(BACKDATED).unwrap_or(now).max(ca.not_before()).into();
    params.not_after = (now + ttl + GRACE).min(ca.not_after()).into();
    let mut subject = DistinguishedName::new();
    let common = if name.len() <= COMMON_NAME_MAX { name } else { "long name, see the alternative one" };
    subject.push(DnType::CommonName, common);
    params.distinguished_name = subject;
    params.subject_alt_names = vec![match name.parse::<IpAddr>() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(name.try_into().map_err(MintError::Sign)?),
    }];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(MintError::Sign)?;
    let leaf = params.signed_by(&key, authority.issuer()).map_err(MintError::Sign)?;
    Ok((leaf.der().clone(), key))
}

/// A leaf for `name` with the TLS settings that show it: TLS 1.2 and 1.3, `http/1.1` alone, and nothing that one
/// connection could resume from another.
pub(super) fn leaf(
    authority: &Authority,
    provider: &Arc<CryptoProvider>,
    name: &str,
    now: SystemTime,
    ttl: Duration,
) -> Result<Made, MintError> {
    let (leaf, key) = certificate(authority, name, now, ttl)?;
    let ca = authority.certificate();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(MintError::Tls)?
        .with_no_client_auth()
        .with_single_cert(vec![leaf, ca.der().clone()], key)
        .map_err(MintError::Tls)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let rest = ca.not_after().duration_since(now).unwrap_or_default();
    Ok(Made { config: Arc::new(config), lasts: ttl.min(rest) })
}
