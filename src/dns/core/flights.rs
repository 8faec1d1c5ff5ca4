//! Questions to upstream: equal ones are asked once, and all who wait get the one answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::dns::ResolveError;
use crate::dns::answer::Answer;
use crate::dns::cache::Key;
use crate::dns::lookup::{Failure, Lookup, Step, Upstreams};
use crate::dns::random::Random;
use crate::event_loop::Reply;
use crate::names::HostName;

use super::{Action, Allowed, Core, Timer};

/// Askers of one question in flight.
const ASKERS_MAX: usize = 512;
/// Questions in flight that clients began; each has one socket. Five clients at their limit fill it.
pub(in crate::dns) const LOOKUPS_CLIENTS: usize = 512;
/// Questions in flight that the proxy began, counted apart so that neither starves the other: four containers with
/// every connection that the proxy gives one, each to another name.
pub(in crate::dns) const LOOKUPS_PROXY: usize = 1024;

/// The proxy waits for the addresses of a name.
pub(super) struct Resolution {
    pub(super) name: HostName,
    pub(super) reply: Reply<Result<Vec<IpAddr>, ResolveError>>,
}

/// A question in flight and who waits for it.
pub(super) struct Flight {
    pub(super) lookup: Lookup,
    for_proxy: bool,
    pub(super) armed: Instant,
    pub(super) clients: Vec<Allowed>,
    pub(super) resolutions: Vec<Resolution>,
}

impl Core {
    /// Waits for the answer to `key`, together with all who ask the same.
    pub(super) fn join(&mut self, key: Key, allowed: Allowed, now: Instant) {
        let client = allowed.asked.client;
        let flight = self.by_key.get(&key).and_then(|id| self.flights.get(id));
        if let Some(flight) = flight {
            let repeats =
                |other: &Allowed| other.asked.client == client && allowed.asked.query.repeats(&other.asked.query);
            if flight.clients.iter().any(repeats) {
                return;
            }
            if flight.clients.len() >= ASKERS_MAX {
                return self.fail(allowed, "overload");
            }
        } else if self.flights.len() - self.proxy_flights >= LOOKUPS_CLIENTS {
            return self.fail(allowed, "overload");
        }
        if !self.open_peer(client.peer.ip()) {
            return self.fail(allowed, "overload");
        }
        let (id, step) = self.flight(key, false, now);
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.clients.push(allowed);
        }
        self.apply(id, step, now);
    }

    pub(super) fn resolve_type(&mut self, resolution: Resolution, record_type: RecordType, now: Instant) {
        let key = Key { name: resolution.name.clone(), record_type, dnssec: false };
        if let Some((answer, _)) = self.cache.find(&key, now) {
            return self.conclude(resolution, record_type, &answer, now);
        }
        let known = self.by_key.get(&key).and_then(|id| self.flights.get(id));
        let full = match known {
            Some(flight) => flight.resolutions.len() >= ASKERS_MAX,
            None => self.proxy_flights >= LOOKUPS_PROXY,
        };
        if full {
            return resolution.reply.send(Err(ResolveError::Failed));
        }
        let (id, step) = self.flight(key, true, now);
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.resolutions.push(resolution);
        }
        self.apply(id, step, now);
    }

    fn conclude(&mut self, resolution: Resolution, record_type: RecordType, answer: &Answer, now: Instant) {
        let addresses: Vec<IpAddr> = answer.addresses().collect();
        if !addresses.is_empty() {
            resolution.reply.send(Ok(addresses));
        } else if answer.code == ResponseCode::NXDomain {
            resolution.reply.send(Err(ResolveError::NoSuchName));
        } else if record_type == RecordType::A {
            self.resolve_type(resolution, RecordType::AAAA, now);
        } else {
            resolution.reply.send(Err(ResolveError::NoAddress));
        }
    }

    /// The flight of `key`, begun if there is none.
    fn flight(&mut self, key: Key, for_proxy: bool, now: Instant) -> (u64, Step) {
        if let Some(&id) = self.by_key.get(&key) {
            return (id, Step::Wait);
        }
        self.next_id += 1;
        let id = self.next_id;
        let (lookup, step) = Lookup::begin(key.clone(), &self.upstreams, &mut self.random, now);
        let armed = lookup.deadline();
        self.timers.insert((armed, Timer::Lookup(id)));
        self.by_key.insert(key, id);
        self.proxy_flights += usize::from(for_proxy);
        self.flights.insert(id, Flight { lookup, for_proxy, armed, clients: Vec::new(), resolutions: Vec::new() });
        (id, step)
    }

    pub(super) fn step(
        &mut self,
        id: u64,
        now: Instant,
        act: impl FnOnce(&mut Lookup, &mut Upstreams, &mut Random) -> Step,
    ) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let step = act(&mut flight.lookup, &mut self.upstreams, &mut self.random);
        let due = flight.lookup.deadline();
        if due != flight.armed {
            self.timers.remove(&(flight.armed, Timer::Lookup(id)));
            self.timers.insert((due, Timer::Lookup(id)));
            flight.armed = due;
        }
        self.apply(id, step, now);
    }

    fn apply(&mut self, id: u64, step: Step, now: Instant) {
        match step {
            Step::Wait => {}
            Step::Ask { upstream, transport, message } => {
                self.actions.push(Action::Ask { lookup: id, upstream, transport, message });
            }
            Step::Done(answer) => self.complete(id, Ok(Arc::new(answer)), now),
            Step::Failed(failure) => self.complete(id, Err(failure), now),
        }
    }

    fn complete(&mut self, id: u64, outcome: Result<Arc<Answer>, Failure>, now: Instant) {
        let Some(flight) = self.flights.remove(&id) else { return };
        self.proxy_flights -= usize::from(flight.for_proxy);
        let key = flight.lookup.key;
        self.by_key.remove(&key);
        self.timers.remove(&(flight.armed, Timer::Lookup(id)));
        self.actions.push(Action::Close { lookup: id });
        if let Ok(answer) = &outcome {
            self.cache.keep(key.clone(), Arc::clone(answer), now);
        }
        for allowed in flight.clients {
            self.close_peer(allowed.asked.client.peer.ip());
            match &outcome {
                Ok(answer) => self.deliver(allowed, Arc::clone(answer), 0, now),
                Err(Failure::Timeout) => self.fail(allowed, "upstream_timeout"),
                Err(Failure::Upstream) => self.fail(allowed, "upstream_failed"),
                Err(Failure::Overload) => self.fail(allowed, "overload"),
            }
        }
        for resolution in flight.resolutions {
            match &outcome {
                Ok(answer) => self.conclude(resolution, key.record_type, answer, now),
                Err(Failure::Timeout) => resolution.reply.send(Err(ResolveError::Timeout)),
                Err(_) => resolution.reply.send(Err(ResolveError::Failed)),
            }
        }
    }
}
