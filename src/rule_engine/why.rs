//! Why a rule did not match: the parts of its condition that failed, and the rules that came close.
//!
//! Reads the compiled conditions with the evaluator that judges. Owns what "close" means; decides nothing.

use std::collections::HashSet;
use std::sync::Arc;

use cel_interpreter::common::ast::{Expr, IdedExpr, operators};
use cel_interpreter::common::types::{CelList, CelString};

use super::condition::{Condition, Outcome, Used};
use super::facts::Facts;
use super::field::{self, Field, FieldSet, is_host, nearest};
use super::literal::{as_constant, as_text};
use super::{Context, Rule, RuleSet, unparse};

/// Rules that are looked at for one answer, those that name the destination first. At some microseconds each this
/// stays below what the operator API's thread may take for one call.
const RULES_MAX: usize = 5_000;
/// Parts of conditions that are evaluated for one answer, for the same reason.
const PARTS_MAX: usize = 20_000;
/// Literals of one part that are compared with a name by spelling.
const LITERALS_MAX: usize = 64;
/// Failed parts that are shown of one rule.
const FAILED_SHOWN: usize = 4;
/// A rule is close up to this cost; see [`Assessed::cost`].
const CLOSE: u32 = 3;

/// A rule that did not match although little of it failed.
#[derive(Clone, Debug)]
pub struct Near {
    /// The rule.
    pub rule: Arc<Rule>,
    /// What of its condition failed: each of these would have to hold.
    pub failed: Vec<FailedPart>,
}

/// A part of a condition that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedPart {
    /// As CEL, definitions expanded.
    pub text: String,
    /// How it failed.
    pub how: Failed,
    /// The fields it reads and their values; `None` is unknown here.
    pub values: Vec<(&'static str, Option<String>)>,
}

/// How a part did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// It is false.
    False,
    /// The layer does not know a field that it needs.
    Unknown,
    /// Its evaluation fails, which is no match.
    Error,
}

impl Failed {
    /// The word of answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Failed::False => "false",
            Failed::Unknown => "unknown",
            Failed::Error => "error",
        }
    }
}

impl RuleSet {
    /// The rules before `decider` (all, if there is none) that came closest to matching `context`, at most `most`,
    /// the closest first. `everything` is the same question with all fields filled that any layer would fill.
    #[must_use]
    pub fn near(
        &self,
        context: &Context<'_>,
        everything: &Context<'_>,
        decider: Option<&str>,
        most: usize,
    ) -> Vec<Near> {
        let end = decider.and_then(|id| self.position(id)).unwrap_or(self.rules().len());
        let (facts, all) = (Facts::new(context), Facts::new(everything));
        let mut order: Vec<usize> = self.candidates(&all).filter(|position| *position < end).collect();
        let named: HashSet<usize> = order.iter().copied().collect();
        order.extend((0..end.min(RULES_MAX)).filter(|position| !named.contains(position)));
        let mut left = PARTS_MAX;
        let mut close: Vec<(u32, usize, Near)> = Vec::new();
        for position in order.into_iter().take(RULES_MAX) {
            let Some((rule, condition)) = self.entry(position) else { continue };
            let mut assessor = Assessor { condition, facts: &facts, all: &all, left: &mut left };
            let Some(assessed) = assessor.part(&condition.expression) else { break };
            if assessed.failed.is_empty() || assessed.cost > CLOSE {
                continue;
            }
            let shown = assessed.failed.iter().take(FAILED_SHOWN);
            let failed = shown.map(|(part, how)| describe(condition, part, *how, &facts)).collect();
            close.push((assessed.rank(), position, Near { rule: Arc::clone(rule), failed }));
        }
        close.sort_by_key(|(rank, position, _)| (*rank, *position));
        close.into_iter().take(most).map(|(_, _, near)| near).collect()
    }
}

fn describe(condition: &Condition, part: &IdedExpr, how: Failed, facts: &Facts<'_>) -> FailedPart {
    let mut used = Used::default();
    used.visit(part);
    let values = field::ALL.iter().filter(|field| used.fields.contains(**field));
    FailedPart {
        text: unparse::text(part, &condition.constants),
        how,
        values: values.map(|field| (field.name(), facts.shown(*field))).collect(),
    }
}

/// What was found of a part that may have failed.
struct Assessed<'c> {
    /// What failed.
    failed: Vec<(&'c IdedExpr, Failed)>,
    /// How far it is from holding: see [`Assessor::leaf`].
    cost: u32,
    /// Parts that read a field and hold.
    held: u32,
}

impl Assessed<'_> {
    /// Lower is closer.
    fn rank(&self) -> u32 {
        self.cost * 8 + 7 - self.held.min(7)
    }
}

struct Assessor<'w, 'f, 'a> {
    condition: &'w Condition,
    facts: &'f Facts<'a>,
    all: &'f Facts<'a>,
    left: &'w mut usize,
}

impl<'w> Assessor<'w, '_, '_> {
    /// `None` when the budget is spent.
    fn part(&mut self, part: &'w IdedExpr) -> Option<Assessed<'w>> {
        let Expr::Call(call) = &part.expr else { return self.leaf(part) };
        match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::LOGICAL_AND, [left, right]) => {
                let (mut left, right) = (self.part(left)?, self.part(right)?);
                left.failed.extend(right.failed);
                Some(Assessed { cost: left.cost + right.cost, held: left.held + right.held, failed: left.failed })
            }
            // The branch that came closest stands for both.
            (operators::LOGICAL_OR, [left, right]) => {
                let (left, right) = (self.part(left)?, self.part(right)?);
                Some(if right.rank() < left.rank() { right } else { left })
            }
            _ => self.leaf(part),
        }
    }

    /// One step away: a part that any layer's knowledge would make true, that names something spelt like it, or that
    /// is not about the destination. A part about another destination altogether is out of reach.
    fn leaf(&mut self, part: &'w IdedExpr) -> Option<Assessed<'w>> {
        *self.left = self.left.checked_sub(1)?;
        let how = match self.condition.evaluate_part(part, self.facts, FieldSet::EMPTY) {
            Outcome::True => {
                let mut used = Used::default();
                used.visit(part);
                let held = u32::from(!used.fields.is_empty());
                return Some(Assessed { failed: Vec::new(), cost: 0, held });
            }
            Outcome::False => Failed::False,
            Outcome::Unknown(_) => Failed::Unknown,
            Outcome::Failed(_) => Failed::Error,
        };
        let mut used = Used::default();
        used.visit(part);
        let about_host = field::ALL.iter().any(|field| is_host(*field) && used.fields.contains(*field));
        let known_elsewhere = how == Failed::Unknown
            && matches!(self.condition.evaluate_part(part, self.all, FieldSet::EMPTY), Outcome::True);
        let cost = if known_elsewhere {
            1
        } else if about_host {
            if self.is_spelt_alike(part) { 1 } else { CLOSE + 1 }
        } else if how == Failed::Unknown || used.fields.is_empty() {
            2
        } else {
            1
        };
        Some(Assessed { failed: vec![(part, how)], cost, held: 0 })
    }

    fn is_spelt_alike(&self, part: &IdedExpr) -> bool {
        let Some(name) = self.all.text(Field::NetworkHostname).or(self.all.text(Field::DnsQuery)) else { return false };
        let mut literals = Vec::new();
        collect(part, self.condition, &mut literals);
        literals.into_iter().any(|literal| {
            let bare = literal.trim_start_matches('.');
            let below = |long: &str, short: &str| long.strip_suffix(short).is_some_and(|rest| rest.ends_with('.'));
            // A whole suffix such as `com` is no neighbour of all it holds.
            (bare.contains('.') && (below(name, bare) || below(bare, name))) || nearest(name, [bare]).is_some()
        })
    }
}

/// The texts that a part compares with.
fn collect<'c>(part: &'c IdedExpr, condition: &'c Condition, found: &mut Vec<&'c str>) {
    if found.len() >= LITERALS_MAX {
        return;
    }
    if let Some(text) = as_text(part) {
        return found.push(text);
    }
    if let Some(list) = as_constant(part)
        .and_then(|number| condition.constants.get(number))
        .and_then(|constant| constant.downcast_ref::<CelList>())
    {
        let texts = list.iter().filter_map(|item| item.downcast_ref::<CelString>());
        return found.extend(texts.map(CelString::inner).take(LITERALS_MAX));
    }
    if let Expr::Call(call) = &part.expr {
        call.target.iter().for_each(|target| collect(target, condition, found));
        call.args.iter().for_each(|argument| collect(argument, condition, found));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule_engine::{Agent, Dns, Guard, Http, LoadOptions, Network, Source, load_sources};

    fn set(conditions: &[&str]) -> Arc<RuleSet> {
        let mut text = "version: \"1\"\nrules:\n".to_owned();
        for (number, condition) in conditions.iter().enumerate() {
            let condition = serde_json::Value::from(*condition);
            text += &format!("  - id: r{number}\n    action: allow\n    condition: {condition}\n");
        }
        let options = LoadOptions { proxy: true, interception: false, guard: Guard::InProcess };
        load_sources(&[Source { name: "t.yaml".to_owned(), text }], &options, None).unwrap().set
    }

    fn near(conditions: &[&str], at_dns: bool) -> Vec<String> {
        let agent = Agent { name: Some("w"), container: Some("w-1") };
        let dns = Dns { query: Some("api.github.com"), record_type: Some("A") };
        let everything = Context {
            agent,
            dns,
            network: Network { hostname: Some("api.github.com"), ip: None, port: Some(443), protocol: Some("tcp") },
            http: Http {
                host: Some("api.github.com"),
                method: Some("GET"),
                path: Some("/x"),
                scheme: Some("https"),
                headers: Some(&[]),
                ..Http::default()
            },
            ..Context::default()
        };
        let context = if at_dns {
            Context { agent, dns, ..Context::default() }
        } else {
            Context { dns: Dns::default(), ..everything }
        };
        let shown = |near: Near| {
            let failed = near.failed.into_iter().map(|part| {
                let values =
                    part.values.iter().map(|(name, value)| format!("{name}={}", value.as_deref().unwrap_or("?")));
                format!("{} {} [{}]", part.how.as_str(), part.text, values.collect::<Vec<_>>().join(" "))
            });
            format!("{}: {}", near.rule.id, failed.collect::<Vec<_>>().join("; "))
        };
        set(conditions).near(&context, &everything, None, 5).into_iter().map(shown).collect()
    }

    #[test]
    fn the_part_that_failed_is_named_with_its_value() {
        assert_eq!(
            near(&["http.host.endsWith('.github.com') && http.method == 'POST' && network.port == 443"], false),
            [r#"r0: false http.method == "POST" [http.method="GET"]"#]
        );
        assert_eq!(
            near(&["(http.host == 'github.com' || http.host == 'ghcr.io') && agent.name == 'w'"], false),
            [r#"r0: false http.host == "github.com" [http.host="api.github.com"]"#]
        );
    }

    #[test]
    fn what_the_layer_does_not_know_is_unknown() {
        assert_eq!(
            near(&["http.host == 'api.github.com'"], true),
            [r#"r0: unknown http.host == "api.github.com" [http.host=?]"#]
        );
        assert_eq!(
            near(&["dns.query == 'api.github.com' && network.ip == '1.2.3.4'"], true),
            [r#"r0: unknown network.ip == "1.2.3.4" [network.ip=?]"#]
        );
    }

    #[test]
    fn a_slip_of_the_pen_is_close_and_another_host_is_not() {
        assert_eq!(near(&["http.host == 'api.githb.com'", "http.host == 'example.org'"], false).len(), 1);
        assert_eq!(near(&["agent.name == 'w' && http.host == 'example.org'"], false), Vec::<String>::new());
        assert_eq!(near(&["http.host.endsWith('.com') && http.method == 'PUT'"], false).len(), 1);
    }

    #[test]
    fn the_closest_come_first_and_the_rest_is_left_out() {
        let mut conditions = vec!["http.host == 'x.api.github.com' && network.port == 80"; 20];
        conditions.push("http.host == 'api.github.com' && network.port == 80");
        let found = near(&conditions, false);
        assert_eq!(found.len(), 5);
        assert!(found[0].starts_with("r20: false network.port == 80"), "{found:?}");
    }

    #[test]
    fn an_error_is_told_from_false() {
        let found = near(&["http.host == 'api.github.com' && http.headers['x'] == 'y'"], false);
        assert!(found[0].starts_with("r0: error http.headers[\"x\"]"), "{found:?}");
    }
}
