//! Counters over all decisions, for `/metrics`. Made by the events thread from the events themselves, so that
//! counting costs the enforcing threads nothing; events that were lost on the way are not in them.

use std::collections::HashMap;

use super::{Event, Layer, Verdict};

/// Rules that are told apart; the rest of them share `_other`, which no rule can be called.
const RULES_MAX: usize = 1024;
/// Where the rules beyond `RULES_MAX` are counted.
const OTHER: &str = "_other";
/// Upper bounds of the latency buckets, in microseconds: a cached decision to a resolver's last retry.
pub const BUCKETS: [u64; 16] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    10_000_000,
];

/// How long decisions took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Of each bucket alone, not of those below it.
    pub buckets: [u64; BUCKETS.len()],
    /// Beyond the last bound too.
    pub count: u64,
    /// Microseconds.
    pub sum: u64,
}

/// The counters.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// By rule id; the empty one is the default block and all that is no rule's.
    pub decisions: HashMap<Box<str>, [[u64; 2]; Layer::ALL.len()]>,
    /// By layer.
    pub latency: [Histogram; Layer::ALL.len()],
    /// Of tunnels that ended: how many, bytes up, bytes down.
    pub tunnels: [u64; 3],
    /// By reason: what the kernel log brought.
    pub drops: HashMap<&'static str, u64>,
    /// Events written or published.
    pub recorded: u64,
    /// Events lost because they came faster than they could be written.
    pub lost_in_channel: u64,
    /// Lines lost to the disk.
    pub lost_on_disk: u64,
}

impl Tally {
    /// Counts one event.
    pub(super) fn count(&mut self, event: &Event) {
        self.recorded += 1;
        let (layer, verdict) = (event.layer as usize, usize::from(event.verdict == Verdict::Block));
        // The end of a tunnel is no decision.
        if let (Some(up), Some(down)) = (event.bytes_up, event.bytes_down) {
            let [count, sum_up, sum_down] = &mut self.tunnels;
            *count += 1;
            *sum_up = sum_up.wrapping_add(up);
            *sum_down = sum_down.wrapping_add(down);
            return;
        }
        let rule = event.rule.as_ref().map_or("", |rule| &rule.id);
        if let Some(counts) = self.decisions.get_mut(rule) {
            counts[layer][verdict] += 1;
        } else {
            let rule = if self.decisions.len() < RULES_MAX { rule } else { OTHER };
            self.decisions.entry(rule.into()).or_default()[layer][verdict] += 1;
        }
        if event.layer == Layer::Kernel {
            *self.drops.entry(event.reason).or_default() += 1;
        }
        if let Some(took) = event.duration_us {
            let histogram = &mut self.latency[layer];
            if let Some(bucket) = BUCKETS.iter().position(|bound| took <= *bound) {
                histogram.buckets[bucket] += 1;
            }
            histogram.count += 1;
            histogram.sum = histogram.sum.wrapping_add(took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_counted_and_the_ends_of_tunnels_apart() {
        let mut tally = Tally::default();
        let decision = Event { duration_us: Some(60), ..Event::new(Layer::Proxy, Verdict::Block, "default") };
        tally.count(&decision);
        tally.count(&Event { duration_us: Some(20_000_000), ..decision.clone() });
        tally.count(&Event { bytes_up: Some(3), bytes_down: Some(4), ..decision });
        tally.count(&Event::new(Layer::Kernel, Verdict::Block, "spoofed"));
        assert_eq!(tally.decisions[""][Layer::Proxy as usize], [0, 2]);
        assert_eq!(tally.tunnels, [1, 3, 4]);
        assert_eq!((tally.drops["spoofed"], tally.recorded), (1, 4));
        let latency = tally.latency[Layer::Proxy as usize];
        assert_eq!((latency.buckets[1], latency.count, latency.sum), (1, 2, 20_000_060));
        assert_eq!(latency.buckets.iter().sum::<u64>(), 1, "beyond the last bound counts in `count` only");
    }
}
