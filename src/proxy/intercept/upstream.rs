//! The server's handshake: done, and the server proven to be who the request is for, before a byte of it is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ClientConfig, PeerMisbehaved, SignatureScheme};

use super::super::answer::Answer;
use super::super::judge::Refused;
use super::super::leg::{HandshakeError, ReadOutcome};
use super::super::session::{Core, Next, Request, Session, State};
use super::super::{closing, dial, report};
use super::reason;
use super::tls::{TlsSide, tls_error};

/// Characters of a failure's reason that the client is told: a certificate may hold thousands of names.
const REASON_MAX: usize = 300;

/// A handshake with a server.
pub(in crate::proxy) struct Securing {
    request: Box<Request>,
    demand: Arc<Demand>,
    /// The handshake is done on our side. A TLS 1.3 server says only afterwards that it wants a certificate of ours,
    /// so one that asked for it is given a moment to say so.
    listening: bool,
}

impl Securing {
    /// The request that waits for it.
    pub(in crate::proxy) fn request(&self) -> &Request {
        &self.request
    }
}

/// Has no certificate to show, and notes when a server asks for one.
#[derive(Debug, Default)]
struct Demand(AtomicBool);

impl ResolvesClientCert for Demand {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Begins TLS on the session's upstream connection.
pub(in crate::proxy) fn begin(session: &mut Session, core: &mut Core, request: Box<Request>) -> Next {
    let demand = Arc::new(Demand::default());
    let side = match &core.config.interception {
        None => Err(HandshakeError::Closed),
        Some(interception) => match ServerName::try_from(request.facts.host_text.to_string()) {
            Ok(name) => {
                let config = config(&interception.upstream, &demand);
                TlsSide::client(Arc::new(config), name).map_err(HandshakeError::Tls)
            }
            Err(_) => Err(HandshakeError::Tls(rustls::Error::General("no certificate can have this name".into()))),
        },
    };
    let Some(upstream) = &mut session.upstream else { return Next::End };
    match side.and_then(|side| upstream.leg.secure(side)) {
        Ok(()) => {
            session.due.set(core.now + core.config.times.handshake);
            Next::Go(State::Securing(Box::new(Securing { request, demand, listening: false })))
        }
        Err(error) => failed(session, core, &request, &error),
    }
}

/// The shared configuration for one connection. No session is resumed: a ticket would tie the connections of two
/// containers together.
fn config(shared: &ClientConfig, demand: &Arc<Demand>) -> ClientConfig {
    let mut config = shared.clone();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.client_auth_cert_resolver = Arc::clone(demand) as Arc<dyn ResolvesClientCert>;
    config
}

/// Goes on with the handshake.
pub(in crate::proxy) fn step(session: &mut Session, core: &mut Core, mut securing: Box<Securing>) -> Next {
    let Some(upstream) = &mut session.upstream else { return Next::End };
    if !securing.listening {
        match upstream.leg.shake_hands(&mut core.scratch) {
            Ok(false) => return Next::Wait(State::Securing(securing)),
            Ok(true) => {}
            Err(error) => return failed(session, core, &securing.request, &error),
        }
        if !(securing.demand.0.load(Ordering::Relaxed) && upstream.leg.is_tls13()) {
            return dial::send(session, core, securing.request);
        }
        securing.listening = true;
        session.due.set(core.now + core.config.times.demand);
    }
    let error = match upstream.leg.flush().and_then(|_| upstream.leg.fill(&mut core.scratch)) {
        // The tickets of a server that goes without the certificate are no data: its time runs out, or data comes.
        Ok(ReadOutcome::Blocked) if upstream.leg.has_ticket() => {
            return dial::send(session, core, securing.request);
        }
        Ok(ReadOutcome::Blocked) => return Next::Wait(State::Securing(securing)),
        Ok(ReadOutcome::Bytes(_)) => return dial::send(session, core, securing.request),
        Ok(ReadOutcome::Ended) => HandshakeError::Closed,
        Err(error) => tls_error(&error).cloned().map_or(HandshakeError::Closed, HandshakeError::Tls),
    };
    failed(session, core, &securing.request, &error)
}

/// The time is up.
pub(in crate::proxy) fn timed_out(session: &mut Session, core: &mut Core, securing: Securing) -> Next {
    if securing.listening {
        return dial::send(session, core, securing.request);
    }
    refuse(session, core, &securing.request, reason::UPSTREAM_HANDSHAKE_FAILED, "no TLS handshake in time")
}

fn failed(session: &mut Session, core: &mut Core, request: &Request, error: &HandshakeError) -> Next {
    use rustls::Error;
    let (code, text) = match error {
        HandshakeError::Closed => {
            (reason::UPSTREAM_HANDSHAKE_FAILED, "the server closed the connection during the TLS handshake".to_owned())
        }
        HandshakeError::Tls(
            Error::AlertReceived(AlertDescription::NoApplicationProtocol)
            | Error::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedApplicationProtocol),
        ) => (reason::ALPN_MISMATCH, "the server does not speak HTTP/1.1".to_owned()),
        HandshakeError::Tls(Error::AlertReceived(AlertDescription::CertificateRequired)) => (
            reason::UPSTREAM_HANDSHAKE_FAILED,
            "the server wants a client certificate, and there is none: give this host a rule with `mode: proxy`"
                .to_owned(),
        ),
        HandshakeError::Tls(error) => {
            (reason::UPSTREAM_HANDSHAKE_FAILED, format!("the TLS handshake with the server failed: {error}"))
        }
    };
    refuse(session, core, request, code, &text)
}

fn refuse(session: &mut Session, core: &mut Core, request: &Request, code: &'static str, text: &str) -> Next {
    let address = session.upstream.take().map(|upstream| upstream.address.ip());
    let facts = &request.facts;
    let text: String = text.chars().filter(|letter| !letter.is_control()).take(REASON_MAX).collect();
    report::refused(core, &session.client, facts, &Refused { address, ..Refused::because(code) }, request.begun);
    tracing::debug!(target: "proxy", host = %facts.host_text, port = facts.port, code, text, "failed");
    let answer = Answer::failure(502, &format!("{}:{}: {text}", facts.host_text, facts.port)).with_reason(code);
    closing::respond(session, core, &answer, &request.head)
}
