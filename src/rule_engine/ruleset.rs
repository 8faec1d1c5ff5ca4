//! The rule set and its decision.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::condition::{Condition, Fault, Outcome};
use super::facts::Facts;
use super::field::{ADDRESS, BODY, Field, FieldSet, HELLO, INNER};
use super::index::{Alternative, Index};
use super::{Action, Body, Context, EgressMode, Rule};

/// Milliseconds between two log lines about the errors of one rule.
const ERROR_LOG_EVERY_MS: i64 = 60_000;

/// The method of a request for a tunnel, RFC 9110 9.3.6. Its values stand for nothing that is said inside.
const CONNECT: &str = "CONNECT";

/// All rules in evaluation order, indexed.
pub struct RuleSet {
    rules: Vec<Arc<Rule>>,
    compiled: Vec<Compiled>,
    index: Index,
    by_id: HashMap<Box<str>, usize>,
    /// Whether any rule with `match_body` reads the body.
    reads_bodies: bool,
}

/// What evaluation needs beside the rule.
pub(super) struct Compiled {
    pub(super) condition: Arc<Condition>,
    pub(super) guard: Option<Arc<[Alternative]>>,
    /// Unix time in milliseconds of the last log line about an error; 0: never.
    pub(super) error_logged_ms: AtomicI64,
}

/// The answer to one question.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Allowed or not, with everything that is still unknown taken as unknown.
    pub action: Action,
    /// The rule that decided; `None` is the default block.
    pub rule: Option<Arc<Rule>>,
    /// True when a rule before the deciding one is unknown only for want of `network.ip`, and knowing it could
    /// end in an allow: the asker resolves the name and asks again for each address. Never true for an asker that
    /// does not fill `network.hostname`: it has no address to come.
    pub wants_address: bool,
    /// An `intercept` rule, before the deciding one, that could match once the request is decrypted.
    pub could_intercept: Option<Arc<Rule>>,
    /// True when a rule before the deciding one is unknown only for want of the body, which was not read yet
    /// ([`super::Body::Unread`]), and could match with it: the asker reads the body and asks again.
    pub wants_body: bool,
}

impl std::fmt::Debug for RuleSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines = self.rules.iter().map(|rule| format!("{} {}: {}", rule.action.as_str(), rule.id, rule.expanded));
        f.debug_list().entries(lines).finish()
    }
}

impl RuleSet {
    /// A rule set that blocks everything.
    #[must_use]
    pub fn block_all() -> Self {
        RuleSet::new(Vec::new())
    }

    /// The rules, in evaluation order, with what they were compiled to.
    pub(super) fn new(rules: Vec<(Arc<Rule>, Compiled)>) -> Self {
        let index = Index::new(rules.iter().map(|(_, compiled)| compiled.guard.as_deref()));
        let by_id = rules.iter().enumerate().map(|(position, (rule, _))| (rule.id.clone(), position)).collect();
        let reads_bodies = rules.iter().any(|(rule, compiled)| exposes_body(rule) && compiled.condition.reads_body());
        let (rules, compiled) = rules.into_iter().unzip();
        RuleSet { rules, compiled, index, by_id, reads_bodies }
    }

    /// The rules in evaluation order.
    #[must_use]
    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.rules
    }

    /// Whether a body that was not read yet can matter to any rule.
    #[must_use]
    pub fn reads_bodies(&self) -> bool {
        self.reads_bodies
    }

    /// The rule with this id.
    #[must_use]
    pub fn rule(&self, id: &str) -> Option<&Arc<Rule>> {
        self.by_id.get(id).and_then(|position| self.rules.get(*position))
    }

    /// The rules with their compiled parts.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Arc<Rule>, &Compiled)> {
        self.rules.iter().zip(&self.compiled)
    }

    /// The place of the rule with this id in evaluation order.
    pub(super) fn position(&self, id: &str) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    /// The rule at `position`, with its condition.
    pub(super) fn entry(&self, position: usize) -> Option<(&Arc<Rule>, &Condition)> {
        Some((self.rules.get(position)?, &self.compiled.get(position)?.condition))
    }

    /// The positions of the rules that can match `facts`, in order.
    pub(super) fn candidates(&self, facts: &Facts<'_>) -> impl Iterator<Item = usize> {
        self.index.candidates(facts).map(|position| position as usize)
    }

    /// The rules of this set and of `other` in one set, in the order in which a load of both would put them. Their
    /// counters are shared: for asking what would be, with [`RuleSet::peek`].
    #[must_use]
    pub fn merged(&self, other: &RuleSet) -> RuleSet {
        let mut all: Vec<(&Arc<Rule>, &Compiled)> = self.entries().chain(other.entries()).collect();
        // Stable: within a file the position decides.
        all.sort_by(|(left, _), (right, _)| (left.priority, &left.file).cmp(&(right.priority, &right.file)));
        let copied = all.into_iter().map(|(rule, compiled)| {
            let compiled = Compiled {
                condition: Arc::clone(&compiled.condition),
                guard: compiled.guard.clone(),
                error_logged_ms: AtomicI64::new(0),
            };
            (Arc::clone(rule), compiled)
        });
        RuleSet::new(copied.collect())
    }

    /// Judges one question. Pure but for the counters of the rules, and for the log line that a rule with `log: true`
    /// asks for.
    #[must_use]
    pub fn decide(&self, context: &Context<'_>) -> Decision {
        let facts = Facts::new(context);
        let decision = self.judge(context, &facts, self.index.candidates(&facts), true);
        self.record(context, &decision);
        decision
    }

    /// Counts, and logs if its rule wants it, a decision that came from [`RuleSet::peek`] and turned out to be the
    /// last one of its question.
    pub fn record(&self, context: &Context<'_>, decision: &Decision) {
        let Some(rule) = &decision.rule else { return };
        rule.hits.fetch_add(1, Ordering::Relaxed);
        rule.last_hit_ms.store(now_ms(), Ordering::Relaxed);
        if rule.log {
            let name = context.http.host.or(context.network.hostname).or(context.dns.query).unwrap_or("-");
            let agent = context.agent.container.unwrap_or("-");
            let action = rule.action.as_str();
            tracing::info!(target: "rule_engine", rule = %rule.id, action, container = agent, name, "rule matched");
        }
    }

    /// The same judgement without counting or logging: for questions that are asked before the real one (a name
    /// without its address), and for `evaluate`, `test` and `explain`.
    #[must_use]
    pub fn peek(&self, context: &Context<'_>) -> Decision {
        let facts = Facts::new(context);
        self.judge(context, &facts, self.index.candidates(&facts), false)
    }

    /// The judgement of all rules one after the other, without the index.
    #[cfg(test)]
    pub(super) fn peek_without_index(&self, context: &Context<'_>) -> Decision {
        let positions = 0..u32::try_from(self.rules.len()).unwrap();
        self.judge(context, &Facts::new(context), positions, false)
    }

    fn judge<'c>(
        &self,
        context: &Context<'c>,
        plain: &Facts<'c>,
        candidates: impl Iterator<Item = u32>,
        counted: bool,
    ) -> Decision {
        // Open is an address that is not known yet. A layer that fills nothing of `network.*` (DNS) never will: there
        // it is unknown like any other field, or one rule on addresses would have every name resolved.
        let awaited = plain.text(Field::NetworkHostname).is_some() && plain.text(Field::NetworkIp).is_none();
        let open_address = if awaited { ADDRESS } else { FieldSet::EMPTY };
        let tunnel = plain.text(Field::HttpMethod) == Some(CONNECT);
        // A CONNECT is judged before its ClientHello comes, and again with it.
        let inner = if plain.has(Field::TlsEch) { INNER } else { INNER.or(HELLO) };
        let unread = context.http.body == Body::Unread;
        // What of it is known is not open.
        let body = || BODY.without(plain.known().without(FieldSet::of(&[Field::HttpBody])));
        let mut exposed = None;
        let mut seen = Seen::default();
        let mut decider = None;
        for position in candidates {
            let position = position as usize;
            let (Some(rule), Some(compiled)) = (self.rules.get(position), self.compiled.get(position)) else {
                continue;
            };
            let condition = &compiled.condition;
            let shown = exposes_body(rule) && condition.reads_body();
            let facts = if shown { exposed.get_or_insert_with(|| Facts::with_body(context)) } else { plain };
            match condition.evaluate(facts, FieldSet::EMPTY) {
                Outcome::True => {
                    decider = Some(rule);
                    break;
                }
                Outcome::False => {}
                Outcome::Unknown(_) => {
                    if !open_address.is_empty() && condition.reads_address() && condition.could(facts, open_address) {
                        seen.address_decides(rule.action);
                    }
                    seen.wants_body |= shown && unread && condition.could(facts, body().or(open_address));
                }
                Outcome::Failed(fault) => {
                    if counted {
                        count_error(rule, compiled, &fault);
                    }
                }
            }
            if tunnel {
                seen.inside(rule, condition, facts, (inner, open_address));
            }
        }
        let action = decider.map_or(Action::Block, |rule| rule.action);
        Decision {
            action,
            rule: decider.cloned(),
            wants_address: seen.wants_address(action),
            could_intercept: seen.intercept,
            wants_body: seen.wants_body,
        }
    }
}

/// What was met on the way to the deciding rule.
#[derive(Default)]
struct Seen {
    /// A rule that an address could make match.
    address: bool,
    /// One of them allows.
    address_allows: bool,
    intercept: Option<Arc<Rule>>,
    wants_body: bool,
}

impl Seen {
    fn address_decides(&mut self, action: Action) {
        self.address = true;
        self.address_allows |= action == Action::Allow;
    }

    /// Looks at a rule that does not match the CONNECT: an `intercept` rule may match what is inside.
    fn inside(
        &mut self,
        rule: &Arc<Rule>,
        condition: &Condition,
        facts: &Facts<'_>,
        (inner, open_address): (FieldSet, FieldSet),
    ) {
        let Some(egress) = rule.egress.as_ref().filter(|egress| egress.mode == EgressMode::Intercept) else { return };
        if self.intercept.is_some() {
            return;
        }
        // Without `match_body` the body stays unknown inside as well.
        let inner = if egress.match_body { inner } else { inner.without(FieldSet::of(&[Field::HttpBody])) };
        if condition.could(facts, inner) {
            self.intercept = Some(Arc::clone(rule));
        } else if !open_address.is_empty()
            && condition.reads_address()
            && condition.could(facts, inner.or(open_address))
        {
            self.address_decides(rule.action);
        }
    }

    /// The address matters if some rule hangs on it, and is worth having if some outcome allows: by the deciding
    /// rule, by one of those that hang on it, or by interception.
    fn wants_address(&self, decided: Action) -> bool {
        self.address && (decided == Action::Allow || self.address_allows || self.intercept.is_some())
    }
}

/// Whether the rule is shown bodies.
fn exposes_body(rule: &Rule) -> bool {
    rule.egress.as_ref().is_some_and(|egress| egress.match_body)
}

fn count_error(rule: &Rule, compiled: &Compiled, fault: &Fault) {
    rule.errors.fetch_add(1, Ordering::Relaxed);
    let now = now_ms();
    let last = compiled.error_logged_ms.load(Ordering::Relaxed);
    let due = last == 0 || now.saturating_sub(last) >= ERROR_LOG_EVERY_MS;
    // Only one thread writes the line.
    if due && compiled.error_logged_ms.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        let (id, file, errors) = (&rule.id, &rule.file, rule.errors.load(Ordering::Relaxed));
        let reason = fault.kind();
        tracing::warn!(target: "rule_engine", rule = %id, %file, errors, reason, "a condition failed and did not match");
    }
}

/// Unix time in milliseconds.
pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Decision {
    /// True when some way of filling in the address could end in an allow, be it after decryption: then, and only
    /// then, is a name resolved.
    #[must_use]
    pub fn may_allow(&self) -> bool {
        self.action == Action::Allow || self.wants_address || self.could_intercept.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule_engine::{Agent, Dns, Guard, Http, LoadOptions, Network, Source, load_sources};

    /// A set of rules written as `ACTION[/MODE] CONDITION`, named r0, r1, …
    fn set(rules: &[&str]) -> RuleSet {
        let mut text = "version: \"1\"\nrules:\n".to_owned();
        for (number, rule) in rules.iter().enumerate() {
            let (action, condition) = rule.split_once(' ').unwrap();
            let (action, mode) = action.split_once('/').map_or((action, None), |(action, mode)| (action, Some(mode)));
            let condition = serde_json::Value::from(condition);
            text += &format!("  - id: r{number}\n    action: {action}\n    condition: {condition}\n");
            let mode = mode.map(|mode| mode.replace("+body", "\n      match_body: true"));
            text += &mode.map_or_else(String::new, |mode| format!("    egress:\n      mode: {mode}\n"));
        }
        let options = LoadOptions { proxy: true, interception: true, guard: Guard::InProcess };
        let sources = [Source { name: "t.yaml".to_owned(), text }];
        let loaded = load_sources(&sources, &options, None).unwrap_or_else(|errors| panic!("{errors}"));
        Arc::into_inner(loaded.set).unwrap()
    }

    fn id(decision: &Decision) -> Option<&str> {
        decision.rule.as_ref().map(|rule| rule.id.as_ref())
    }

    fn dns(query: &str) -> Context<'_> {
        let dns = Dns { query: Some(query), record_type: Some("A") };
        Context { dns, agent: Agent { name: Some("writer"), container: Some("writer-1") }, ..Context::default() }
    }

    fn connect<'a>(host: &'a str, ip: Option<&'a str>) -> Context<'a> {
        Context {
            network: Network { hostname: Some(host), ip, port: Some(443), protocol: Some("tcp") },
            http: Http {
                method: Some("CONNECT"),
                path: Some("/"),
                host: Some(host),
                headers: Some(&[]),
                ..Http::default()
            },
            ..Context::default()
        }
    }

    #[test]
    fn the_first_match_wins_and_nothing_is_allowed_by_default() {
        let rules = set(&["block dns.query == 'a.com'", "allow dns.query.endsWith('.com')"]);
        assert_eq!(id(&rules.decide(&dns("a.com"))), Some("r0"));
        assert_eq!(rules.decide(&dns("b.com")).action, Action::Allow);
        let default = rules.decide(&dns("a.org"));
        assert_eq!((default.action, id(&default)), (Action::Block, None));
        assert_eq!(rules.rules()[0].hits.load(Ordering::Relaxed), 1);
        assert!(rules.rules()[0].last_hit_ms.load(Ordering::Relaxed) > 0);
        let peeked = rules.peek(&dns("a.com"));
        assert_eq!(rules.rules()[0].hits.load(Ordering::Relaxed), 1);
        rules.record(&dns("a.com"), &peeked);
        assert_eq!(rules.rules()[0].hits.load(Ordering::Relaxed), 2);
        assert_eq!(RuleSet::block_all().decide(&dns("a.com")).action, Action::Block);
    }

    #[test]
    fn an_unknown_field_opens_no_dns_name_and_blocks_none() {
        let rules = set(&["block http.method == 'POST'", "allow http.method != 'POST'"]);
        let decision = rules.decide(&dns("a.com"));
        assert_eq!((decision.action, id(&decision)), (Action::Block, None));
        assert!(!decision.may_allow());
        assert_eq!(rules.rules()[1].errors.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn absorption_of_unknown_fields_is_cels() {
        for (condition, matches) in [
            ("true || http.method == 'GET'", true),
            ("http.method == 'GET' || true", true),
            ("dns.query == 'a.com' || http.method == 'GET'", true),
            ("http.method == 'GET' && false", false),
            ("!(http.method == 'GET' && false)", true),
            ("!(http.method == 'GET')", false),
            ("!!(dns.query == 'a.com')", true),
            ("http.method == 'GET' ? true : true", false),
            ("dns.query == 'a.com' ? true : http.method == 'GET'", true),
            ("(http.method == 'GET') == (http.method == 'GET')", false),
            ("http.method in ['GET'] || 'x' in http.headers", false),
        ] {
            let rules = set(&[&format!("allow {condition}")]);
            assert_eq!(rules.decide(&dns("a.com")).action == Action::Allow, matches, "{condition}");
        }
    }

    #[test]
    fn an_evaluation_error_does_not_match_and_is_counted() {
        let rules = set(&["allow 1 / (size(dns.query) - 5) == 1", "allow run.context.x == 'y'"]);
        assert_eq!(rules.decide(&dns("a.com")).action, Action::Block);
        assert_eq!(rules.rules()[0].errors.load(Ordering::Relaxed), 1);
        assert_eq!(rules.rules()[1].errors.load(Ordering::Relaxed), 0);
        let entries = serde_json::Map::new();
        let run = crate::rule_engine::Run { context: Some(&entries), ..Default::default() };
        assert_eq!(rules.decide(&Context { run, ..Context::default() }).action, Action::Block);
        assert_eq!(rules.rules()[1].errors.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_address_is_wanted_exactly_if_it_could_end_in_an_allow() {
        // (rules, wants_address, may_allow) for a name whose address is unknown.
        let cases: &[(&[&str], bool, bool)] = &[
            (&["allow network.ip == '1.2.3.4'"], true, true),
            (&["block network.ip == '1.2.3.4'"], false, false),
            (&["block network.ip == '1.2.3.4'", "allow true"], true, true),
            (&["allow true", "block network.ip == '1.2.3.4'"], false, true),
            (&["block true", "allow network.ip == '1.2.3.4'"], false, false),
            (&["block network.ip == '1.2.3.4'", "allow network.ip == '5.6.7.8'"], true, true),
            (&["allow network.ip == '1.2.3.4' && tls.sni == 'a.com'"], false, false),
            (&["allow network.ip == '1.2.3.4' || tls.sni == 'a.com'"], true, true),
            (&["allow network.ip == '1.2.3.4' && http.host == 'other.com'"], false, false),
            (&["allow !network.ip.startsWith('10.')"], true, true),
            (&["allow network.ip == tls.sni"], false, false),
            (&["allow http.host == 'a.com' ? network.ip == '1.2.3.4' : true"], true, true),
            (&["allow (network.ip == '1.2.3.4' || tls.sni == 'a.com') == true"], true, true),
        ];
        for (rules, wants, may) in cases {
            let decision = set(rules).decide(&connect("a.com", None));
            assert_eq!((decision.wants_address, decision.may_allow()), (*wants, *may), "{rules:?}");
            let known = set(rules).decide(&connect("a.com", Some("1.2.3.4")));
            assert!(!known.wants_address, "{rules:?}");
        }
    }

    #[test]
    fn interception_starts_if_an_intercept_rule_could_match_inside() {
        let cases: &[(&[&str], Option<&str>, Option<&str>)] = &[
            (&["allow/intercept http.host == 'a.com' && http.path.startsWith('/v1')"], None, Some("r0")),
            (&["allow/intercept http.host == 'b.com' && http.path.startsWith('/v1')"], None, None),
            (&["allow/intercept http.method == 'GET'", "allow/proxy true"], Some("r1"), Some("r0")),
            (&["allow/proxy true", "allow/intercept http.method == 'GET'"], Some("r0"), None),
            (&["block http.method == 'CONNECT'", "allow/intercept http.method == 'GET'"], Some("r0"), None),
            (&["block http.method == 'POST'", "allow/intercept http.method == 'GET'"], None, Some("r1")),
            (&["allow/intercept http.host == 'a.com'"], Some("r0"), None),
            (&["allow/intercept http.body == 'x'"], None, None),
            (&["allow/intercept http.headers['x'] == 'y'"], None, Some("r0")),
            (&["allow/intercept http.path == '/a' && tls.version == '1.3' && !tls.ech"], None, Some("r0")),
            (&["allow/intercept http.path == '/a' && tls.sni == 'a.com'"], None, None),
            (&["allow/proxy tls.version == '1.3'"], None, None),
        ];
        for (rules, decider, intercept) in cases {
            let decision = set(rules).decide(&connect("a.com", Some("1.2.3.4")));
            assert_eq!(id(&decision), *decider, "{rules:?}");
            assert_eq!(decision.could_intercept.as_ref().map(|rule| rule.id.as_ref()), *intercept, "{rules:?}");
        }
        // A layer without `network.*` has no address to wait for.
        assert!(!set(&["allow network.ip == '1.2.3.4'"]).decide(&dns("a.com")).may_allow());
        // Neither for a request that is no CONNECT, nor twice for what hangs on the address too.
        let rules = set(&["allow/intercept http.path == '/v1' && network.ip == '1.2.3.4'"]);
        let decision = rules.decide(&connect("a.com", None));
        assert!(decision.could_intercept.is_none() && decision.wants_address);
        assert!(rules.decide(&connect("a.com", Some("1.2.3.4"))).could_intercept.is_some());
        assert!(!rules.decide(&connect("a.com", Some("5.6.7.8"))).may_allow());
        let mut plain = connect("a.com", Some("1.2.3.4"));
        plain.http.method = Some("GET");
        assert!(rules.decide(&plain).could_intercept.is_none());
    }

    #[test]
    fn a_body_is_shown_to_the_rules_that_ask_for_it_and_is_null_to_others() {
        let rules = set(&[
            "block http.body == 'evil'",
            "allow/intercept+body http.path == '/a' && http.body.contains('good')",
            "allow/intercept http.path == '/b' && http.body == null",
            "allow/intercept+body http.path == '/c' && http.body == null",
        ]);
        assert!(rules.reads_bodies() && !set(&["allow/intercept http.body == 'x'"]).reads_bodies());
        let ask = |path, body| {
            let mut question = connect("a.com", Some("1.2.3.4"));
            question.http = Http { method: Some("POST"), path: Some(path), body, ..question.http };
            let decision = rules.peek(&question);
            (id(&decision).map(str::to_owned), decision.wants_body)
        };
        let rule = |name: &str| (Some(name.to_owned()), false);
        assert_eq!(ask("/a", Body::Unread), (None, true));
        assert_eq!(ask("/a", Body::Read(Some("a good one"))), rule("r1"));
        assert_eq!(ask("/a", Body::Read(Some("evil"))), (None, false));
        assert_eq!(ask("/a", Body::Read(None)), (None, false));
        assert_eq!(ask("/a", Body::Unknown), (None, false));
        assert_eq!(ask("/b", Body::Unread), rule("r2"));
        assert_eq!(ask("/b", Body::Read(Some("x"))), rule("r2"));
        assert_eq!(ask("/b", Body::Unknown), (None, false));
        assert_eq!(ask("/c", Body::Unread), (None, true));
        assert_eq!(ask("/c", Body::Read(None)), rule("r3"));
        assert_eq!(ask("/d", Body::Unread), (None, false));
        // A size that is not known yet comes with the body.
        let rules = set(&["allow/intercept+body http.body_size > 3 && http.body == 'good'"]);
        for (size, wants) in [(None, true), (Some(4), true), (Some(2), false)] {
            let mut question = connect("a.com", Some("1.2.3.4"));
            let http = Http { method: Some("POST"), body_size: size, body: Body::Unread, ..question.http };
            question.http = http;
            assert_eq!(rules.peek(&question).wants_body, wants, "{size:?}");
        }
    }

    #[test]
    fn suffixes_and_lists_match_as_text_does() {
        let rules = set(&[
            "allow dns.query.endsWith('x.com')",
            "allow dns.query in ['a.org', 'B.org.']",
            "allow dns.query.matches('^v[0-9]+[.]net$')",
            "allow 'writer' == agent.name && dns.query == 'w.io'",
        ]);
        for (query, rule) in [
            ("x.com", Some("r0")),
            ("ax.com", Some("r0")),
            ("a.x.com", Some("r0")),
            ("x.com.evil", None),
            ("a.org", Some("r1")),
            ("b.org", Some("r1")),
            ("a.b.org", None),
            ("v12.net", Some("r2")),
            ("v.net", None),
            ("w.io", Some("r3")),
        ] {
            assert_eq!(id(&rules.decide(&dns(query))), rule, "{query}");
        }
    }
}
