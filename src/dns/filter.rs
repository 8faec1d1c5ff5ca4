//! The judgement of one question: the name's normal form, then the rules.
//!
//! Owns: what makes a question blocked, allowed or empty. Does not own: the rules (`rule_engine`), the addresses of the
//! answer, which are judged when there is one.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::RecordType;

use crate::docker_manager::Peer;
use crate::names::HostName;
use crate::rule_engine::{Action, Context, Decision, Dns, Rule, RuleSet};

use super::cache::Key;
use super::message::{Query, type_text};
use super::vetted::Vetted;

/// What becomes of a question.
pub(super) enum Judgement {
    /// NXDOMAIN.
    Block { reason: &'static str, rule: Option<Arc<Rule>> },
    /// Allowed, but of a type that is never answered with records.
    Empty { rule: Arc<Rule> },
    /// Allowed: ask.
    Resolve { key: Key, rule: Arc<Rule> },
}

/// Judges `query` of `peer`, who may ask.
pub(super) fn judge(rules: &RuleSet, query: &Query, peer: &Peer) -> Judgement {
    let Some(name) = &query.name else {
        return Judgement::Block { reason: "bad_name", rule: None };
    };
    let record_type = query.record_type();
    let type_name = type_text(record_type);
    let verdict = NameQuestion { name, record_type: &type_name, peer }.judge(|context| rules.decide(context));
    match verdict {
        NameVerdict::Block { reason, rule } => Judgement::Block { reason, rule },
        NameVerdict::Allow { rule } if matches!(record_type, RecordType::HTTPS | RecordType::SVCB) => {
            // They hand out addresses and ECH keys past every check of addresses and of server names.
            Judgement::Empty { rule }
        }
        NameVerdict::Allow { rule } => {
            let key = Key { name: name.clone(), record_type, dnssec: query.dnssec_ok() };
            Judgement::Resolve { key, rule }
        }
    }
}

/// A question as rules see it: what the filter judges, and what explanations are of.
#[derive(Clone, Copy, Debug)]
pub struct NameQuestion<'a> {
    /// In normal form.
    pub name: &'a HostName,
    /// `A`, `AAAA`, …
    pub record_type: &'a str,
    /// Who asks.
    pub peer: &'a Peer,
}

/// What is said to a [`NameQuestion`].
#[derive(Clone, Debug)]
pub enum NameVerdict {
    /// Answered from upstream.
    Allow {
        /// The rule that allows it.
        rule: Arc<Rule>,
    },
    /// NXDOMAIN.
    Block {
        /// A code for events: `rule`, `default`, `local_name`.
        reason: &'static str,
        /// The rule that blocks it, if one does.
        rule: Option<Arc<Rule>>,
    },
}

impl NameQuestion<'_> {
    /// Lends the question's facts to `use_it`.
    pub fn with_context<T>(&self, use_it: impl FnOnce(&Context<'_>) -> T) -> T {
        let dns = Dns { query: Some(self.name.as_str()), record_type: Some(self.record_type) };
        use_it(&Context { agent: self.peer.agent(), dns, ..Context::default() })
    }

    /// Why the asker is told none of the `addresses` that the answer has, if so; `rule` allows the question.
    #[must_use]
    pub fn strips_all(&self, rules: &RuleSet, rule: &Rule, addresses: &[IpAddr]) -> Option<&'static str> {
        let vetted = Vetted::of((rules, rule), self.peer, self.name, addresses);
        vetted.none_passed().then(|| vetted.reason())
    }

    /// Judges it; `decide` is how the rules are asked, counted or not.
    pub fn judge(&self, decide: impl FnOnce(&Context<'_>) -> Decision) -> NameVerdict {
        if is_local(self.name) {
            return NameVerdict::Block { reason: "local_name", rule: None };
        }
        let decision = self.with_context(decide);
        match (decision.action, decision.rule) {
            (Action::Allow, Some(rule)) => NameVerdict::Allow { rule },
            (_, Some(rule)) => NameVerdict::Block { reason: "rule", rule: Some(rule) },
            (_, None) => NameVerdict::Block { reason: "default", rule: None },
        }
    }
}

/// `.local` belongs to multicast DNS and is never asked for by unicast (RFC 6762 22.1).
pub(super) fn is_local(name: &HostName) -> bool {
    name.as_str().rsplit('.').next() == Some("local")
}
