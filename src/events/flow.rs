//! Flow numbers: what one container did to reach one host carries one number in all layers.
//!
//! A flow begins with the first question for a name (DNS, or a permission check) and ends up with the request or
//! tunnel that it was for; packets that the kernel drops belong to the answer that gave their address. The table is
//! a fixed block of atomics that the enforcing threads share: a look-up is one hash and two loads, nobody waits, and
//! what is pushed out by another entry, or too old, merely begins a new flow.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

/// Entries: several for each of the containers of a large host. Two that meet in a slot push each other out.
const SLOTS: usize = 8192;
/// For how long a question waits for the connection that it was for, in seconds: what clients cache an answer.
const NAME_WINDOW: u32 = 60;
/// For how long an address belongs to the answer that gave it, in seconds: the longest grant.
const ADDRESS_WINDOW: u32 = 3600;
/// For how long drops towards one address are one flow, in seconds: all that a connect() sends before it gives up.
const DROP_WINDOW: u32 = 150;
/// Flows a second for which the numbers of two runs do not meet, as a power of two. Seconds since 1970 in front of it
/// stay below 2^53, which is what a number in JSON holds everywhere.
const PER_SECOND_BITS: u32 = 20;

/// Who does something: a container, or an address where no container is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Party<'a> {
    /// Its id.
    Container(&'a str),
    /// The peer's own.
    Address(IpAddr),
}

#[derive(Hash)]
enum Key<'a> {
    Name(Party<'a>, &'a str),
    Answer(Party<'a>, IpAddr),
    Drop(Party<'a>, IpAddr),
}

#[derive(Default)]
struct Slot {
    /// Upper half: a part of the key's hash that does not choose the slot. Lower half: the flow's lowest bits.
    /// Zero: empty.
    entry: AtomicU64,
    /// Seconds since the table was made.
    at: AtomicU32,
}

/// The table.
pub struct Flows {
    next: AtomicU64,
    slots: Box<[Slot]>,
    hasher: RandomState,
    begun: Instant,
}

impl Default for Flows {
    fn default() -> Self {
        Flows::new()
    }
}

impl Flows {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Flows {
            // Above all that an earlier run gave, so that a log that spans runs stays unambiguous.
            next: AtomicU64::new((seconds << PER_SECOND_BITS) + 1),
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            // With keys of its own: no container can make its entries meet those of another on purpose.
            hasher: RandomState::new(),
            begun: Instant::now(),
        }
    }

    /// A flow of its own.
    #[must_use]
    pub fn begin(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The flow of a question about `host`: that of an earlier one that no connection has taken up, or a new one.
    #[must_use]
    pub fn asked(&self, party: Party<'_>, host: &str) -> u64 {
        self.joined(&Key::Name(party, host), NAME_WINDOW)
    }

    /// The flow of a request or tunnel to `host`: that of the question before it, which it takes up, or a new one.
    #[must_use]
    pub fn attempt(&self, party: Party<'_>, host: &str) -> u64 {
        self.find(&Key::Name(party, host), NAME_WINDOW, true).unwrap_or_else(|| self.begin())
    }

    /// `address` was given to `party` in an answer of `flow`.
    pub fn answered(&self, party: Party<'_>, address: IpAddr, flow: u64) {
        self.put(&Key::Answer(party, address), flow);
    }

    /// The flow of a packet towards `address` that was dropped.
    #[must_use]
    pub fn dropped(&self, party: Party<'_>, address: IpAddr) -> u64 {
        let answered = self.find(&Key::Answer(party, address), ADDRESS_WINDOW, false);
        answered.unwrap_or_else(|| self.joined(&Key::Drop(party, address), DROP_WINDOW))
    }

    fn joined(&self, key: &Key<'_>, window: u32) -> u64 {
        self.find(key, window, false).unwrap_or_else(|| {
            let flow = self.begin();
            self.put(key, flow);
            flow
        })
    }

    fn find(&self, key: &Key<'_>, window: u32, take: bool) -> Option<u64> {
        let (slot, tag) = self.place(key);
        let entry = slot.entry.load(Ordering::Acquire);
        let fresh = self.seconds().wrapping_sub(slot.at.load(Ordering::Relaxed)) <= window;
        if entry == 0 || entry & TAG != tag || !fresh {
            return None;
        }
        if take && slot.entry.compare_exchange(entry, 0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return None;
        }
        // The newest flow with these lowest bits: four thousand million flows do not fit into a window.
        let next = self.next.load(Ordering::Relaxed);
        Some(next - u64::from((next as u32).wrapping_sub(entry as u32)))
    }

    fn put(&self, key: &Key<'_>, flow: u64) {
        let (slot, tag) = self.place(key);
        slot.at.store(self.seconds(), Ordering::Relaxed);
        slot.entry.store(tag | (flow & !TAG), Ordering::Release);
    }

    fn place(&self, key: &Key<'_>) -> (&Slot, u64) {
        let hash = self.hasher.hash_one(key);
        // The lowest bits choose the slot, the upper half tells keys apart; one bit is set so that no entry is zero.
        (&self.slots[hash as usize % SLOTS], (hash & TAG) | 1 << 63)
    }

    fn seconds(&self) -> u32 {
        // A hundred years before it wraps.
        self.begun.elapsed().as_secs() as u32
    }
}

/// The upper half of an entry.
const TAG: u64 = !(u32::MAX as u64);

#[cfg(test)]
mod tests {
    use super::*;

    const A: Party<'static> = Party::Container("a");
    const B: Party<'static> = Party::Container("b");

    #[test]
    fn the_connection_takes_up_the_flow_of_its_question() {
        let flows = Flows::new();
        let asked = flows.asked(A, "api.example");
        assert_eq!(flows.asked(A, "api.example"), asked, "AAAA beside A");
        assert_ne!(flows.asked(B, "api.example"), asked, "another container");
        assert_ne!(flows.asked(A, "www.example"), asked, "another name");
        assert_eq!(flows.attempt(A, "api.example"), asked);
        assert_ne!(flows.attempt(A, "api.example"), asked, "a second connection is a flow of its own");
        assert_ne!(flows.asked(A, "api.example"), asked);
    }

    #[test]
    fn drops_belong_to_the_answer_that_gave_the_address() {
        let flows = Flows::new();
        let address = IpAddr::from([192, 0, 2, 7]);
        let unasked = flows.dropped(A, address);
        assert_eq!(flows.dropped(A, address), unasked, "a retransmission");
        let asked = flows.asked(A, "api.example");
        flows.answered(A, address, asked);
        assert_eq!(flows.dropped(A, address), asked);
        assert_ne!(flows.dropped(B, address), asked);
    }

    #[test]
    fn numbers_stay_exact_in_json_and_grow_from_run_to_run() {
        let flows = Flows::new();
        let first = flows.begin();
        assert!(first < 1 << 53 && first > 1 << 50, "{first}");
        assert_eq!(flows.begin(), first + 1);
    }

    #[test]
    fn an_old_question_is_not_taken_up() {
        let mut flows = Flows::new();
        let asked = flows.asked(A, "api.example");
        let Some(before) = flows.begun.checked_sub(std::time::Duration::from_secs(61)) else { return };
        flows.begun = before;
        assert_ne!(flows.attempt(A, "api.example"), asked);
    }

    #[test]
    fn a_flood_of_names_leaves_the_table_as_large_as_it_was() {
        let flows = Flows::new();
        let numbers: std::collections::BTreeSet<u64> =
            (0..20_000).map(|number| flows.asked(A, &format!("{number}.example"))).collect();
        assert_eq!(numbers.len(), 20_000);
        assert_eq!(flows.slots.len(), SLOTS);
    }
}
