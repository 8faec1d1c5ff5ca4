//! The filter without its sockets: messages and `now` in, [`Action`]s out.
//!
//! A question goes: read → who asks (held while Docker is asked) → judged → cache, or upstream, once for all who ask
//! the same → addresses vetted for this asker's rule → for a `direct_ip` rule the kernel is opened first → answered.
//! One question is judged by one snapshot; when rules change while it waits it is judged anew from the start.
//!
//! Owns: everybody who waits, and all limits on them. Does not own: descriptors and the clock (`server`).

mod adopt;
mod answers;
mod flights;
#[cfg(test)]
mod tests;
mod throttle;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Query as Question, ResponseCode};
use hickory_proto::rr::RecordType;

use crate::bridge::Grant;
use crate::daemon::Snapshot;
use crate::docker_manager::{Peer, PeerRange};
use crate::event_loop::Reply;
use crate::events::{EventSink, Verdict};
use crate::names::HostName;
use crate::rule_engine::Rule;

use super::ResolveError;
use super::answer::Answer;
use super::cache::{Cache, Key};
use super::filter::{self, Judgement};
use super::lookup::Upstreams;
use super::message::{self, Extended, Incoming, Query, Transport};
use super::random::Random;
use flights::{Flight, Resolution};
use throttle::{Fate, Throttle};

pub(in crate::dns) use flights::{LOOKUPS_CLIENTS, LOOKUPS_PROXY};

/// How long a question of an unknown address of a managed network waits for Docker.
const HOLD: Duration = Duration::from_secs(1);
/// Held questions in all: one container start has two or three, and a hundred may start at once.
const HELD_MAX: usize = 512;
/// Held questions of one address.
const HELD_PER_PEER: usize = 16;
/// Questions of one peer that wait for upstream or the kernel. A busy resolver library has some dozens.
const OPEN_PER_PEER: u32 = 100;
/// The way back to whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dns) struct Client {
    /// Where from.
    pub(in crate::dns) peer: SocketAddr,
    /// Over what.
    pub(in crate::dns) transport: Transport,
    /// The token of the socket or connection.
    pub(in crate::dns) socket: usize,
    /// The address that was asked, where the socket has many.
    pub(in crate::dns) local: Option<IpAddr>,
}

/// What the owner of the sockets is to do.
#[derive(Debug)]
pub(in crate::dns) enum Action {
    /// Send to a client.
    Reply { client: Client, bytes: Vec<u8> },
    /// Close what is open for this lookup, and ask from a fresh socket.
    Ask { lookup: u64, upstream: SocketAddr, transport: Transport, message: Vec<u8> },
    /// Close what is open for this lookup.
    Close { lookup: u64 },
    /// Have Docker read anew: somebody is at this address.
    Identify(Ipv4Addr),
    /// Open direct flows, and say how it went with [`Core::granted`].
    Grant { ticket: u64, grant: Grant },
}

/// What a client asked.
struct Asked {
    query: Query,
    client: Client,
    arrival: Instant,
}

/// A question that a rule allows.
struct Allowed {
    asked: Asked,
    peer: Peer,
    rule: Arc<Rule>,
    name: HostName,
}

struct Granting {
    allowed: Allowed,
    answer: Arc<Answer>,
    age: u32,
    deadline: Instant,
}

/// What a decision is about.
#[derive(Clone, Copy)]
struct Subject<'a> {
    question: &'a Question,
    /// The normal form of its name, where that is known already.
    name: Option<&'a HostName>,
}

/// What is recorded of a decision.
struct Outcome {
    verdict: Verdict,
    reason: &'static str,
    rule: Option<Arc<Rule>>,
}

impl Outcome {
    fn allow(reason: &'static str, rule: Arc<Rule>) -> Self {
        Outcome { verdict: Verdict::Allow, reason, rule: Some(rule) }
    }

    fn block(reason: &'static str, rule: Option<Arc<Rule>>) -> Self {
        Outcome { verdict: Verdict::Block, reason, rule }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Lookup(u64),
    Grant(u64),
}

/// Counters of what was asked.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::dns) struct Counters {
    pub(in crate::dns) total: u64,
    pub(in crate::dns) allowed: u64,
    pub(in crate::dns) blocked: u64,
}

/// The filter.
pub(in crate::dns) struct Core {
    snapshot: Arc<Snapshot>,
    extra_peers: Vec<PeerRange>,
    upstreams: Upstreams,
    random: Random,
    events: EventSink,
    pub(in crate::dns) cache: Cache,
    pub(in crate::dns) counters: Counters,
    held: VecDeque<Asked>,
    flights: HashMap<u64, Flight>,
    /// How many of them the proxy began.
    proxy_flights: usize,
    by_key: HashMap<Key, u64>,
    grants: HashMap<u64, Granting>,
    open: HashMap<IpAddr, u32>,
    throttle: Throttle,
    timers: BTreeSet<(Instant, Timer)>,
    next_id: u64,
    actions: Vec<Action>,
}

impl Core {
    pub(in crate::dns) fn new(
        snapshot: Arc<Snapshot>,
        extra_peers: Vec<PeerRange>,
        upstreams: Vec<SocketAddr>,
        events: EventSink,
    ) -> Self {
        Core {
            snapshot,
            extra_peers,
            upstreams: Upstreams::new(upstreams),
            random: Random::new(),
            events,
            cache: Cache::new(),
            counters: Counters::default(),
            held: VecDeque::new(),
            flights: HashMap::new(),
            proxy_flights: 0,
            by_key: HashMap::new(),
            grants: HashMap::new(),
            open: HashMap::new(),
            throttle: Throttle::default(),
            timers: BTreeSet::new(),
            next_id: 0,
            actions: Vec::new(),
        }
    }

    /// What is to be done now; empty afterwards.
    pub(in crate::dns) fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// The snapshot in force.
    pub(in crate::dns) fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// The upstreams, in the order given.
    pub(in crate::dns) fn upstreams(&self) -> &[SocketAddr] {
        self.upstreams.addresses()
    }

    /// True when nobody waits for anything.
    pub(in crate::dns) fn is_idle(&self) -> bool {
        self.held.is_empty() && self.flights.is_empty() && self.grants.is_empty()
    }

    /// When [`Core::tick`] is due; `None`: not before something else happens.
    pub(in crate::dns) fn deadline(&self) -> Option<Instant> {
        let held = self.held.front().map(|asked| asked.arrival + HOLD);
        let timer = self.timers.first().map(|(at, _)| *at);
        held.into_iter().chain(timer).min()
    }

    /// A message of a client; false when it is malformed.
    pub(in crate::dns) fn received(&mut self, client: Client, bytes: &[u8], now: Instant) -> bool {
        // A connection holds its peer back by itself: its questions are answered one after the other.
        if matches!(client.transport, Transport::Udp) {
            match self.throttle.fate(client.peer.ip().to_canonical(), now) {
                Fate::Read => {}
                Fate::Dropped => {
                    self.counters.total += 1;
                    self.counters.blocked += 1;
                    return true;
                }
                Fate::Recorded => {
                    self.counters.total += 1;
                    let peer = self.identify(client.peer.ip(), now);
                    self.record(client, now, &peer, None, Outcome::block("flood", None));
                    return true;
                }
            }
        }
        match message::read(bytes) {
            Incoming::Malformed => {
                tracing::debug!(target: "dns", peer = %client.peer, "malformed message");
                return false;
            }
            Incoming::Refused(refusal) => {
                self.counters.total += 1;
                let peer = self.identify(client.peer.ip(), now);
                // It costs an answer and an event like any denial.
                self.count_denied(&peer, client, now);
                let stranger = matches!(peer, Peer::Stranger);
                let reason = if stranger { "unknown_peer" } else { "refused_question" };
                let subject = refusal.question.as_ref().map(|question| Subject { question, name: None });
                self.record(client, now, &peer, subject, Outcome::block(reason, None));
                if let Some(bytes) = refusal.to_wire(stranger.then_some(ResponseCode::Refused)) {
                    self.actions.push(Action::Reply { client, bytes });
                }
            }
            Incoming::Query(query) => {
                self.counters.total += 1;
                let asked = Asked { query, client, arrival: now };
                match self.identify(client.peer.ip(), now) {
                    Peer::Unasked => self.hold(asked),
                    peer => self.judge(asked, peer, now),
                }
            }
        }
        true
    }

    /// The proxy asks for the addresses of a name that its rules allow.
    pub(in crate::dns) fn resolve(
        &mut self,
        name: HostName,
        reply: Reply<Result<Vec<IpAddr>, ResolveError>>,
        now: Instant,
    ) {
        if filter::is_local(&name) {
            reply.send(Err(ResolveError::NoSuchName));
        } else {
            self.resolve_type(Resolution { name, reply }, RecordType::A, now);
        }
    }

    /// A message on the socket of a lookup, from the upstream that it asked.
    pub(in crate::dns) fn answered(&mut self, lookup: u64, bytes: &[u8], now: Instant) {
        self.step(lookup, now, |lookup, upstreams, random| lookup.received(bytes, upstreams, random, now));
    }

    /// The socket of a lookup is of no more use.
    pub(in crate::dns) fn broken(&mut self, lookup: u64, now: Instant) {
        self.step(lookup, now, |lookup, upstreams, random| lookup.broken(upstreams, random, now));
    }

    /// The kernel's answer to a grant.
    pub(in crate::dns) fn granted(&mut self, ticket: u64, opened: bool) {
        let Some(granting) = self.grants.remove(&ticket) else { return };
        self.timers.remove(&(granting.deadline, Timer::Grant(ticket)));
        let Granting { allowed, answer, age, .. } = granting;
        self.close_peer(allowed.asked.client.peer.ip());
        if opened {
            // The rules may be others than those that asked for the grant.
            let vetted = self.vet(&allowed, &answer);
            self.send(allowed, &answer, age, &vetted);
        } else {
            self.fail(allowed, "grant_failed");
        }
    }

    /// Does what is due.
    pub(in crate::dns) fn tick(&mut self, now: Instant) {
        while self.held.front().is_some_and(|asked| asked.arrival + HOLD <= now) {
            if let Some(asked) = self.held.pop_front() {
                self.refuse(asked);
            }
        }
        while let Some((_, timer)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            match timer {
                Timer::Lookup(id) => {
                    self.step(id, now, |lookup, upstreams, random| lookup.timed_out(upstreams, random, now));
                }
                Timer::Grant(ticket) => {
                    tracing::warn!(target: "dns", "the bridge did not open a direct flow in time");
                    self.granted(ticket, false);
                }
            }
        }
    }

    fn identify(&self, address: IpAddr, arrival: Instant) -> Peer {
        Peer::identify(&self.snapshot.directory, &self.extra_peers, address, arrival)
    }

    fn hold(&mut self, asked: Asked) {
        let address = asked.client.peer.ip().to_canonical();
        let of_peer = self.held.iter().filter(|held| held.client.peer.ip().to_canonical() == address).count();
        if self.held.len() >= HELD_MAX || of_peer >= HELD_PER_PEER {
            return self.refuse(asked);
        }
        // Docker is asked once for each address; again when a directory came that was older than the question.
        if let (0, IpAddr::V4(address)) = (of_peer, address) {
            self.actions.push(Action::Identify(address));
        }
        self.held.push_back(asked);
    }

    fn judge(&mut self, asked: Asked, peer: Peer, now: Instant) {
        if !matches!(peer, Peer::Container(_) | Peer::Extra) {
            return self.refuse(asked);
        }
        match filter::judge(&self.snapshot.rules, &asked.query, &peer) {
            Judgement::Block { reason, rule } => {
                self.count_denied(&peer, asked.client, now);
                let text = blocked_text(rule.as_deref());
                let bytes = asked.query.no_such_name(Extended::Blocked, &text);
                self.finish(asked, &peer, Outcome::block(reason, rule), bytes);
            }
            Judgement::Empty { rule } => {
                let bytes = asked.query.no_data();
                self.finish(asked, &peer, Outcome::allow("no_data", rule), bytes);
            }
            Judgement::Resolve { key, rule } => match self.cache.find(&key, now) {
                Some((answer, age)) => self.deliver(Allowed { asked, peer, rule, name: key.name }, answer, age, now),
                None => {
                    let name = key.name.clone();
                    self.join(key, Allowed { asked, peer, rule, name }, now);
                }
            },
        }
    }

    fn count_denied(&mut self, peer: &Peer, client: Client, now: Instant) {
        if matches!(peer, Peer::Container(_)) {
            self.throttle.denied(client.peer.ip().to_canonical(), now);
        }
    }

    /// True when the peer may have one more open question, which is then counted.
    fn open_peer(&mut self, address: IpAddr) -> bool {
        let open = self.open.entry(address).or_default();
        let room = *open < OPEN_PER_PEER;
        if room {
            *open += 1;
        }
        room
    }

    fn close_peer(&mut self, address: IpAddr) {
        if let Some(open) = self.open.get_mut(&address) {
            *open -= 1;
            if *open == 0 {
                self.open.remove(&address);
            }
        }
    }
}

/// What an extended error says: the rule's id, which the proxy tells too, or that none allows the name.
fn blocked_text(rule: Option<&Rule>) -> String {
    match rule {
        Some(rule) => format!("outcall: blocked by rule {}", rule.id),
        None => "outcall: no rule allows this name".to_owned(),
    }
}
