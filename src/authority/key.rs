//! The CA's key: its file, the forms it may have, its signatures.
//!
//! The text and the DER live on [`SecretPages`] until they are parsed. Then the key is a number in the memory of the
//! cryptographic library, which zeroes what it frees; there is no other copy.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use nix::libc;
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, PublicKeyData, SigningKey};

use super::error::AuthorityError;
use super::pem;
use super::secret::SecretPages;

/// Largest key file read: an RSA key of 8192 bits with its text is below 16 KiB.
const KEY_FILE_MAX: u64 = 64 * 1024;

/// The permissions that a key file may have.
const KEY_MODE: u32 = 0o600;

/// A private key that signs leaves. Dropping it zeroes it.
pub(super) struct CaKey {
    pair: Pair,
    /// The bits of the SubjectPublicKeyInfo.
    public: Box<[u8]>,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    P256(Box<EcdsaKeyPair>),
    P384(Box<EcdsaKeyPair>),
}

impl CaKey {
    /// Reads and checks the file and the key in it.
    pub(super) fn read(path: &Path) -> Result<CaKey, AuthorityError> {
        let text = read_secret(path)?;
        parse(text.bytes()).map_err(|refused| match refused {
            Refused::Pages(source) => AuthorityError::Protection { operation: "memory for it", source },
            Refused::Key(reason) => AuthorityError::key(path, reason),
        })
    }

    /// The bits of its public half, as certificates carry them.
    pub(super) fn public(&self) -> &[u8] {
        &self.public
    }

    fn new(pair: Pair) -> CaKey {
        let public = match &pair {
            Pair::Rsa(pair) => pair.public_key().as_ref().into(),
            Pair::P256(pair) | Pair::P384(pair) => pair.public_key().as_ref().into(),
        };
        CaKey { pair, public }
    }
}

impl PublicKeyData for CaKey {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self.pair {
            Pair::Rsa(_) => &PKCS_RSA_SHA256,
            Pair::P256(_) => &PKCS_ECDSA_P256_SHA256,
            Pair::P384(_) => &PKCS_ECDSA_P384_SHA384,
        }
    }
}

impl SigningKey for CaKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map_err(|_| rcgen::Error::RingUnspecified)?;
                Ok(signature)
            }
            Pair::P256(pair) | Pair::P384(pair) => {
                let signature = pair.sign(&random, message).map_err(|_| rcgen::Error::RingUnspecified)?;
                Ok(signature.as_ref().to_vec())
            }
        }
    }
}

/// Opens the file without following a link, looks at what was opened, and reads it onto pages of its own.
fn read_secret(path: &Path) -> Result<SecretPages, AuthorityError> {
    let unreadable = |source| AuthorityError::Unreadable { path: path.to_owned(), source };
    // Without O_NONBLOCK, a FIFO in the file's place would stop the start for good.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = File::options().read(true).custom_flags(flags).open(path).map_err(|source| {
        if source.raw_os_error() == Some(libc::ELOOP) {
            AuthorityError::key(path, "is a symbolic link; give the path of the file itself")
        } else {
            unreadable(source)
        }
    })?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(AuthorityError::key(path, "is no regular file"));
    }
    let mode = meta.mode() & 0o7777;
    if mode & !KEY_MODE != 0 {
        let path_shown = path.display();
        return Err(AuthorityError::key(
            path,
            format!("has mode {mode:04o}, others could read it or change it; `chmod 600 {path_shown}`"),
        ));
    }
    let own = nix::unistd::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != own {
        let uid = meta.uid();
        return Err(AuthorityError::key(
            path,
            format!("belongs to user {uid}, neither root nor the daemon's own; `chown {own} {}`", path.display()),
        ));
    }
    if meta.len() > KEY_FILE_MAX {
        return Err(AuthorityError::key(
            path,
            format!("has {} bytes, more than the {KEY_FILE_MAX} of any key", meta.len()),
        ));
    }
    // At most 64 KiB.
    let mut text = SecretPages::new(meta.len() as usize)
        .map_err(|source| AuthorityError::Protection { operation: "memory for it", source })?;
    let mut filled = 0;
    while filled < text.bytes().len() {
        match file.read(&mut text.bytes_mut()[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(unreadable(source)),
        }
    }
    text.truncate(filled);
    Ok(text)
}

/// What a private key's block holds.
#[derive(Clone, Copy)]
enum Form {
    /// RFC 8017, `RSAPrivateKey`
    Pkcs1,
    /// RFC 5915, `ECPrivateKey`
    Sec1,
    /// RFC 5958
    Pkcs8,
}

#[derive(Debug)]
enum Refused {
    Pages(std::io::Error),
    Key(&'static str),
}

/// The key of a PEM text.
fn parse(text: &[u8]) -> Result<CaKey, Refused> {
    const ENCRYPTED: &str = "is encrypted and nobody could type its passphrase; give it decrypted, with mode 0600";
    let mut found = None;
    for block in pem::blocks(text) {
        let form = match block.label {
            b"RSA PRIVATE KEY" => Form::Pkcs1,
            b"EC PRIVATE KEY" => Form::Sec1,
            b"PRIVATE KEY" => Form::Pkcs8,
            b"ENCRYPTED PRIVATE KEY" => return Err(Refused::Key(ENCRYPTED)),
            // EC PARAMETERS, a certificate in the same file.
            _ => continue,
        };
        if block.body.windows(10).any(|window| window == b"Proc-Type:") {
            return Err(Refused::Key(ENCRYPTED));
        }
        if found.replace((form, block.body)).is_some() {
            return Err(Refused::Key("holds more than one private key; leave one in it"));
        }
    }
    let (form, body) = found.ok_or(Refused::Key(
        "holds no private key in PEM form (`-----BEGIN PRIVATE KEY-----`); `outcall ca init` makes a pair",
    ))?;
    let mut der = SecretPages::new(body.len()).map_err(Refused::Pages)?;
    let len = pem::decode_base64(body, der.bytes_mut()).ok_or(Refused::Key("is damaged: its base64 cannot be read"))?;
    der.truncate(len);
    pair(form, der.bytes()).map(CaKey::new)
}

fn pair(form: Form, der: &[u8]) -> Result<Pair, Refused> {
    let p256 = || EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, der).ok();
    let p384 = || EcdsaKeyPair::from_private_key_der(&ECDSA_P384_SHA384_ASN1_SIGNING, der).ok();
    let ecdsa = || p256().map(|key| Pair::P256(Box::new(key))).or_else(|| p384().map(|key| Pair::P384(Box::new(key))));
    let rsa = |key: Result<RsaKeyPair, _>| key.ok().map(|key| Pair::Rsa(Box::new(key)));
    let pair = match form {
        Form::Pkcs1 => rsa(RsaKeyPair::from_der(der)),
        Form::Sec1 => ecdsa(),
        Form::Pkcs8 => rsa(RsaKeyPair::from_pkcs8(der)).or_else(ecdsa),
    };
    pair.ok_or(Refused::Key(
        "is damaged or of a kind that is not supported; RSA with 2048 to 8192 bits and ECDSA on P-256 or P-384 are",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> &'static str {
        match parse(text.as_bytes()) {
            Err(Refused::Key(reason)) => reason,
            Err(Refused::Pages(error)) => panic!("{error}"),
            Ok(_) => panic!("taken"),
        }
    }

    #[test]
    fn a_key_of_ours_signs() {
        let made = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let key = parse(made.serialize_pem().as_bytes()).unwrap();
        assert_eq!(key.public(), made.der_bytes());
        assert!(key.sign(b"message").unwrap().len() > 90);
    }

    #[test]
    fn what_is_no_key_is_said() {
        assert!(refusal("").contains("no private key"));
        assert!(
            refusal("-----BEGIN PRIVATE KEY-----\nQQ==\n-----END PRIVATE KEY-----\n").contains("damaged or of a kind")
        );
        assert!(refusal("-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n").contains("base64"));
        assert!(
            refusal("-----BEGIN ENCRYPTED PRIVATE KEY-----\nQQ==\n-----END ENCRYPTED PRIVATE KEY-----\n")
                .contains("encrypted")
        );
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nQQ==\n-----END RSA PRIVATE KEY-----\n";
        assert!(refusal(old).contains("encrypted"));
        let made = rcgen::KeyPair::generate().unwrap().serialize_pem();
        assert!(refusal(&format!("{made}{made}")).contains("more than one"));
    }

    #[test]
    fn a_curve_that_is_not_supported_is_refused() {
        let made = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        assert!(refusal(&made.serialize_pem()).contains("P-256 or P-384"));
    }
}
