//! Request targets and authorities. RFC 9112 3.2, RFC 3986 3.2.

use crate::names::{Host, HostError};

/// A host and a port, in normal form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    /// Where.
    pub host: Host,
    /// The port, when one is written.
    pub port: Option<u16>,
}

/// Why a text is no [`Authority`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorityError {
    /// The host has no normal form.
    Host(HostError),
    /// The port is no number from 1 to 65535.
    Port,
}

impl std::fmt::Display for AuthorityError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AuthorityError::Host(error) => error.fmt(f),
            AuthorityError::Port => f.write_str("the port is no number from 1 to 65535"),
        }
    }
}

impl std::error::Error for AuthorityError {}

impl Authority {
    /// Reads `host[:port]`. User information has no place in it.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn parse(text: &str) -> Result<Self, AuthorityError> {
        let bracket = text.rfind(']').unwrap_or(0);
        let (host, port) = match text[bracket..].rfind(':') {
            Some(colon) => (&text[..bracket + colon], Some(&text[bracket + colon + 1..])),
            None => (text, None),
        };
        let host = Host::parse(host).map_err(AuthorityError::Host)?;
        let port = port.map(parse_port).transpose()?;
        Ok(Authority { host, port })
    }

    /// The port, or `default` when none is written.
    #[must_use]
    pub fn port_or(&self, default: u16) -> u16 {
        self.port.unwrap_or(default)
    }

    /// The text of a Host field: brackets around IPv6, the port unless it is `default`.
    #[must_use]
    pub fn to_host_field(&self, default: u16) -> String {
        let host = match &self.host {
            Host::Address(std::net::IpAddr::V6(address)) => format!("[{address}]"),
            host => host.to_text(),
        };
        match self.port {
            Some(port) if port != default => format!("{host}:{port}"),
            _ => host,
        }
    }
}

fn parse_port(text: &str) -> Result<u16, AuthorityError> {
    if text.is_empty() || text.len() > 5 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(AuthorityError::Port);
    }
    match text.parse() {
        Ok(0) | Err(_) => Err(AuthorityError::Port),
        Ok(port) => Ok(port),
    }
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `http://host:port/path?query`, as proxies get it.
    Absolute {
        /// In lower case.
        scheme: Box<str>,
        /// Where.
        authority: Authority,
        /// Path with query, as sent; `/` when empty, `*` for OPTIONS without a path.
        path: Box<str>,
    },
    /// `/path?query`, as servers get it.
    Origin(Box<str>),
    /// `host:port`: CONNECT.
    Authority(Authority),
    /// `*`: OPTIONS.
    Asterisk,
}

/// Why a request target is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// None of the four forms, or a form that the method does not have.
    Form,
    /// A byte that no target has: not printable ASCII, or `#`.
    Byte,
    /// The authority in it.
    Authority(AuthorityError),
    /// A CONNECT without a port.
    PortMissing,
}

impl std::fmt::Display for TargetError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TargetError::Form => f.write_str("the request target has no known form"),
            TargetError::Byte => f.write_str("a byte in the request target that has no place there"),
            TargetError::Authority(error) => error.fmt(f),
            TargetError::PortMissing => f.write_str("CONNECT wants host:port"),
        }
    }
}

impl std::error::Error for TargetError {}

impl Target {
    /// Reads the target of a request with `method`.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn parse(method: &str, text: &str) -> Result<Self, TargetError> {
        if text.is_empty() {
            return Err(TargetError::Form);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err(TargetError::Byte);
        }
        if method == "CONNECT" {
            let authority = Authority::parse(text).map_err(TargetError::Authority)?;
            return if authority.port.is_some() {
                Ok(Target::Authority(authority))
            } else {
                Err(TargetError::PortMissing)
            };
        }
        if text == "*" {
            return if method == "OPTIONS" { Ok(Target::Asterisk) } else { Err(TargetError::Form) };
        }
        if text.starts_with('/') {
            return Ok(Target::Origin(text.into()));
        }
        let (scheme, rest) = text.split_once("://").ok_or(TargetError::Form)?;
        if scheme.is_empty() || !scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) {
            return Err(TargetError::Form);
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority = Authority::parse(authority).map_err(TargetError::Authority)?;
        let path = match path.as_bytes().first() {
            None if method == "OPTIONS" => "*".into(),
            None => "/".into(),
            Some(b'?') => format!("/{path}").into(),
            Some(_) => path.into(),
        };
        Ok(Target::Absolute { scheme: scheme.to_ascii_lowercase().into(), authority, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(text: &str) -> Option<(String, Option<u16>)> {
        Authority::parse(text).ok().map(|authority| (authority.host.to_text(), authority.port))
    }

    #[test]
    fn authorities_have_one_reading() {
        assert_eq!(authority("Example.com.:8080"), Some(("example.com".to_owned(), Some(8080))));
        assert_eq!(authority("[::1]:443"), Some(("::1".to_owned(), Some(443))));
        assert_eq!(authority("[::1]"), Some(("::1".to_owned(), None)));
        for bad in [
            "",
            ":80",
            "a:",
            "a:0",
            "a:65536",
            "a:+80",
            "a:80:80",
            "u@a",
            "u:p@a:80",
            "[::1]x:80",
            "[::1",
            "::1",
            "a b",
        ] {
            assert_eq!(authority(bad), None, "{bad}");
        }
    }

    #[test]
    fn each_form_belongs_to_its_methods() {
        let path = |method: &str, text: &str| match Target::parse(method, text) {
            Ok(Target::Absolute { path, .. }) => Some(path.to_string()),
            _ => None,
        };
        assert_eq!(path("GET", "HTTP://example.com"), Some("/".to_owned()));
        assert_eq!(path("GET", "http://example.com?a=b"), Some("/?a=b".to_owned()));
        assert_eq!(path("OPTIONS", "http://example.com"), Some("*".to_owned()));
        assert_eq!(Target::parse("OPTIONS", "*"), Ok(Target::Asterisk));
        assert_eq!(Target::parse("GET", "*"), Err(TargetError::Form));
        assert_eq!(Target::parse("GET", "/a?b"), Ok(Target::Origin("/a?b".into())));
        assert_eq!(Target::parse("GET", "example.com:80"), Err(TargetError::Form));
        assert_eq!(Target::parse("CONNECT", "example.com"), Err(TargetError::PortMissing));
        assert!(matches!(Target::parse("CONNECT", "/"), Err(TargetError::Authority(_))));
        assert!(matches!(Target::parse("CONNECT", "http://a:443"), Err(TargetError::Authority(_))));
        assert!(matches!(Target::parse("GET", "http://user@a/"), Err(TargetError::Authority(_))));
        assert!(matches!(Target::parse("GET", "http://a\\@b/"), Err(TargetError::Authority(_))));
        assert_eq!(Target::parse("GET", "/a#b"), Err(TargetError::Byte));
        assert_eq!(Target::parse("GET", "/\u{e4}"), Err(TargetError::Byte));
    }
}
