//! What Docker has said so far, and the directory that follows from it.
//!
//! Owns: merging answers (networks, endpoints, container facts) into a [`Directory`]. No I/O, no clock.
//! Does not own: when to ask (`manager`), what a network must look like (`network::judge`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use super::engine::{Container, NetworkContainer};
use super::{Directory, Endpoint, Ipv4Net, ManagedNetwork, agent_name};

/// What a container's inspection tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) pid: i32,
    pub(super) sandbox_key: String,
    /// `HostConfig.Dns`.
    pub(super) dns: Vec<String>,
    /// Name and id of every network that it is on.
    pub(super) networks: Vec<(String, String)>,
}

impl From<Container> for Facts {
    fn from(container: Container) -> Self {
        let networks = container.network_settings.networks;
        Facts {
            pid: if container.state.running { container.state.pid.max(0) } else { 0 },
            sandbox_key: container.network_settings.sandbox_key,
            dns: container.host_config.dns,
            networks: networks.into_iter().map(|(name, attachment)| (name, attachment.network_id)).collect(),
        }
    }
}

/// One managed network and its active endpoints.
struct Seen {
    network: Arc<ManagedNetwork>,
    endpoints: BTreeMap<String, NetworkContainer>,
    /// When the question that `endpoints` answers began.
    as_of: Instant,
}

/// Everything known.
pub(super) struct View {
    /// When the question began whose answer was the last list; before any: when this was made.
    listed: Instant,
    /// Before any question.
    born: Instant,
    networks: BTreeMap<String, Seen>,
    facts: HashMap<String, Facts>,
    /// (container id, network id) that must not have an identity.
    refused: HashSet<(String, String)>,
    last: Arc<Directory>,
}

/// What a new list of networks changed.
#[derive(Debug, Default)]
pub(super) struct ListChange {
    pub(super) added: Vec<Arc<ManagedNetwork>>,
    pub(super) removed: Vec<Arc<ManagedNetwork>>,
}

impl View {
    pub(super) fn new(born: Instant) -> Self {
        View {
            listed: born,
            born,
            networks: BTreeMap::new(),
            facts: HashMap::new(),
            refused: HashSet::new(),
            last: Arc::new(Directory::empty(born)),
        }
    }

    /// Takes the managed networks of a list that was asked for at `asked`. Endpoints of networks that remain stay as
    /// they are.
    pub(super) fn listed(&mut self, managed: Vec<ManagedNetwork>, asked: Instant) -> ListChange {
        self.listed = asked;
        let mut change = ListChange::default();
        let mut old = std::mem::take(&mut self.networks);
        for network in managed {
            let id = network.id.clone();
            let seen = match old.remove(&id) {
                Some(seen) if *seen.network == network => seen,
                // The same id with another shape does not happen in Docker; if it does, it is a new network.
                _ => {
                    let network = Arc::new(network);
                    change.added.push(Arc::clone(&network));
                    Seen { network, endpoints: BTreeMap::new(), as_of: self.born }
                }
            };
            self.networks.insert(id, seen);
        }
        change.removed = old.into_values().map(|seen| seen.network).collect();
        change
    }

    /// Takes the endpoints of network `id`, from a question that began at `asked`; the containers on it that were
    /// not there before.
    pub(super) fn inspected(
        &mut self,
        id: &str,
        endpoints: BTreeMap<String, NetworkContainer>,
        asked: Instant,
    ) -> Vec<String> {
        let Some(seen) = self.networks.get_mut(id) else { return Vec::new() };
        let new = endpoints.keys().filter(|id| !seen.endpoints.contains_key(*id)).cloned().collect();
        seen.endpoints = endpoints;
        seen.as_of = asked;
        let gone: Vec<(String, String)> =
            self.refused.iter().filter(|(c, n)| n == id && !seen.endpoints.contains_key(c)).cloned().collect();
        for pair in gone {
            self.refused.remove(&pair);
        }
        let networks = &self.networks;
        self.facts.retain(|container, _| networks.values().any(|seen| seen.endpoints.contains_key(container)));
        new
    }

    /// Takes what a container's inspection said. True when it changes something.
    pub(super) fn learnt(&mut self, container: &str, facts: Facts) -> bool {
        let known = self.is_attached(container);
        known && self.facts.insert(container.to_owned(), facts.clone()).as_ref() != Some(&facts)
    }

    /// Forgets a container's facts: it died or is starting anew.
    pub(super) fn forget(&mut self, container: &str) -> bool {
        self.facts.remove(container).is_some()
    }

    /// Takes the identity of a container on a network away. True when it had one.
    pub(super) fn refuse(&mut self, container: &str, network: &str) -> bool {
        self.refused.insert((container.to_owned(), network.to_owned()))
    }

    /// Gives it back.
    pub(super) fn accept(&mut self, container: &str, network: &str) -> bool {
        self.refused.remove(&(container.to_owned(), network.to_owned()))
    }

    pub(super) fn knows_network(&self, id: &str) -> bool {
        self.networks.contains_key(id)
    }

    pub(super) fn network_ids(&self) -> Vec<String> {
        self.networks.keys().cloned().collect()
    }

    pub(super) fn networks(&self) -> impl Iterator<Item = &Arc<ManagedNetwork>> {
        self.networks.values().map(|seen| &seen.network)
    }

    /// Ids of the managed networks that `container` is on.
    pub(super) fn networks_of(&self, container: &str) -> Vec<String> {
        let on = self.networks.iter().filter(|(_, seen)| seen.endpoints.contains_key(container));
        on.map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn is_attached(&self, container: &str) -> bool {
        self.networks.values().any(|seen| seen.endpoints.contains_key(container))
    }

    /// Every container on a managed network.
    pub(super) fn containers(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.networks.values().flat_map(|seen| seen.endpoints.keys().cloned()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// True when the container's inspection is known and found it running.
    pub(super) fn has_facts(&self, container: &str) -> bool {
        self.facts.get(container).is_some_and(|facts| facts.pid != 0)
    }

    /// Each attachment with its container's facts, where they are known.
    pub(super) fn attachments(&self) -> Vec<(Endpoint, &Facts)> {
        let mut found = Vec::new();
        for seen in self.networks.values() {
            for (id, endpoint) in &seen.endpoints {
                if let Some(facts) = self.facts.get(id) {
                    found.extend(entry(id, endpoint, &seen.network, Some(facts)).map(|entry| (entry, facts)));
                }
            }
        }
        found
    }

    /// The directory that follows. Endpoints that did not change keep their allocation.
    pub(super) fn directory(&mut self) -> Arc<Directory> {
        let as_of = self.networks.values().map(|seen| seen.as_of).min().unwrap_or(self.listed);
        let mut directory = Directory::empty(as_of);
        directory.read = as_of > self.born;
        directory.networks = self.networks().cloned().collect();
        directory.networks.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for (network_id, seen) in &self.networks {
            for (id, endpoint) in &seen.endpoints {
                if self.refused.contains(&(id.clone(), network_id.clone())) {
                    continue;
                }
                if let Some(new) = entry(id, endpoint, &seen.network, self.facts.get(id)) {
                    let kept = self.last.endpoints.get(&new.address).filter(|old| ***old == new).cloned();
                    directory.endpoints.insert(new.address, kept.unwrap_or_else(|| Arc::new(new)));
                }
            }
        }
        self.last = Arc::new(directory);
        Arc::clone(&self.last)
    }

    /// The directory as it was made last.
    pub(super) fn last(&self) -> &Arc<Directory> {
        &self.last
    }
}

/// One endpoint; `None` when Docker's own data is not usable: such a container has no identity, and no traffic.
fn entry(
    id: &str,
    endpoint: &NetworkContainer,
    network: &Arc<ManagedNetwork>,
    facts: Option<&Facts>,
) -> Option<Endpoint> {
    let (address, _) = endpoint.ipv4_address.split_once('/').unwrap_or((&endpoint.ipv4_address, ""));
    let address: Ipv4Addr = address.parse().ok()?;
    let subnet: Ipv4Net = network.subnet;
    let usable = subnet.contains(address) && address != network.gateway && address != subnet.address();
    if !usable || address == subnet.last() || endpoint.name.is_empty() {
        return None;
    }
    Some(Endpoint {
        container_id: Arc::from(id),
        container: Arc::from(endpoint.name.as_str()),
        agent: Arc::from(agent_name(&endpoint.name)),
        network: Arc::clone(network),
        address,
        mac: mac(&endpoint.mac_address)?,
        sandbox_key: facts.map(|facts| facts.sandbox_key.clone()).unwrap_or_default(),
        pid: facts.map_or(0, |facts| facts.pid),
    })
}

/// `02:42:0a:c8:00:02`; no group or zero address.
fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && bytes != [0; 6] && bytes[0] & 1 == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn network(name: &str, subnet: &str) -> ManagedNetwork {
        let subnet: Ipv4Net = subnet.parse().unwrap();
        let gateway = crate::network::first_gateway(subnet);
        ManagedNetwork { name: name.to_owned(), id: format!("id-{name}"), bridge: "b".to_owned(), subnet, gateway }
    }

    fn on(address: &str) -> NetworkContainer {
        let mac_address = "02:42:0a:c8:00:02".to_owned();
        NetworkContainer { name: "writer-1".to_owned(), mac_address, ipv4_address: address.to_owned() }
    }

    #[test]
    fn endpoints_appear_before_their_facts_and_keep_their_allocation() {
        let born = Instant::now();
        let mut view = View::new(born);
        view.listed(vec![network("outcall-a", "10.200.0.0/24")], born);
        let asked = born + Duration::from_millis(5);
        let new = view.inspected("id-outcall-a", BTreeMap::from([("c1".to_owned(), on("10.200.0.2/24"))]), asked);
        assert_eq!(new, ["c1"]);
        let directory = view.directory();
        assert_eq!(directory.as_of, asked);
        let address = Ipv4Addr::new(10, 200, 0, 2);
        let first = Arc::clone(&directory.endpoints[&address]);
        assert_eq!((&*first.agent, first.pid), ("writer", 0));
        assert!(Arc::ptr_eq(&first, &view.directory().endpoints[&address]));
        assert!(view.learnt("c1", Facts { pid: 7, ..Facts::default() }));
        assert!(!view.learnt("c1", Facts { pid: 7, ..Facts::default() }));
        assert_eq!(view.directory().endpoints[&address].pid, 7);
        assert!(view.refuse("c1", "id-outcall-a"));
        assert!(view.directory().endpoints.is_empty());
        view.inspected("id-outcall-a", BTreeMap::new(), asked);
        assert!(!view.has_facts("c1"));
    }

    #[test]
    fn as_of_is_the_oldest_question_of_all_networks() {
        let born = Instant::now();
        let mut view = View::new(born);
        view.listed(vec![network("outcall-a", "10.200.0.0/24"), network("outcall-b", "10.200.1.0/24")], born);
        view.inspected("id-outcall-a", BTreeMap::new(), born + Duration::from_millis(9));
        assert_eq!(view.directory().as_of, born, "outcall-b has not been asked about yet");
        assert!(!view.directory().read);
        view.inspected("id-outcall-b", BTreeMap::new(), born + Duration::from_millis(4));
        assert_eq!(view.directory().as_of, born + Duration::from_millis(4));
        assert!(view.directory().read);
        let change = view.listed(vec![network("outcall-b", "10.200.1.0/24")], born);
        assert_eq!((change.added.len(), change.removed.len()), (0, 1));
        let asked = born + Duration::from_millis(12);
        view.listed(Vec::new(), asked);
        assert_eq!(view.directory().as_of, asked, "no network: the list itself says that nobody is there");
    }

    #[test]
    fn data_that_cannot_be_enforced_gives_no_identity() {
        let network = Arc::new(network("outcall-a", "10.200.0.0/24"));
        for bad in ["10.200.1.2/24", "10.200.0.1/24", "10.200.0.0/24", "10.200.0.255/24", "", "fe80::1/64"] {
            assert!(entry("c", &on(bad), &network, None).is_none(), "{bad}");
        }
        for bad in ["", "02:42", "02:42:0a:c8:00:02:03", "00:00:00:00:00:00", "03:42:0a:c8:00:02", "+2:42:0a:c8:00:02"]
        {
            assert_eq!(mac(bad), None, "{bad}");
        }
    }
}
