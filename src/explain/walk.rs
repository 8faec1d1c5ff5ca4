//! The layers in the order in which a packet meets them, each asked for its verdict.

use std::net::IpAddr;
use std::sync::Arc;

use crate::api::{ExplainFailed, ExplainNear, ExplainStep};
use crate::bridge::{GrantedFlow, Protocol};
use crate::dns::{NameQuestion, NameVerdict, ResolveError};
use crate::docker_manager::Peer;
use crate::names::{Host, HostName};
use crate::proxy::{Preview, PreviewVerdict, why};
use crate::rule_engine::{Context, Dns, EgressMode, Http, Near, Network, Rule, RuleSet};

use super::target::How;
use super::{ProxyWay, Question, Resolved};

/// Rules that nearly matched, for each step.
const NEAR_MAX: usize = 5;
/// Addresses that are named in a step.
const ADDRESSES_SHOWN: usize = 8;
/// The reason of a tunnel that is decrypted.
const INTERCEPTED: &str = "intercepted";

/// One walk through the layers.
pub(super) struct Walk<'q> {
    question: &'q Question,
    rules: &'q RuleSet,
    resolved: &'q Resolved,
    open: &'q [GrantedFlow],
    near: bool,
    out: Walked,
}

/// What the layers said.
#[derive(Default)]
pub(super) struct Walked {
    pub(super) steps: Vec<ExplainStep>,
    pub(super) notes: Vec<String>,
    /// Some way leads through.
    pub(super) allowed: bool,
    /// Some layer would resolve the name.
    pub(super) resolves: bool,
    /// What stands in the way through the proxy (or, without one, of the direct flow).
    pub(super) obstacles: Vec<Obstacle>,
    /// It came as far as the request inside a decrypted tunnel.
    pub(super) decrypted: bool,
}

/// A refusal.
pub(super) struct Obstacle {
    pub(super) reason: &'static str,
    pub(super) rule: Option<Arc<Rule>>,
}

impl<'q> Walk<'q> {
    pub(super) fn new(question: &'q Question, rules: &'q RuleSet, resolved: &'q Resolved) -> Self {
        Walk { question, rules, resolved, open: &[], near: false, out: Walked::default() }
    }

    /// Past the proxy these flows are open now.
    pub(super) fn with_open(self, open: &'q [GrantedFlow]) -> Self {
        Walk { open, ..self }
    }

    /// Also looks for the rules that came close.
    pub(super) fn with_near(self) -> Self {
        Walk { near: true, ..self }
    }

    pub(super) fn run(mut self) -> Walked {
        let asked = self.dns();
        let by_proxy = self.proxy();
        let direct = self.past_the_proxy(asked.as_ref());
        if by_proxy && !direct && matches!(asked, Some(NameVerdict::Block { .. })) {
            let text = "a program that does not use the proxy gets no DNS answer; one that does needs none";
            self.out.notes.push(text.to_owned());
        }
        if direct && !by_proxy {
            let text = "only a program that does not use the proxy gets through";
            self.out.notes.push(text.to_owned());
        }
        self.out.allowed = by_proxy || direct;
        self.out
    }

    /// What a program that resolves the name itself is told.
    fn dns(&mut self) -> Option<NameVerdict> {
        let Host::Name(name) = &self.question.destination.authority.host else { return None };
        let question = NameQuestion { name, record_type: "A", peer: &self.question.peer };
        let mut verdict = question.judge(|context| self.rules.peek(context));
        self.out.resolves |= matches!(verdict, NameVerdict::Allow { .. });
        // The answer is judged once more by the addresses in it.
        if let (NameVerdict::Allow { rule }, Some(Ok(addresses))) = (&verdict, self.resolved)
            && let Some(reason) = question.strips_all(self.rules, rule, addresses)
        {
            verdict = NameVerdict::Block { reason, rule: Some(Arc::clone(rule)) };
        }
        let (allowed, rule, reason) = match &verdict {
            NameVerdict::Allow { rule } => (true, Some(rule), "rule"),
            NameVerdict::Block { reason, rule } => (false, rule.as_ref(), *reason),
        };
        let text = format!("question for A of {name}: {}", words(allowed, reason, rule.map(|rule| &**rule)));
        let near = question.with_context(|context| self.near(context, rule, reason));
        self.step("dns", allowed, rule, text, near);
        Some(verdict)
    }

    /// Through the proxy, which resolves by itself. True when it lets the request through.
    fn proxy(&mut self) -> bool {
        let question = self.question;
        if matches!(question.proxy, ProxyWay::Absent) {
            self.step("proxy", false, None, "there is no proxy (--no-proxy)".to_owned(), Vec::new());
            return false;
        }
        let destination = &question.destination;
        let (preview, what) = match &destination.how {
            How::Http { path } => {
                let shown = path.split('?').next().unwrap_or(path);
                let what = format!("{} http://{}{shown}", question.method(), destination.authority.to_host_field(80));
                (Preview::request(question.method(), &destination.authority, path), what)
            }
            How::Https { .. } | How::Tcp => (
                Preview::connect(&destination.authority),
                format!("CONNECT {}", destination.authority.to_host_field(0)),
            ),
        };
        let preview = match preview {
            Ok(preview) => preview,
            Err((code, text)) => {
                self.out.obstacles.push(Obstacle { reason: code, rule: None });
                self.step("proxy", false, None, format!("{what}: {text} ({code})"), Vec::new());
                return false;
            }
        };
        let by_name = preview.by_name(self.rules, &question.peer);
        if !self.judged("proxy", &what, &preview, None, &by_name) {
            return false;
        }
        self.out.resolves = true;
        let Some(addresses) = self.addresses() else { return false };
        if !self.vet(&preview, &addresses) {
            return false;
        }
        match &destination.how {
            How::Http { .. } => true,
            How::Https { .. } => self.tunnel(&preview, &addresses),
            How::Tcp => {
                self.out
                    .notes
                    .push("inside a CONNECT only TLS and HTTP/1 pass; else it is closed (not_tls)".to_owned());
                true
            }
        }
    }

    /// The addresses of the destination; `None` when there are none, which is a step of its own.
    fn addresses(&mut self) -> Option<Vec<IpAddr>> {
        let name = match &self.question.destination.authority.host {
            Host::Address(address) => return Some(vec![*address]),
            Host::Name(name) => name,
        };
        match self.resolved {
            Some(Ok(addresses)) => Some(addresses.clone()),
            Some(Err(error)) => {
                let text = match error {
                    ResolveError::NoSuchName => "the name does not exist",
                    ResolveError::NoAddress => "the name has no address",
                    ResolveError::Timeout => "no upstream answered in time",
                    ResolveError::Failed => "every upstream failed",
                };
                self.out.obstacles.push(Obstacle { reason: "unresolved", rule: None });
                self.step("resolution", false, None, format!("{name}: {text}"), Vec::new());
                None
            }
            None => None,
        }
    }

    /// Each address is judged; one that may be dialled is enough.
    fn vet(&mut self, preview: &Preview, addresses: &[IpAddr]) -> bool {
        let question = self.question;
        let own = match question.proxy {
            ProxyWay::Present(listening) => Some((listening, &*question.snapshot.directory)),
            ProxyWay::Absent => None,
        };
        let judged = preview.by_addresses((self.rules, &question.peer), own, addresses);
        let allowed = judged.iter().find(|(_, verdict)| parts(verdict).0);
        let shown = judged.iter().take(ADDRESSES_SHOWN).map(|(address, verdict)| match verdict {
            PreviewVerdict::Allow { rule } => format!("{address}: {}", words(true, "rule", rule.as_deref())),
            PreviewVerdict::Intercept { rule } => format!("{address}: {}", words(true, INTERCEPTED, Some(rule))),
            PreviewVerdict::Block { rule, reason } => format!("{address}: {}", words(false, reason, rule.as_deref())),
        });
        let text = shown.collect::<Vec<_>>().join("; ");
        // With none allowed the first refusal is what the client is told.
        let Some((address, verdict)) = allowed.or(judged.first()) else {
            self.out.obstacles.push(Obstacle { reason: "unresolved", rule: None });
            self.step("resolution", false, None, "the name has no address".to_owned(), Vec::new());
            return false;
        };
        let (passed, rule, reason) = parts(verdict);
        let address = address.to_string();
        let near = preview.with_context(&question.peer, Some(&address), |context| self.near(context, rule, reason));
        if !passed {
            self.out.obstacles.push(Obstacle { reason, rule: rule.cloned() });
        }
        self.step("resolution", passed, rule, text, near);
        passed
    }

    /// The tunnel is judged again by what its client says first.
    fn tunnel(&mut self, preview: &Preview, addresses: &[IpAddr]) -> bool {
        let hello = preview.with_usual_hello();
        let question = self.question;
        let judged = hello.by_addresses((self.rules, &question.peer), None, addresses);
        // The connection is to the first address that the CONNECT was allowed to.
        let allowed = preview.by_addresses((self.rules, &question.peer), None, addresses);
        let dialled = allowed.iter().position(|(_, verdict)| parts(verdict).0);
        let Some((address, verdict)) = dialled.and_then(|position| judged.get(position)) else { return false };
        let what = "ClientHello (server name as in the CONNECT, TLS 1.3, no ECH)";
        let text = address.to_string();
        let passed = self.judged("proxy", what, &hello, Some(&text), verdict);
        match (verdict, &question.destination.how) {
            (PreviewVerdict::Intercept { .. }, How::Https { path }) if passed => self.decrypted(&hello, path, *address),
            _ => passed,
        }
    }

    /// The request inside a tunnel that is decrypted.
    fn decrypted(&mut self, tunnel: &Preview, path: &str, address: IpAddr) -> bool {
        self.out.decrypted = true;
        let question = self.question;
        let what = format!("decrypted, {} {}", question.method(), path.split('?').next().unwrap_or(path));
        match tunnel.inside(question.method(), path) {
            Ok(inside) => {
                let judged = inside.by_addresses((self.rules, &question.peer), None, &[address]);
                let Some((_, verdict)) = judged.first() else { return false };
                self.judged("intercept", &what, &inside, Some(&address.to_string()), verdict)
            }
            Err((code, text)) => {
                self.out.obstacles.push(Obstacle { reason: code, rule: None });
                self.step("intercept", false, None, format!("{what}: {text} ({code})"), Vec::new());
                false
            }
        }
    }

    /// Past the proxy: by what an answer would open, or by a flow that is open now.
    fn past_the_proxy(&mut self, asked: Option<&NameVerdict>) -> bool {
        let direct = self.direct(asked);
        let Some(flow) = self.open.iter().find(|flow| self.leads_there(flow)) else {
            self.maybe_open();
            return direct;
        };
        // What no answer opens is open all the same.
        self.out.steps.pop_if(|step| step.layer == "kernel");
        let why = match flow.names.first() {
            None => "opened by hand".to_owned(),
            Some(name) => format!("opened by the answer for {name}"),
        };
        let left = flow.expires_in.as_millis().div_ceil(1000);
        let (address, port) = (flow.destination, flow.port);
        let text = format!("past the proxy: {address} port {port} is open now, {why}, new connections for {left} s");
        self.step("kernel", true, None, text, Vec::new());
        if matches!(asked, Some(NameVerdict::Block { .. })) {
            let text =
                "DNS does not answer the name: past the proxy only a program that knows the address gets through";
            self.out.notes.push(text.to_owned());
        }
        true
    }

    /// What is open on this port, for a name that nobody has resolved.
    fn maybe_open(&mut self) {
        let Host::Name(_) = &self.question.destination.authority.host else { return };
        if self.resolved.is_some() {
            return;
        }
        let open = self.open.iter().filter(|flow| self.is_own(flow)).take(ADDRESSES_SHOWN);
        let addresses: Vec<String> = open.map(|flow| flow.destination.to_string()).collect();
        if !addresses.is_empty() {
            let text = format!(
                "the name was not resolved, so it is not known whether it has an address that is open now past the \
                 proxy on port {}: {}",
                self.question.destination.port(),
                addresses.join(", ")
            );
            self.out.notes.push(text);
        }
    }

    /// Whether a flow is the container's own, for TCP and this port.
    fn is_own(&self, flow: &GrantedFlow) -> bool {
        let Peer::Container(own) = &self.question.peer else { return false };
        flow.endpoint.container_id == own.container_id
            && flow.protocol == Protocol::Tcp.number()
            && flow.port == self.question.destination.port()
    }

    /// Whether a flow is the container's own and leads to the destination.
    fn leads_there(&self, flow: &GrantedFlow) -> bool {
        let there = match &self.question.destination.authority.host {
            Host::Address(address) => *address == IpAddr::V4(flow.destination),
            Host::Name(name) => {
                let answered = matches!(self.resolved, Some(Ok(all)) if all.contains(&IpAddr::V4(flow.destination)));
                answered || flow.names.iter().any(|known| **known == *name.as_str())
            }
        };
        there && self.is_own(flow)
    }

    /// Past the proxy, to an address that DNS answered with. True when the kernel would let it through.
    fn direct(&mut self, asked: Option<&NameVerdict>) -> bool {
        let Host::Name(name) = &self.question.destination.authority.host else {
            let text = "past the proxy: no DNS answer opens an address that is asked for by number";
            self.step("kernel", false, None, text.to_owned(), Vec::new());
            return false;
        };
        let closed = |text: String| ("kernel", false, None, text);
        let (layer, opened, rule, text) = match asked {
            Some(NameVerdict::Allow { rule }) if is_direct(rule) => {
                let (opened, text) = self.opened(name, rule);
                ("direct_ip", opened, Some(Arc::clone(rule)), text)
            }
            Some(NameVerdict::Allow { rule }) => {
                closed(format!("past the proxy: rule {} answers the name but opens no address (no direct_ip)", rule.id))
            }
            _ => closed("past the proxy: without a DNS answer no address is opened".to_owned()),
        };
        // Not resolved yet, the addresses have still to decide.
        let undecided = layer == "direct_ip" && self.resolved.is_none() && self.names_port(rule.as_deref());
        if matches!(self.question.proxy, ProxyWay::Absent) && !opened && !undecided {
            let obstacle = match asked {
                Some(NameVerdict::Block { reason, rule }) => Obstacle { reason, rule: rule.clone() },
                Some(NameVerdict::Allow { rule }) => Obstacle { reason: "not_opened", rule: Some(Arc::clone(rule)) },
                None => Obstacle { reason: "not_opened", rule: None },
            };
            self.out.obstacles.push(obstacle);
        }
        self.step(layer, opened, rule.as_ref(), text, Vec::new());
        opened
    }

    fn opened(&self, name: &HostName, rule: &Rule) -> (bool, String) {
        let port = self.question.destination.port();
        if !self.names_port(Some(rule)) {
            return (false, format!("past the proxy: rule {} does not name port {port}", rule.id));
        }
        let Some(Ok(addresses)) = self.resolved else {
            return (false, "past the proxy: the name has no address".to_owned());
        };
        let agent = self.question.peer.agent();
        let opens = addresses.iter().find(|address| match address.to_canonical() {
            IpAddr::V4(v4) => self.rules.opens_directly(agent, name.as_str(), v4, port),
            // IPv6 of containers is dropped.
            IpAddr::V6(_) => false,
        });
        match opens {
            Some(address) => (true, format!("past the proxy: rule {} opens {address} port {port}", rule.id)),
            None => {
                let text = "past the proxy: each address is private, IPv6, or refused by a rule on addresses";
                (false, text.to_owned())
            }
        }
    }

    fn names_port(&self, rule: Option<&Rule>) -> bool {
        let port = self.question.destination.port();
        rule.and_then(|rule| rule.egress.as_ref()).is_some_and(|egress| egress.ports.contains(&port))
    }

    /// A step of the proxy; true when it goes on.
    fn judged(
        &mut self,
        layer: &str,
        what: &str,
        preview: &Preview,
        address: Option<&str>,
        verdict: &PreviewVerdict,
    ) -> bool {
        let (passed, rule, reason) = parts(verdict);
        let text = match (verdict, address) {
            (PreviewVerdict::Allow { rule: None }, None) => "it hangs on the address".to_owned(),
            _ => words(passed, reason, rule.map(|rule| &**rule)),
        };
        let near = preview.with_context(&self.question.peer, address, |context| self.near(context, rule, reason));
        if !passed {
            self.out.obstacles.push(Obstacle { reason, rule: rule.cloned() });
        }
        self.step(layer, passed, rule, format!("{what}: {text}"), near);
        passed
    }

    fn step(&mut self, layer: &str, passed: bool, rule: Option<&Arc<Rule>>, reason: String, near: Vec<ExplainNear>) {
        self.out.steps.push(ExplainStep {
            layer: layer.to_owned(),
            verdict: if passed { "allow" } else { "block" }.to_owned(),
            rule: rule.map(|rule| rule.id.to_string()),
            reason,
            near,
        });
    }

    /// The rules before the deciding one that nearly matched `context`. A refusal that is not the rules' has none.
    fn near(&self, context: &Context<'_>, rule: Option<&Arc<Rule>>, reason: &str) -> Vec<ExplainNear> {
        if !self.near || (rule.is_none() && reason != "default") {
            return Vec::new();
        }
        let destination = &self.question.destination;
        let host = destination.authority.host.to_text();
        let (scheme, path) = match &destination.how {
            How::Http { path } => (Some("http"), Some(&**path)),
            How::Https { path } => (Some("https"), Some(&**path)),
            How::Tcp => (Some("https"), None),
        };
        // What any layer would fill in; what this one fills stays as it has it.
        let everything = Context {
            dns: Dns { query: context.dns.query.or(Some(&host)), record_type: context.dns.record_type.or(Some("A")) },
            network: Network {
                hostname: context.network.hostname.or(Some(&host)),
                port: context.network.port.or(Some(destination.port())),
                protocol: context.network.protocol.or(Some("tcp")),
                ..context.network
            },
            http: Http {
                host: context.http.host.or(Some(&host)),
                method: context.http.method.or(Some(self.question.method())),
                path: context.http.path.or(path),
                scheme: context.http.scheme.or(scheme),
                ..context.http
            },
            ..*context
        };
        let near = self.rules.near(context, &everything, rule.map(|rule| &*rule.id), NEAR_MAX);
        near.into_iter().map(shown).collect()
    }
}

fn shown(near: Near) -> ExplainNear {
    let failed = near.failed.into_iter().map(|part| ExplainFailed {
        part: part.text,
        is: part.how.as_str().to_owned(),
        values: part.values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
    });
    ExplainNear {
        rule: near.rule.id.to_string(),
        file: near.rule.file.to_string(),
        action: near.rule.action.as_str().to_owned(),
        failed: failed.collect(),
    }
}

fn parts(verdict: &PreviewVerdict) -> (bool, Option<&Arc<Rule>>, &'static str) {
    match verdict {
        PreviewVerdict::Allow { rule } => (true, rule.as_ref(), "rule"),
        PreviewVerdict::Intercept { rule } => (true, Some(rule), INTERCEPTED),
        PreviewVerdict::Block { rule, reason } => (false, rule.as_ref(), reason),
    }
}

fn words(passed: bool, reason: &str, rule: Option<&Rule>) -> String {
    match (passed, rule) {
        (true, Some(rule)) if reason == INTERCEPTED => format!("rule {} has it decrypted", rule.id),
        (true, Some(rule)) => format!("rule {} allows it", rule.id),
        (true, None) => "allowed".to_owned(),
        (false, Some(rule)) if reason == "rule" => format!("rule {} blocks it", rule.id),
        (false, rule) => why(reason, rule.map(|rule| &*rule.id)),
    }
}

fn is_direct(rule: &Rule) -> bool {
    rule.egress.as_ref().is_some_and(|egress| egress.mode == EgressMode::DirectIp)
}
