//! Reading a request and finding out where it wants to go.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::docker_manager::Peer;
use crate::events::{Event, Layer, Verdict as EventVerdict};
use crate::http1::{Authority, BodyFraming, Parse, RequestHead, Target};
use crate::names::Host;

use super::answer::Answer;
use super::intercept::body;
use super::judge::{Facts, Refused, Verdict, has_dot_segment};
use super::leg::ReadOutcome;
use super::session::{Core, Inside, Next, Request, Session, State};
use super::{closing, dial, exchange, report};

/// The path that tells that the proxy lives, for anybody it serves and for the host itself.
const HEALTH: &str = "/outcall-health";

/// The default port of plain HTTP.
const HTTP_PORT: u16 = 80;

/// Where a request goes, or the answer it gets.
pub(super) enum Route {
    Forward { host: Host, port: u16, path: Box<str> },
    Connect { host: Host, port: u16 },
    Health,
    Refuse { status: u16, code: &'static str, text: String },
}

/// Reads up to the end of a head.
pub(super) fn read_head(session: &mut Session, core: &mut Core, mut begun: bool) -> Next {
    // Answers go out in order, and before more is asked: a client that does not read gets no further.
    match session.client.leg.flush() {
        Ok(true) => {}
        Ok(false) => return Next::Wait(State::Head { begun }),
        Err(_) => return Next::End,
    }
    drop_stale_upstream(session, core);
    loop {
        let leg = &mut session.client.leg;
        if !leg.input.is_empty() {
            if !begun {
                begun = true;
                if let Some(decrypted) = session.inside.as_mut().and_then(|inside| inside.decrypted.as_mut()) {
                    decrypted.asked = true;
                }
                session.due.set(core.now + core.config.times.head);
            }
            match RequestHead::parse(&leg.input) {
                Parse::Parsed { head, consumed } => {
                    leg.consume(consumed);
                    return begin(session, core, head);
                }
                Parse::Refused(refusal) => {
                    core.requests += 1;
                    return refuse(session, core, refusal.status(), refusal.code(), &refusal.to_string());
                }
                Parse::Incomplete => {}
            }
        }
        match leg.fill(&mut core.scratch) {
            Ok(ReadOutcome::Bytes(_)) => {}
            Ok(ReadOutcome::Blocked) => return Next::Wait(State::Head { begun }),
            Ok(ReadOutcome::Ended) | Err(_) => return Next::End,
        }
    }
}

/// An idle upstream connection that says something is closed or confused: either way it is not used again.
fn drop_stale_upstream(session: &mut Session, core: &mut Core) {
    if let Some(upstream) = &mut session.upstream
        && upstream.used
        && upstream.leg.is_readable()
        && upstream.leg.read(&mut core.scratch).ok() != Some(ReadOutcome::Blocked)
    {
        session.upstream = None;
    }
}

fn begin(session: &mut Session, core: &mut Core, head: RequestHead) -> Next {
    core.requests += 1;
    if session.client.layer == Layer::Intercept
        && let Some(interception) = &mut core.config.interception
    {
        interception.counters.intercepted += 1;
    }
    session.due.set(core.now + core.config.times.resolve);
    let route = match &session.inside {
        None => route(&|address| core.listeners.is_own(address, false), &head),
        Some(inside) => route_inside(inside, &head),
    };
    if let Route::Health = route {
        return closing::respond(session, core, &Answer::health(), &head);
    }
    if matches!(session.client.peer, Peer::Stranger | Peer::Unasked) {
        return session.turn_away(core);
    }
    let decrypted = session.inside.as_mut().and_then(|inside| inside.decrypted.as_mut());
    let facts = match route {
        Route::Forward { host, port, path } => {
            let facts = Facts::of_request(&head, host, port, &path);
            match decrypted {
                Some(decrypted) => facts.decrypted(Arc::clone(&decrypted.hello)),
                None => facts,
            }
        }
        Route::Connect { host, port } => Facts::of_connect(&head, host, port),
        Route::Refuse { status, code, text } => return refuse(session, core, status, code, &text),
        // Answered above.
        Route::Health => return Next::End,
    };
    // What is spoken inside a tunnel belongs to it; any other request is an attempt of its own.
    if session.inside.is_none() {
        session.client.flow = report::flow(&core.links.events, &session.client, &facts);
    }
    let request = Box::new(Request { head, facts, begun: std::time::Instant::now(), answered: None });
    if core.stopping {
        return closing::respond(session, core, &Answer::failure(503, "the daemon stops"), &request.head);
    }
    body::begin(session, core, request)
}

/// Judges a request that is there as far as it is needed, and sends it on its way.
pub(super) fn admit(session: &mut Session, core: &mut Core, request: Box<Request>) -> Next {
    session.due.set(core.now + core.config.times.resolve);
    // Judged by the address it goes to, which no verdict by name overrules: that one only saves a question for a name.
    if !request.is_connect() && has_usable_upstream(session, core, &request) {
        return exchange::begin(session, core, request);
    }
    match request.facts.judge_name(&core.snapshot.rules, &session.client.peer) {
        Verdict::Block(refused) => blocked(session, core, &request, &refused),
        Verdict::Allow { .. } | Verdict::Intercept { .. } => {
            session.upstream = None;
            dial::find(session, core, request)
        }
    }
}

/// Whether the connection that is open already may carry the request. Once used, only for requests that can be sent
/// again if the server closes it meanwhile (RFC 9110 9.2.1), and without a body.
fn has_usable_upstream(session: &mut Session, core: &mut Core, request: &Request) -> bool {
    let Some(upstream) = &session.upstream else { return false };
    let repeatable = matches!(&*request.head.method, "GET" | "HEAD" | "OPTIONS")
        && matches!(request.head.framing, BodyFraming::None | BodyFraming::Length(0));
    if upstream.host != request.facts.host_text
        || upstream.port != request.facts.port
        || upstream.leg.is_secured() != (request.facts.scheme == "https")
        || (upstream.used && !repeatable)
    {
        return false;
    }
    match dial::vet_made(core, &request.facts, &session.client.peer, upstream) {
        Verdict::Allow { rule } => {
            report::allowed(core, &session.client, &request.facts, rule, (upstream.address, request.begun));
            true
        }
        // The name may have another address that is allowed: it is resolved anew and judged in full.
        Verdict::Intercept { .. } | Verdict::Block(_) => false,
    }
}

/// Refuses by policy, with an event.
pub(super) fn blocked(session: &mut Session, core: &mut Core, request: &Request, refused: &Refused) -> Next {
    let facts = &request.facts;
    report::refused(core, &session.client, facts, refused, request.begun);
    if request.answered.is_some() {
        return Next::End;
    }
    closing::respond(session, core, &Answer::refusal(refused, request), &request.head)
}

/// Refuses what has no one reading, with an event, and ends the connection: what follows has none either.
pub(super) fn refuse(session: &mut Session, core: &mut Core, status: u16, code: &'static str, text: &str) -> Next {
    core.count_blocked(session.client.layer);
    let event = report::event(&session.client, EventVerdict::Block, code);
    let event = match session.inside.as_deref() {
        Some(Inside { authority, decrypted: Some(_) }) => {
            let host = Some((&authority.host.to_text().into_boxed_str()).into());
            Event { host, port: authority.port, protocol: Some("https"), ..event }
        }
        _ => Event { protocol: Some("http"), ..event },
    };
    core.links.events.record(event);
    tracing::debug!(target: "proxy", peer = %session.client.address, code, "refused");
    closing::last_answer(session, core, &Answer::failure(status, text))
}

/// Where a request goes that is none of a tunnel's; `is_own` knows the addresses of this proxy.
pub(super) fn route(is_own: &dyn Fn(SocketAddr) -> bool, head: &RequestHead) -> Route {
    let target = match Target::parse(&head.method, &head.target) {
        Ok(target) => target,
        Err(error) => return bad("bad_target", &error.to_string()),
    };
    let readable = matches!(&*head.method, "GET" | "HEAD");
    match target {
        Target::Origin(path) if readable && path.split('?').next() == Some(HEALTH) => Route::Health,
        Target::Origin(_) | Target::Asterisk => {
            bad("not_a_proxy_request", "this is a proxy: it wants http://host/path or CONNECT host:port")
        }
        Target::Absolute { scheme, .. } if &*scheme != "http" => {
            bad("bad_scheme", "only http:// goes in a proxy request; for https use CONNECT")
        }
        Target::Absolute { authority, path, .. } => {
            let port = authority.port_or(HTTP_PORT);
            if let Err(text) = host_agrees(head, &authority, HTTP_PORT) {
                return bad("host_mismatch", text);
            }
            if let Host::Address(address) = authority.host
                && readable
                && path.split('?').next() == Some(HEALTH)
                && is_own(SocketAddr::new(address, port))
            {
                return Route::Health;
            }
            forward(authority.host, port, path)
        }
        Target::Authority(authority) => connect(is_own, head, authority),
    }
}

fn connect(is_own: &dyn Fn(SocketAddr) -> bool, head: &RequestHead, authority: Authority) -> Route {
    if !matches!(head.framing, BodyFraming::None | BodyFraming::Length(0)) {
        return bad("connect_with_body", "CONNECT has no body");
    }
    // Clients send Host with CONNECT with and without the port.
    let port = authority.port_or(HTTP_PORT);
    match host_agrees(head, &authority, port) {
        Ok(()) => Route::Connect { host: authority.host, port },
        // Node's undici names the proxy itself. The Host of a CONNECT goes no further, so nobody reads it another way.
        Err(_) if names_this_proxy(is_own, head) => Route::Connect { host: authority.host, port },
        Err(text) => bad("host_mismatch", text),
    }
}

fn names_this_proxy(is_own: &dyn Fn(SocketAddr) -> bool, head: &RequestHead) -> bool {
    let named = head.fields.first("host").map(|host| Authority::parse(&String::from_utf8_lossy(host)));
    match named {
        Some(Ok(Authority { host: Host::Address(address), port })) => {
            is_own(SocketAddr::new(address, port.unwrap_or(HTTP_PORT)))
        }
        _ => false,
    }
}

/// HTTP inside a CONNECT: only ever to the authority that it was opened, or decrypted, for.
fn route_inside(inside: &Inside, head: &RequestHead) -> Route {
    let authority = &inside.authority;
    let (scheme, mismatch) = match inside.decrypted {
        Some(_) => ("https", 421),
        None => ("http", 400),
    };
    let port = authority.port_or(HTTP_PORT);
    if &*head.method == "CONNECT" {
        return bad("connect_inside_tunnel", "CONNECT inside a tunnel");
    }
    let path = match Target::parse(&head.method, &head.target) {
        Ok(Target::Origin(path)) => path,
        Ok(Target::Asterisk) => "*".into(),
        Ok(Target::Absolute { scheme: named_scheme, authority: named, path })
            if &*named_scheme == scheme && named.host == authority.host && named.port_or(port) == port =>
        {
            path
        }
        Ok(_) => return misdirected(mismatch, "another authority than the tunnel's"),
        Err(error) => return bad("bad_target", &error.to_string()),
    };
    if head.fields.first("host").is_none() {
        return bad("host_missing", "no Host field");
    }
    match host_agrees(head, authority, port) {
        Ok(()) => forward(authority.host.clone(), port, path),
        Err(text) => misdirected(mismatch, text),
    }
}

fn misdirected(status: u16, text: &str) -> Route {
    Route::Refuse { status, code: "host_mismatch", text: text.to_owned() }
}

fn forward(host: Host, port: u16, path: Box<str>) -> Route {
    if has_dot_segment(&path) {
        return bad("dot_segment", "the path has a segment '.' or '..', which rules and servers read differently");
    }
    Route::Forward { host, port, path }
}

/// A Host field, where there is one, names the same host and port.
fn host_agrees(head: &RequestHead, authority: &Authority, default_port: u16) -> Result<(), &'static str> {
    let Some(field) = head.fields.first("host") else { return Ok(()) };
    let named = std::str::from_utf8(field).ok().and_then(|text| Authority::parse(text).ok());
    let agrees = named.is_some_and(|named| {
        named.host == authority.host && named.port_or(default_port) == authority.port_or(default_port)
    });
    if agrees { Ok(()) } else { Err("the Host field names another host or port than the request") }
}

fn bad(code: &'static str, text: &str) -> Route {
    Route::Refuse { status: 400, code, text: text.to_owned() }
}
