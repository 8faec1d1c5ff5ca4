//! The facts of a request or tunnel, and the verdict on them. Sans-I/O: rules in, verdict out.
//!
//! Twice: by name, before anything is resolved, and by address, before anything is dialled. Only the second allows; it
//! alone judges what goes on a connection that is made.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::docker_manager::Peer;
use crate::http1::{BodyFraming, RequestHead};
use crate::names::{Host, special_purpose};
use crate::rule_engine::{Action, Body, Context, EgressMode, Header, Http, Network, Rule, RuleSet, Tls};

use super::ClientHello;

/// What is known of a request or a tunnel; names in normal form.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) host: Host,
    /// The host as rules see it.
    pub(super) host_text: Box<str>,
    pub(super) port: u16,
    pub(super) method: Box<str>,
    /// With query.
    pub(super) path: Box<str>,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
    headers: Vec<(Box<str>, Box<str>)>,
    pub(super) body_size: Option<u64>,
    pub(super) body: BodyFacts,
    tls: Option<Arc<TlsFacts>>,
}

/// The body of a request, as far as rules may see it.
#[derive(Clone, Debug)]
pub(super) enum BodyFacts {
    /// No rule sees any.
    Hidden,
    /// It was not read yet.
    Unread,
    /// It was read; `None` when it is over the cap.
    Read(Option<Arc<str>>),
}

/// What the ClientHello of a tunnel says.
#[derive(Debug)]
pub(super) struct TlsFacts {
    sni: Option<Box<str>>,
    version: Option<&'static str>,
    alpn: Vec<Box<str>>,
    ech: bool,
}

/// What the rules say.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    /// By name: some address could be allowed, so resolve. By address: connect.
    Allow {
        /// The rule that allows it; `None` only while the address is unknown.
        rule: Option<Arc<Rule>>,
    },
    /// CONNECT only: decrypt, and judge each request inside.
    Intercept {
        /// The first rule that wants it.
        rule: Arc<Rule>,
    },
    /// Refuse.
    Block(Refused),
}

/// A refusal by policy.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    /// The deciding rule; `None` is the default.
    pub(super) rule: Option<Arc<Rule>>,
    /// A code for events.
    pub(super) reason: &'static str,
    /// The address, where it was judged by one.
    pub(super) address: Option<IpAddr>,
}

impl Refused {
    /// A refusal for `reason` that no rule and no address has to do with.
    pub(super) fn because(reason: &'static str) -> Self {
        Refused { rule: None, reason, address: None }
    }
}

impl Facts {
    /// The facts of a plain request for `path` at `host`.
    pub(super) fn of_request(head: &RequestHead, host: Host, port: u16, path: &str) -> Self {
        let body_size = match head.framing {
            BodyFraming::None => Some(0),
            BodyFraming::Length(length) => Some(length),
            BodyFraming::Chunked | BodyFraming::UntilClose => None,
        };
        Facts { body_size, ..Self::new(head, host, port, path, "http") }
    }

    /// The same request, as one that was decrypted out of a tunnel that opened with `hello`.
    pub(super) fn decrypted(self, hello: Arc<TlsFacts>) -> Self {
        let body = if self.body_size == Some(0) { BodyFacts::Read(Some("".into())) } else { BodyFacts::Unread };
        Facts { scheme: "https", tls: Some(hello), body, ..self }
    }

    /// The facts of a CONNECT; what will be sent inside is unknown.
    pub(super) fn of_connect(head: &RequestHead, host: Host, port: u16) -> Self {
        Self::new(head, host, port, "/", "https")
    }

    fn new(head: &RequestHead, host: Host, port: u16, path: &str, scheme: &'static str) -> Self {
        // What `Connection` lists is not sent on: no rule may hang on it.
        let sent = head.fields.iter().filter(|(name, _)| !head.fields.drops(name));
        let headers = sent.map(|(name, value)| {
            (name.to_ascii_lowercase().into_boxed_str(), String::from_utf8_lossy(value).into_owned().into_boxed_str())
        });
        Facts {
            host_text: host.to_text().into_boxed_str(),
            host,
            port,
            method: head.method.clone(),
            path: path.into(),
            scheme,
            headers: headers.collect(),
            body_size: None,
            body: BodyFacts::Hidden,
            tls: None,
        }
    }

    /// The same tunnel, now that its ClientHello is known.
    pub(super) fn with_hello(&self, hello: &Arc<TlsFacts>) -> Self {
        Facts { tls: Some(Arc::clone(hello)), ..self.clone() }
    }

    /// The port that goes without saying.
    pub(super) fn default_port(&self) -> u16 {
        if self.scheme == "https" { 443 } else { 80 }
    }

    /// `request`, which came out of this tunnel; only its head is known.
    pub(super) fn around(&self, request: Facts) -> Self {
        let (tls, body) = (self.tls.clone(), BodyFacts::Unread);
        Facts { scheme: "https", tls, body, body_size: None, ..request }
    }

    fn is_connect(&self) -> bool {
        &*self.method == "CONNECT"
    }

    /// Whether a rule hangs on the body, which was not read yet.
    pub(super) fn wants_body(&self, rules: &RuleSet, peer: &Peer) -> bool {
        let address = match self.host {
            Host::Address(address) => Some(address.to_string()),
            Host::Name(_) => None,
        };
        matches!(self.body, BodyFacts::Unread)
            && rules.reads_bodies()
            && self.with_context(peer, address.as_deref(), |context| rules.peek(context)).wants_body
    }

    /// The same tunnel, taken to go to `host`.
    pub(super) fn renamed(&self, host: &Host) -> Self {
        Facts { host: host.clone(), host_text: host.to_text().into_boxed_str(), ..self.clone() }
    }

    /// Judges with the address unknown, or known when the host is one. Counts nothing: see [`Facts::count`].
    pub(super) fn judge_name(&self, rules: &RuleSet, peer: &Peer) -> Verdict {
        if let Host::Address(address) = self.host {
            return self.judge_address(rules, peer, address);
        }
        let decision = self.with_context(peer, None, |context| rules.peek(context));
        let refused = |rule, reason| Verdict::Block(Refused { rule, reason, address: None });
        if !decision.may_allow() {
            let reason = if decision.rule.is_some() { "rule" } else { "default" };
            return refused(decision.rule, reason);
        }
        if decision.wants_address {
            return Verdict::Allow { rule: None };
        }
        if let Some(rule) = decision.could_intercept {
            return Verdict::Intercept { rule };
        }
        if let Some(rule) = decision.rule.as_ref().filter(|rule| self.is_connect() && intercepts(rule)) {
            return Verdict::Intercept { rule: Arc::clone(rule) };
        }
        match decision.rule.as_deref().and_then(|rule| self.against_egress(rule)) {
            Some(reason) => refused(decision.rule, reason),
            None => Verdict::Allow { rule: decision.rule },
        }
    }

    /// Judges a connection to `address`. Counts nothing: see [`Facts::count`].
    pub(super) fn judge_address(&self, rules: &RuleSet, peer: &Peer, address: IpAddr) -> Verdict {
        let address = address.to_canonical();
        let text = address.to_string();
        let decision = self.with_context(peer, Some(&text), |context| rules.peek(context));
        let refused = |rule, reason| Verdict::Block(Refused { rule, reason, address: Some(address) });
        if let Some(rule) = decision.could_intercept {
            return Verdict::Intercept { rule };
        }
        let rule = match (decision.action, decision.rule) {
            (Action::Allow, Some(rule)) => rule,
            (_, Some(rule)) => return refused(Some(rule), "rule"),
            (_, None) => return refused(None, "default"),
        };
        // Nothing is dialled for it yet: the address is judged with each request inside.
        if self.is_connect() && intercepts(&rule) {
            return Verdict::Intercept { rule };
        }
        if let Some(reason) = self.against_egress(&rule) {
            return refused(Some(rule), reason);
        }
        let private_allowed = rule.egress.as_ref().is_some_and(|egress| egress.allow_private_ips);
        match special_purpose(address) {
            Some(_) if address.is_unspecified() => refused(Some(rule), "unspecified_address"),
            Some(_) if !private_allowed => refused(Some(rule), "private_address"),
            _ => Verdict::Allow { rule: Some(rule) },
        }
    }

    /// Asks once more, so that the deciding rule counts and logs the match: once for each decision that took effect.
    pub(super) fn count(&self, rules: &RuleSet, peer: &Peer, address: Option<IpAddr>) {
        let text = address.map(|address| address.to_canonical().to_string());
        self.with_context(peer, text.as_deref(), |context| {
            let _ = rules.decide(context);
        });
    }

    /// What in the rule's `egress:` forbids this through the proxy.
    fn against_egress(&self, rule: &Rule) -> Option<&'static str> {
        let egress = rule.egress.as_ref()?;
        match egress.mode {
            // A request that an `intercept` rule matches was seen whole, decrypted or in the clear.
            EgressMode::Proxy | EgressMode::Intercept => None,
            EgressMode::DirectIp if egress.ports.contains(&self.port) => None,
            EgressMode::DirectIp => Some("port_not_in_rule"),
        }
    }

    /// Lends what rules see to `use_it`.
    pub(super) fn with_context<T>(
        &self,
        peer: &Peer,
        address: Option<&str>,
        use_it: impl FnOnce(&Context<'_>) -> T,
    ) -> T {
        let headers: Vec<Header<'_>> = self.headers.iter().map(|(name, value)| Header { name, value }).collect();
        let alpn: Vec<&str> = self.tls.iter().flat_map(|tls| &tls.alpn).map(|protocol| &**protocol).collect();
        let tls = match &self.tls {
            None => Tls::default(),
            Some(tls) => Tls { sni: tls.sni.as_deref(), version: tls.version, alpn: Some(&alpn), ech: Some(tls.ech) },
        };
        use_it(&Context {
            agent: peer.agent(),
            network: Network {
                hostname: Some(&self.host_text),
                ip: address,
                port: Some(self.port),
                protocol: Some("tcp"),
            },
            http: Http {
                method: Some(&self.method),
                path: Some(&self.path),
                host: Some(&self.host_text),
                scheme: Some(self.scheme),
                headers: Some(&headers),
                body_size: self.body_size,
                body: match &self.body {
                    BodyFacts::Hidden => Body::Unknown,
                    BodyFacts::Unread => Body::Unread,
                    BodyFacts::Read(body) => Body::Read(body.as_deref()),
                },
            },
            tls,
            ..Context::default()
        })
    }
}

/// What a live connection was allowed as, kept to ask again when the rules change.
#[derive(Debug)]
pub(super) struct Standing {
    /// Each must be allowed: the request or CONNECT, and the server name when it is another.
    pub(super) facts: Vec<Facts>,
    /// Where it is connected to.
    pub(super) address: SocketAddr,
}

impl Standing {
    /// The first refusal, if `vet`, which judges a connection to an address in full, would not allow it now.
    pub(super) fn refused(&self, vet: impl Fn(&Facts, SocketAddr) -> Verdict) -> Option<(Refused, &Facts)> {
        self.facts.iter().find_map(|facts| match vet(facts, self.address) {
            Verdict::Allow { .. } => None,
            Verdict::Intercept { rule } => {
                // What was copied unseen would have to be seen now.
                let refused = Refused { rule: Some(rule), reason: "intercept_now", address: None };
                Some((refused, facts))
            }
            Verdict::Block(refused) => Some((refused, facts)),
        })
    }
}

fn intercepts(rule: &Rule) -> bool {
    rule.egress.as_ref().is_some_and(|egress| egress.mode == EgressMode::Intercept)
}

impl TlsFacts {
    /// What rules see of a ClientHello.
    pub(super) fn of(hello: &ClientHello) -> Self {
        TlsFacts {
            sni: hello.sni.as_ref().map(|host| host.to_text().into_boxed_str()),
            version: hello.version,
            alpn: hello.alpn.clone(),
            ech: hello.ech,
        }
    }
}

/// True when the path has a segment that servers resolve before they look: `.` or `..`, percent-encoded or not. Some
/// servers drop a segment's parameters (`;x`) first. Rules see the path as sent, so such a path would have two readings.
pub(super) fn has_dot_segment(path: &str) -> bool {
    let path = path.split('?').next().unwrap_or(path).to_ascii_lowercase();
    let path = path.replace("%2e", ".").replace("%2f", "/").replace("%5c", "/").replace("%3b", ";");
    let mut names = path.split(['/', '\\']).map(|segment| segment.split(';').next().unwrap_or(segment));
    names.any(|name| name == "." || name == "..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::Parse;

    #[test]
    fn rules_see_no_field_that_is_dropped_on_the_way() {
        let wire = "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Token, Host, Upgrade\r\nx-token: t\r\nUpgrade: websocket\r\n\
                    Accept: */*\r\n\r\n";
        let Parse::Parsed { head, .. } = RequestHead::parse(wire.as_bytes()) else { panic!() };
        let facts = Facts::of_request(&head, Host::parse("a").unwrap(), 80, "/");
        let names: Vec<&str> = facts.headers.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["host", "connection", "upgrade", "accept"]);
    }

    #[test]
    fn paths_with_two_readings_are_found() {
        for path in ["/a/../b", "/..", "/a/%2E%2e/b", "/a/.%2e", "/./a", "/a/..%2fb", "/a\\..\\b", "/a/.?q"] {
            assert!(has_dot_segment(path), "{path}");
        }
        for path in ["/public/..;/admin", "/a/..;x", "/a/%2e%2e%3b/b", "/a/..%3Bx=1;y/b", "/.;/a", "/a/..;x%2fb"] {
            assert!(has_dot_segment(path), "{path}");
        }
        for path in ["/", "/a..b/...", "/.well-known/x", "/a?x=/../y", "*", "/a%2e%2eb", "/a;../b", "/a;x=..", "/;/b"] {
            assert!(!has_dot_segment(path), "{path}");
        }
    }
}
