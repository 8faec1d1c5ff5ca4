//! One question to the upstreams: which is asked, over what, until when, and which messages are its answer.
//! RFC 5452 (forgery), 7766 (TCP), draft-vixie-dnsext-dns0x20 (case as extra entropy).
//!
//! Owns: the state of a question in flight. Does not own: sockets, and who waits for the answer.

use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::{DNSClass, Name};

use super::answer::Answer;
use super::cache::Key;
use super::message::{Transport, own_edns};
use super::random::Random;

/// How long one upstream may take over UDP: three packets' worth of an ordinary round trip and a cold recursion.
const TRY_UDP: Duration = Duration::from_millis(1200);
/// How long one upstream may take over TCP, connection included.
const TRY_TCP: Duration = Duration::from_millis(2000);
/// How long a question may take in all: below the 5 s after which a C library asks again.
pub(super) const LOOKUP: Duration = Duration::from_millis(4500);
/// Messages on one socket that are not its answer; past it somebody is guessing, and TCP is asked, which cannot be
/// guessed into. In messages.
const FORGED_MAX: u32 = 8;
/// How often a silent upstream is asked at most, in tries.
const ROUNDS: usize = 2;
/// An upstream that let a question time out is asked last for so long.
const PENALTY: Duration = Duration::from_secs(10);

/// The upstreams and which of them are out of favour.
pub(super) struct Upstreams {
    addresses: Vec<std::net::SocketAddr>,
    avoided_until: Vec<Option<Instant>>,
    /// Messages since the start that were no answer to what was asked.
    forged: u64,
}

impl Upstreams {
    pub(super) fn new(addresses: Vec<std::net::SocketAddr>) -> Self {
        let avoided_until = vec![None; addresses.len()];
        Upstreams { addresses, avoided_until, forged: 0 }
    }

    pub(super) fn addresses(&self) -> &[std::net::SocketAddr] {
        &self.addresses
    }

    /// In the order given, those out of favour last.
    fn order(&self, now: Instant) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.addresses.len()).collect();
        order.sort_by_key(|&index| self.avoided_until[index].is_some_and(|until| now < until));
        order
    }

    fn failed(&mut self, index: usize, now: Instant) {
        self.avoided_until[index] = Some(now + PENALTY);
    }

    fn answered(&mut self, index: usize) {
        self.avoided_until[index] = None;
    }
}

/// What the owner of the sockets is to do next for a question.
#[derive(Debug)]
pub(super) enum Step {
    /// Close what is open for this question and send this from a fresh socket.
    Ask { upstream: std::net::SocketAddr, transport: Transport, message: Vec<u8> },
    /// Go on waiting.
    Wait,
    /// The answer.
    Done(Answer),
    /// There is none.
    Failed(Failure),
}

/// Why a question has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nobody answered in time.
    Timeout,
    /// Every upstream failed or refused.
    Upstream,
    /// We are at a limit of our own.
    Overload,
}

/// A question in flight.
pub(super) struct Lookup {
    pub(super) key: Key,
    name: Name,
    id: u16,
    /// The name as sent in this try.
    sent: Name,
    transport: Transport,
    edns: bool,
    order: Vec<usize>,
    /// Index into `order`.
    at: usize,
    forged: u32,
    /// Some upstream said something, be it a refusal.
    heard: bool,
    give_up: Instant,
    try_ends: Instant,
}

impl Lookup {
    /// Begins a question; the step is an [`Step::Ask`] unless there is nobody to ask.
    pub(super) fn begin(key: Key, upstreams: &Upstreams, random: &mut Random, now: Instant) -> (Self, Step) {
        // A normal form is always a name; were it not, the root is asked for and answers nothing that is wanted.
        let labels = key.name.as_str().split('.').map(str::as_bytes);
        let mut name = Name::from_labels(labels).unwrap_or_else(|_| Name::root());
        name.set_fqdn(true);
        let mut lookup = Lookup {
            key,
            sent: name.clone(),
            name,
            id: 0,
            transport: Transport::Udp,
            edns: true,
            order: upstreams.order(now),
            at: 0,
            forged: 0,
            heard: false,
            give_up: now + LOOKUP,
            try_ends: now,
        };
        let step = lookup.ask(Transport::Udp, upstreams, random, now);
        (lookup, step)
    }

    /// When [`Lookup::timed_out`] is due.
    pub(super) fn deadline(&self) -> Instant {
        self.try_ends
    }

    /// A message that came on the socket of the current try; its source was the upstream asked.
    pub(super) fn received(
        &mut self,
        bytes: &[u8],
        upstreams: &mut Upstreams,
        random: &mut Random,
        now: Instant,
    ) -> Step {
        let message = match self.matching(bytes) {
            Match::Answer(message) => message,
            // The server does not keep the case: over TCP the case proves nothing and is not needed.
            Match::OtherCase => return self.ask(Transport::Tcp, upstreams, random, now),
            Match::Forged if self.transport == Transport::Tcp => return self.next(upstreams, random, now),
            Match::Forged => {
                self.forged += 1;
                upstreams.forged += 1;
                if self.forged < FORGED_MAX {
                    return Step::Wait;
                }
                tracing::warn!(
                    target: "dns", name = %self.key.name, total = upstreams.forged,
                    "answers that match no question keep coming; asking over TCP"
                );
                return self.ask(Transport::Tcp, upstreams, random, now);
            }
        };
        let upstream = self.order[self.at];
        self.heard = true;
        upstreams.answered(upstream);
        if message.metadata.truncation && self.transport == Transport::Udp {
            return self.ask(Transport::Tcp, upstreams, random, now);
        }
        let no_edns = matches!(message.metadata.response_code, ResponseCode::FormErr | ResponseCode::NotImp)
            && message.edns.is_none();
        if self.edns && no_edns {
            // RFC 6891 6.2.2: a server from before EDNS0.
            self.edns = false;
            return self.ask(self.transport, upstreams, random, now);
        }
        match Answer::read(message, &self.name, self.key.record_type, self.key.dnssec) {
            Ok(answer) => Step::Done(answer),
            Err(reason) => {
                // No penalty: the server works, perhaps only not for this name.
                tracing::debug!(target: "dns", name = %self.key.name, ?reason, "upstream gave no usable answer");
                self.next(upstreams, random, now)
            }
        }
    }

    /// The current try cannot go on: no route, connection refused or closed.
    pub(super) fn broken(&mut self, upstreams: &mut Upstreams, random: &mut Random, now: Instant) -> Step {
        self.heard = true;
        upstreams.failed(self.order[self.at], now);
        self.next(upstreams, random, now)
    }

    /// The current try has had its time.
    pub(super) fn timed_out(&mut self, upstreams: &mut Upstreams, random: &mut Random, now: Instant) -> Step {
        let upstream = self.order[self.at];
        upstreams.failed(upstream, now);
        if self.order.len() < ROUNDS * upstreams.addresses.len() {
            // A lost packet is no dead server: once more, after the others.
            self.order.push(upstream);
        }
        self.next(upstreams, random, now)
    }

    fn next(&mut self, upstreams: &Upstreams, random: &mut Random, now: Instant) -> Step {
        self.at += 1;
        if self.at >= self.order.len() {
            return Step::Failed(if self.heard { Failure::Upstream } else { Failure::Timeout });
        }
        self.edns = true;
        self.ask(Transport::Udp, upstreams, random, now)
    }

    fn ask(&mut self, transport: Transport, upstreams: &Upstreams, random: &mut Random, now: Instant) -> Step {
        if now >= self.give_up {
            return Step::Failed(Failure::Timeout);
        }
        let Some(&upstream) = self.order.get(self.at).and_then(|&index| upstreams.addresses.get(index)) else {
            return Step::Failed(Failure::Upstream);
        };
        let (Some(id), Some(case)) = (random.bytes::<2>(), random.bytes::<32>()) else {
            return Step::Failed(Failure::Overload);
        };
        self.id = u16::from_be_bytes(id);
        self.sent = mix_case(&self.name, &case);
        self.transport = transport;
        self.forged = 0;
        let limit = if transport == Transport::Udp { TRY_UDP } else { TRY_TCP };
        self.try_ends = (now + limit).min(self.give_up);
        match self.message().to_vec() {
            Ok(message) => Step::Ask { upstream, transport, message },
            Err(_) => Step::Failed(Failure::Upstream),
        }
    }

    fn message(&self) -> Message {
        let mut message = Message::new(self.id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        // "Say whether you validated it" (RFC 6840 5.7).
        message.metadata.authentic_data = true;
        message.queries.push(Question::query(self.sent.clone(), self.key.record_type));
        if self.edns {
            message.set_edns(own_edns(self.key.dnssec));
        }
        message
    }

    fn matching(&self, bytes: &[u8]) -> Match {
        // Id and flags before the body: a flood of guesses is not worth parsing.
        let header = bytes.first_chunk::<6>();
        let plausible = header.is_some_and(|h| {
            h[..2] == self.id.to_be_bytes() && h[2] & 0xf8 == 0x80 && u16::from_be_bytes([h[4], h[5]]) == 1
        });
        let Some(message) = plausible.then(|| Message::from_vec(bytes).ok()).flatten() else { return Match::Forged };
        let [question] = message.queries.as_slice() else { return Match::Forged };
        let same = *question.name() == self.sent
            && question.query_type() == self.key.record_type
            && question.query_class() == DNSClass::IN;
        if !same {
            return Match::Forged;
        }
        if self.transport == Transport::Udp && !question.name().eq_case(&self.sent) {
            return Match::OtherCase;
        }
        Match::Answer(message)
    }
}

enum Match {
    Answer(Message),
    OtherCase,
    Forged,
}

/// Gives each letter of `name` the case that the next bit of `bits` says.
fn mix_case(name: &Name, bits: &[u8; 32]) -> Name {
    let mut position = 0_usize;
    let mut labels: Vec<Vec<u8>> = Vec::with_capacity(usize::from(name.num_labels()));
    for label in name.iter() {
        let mixed = label.iter().map(|&byte| {
            let upper = bits[(position / 8) % bits.len()] >> (position % 8) & 1 == 1;
            position += 1;
            if upper { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() }
        });
        labels.push(mixed.collect());
    }
    let mut mixed = Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap_or_else(|_| name.clone());
    mixed.set_fqdn(true);
    mixed
}
