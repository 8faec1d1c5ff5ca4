//! What is to be explained, read as clients would read it.

use std::net::IpAddr;

use crate::http1::{Authority, Target};
use crate::names::Host;

/// Bytes of a target, as the agent API takes them.
const TARGET_MAX: usize = 8 * 1024;
/// The port that is meant when none is written and no scheme says.
const PORT_DEFAULT: u16 = 443;

/// A destination, in normal form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    /// Always with a port.
    pub(super) authority: Authority,
    pub(super) how: How,
    /// Nothing but a host was written: the port is a guess.
    pub(super) port_guessed: bool,
}

/// What is spoken there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// A request in the clear, for this path.
    Http { path: Box<str> },
    /// TLS, and inside it a request for this path.
    Https { path: Box<str> },
    /// Anything over TCP.
    Tcp,
}

impl Destination {
    /// Reads a URL, a name, an address, or one of the two with a port.
    ///
    /// # Errors
    /// What is wrong with it and what is accepted.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        if text.len() > TARGET_MAX {
            return Err(format!("the target is over {TARGET_MAX} bytes"));
        }
        if text.contains("://") {
            return Self::url(text);
        }
        let accepted = "give a http:// or https:// URL, a name, an address, or one of the two with a port";
        // An IPv6 address needs no brackets while no port follows.
        let authority = match text.parse::<IpAddr>() {
            Ok(address) => Authority { host: Host::Address(address.to_canonical()), port: None },
            Err(_) => Authority::parse(text).map_err(|error| format!("the target: {error}; {accepted}"))?,
        };
        let port_guessed = authority.port.is_none();
        let authority = Authority { port: Some(authority.port_or(PORT_DEFAULT)), ..authority };
        Ok(Destination { authority, how: How::Tcp, port_guessed })
    }

    fn url(text: &str) -> Result<Self, String> {
        // A fragment stays with the client.
        let sent = text.split('#').next().unwrap_or(text);
        let target = Target::parse("GET", sent).map_err(|error| format!("the target: {error}"))?;
        let Target::Absolute { scheme, authority, path } = target else {
            return Err("the target is no URL with a host".to_owned());
        };
        let (port, how) = match &*scheme {
            "http" | "ws" => (80, How::Http { path }),
            "https" | "wss" => (443, How::Https { path }),
            other => return Err(format!("`{other}://` is not explained; give HOST:PORT for what is no http or https")),
        };
        let authority = Authority { port: Some(authority.port_or(port)), ..authority };
        Ok(Destination { authority, how, port_guessed: false })
    }

    pub(super) fn port(&self) -> u16 {
        self.authority.port_or(PORT_DEFAULT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_urls_names_and_addresses() {
        let read = |text: &str| {
            let destination = Destination::read(text).unwrap();
            (destination.authority.to_host_field(0), destination.how, destination.port_guessed)
        };
        let path = |path: &str| path.into();
        assert_eq!(read("http://A.com/x?y#z"), ("a.com:80".into(), How::Http { path: path("/x?y") }, false));
        assert_eq!(read("https://a.com"), ("a.com:443".into(), How::Https { path: path("/") }, false));
        assert_eq!(read("https://a.com:8443/b"), ("a.com:8443".into(), How::Https { path: path("/b") }, false));
        assert_eq!(read("a.com."), ("a.com:443".into(), How::Tcp, true));
        assert_eq!(read("a.com:22"), ("a.com:22".into(), How::Tcp, false));
        assert_eq!(read("1.2.3.4"), ("1.2.3.4:443".into(), How::Tcp, true));
        assert_eq!(read("2606::1"), ("[2606::1]:443".into(), How::Tcp, true));
        assert_eq!(read("[2606::1]:22"), ("[2606::1]:22".into(), How::Tcp, false));
    }

    #[test]
    fn what_is_no_target_is_refused_with_what_is_accepted() {
        for (bad, says) in [
            ("", "empty"),
            ("a b", "0x20"),
            ("ftp://a.com/", "HOST:PORT"),
            ("https://", "host"),
            ("a.com:0", "port"),
            ("0x7f.1", "dotted-decimal"),
            ("https://user@a.com/", "0x40"),
        ] {
            let error = Destination::read(bad).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }
}
