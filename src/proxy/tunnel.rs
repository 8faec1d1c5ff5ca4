//! CONNECT: opened, judged again by what the client says inside, then copied until both ends are done.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::http1::{Authority, Parse, RequestHead};

use super::client_hello::{ClientHello, HelloRead, read_client_hello};
use super::intercept::opening;
use super::judge::{Facts, Refused, Standing, TlsFacts, Verdict};
use super::leg::{Leg, READ_SIZE, ReadOutcome};
use super::session::{Core, Inside, Next, Request, Session, State};
use super::splice::{Pipe, Pipes};
use super::{closing, dial, report};

/// Reads in one turn of one direction, before the other direction and other sessions get theirs.
const READS_MAX: usize = 8;
/// Bytes in one turn of one direction, after which no further read begins: a pipe takes many reads' worth at once.
const TURN_BYTES: u64 = (READS_MAX * READ_SIZE) as u64;

/// A CONNECT that was answered with 200; nothing was passed on yet.
pub(super) struct Opened {
    pub(super) standing: Standing,
    pub(super) begun: Instant,
    /// The CONNECT, when it was to be decrypted and nothing was dialled for it.
    pub(super) unconnected: Option<Box<Request>>,
}

/// Bytes copied both ways.
pub(super) struct Tunnel {
    pub(super) standing: Standing,
    pub(super) begun: Instant,
    /// When a byte last moved.
    pub(super) last: Instant,
    up: Way,
    down: Way,
}

/// One direction of a tunnel.
#[derive(Default)]
struct Way {
    bytes: u64,
    /// Whether the last read gave all that it could: then the next goes through a pipe.
    bulk: bool,
    /// Lent while it holds bytes that the other side does not take yet.
    pipe: Option<Pipe>,
}

impl Tunnel {
    pub(super) fn new(standing: Standing, begun: Instant, now: Instant) -> Self {
        Tunnel { standing, begun, last: now, up: Way::default(), down: Way::default() }
    }
}

/// Answers a CONNECT whose upstream connection is made.
pub(super) fn open(session: &mut Session, core: &mut Core, request: Box<Request>) -> Next {
    let Some(upstream) = &session.upstream else { return Next::End };
    let address = upstream.address;
    let Request { facts, begun, answered, .. } = *request;
    if let Some(standing) = answered {
        let standing = Standing { address, ..standing };
        let vet = |facts: &Facts, address| dial::vet_now(core, facts, &session.client.peer, address);
        if let Some((refused, facts)) = standing.refused(vet) {
            report::refused(core, &session.client, facts, &refused, begun);
            return Next::End;
        }
        return copy(session, core, standing, begun);
    }
    let standing = Standing { facts: vec![facts], address };
    wait_for_hello(session, core, Opened { standing, begun, unconnected: None })
}

/// Answers a CONNECT that is to be decrypted: nothing is dialled for it.
pub(super) fn answer(session: &mut Session, core: &mut Core, request: Box<Request>, address: SocketAddr) -> Next {
    let standing = Standing { facts: vec![request.facts.clone()], address };
    let begun = request.begun;
    wait_for_hello(session, core, Opened { standing, begun, unconnected: Some(request) })
}

fn wait_for_hello(session: &mut Session, core: &mut Core, opened: Opened) -> Next {
    session.client.leg.output().extend_from_slice(b"HTTP/1.1 200 Connection established\r\n\r\n");
    session.due.set(core.now + core.config.times.hello);
    Next::Go(State::Hello(Box::new(opened)))
}

/// Reads what the client says first.
pub(super) fn read_hello(session: &mut Session, core: &mut Core, opened: Box<Opened>) -> Next {
    match session.client.leg.flush() {
        Ok(true) => {}
        Ok(false) => return Next::Wait(State::Hello(opened)),
        Err(_) => return Next::End,
    }
    loop {
        let leg = &mut session.client.leg;
        match read_client_hello(&leg.input) {
            HelloRead::Incomplete => {}
            HelloRead::Hello(hello) => return judge_hello(session, core, *opened, &hello),
            HelloRead::Refused(error) => return refuse(session, core, &opened, error.code()),
            HelloRead::NotTls => match speaks_http(&leg.input) {
                Some(true) => return speak_http(session, core, &opened),
                Some(false) => return refuse(session, core, &opened, "not_tls"),
                None => {}
            },
        }
        match session.client.leg.fill(&mut core.scratch) {
            Ok(ReadOutcome::Bytes(_)) => {}
            Ok(ReadOutcome::Blocked) => return Next::Wait(State::Hello(opened)),
            Ok(ReadOutcome::Ended) | Err(_) => return Next::End,
        }
    }
}

/// Whether `input` begins with an HTTP/1 request head; `None` while that is open.
fn speaks_http(input: &[u8]) -> Option<bool> {
    if let Some(end) = input.windows(2).position(|pair| pair == b"\r\n") {
        let line = &input[..end];
        if !(line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0")) {
            return Some(false);
        }
    } else if input.iter().take_while(|byte| **byte != b' ').any(|byte| !byte.is_ascii_uppercase() && *byte != b'-') {
        // No method in use has another byte: a binary protocol is told at its first bytes.
        return Some(false);
    }
    match RequestHead::parse(input) {
        Parse::Incomplete => None,
        Parse::Parsed { .. } => Some(true),
        Parse::Refused(_) => Some(false),
    }
}

/// Serves the tunnel as plain HTTP: every request in it is judged, and may only go to the CONNECT's authority.
fn speak_http(session: &mut Session, core: &mut Core, opened: &Opened) -> Next {
    let facts = &opened.standing.facts[0];
    let authority = Authority { host: facts.host.clone(), port: Some(facts.port) };
    session.inside = Some(Box::new(Inside { authority, decrypted: None }));
    closing::next_request(session, core)
}

/// Judges the tunnel by the CONNECT's host, now with what the hello says, and by the server name if it is another.
fn judge_hello(session: &mut Session, core: &mut Core, mut opened: Opened, hello: &ClientHello) -> Next {
    let address = opened.standing.address;
    let seen = Arc::new(TlsFacts::of(hello));
    let connect = opened.standing.facts[0].with_hello(&seen);
    let renamed = hello.sni.as_ref().filter(|sni| **sni != connect.host).map(|sni| connect.renamed(sni));
    opened.standing.facts[0] = connect;
    if let Some(facts) = renamed {
        opened.standing.facts.push(facts);
    }
    let mut rule = None;
    let mut intercepting = None;
    for facts in &opened.standing.facts {
        match dial::vet_now(core, facts, &session.client.peer, address) {
            Verdict::Allow { rule: allowing } => rule = allowing,
            Verdict::Intercept { rule } => intercepting = Some(rule),
            Verdict::Block(refused) => {
                report::refused(core, &session.client, facts, &refused, opened.begun);
                return Next::End;
            }
        }
    }
    if let Some(rule) = intercepting {
        return opening::hear(session, core, Box::new(opened), seen, &rule);
    }
    if let [_, named] = &opened.standing.facts[..] {
        report::allowed(core, &session.client, named, rule, (address, opened.begun));
    }
    match opened.unconnected.take() {
        // What the hello says let a rule match that wants no decryption.
        Some(mut request) => {
            request.facts = opened.standing.facts[0].clone();
            request.answered = Some(opened.standing);
            dial::find(session, core, request)
        }
        None => copy(session, core, opened.standing, opened.begun),
    }
}

/// Begins to copy.
fn copy(session: &mut Session, core: &mut Core, mut standing: Standing, begun: Instant) -> Next {
    standing.facts.shrink_to_fit();
    session.client.leg.shrink();
    session.due.set(core.now + core.config.times.tunnel_idle);
    Next::Go(State::Tunnel(Box::new(Tunnel::new(standing, begun, core.now))))
}

/// Closes a CONNECT that opens with something that is not served.
pub(super) fn refuse(session: &mut Session, core: &mut Core, opened: &Opened, reason: &'static str) -> Next {
    report::refused(core, &session.client, &opened.standing.facts[0], &Refused::because(reason), opened.begun);
    Next::End
}

/// Moves what can be moved.
pub(super) fn step(session: &mut Session, core: &mut Core, mut tunnel: Box<Tunnel>) -> Next {
    let Some(upstream) = &mut session.upstream else { return end(session, core, *tunnel, "closed") };
    let client = &mut session.client.leg;
    let up = relay(&mut tunnel.up, (client, &mut upstream.leg), &mut core.scratch, &mut core.pipes);
    let down = relay(&mut tunnel.down, (&mut upstream.leg, client), &mut core.scratch, &mut core.pipes);
    let (Ok(up), Ok(down)) = (up, down) else { return end(session, core, *tunnel, "closed") };
    tunnel.up.bytes += up;
    tunnel.down.bytes += down;
    if up + down > 0 {
        tunnel.last = core.now;
        session.due.set(core.now + core.config.times.tunnel_idle);
        return Next::Go(State::Tunnel(tunnel));
    }
    if upstream.leg.is_shut() && session.client.leg.is_shut() {
        return end(session, core, *tunnel, "closed");
    }
    Next::Wait(State::Tunnel(tunnel))
}

/// Moves bytes from one side to the other, as fast as the other takes them. How many were read.
fn relay(
    way: &mut Way,
    (from, to): (&mut Leg, &mut Leg),
    scratch: &mut [u8],
    pipes: &mut Pipes,
) -> std::io::Result<u64> {
    let mut moved = 0;
    // Inside TLS the kernel has records, not bytes to pass on: an upgraded connection of a decrypted session is copied.
    let plain = !from.is_secured() && !to.is_secured();
    for _ in 0..READS_MAX {
        if let Some(pipe) = &mut way.pipe
            && !to.drain_pipe(pipe)?
        {
            return Ok(moved);
        }
        if !to.flush()? {
            break;
        }
        if !from.input.is_empty() {
            let input = std::mem::take(&mut from.input);
            moved += input.len() as u64;
            to.write(&input)?;
            continue;
        }
        if way.pipe.is_none() && way.bulk {
            way.pipe = pipes.lend();
        }
        let outcome = match &mut way.pipe {
            Some(pipe) => from.fill_pipe(pipe)?,
            None => from.read(scratch)?,
        };
        match outcome {
            ReadOutcome::Bytes(bytes) => {
                moved += bytes as u64;
                way.bulk = bytes >= READ_SIZE && plain;
                if way.pipe.is_none() {
                    to.write(&scratch[..bytes])?;
                }
                if moved >= TURN_BYTES {
                    break;
                }
            }
            ReadOutcome::Blocked => break,
            ReadOutcome::Ended => {
                to.shut_down();
                break;
            }
        }
    }
    // What the last round took goes on at once; an empty pipe is for others.
    if let Some(pipe) = &mut way.pipe
        && to.drain_pipe(pipe)?
        && let Some(pipe) = way.pipe.take()
    {
        pipes.take_back(pipe);
    }
    Ok(moved)
}

/// Closes the books of a tunnel.
pub(super) fn end(session: &mut Session, core: &mut Core, mut tunnel: Tunnel, reason: &'static str) -> Next {
    for way in [&mut tunnel.up, &mut tunnel.down] {
        if let Some(pipe) = way.pipe.take() {
            core.pipes.take_back(pipe);
        }
    }
    let facts: &Facts = tunnel.standing.facts.last().unwrap_or(&tunnel.standing.facts[0]);
    let counts = (tunnel.standing.address, tunnel.begun, tunnel.up.bytes, tunnel.down.bytes);
    report::tunnel_end(&core.links.events, &session.client, facts, reason, counts);
    Next::End
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_http_is_told_early() {
        assert_eq!(speaks_http(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Some(true));
        assert_eq!(speaks_http(b"GET / HTTP/1.1\r\nHo"), None);
        assert_eq!(speaks_http(b"G"), None);
        assert_eq!(speaks_http(b"SSH-2.0-OpenSSH_9.2\r\n"), Some(false));
        assert_eq!(speaks_http(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Some(false));
        assert_eq!(speaks_http(b"\x00\x01"), Some(false));
        assert_eq!(speaks_http(b"GET / HTTP/1.1\nHost: a\n\n"), Some(false));
    }
}
