//! Block rules that cannot see into the tunnels that a later rule allows.

use super::super::condition::Condition;
use super::super::facts::Facts;
use super::super::field::{ALL, Field, FieldSet};
use super::super::index::Alternative;
use super::super::load::LoadError;
use super::super::{Action, Context, EgressMode, Http, RuleSet};
use super::Places;

/// Comparisons of guards in one load: past it, a later rule counts as overlapping.
const COMPARISONS_MAX: usize = 1_000_000;

/// What a proxy sees of a request inside a tunnel only when it decrypts.
const HIDDEN: FieldSet = FieldSet::of(&[Field::HttpMethod, Field::HttpPath, Field::HttpHeaders]);

/// Block rules on method, path or headers that cannot see into the HTTPS tunnels which a later `proxy` rule allows.
pub(in crate::rule_engine) fn blind_blocks(set: &RuleSet, places: &Places) -> Vec<LoadError> {
    let mut warnings = Vec::new();
    let mut left = COMPARISONS_MAX;
    let tunnels: Vec<(usize, Option<&[Alternative]>)> = set
        .entries()
        .enumerate()
        .filter(|(_, (rule, _))| rule.egress.as_ref().is_some_and(|egress| egress.mode == EgressMode::Proxy))
        .map(|(position, (_, compiled))| (position, compiled.guard.as_deref()))
        .collect();
    for (position, (rule, compiled)) in set.entries().enumerate() {
        if rule.action != Action::Block || !is_blind(&compiled.condition) {
            continue;
        }
        let after = tunnels.partition_point(|(tunnel, _)| *tunnel < position);
        let later = tunnels[after..].iter().find(|(_, guard)| overlap(compiled.guard.as_deref(), *guard, &mut left));
        if let Some(allow) = later.and_then(|(tunnel, _)| set.rules().get(*tunnel)) {
            let reason = format!(
                "blocks by what is inside HTTPS tunnels, which the later rule {} ({}) allows unseen; \
                 it works for plain HTTP only",
                allow.id, allow.file
            );
            warnings.push(places.error(rule, reason));
        }
    }
    warnings
}

/// True when no CONNECT can match, whatever the rest of the question is.
fn is_blind(condition: &Condition) -> bool {
    if condition.fields.and(HIDDEN).is_empty() {
        return false;
    }
    let http = Http { method: Some("CONNECT"), path: Some("/"), headers: Some(&[]), ..Http::default() };
    let connect = Context { http, ..Context::default() };
    !condition.could(&Facts::new(&connect), FieldSet::of(ALL).without(HIDDEN))
}

fn overlap(left: Option<&[Alternative]>, right: Option<&[Alternative]>, budget: &mut usize) -> bool {
    let (Some(left), Some(right)) = (left, right) else { return true };
    let Some(rest) = budget.checked_sub(left.len() * right.len()) else { return true };
    *budget = rest;
    // Guards on different fields say nothing about each other.
    left.iter().any(|left| right.iter().any(|right| left.field != right.field || left.test.overlaps(&right.test)))
}
