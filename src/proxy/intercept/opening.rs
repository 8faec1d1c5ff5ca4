//! From a CONNECT that is to be decrypted to the first request inside: the leaf, the answer, the client's handshake.
//!
//! The leaf of the CONNECT's host is made before the CONNECT is answered, so that a failure can still be said in HTTP.
//! Nothing is dialled: the first request that is allowed does that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use rustls::ServerConfig;

use crate::authority::Leaf;
use crate::http1::Authority;
use crate::rule_engine::Rule;

use super::super::answer::Answer;
use super::super::judge::{Refused, TlsFacts};
use super::super::leg::HandshakeError;
use super::super::session::{Core, Inside, Next, Request, Session, State};
use super::super::tunnel::Opened;
use super::super::{closing, report, request, tunnel};
use super::books::{self, Decrypted};
use super::reason;
use super::tls::TlsSide;

/// Waits for a leaf.
pub(in crate::proxy) struct Minting(Stage);

/// What the leaf is for.
enum Stage {
    /// The CONNECT's host; the CONNECT is not answered yet.
    Connect(Box<Request>, SocketAddr),
    /// The server name of a hello that names another host.
    Hello(Box<Opened>, Arc<TlsFacts>),
}

/// Begins with a CONNECT to `address`, vetted or to be vetted with each request, because of `rule`.
pub(in crate::proxy) fn begin(
    session: &mut Session,
    core: &mut Core,
    request: Box<Request>,
    address: SocketAddr,
    rule: &Arc<Rule>,
) -> Next {
    if core.config.interception.is_none() {
        // Such rules load with a CA only.
        let refused = Refused { rule: Some(Arc::clone(rule)), ..Refused::because("intercept_unavailable") };
        return request::blocked(session, core, &request, &refused);
    }
    let name = request.facts.host_text.clone();
    ask(session, core, &name, Stage::Connect(request, address))
}

/// Goes on with the hello of a CONNECT that was answered.
pub(in crate::proxy) fn hear(
    session: &mut Session,
    core: &mut Core,
    opened: Box<Opened>,
    hello: Arc<TlsFacts>,
    rule: &Arc<Rule>,
) -> Next {
    let facts = opened.standing.facts.last().unwrap_or(&opened.standing.facts[0]);
    session.client.layer = books::layer(true);
    report::intercepting(core, &session.client, facts, rule, opened.begun);
    let name = facts.host_text.clone();
    session.upstream = None;
    ask(session, core, &name, Stage::Hello(opened, hello))
}

fn ask(session: &mut Session, core: &mut Core, name: &str, stage: Stage) -> Next {
    let id = session.client.id;
    let leaf = core.config.interception.as_mut().map(|interception| interception.leaves.leaf(name, id, core.now));
    match leaf {
        Some(Leaf::Ready(config)) => ready(session, core, stage, config),
        Some(Leaf::Pending) => {
            session.due.set(core.now + core.config.times.handshake);
            Next::Wait(State::Minting(Box::new(Minting(stage))))
        }
        Some(Leaf::Refused(why)) => unminted(session, core, stage, why),
        None => unminted(session, core, stage, "there is no CA"),
    }
}

/// The leaf was made, or not.
pub(in crate::proxy) fn minted(
    session: &mut Session,
    core: &mut Core,
    minting: Minting,
    config: Option<Arc<ServerConfig>>,
) -> Next {
    match config {
        Some(config) => ready(session, core, minting.0, config),
        None => unminted(session, core, minting.0, "the certificate could not be made"),
    }
}

/// The leaf was not made in time.
pub(in crate::proxy) fn mint_timed_out(session: &mut Session, core: &mut Core, minting: Minting) -> Next {
    unminted(session, core, minting.0, "the certificate was not made in time")
}

fn unminted(session: &mut Session, core: &mut Core, stage: Stage, why: &str) -> Next {
    let refused = Refused::because(reason::CERT_GEN_FAILED);
    match stage {
        Stage::Connect(request, _) => {
            report::refused(core, &session.client, &request.facts, &refused, request.begun);
            let text = format!("{}:{}: {why}", request.facts.host_text, request.facts.port);
            let answer = Answer::failure(502, &text).with_reason(reason::CERT_GEN_FAILED);
            closing::respond(session, core, &answer, &request.head)
        }
        Stage::Hello(opened, _) => {
            let facts = opened.standing.facts.last().unwrap_or(&opened.standing.facts[0]);
            report::refused(core, &session.client, facts, &refused, opened.begun);
            Next::End
        }
    }
}

fn ready(session: &mut Session, core: &mut Core, stage: Stage, config: Arc<ServerConfig>) -> Next {
    match stage {
        Stage::Connect(request, address) => tunnel::answer(session, core, request, address),
        Stage::Hello(opened, hello) => accept(session, core, *opened, hello, config),
    }
}

/// Ends the client's TLS here.
fn accept(
    session: &mut Session,
    core: &mut Core,
    opened: Opened,
    hello: Arc<TlsFacts>,
    config: Arc<ServerConfig>,
) -> Next {
    let facts = opened.standing.facts.last().unwrap_or(&opened.standing.facts[0]);
    let authority = Authority { host: facts.host.clone(), port: Some(facts.port) };
    let standing = opened.standing;
    let decrypted = Decrypted { hello, standing, begun: opened.begun, accepted: false, asked: false };
    session.inside = Some(Box::new(Inside { authority, decrypted: Some(decrypted) }));
    session.due.set(core.now + core.config.times.handshake);
    let secured = TlsSide::server(config).map_err(HandshakeError::Tls);
    match secured.and_then(|side| session.client.leg.secure(side)) {
        Ok(()) => Next::Go(State::Accepting(core.now)),
        Err(error) => failed(session, core, &error),
    }
}

/// Goes on with the client's handshake.
pub(in crate::proxy) fn step(session: &mut Session, core: &mut Core, begun: Instant) -> Next {
    match session.client.leg.shake_hands(&mut core.scratch) {
        Ok(false) => Next::Wait(State::Accepting(begun)),
        Ok(true) => {
            if let Some(decrypted) = session.inside.as_mut().and_then(|inside| inside.decrypted.as_mut()) {
                decrypted.accepted = true;
            }
            closing::next_request(session, core)
        }
        Err(error) => failed(session, core, &error),
    }
}

/// The client's handshake was not done in time.
pub(in crate::proxy) fn timed_out(session: &mut Session, core: &mut Core) -> Next {
    books::client_failed(session, core, reason::CLIENT_HANDSHAKE_FAILED, "no handshake in time");
    Next::End
}

fn failed(session: &mut Session, core: &mut Core, error: &HandshakeError) -> Next {
    let (code, why) = match error {
        HandshakeError::Closed => (reason::CLIENT_HANDSHAKE_FAILED, "it closed the connection".to_owned()),
        HandshakeError::Tls(rustls::Error::NoApplicationProtocol) => {
            (reason::ALPN_MISMATCH, "it does not offer http/1.1".to_owned())
        }
        HandshakeError::Tls(error) => (reason::CLIENT_HANDSHAKE_FAILED, error.to_string()),
    };
    books::client_failed(session, core, code, &why);
    if matches!(error, HandshakeError::Closed) {
        return Next::End;
    }
    // The alert is with the kernel; a reset must not eat it.
    session.client.leg.give_up_tls();
    closing::close(session, core)
}
