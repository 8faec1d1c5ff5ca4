//! `/explain`

use std::time::Duration;

use crate::api::ExplainRequest;
use crate::daemon::Subsystem;
use crate::dns::DnsCommand;
use crate::explain::{ProxyWay, Question, Unexplained};
use crate::unix_http::{Answer, Response};

use super::api::Api;
use super::call::Call;
use super::respond::{failed, ok};

/// A name is resolved as for the proxy: A, then AAAA, 4.5 s each.
const LIMIT: Duration = Duration::from_secs(15);

pub(super) fn explain(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let request: ExplainRequest = call.body()?;
    let proxy = api.config.proxy.map_or(ProxyWay::Absent, ProxyWay::Present);
    let question = Question::read(&request, &api.snapshot, proxy).map_err(|error| match error {
        Unexplained::Malformed(text) => failed(400, text),
        Unexplained::NoContainer(text) => failed(404, text),
    })?;
    let Some(name) = question.wants() else { return Ok(Answer::Now(ok(question.answer(&None)))) };
    let owner = api.links.dns.clone();
    let command = |reply| DnsCommand::Resolve(name, reply);
    api.ask(call.ticket, (Subsystem::Dns, &owner), LIMIT, command, move |resolved| ok(question.answer(&Some(resolved))))
}
