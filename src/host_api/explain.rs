//! `/explain`

use std::net::IpAddr;
use std::time::Duration;

use crate::api::ExplainRequest;
use crate::bridge::BridgeCommand;
use crate::daemon::Subsystem;
use crate::dns::{DnsCommand, ResolveError};
use crate::event_loop::{Address, Reply, SendError};
use crate::explain::{Open, ProxyWay, Question, Resolved, Unexplained};
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
    let (bridge, dns) = (api.links.bridge.clone(), api.links.dns.clone());
    match (question.wants(), question.wants_flows()) {
        (None, false) => Ok(Answer::Now(ok(question.answer(&None, &Ok(Vec::new()))))),
        (None, true) => {
            let answer = move |open| ok(question.answer(&None, &open));
            api.ask(call.ticket, (Subsystem::Bridge, &bridge), LIMIT, BridgeCommand::Grants, answer)
        }
        (Some(name), wants_flows) => {
            let command =
                |reply: Reply<(Resolved, Open)>| DnsCommand::Resolve(name, then_flows(reply, wants_flows, bridge));
            let answer = move |(resolved, open)| ok(question.answer(&resolved, &open));
            api.ask(call.ticket, (Subsystem::Dns, &dns), LIMIT, command, answer)
        }
    }
}

/// Takes what DNS says and has the bridge add the flows that are open, if they are wanted.
fn then_flows(
    reply: Reply<(Resolved, Open)>,
    wanted: bool,
    bridge: Address<BridgeCommand>,
) -> Reply<Result<Vec<IpAddr>, ResolveError>> {
    Reply::new(move |resolved| {
        if !wanted {
            return reply.send((Some(resolved), Ok(Vec::new())));
        }
        let reply = Reply::new(move |open| reply.send((Some(resolved), open)));
        let refused = bridge.send(BridgeCommand::Grants(reply));
        if let Err(SendError::Full(BridgeCommand::Grants(reply)) | SendError::Closed(BridgeCommand::Grants(reply))) =
            refused
        {
            reply.send(Err(format!("{} takes no questions", Subsystem::Bridge)));
        }
    })
}
