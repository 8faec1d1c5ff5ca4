//! The granted flows: who may reach what directly, why, and until when.
//!
//! Owns: the caps, refreshes, and the judgement whether a grant still holds, also for connections that run on after
//! their grant has ended. A flow is granted by names that resolved to it, by the operator, or by both. Does not own:
//! the kernel's set. A value: it is given the time and tells what to change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::docker_manager::Endpoint;
use crate::rule_engine::{Agent, RuleSet};

use super::Grant;
use super::operator::{MAX_OPERATED, MAX_OPERATED_PER_CONTAINER, OwnedFlow};
use super::ports::same_identity;
use super::readback::{FlowKey, FoundFlow};

/// Granted flows a container, the oldest out: a name with many answers stays usable, the kernel's set bounded.
pub const MAX_PER_CONTAINER: usize = 256;
/// Names remembered for one flow: several names can share an address; more than these are of no use to anybody.
const MAX_NAMES: usize = 16;
/// TCP, the protocol of grants that come from names.
const TCP: u8 = 6;

/// Container endpoints by their address, as the directory has them.
type Endpoints = HashMap<Ipv4Addr, Arc<Endpoint>>;

/// A granted flow.
struct Entry {
    endpoint: Arc<Endpoint>,
    /// The names that resolved to it, each with its own end.
    names: BTreeMap<Box<str>, Instant>,
    /// Until when the operator's own word opens it.
    operator: Option<Instant>,
    inserted_at: SystemTime,
    /// Grows with every grant and refresh: the least is the oldest.
    age: u64,
}

impl Entry {
    fn new(endpoint: &Arc<Endpoint>) -> Self {
        let endpoint = Arc::clone(endpoint);
        Entry { endpoint, names: BTreeMap::new(), operator: None, inserted_at: SystemTime::now(), age: 0 }
    }

    fn expires(&self) -> Option<Instant> {
        self.names.values().copied().chain(self.operator).max()
    }

    fn holds(&self) -> bool {
        !self.names.is_empty() || self.operator.is_some()
    }
}

/// A flow that was granted once: nothing new may begin, what runs goes on while the rules allow one of its names.
struct Past {
    endpoint: Arc<Endpoint>,
    names: BTreeSet<Box<str>>,
    /// The operator opened it: no rule that is taken away ends it.
    operator: bool,
    /// When it came here, on the book's clock.
    age: u64,
}

/// What to change in the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// Flows to close for new ones.
    pub close: Vec<FlowKey>,
    /// Flows to open, with milliseconds; for one that is open, what it has left from now on.
    pub open: Vec<(FlowKey, u64)>,
}

impl Change {
    /// Takes down what became of a flow that ended at `before`. One that another name holds must not keep the time of
    /// the name that is gone: the kernel would have it open when the book has forgotten it.
    fn note(&mut self, key: FlowKey, before: Option<Instant>, entry: &Entry, now: Instant) {
        match entry.expires() {
            None => self.close.push(key),
            Some(end) if Some(end) != before => self.open.push((key, milliseconds(end.saturating_duration_since(now)))),
            Some(_) => {}
        }
    }
}

/// What the book says of an operator's flow.
pub(super) struct Operated {
    pub change: Change,
    /// Whether the operator had not opened it already.
    pub new: bool,
    pub inserted_at: SystemTime,
    /// What is left: more than was asked for when it had more already.
    pub left: Duration,
}

/// A granted flow, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantedFlow {
    /// Whose.
    pub endpoint: Arc<Endpoint>,
    /// The address that may be reached.
    pub destination: Ipv4Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// The port that may be reached.
    pub port: u16,
    /// The names it was granted for.
    pub names: Vec<Box<str>>,
    /// When it was opened.
    pub inserted_at: SystemTime,
    /// How long new flows may begin.
    pub expires_in: Duration,
    /// The kernel's handle of the set that the element is in; elements have none of their own.
    pub handle: u64,
    /// Packets from the container since the element was made.
    pub packets: u64,
    /// Bytes of these.
    pub bytes: u64,
}

/// All granted flows.
#[derive(Default)]
pub(super) struct GrantBook {
    entries: HashMap<FlowKey, Entry>,
    past: HashMap<FlowKey, Past>,
    clock: u64,
    /// Operator's flows that ended otherwise than by their time: to be told to who keeps them.
    pub ended: Vec<OwnedFlow>,
}

impl GrantBook {
    /// Takes a grant in; gives what the kernel must change for it.
    pub fn grant(&mut self, grant: &Grant, now: Instant) -> Change {
        self.forget_expired(now);
        let until = now + grant.ttl;
        let mut keys = Vec::new();
        for address in &grant.addresses {
            for port in &grant.ports {
                keys.push(FlowKey {
                    source: grant.endpoint.address,
                    destination: *address,
                    protocol: TCP,
                    port: *port,
                });
            }
        }
        keys.truncate(MAX_PER_CONTAINER);
        let mut change = Change::default();
        for key in keys {
            self.clock += 1;
            let entry = self.entries.entry(key).or_insert_with(|| Entry::new(&grant.endpoint));
            entry.age = self.clock;
            entry.endpoint = Arc::clone(&grant.endpoint);
            if !entry.names.contains_key(&grant.name) && entry.names.len() >= MAX_NAMES {
                let first = entry.names.iter().min_by_key(|(_, end)| **end).map(|(name, _)| name.clone());
                first.map(|name| entry.names.remove(&name));
            }
            let end = entry.names.entry(grant.name.clone()).or_insert(until);
            *end = until.max(*end);
            let left = entry.expires().map_or(Duration::ZERO, |end| end.saturating_duration_since(now));
            change.open.push((key, milliseconds(left)));
        }
        change.close = self.evict(grant.endpoint.address);
        // A flow both opened and closed is not opened.
        change.open.retain(|(key, _)| !change.close.contains(key));
        change
    }

    /// Takes a flow in that the operator opens; one that is open already is never shortened.
    ///
    /// # Errors
    /// Which cap is reached.
    pub fn operate(
        &mut self,
        endpoint: &Arc<Endpoint>,
        key: FlowKey,
        lasts: Duration,
        now: Instant,
    ) -> Result<Operated, String> {
        self.forget_expired(now);
        let operated = || self.entries.iter().filter(|(_, entry)| entry.operator.is_some());
        let new = self.entries.get(&key).is_none_or(|entry| entry.operator.is_none());
        if new && operated().count() >= MAX_OPERATED {
            return Err(format!("{MAX_OPERATED} flows are opened by hand already; flush them, or write a rule"));
        }
        if new && operated().filter(|(other, _)| other.source == key.source).count() >= MAX_OPERATED_PER_CONTAINER {
            let name = &endpoint.container;
            return Err(format!(
                "{MAX_OPERATED_PER_CONTAINER} flows are opened by hand for {name} already; flush them, or write a rule"
            ));
        }
        self.clock += 1;
        let entry = self.entries.entry(key).or_insert_with(|| Entry::new(endpoint));
        entry.age = self.clock;
        let until = (now + lasts).max(entry.operator.unwrap_or(now));
        entry.operator = Some(until);
        let left = entry.expires().unwrap_or(until).saturating_duration_since(now);
        let inserted_at = entry.inserted_at;
        let change = Change { open: vec![(key, milliseconds(left))], close: self.evict(key.source) };
        Ok(Operated { change, new, inserted_at, left: until.saturating_duration_since(now) })
    }

    /// Takes the operator's word for a flow back; it closes when no name holds it, and else ends with its names.
    pub fn take_back(&mut self, key: &FlowKey, now: Instant) -> Change {
        self.forget_expired(now);
        let mut change = Change::default();
        if let Some(entry) = self.entries.get_mut(key) {
            let before = entry.expires();
            entry.operator = None;
            change.note(*key, before, entry, now);
        }
        if !change.close.is_empty() {
            self.entries.remove(key);
        }
        change
    }

    /// Takes out the oldest flows of `source` beyond the cap; never one that the operator opened, so that a container
    /// cannot push it out by resolving names.
    fn evict(&mut self, source: Ipv4Addr) -> Vec<FlowKey> {
        let own = || self.entries.iter().filter(|(key, _)| key.source == source);
        let surplus = own().count().saturating_sub(MAX_PER_CONTAINER);
        let mut candidates: Vec<(u64, FlowKey)> =
            own().filter(|(_, entry)| entry.operator.is_none()).map(|(key, entry)| (entry.age, *key)).collect();
        candidates.sort_unstable();
        let evicted: Vec<FlowKey> = candidates.into_iter().take(surplus).map(|(_, key)| key).collect();
        for key in &evicted {
            if let Some(entry) = self.entries.remove(key) {
                self.remember(*key, &entry.endpoint, entry.names.into_keys(), false);
            }
        }
        evicted
    }

    /// Keeps the names of a grant that ended by itself, the latest [`MAX_PER_CONTAINER`] flows of each container: what
    /// runs on beyond these ends with the next rules.
    fn remember(
        &mut self,
        key: FlowKey,
        endpoint: &Arc<Endpoint>,
        names: impl Iterator<Item = Box<str>>,
        operator: bool,
    ) {
        self.clock += 1;
        let fresh = || Past { endpoint: Arc::clone(endpoint), names: BTreeSet::new(), operator: false, age: 0 };
        let past = self.past.entry(key).or_insert_with(fresh);
        past.age = self.clock;
        past.names.extend(names);
        past.operator |= operator;
        while past.names.len() > MAX_NAMES {
            past.names.pop_first();
        }
        let own = || self.past.iter().filter(|(other, _)| other.source == key.source);
        if own().count() > MAX_PER_CONTAINER {
            let oldest = own().min_by_key(|(_, past)| past.age).map(|(key, _)| *key);
            oldest.map(|key| self.past.remove(&key));
        }
    }

    /// Takes out what `rules` no longer allow to the containers as `endpoints` names them now; gives the flows to close
    /// for new connections, and those that end earlier now. Those running end where [`GrantBook::may_run`] says no.
    pub fn rejudge(&mut self, rules: &RuleSet, endpoints: &Endpoints, now: Instant) -> Change {
        self.forget_expired(now);
        for (key, entry) in &mut self.entries {
            rename(&mut entry.endpoint, endpoints.get(&key.source));
        }
        for (key, past) in &mut self.past {
            rename(&mut past.endpoint, endpoints.get(&key.source));
        }
        let mut change = Change::default();
        self.entries.retain(|key, entry| {
            let (endpoint, before) = (&entry.endpoint, entry.expires());
            entry.names.retain(|name, _| allowed(rules, endpoint, name, key.destination, key.port));
            change.note(*key, before, entry, now);
            entry.holds()
        });
        self.past.retain(|key, past| {
            let endpoint = &past.endpoint;
            past.names.retain(|name| allowed(rules, endpoint, name, key.destination, key.port));
            !past.names.is_empty() || past.operator
        });
        change
    }

    /// Whether a running connection of this flow may go on: its grant is in force, or has ended by itself only.
    pub fn may_run(&self, key: &FlowKey) -> bool {
        self.entries.contains_key(key) || self.past.contains_key(key)
    }

    /// Whether any connection may be running that new rules could end.
    pub fn any(&self) -> bool {
        !self.entries.is_empty() || !self.past.is_empty()
    }

    /// Whose flows are in force or may run, of those that `known` does not know.
    pub fn orphans(&self, known: impl Fn(&Endpoint) -> bool) -> Vec<Arc<Endpoint>> {
        let endpoints = self.entries.values().map(|entry| &entry.endpoint);
        let mut found: Vec<Arc<Endpoint>> = Vec::new();
        for endpoint in endpoints.chain(self.past.values().map(|past| &past.endpoint)) {
            if !known(endpoint) && !found.iter().any(|other| same_identity(other, endpoint)) {
                found.push(Arc::clone(endpoint));
            }
        }
        found
    }

    /// Takes out every flow of an identity; gives the flows to close.
    pub fn revoke(&mut self, endpoint: &Endpoint) -> Vec<FlowKey> {
        self.past.retain(|_, past| !same_identity(&past.endpoint, endpoint));
        self.take(|entry| same_identity(&entry.endpoint, endpoint))
    }

    /// Takes out everything; gives the flows to close.
    pub fn revoke_all(&mut self) -> Vec<FlowKey> {
        self.past.clear();
        self.take(|_| true)
    }

    /// The flows in force, with the milliseconds they have left.
    pub fn flows(&mut self, now: Instant) -> Vec<(FlowKey, u64)> {
        self.forget_expired(now);
        let left = |entry: &Entry| entry.expires().map_or(Duration::ZERO, |end| end.saturating_duration_since(now));
        self.entries.iter().map(|(key, entry)| (*key, milliseconds(left(entry)))).collect()
    }

    /// Takes one flow out.
    pub fn forget(&mut self, key: &FlowKey) {
        if let Some(entry) = self.entries.remove(key).filter(|entry| entry.operator.is_some()) {
            self.ended.push(OwnedFlow::new(&entry.endpoint.container_id, *key));
        }
    }

    /// Whether a flow is in force.
    pub fn holds(&self, key: &FlowKey) -> bool {
        self.entries.contains_key(key)
    }

    /// A flow for the operator, with the kernel's counters.
    pub fn describe(&self, found: &FoundFlow, handle: u64, now: Instant) -> Option<GrantedFlow> {
        let FoundFlow { key, packets, bytes, .. } = *found;
        let entry = self.entries.get(&key)?;
        Some(GrantedFlow {
            inserted_at: entry.inserted_at,
            handle,
            endpoint: Arc::clone(&entry.endpoint),
            destination: key.destination,
            protocol: key.protocol,
            port: key.port,
            names: entry.names.keys().cloned().collect(),
            expires_in: entry.expires()?.saturating_duration_since(now),
            packets,
            bytes,
        })
    }

    fn take(&mut self, which: impl Fn(&Entry) -> bool) -> Vec<FlowKey> {
        let mut closed = Vec::new();
        let ended = &mut self.ended;
        self.entries.retain(|key, entry| {
            let taken = which(entry);
            if taken {
                closed.push(*key);
            }
            if taken && entry.operator.is_some() {
                ended.push(OwnedFlow::new(&entry.endpoint.container_id, *key));
            }
            !taken
        });
        closed
    }

    fn forget_expired(&mut self, now: Instant) {
        let mut expired = Vec::new();
        self.entries.retain(|key, entry| {
            let ended: Vec<Box<str>> =
                entry.names.iter().filter(|(_, end)| **end <= now).map(|(name, _)| name.clone()).collect();
            let operator = entry.operator.take_if(|end| *end <= now).is_some();
            if !ended.is_empty() || operator {
                entry.names.retain(|_, end| *end > now);
                expired.push((*key, Arc::clone(&entry.endpoint), ended, operator));
            }
            entry.holds()
        });
        for (key, endpoint, names, operator) in expired {
            self.remember(key, &endpoint, names.into_iter(), operator);
        }
    }
}

/// Takes the name over that the same container has now. Another one at its address leaves the flow's owner as it was,
/// to be found by [`GrantBook::orphans`].
fn rename(endpoint: &mut Arc<Endpoint>, now: Option<&Arc<Endpoint>>) {
    if let Some(now) = now.filter(|now| same_identity(now, endpoint)) {
        *endpoint = Arc::clone(now);
    }
}

/// The decision that the DNS filter took, taken anew: whether a `direct_ip` rule allows this flow.
pub(super) fn allowed(rules: &RuleSet, endpoint: &Endpoint, name: &str, address: Ipv4Addr, port: u16) -> bool {
    let agent = Agent { name: Some(&endpoint.agent), container: Some(&endpoint.container) };
    rules.opens_directly(agent, name, address, port)
}

/// At least one: the kernel takes zero for "no timeout".
fn milliseconds(left: Duration) -> u64 {
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
#[path = "grants_tests.rs"]
mod tests;
