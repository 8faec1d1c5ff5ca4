//! When each session is due. A heap of at most a few entries a session: a deadline that moves back leaves its old
//! entry, which is found early and put in again; so a busy tunnel costs nothing here.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use super::SessionId;

/// Entries by time.
#[derive(Default)]
pub(super) struct Deadlines(BinaryHeap<Reverse<(Instant, SessionId)>>);

/// A session's own view: when it is due, and when the heap will ask.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    at: Instant,
    asked: Option<Instant>,
}

impl Due {
    pub(super) fn new(at: Instant) -> Self {
        Due { at, asked: None }
    }

    /// Sets the time; it counts once [`Deadlines::arm`] has seen it.
    pub(super) fn set(&mut self, at: Instant) {
        self.at = at;
    }
}

impl Deadlines {
    /// Makes sure that the session is asked about no later than it is due.
    pub(super) fn arm(&mut self, id: SessionId, due: &mut Due) {
        if due.asked.is_none_or(|asked| asked > due.at) {
            due.asked = Some(due.at);
            self.0.push(Reverse((due.at, id)));
        }
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Drops the entries of sessions that are gone.
    pub(super) fn retain(&mut self, mut alive: impl FnMut(SessionId) -> bool) {
        self.0.retain(|Reverse((_, id))| alive(*id));
    }

    /// When the earliest entry wants to be looked at.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    /// The next session to ask about at `now`.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Instant, SessionId)> {
        if self.next()? > now {
            return None;
        }
        self.0.pop().map(|Reverse(entry)| entry)
    }

    /// Whether a session found at `entry` is due at `now`; if not, it is armed again.
    pub(super) fn is_due(&mut self, entry: Instant, id: SessionId, due: &mut Due, now: Instant) -> bool {
        if due.asked != Some(entry) {
            // An older entry of a deadline that was moved forward since: another one stands for it.
            return false;
        }
        due.asked = None;
        if due.at <= now {
            return true;
        }
        self.arm(id, due);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Table;
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_deadline_that_moves_is_found_at_its_new_time() {
        let id = Table::new().insert(|_| Ok::<_, ()>(())).unwrap();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut deadlines = Deadlines::default();
        let mut due = Due::new(after(10));
        deadlines.arm(id, &mut due);
        due.set(after(30));
        deadlines.arm(id, &mut due);
        due.set(after(20));
        deadlines.arm(id, &mut due);
        assert_eq!(deadlines.pop(after(9)), None);
        let (entry, _) = deadlines.pop(after(10)).unwrap();
        assert!(!deadlines.is_due(entry, id, &mut due, after(10)));
        assert_eq!(deadlines.next(), Some(after(20)));
        due.set(after(15));
        deadlines.arm(id, &mut due);
        let (entry, _) = deadlines.pop(after(16)).unwrap();
        assert!(deadlines.is_due(entry, id, &mut due, after(16)));
        let (entry, _) = deadlines.pop(after(20)).unwrap();
        assert!(!deadlines.is_due(entry, id, &mut due, after(20)));
    }
}
