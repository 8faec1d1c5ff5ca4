//! What the proxy would say to a request that nobody sent: read, routed and judged by what serves clients.
//!
//! Owns: the bytes that a plain client would send. Does not own: any decision, and nothing is resolved or dialled here.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::bridge::is_this_host;
use crate::docker_manager::{Directory, Peer};
use crate::http1::{Authority, Parse, RequestHead};
use crate::names::Host;
use crate::rule_engine::{Context, Rule, RuleSet};

use super::judge::{Facts, TlsFacts, Verdict};
use super::request::{Route, route};
use super::{ClientHello, Listening, dial};

/// Addresses of one name that are judged, as for a client.
const ADDRESSES_MAX: usize = dial::ADDRESSES_MAX;

/// A request or CONNECT as the proxy would see it from a client that sends nothing but a Host field.
#[derive(Clone, Debug)]
pub struct Preview {
    facts: Facts,
}

/// What is said to a [`Preview`].
#[derive(Clone, Debug)]
pub enum PreviewVerdict {
    /// It goes on.
    Allow {
        /// The rule that allows it; `None` while it hangs on the address.
        rule: Option<Arc<Rule>>,
    },
    /// The tunnel opens, and each request inside is judged by itself: see [`Preview::inside`].
    Intercept {
        /// The first rule that wants it decrypted.
        rule: Arc<Rule>,
    },
    /// It is refused.
    Block {
        /// The rule that refuses it, or allows it but not this way.
        rule: Option<Arc<Rule>>,
        /// A code for events.
        reason: &'static str,
    },
}

impl From<Verdict> for PreviewVerdict {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow { rule } => PreviewVerdict::Allow { rule },
            Verdict::Intercept { rule } => PreviewVerdict::Intercept { rule },
            Verdict::Block(refused) => PreviewVerdict::Block { rule: refused.rule, reason: refused.reason },
        }
    }
}

impl Preview {
    /// A request with `method` for `path` of a plain HTTP server.
    ///
    /// # Errors
    /// The code and the text of a 400: it has no one reading.
    pub fn request(method: &str, authority: &Authority, path: &str) -> Result<Self, (&'static str, String)> {
        // Nothing may end the line but its end.
        if !(method.bytes().chain(path.bytes())).all(|byte| byte.is_ascii_graphic()) {
            return Err(("bad_target", "the method or path has a byte that none has".to_owned()));
        }
        let host = authority.to_host_field(80);
        Self::read(&format!("{method} http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
    }

    /// A CONNECT to `authority`, which has a port.
    ///
    /// # Errors
    /// As [`Preview::request`].
    pub fn connect(authority: &Authority) -> Result<Self, (&'static str, String)> {
        // No default that a client could leave out: CONNECT always names its port.
        let host = authority.to_host_field(0);
        Self::read(&format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
    }

    /// A request with `method` for `path` inside this tunnel, decrypted. Its body is not known.
    ///
    /// # Errors
    /// As [`Preview::request`].
    pub fn inside(&self, method: &str, path: &str) -> Result<Self, (&'static str, String)> {
        let facts = &self.facts;
        let authority = Authority { host: facts.host.clone(), port: Some(facts.port) };
        let Preview { facts: request } = Self::request(method, &authority, path)?;
        Ok(Preview { facts: facts.around(request) })
    }

    fn read(text: &str) -> Result<Self, (&'static str, String)> {
        let head = match RequestHead::parse(text.as_bytes()) {
            Parse::Parsed { head, .. } => head,
            Parse::Refused(refusal) => return Err((refusal.code(), refusal.to_string())),
            Parse::Incomplete => return Err(("bad_request", "the request has no end".to_owned())),
        };
        match route(&|_| false, &head) {
            Route::Forward { host, port, path } => Ok(Preview { facts: Facts::of_request(&head, host, port, &path) }),
            Route::Connect { host, port } => Ok(Preview { facts: Facts::of_connect(&head, host, port) }),
            Route::Refuse { code, text, .. } => Err((code, text)),
            Route::Health => Err(("health", "this asks the proxy for its health".to_owned())),
        }
    }

    /// The same tunnel after a ClientHello as most clients send it: for the tunnel's host, TLS 1.3, without ECH.
    #[must_use]
    pub fn with_usual_hello(&self) -> Self {
        let sni = match &self.facts.host {
            Host::Name(_) => Some(self.facts.host.clone()),
            // RFC 6066 3: an address is no server name.
            Host::Address(_) => None,
        };
        let alpn = ["h2", "http/1.1"].map(Into::into).to_vec();
        let hello = TlsFacts::of(&ClientHello { sni, version: Some("1.3"), alpn, ech: false });
        Preview { facts: self.facts.with_hello(&Arc::new(hello)) }
    }

    /// By name, before anything is resolved; an address is judged as one.
    #[must_use]
    pub fn by_name(&self, rules: &RuleSet, peer: &Peer) -> PreviewVerdict {
        self.facts.judge_name(rules, peer).into()
    }

    /// By each address that the name has: those that would be judged, in the order in which they would be tried.
    /// `proxy` is how the proxy listens, to know its own addresses.
    #[must_use]
    pub fn by_addresses(
        &self,
        (rules, peer): (&RuleSet, &Peer),
        proxy: Option<(Listening, &Directory)>,
        addresses: &[IpAddr],
    ) -> Vec<(IpAddr, PreviewVerdict)> {
        let mut addresses: Vec<IpAddr> = addresses.iter().map(IpAddr::to_canonical).collect();
        addresses.sort_by_key(IpAddr::is_ipv6);
        addresses.dedup();
        addresses.truncate(ADDRESSES_MAX);
        let judged = addresses.into_iter().map(|address| {
            let target = SocketAddr::new(address, self.facts.port);
            let own = proxy.is_some_and(|(listening, directory)| listening.is_own(directory, target));
            (address, dial::vet(&self.facts, rules, peer, target, own, is_this_host).into())
        });
        judged.collect()
    }

    /// Lends what rules see to `use_it`; `address` as text, once it is known.
    pub fn with_context<T>(&self, peer: &Peer, address: Option<&str>, use_it: impl FnOnce(&Context<'_>) -> T) -> T {
        self.facts.with_context(peer, address, use_it)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(text: &str) -> Authority {
        Authority::parse(text).unwrap()
    }

    #[test]
    fn it_is_read_as_a_clients_request_is() {
        let preview = Preview::request("GET", &authority("Example.COM:8080"), "/a?b").unwrap();
        let facts = &preview.facts;
        assert_eq!((&*facts.host_text, facts.port, &*facts.path, facts.scheme), ("example.com", 8080, "/a?b", "http"));
        let tunnel = Preview::connect(&authority("[2606::1]:443")).unwrap();
        assert_eq!((&*tunnel.facts.host_text, &*tunnel.facts.method), ("2606::1", "CONNECT"));
        assert_eq!(Preview::request("GET", &authority("a.com"), "/a/../b").unwrap_err().0, "dot_segment");
        assert!(Preview::request("GE T", &authority("a.com"), "/").is_err());
        let inside = tunnel.with_usual_hello().inside("POST", "/a").unwrap();
        assert_eq!((&*inside.facts.method, inside.facts.scheme), ("POST", "https"));
        assert!(Preview::request("GET", &authority("a.com"), "/ HTTP/1.1\r\nX: y").is_err());
    }
}
