//! A sliding window: so many in so long, exactly. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::daemon::Rate;

/// When the last ones were.
#[derive(Debug, Default)]
pub(super) struct Window {
    taken: VecDeque<Instant>,
}

impl Window {
    /// Takes one at `now`, or says how long to wait for the next. What is refused does not count.
    pub(super) fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        while self.taken.front().is_some_and(|at| now.saturating_duration_since(*at) >= rate.window) {
            self.taken.pop_front();
        }
        match self.taken.front() {
            Some(oldest) if self.taken.len() >= rate.count as usize => {
                Err(rate.window.saturating_sub(now.saturating_duration_since(*oldest)))
            }
            _ => {
                self.taken.push_back(now);
                Ok(())
            }
        }
    }
}

/// Whole seconds for `Retry-After` (RFC 9110 10.2.3), rounded up: whoever waits so long is served.
pub(super) fn retry_after_secs(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_window_slides() {
        let rate = Rate { count: 2, window: Duration::from_secs(10) };
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut window = Window::default();
        assert_eq!(window.take(rate, at(0)), Ok(()));
        assert_eq!(window.take(rate, at(4)), Ok(()));
        assert_eq!(window.take(rate, at(6)), Err(Duration::from_secs(4)));
        assert_eq!(window.take(rate, at(10)), Ok(()));
        assert_eq!(window.take(rate, at(10)), Err(Duration::from_secs(4)));
        assert_eq!(retry_after_secs(Duration::from_millis(1)), 1);
        assert_eq!(retry_after_secs(Duration::ZERO), 1);
        assert_eq!(retry_after_secs(Duration::from_millis(3001)), 4);
    }

    proptest! {
        #[test]
        fn no_window_holds_more_than_its_count_and_waiting_helps(
            count in 1u32..5, window in 1u64..20, gaps in proptest::collection::vec(0u64..7, 1..60),
        ) {
            let rate = Rate { count, window: Duration::from_secs(window) };
            let start = Instant::now();
            let mut now = start;
            let mut taken: Vec<Instant> = Vec::new();
            let mut state = Window::default();
            for gap in gaps {
                now += Duration::from_secs(gap);
                match state.take(rate, now) {
                    Ok(()) => taken.push(now),
                    Err(wait) => {
                        prop_assert!(wait > Duration::ZERO && wait <= rate.window);
                        let mut later = Window { taken: state.taken.clone() };
                        prop_assert_eq!(later.take(rate, now + wait), Ok(()));
                    }
                }
                let within = taken.iter().filter(|at| now.duration_since(**at) < rate.window).count();
                prop_assert!(within <= count as usize);
            }
        }
    }
}
