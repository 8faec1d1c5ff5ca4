//! The granted flows: who may reach what directly, why, and until when.
//!
//! Owns: the cap per container, refreshes, and the judgement whether a grant still holds, also for connections that
//! run on after their grant has ended. Does not own: the kernel's set. A value: it is given the time and tells what to
//! change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::docker_manager::Endpoint;
use crate::rule_engine::{Agent, RuleSet};

use super::Grant;
use super::ports::same_identity;
use super::readback::FlowKey;

/// Granted flows a container, the oldest out: a name with many answers stays usable, the kernel's set bounded.
pub const MAX_PER_CONTAINER: usize = 256;
/// Names remembered for one flow: several names can share an address; more than these are of no use to anybody.
const MAX_NAMES: usize = 16;
/// TCP, the protocol of grants that come from names.
const TCP: u8 = 6;

/// A granted flow.
struct Entry {
    endpoint: Arc<Endpoint>,
    /// The names that resolved to it, each with its own end.
    names: BTreeMap<Box<str>, Instant>,
    /// Grows with every grant and refresh: the least is the oldest.
    age: u64,
}

impl Entry {
    fn expires(&self) -> Option<Instant> {
        self.names.values().max().copied()
    }
}

/// A flow that was granted once: nothing new may begin, what runs goes on while the rules allow one of its names.
struct Past {
    endpoint: Arc<Endpoint>,
    names: BTreeSet<Box<str>>,
    /// When it came here, on the book's clock.
    age: u64,
}

/// What to change in the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// Flows to close for new ones.
    pub close: Vec<FlowKey>,
    /// Flows to open, with milliseconds.
    pub open: Vec<(FlowKey, u64)>,
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
    /// Until when new flows may begin.
    pub expires_in: Duration,
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
            let entry = self.entries.entry(key).or_insert_with(|| Entry {
                endpoint: Arc::clone(&grant.endpoint),
                names: BTreeMap::new(),
                age: 0,
            });
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

    /// Takes out the oldest flows of `source` beyond the cap.
    fn evict(&mut self, source: Ipv4Addr) -> Vec<FlowKey> {
        let mut own: Vec<(u64, FlowKey)> =
            self.entries.iter().filter(|(key, _)| key.source == source).map(|(key, entry)| (entry.age, *key)).collect();
        let surplus = own.len().saturating_sub(MAX_PER_CONTAINER);
        own.sort_unstable();
        let evicted: Vec<FlowKey> = own.into_iter().take(surplus).map(|(_, key)| key).collect();
        for key in &evicted {
            if let Some(entry) = self.entries.remove(key) {
                self.remember(*key, &entry.endpoint, entry.names.into_keys());
            }
        }
        evicted
    }

    /// Keeps the names of a grant that ended by itself, the latest [`MAX_PER_CONTAINER`] flows of each container: what
    /// runs on beyond these ends with the next rules.
    fn remember(&mut self, key: FlowKey, endpoint: &Arc<Endpoint>, names: impl Iterator<Item = Box<str>>) {
        self.clock += 1;
        let fresh = || Past { endpoint: Arc::clone(endpoint), names: BTreeSet::new(), age: 0 };
        let past = self.past.entry(key).or_insert_with(fresh);
        past.age = self.clock;
        past.names.extend(names);
        while past.names.len() > MAX_NAMES {
            past.names.pop_first();
        }
        let own = || self.past.iter().filter(|(other, _)| other.source == key.source);
        if own().count() > MAX_PER_CONTAINER {
            let oldest = own().min_by_key(|(_, past)| past.age).map(|(key, _)| *key);
            oldest.map(|key| self.past.remove(&key));
        }
    }

    /// Takes out what `rules` no longer allow; gives the flows to close for new connections. Those running end where
    /// [`GrantBook::may_run`] says no.
    pub fn rejudge(&mut self, rules: &RuleSet, now: Instant) -> Vec<FlowKey> {
        self.forget_expired(now);
        let mut closed = Vec::new();
        self.entries.retain(|key, entry| {
            let endpoint = &entry.endpoint;
            entry.names.retain(|name, _| allowed(rules, endpoint, name, key.destination, key.port));
            if entry.names.is_empty() {
                closed.push(*key);
            }
            !entry.names.is_empty()
        });
        self.past.retain(|key, past| {
            let endpoint = &past.endpoint;
            past.names.retain(|name| allowed(rules, endpoint, name, key.destination, key.port));
            !past.names.is_empty()
        });
        closed
    }

    /// Whether a running connection of this flow may go on: its grant is in force, or has ended by itself only.
    pub fn may_run(&self, key: &FlowKey) -> bool {
        self.entries.contains_key(key) || self.past.contains_key(key)
    }

    /// Whether any connection may be running that new rules could end.
    pub fn any(&self) -> bool {
        !self.entries.is_empty() || !self.past.is_empty()
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
        self.entries.remove(key);
    }

    /// Whether a flow is in force.
    pub fn holds(&self, key: &FlowKey) -> bool {
        self.entries.contains_key(key)
    }

    /// A flow for the operator, with the kernel's counters.
    pub fn describe(&self, key: &FlowKey, now: Instant, packets: u64, bytes: u64) -> Option<GrantedFlow> {
        let entry = self.entries.get(key)?;
        Some(GrantedFlow {
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
        self.entries.retain(|key, entry| {
            let taken = which(entry);
            if taken {
                closed.push(*key);
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
            if !ended.is_empty() {
                entry.names.retain(|_, end| *end > now);
                expired.push((*key, Arc::clone(&entry.endpoint), ended));
            }
            !entry.names.is_empty()
        });
        for (key, endpoint, names) in expired {
            self.remember(key, &endpoint, names.into_iter());
        }
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
mod tests {
    use super::*;
    use crate::docker_manager::ManagedNetwork;
    use crate::rule_engine::{Guard, Interception, LoadOptions, Source, load_sources};

    fn rules(names: &[&str]) -> Arc<RuleSet> {
        let rule = |name: &&str| {
            let condition = format!("dns.query == \"{name}\" && agent.name == \"agent\"");
            format!("  - {{ id: {name}, condition: '{condition}', action: allow, egress: {{ mode: direct_ip }} }}\n")
        };
        let text = format!("version: '1'\nrules:\n{}", names.iter().map(rule).collect::<String>());
        let options = LoadOptions { proxy: true, interception: Interception::Absent, guard: Guard::InProcess };
        load_sources(&[Source { name: "test.yaml".to_owned(), text }], &options, None).unwrap().set
    }

    fn endpoint() -> Arc<Endpoint> {
        Arc::new(Endpoint {
            container_id: "1".into(),
            container: "agent-1".into(),
            agent: "agent".into(),
            network: Arc::new(ManagedNetwork {
                name: "outcall-default".to_owned(),
                id: String::new(),
                bridge: "outcall0".to_owned(),
                subnet: "10.200.0.0/24".parse().unwrap(),
                gateway: "10.200.0.1".parse().unwrap(),
            }),
            address: Ipv4Addr::new(10, 200, 0, 2),
            mac: [2, 0, 0, 0, 0, 2],
            sandbox_key: String::new(),
            pid: 1,
        })
    }

    fn grant(rules: &RuleSet, name: &str, address: u32, seconds: u64) -> Grant {
        Grant {
            endpoint: endpoint(),
            name: name.into(),
            rule: Arc::clone(&rules.rules()[0]),
            addresses: vec![Ipv4Addr::from_bits(0x0808_0000 + address)],
            ports: vec![443],
            ttl: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn the_oldest_flow_of_a_container_makes_room() {
        let (rules, now) = (rules(&["a.example"]), Instant::now());
        let mut book = GrantBook::default();
        for address in 0..256 {
            assert!(book.grant(&grant(&rules, "a.example", address, 60), now).close.is_empty());
        }
        // A refresh makes the first one the youngest.
        book.grant(&grant(&rules, "a.example", 0, 60), now);
        let change = book.grant(&grant(&rules, "a.example", 1000, 60), now);
        assert_eq!(change.close.iter().map(|key| key.destination).collect::<Vec<_>>(), [Ipv4Addr::new(8, 8, 0, 1)]);
        assert_eq!((change.open.len(), book.flows(now).len()), (1, MAX_PER_CONTAINER));
    }

    #[test]
    fn a_refresh_never_shortens() {
        let (rules, now) = (rules(&["a.example"]), Instant::now());
        let mut book = GrantBook::default();
        book.grant(&grant(&rules, "a.example", 1, 600), now);
        let later = now + Duration::from_secs(100);
        assert_eq!(book.grant(&grant(&rules, "a.example", 1, 60), later).open[0].1, 500_000);
        assert_eq!(book.flows(now + Duration::from_secs(601)), []);
    }

    #[test]
    fn a_flow_holds_as_long_as_one_of_its_names_is_allowed() {
        let (both, now) = (rules(&["a.example", "b.example"]), Instant::now());
        let mut book = GrantBook::default();
        book.grant(&grant(&both, "a.example", 1, 60), now);
        book.grant(&grant(&both, "b.example", 1, 60), now);
        assert_eq!(book.rejudge(&rules(&["b.example"]), now), []);
        let closed = book.rejudge(&rules(&["a.example"]), now);
        assert_eq!((closed.len(), book.flows(now).len()), (1, 0));
    }

    #[test]
    fn what_runs_on_after_its_grant_ends_with_its_rule() {
        let (both, now) = (rules(&["a.example", "b.example"]), Instant::now());
        let later = now + Duration::from_secs(61);
        let mut book = GrantBook::default();
        book.grant(&grant(&both, "a.example", 1, 60), now);
        let [(key, _)] = book.flows(now)[..] else { panic!("one flow") };
        assert_eq!(book.flows(later), []);
        assert!(book.any() && !book.holds(&key));
        // Other rules leave it alone; those without its name do not, and nothing is left to close.
        assert_eq!(book.rejudge(&rules(&["a.example"]), later), []);
        assert!(book.may_run(&key));
        assert_eq!(book.rejudge(&rules(&["b.example"]), later), []);
        assert!(!book.may_run(&key) && !book.any());
    }

    #[test]
    fn an_evicted_flow_runs_on_until_its_rule_ends() {
        let (rules, now) = (rules(&["a.example"]), Instant::now());
        let mut book = GrantBook::default();
        for address in 0..600 {
            book.grant(&grant(&rules, "a.example", address, 60), now);
        }
        let first = book.flows(now)[0].0;
        let key = |address: u32| FlowKey { destination: Ipv4Addr::from_bits(0x0808_0000 + address), ..first };
        assert!(book.may_run(&key(600 - 257)) && book.may_run(&key(600 - 512)));
        assert!(!book.may_run(&key(600 - 513)));
        book.revoke(&endpoint());
        assert!(!book.any());
    }

    #[test]
    fn only_a_direct_rule_with_that_port_and_a_public_address_allows() {
        let rules = rules(&["a.example"]);
        let public = Ipv4Addr::new(8, 8, 8, 8);
        assert!(allowed(&rules, &endpoint(), "a.example", public, 443));
        assert!(!allowed(&rules, &endpoint(), "a.example", public, 22));
        assert!(!allowed(&rules, &endpoint(), "b.example", public, 443));
        assert!(!allowed(&rules, &endpoint(), "a.example", Ipv4Addr::new(10, 0, 0, 1), 443));
        let other = Endpoint { agent: "other".into(), ..(*endpoint()).clone() };
        assert!(!allowed(&rules, &other, "a.example", public, 443));
    }
}
