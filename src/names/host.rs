//! The normal form of a host: a DNS name in lower-case A-labels without a trailing dot, or an IP address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A DNS name in normal form: lower case, no trailing dot, 1 to 253 bytes, labels of 1 to 63 bytes of
/// letters, digits, `-` and `_`, and not all-numeric in its last label (that would be an address in some
/// notation to some resolver). RFC 1035 2.3.4, RFC 1123 2.1, WHATWG URL "ends in a number".
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Box<str>);

/// Where a request wants to go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name to resolve.
    Name(HostName),
    /// An address literal. A v4-mapped IPv6 address is given as the IPv4 address it is.
    Address(IpAddr),
}

/// Why a text has no normal form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostError {
    /// Nothing there.
    Empty,
    /// Over 253 bytes, or a label over 63.
    TooLong,
    /// A label of no bytes.
    EmptyLabel,
    /// A byte that no host name has (anything but ASCII letters, digits, `-`, `_`, `.`).
    BadByte(u8),
    /// A label that begins or ends with `-`.
    BadHyphen,
    /// A number where an address should be in dotted-decimal form (`0x7f.1`, `2130706433`, `127.1`, `010.0.0.1`).
    OddAddress,
    /// Brackets without an IPv6 address in them, or a scoped one.
    BadBrackets,
}

impl std::fmt::Display for HostError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HostError::Empty => f.write_str("the host is empty"),
            HostError::TooLong => f.write_str("the host name is longer than DNS allows (253 bytes, 63 a label)"),
            HostError::EmptyLabel => f.write_str("the host name has an empty label"),
            HostError::BadByte(byte) => {
                write!(f, "the host name has the byte 0x{byte:02x}; write names in ASCII (A-labels)")
            }
            HostError::BadHyphen => f.write_str("a label of the host name begins or ends with '-'"),
            HostError::OddAddress => f.write_str("the host is a number that is no dotted-decimal IPv4 address"),
            HostError::BadBrackets => f.write_str("the brackets do not hold an IPv6 address"),
        }
    }
}

impl std::error::Error for HostError {}

const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

impl HostName {
    /// The normal form of a DNS name; one trailing dot is taken off.
    ///
    /// # Errors
    /// [`HostError`], when it has none. An IPv4 address is [`HostError::OddAddress`] here: see [`Host::parse`].
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(HostError::Empty);
        }
        if name.len() > NAME_MAX {
            return Err(HostError::TooLong);
        }
        for label in name.split('.') {
            check_label(label)?;
        }
        let last = name.rsplit('.').next().unwrap_or(name);
        if is_number(last) {
            return Err(HostError::OddAddress);
        }
        Ok(HostName(name.to_ascii_lowercase().into_boxed_str()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for HostName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Host {
    /// The normal form of a URL's or an authority's host (no port): a name, a dotted-decimal IPv4 address, or an
    /// IPv6 address in brackets.
    ///
    /// # Errors
    /// [`HostError`], when there is none.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(HostError::BadBrackets)?;
            let address: Ipv6Addr = inner.parse().map_err(|_| HostError::BadBrackets)?;
            return Ok(Host::Address(IpAddr::V6(address).to_canonical()));
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Host::Address(IpAddr::V4(address)));
        }
        HostName::parse(text).map(Host::Name)
    }

    /// The text that rules see: the name, or the address without brackets.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Host::Name(name) => name.as_str().to_owned(),
            Host::Address(address) => address.to_string(),
        }
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name.as_str()),
            Host::Address(address) => write!(f, "{address}"),
        }
    }
}

fn check_label(label: &str) -> Result<(), HostError> {
    if label.is_empty() {
        return Err(HostError::EmptyLabel);
    }
    if label.len() > LABEL_MAX {
        return Err(HostError::TooLong);
    }
    if let Some(byte) = label.bytes().find(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))) {
        return Err(HostError::BadByte(byte));
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err(HostError::BadHyphen);
    }
    Ok(())
}

/// A label that some resolver takes as a number: all digits, or `0x` and hex digits (also none).
fn is_number(label: &str) -> bool {
    if label.bytes().all(|b| b.is_ascii_digit()) {
        return true;
    }
    let lower = label.to_ascii_lowercase();
    lower.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Result<String, HostError> {
        HostName::parse(text).map(|n| n.as_str().to_owned())
    }

    #[test]
    fn names_have_one_normal_form() {
        assert_eq!(name("Example.COM."), Ok("example.com".to_owned()));
        assert_eq!(name("_dmarc.example.com"), Ok("_dmarc.example.com".to_owned()));
        assert_eq!(name("xn--bcher-kva.example"), Ok("xn--bcher-kva.example".to_owned()));
        assert_eq!(name("localhost"), Ok("localhost".to_owned()));
    }

    #[test]
    fn what_has_no_normal_form_is_refused() {
        assert_eq!(name(""), Err(HostError::Empty));
        assert_eq!(name("."), Err(HostError::Empty));
        assert_eq!(name("a..b"), Err(HostError::EmptyLabel));
        assert_eq!(name("example.com.."), Err(HostError::EmptyLabel));
        assert_eq!(name(".example.com"), Err(HostError::EmptyLabel));
        assert_eq!(name("exa mple.com"), Err(HostError::BadByte(b' ')));
        assert_eq!(name("a\0.com"), Err(HostError::BadByte(0)));
        assert_eq!(name("user@host"), Err(HostError::BadByte(b'@')));
        assert_eq!(name("a%2eb"), Err(HostError::BadByte(b'%')));
        assert_eq!(name("example\u{3002}com"), Err(HostError::BadByte(0xe3)));
        assert_eq!(name("exam\u{200b}ple.com"), Err(HostError::BadByte(0xe2)));
        assert_eq!(name("-a.com"), Err(HostError::BadHyphen));
        assert_eq!(name(&"a".repeat(64)), Err(HostError::TooLong));
        assert_eq!(name(&["a"; 128].join(".")), Err(HostError::TooLong));
    }

    #[test]
    fn numbers_in_odd_notations_are_no_names() {
        for odd in
            ["2130706433", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1", "1.2.3.4.5", "foo.0x", "a.09", "127.0.0.1."]
        {
            assert_eq!(Host::parse(odd), Err(HostError::OddAddress), "{odd}");
        }
    }

    #[test]
    fn address_literals_are_addresses() {
        assert_eq!(Host::parse("127.0.0.1"), Ok(Host::Address("127.0.0.1".parse().unwrap())));
        assert_eq!(Host::parse("[::1]"), Ok(Host::Address("::1".parse().unwrap())));
        assert_eq!(Host::parse("[::ffff:127.0.0.1]"), Ok(Host::Address("127.0.0.1".parse().unwrap())));
        assert_eq!(Host::parse("[fe80::1%eth0]"), Err(HostError::BadBrackets));
        assert_eq!(Host::parse("[::1"), Err(HostError::BadBrackets));
        assert!(Host::parse("::1").is_err());
    }
}
