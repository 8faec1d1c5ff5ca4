//! Guards: what a condition says must hold of names, and the index that finds the few rules a name can match.
//!
//! A guard is a disjunction of `field == "x"` and `field.endsWith("x")`; the condition is true only if one of them
//! is. Rules with a guard are found by their names, whatever their number; those without are looked at always. The
//! index only leaves out rules that cannot match: [`super::RuleSet`] has a test that holds it to the plain loop.

use std::collections::HashMap;

use cel_interpreter::common::ast::{Expr, IdedExpr, operators};
use cel_interpreter::common::types::{CelList, CelString};

use super::condition::Condition;
use super::facts::Facts;
use super::field::Field;
use super::literal::{as_constant, as_field, as_text};

/// Fields that guards are about.
const GUARDED: [Field; 4] = [Field::HttpHost, Field::NetworkHostname, Field::DnsQuery, Field::AgentName];

/// Alternatives of one guard: a condition with more is looked at always.
const ALTERNATIVES_MAX: usize = 4096;

/// One alternative of a guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Alternative {
    pub(super) field: Field,
    pub(super) test: Test,
}

/// What must hold of the field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Is(String),
    EndsWith(String),
}

impl Test {
    /// True when some text passes both.
    pub(super) fn overlaps(&self, other: &Test) -> bool {
        match (self, other) {
            (Test::Is(left), Test::Is(right)) => left == right,
            (Test::Is(whole), Test::EndsWith(end)) | (Test::EndsWith(end), Test::Is(whole)) => whole.ends_with(end),
            (Test::EndsWith(left), Test::EndsWith(right)) => left.ends_with(right) || right.ends_with(left),
        }
    }
}

/// The guard of a condition; `None` when its names are not restricted.
pub(super) fn guard(condition: &Condition) -> Option<Vec<Alternative>> {
    of(&condition.expression, condition).filter(|alternatives| alternatives.len() <= ALTERNATIVES_MAX)
}

fn of(part: &IdedExpr, condition: &Condition) -> Option<Vec<Alternative>> {
    let Expr::Call(call) = &part.expr else { return None };
    match (call.func_name.as_str(), &call.target, call.args.as_slice()) {
        (operators::LOGICAL_OR, None, [left, right]) => {
            let mut alternatives = of(left, condition)?;
            alternatives.extend(of(right, condition)?);
            Some(alternatives)
        }
        (operators::LOGICAL_AND, None, [left, right]) => match (of(left, condition), of(right, condition)) {
            (Some(left), Some(right)) => Some(if cost(&left) <= cost(&right) { left } else { right }),
            (left, right) => left.or(right),
        },
        (operators::EQUALS, None, [left, right]) => {
            let (field, text) = match (as_field(left), as_text(right)) {
                (Some(field), Some(text)) => (field, text),
                _ => (as_field(right)?, as_text(left)?),
            };
            one(field, Test::Is(text.to_owned()))
        }
        (operators::IN, None, [needle, haystack]) => {
            let field = as_field(needle).filter(|field| GUARDED.contains(field))?;
            let list = condition.constants.get(as_constant(haystack)?)?.downcast_ref::<CelList>()?;
            list.iter()
                .map(|item| {
                    let text = item.downcast_ref::<CelString>()?;
                    Some(Alternative { field, test: Test::Is(text.inner().to_owned()) })
                })
                .collect()
        }
        ("endsWith", Some(target), [argument]) => one(as_field(target)?, Test::EndsWith(as_text(argument)?.to_owned())),
        _ => None,
    }
}

fn one(field: Field, test: Test) -> Option<Vec<Alternative>> {
    GUARDED.contains(&field).then(|| vec![Alternative { field, test }])
}

/// Agents are few and their rules many, so a guard on the host tells more than one on the agent.
fn cost(alternatives: &[Alternative]) -> (bool, usize) {
    (alternatives.iter().any(|alternative| alternative.field == Field::AgentName), alternatives.len())
}

/// The rules that can match, by name. Rules are known by their position.
#[derive(Default)]
pub(super) struct Index {
    unguarded: Vec<u32>,
    fields: [Names; GUARDED.len()],
}

/// The guards on one field.
#[derive(Default)]
struct Names {
    whole: HashMap<Box<str>, Vec<u32>>,
    /// Endings that begin with a dot: looked up at the dots of a name only.
    dotted: HashMap<Box<str>, Vec<u32>>,
    /// Other endings, and which lengths in bytes they have.
    bare: HashMap<Box<str>, Vec<u32>>,
    bare_lengths: Vec<usize>,
}

impl Index {
    /// The index of `guards`, one for each rule in order.
    pub(super) fn new<'g>(guards: impl Iterator<Item = Option<&'g [Alternative]>>) -> Self {
        let mut index = Index::default();
        for (position, guard) in guards.enumerate() {
            // Positions fit: the number of rules is capped far below.
            let position = u32::try_from(position).unwrap_or(u32::MAX);
            let Some(alternatives) = guard else {
                index.unguarded.push(position);
                continue;
            };
            for alternative in alternatives {
                let slot = GUARDED.iter().position(|field| *field == alternative.field);
                match slot.and_then(|slot| index.fields.get_mut(slot)) {
                    Some(names) => names.insert(&alternative.test, position),
                    None => index.unguarded.push(position),
                }
            }
        }
        for names in &mut index.fields {
            names.bare_lengths = names.bare.keys().map(|end| end.len()).collect();
            names.bare_lengths.sort_unstable();
            names.bare_lengths.dedup();
        }
        index.unguarded.dedup();
        index
    }

    /// The positions of all rules that can match `facts`, in order.
    pub(super) fn candidates(&self, facts: &Facts<'_>) -> Candidates<'_> {
        let mut guarded = Vec::new();
        for (field, names) in GUARDED.iter().zip(&self.fields) {
            if let Some(name) = facts.text(*field) {
                names.find(name, &mut guarded);
            }
        }
        guarded.sort_unstable();
        guarded.dedup();
        Candidates { guarded: guarded.into_iter().peekable(), unguarded: self.unguarded.iter().copied().peekable() }
    }
}

impl Names {
    fn insert(&mut self, test: &Test, position: u32) {
        let (table, text) = match test {
            Test::Is(text) => (&mut self.whole, text),
            Test::EndsWith(text) if text.starts_with('.') => (&mut self.dotted, text),
            Test::EndsWith(text) => (&mut self.bare, text),
        };
        let positions = table.entry(text.as_str().into()).or_default();
        if positions.last() != Some(&position) {
            positions.push(position);
        }
    }

    fn find(&self, name: &str, found: &mut Vec<u32>) {
        let mut add = |positions: Option<&Vec<u32>>| found.extend(positions.into_iter().flatten());
        if !self.whole.is_empty() {
            add(self.whole.get(name));
        }
        if !self.dotted.is_empty() {
            for (at, _) in name.match_indices('.') {
                add(self.dotted.get(&name[at..]));
            }
        }
        for length in &self.bare_lengths {
            // A name is ASCII in normal form; an agent's name may not be, and then an ending may not fall between
            // its characters.
            if let Some(end) = name.len().checked_sub(*length).and_then(|at| name.get(at..)) {
                add(self.bare.get(end));
            }
        }
    }
}

/// Positions in order, guarded and unguarded merged.
pub(super) struct Candidates<'i> {
    guarded: std::iter::Peekable<std::vec::IntoIter<u32>>,
    unguarded: std::iter::Peekable<std::iter::Copied<std::slice::Iter<'i, u32>>>,
}

impl Iterator for Candidates<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        match (self.guarded.peek(), self.unguarded.peek()) {
            (Some(guarded), Some(unguarded)) if guarded <= unguarded => self.guarded.next(),
            (Some(_), None) => self.guarded.next(),
            _ => self.unguarded.next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule_engine::{
        Agent, Context, Decision, Dns, Guard, Http, LoadOptions, Network, RuleSet, Source, load_sources,
    };
    use proptest::prelude::*;

    fn guard_of(source: &str) -> Option<Vec<Alternative>> {
        guard(&super::super::expression::compile(source).unwrap())
    }

    fn alternative(field: Field, test: Test) -> Alternative {
        Alternative { field, test }
    }

    #[test]
    fn guards_are_what_must_hold() {
        use Test::{EndsWith, Is};
        let host = |test| alternative(Field::HttpHost, test);
        assert_eq!(guard_of("http.host == 'a.com'"), Some(vec![host(Is("a.com".to_owned()))]));
        assert_eq!(
            guard_of("http.host == 'a.com' || http.host.endsWith('.a.com')"),
            Some(vec![host(Is("a.com".to_owned())), host(EndsWith(".a.com".to_owned()))])
        );
        assert_eq!(
            guard_of("agent.name == 'w' && http.method == 'GET' && http.host in ['a.com', 'b.com']"),
            Some(vec![host(Is("a.com".to_owned())), host(Is("b.com".to_owned()))])
        );
        assert_eq!(
            guard_of("agent.name == 'w' && http.method == 'GET'"),
            Some(vec![alternative(Field::AgentName, Is("w".to_owned()))])
        );
        for open in [
            "http.host == 'a.com' || http.method == 'GET'",
            "!(http.host == 'a.com')",
            "http.host != 'a.com'",
            "http.host == 'a.com' ? true : true",
            "(http.host == 'a.com') == false",
            "http.host.startsWith('a')",
            "http.host == dns.query",
            "true",
        ] {
            assert_eq!(guard_of(open), None, "{open}");
        }
    }

    const HOSTS: &[&str] = &["a.com", "b.com", "x.a.com", "xa.com", "com", "a.b.a.com", "b.org", "1.2.3.4"];
    const ENDS: &[&str] = &[".a.com", "a.com", ".com", "m", "", ".b.a.com", "b.org", "x.a.com"];
    const AGENTS: &[&str] = &["w", "writer", "r", ""];

    fn host_field() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["http.host", "network.hostname", "dns.query"])
    }

    fn atom() -> impl Strategy<Value = String> {
        let host = prop::sample::select(HOSTS);
        let end = prop::sample::select(ENDS);
        let agent = prop::sample::select(AGENTS);
        prop_oneof![
            (host_field(), host.clone()).prop_map(|(field, host)| format!("{field} == '{host}'")),
            (host_field(), host.clone()).prop_map(|(field, host)| format!("'{host}' == {field}")),
            (host_field(), end.clone()).prop_map(|(field, end)| format!("{field}.endsWith('{end}')")),
            (host_field(), host.clone(), host.clone()).prop_map(|(f, one, two)| format!("{f} in ['{one}', '{two}']")),
            agent.clone().prop_map(|agent| format!("agent.name == '{agent}'")),
            agent.prop_map(|agent| format!("agent.name.endsWith('{agent}')")),
            host.prop_map(|host| format!("http.host != '{host}'")),
            prop::sample::select(vec![
                "true",
                "false",
                "http.method == 'GET'",
                "http.method != 'POST'",
                "http.path.startsWith('/v1')",
                "network.ip == '1.2.3.4'",
                "network.ip.startsWith('10.')",
                "network.port == 443",
                "1 / (size(agent.name) - 1) == 1",
                "tls.sni == 'a.com'",
            ])
            .prop_map(str::to_owned),
        ]
    }

    fn condition() -> impl Strategy<Value = String> {
        atom().prop_recursive(4, 16, 3, |inner| {
            prop_oneof![
                (inner.clone(), inner.clone()).prop_map(|(left, right)| format!("({left} && {right})")),
                (inner.clone(), inner.clone()).prop_map(|(left, right)| format!("({left} || {right})")),
                inner.clone().prop_map(|inner| format!("!({inner})")),
                (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
                (inner.clone(), inner).prop_map(|(left, right)| format!("(({left}) == ({right}))")),
            ]
        })
    }

    fn rules() -> impl Strategy<Value = RuleSet> {
        let rule = (condition(), prop::sample::select(vec!["block", "allow", "allow", "intercept"]), 0..3i64);
        prop::collection::vec(rule, 1..12).prop_map(|rules| {
            let mut text = "version: \"1\"\nrules:\n".to_owned();
            for (number, (condition, action, priority)) in rules.iter().enumerate() {
                let egress = if *action == "intercept" { ", egress: {mode: intercept, match_body: true}" } else { "" };
                let action = if *action == "block" { "block" } else { "allow" };
                let condition = serde_json::Value::from(condition.as_str());
                text += &format!(
                    "  - {{id: r{number}, action: {action}, priority: {priority}, condition: {condition}{egress}}}\n"
                );
            }
            let options = LoadOptions { proxy: true, interception: true, guard: Guard::InProcess };
            let sources = [Source { name: "t.yaml".to_owned(), text }];
            let loaded = load_sources(&sources, &options, None).unwrap_or_else(|errors| panic!("{errors}"));
            std::sync::Arc::into_inner(loaded.set).unwrap()
        })
    }

    type Facts = [Option<&'static str>; 7];

    fn facts() -> impl Strategy<Value = Facts> {
        let host = || prop::option::of(prop::sample::select(HOSTS));
        (
            host(),
            host(),
            host(),
            prop::option::of(prop::sample::select(AGENTS)),
            prop::option::of(prop::sample::select(vec!["GET", "CONNECT", "POST"])),
            prop::option::of(prop::sample::select(vec!["1.2.3.4", "10.0.0.1", "8.8.8.8"])),
            prop::option::of(prop::sample::select(vec!["/", "/v1/x"])),
        )
            .prop_map(|(a, b, c, d, e, f, g)| [a, b, c, d, e, f, g])
    }

    fn context(facts: Facts) -> Context<'static> {
        let [host, hostname, query, agent, method, ip, path] = facts;
        Context {
            agent: Agent { name: agent, container: agent },
            network: Network { hostname, ip, port: Some(443), protocol: Some("tcp") },
            http: Http { host, method, path, ..Http::default() },
            dns: Dns { query, record_type: Some("A") },
            ..Context::default()
        }
    }

    /// What of a decision can be compared.
    fn view(decision: &Decision) -> (Option<usize>, bool, Option<usize>) {
        (
            decision.rule.as_ref().map(|rule| rule.order),
            decision.wants_address,
            decision.could_intercept.as_ref().map(|rule| rule.order),
        )
    }

    proptest! {
        #[test]
        fn the_index_decides_as_the_plain_loop_does(rules in rules(), facts in prop::collection::vec(facts(), 8)) {
            for facts in facts {
                let context = context(facts);
                let (indexed, plain) = (rules.peek(&context), rules.peek_without_index(&context));
                prop_assert_eq!(view(&indexed), view(&plain), "{:?}", facts);
            }
        }

        /// An unknown address that ends in an allow, once known, was one that could: never resolved in vain is not
        /// promised, never refused in vain is.
        #[test]
        fn what_an_address_allows_was_wanted(rules in rules(), facts in facts()) {
            let [host, hostname, query, agent, method, _, path] = facts;
            let hostname = hostname.or(Some("a.com"));
            let unknown = rules.peek(&context([host, hostname, query, agent, method, None, path]));
            for ip in ["1.2.3.4", "10.0.0.1", "8.8.8.8"] {
                let known = rules.peek(&context([host, hostname, query, agent, method, Some(ip), path]));
                prop_assert!(!known.wants_address);
                if known.may_allow() {
                    prop_assert!(unknown.may_allow(), "{}", ip);
                }
                if !unknown.wants_address && unknown.could_intercept.is_none() && known.could_intercept.is_none() {
                    prop_assert_eq!(known.action, unknown.action, "{}", ip);
                }
            }
        }
    }
}
