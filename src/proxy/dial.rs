//! From a name to a connection: resolve, vet each address, connect to the vetted ones in turn.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::bridge::is_this_host;
use crate::dns::{DnsCommand, ResolveError};
use crate::docker_manager::Peer;
use crate::event_loop::Reply;
use crate::events::{Event, Verdict as EventVerdict};
use crate::names::Host;
use crate::rule_engine::{Rule, RuleSet};

use super::answer::Answer;
use super::intercept::{body, opening, upstream};
use super::judge::{Facts, Refused, Verdict};
use super::leg::Leg;
use super::session::{Core, Next, Request, Session, State, Upstream};
use super::table::Side;
use super::{ProxyCommand, closing, exchange, report, request, tunnel};

/// Addresses of one name that are judged.
pub(super) const ADDRESSES_MAX: usize = 32;

/// Vetted addresses that are tried.
const TRIES_MAX: usize = 4;

/// A connection in the making.
pub(super) struct Dialling {
    request: Box<Request>,
    /// What is left to try, the next one last.
    left: Vec<SocketAddr>,
    what_failed: &'static str,
}

/// Finds the addresses of an allowed request's host.
pub(super) fn find(session: &mut Session, core: &mut Core, request: Box<Request>) -> Next {
    let name = match &request.facts.host {
        Host::Address(address) => {
            let address = *address;
            return choose(session, core, request, vec![address]);
        }
        Host::Name(name) => name.clone(),
    };
    let (own, id) = (core.links.own.clone(), session.client.id);
    let reply = Reply::new(move |result| {
        // A full mailbox loses the answer: the session's deadline ends it then.
        let _ = own.send(ProxyCommand::Resolved { session: id, result });
    });
    if core.links.dns.send(DnsCommand::Resolve(name, reply)).is_err() {
        return unresolved(session, core, &request, 502, "the resolver is overloaded");
    }
    session.due.set(core.now + core.config.times.resolve);
    Next::Wait(State::Resolving(request))
}

/// The DNS thread has answered.
pub(super) fn resolved(
    session: &mut Session,
    core: &mut Core,
    request: Box<Request>,
    result: Result<Vec<IpAddr>, ResolveError>,
) -> Next {
    match result {
        Ok(addresses) => choose(session, core, request, addresses),
        Err(error) => {
            let (status, text) = match error {
                ResolveError::NoSuchName => (502, "its name does not exist"),
                ResolveError::NoAddress => (502, "its name has no address"),
                ResolveError::Timeout => (504, "its name was not resolved in time"),
                ResolveError::Failed => (502, "its name could not be resolved"),
            };
            unresolved(session, core, &request, status, text)
        }
    }
}

/// Answers a request whose name gave no address.
pub(super) fn unresolved(session: &mut Session, core: &mut Core, request: &Request, status: u16, text: &str) -> Next {
    let refused = Refused::because("unresolved");
    report::refused(core, &session.client, &request.facts, &refused, request.begun);
    failed(session, core, request, status, text)
}

/// Vets the addresses and dials the first that may be.
fn choose(session: &mut Session, core: &mut Core, request: Box<Request>, mut addresses: Vec<IpAddr>) -> Next {
    // Most hosts of containers have no IPv6 route: IPv4 first.
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.dedup();
    let mut vetted: Vec<(SocketAddr, Option<Arc<Rule>>)> = Vec::new();
    let mut refusal = None;
    for address in addresses.into_iter().take(ADDRESSES_MAX) {
        let address = SocketAddr::new(address.to_canonical(), request.facts.port);
        match vet_now(core, &request.facts, &session.client.peer, address) {
            // Nothing is dialled for a CONNECT that is decrypted: its requests are vetted, address by address.
            Verdict::Intercept { rule } if request.answered.is_none() => {
                return opening::begin(session, core, request, address, &rule);
            }
            Verdict::Intercept { rule } => {
                refusal.get_or_insert(intercept_now(rule, address));
            }
            Verdict::Allow { rule } => vetted.push((address, rule)),
            Verdict::Block(refused) => {
                refusal.get_or_insert(refused);
            }
        }
    }
    vetted.truncate(TRIES_MAX);
    vetted.reverse();
    match (vetted.last(), refusal) {
        (Some((address, rule)), _) => {
            let at = (*address, request.begun);
            report::allowed(core, &session.client, &request.facts, rule.clone(), at);
        }
        (None, Some(refused)) => return request::blocked(session, core, &request, &refused),
        (None, None) => return unresolved(session, core, &request, 502, "its name has no address"),
    }
    let left = vetted.into_iter().map(|(address, _)| address).collect();
    dial(session, core, request, left)
}

/// Judges a connection to `address`, which may be this proxy's own (`is_own`). `is_here` tells whether it is one of
/// this host: a service of the host on its public address is no more the container's business than one on loopback,
/// unless the rule opens what is private.
pub(super) fn vet(
    facts: &Facts,
    rules: &RuleSet,
    peer: &Peer,
    address: SocketAddr,
    is_own: bool,
    is_here: impl FnOnce(IpAddr) -> bool,
) -> Verdict {
    match facts.judge_address(rules, peer, address.ip()) {
        Verdict::Allow { rule } if is_own || !opens_private(rule.as_deref()) && is_here(address.ip()) => {
            Verdict::Block(Refused { rule, reason: "own_address", address: Some(address.ip()) })
        }
        verdict => verdict,
    }
}

fn opens_private(rule: Option<&Rule>) -> bool {
    rule.and_then(|rule| rule.egress.as_ref()).is_some_and(|egress| egress.allow_private_ips)
}

/// Judges a connection to `address` by what is known now.
pub(super) fn vet_now(core: &Core, facts: &Facts, peer: &Peer, address: SocketAddr) -> Verdict {
    vet(facts, &core.snapshot.rules, peer, address, core.listeners.is_own(address, false), is_this_host)
}

/// Judges what is to go on a connection that is made. Whether that ends at this host was found out then, and stays
/// so: an address that moves takes no connection with it.
pub(super) fn vet_made(core: &Core, facts: &Facts, peer: &Peer, upstream: &Upstream) -> Verdict {
    let (address, here) = (upstream.address, upstream.is_here);
    vet(facts, &core.snapshot.rules, peer, address, core.listeners.is_own(address, here), |_| here)
}

/// Sends a request on the session's upstream connection, if it may still go there: the rules may be others than those
/// that had it dialled, and nobody takes back what was sent.
pub(super) fn send(session: &mut Session, core: &mut Core, request: Box<Request>) -> Next {
    let Some(upstream) = &session.upstream else { return Next::End };
    if request.facts.wants_body(&core.snapshot.rules, &session.client.peer) {
        // Only the new rules look into it.
        session.upstream = None;
        return body::begin(session, core, request);
    }
    let refused = match vet_made(core, &request.facts, &session.client.peer, upstream) {
        Verdict::Allow { .. } => return exchange::begin(session, core, request),
        Verdict::Intercept { rule } => intercept_now(rule, upstream.address),
        Verdict::Block(refused) => refused,
    };
    session.upstream = None;
    request::blocked(session, core, &request, &refused)
}

/// What would go on unseen would have to be seen now.
fn intercept_now(rule: Arc<Rule>, address: SocketAddr) -> Refused {
    Refused { rule: Some(rule), reason: "intercept_now", address: Some(address.ip()) }
}

impl Dialling {
    /// Drops the addresses that may not be tried any more. The one that is being tried is judged when it is there.
    pub(super) fn review(&mut self, core: &Core, peer: &Peer) {
        let facts = &self.request.facts;
        self.left.retain(|address| matches!(vet_now(core, facts, peer, *address), Verdict::Allow { .. }));
    }
}

/// Dials once more where a kept connection has just ended: the address may be this host's by now, and the connection
/// has ended for that.
pub(super) fn anew(session: &mut Session, core: &mut Core, request: Box<Request>, address: SocketAddr) -> Next {
    let refused = match vet_now(core, &request.facts, &session.client.peer, address) {
        Verdict::Allow { .. } => return dial(session, core, request, vec![address]),
        Verdict::Intercept { rule } => intercept_now(rule, address),
        Verdict::Block(refused) => refused,
    };
    session.upstream = None;
    request::blocked(session, core, &request, &refused)
}

/// Dials addresses that were vetted, the last one first.
fn dial(session: &mut Session, core: &mut Core, request: Box<Request>, left: Vec<SocketAddr>) -> Next {
    let dialling = Dialling { request, left, what_failed: "connection refused" };
    dial_next(session, core, Box::new(dialling), 502)
}

/// Begins the next handshake; `status` is the answer when none is left.
fn dial_next(session: &mut Session, core: &mut Core, mut dialling: Box<Dialling>, status: u16) -> Next {
    session.upstream = None;
    while let Some(address) = dialling.left.pop() {
        let token = session.client.id.token(Side::Upstream);
        match Leg::connect(address, &core.registry, token) {
            Ok(leg) => {
                let times = &core.config.times;
                let limit = if dialling.left.is_empty() { times.connect } else { times.connect_next };
                session.due.set(core.now + limit);
                let facts = &dialling.request.facts;
                let (host, port) = (facts.host_text.clone(), facts.port);
                session.upstream = Some(Upstream { leg, address, is_here: true, host, port, used: false });
                return Next::Wait(State::Dialling(dialling));
            }
            Err(error) => {
                tracing::debug!(target: "proxy", %address, %error, "cannot connect");
                dialling.what_failed = "cannot connect";
            }
        }
    }
    let event = report::event(&session.client, EventVerdict::Block, "connect_failed");
    let facts = &dialling.request.facts;
    core.links.events.record(Event {
        host: Some((&facts.host_text).into()),
        port: Some(facts.port),
        protocol: Some("tcp"),
        ..event
    });
    failed(session, core, &dialling.request, status, dialling.what_failed)
}

/// Looks whether the handshake is done.
pub(super) fn step(session: &mut Session, core: &mut Core, mut dialling: Box<Dialling>) -> Next {
    let Some(upstream) = &mut session.upstream else {
        return dial_next(session, core, dialling, 502);
    };
    if !upstream.leg.is_writable() {
        return Next::Wait(State::Dialling(dialling));
    }
    let address = upstream.address;
    if !upstream.leg.is_connected() {
        let error = match upstream.leg.take_error() {
            Ok(None) => {
                // An event of the socket that had this token before.
                upstream.leg.not_yet_writable();
                return Next::Wait(State::Dialling(dialling));
            }
            Ok(Some(error)) | Err(error) => error,
        };
        tracing::debug!(target: "proxy", %address, %error, "cannot connect");
        dialling.what_failed = "the connection was refused";
        return dial_next(session, core, dialling, 502);
    }
    upstream.is_here = is_this_host(address.ip());
    // A wildcard listener answers on addresses that only the kernel knows to be this host's.
    if core.listeners.is_own(address, upstream.is_here) {
        session.upstream = None;
        let refused = Refused { address: Some(address.ip()), ..Refused::because("own_address") };
        return request::blocked(session, core, &dialling.request, &refused);
    }
    let request = dialling.request;
    if !request.is_connect() && request.facts.scheme != "https" {
        return send(session, core, request);
    }
    // The rules may be others than those that had it dialled.
    let refused = match vet_made(core, &request.facts, &session.client.peer, upstream) {
        Verdict::Allow { .. } if request.is_connect() => return tunnel::open(session, core, request),
        Verdict::Allow { .. } => return upstream::begin(session, core, request),
        Verdict::Intercept { rule } if request.is_connect() && request.answered.is_none() => {
            session.upstream = None;
            return opening::begin(session, core, request, address, &rule);
        }
        Verdict::Intercept { rule } => intercept_now(rule, address),
        Verdict::Block(refused) => refused,
    };
    session.upstream = None;
    request::blocked(session, core, &request, &refused)
}

/// The handshake took too long.
pub(super) fn timed_out(session: &mut Session, core: &mut Core, mut dialling: Box<Dialling>) -> Next {
    dialling.what_failed = "the connection was not made in time";
    dial_next(session, core, dialling, 504)
}

/// Answers a request that could not be carried out.
pub(super) fn failed(session: &mut Session, core: &mut Core, request: &Request, status: u16, text: &str) -> Next {
    let facts = &request.facts;
    tracing::debug!(target: "proxy", host = %facts.host_text, port = facts.port, status, text, "failed");
    if request.answered.is_some() {
        return Next::End;
    }
    let text = format!("{}:{}: {text}", facts.host_text, facts.port);
    closing::respond(session, core, &Answer::failure(status, &text), &request.head)
}
