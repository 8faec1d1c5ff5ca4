//! `/requests/rules`, `/requests/rules/ID/approve`, `/requests/rules/ID/reject`

use std::time::Duration;

use serde::Serialize;

use crate::api::{RuleRequestApprove, RuleRequestReject};
use crate::daemon::Subsystem;
use crate::event_loop::Reply;
use crate::state::{RequestFailure, RequestsCommand};
use crate::unix_http::{Answer, Response};

use super::api::Api;
use super::call::{Call, flag};
use super::respond::{failed, ok};

/// The keeper checks submissions one after the other, up to 2 s each.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// A reload with the new file in it, and a wait in the keeper's queue.
const APPROVE_LIMIT: Duration = Duration::from_secs(80);

pub(super) fn list(api: &mut Api, call: Call) -> Result<Answer, Response> {
    let [all_agents] = call.query(["all_agents"])?;
    let all_agents = flag("all_agents", all_agents.as_deref())?;
    ask(api, &call, ASK_LIMIT, |reply| RequestsCommand::List { all_agents, reply })
}

pub(super) fn approve(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let RuleRequestApprove { all_agents } = call.body()?;
    let id = call.name.clone();
    ask(api, &call, APPROVE_LIMIT, |reply| RequestsCommand::Approve { id, all_agents, reply })
}

pub(super) fn reject(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let RuleRequestReject { reason } = call.body()?;
    let id = call.name.clone();
    ask(api, &call, ASK_LIMIT, |reply| RequestsCommand::Reject { id, reason, reply })
}

fn ask<T: Serialize + Send + 'static>(
    api: &mut Api,
    call: &Call,
    limit: Duration,
    command: impl FnOnce(Reply<Result<T, RequestFailure>>) -> RequestsCommand,
) -> Result<Answer, Response> {
    let owner = api.links.requests.clone();
    api.ask(call.ticket, (Subsystem::RuleRequests, &owner), limit, command, |answer| match answer {
        Ok(data) => ok(data),
        Err(RequestFailure::Unknown(error)) => {
            failed(404, format!("{error}; `outcall requests list` shows those that wait"))
        }
        Err(RequestFailure::Conflict(error)) => failed(409, error),
        Err(RequestFailure::Invalid(error)) => failed(422, error),
        Err(RequestFailure::TooMany(error)) => failed(503, error),
        Err(RequestFailure::Failed(error)) => failed(500, error),
    })
}

/// ID of `/requests/rules/ID/VERB`.
pub(super) fn request_id<'p>(path: &'p str, verb: &str) -> Option<&'p str> {
    let id = path.strip_prefix("/requests/rules/")?.strip_suffix(verb)?.strip_suffix('/')?;
    (!id.is_empty() && !id.contains('/')).then_some(id)
}
