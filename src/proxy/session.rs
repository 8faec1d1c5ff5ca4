//! A client connection: its sockets, its state, and the step from one state to the next.
//!
//! A step consumes the state and says what comes next. After a failure the state is `Failed`, and nothing revives it.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use mio::Registry;

use crate::daemon::Snapshot;
use crate::docker_manager::Peer;
use crate::events::Layer;
use crate::http1::{Authority, BodyReader, RequestHead};

use super::admission::Holder;
use super::closing::{self, Closing};
use super::deadlines::Due;
use super::dial::{self, Dialling};
use super::exchange::{self, Exchange};
use super::intercept::body::{self, Gathering};
use super::intercept::books::{Decrypted, Shared};
use super::intercept::opening::{self, Minting};
use super::intercept::upstream::{self, Securing};
use super::judge::{Facts, Refused, Standing, Verdict};
use super::leg::Leg;
use super::listeners::Listeners;
use super::request;
use super::splice::Pipes;
use super::table::{SessionId, Side};
use super::tunnel::{self, Opened, Tunnel};
use super::{ProxyConfig, ProxyLinks, answer::Answer, report};

/// Steps in one go before other sessions get their turn.
const STEPS_MAX: usize = 16;

/// What all sessions share.
pub(super) struct Core {
    pub(super) config: ProxyConfig,
    pub(super) links: ProxyLinks,
    pub(super) snapshot: std::sync::Arc<Snapshot>,
    pub(super) registry: Registry,
    pub(super) listeners: Listeners,
    /// What sockets are read into; one for all, so that idle sessions hold no buffer.
    pub(super) scratch: Box<[u8]>,
    /// For tunnels at full speed.
    pub(super) pipes: Pipes,
    /// When the events being handled came.
    pub(super) now: Instant,
    pub(super) requests: u64,
    pub(super) blocked: u64,
    pub(super) stopping: bool,
    pub(super) intercept: Shared,
}

impl Core {
    /// Counts a refusal.
    pub(super) fn count_blocked(&mut self, layer: Layer) {
        self.blocked += 1;
        if let Some(interception) = self.config.interception.as_mut().filter(|_| layer == Layer::Intercept) {
            interception.counters.blocked += 1;
        }
    }
}

/// The client's side.
pub(super) struct Client {
    pub(super) id: SessionId,
    pub(super) leg: Leg,
    pub(super) address: IpAddr,
    pub(super) arrival: Instant,
    pub(super) peer: Peer,
    /// The number that its events share: of the request or tunnel at hand.
    pub(super) flow: u64,
    /// Whom the connection is counted for; `None` for one that is only told to go away.
    pub(super) holder: Option<Holder>,
    /// Bytes of a body that are held because a rule looks into it.
    pub(super) held: usize,
    /// Where its decisions are made, for events.
    pub(super) layer: Layer,
}

/// A connection to a server, of this client alone.
pub(super) struct Upstream {
    pub(super) leg: Leg,
    pub(super) address: SocketAddr,
    /// Whether it ends at this host: found out when it is made.
    pub(super) is_here: bool,
    /// The name and port it was vetted for.
    pub(super) host: Box<str>,
    /// See `host`.
    pub(super) port: u16,
    /// Whether a request was sent on it already.
    pub(super) used: bool,
}

/// A client connection.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) upstream: Option<Upstream>,
    /// The CONNECT inside which HTTP is read.
    pub(super) inside: Option<Box<Inside>>,
    pub(super) state: State,
    pub(super) due: Due,
}

/// A CONNECT whose requests are read.
pub(super) struct Inside {
    /// Where all of them go.
    pub(super) authority: Authority,
    /// Set when they were decrypted; otherwise they are plain HTTP.
    pub(super) decrypted: Option<Decrypted>,
}

/// A request that was read and judged by name.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) head: RequestHead,
    pub(super) facts: Facts,
    /// When its head was complete.
    pub(super) begun: Instant,
    /// A CONNECT that was answered before anything was dialled, because it was to be decrypted; what was judged then.
    pub(super) answered: Option<Standing>,
}

impl Request {
    pub(super) fn is_connect(&self) -> bool {
        &*self.head.method == "CONNECT"
    }
}

/// What the connection is at.
pub(super) enum State {
    /// Nobody knows yet who it is; Docker is asked.
    Held,
    /// Between requests, or within a head when `begun`.
    Head { begun: bool },
    /// The DNS thread is asked.
    Resolving(Box<Request>),
    /// An upstream connection is being made.
    Dialling(Box<Dialling>),
    /// A request goes up, its response comes down.
    Exchange(Box<Exchange>),
    /// The body of an answered request is read and dropped; so many bytes of it at most.
    Discard(BodyReader, usize),
    /// The body of a request is read before the request is judged.
    Gathering(Box<Gathering>),
    /// A leaf is being made.
    Minting(Box<Minting>),
    /// The TLS handshake with the client; since when.
    Accepting(Instant),
    /// The TLS handshake with the server.
    Securing(Box<Securing>),
    /// CONNECT was answered; what is spoken inside is not known yet.
    Hello(Box<Opened>),
    /// Bytes are copied both ways.
    Tunnel(Box<Tunnel>),
    /// The last answer is delivered.
    Closing(Closing),
    /// Over.
    Failed,
}

/// The outcome of a step.
pub(super) enum Next {
    /// Go on in this state at once.
    Go(State),
    /// Nothing to do in this state until an event comes.
    Wait(State),
    /// The connection is over.
    End,
}

/// The outcome of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Waits for an event.
    Waiting,
    /// Has more to do; others first.
    Unfinished,
    /// Is over.
    Ended,
}

impl Session {
    /// Does what can be done now.
    pub(super) fn drive(&mut self, core: &mut Core) -> Turn {
        for _ in 0..STEPS_MAX {
            let next = match std::mem::replace(&mut self.state, State::Failed) {
                state @ (State::Held | State::Resolving(_) | State::Minting(_)) => Next::Wait(state),
                State::Head { begun } => request::read_head(self, core, begun),
                State::Dialling(dialling) => dial::step(self, core, dialling),
                State::Exchange(exchange) => exchange::step(self, core, exchange),
                State::Discard(reader, left) => closing::discard(self, core, reader, left),
                State::Gathering(gathering) => body::step(self, core, gathering),
                State::Accepting(begun) => opening::step(self, core, begun),
                State::Securing(securing) => upstream::step(self, core, securing),
                State::Hello(opened) => tunnel::read_hello(self, core, opened),
                State::Tunnel(tunnel) => tunnel::step(self, core, tunnel),
                State::Closing(closing) => closing::step(self, core, closing),
                State::Failed => Next::End,
            };
            if let Some(turn) = self.enter(next) {
                return turn;
            }
        }
        Turn::Unfinished
    }

    /// Takes the next state; `None` when it is to be stepped at once.
    fn enter(&mut self, next: Next) -> Option<Turn> {
        match next {
            Next::Go(state) => {
                self.state = state;
                None
            }
            Next::Wait(state) => {
                self.state = state;
                Some(Turn::Waiting)
            }
            Next::End => Some(Turn::Ended),
        }
    }

    /// Takes `next` from outside a turn, then does what can be done.
    pub(super) fn proceed(&mut self, core: &mut Core, next: Next) -> Turn {
        self.enter(next).unwrap_or_else(|| self.drive(core))
    }

    /// Notes what the poll says of a socket; the turn after it finds out.
    pub(super) fn note(&mut self, side: Side, event: &mio::event::Event) {
        match (side, &mut self.upstream) {
            (Side::Client, _) => {
                // A client that is gone in both directions leaves nothing to do, except to close a tunnel's books.
                if !self.client.leg.note(event) && !matches!(self.state, State::Tunnel(_)) {
                    self.state = State::Failed;
                }
            }
            (Side::Upstream, Some(upstream)) => {
                upstream.leg.note(event);
            }
            // The upstream of an earlier exchange, or of an earlier session in this slot.
            (Side::Upstream, None) => {}
        }
    }

    /// The time of the state is up.
    pub(super) fn expire(&mut self, core: &mut Core) -> Turn {
        let next = match std::mem::replace(&mut self.state, State::Failed) {
            State::Held => self.turn_away(core),
            State::Head { begun: false } | State::Discard(..) | State::Closing(_) | State::Failed => Next::End,
            State::Head { begun: true } => {
                let answer = Answer::failure(408, "the request head took too long");
                closing::last_answer(self, core, &answer)
            }
            State::Resolving(request) => {
                dial::unresolved(self, core, &request, 504, "its name was not resolved in time")
            }
            State::Dialling(dialling) => dial::timed_out(self, core, dialling),
            State::Exchange(exchange) => exchange::timed_out(self, core, &exchange),
            State::Gathering(_) => body::timed_out(self, core),
            State::Minting(minting) => opening::mint_timed_out(self, core, *minting),
            State::Accepting(_) => opening::timed_out(self, core),
            State::Securing(securing) => upstream::timed_out(self, core, *securing),
            State::Hello(opened) => tunnel::refuse(self, core, &opened, "hello_timeout"),
            State::Tunnel(tunnel) => tunnel::end(self, core, *tunnel, "idle"),
        };
        self.proceed(core, next)
    }

    /// Sends a stranger away.
    pub(super) fn turn_away(&mut self, core: &mut Core) -> Next {
        core.blocked += 1;
        let event = report::event(&self.client, crate::events::Verdict::Block, "unknown_peer");
        core.links.events.record(crate::events::Event { protocol: Some("tcp"), ..event });
        closing::last_answer(self, core, &Answer::stranger())
    }

    /// Takes a new snapshot into account. `rules_changed`: whether its rules are others. The admission of held
    /// sessions is the caller's.
    pub(super) fn review(&mut self, core: &mut Core, rules_changed: bool) -> Turn {
        if self.client.holder.is_none() || matches!(self.state, State::Closing(_) | State::Failed | State::Held) {
            return Turn::Waiting;
        }
        let directory = &core.snapshot.directory;
        let found = Peer::identify(directory, &core.config.extra_peers, self.client.address, self.client.arrival);
        let mut renamed = false;
        match (&self.client.peer, found) {
            (Peer::Container(old), Peer::Container(new)) if old.container_id == new.container_id => {
                renamed = old.container != new.container || old.agent != new.agent;
                self.client.peer = Peer::Container(new);
            }
            (Peer::Extra, Peer::Extra) | (Peer::Stranger, Peer::Stranger) => {}
            // Whoever it was, it is not the one behind this address any more.
            _ => return self.end_tunnel(core, "identity_changed"),
        }
        if (rules_changed || renamed)
            && let Some((refused, facts, begun)) = self.refused_now(core)
        {
            report::refused(core, &self.client, &facts, &refused, begun);
            return self.end_tunnel(core, "rules_changed");
        }
        if let State::Dialling(dialling) = &mut self.state {
            dialling.review(core, &self.client.peer);
        }
        Turn::Waiting
    }

    fn refused_now(&self, core: &Core) -> Option<(Refused, Facts, Instant)> {
        if let Some(decrypted) = self.inside.as_ref().and_then(|inside| inside.decrypted.as_ref())
            && let Some((refused, facts)) = decrypted.refused(self, core)
        {
            return Some((refused, facts.clone(), decrypted.begun));
        }
        let (standing, begun) = match &self.state {
            State::Exchange(exchange) => return self.request_refused(core, &exchange.request, exchange.address),
            State::Securing(securing) => {
                let address = self.upstream.as_ref()?.address;
                return self.request_refused(core, securing.request(), address);
            }
            // Judged anew, with what is said inside, before anything goes on.
            State::Hello(opened) if opened.unconnected.is_some() => return None,
            State::Hello(opened) => (&opened.standing, opened.begun),
            State::Tunnel(tunnel) => (&tunnel.standing, tunnel.begun),
            // Judged anew before anything is sent: requests that are read, resolved or dialled, and what a leaf is for.
            _ => return None,
        };
        let vet = |facts: &Facts, address| dial::vet_now(core, facts, &self.client.peer, address);
        let (refused, facts) = standing.refused(vet)?;
        Some((refused, facts.clone(), begun))
    }

    fn request_refused(
        &self,
        core: &Core,
        request: &Request,
        address: SocketAddr,
    ) -> Option<(Refused, Facts, Instant)> {
        match dial::vet_now(core, &request.facts, &self.client.peer, address) {
            Verdict::Allow { .. } | Verdict::Intercept { .. } => None,
            Verdict::Block(refused) => Some((refused, request.facts.clone(), request.begun)),
        }
    }

    /// Ends the session from outside a turn; a tunnel closes its books.
    pub(super) fn end_tunnel(&mut self, core: &mut Core, reason: &'static str) -> Turn {
        if let State::Tunnel(tunnel) = std::mem::replace(&mut self.state, State::Failed) {
            tunnel::end(self, core, *tunnel, reason);
        }
        Turn::Ended
    }

    /// Whether the daemon's stop need not wait for it.
    pub(super) fn is_idle(&self, since: Instant) -> bool {
        match &self.state {
            State::Held | State::Head { begun: false } | State::Failed => self.client.leg.pending() == 0,
            // The answer is with the kernel; only the client's own end is waited for.
            State::Closing(_) => self.client.leg.pending() == 0,
            State::Tunnel(tunnel) => tunnel.last < since,
            _ => false,
        }
    }
}
