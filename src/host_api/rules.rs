//! `/rules`, `/rule/ID`, `/rules/reload`, `/rule/evaluate`, `/rule/test`

use std::time::Duration;

use crate::api::{EvaluateRequest, RuleTest};
use crate::daemon::Subsystem;
use crate::rule_engine::RuleEngineCommand;
use crate::unix_http::{Answer, Response};

use super::api::Api;
use super::call::Call;
use super::respond::{failed, ok};

/// Compiling the largest rule set takes 2 s, and every thread has to take the new snapshot.
const RELOAD_LIMIT: Duration = Duration::from_secs(60);
/// The guarded child has its own, shorter limit; this is for a queue before it.
const TEST_LIMIT: Duration = Duration::from_secs(20);

pub(super) fn list(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    Ok(Answer::Now(ok(api.snapshot.rules.summaries())))
}

pub(super) fn show(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let rule = api.snapshot.rules.detail(&call.name);
    let rule =
        rule.ok_or_else(|| failed(404, format!("no rule has the id `{}`; `outcall rules list` shows all", call.name)))?;
    Ok(Answer::Now(ok(rule)))
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

pub(super) fn evaluate(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let question: EvaluateRequest = call.body()?;
    let verdict = api.snapshot.rules.evaluate(&question).map_err(|error| failed(400, format!("context: {error}")))?;
    Ok(Answer::Now(ok(verdict)))
}

pub(super) fn test(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let question: RuleTest = call.body()?;
    let owner = api.links.rule_engine.clone();
    let command = |reply| RuleEngineCommand::Test(question, reply);
    api.ask(call.ticket, (Subsystem::RuleEngine, &owner), TEST_LIMIT, command, ok)
}
