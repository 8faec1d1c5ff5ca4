//! Events for readers: the last ones in memory, and those to come for whoever follows.
//!
//! Owns: lines as they are written, the ring of the last ones, and what is handed to the operator API's thread. Does
//! not own: the readers (`host_api`). Every size is bounded; what does not fit is counted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Verdict;

/// Events kept in memory for `GET /events`.
const RECENT_MAX: usize = 1000;
/// Batches that wait in the operator API's mailbox; further ones are lost to its readers. Few, so that commands of
/// other threads find room there.
const BATCHES_WAITING_MAX: usize = 32;
/// Digits of a container's id that are enough to name it, as Docker shows them.
const SHORT_ID: usize = 12;

/// An event as one line of JSON, with what readers filter by.
#[derive(Debug)]
pub struct Line {
    verdict: Verdict,
    container: Option<(Arc<str>, Arc<str>)>,
    json: Box<[u8]>,
}

impl Line {
    /// A line, with its end; `container` is name and id.
    #[must_use]
    pub fn new(verdict: Verdict, container: Option<(Arc<str>, Arc<str>)>, json: &[u8]) -> Self {
        Line { verdict, container, json: json.into() }
    }

    /// The JSON and a line feed.
    #[must_use]
    pub fn json(&self) -> &[u8] {
        &self.json
    }
}

/// What a reader wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this verdict.
    pub verdict: Option<Verdict>,
    /// Only this container: its exact name, or its id, whole or the first 12 digits or more.
    pub container: Option<Box<str>>,
}

impl Filter {
    /// Whether the reader sees `line`.
    #[must_use]
    pub fn passes(&self, line: &Line) -> bool {
        self.verdict.is_none_or(|verdict| verdict == line.verdict)
            && self.container.as_deref().is_none_or(|wanted| {
                line.container
                    .as_ref()
                    .is_some_and(|(name, id)| **name == *wanted || (wanted.len() >= SHORT_ID && id.starts_with(wanted)))
            })
    }
}

/// The last events.
#[derive(Default)]
pub(super) struct Recent(VecDeque<Arc<Line>>);

impl Recent {
    pub(super) fn push(&mut self, line: Arc<Line>) {
        if self.0.len() == RECENT_MAX {
            self.0.pop_front();
        }
        self.0.push_back(line);
    }

    /// Those that pass, oldest first.
    pub(super) fn lines(&self, filter: &Filter) -> Vec<u8> {
        self.0.iter().filter(|line| filter.passes(line)).flat_map(|line| line.json().iter().copied()).collect()
    }
}

/// Events on their way to the readers.
pub struct Batch {
    /// Oldest first.
    pub lines: Vec<Arc<Line>>,
    /// Events before these that were lost on the way to all readers.
    pub lost: u64,
    waiting: Arc<Live>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.waiting.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the writer of events and the owner of the readers share.
#[derive(Default)]
pub struct Live {
    readers: AtomicUsize,
    waiting: AtomicUsize,
}

impl Live {
    /// How many readers follow. Set before a reader is told that it does: it then misses nothing.
    pub fn set_readers(&self, count: usize) {
        self.readers.store(count, Ordering::Release);
    }
}

/// Takes a batch to the readers; false when it could not be delivered.
pub type Publish = Box<dyn Fn(Batch) -> bool + Send>;

/// The events thread's end.
#[derive(Default)]
pub(super) struct Publisher {
    pub(super) live: Arc<Live>,
    pub(super) publish: Option<Publish>,
    lost: u64,
}

impl Publisher {
    /// Hands `lines` to the readers, if there are any.
    pub(super) fn publish(&mut self, lines: Vec<Arc<Line>>) {
        let Some(publish) = &self.publish else { return };
        if self.live.readers.load(Ordering::Acquire) == 0 {
            self.lost = 0;
            return;
        }
        let count = lines.len() as u64;
        // This thread alone adds.
        let room = self.live.waiting.load(Ordering::Relaxed) < BATCHES_WAITING_MAX;
        let delivered = room && {
            self.live.waiting.fetch_add(1, Ordering::Relaxed);
            publish(Batch { lines, lost: self.lost, waiting: Arc::clone(&self.live) })
        };
        self.lost = if delivered { 0 } else { self.lost + count };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(verdict: Verdict, name: Option<&str>) -> Arc<Line> {
        let container = name.map(|name| (name.into(), "0123456789abcdef".into()));
        Arc::new(Line::new(verdict, container, name.unwrap_or("-").as_bytes()))
    }

    fn filter(verdict: Option<Verdict>, container: Option<&str>) -> Filter {
        Filter { verdict, container: container.map(Into::into) }
    }

    #[test]
    fn a_filter_passes_verdict_and_container() {
        let (mine, nobody) = (line(Verdict::Block, Some("coder-1")), line(Verdict::Block, None));
        assert!(filter(None, None).passes(&nobody));
        assert!(filter(Some(Verdict::Block), Some("coder-1")).passes(&mine));
        assert!(filter(None, Some("0123456789ab")).passes(&mine), "the short id");
        assert!(!filter(None, Some("0123")).passes(&mine), "too short to be an id");
        assert!(!filter(None, Some("coder")).passes(&mine) && !filter(None, Some("coder-1")).passes(&nobody));
        assert!(!filter(Some(Verdict::Allow), None).passes(&mine));
    }

    #[test]
    fn the_ring_keeps_the_last() {
        let mut recent = Recent::default();
        recent.push(line(Verdict::Allow, Some("first")));
        (0..RECENT_MAX).for_each(|_| recent.push(line(Verdict::Block, Some("x"))));
        assert_eq!(recent.lines(&Filter::default()).len(), RECENT_MAX);
        assert!(recent.lines(&filter(Some(Verdict::Allow), None)).is_empty());
    }

    #[test]
    fn batches_beyond_the_room_are_lost_and_counted() {
        let (sender, batches) = std::sync::mpsc::channel();
        let publish: Publish = Box::new(move |batch| sender.send(batch).is_ok());
        let mut publisher = Publisher { publish: Some(publish), ..Publisher::default() };
        let mut publish = || publisher.publish(vec![line(Verdict::Block, None); 3]);
        publish();
        assert!(batches.try_recv().is_err(), "nobody follows");
        publisher.live.set_readers(1);
        let mut publish = || publisher.publish(vec![line(Verdict::Block, None); 3]);
        (0..BATCHES_WAITING_MAX + 2).for_each(|_| publish());
        assert_eq!(batches.try_iter().map(|batch| batch.lost).sum::<u64>(), 0);
        publish();
        assert_eq!(batches.try_recv().map(|batch| batch.lost), Ok(6));
    }
}
