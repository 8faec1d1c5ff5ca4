//! Who is behind a connection's key, and which of them are containers on managed networks. Pure.
//!
//! A connection is identified once, when it is made; whether that container is served is looked up anew for each
//! request, so that a container that is gone is not served on a connection that it left open.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use crate::docker_manager::{Directory, Endpoint};

/// Containers outside managed networks that are remembered as such.
const STRANGERS_MAX: usize = 1024;

/// Who is behind a request.
#[derive(Debug)]
pub(super) enum Who {
    /// A container on a managed network.
    Endpoint(Arc<Endpoint>),
    /// Docker has not been asked since it first came: ask, and hold it meanwhile.
    Unasked,
    /// Nobody that is served.
    Stranger,
}

/// The containers of open connections and of the directory.
#[derive(Debug)]
pub(super) struct Identities {
    as_of: Instant,
    endpoints: HashMap<Arc<str>, Arc<Endpoint>>,
    keys: HashMap<u64, Arc<str>>,
    /// Known not to be in the directory by a reading that began after they first asked.
    strangers: HashSet<Arc<str>>,
}

impl Identities {
    pub(super) fn new(directory: &Directory) -> Self {
        let mut new = Identities {
            as_of: directory.as_of,
            endpoints: HashMap::new(),
            keys: HashMap::new(),
            strangers: HashSet::new(),
        };
        new.take(directory);
        new
    }

    /// Works by another directory.
    pub(super) fn take(&mut self, directory: &Directory) {
        self.as_of = directory.as_of;
        self.endpoints.clear();
        for endpoint in directory.endpoints.values() {
            let own = self.endpoints.entry(Arc::clone(&endpoint.container_id)).or_insert_with(|| Arc::clone(endpoint));
            // On two managed networks: the same one each time.
            if endpoint.address < own.address {
                *own = Arc::clone(endpoint);
            }
        }
        self.strangers.retain(|id| !self.endpoints.contains_key(id));
    }

    /// The key of a container's connections. `None`: another container has it; the first 64 bits of two ids agree,
    /// and the one that came first is served.
    pub(super) fn key(&mut self, container_id: &str) -> Option<u64> {
        let key = u64::from_str_radix(container_id.get(..16)?, 16).ok()?;
        let known = self.keys.entry(key).or_insert_with(|| container_id.into());
        (**known == *container_id).then_some(key)
    }

    /// Who sent a request that came at `arrived` on a connection with this key.
    pub(super) fn who(&mut self, key: u64, arrived: Instant) -> Who {
        let Some(id) = self.keys.get(&key) else { return Who::Stranger };
        if let Some(endpoint) = self.endpoints.get(id) {
            return Who::Endpoint(Arc::clone(endpoint));
        }
        if self.strangers.contains(id) {
            return Who::Stranger;
        }
        if self.as_of < arrived {
            return Who::Unasked;
        }
        if self.strangers.len() >= STRANGERS_MAX {
            // They are asked about again, which costs one reading of Docker for all of them.
            self.strangers.clear();
        }
        self.strangers.insert(Arc::clone(id));
        Who::Stranger
    }

    /// The id behind a key.
    pub(super) fn id(&self, key: u64) -> Option<&Arc<str>> {
        self.keys.get(&key)
    }

    /// Forgets keys, when no connection is open that could have one.
    pub(super) fn forget_keys(&mut self) {
        self.keys.clear();
    }

    /// How many keys are known.
    pub(super) fn keys(&self) -> usize {
        self.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::agent_api::tests::{directory, endpoint};

    #[test]
    fn an_unknown_container_is_asked_about_once() {
        let one = endpoint("one", 1, 100);
        let mut empty = directory(&[]);
        let mut identities = Identities::new(&empty);
        let key = identities.key(&one.container_id).unwrap();
        let arrived = empty.as_of + Duration::from_millis(1);
        assert!(matches!(identities.who(key, arrived), Who::Unasked));
        empty.as_of = arrived + Duration::from_millis(1);
        identities.take(&empty);
        assert!(matches!(identities.who(key, arrived), Who::Stranger));
        // Not again for a later request …
        assert!(matches!(identities.who(key, arrived + Duration::from_secs(9)), Who::Stranger));
        // … until it is on a managed network.
        identities.take(&directory(&[&one]));
        assert!(matches!(identities.who(key, arrived), Who::Endpoint(found) if found.container == one.container));
        identities.take(&empty);
        assert!(matches!(identities.who(key, arrived), Who::Stranger));
    }

    #[test]
    fn keys_are_not_shared() {
        let mut identities = Identities::new(&directory(&[]));
        let one = "a".repeat(64);
        let similar = format!("{}{}", "a".repeat(16), "b".repeat(48));
        let key = identities.key(&one).unwrap();
        assert_eq!(identities.key(&one), Some(key));
        assert_eq!(identities.key(&similar), None);
        assert_eq!(identities.key("short"), None);
        assert!(matches!(identities.who(1, Instant::now()), Who::Stranger));
    }
}
