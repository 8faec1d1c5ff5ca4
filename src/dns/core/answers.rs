//! What goes back to an asker: the addresses vetted for its own rule, direct flows opened first, the decision recorded.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Record, RecordType};

use crate::bridge::Grant;
use crate::dns::answer::{self, Answer};
use crate::dns::message::{Extended, type_text};
use crate::dns::vetted::{self, Vetted, direct_egress};
use crate::docker_manager::Peer;
use crate::events::{self, Event, HOST_MAX, Layer, Text, Verdict};
use crate::names::HostName;

use super::{Action, Allowed, Asked, Client, Core, Granting, Outcome, Subject, Timer};

/// Answers that wait for the kernel.
const GRANTS_MAX: usize = 1024;
/// How long the kernel may take to open direct flows.
const GRANT_WAIT: Duration = Duration::from_secs(2);
/// What an extended error says of addresses that are stripped.
const PRIVATE: &str = "outcall: only private or special-purpose addresses";
/// What it says of addresses that a rule blocks.
const FILTERED: &str = "outcall: its addresses are blocked";
/// Addresses of one answer whose packets are told to belong to it.
const FLOW_ADDRESSES_MAX: usize = 32;
/// The least and the longest time of a grant, in seconds: clients cache answers for longer
/// than a short TTL says, and an address given for a day may be another host's by then.
const GRANT_TTL: (u32, u32) = (60, 3600);

impl Core {
    /// Vets the addresses for this asker's rule, and opens the kernel for them where the rule is `direct_ip`.
    pub(super) fn deliver(&mut self, allowed: Allowed, answer: Arc<Answer>, age: u32, now: Instant) {
        let vetted = self.vet(&allowed, &answer);
        if vetted.none_passed() {
            let Allowed { asked, peer, rule, .. } = allowed;
            let reason = vetted.reason();
            let bytes = match reason {
                vetted::PRIVATE => asked.query.filtered(ResponseCode::ServFail, PRIVATE),
                _ => asked.query.no_such_name(Extended::Filtered, FILTERED),
            };
            return self.finish(asked, &peer, Outcome::block(reason, Some(rule)), bytes);
        }
        let direct = direct_egress(&allowed.rule).filter(|_| allowed.asked.query.record_type() == RecordType::A);
        let (Some(egress), Some(endpoint)) = (direct, allowed.peer.endpoint()) else {
            return self.send(allowed, &answer, age, &vetted);
        };
        let mut addresses: Vec<Ipv4Addr> =
            answer.addresses_v4().filter(|address| vetted.passes(IpAddr::V4(*address))).collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return self.send(allowed, &answer, age, &vetted);
        }
        let left = answer.records.iter().filter(|r| answer::address(r).is_some()).map(|r| r.ttl).min().unwrap_or(0);
        let ttl = left.saturating_sub(age).clamp(GRANT_TTL.0, GRANT_TTL.1);
        let grant = Grant {
            endpoint: Arc::clone(endpoint),
            name: allowed.name.as_str().into(),
            rule: Arc::clone(&allowed.rule),
            addresses,
            ports: egress.ports.clone(),
            ttl: Duration::from_secs(u64::from(ttl)),
        };
        if self.grants.len() >= GRANTS_MAX || !self.open_peer(allowed.asked.client.peer.ip()) {
            return self.fail(allowed, "overload");
        }
        self.next_id += 1;
        let (ticket, deadline) = (self.next_id, now + GRANT_WAIT);
        self.timers.insert((deadline, Timer::Grant(ticket)));
        self.grants.insert(ticket, Granting { allowed, answer, age, deadline });
        self.actions.push(Action::Grant { ticket, grant });
    }

    pub(super) fn send(&mut self, allowed: Allowed, answer: &Answer, age: u32, vetted: &Vetted) {
        // A client must ask again before the grant of a direct flow ends.
        let ttl_max = direct_egress(&allowed.rule).map_or(u32::MAX, |_| GRANT_TTL.1);
        let Allowed { asked, peer, rule, .. } = allowed;
        let keep = |record: &Record| vetted.keeps(record);
        let bytes = asked.query.answer(answer, age, ttl_max, asked.client.transport, keep);
        let address = asked.client.peer.ip().to_canonical();
        let flow = self.settle(asked, &peer, Outcome::allow("rule", rule), bytes);
        if let (Some(flow), Some(party)) = (flow, events::party(peer.endpoint().map(|it| &**it), Some(address))) {
            let given = answer.addresses().filter(|address| vetted.passes(*address)).take(FLOW_ADDRESSES_MAX);
            given.for_each(|address| self.events.flows().answered(party, address, flow));
        }
    }

    pub(super) fn vet(&self, allowed: &Allowed, answer: &Answer) -> Vetted {
        let Allowed { peer, rule, name, .. } = allowed;
        let addresses: Vec<IpAddr> = answer.addresses().collect();
        Vetted::of((&self.snapshot.rules, rule), peer, name, &addresses)
    }

    /// SERVFAIL, for a reason that is no rule's.
    pub(super) fn fail(&mut self, allowed: Allowed, reason: &'static str) {
        let bytes = allowed.asked.query.refuse(ResponseCode::ServFail);
        let Allowed { asked, peer, rule, .. } = allowed;
        tracing::debug!(target: "dns", name = %asked.query.question.name(), reason, "answered SERVFAIL");
        self.finish(asked, &peer, Outcome::allow(reason, rule), bytes);
    }

    pub(super) fn refuse(&mut self, asked: Asked) {
        let bytes = asked.query.refuse(ResponseCode::Refused);
        self.finish(asked, &Peer::Stranger, Outcome::block("unknown_peer", None), bytes);
    }

    pub(super) fn finish(&mut self, asked: Asked, peer: &Peer, outcome: Outcome, bytes: Option<Vec<u8>>) {
        self.settle(asked, peer, outcome, bytes);
    }

    /// Records the decision and answers; gives the number of the flow.
    fn settle(&mut self, asked: Asked, peer: &Peer, outcome: Outcome, bytes: Option<Vec<u8>>) -> Option<u64> {
        let Asked { query, client, arrival } = asked;
        let subject = Subject { question: &query.question, name: query.name.as_ref() };
        let flow = self.record(client, arrival, peer, Some(subject), outcome);
        // An answer that cannot be written (records that do not encode) is a failure like any other.
        if let Some(bytes) = bytes.or_else(|| query.refuse(ResponseCode::ServFail)) {
            self.actions.push(Action::Reply { client, bytes });
        }
        flow
    }

    /// Writes down a decision; gives the number of its flow.
    pub(super) fn record(
        &mut self,
        client: Client,
        arrival: Instant,
        peer: &Peer,
        subject: Option<Subject<'_>>,
        outcome: Outcome,
    ) -> Option<u64> {
        match outcome.verdict {
            Verdict::Allow => self.counters.allowed += 1,
            Verdict::Block => self.counters.blocked += 1,
        }
        let host: Option<Text<HOST_MAX>> = subject.map(|subject| match subject.name {
            Some(name) => name.as_str().into(),
            None => {
                let text = subject.question.name().to_ascii();
                HostName::parse(&text).map_or_else(|_| text.as_str().into(), |name| name.as_str().into())
            }
        });
        let record_type = subject.map(|subject| type_text(subject.question.query_type()));
        tracing::debug!(
            target: "dns", peer = %client.peer.ip(), host = host.as_deref(), record_type = record_type.as_deref(),
            rule = outcome.rule.as_ref().map_or("default", |rule| &rule.id), reason = outcome.reason,
            "{}", if outcome.verdict == Verdict::Allow { "allowed" } else { "blocked" }
        );
        let address = client.peer.ip().to_canonical();
        let party = events::party(peer.endpoint().map(|it| &**it), Some(address));
        let flow = party.zip(host.as_deref()).map(|(party, host)| self.events.flows().asked(party, host));
        self.events.record(Event {
            flow,
            endpoint: peer.endpoint().cloned(),
            peer: Some(address),
            rule: outcome.rule,
            host,
            protocol: Some(client.transport.name()),
            record_type: record_type.as_deref().map(Text::from),
            // The only look at a clock here: an event says how long it really took.
            duration_us: u64::try_from(arrival.elapsed().as_micros()).ok(),
            ..Event::new(Layer::Dns, outcome.verdict, outcome.reason)
        });
        flow
    }
}

impl Vetted {
    fn keeps(&self, record: &Record) -> bool {
        match answer::address(record) {
            Some(address) => self.passes(address),
            // A signature over a set that has lost members proves nothing any more.
            None => {
                let signs = matches!(answer::covered(record), Some(RecordType::A | RecordType::AAAA));
                !(signs && self.passed < self.found)
            }
        }
    }
}
