//! How many connections there are, and of whom.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::docker_manager::Peer;

/// Connections above the cap that are told so at once; beyond them connections are closed without a word.
pub(super) const REFUSALS_MAX: usize = 64;

/// Whose connections are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    /// A container, on whichever network.
    Container(Arc<str>),
    /// An address that is no container (yet).
    Address(IpAddr),
}

impl Holder {
    pub(super) fn of(peer: &Peer, address: IpAddr) -> Self {
        match peer.endpoint() {
            Some(endpoint) => Holder::Container(Arc::clone(&endpoint.container_id)),
            None => Holder::Address(address),
        }
    }
}

/// The counts.
pub(super) struct Admission {
    max: usize,
    max_per_holder: usize,
    all: usize,
    holders: HashMap<Holder, usize>,
}

impl Admission {
    pub(super) fn new(max: usize, max_per_holder: usize) -> Self {
        Admission { max, max_per_holder, all: 0, holders: HashMap::new() }
    }

    /// Connections that were let in.
    pub(super) fn count(&self) -> usize {
        self.all
    }

    /// Counts a connection of `holder`; false when there is no room for it.
    pub(super) fn enter(&mut self, holder: &Holder) -> bool {
        let held = self.holders.get(holder).copied().unwrap_or(0);
        if self.all >= self.max || held >= self.max_per_holder {
            return false;
        }
        self.all += 1;
        self.holders.insert(holder.clone(), held + 1);
        true
    }

    /// Counts it no longer.
    pub(super) fn leave(&mut self, holder: &Holder) {
        if let Some(held) = self.holders.get_mut(holder) {
            self.all -= 1;
            *held -= 1;
            if *held == 0 {
                self.holders.remove(holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_cannot_take_every_place() {
        let mut admission = Admission::new(3, 2);
        let (first, second) = (Holder::Container("a".into()), Holder::Address([127, 0, 0, 1].into()));
        assert!(admission.enter(&first) && admission.enter(&first) && !admission.enter(&first));
        assert!(admission.enter(&second) && !admission.enter(&second));
        admission.leave(&first);
        assert!(admission.enter(&second) && admission.count() == 3);
    }
}
