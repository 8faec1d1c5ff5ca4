//! What the CA's certificate says: names, times, constraints. Checked once, when it is loaded.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::error::AuthorityError;

/// Largest certificate file read: one certificate, with whatever text stands around it.
const CERTIFICATE_FILE_MAX: u64 = 1024 * 1024;

/// A CA certificate that may sign leaves.
#[derive(Debug)]
pub struct CaCertificate {
    der: CertificateDer<'static>,
    pem: String,
    subject: String,
    fingerprint: String,
    not_before: SystemTime,
    not_after: SystemTime,
    constraints: Constraints,
}

impl CaCertificate {
    /// The certificate itself.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The certificate as PEM, without what else stood in its file.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its distinguished name, as RFC 4514 writes it.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// SHA-256 of the certificate: 32 pairs of upper-case hex digits with colons between, as openssl prints it.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The first moment at which it counts.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The last.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether clients would take a leaf for `name` from this CA (RFC 5280 4.2.1.10).
    #[must_use]
    pub fn allows(&self, name: &str) -> bool {
        self.constraints.allow(name)
    }

    /// Reads and checks the file.
    pub(super) fn read(path: &Path, now: SystemTime) -> Result<CaCertificate, AuthorityError> {
        let unreadable = |source| AuthorityError::Unreadable { path: path.to_owned(), source };
        let text = read_capped(path, CERTIFICATE_FILE_MAX).map_err(unreadable)?;
        let text = text.ok_or_else(|| {
            AuthorityError::certificate(
                path,
                format!("has more than the {CERTIFICATE_FILE_MAX} bytes of any certificate"),
            )
        })?;
        let refused = |reason: String| AuthorityError::certificate(path, reason);
        let mut found = CertificateDer::pem_slice_iter(&text);
        let der = match found.next() {
            Some(Ok(der)) => der,
            Some(Err(_)) => return Err(refused("is damaged: its PEM cannot be read".to_owned())),
            None => {
                return Err(refused(
                    "holds no certificate in PEM form (`-----BEGIN CERTIFICATE-----`); `outcall ca init` makes a pair"
                        .to_owned(),
                ));
            }
        };
        if found.next().is_some() {
            return Err(refused("holds more than one certificate; leave the CA's in it".to_owned()));
        }
        Self::parse(der, now).map_err(refused)
    }

    /// A certificate that may sign leaves at `now`.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn parse(der: CertificateDer<'static>, now: SystemTime) -> Result<CaCertificate, String> {
        let parsed = match X509Certificate::from_der(&der) {
            Ok(([], parsed)) => parsed,
            _ => return Err("is damaged: it is no X.509 certificate".to_owned()),
        };
        check_purpose(&parsed)?;
        let (not_before, not_after) = (time(parsed.validity().not_before), time(parsed.validity().not_after));
        let shown = |at| humantime::format_rfc3339_seconds(at);
        if now < not_before {
            let (at, now) = (shown(not_before), shown(now));
            return Err(format!("counts only from {at} and the clock says {now}; set the clock right, or wait"));
        }
        if now > not_after {
            return Err(format!("expired at {}; make a new pair with `outcall ca init`", shown(not_after)));
        }
        let subject = parsed.subject().to_string();
        let constraints = Constraints::of(&parsed)?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der);
        let fingerprint: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        let pem = to_pem(&der);
        Ok(CaCertificate { pem, subject, fingerprint: fingerprint.join(":"), not_before, not_after, constraints, der })
    }

    /// What `work` finds in the certificate's fields.
    pub(super) fn with_parsed<T>(&self, work: impl FnOnce(&X509Certificate<'_>) -> T) -> Option<T> {
        X509Certificate::from_der(&self.der).ok().map(|(_, parsed)| work(&parsed))
    }
}

/// The file's bytes; `None` when there are more than `limit`.
pub(super) fn read_capped(path: &Path, limit: u64) -> std::io::Result<Option<Vec<u8>>> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    // A FIFO must not stop the start for good.
    let file = std::fs::File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut text = Vec::new();
    file.take(limit + 1).read_to_end(&mut text)?;
    Ok((text.len() as u64 <= limit).then_some(text))
}

/// Refuses what clients would not take as the issuer of a server's certificate.
fn check_purpose(parsed: &X509Certificate<'_>) -> Result<(), String> {
    let unreadable = |_| "is damaged: an extension is there twice or cannot be read".to_owned();
    let basic = parsed.basic_constraints().map_err(unreadable)?;
    if !basic.is_some_and(|basic| basic.value.ca) {
        return Err("is not a CA's (no `CA:TRUE`), so no client would trust what it signs; `outcall ca init` makes \
                    a pair"
            .to_owned());
    }
    if parsed.key_usage().map_err(unreadable)?.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("may not sign certificates (its key usage leaves `keyCertSign` out); use one that may".to_owned());
    }
    let purposes = parsed.extended_key_usage().map_err(unreadable)?;
    if purposes.is_some_and(|purposes| !purposes.value.any && !purposes.value.server_auth) {
        return Err(
            "may not sign for servers (its extended key usage leaves `serverAuth` out); use one that may".to_owned()
        );
    }
    Ok(())
}

/// Before 1970 is 1970: no clock says less.
fn time(at: ASN1Time) -> SystemTime {
    let since = Duration::from_secs(u64::try_from(at.timestamp()).unwrap_or(0));
    // X.509 ends with the year 9999, which the kernel's clock holds.
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// One certificate as PEM, 64 characters a line (RFC 7468).
pub(super) fn to_pem(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    /// Bytes of a line: 64 characters.
    const LINE: usize = 48;
    let mut text = String::with_capacity(der.len() * 3 / 2 + 64);
    text.push_str("-----BEGIN CERTIFICATE-----\n");
    for line in der.chunks(LINE) {
        for group in line.chunks(3) {
            let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
            for place in 0..4 {
                let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
                text.push(if place > group.len() { '=' } else { char::from(digit) });
            }
        }
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// The names that the CA may sign for. Empty lists constrain nothing.
#[derive(Debug, Default, PartialEq, Eq)]
struct Constraints {
    names: Vec<String>,
    names_excluded: Vec<String>,
    addresses: Vec<Subnet>,
    addresses_excluded: Vec<Subnet>,
}

/// An address and a mask of its length.
#[derive(Debug, PartialEq, Eq)]
struct Subnet(Vec<u8>);

impl Constraints {
    fn of(parsed: &X509Certificate<'_>) -> Result<Constraints, String> {
        let mut found = Constraints::default();
        let Some(extension) = parsed.name_constraints().map_err(|_| "has name constraints twice".to_owned())? else {
            return Ok(found);
        };
        let mut take = |name: &GeneralName<'_>, excluded: bool| {
            let (names, addresses) = match excluded {
                false => (&mut found.names, &mut found.addresses),
                true => (&mut found.names_excluded, &mut found.addresses_excluded),
            };
            match name {
                GeneralName::DNSName(name) => names.push(name.to_ascii_lowercase()),
                GeneralName::IPAddress(bytes) => addresses.push(Subnet(bytes.to_vec())),
                // Leaves hold no other kind of name.
                _ => {}
            }
        };
        for (list, excluded) in
            [(&extension.value.permitted_subtrees, false), (&extension.value.excluded_subtrees, true)]
        {
            list.iter().flatten().for_each(|subtree| take(&subtree.base, excluded));
        }
        Ok(found)
    }

    fn allow(&self, name: &str) -> bool {
        match name.parse::<IpAddr>() {
            Ok(address) => {
                let inside = |subnets: &[Subnet]| subnets.iter().any(|subnet| subnet.contains(address));
                (self.addresses.is_empty() || inside(&self.addresses)) && !inside(&self.addresses_excluded)
            }
            Err(_) => {
                let inside = |domains: &[String]| domains.iter().any(|domain| is_within(name, domain));
                (self.names.is_empty() || inside(&self.names)) && !inside(&self.names_excluded)
            }
        }
    }
}

impl Subnet {
    fn contains(&self, address: IpAddr) -> bool {
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let (base, mask) = self.0.split_at(self.0.len() / 2);
        base.len() == octets.len()
            && mask.len() == octets.len()
            && octets.iter().zip(base).zip(mask).all(|((octet, base), mask)| octet & mask == base & mask)
    }
}

/// Whether `name` is `domain` or below it. A leading dot in a constraint, which some CAs write, means below it only.
fn is_within(name: &str, domain: &str) -> bool {
    match name.strip_suffix(domain) {
        Some("") => !domain.starts_with('.'),
        Some(front) => domain.is_empty() || domain.starts_with('.') || front.ends_with('.'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_is_written_as_a_library_reads_it() {
        for len in 0..200usize {
            let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
            let read = CertificateDer::from_pem_slice(to_pem(&bytes).as_bytes()).unwrap();
            assert_eq!(read.as_ref(), bytes, "{len}");
        }
    }

    #[test]
    fn a_domain_covers_itself_and_what_is_below() {
        assert!(is_within("example.com", "example.com") && is_within("a.example.com", "example.com"));
        assert!(!is_within("notexample.com", "example.com") && !is_within("example.org", "example.com"));
        assert!(is_within("a.example.com", ".example.com") && !is_within("example.com", ".example.com"));
        assert!(is_within("example.com", ""));
    }

    #[test]
    fn constraints_permit_and_exclude() {
        let v4 = |text: [u8; 8]| Subnet(text.to_vec());
        let only = Constraints { names: vec!["example.com".to_owned()], ..Constraints::default() };
        assert!(only.allow("www.example.com") && !only.allow("example.org") && only.allow("192.0.2.1"));
        let no_addresses = Constraints { addresses_excluded: vec![v4([0; 8]), Subnet(vec![0; 32])], ..only };
        assert!(!no_addresses.allow("192.0.2.1") && !no_addresses.allow("2001:db8::1"));
        let lab = Constraints { addresses: vec![v4([192, 0, 2, 0, 255, 255, 255, 0])], ..Constraints::default() };
        assert!(
            lab.allow("192.0.2.9") && !lab.allow("192.0.3.9") && !lab.allow("2001:db8::1") && lab.allow("any.example")
        );
    }
}
