//! The answers of upstream, kept for their time: least recently used out first.
//!
//! Owns: entries, their order and the counters. Does not own: verdicts. An entry is what upstream said, before any
//! rule; every asker is judged on its own, so that one container's permission is never another's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;

use crate::names::HostName;

use super::answer::Answer;

/// Entries, as vendor-docs/interfaces/dns.md says.
pub(super) const ENTRIES_MAX: usize = 10_000;
/// The memory that all answers together may take, in bytes: a container that is allowed a wildcard must not be able
/// to fill the host with large answers. Ten thousand ordinary answers take about a quarter of it.
const WEIGHT_MAX: usize = 32 << 20;
/// What an entry takes besides its records, in bytes; also keeps empty answers from being free.
const ENTRY_WEIGHT: usize = 256;

const NONE: usize = usize::MAX;

/// What is asked of upstream; equal keys are one question.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The name.
    pub(super) name: HostName,
    /// The type.
    pub(super) record_type: RecordType,
    /// With DNSSEC records: another answer than without them.
    pub(super) dnssec: bool,
}

struct Entry {
    key: Key,
    answer: Arc<Answer>,
    weight: usize,
    since: Instant,
    until: Instant,
    newer: usize,
    older: usize,
}

/// The cache.
pub(super) struct Cache {
    index: HashMap<Key, usize>,
    slots: Vec<Option<Entry>>,
    free: Vec<usize>,
    newest: usize,
    oldest: usize,
    weight: usize,
    /// Questions answered from here.
    pub(super) hits: u64,
    /// Questions that were not.
    pub(super) misses: u64,
    /// Entries that made room for others.
    pub(super) evictions: u64,
}

impl Cache {
    pub(super) fn new() -> Self {
        Cache {
            index: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
            weight: 0,
            hits: 0,
            misses: 0,
            evictions: 0,
        }
    }

    /// The number of entries; some of them may have run out.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// The answer to `key` and its age in whole seconds.
    pub(super) fn find(&mut self, key: &Key, now: Instant) -> Option<(Arc<Answer>, u32)> {
        let Some(&slot) = self.index.get(key) else {
            self.misses += 1;
            return None;
        };
        let fresh = self.slots[slot].as_ref().filter(|entry| now < entry.until);
        let Some(entry) = fresh else {
            self.misses += 1;
            self.remove(slot);
            return None;
        };
        let age = u32::try_from(now.saturating_duration_since(entry.since).as_secs()).unwrap_or(u32::MAX);
        let found = (Arc::clone(&entry.answer), age);
        self.hits += 1;
        self.unlink(slot);
        self.link(slot);
        Some(found)
    }

    /// Keeps `answer` for its TTL.
    pub(super) fn keep(&mut self, key: Key, answer: Arc<Answer>, now: Instant) {
        if let Some(&slot) = self.index.get(&key) {
            self.remove(slot);
        }
        let weight = ENTRY_WEIGHT + answer.weight();
        if answer.ttl == 0 || weight > WEIGHT_MAX {
            return;
        }
        while self.index.len() >= ENTRIES_MAX || self.weight + weight > WEIGHT_MAX {
            self.evictions += 1;
            self.remove(self.oldest);
        }
        let until = now + Duration::from_secs(u64::from(answer.ttl));
        let entry = Entry { key: key.clone(), answer, weight, since: now, until, newer: NONE, older: NONE };
        let slot = self.free.pop().unwrap_or(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push(Some(entry));
        } else {
            self.slots[slot] = Some(entry);
        }
        self.weight += weight;
        self.index.insert(key, slot);
        self.link(slot);
    }

    /// Forgets everything; how many entries there were.
    pub(super) fn flush(&mut self) -> usize {
        let flushed = self.index.len();
        let (hits, misses, evictions) = (self.hits, self.misses, self.evictions);
        *self = Cache { hits, misses, evictions, ..Cache::new() };
        flushed
    }

    /// The entries that have not run out, newest first: key, seconds left, age.
    pub(super) fn entries(&self, now: Instant) -> Vec<(&Key, u64, Duration)> {
        let mut entries = Vec::with_capacity(self.index.len());
        let mut at = self.newest;
        while let Some(entry) = self.slots.get(at).and_then(Option::as_ref) {
            if now < entry.until {
                let age = now.saturating_duration_since(entry.since);
                entries.push((&entry.key, (entry.until - now).as_secs(), age));
            }
            at = entry.older;
        }
        entries
    }

    fn remove(&mut self, slot: usize) {
        self.unlink(slot);
        if let Some(entry) = self.slots.get_mut(slot).and_then(Option::take) {
            self.index.remove(&entry.key);
            self.weight -= entry.weight;
            self.free.push(slot);
        }
    }

    fn unlink(&mut self, slot: usize) {
        let Some(entry) = self.slots.get(slot).and_then(Option::as_ref) else { return };
        let (newer, older) = (entry.newer, entry.older);
        match self.slots.get_mut(newer).and_then(Option::as_mut) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
        match self.slots.get_mut(older).and_then(Option::as_mut) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
    }

    /// Puts an unlinked slot at the newest end.
    fn link(&mut self, slot: usize) {
        let older = self.newest;
        if let Some(entry) = self.slots.get_mut(slot).and_then(Option::as_mut) {
            entry.newer = NONE;
            entry.older = older;
        }
        match self.slots.get_mut(older).and_then(Option::as_mut) {
            Some(entry) => entry.newer = slot,
            None => self.oldest = slot,
        }
        self.newest = slot;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::ResponseCode;

    fn key(name: &str) -> Key {
        Key { name: HostName::parse(name).unwrap(), record_type: RecordType::A, dnssec: false }
    }

    fn answer(ttl: u32) -> Arc<Answer> {
        let code = ResponseCode::NoError;
        Arc::new(Answer { code, records: Vec::new(), authority: Vec::new(), authentic: false, ttl })
    }

    #[test]
    fn an_entry_ages_and_runs_out() {
        let now = Instant::now();
        let mut cache = Cache::new();
        cache.keep(key("a.example"), answer(10), now);
        let later = now + Duration::from_millis(3900);
        assert_eq!(cache.find(&key("A.example."), later).map(|(_, age)| age), Some(3));
        assert!(cache.find(&key("a.example"), now + Duration::from_secs(10)).is_none());
        assert_eq!((cache.len(), cache.hits, cache.misses), (0, 1, 1));
    }

    #[test]
    fn an_answer_without_ttl_is_not_kept_and_ends_the_one_before() {
        let now = Instant::now();
        let mut cache = Cache::new();
        cache.keep(key("a.example"), answer(10), now);
        cache.keep(key("a.example"), answer(0), now);
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let now = Instant::now();
        let mut cache = Cache::new();
        for n in 0..ENTRIES_MAX {
            cache.keep(key(&format!("n{n}.example")), answer(60), now);
        }
        assert!(cache.find(&key("n0.example"), now).is_some());
        cache.keep(key("one-more.example"), answer(60), now);
        assert_eq!((cache.len(), cache.evictions), (ENTRIES_MAX, 1));
        assert!(cache.find(&key("n0.example"), now).is_some());
        assert!(cache.find(&key("n1.example"), now).is_none());
        assert_eq!(cache.entries(now)[0].0, &key("n0.example"));
        assert_eq!(cache.entries(now).len(), ENTRIES_MAX);
        assert_eq!(cache.flush(), ENTRIES_MAX);
        assert!(cache.entries(now).is_empty() && cache.find(&key("n0.example"), now).is_none());
    }
}
