//! `/rules`, `/rule/ID`, `/rules/reload`, `/rule/evaluate`, `/rule/test`

use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use crate::api::{EgressView, RuleDetail, RuleSummary, RuleTest};
use crate::daemon::Subsystem;
use crate::rule_engine::{Action, Egress, EgressMode, Rule, RuleEngineCommand};
use crate::unix_http::{Answer, Response};

use super::api::Api;
use super::call::Call;
use super::respond::{failed, ok};

/// Compiling the largest rule set takes 2 s, and every thread has to take the new snapshot.
const RELOAD_LIMIT: Duration = Duration::from_secs(60);
/// The guarded child has its own, shorter limit; this is for a queue before it.
const TEST_LIMIT: Duration = Duration::from_secs(20);
/// Characters of a condition in the list.
const PREVIEW: usize = 80;

pub(super) fn list(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let rules: Vec<RuleSummary> = api.snapshot.rules.rules().iter().map(|rule| summary(rule)).collect();
    Ok(Answer::Now(ok(rules)))
}

pub(super) fn show(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let rules = api.snapshot.rules.rules();
    let rule = rules.iter().find(|rule| *rule.id == *call.name);
    let rule = rule.ok_or_else(|| failed(404, format!("no rule has the id `{}`", call.name)))?;
    Ok(Answer::Now(ok(detail(rule))))
}

pub(super) fn reload(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    call.no_body()?;
    let owner = api.links.rule_engine.clone();
    let command = RuleEngineCommand::Reload;
    api.ask(call.ticket, (Subsystem::RuleEngine, &owner), RELOAD_LIMIT, command, |outcome| match outcome {
        Ok(reloaded) => ok(reloaded),
        Err(errors) => failed(422, errors.join("\n")),
    })
}

pub(super) fn test(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let question: RuleTest = call.body()?;
    let owner = api.links.rule_engine.clone();
    let command = |reply| RuleEngineCommand::Test(question, reply);
    api.ask(call.ticket, (Subsystem::RuleEngine, &owner), TEST_LIMIT, command, ok)
}

fn summary(rule: &Rule) -> RuleSummary {
    RuleSummary {
        id: rule.id.to_string(),
        file: rule.file.to_string(),
        action: action(rule.action).to_owned(),
        condition_preview: preview(&rule.condition),
        description: rule.description.as_deref().map(str::to_owned),
        priority: rule.priority,
        hits: rule.hits.load(Ordering::Relaxed),
        errors: rule.errors.load(Ordering::Relaxed),
        last_hit: time(rule.last_hit_ms.load(Ordering::Relaxed)),
    }
}

fn detail(rule: &Rule) -> RuleDetail {
    RuleDetail {
        id: rule.id.to_string(),
        file: rule.file.to_string(),
        condition: rule.expanded.to_string(),
        action: action(rule.action).to_owned(),
        log: rule.log,
        description: rule.description.as_deref().map(str::to_owned),
        priority: rule.priority,
        egress: rule.egress.as_ref().map(egress),
    }
}

fn egress(egress: &Egress) -> EgressView {
    let mode = match egress.mode {
        EgressMode::Proxy => "proxy",
        EgressMode::DirectIp => "direct_ip",
        EgressMode::Intercept => "intercept",
    };
    EgressView {
        mode: mode.to_owned(),
        ports: egress.ports.clone(),
        allow_private_ips: egress.allow_private_ips,
        match_body: egress.match_body,
    }
}

fn action(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Block => "block",
    }
}

/// The condition on one line, cut.
fn preview(condition: &str) -> String {
    let line = condition.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= PREVIEW {
        return line;
    }
    let mut cut: String = line.chars().take(PREVIEW - 1).collect();
    cut.push('…');
    cut
}

/// RFC 3339 of Unix milliseconds; 0 is never.
fn time(milliseconds: i64) -> Option<String> {
    let milliseconds = u64::try_from(milliseconds).ok().filter(|milliseconds| *milliseconds > 0)?;
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds))?;
    Some(humantime::format_rfc3339_millis(time).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_is_one_short_line() {
        assert_eq!(preview("a ==\n   \"b\""), "a == \"b\"");
        let long = preview(&"x".repeat(200));
        assert_eq!((long.chars().count(), long.ends_with('…')), (PREVIEW, true));
    }

    #[test]
    fn times_are_rfc_3339_and_zero_is_never() {
        assert_eq!(time(0), None);
        assert_eq!(time(-1), None);
        assert_eq!(time(1_700_000_000_123).as_deref(), Some("2023-11-14T22:13:20.123Z"));
    }
}
