//! What is kept of a decrypted session: why it is decrypted, so that new rules can end it, and what it came to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::events::{Event, Layer, Verdict as EventVerdict};

use super::super::judge::{Facts, Refused, Standing, TlsFacts, Verdict};
use super::super::report;
use super::super::session::{Core, Session};
use super::reason;

/// Log lines of one kind that peers can cause at will: at most one in this time. Events tell each case.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// A decrypted session.
pub(in crate::proxy) struct Decrypted {
    /// What the client's first message says.
    pub(in crate::proxy) hello: Arc<TlsFacts>,
    /// The CONNECT, and the server name when it is another. None may be blocked, and one must want decryption.
    pub(in crate::proxy) standing: Standing,
    pub(in crate::proxy) begun: Instant,
    /// Whether the client's handshake is done.
    pub(in crate::proxy) accepted: bool,
    /// Whether a request was read.
    pub(in crate::proxy) asked: bool,
}

impl Decrypted {
    /// The host that the session is for: the server name, else the CONNECT's.
    pub(in crate::proxy) fn facts(&self) -> &Facts {
        self.standing.facts.last().unwrap_or(&self.standing.facts[0])
    }

    /// Why the rules would not have it so any more.
    pub(in crate::proxy) fn refused(&self, session: &Session, core: &Core) -> Option<(Refused, &Facts)> {
        let (rules, peer) = (&core.snapshot.rules, &session.client.peer);
        let mut intercepts = false;
        for facts in &self.standing.facts {
            match facts.judge_address(rules, peer, self.standing.address.ip()) {
                Verdict::Intercept { .. } => intercepts = true,
                Verdict::Allow { .. } => {}
                Verdict::Block(refused) => return Some((refused, facts)),
            }
        }
        // What may be copied untouched must not be looked into.
        (!intercepts).then(|| (Refused::because("intercept_no_more"), self.facts()))
    }
}

/// Records the end of a session, if it was decrypted.
pub(in crate::proxy) fn close(session: &Session, core: &mut Core) {
    let Some(decrypted) = session.inside.as_ref().and_then(|inside| inside.decrypted.as_ref()) else { return };
    let leg = &session.client.leg;
    if !decrypted.accepted || !leg.is_secured() {
        return;
    }
    if !decrypted.asked && !core.stopping {
        // Clients that pin look at the certificate after the handshake, and leave without a word.
        client_failed(session, core, reason::CLIENT_HANDSHAKE_FAILED, "it left right after the handshake");
        return;
    }
    let (up, down) = leg.counts();
    let at = (decrypted.standing.address, decrypted.begun, up, down);
    report::tunnel_end(&core.links.events, &session.client, decrypted.facts(), "closed", at);
}

/// Records that the client's side of TLS came to nothing.
pub(in crate::proxy) fn client_failed(session: &Session, core: &mut Core, code: &'static str, why: &str) {
    let Some(decrypted) = session.inside.as_ref().and_then(|inside| inside.decrypted.as_ref()) else { return };
    core.blocked += 1;
    let facts = decrypted.facts();
    let event = report::event(&session.client, EventVerdict::Block, code);
    core.links.events.record(Event {
        host: Some((&facts.host_text).into()),
        port: Some(facts.port),
        protocol: Some("https"),
        destination: Some(decrypted.standing.address),
        ..event
    });
    let container = session.client.peer.agent().container.unwrap_or("-");
    let hint = if code == reason::ALPN_MISMATCH {
        "it speaks HTTP/2 alone, and only HTTP/1.1 is decrypted: give this host a rule with `mode: proxy`"
    } else {
        "if it does not trust the CA, give it the bundle (`outcall ca bundle`); if it pins certificates, give this \
         host a rule with `mode: proxy`"
    };
    if core.intercept.client_log.opens(core.now) {
        tracing::warn!(target: "proxy", host = %facts.host_text, container, code, why, "a client refused to be decrypted: {hint}");
    } else {
        tracing::debug!(target: "proxy", host = %facts.host_text, container, code, why, "a client refused to be decrypted");
    }
}

/// The layer that events of a session belong to.
pub(in crate::proxy) fn layer(decrypted: bool) -> Layer {
    if decrypted { Layer::Intercept } else { Layer::Proxy }
}

/// Lets one log line through in [`LOG_EVERY`].
#[derive(Debug, Default)]
pub(in crate::proxy) struct LogGate(Option<Instant>);

impl LogGate {
    pub(in crate::proxy) fn opens(&mut self, now: Instant) -> bool {
        let open = self.0.is_none_or(|last| now.duration_since(last) >= LOG_EVERY);
        if open {
            self.0 = Some(now);
        }
        open
    }
}

/// What all decrypted sessions share.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Shared {
    pub(in crate::proxy) client_log: LogGate,
    pub(in crate::proxy) body_log: LogGate,
    pub(in crate::proxy) bodies: super::body::Bodies,
}
