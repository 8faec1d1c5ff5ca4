//! The judgement of one question: the name's normal form, then the rules.
//!
//! Owns: what makes a question blocked, allowed or empty. Does not own: the rules (`rule_engine`), the addresses of the
//! answer, which are judged when there is one.

use std::sync::Arc;

use hickory_proto::rr::RecordType;

use crate::docker_manager::Peer;
use crate::names::HostName;
use crate::rule_engine::{Action, Context, Dns, Rule, RuleSet};

use super::cache::Key;
use super::message::{Query, type_text};

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
    let Ok(name) = HostName::parse(&query.question.name().to_ascii()) else {
        return Judgement::Block { reason: "bad_name", rule: None };
    };
    if is_local(&name) {
        return Judgement::Block { reason: "local_name", rule: None };
    }
    let record_type = query.record_type();
    let type_name = type_text(record_type);
    let dns = Dns { query: Some(name.as_str()), record_type: Some(&type_name) };
    let decision = rules.decide(&Context { agent: peer.agent(), dns, ..Context::default() });
    match (decision.action, decision.rule) {
        (Action::Allow, Some(rule)) if matches!(record_type, RecordType::HTTPS | RecordType::SVCB) => {
            // They hand out addresses and ECH keys past every check of addresses and of server names.
            Judgement::Empty { rule }
        }
        (Action::Allow, Some(rule)) => {
            let key = Key { name, record_type, dnssec: query.dnssec_ok() };
            Judgement::Resolve { key, rule }
        }
        (_, Some(rule)) => Judgement::Block { reason: "rule", rule: Some(rule) },
        (_, None) => Judgement::Block { reason: "default", rule: None },
    }
}

/// `.local` belongs to multicast DNS and is never asked for by unicast (RFC 6762 22.1).
pub(super) fn is_local(name: &HostName) -> bool {
    name.as_str().rsplit('.').next() == Some("local")
}
