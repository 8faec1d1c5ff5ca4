//! Decision events: recorded by the enforcing threads, written down by this one.
//!
//! | file | what it is |
//! |---|---|
//! | `event`, `text` | one event: a block of fixed size |
//! | `flow` | the number that events of one attempt share |
//! | `log_thread` | the thread: formats, counts, hands on, writes |
//! | `decision_log` | `decisions.jsonl`, rotated |
//! | `live` | the last events in memory, and those for readers that follow |
//! | `tally` | counters for `/metrics` |

mod decision_log;
mod event;
mod flow;
mod live;
mod log_thread;
mod tally;
mod text;

pub use decision_log::DecisionLog;
pub use event::{Event, HOST_MAX, Layer, METHOD_MAX, PATH_MAX, RECORD_TYPE_MAX, Verdict, party};
pub use flow::{Flows, Party};
pub use live::{Batch, Filter, Line, Live, Publish};
pub use log_thread::{EventLog, EventsCommand, record, rfc3339};
pub use tally::{BUCKETS, Histogram, Tally};
pub use text::Text;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::Sender;

/// Events that wait to be written; past it they are lost, counted. Threads that record at the same moment may each add
/// one more.
const EVENTS_WAITING_MAX: usize = 4096;

/// What an enforcing thread holds: a send that never waits. A full channel loses the event, counted.
#[derive(Clone)]
pub struct EventSink {
    sender: Option<Sender<Event>>,
    lost: Arc<AtomicU64>,
    flows: Arc<Flows>,
}

impl EventSink {
    /// A sink into `sender`.
    #[must_use]
    pub fn new(sender: Sender<Event>) -> Self {
        EventSink { sender: Some(sender), lost: Arc::default(), flows: Arc::default() }
    }

    /// A sink that counts and forgets (tests).
    #[must_use]
    pub fn discard() -> Self {
        EventSink { sender: None, lost: Arc::default(), flows: Arc::default() }
    }

    /// Records a decision.
    pub fn record(&self, event: Event) {
        let room = self.sender.as_ref().filter(|sender| sender.len() < EVENTS_WAITING_MAX);
        let kept = room.is_some_and(|sender| sender.try_send(event).is_ok());
        if !kept {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Where flow numbers come from.
    #[must_use]
    pub fn flows(&self) -> &Flows {
        &self.flows
    }

    /// How many events were lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_beyond_the_room_are_lost_and_counted() {
        let (sender, receiver) = crossbeam_channel::unbounded();
        let sink = EventSink::new(sender);
        let record = || sink.record(Event::new(Layer::Dns, Verdict::Block, "default"));
        (0..EVENTS_WAITING_MAX + 2).for_each(|_| record());
        assert_eq!((receiver.len(), sink.lost()), (EVENTS_WAITING_MAX, 2));
        receiver.recv().unwrap();
        record();
        assert_eq!((receiver.len(), sink.lost()), (EVENTS_WAITING_MAX, 2));
    }
}
