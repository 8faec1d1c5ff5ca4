//! `/health`: does every thread answer? `/ready`: does every part work?

use std::collections::BTreeSet;
use std::time::Duration;

use crate::agent_api::AgentApiCommand;
use crate::api::{Envelope, Health, PartState, Ready};
use crate::authority::LeavesCommand;
use crate::bridge::BridgeCommand;
use crate::daemon::Subsystem;
use crate::daemon::control::ControlMessage;
use crate::dns::DnsCommand;
use crate::docker_manager::DockerCommand;
use crate::event_loop::{Address, Reply};
use crate::events::EventsCommand;
use crate::proxy::ProxyCommand;
use crate::rule_engine::RuleEngineCommand;
use crate::unix_http::{Answer, Response, Ticket};

use super::api::Api;
use super::call::Call;
use super::links::HostApiCommand;
use super::respond::{json, ok};

/// A loop that does not get to its mailbox within this is stuck.
const PING_LIMIT: Duration = Duration::from_secs(1);

pub(super) fn health(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    Ok(ask(api, call.ticket, PING_LIMIT))
}

/// The same question for somebody who has no connection here.
pub(super) fn begin(api: &mut Api, limit: Duration, reply: Reply<Vec<&'static str>>) {
    let ticket = api.detached();
    api.watchers.insert(ticket, reply);
    ask(api, ticket, limit);
}

fn ask(api: &mut Api, ticket: Ticket, limit: Duration) -> Answer {
    let mut asked = BTreeSet::from([
        Subsystem::Control,
        Subsystem::Bridge,
        Subsystem::DockerManager,
        Subsystem::Dns,
        Subsystem::RuleEngine,
        Subsystem::Events,
        Subsystem::AgentApi,
    ]);
    let links = &api.links;
    let own = &links.own;
    // A ping that cannot be delivered stays out, and so is named when the time is over.
    ping(own, ticket, Subsystem::Control, &links.control, ControlMessage::Ping);
    ping(own, ticket, Subsystem::Bridge, &links.bridge, BridgeCommand::Ping);
    ping(own, ticket, Subsystem::DockerManager, &links.docker, DockerCommand::Ping);
    ping(own, ticket, Subsystem::Dns, &links.dns, DnsCommand::Ping);
    ping(own, ticket, Subsystem::RuleEngine, &links.rule_engine, RuleEngineCommand::Ping);
    let _ = links.events.try_send(EventsCommand::Ping(alive(own, ticket, Subsystem::Events)));
    // The keeper of rule requests is not asked: it blocks on the disk and the rule checker, and nobody's traffic waits
    // for it.
    ping(own, ticket, Subsystem::AgentApi, &links.agent_api, AgentApiCommand::Ping);
    if let Some(proxy) = &links.proxy {
        asked.insert(Subsystem::Proxy);
        ping(own, ticket, Subsystem::Proxy, proxy, ProxyCommand::Ping);
    }
    if let Some(leaves) = &links.leaves {
        asked.insert(Subsystem::Leaves);
        let _ = leaves.try_send(LeavesCommand::Ping(alive(own, ticket, Subsystem::Leaves)));
    }
    api.wait_for_pings(ticket, asked.clone(), asked, limit)
}

fn ping<C>(
    own: &Address<HostApiCommand>,
    ticket: Ticket,
    subsystem: Subsystem,
    address: &Address<C>,
    command: fn(Reply<()>) -> C,
) {
    let _ = address.send(command(alive(own, ticket, subsystem)));
}

/// Puts the sign of life into this thread's own mailbox.
fn alive(own: &Address<HostApiCommand>, ticket: Ticket, subsystem: Subsystem) -> Reply<()> {
    let own = own.clone();
    Reply::new(move |()| {
        let _ = own.send(HostApiCommand::Alive(ticket, subsystem));
    })
}

/// The answer when all pings came back: this thread is alive too.
pub(super) fn healthy(asked: &BTreeSet<Subsystem>) -> Response {
    let alive = asked.iter().chain([&Subsystem::HostApi]);
    ok(Health { healthy: true, subsystems: alive.map(|subsystem| subsystem.name().to_owned()).collect() })
}

pub(super) fn ready(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let readiness = &api.links.readiness;
    let parts = readiness
        .parts()
        .into_iter()
        .map(|(name, state)| (name.to_owned(), PartState { ok: state.is_ok(), reason: state.err() }))
        .collect();
    Ok(Answer::Now(readiness_response(Ready { ready: true, parts, warnings: readiness.warnings() })))
}

/// 200 when every part works, else 503 with the reasons in the error and the parts in the data.
fn readiness_response(mut state: Ready) -> Response {
    let missing: Vec<String> = state
        .parts
        .iter()
        .filter(|(_, part)| !part.ok)
        .map(|(name, part)| format!("{name}: {}", part.reason.as_deref().unwrap_or("no reason given")))
        .collect();
    if missing.is_empty() {
        return ok(state);
    }
    state.ready = false;
    let error = format!("not ready: {}", missing.join("; "));
    json(503, &Envelope { success: false, data: Some(state), error: Some(error) })
}
