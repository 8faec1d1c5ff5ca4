//! What loads but does not do what it seems to: remarks about rules, each provable from the rule's own text.
//!
//! | file | what it is |
//! |---|---|
//! | `tunnels` | block rules that cannot see into the tunnels that a later rule allows |
//! | `atoms` | conditions as alternatives of atoms, and what follows from them |
//! | `literals` | literals that no field has, suffixes that match too much |
//!
//! `tunnels` is said at every load; the rest costs more and is said by `rules check` and of requested rules.

mod atoms;
mod literals;
mod tunnels;

use std::collections::HashMap;

use cel_interpreter::common::ast::{Expr, IdedExpr, operators};

use crate::api::RuleFinding;

use super::condition::Condition;
use super::facts::Facts;
use super::field::{Field, FieldSet};
use super::load::LoadError;
use super::{Action, Context, EgressMode, Rule, RuleSet};
use atoms::{Alternative, Atom, Says};

pub(super) use tunnels::blind_blocks;

/// Pairs of rules that are compared in one check: past it, later rules are not looked at for shadows.
const PAIRS_MAX: usize = 500_000;
/// Remarks of one check; past it the rest says nothing new.
const REMARKS_MAX: usize = 1_000;

/// Where the conditions of rules are.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(HashMap<Box<str>, Option<usize>>);

impl Places {
    pub(super) fn note(&mut self, id: &str, line: Option<usize>) {
        self.0.insert(id.into(), line);
    }

    fn line(&self, rule: &Rule) -> Option<usize> {
        self.0.get(&rule.id).copied().flatten()
    }

    /// Something about `rule`, at its condition.
    fn error(&self, rule: &Rule, reason: String) -> LoadError {
        let (file, id) = (Some(rule.file.to_string()), Some(rule.id.to_string()));
        LoadError { file, line: self.line(rule), rule: id, reason }
    }
}

/// What is wrong, and what to do instead.
type Remark = (String, String);

/// Remarks about `set`: shadowed and unreachable rules, conditions and parts that can never hold, literals and
/// suffixes that mislead. Only what is proved.
pub(super) fn remarks(set: &RuleSet, places: &Places) -> Vec<RuleFinding> {
    let alternatives: Vec<Option<Vec<Alternative>>> =
        set.entries().map(|(_, compiled)| atoms::alternatives(&compiled.condition)).collect();
    let mut found = Vec::new();
    let mut say = |rule: &Rule, (what, instead): Remark| {
        found.push(RuleFinding {
            level: "lint".to_owned(),
            file: Some(rule.file.to_string()),
            line: places.line(rule),
            rule: Some(rule.id.to_string()),
            what,
            instead: Some(instead),
        });
    };
    for (rule, compiled) in set.entries() {
        of_condition(&compiled.condition).into_iter().for_each(|remark| say(rule, remark));
    }
    shadows(set, &alternatives, say);
    found.sort_by(|left, right| (&left.file, left.line).cmp(&(&right.file, right.line)));
    found.truncate(REMARKS_MAX);
    found
}

/// Remarks about one condition by itself.
fn of_condition(condition: &Condition) -> Vec<Remark> {
    let mut disjuncts = Vec::new();
    flatten(&condition.expression, &mut disjuncts);
    let spread = disjuncts.iter().map(|part| atoms::alternatives_of(part, condition));
    let spread: Vec<Vec<Alternative>> = spread.map(Option::unwrap_or_default).collect();
    let is_dead = |alternatives: &Vec<Alternative>| {
        !alternatives.is_empty() && alternatives.iter().all(|alternative| impossible(alternative).is_some())
    };
    let dead: Vec<&Vec<Alternative>> = spread.iter().filter(|alternatives| is_dead(alternatives)).collect();
    let what = if dead.len() == spread.len() { "the condition" } else { "a part of the condition" };
    let mut said: Vec<Remark> = Vec::new();
    // One reason for each dead part.
    let reasons = dead.iter().filter_map(|alternatives| alternatives.first().and_then(|first| impossible(first)));
    said.extend(reasons.map(|(why, instead)| (format!("{what} can never hold: {why}"), instead)));
    for atom in spread.iter().filter(|alternatives| !is_dead(alternatives)).flatten().flatten() {
        if let Some((why, instead)) = literals::never(atom) {
            said.push((format!("a part of the condition can never hold: `{}`: {why}", atom.text), instead));
        }
    }
    said.extend(spread.iter().flatten().flatten().filter_map(literals::misleading));
    said.sort_unstable();
    said.dedup();
    said
}

/// The parts that `||` joins.
fn flatten<'c>(part: &'c IdedExpr, found: &mut Vec<&'c IdedExpr>) {
    match &part.expr {
        Expr::Call(call) if call.func_name == operators::LOGICAL_OR && call.target.is_none() => {
            call.args.iter().for_each(|argument| flatten(argument, found));
        }
        _ => found.push(part),
    }
}

/// Why an alternative can never hold.
fn impossible(alternative: &[Atom]) -> Option<Remark> {
    for atom in alternative {
        if let Some((what, instead)) = literals::never(atom) {
            return Some((format!("`{}`: {what}", atom.text), instead));
        }
    }
    let (one, other) = atoms::contradiction(alternative)?;
    Some(match other {
        None if one.says == Says::Constant(false) => ("it is `false`".to_owned(), "remove it".to_owned()),
        None => (format!("`{}` holds for nothing", one.text), "remove it".to_owned()),
        Some(other) => {
            let instead = match (&one.says, &other.says) {
                (Says::Among(..) | Says::Within(..), Says::Among(..) | Says::Within(..)) => {
                    "`||` or `in [..]` for either of the two"
                }
                _ => "one of the two",
            };
            (format!("`{}` excludes `{}`", one.text, other.text), instead.to_owned())
        }
    })
}

/// Rules that never decide, because one before them matches whatever they match.
fn shadows(set: &RuleSet, alternatives: &[Option<Vec<Alternative>>], mut say: impl FnMut(&Rule, Remark)) {
    let nothing = Context::default();
    let nothing = Facts::new(&nothing);
    let mut left = PAIRS_MAX;
    let mut always: Option<&Rule> = None;
    for (position, ((rule, compiled), own)) in set.entries().zip(alternatives).enumerate() {
        if let Some(before) = always {
            say(rule, never_decides(rule, before, "everything"));
            continue;
        }
        // True although nothing is known is true of every question.
        if matches!(compiled.condition.evaluate(&nothing, FieldSet::EMPTY), super::condition::Outcome::True) {
            always = Some(rule);
        }
        let intercepts = rule.egress.as_ref().is_some_and(|egress| egress.mode == EgressMode::Intercept);
        // An `intercept` rule also decides that a tunnel is opened, which a rule before it on what is inside does not.
        let Some(own) = own.as_deref().filter(|own| !intercepts && own.iter().all(|one| impossible(one).is_none()))
        else {
            continue;
        };
        let Some(first) = own.first() else { continue };
        let witness = Witness::of(first);
        let before = witness.ask(|facts| {
            let mut candidates = set.candidates(facts).take_while(|candidate| *candidate < position);
            candidates.find(|candidate| {
                if left == 0 {
                    return false;
                }
                left -= 1;
                alternatives.get(*candidate).and_then(Option::as_deref).is_some_and(|wide| atoms::implies(own, wide))
            })
        });
        if let Some((before, _)) = before.and_then(|before| set.entry(before)) {
            say(rule, never_decides(rule, before, "whatever this one matches"));
        }
    }
}

fn never_decides(rule: &Rule, before: &Rule, what: &str) -> Remark {
    let (id, file) = (&before.id, &before.file);
    let same = rule.action == before.action && (rule.action == Action::Block || rule.egress == before.egress);
    let instead = match before.priority.checked_sub(1) {
        _ if same => "nothing (remove the rule)".to_owned(),
        Some(priority) => format!("`priority: {priority}`, or a narrower condition of {id}"),
        None => format!("a narrower condition of {id}"),
    };
    (format!("the rule never decides: {id} ({file}) comes before it and matches {what}"), instead)
}

/// A question that an alternative's texts hold of, to find the rules that can match it by their names.
struct Witness {
    texts: Vec<(Field, String)>,
}

impl Witness {
    fn of(alternative: &[Atom]) -> Self {
        let texts = alternative.iter().filter_map(|atom| match &atom.says {
            Says::Among(field, texts) => Some((*field, texts.first()?.clone())),
            Says::EndsWith(field, end) => Some((*field, format!("w{end}"))),
            _ => None,
        });
        Witness { texts: texts.collect() }
    }

    fn ask<T>(&self, ask: impl FnOnce(&Facts<'_>) -> T) -> T {
        let text = |field| self.texts.iter().find(|(own, _)| *own == field).map(|(_, text)| text.as_str());
        let mut context = Context::default();
        context.agent.name = text(Field::AgentName);
        context.http.host = text(Field::HttpHost);
        context.network.hostname = text(Field::NetworkHostname);
        context.dns.query = text(Field::DnsQuery);
        ask(&Facts::new(&context))
    }
}

#[cfg(test)]
mod tests;
