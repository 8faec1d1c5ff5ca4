//! A container that asks for what is denied, over and over: past a rate its datagrams are dropped unread.
//!
//! Owns: a bucket for each container that was denied something lately, and the count of what was dropped. Does not own:
//! the answer to what is not dropped. Whoever is denied nothing has no bucket, and costs one look at an empty map.
//!
//! A denial costs an answer and an event; all containers of a network share the receive buffer of its gateway's socket.
//! What is dropped unread is drained at the speed of `recvmmsg`, so that neighbours' questions find room.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Denied questions of one container a second, in the long run: a resolver library that retries asks some dozens.
pub(super) const DENIED_PER_SECOND: u32 = 200;
/// As many at once: a build that tries a thousand names is not there yet.
pub(super) const DENIED_AT_ONCE: u32 = 1000;
/// Buckets at most: every container of some networks. Without a bucket there is no limit.
const BUCKETS_MAX: usize = 4096;
/// Between two lines, and two events, about what was dropped in one flood of one container.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// What is left for one container: a time that denials move on, and that real time catches up with.
struct Bucket {
    /// All is forgiven when this has passed.
    full_at: Instant,
    dropped: u64,
    said_at: Option<Instant>,
}

/// What becomes of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is looked at.
    Read,
    /// It is dropped.
    Dropped,
    /// It is dropped, and that is to be recorded.
    Recorded,
}

/// All buckets.
#[derive(Default)]
pub(super) struct Throttle {
    buckets: HashMap<IpAddr, Bucket>,
}

/// What one denied question takes.
const COST: Duration = Duration::from_nanos(1_000_000_000 / DENIED_PER_SECOND as u64);

impl Throttle {
    /// Notes that a container was denied something.
    pub(super) fn denied(&mut self, peer: IpAddr, now: Instant) {
        if self.buckets.len() >= BUCKETS_MAX {
            self.buckets.retain(|_, bucket| bucket.full_at > now);
        }
        if self.buckets.len() >= BUCKETS_MAX && !self.buckets.contains_key(&peer) {
            return;
        }
        let bucket = self.buckets.entry(peer).or_insert(Bucket { full_at: now, dropped: 0, said_at: None });
        bucket.full_at = bucket.full_at.max(now) + COST;
    }

    /// Whether a datagram of this peer is looked at.
    pub(super) fn fate(&mut self, peer: IpAddr, now: Instant) -> Fate {
        if self.buckets.is_empty() {
            return Fate::Read;
        }
        let Some(bucket) = self.buckets.get_mut(&peer) else { return Fate::Read };
        if bucket.full_at <= now {
            self.buckets.remove(&peer);
            return Fate::Read;
        }
        if bucket.full_at.duration_since(now) < COST * DENIED_AT_ONCE {
            return Fate::Read;
        }
        bucket.dropped += 1;
        if bucket.said_at.is_some_and(|at| now < at + SAID_EVERY) {
            return Fate::Dropped;
        }
        bucket.said_at = Some(now);
        let dropped = bucket.dropped;
        tracing::warn!(target: "dns", %peer, dropped, "over {DENIED_PER_SECOND} denied questions a second: datagrams of this container are dropped");
        Fate::Recorded
    }

    /// Forgets who is not `known`: the next holder of an address begins with a bucket of its own.
    pub(super) fn retain(&mut self, known: impl Fn(IpAddr) -> bool) {
        self.buckets.retain(|peer, _| known(*peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 200, 0, 2));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 200, 0, 3));

    /// Asks for what is denied; gives how many were looked at.
    fn flood(throttle: &mut Throttle, times: u32, now: Instant) -> u32 {
        let mut looked_at = 0;
        for _ in 0..times {
            if throttle.fate(PEER, now) == Fate::Read {
                looked_at += 1;
                throttle.denied(PEER, now);
            }
        }
        looked_at
    }

    #[test]
    fn a_flood_is_cut_to_the_rate_and_forgiven_with_time() {
        let (mut throttle, begin) = (Throttle::default(), Instant::now());
        assert_eq!(flood(&mut throttle, 5000, begin), DENIED_AT_ONCE);
        assert_eq!(throttle.fate(OTHER, begin), Fate::Read);
        assert_eq!(flood(&mut throttle, 5000, begin + Duration::from_secs(1)), DENIED_PER_SECOND);
        let later = begin + Duration::from_secs(60);
        assert!(throttle.fate(PEER, later) == Fate::Read && throttle.buckets.is_empty());
        assert_eq!(flood(&mut throttle, 5000, later), DENIED_AT_ONCE);
    }

    #[test]
    fn the_next_holder_of_an_address_begins_anew() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        flood(&mut throttle, 5000, now);
        assert_eq!(throttle.fate(PEER, now), Fate::Dropped);
        throttle.retain(|peer| peer != PEER);
        assert_eq!(throttle.fate(PEER, now), Fate::Read);
    }

    #[test]
    fn buckets_are_bounded() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for number in 0..2 * BUCKETS_MAX as u32 {
            throttle.denied(IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0ac8_0000 + number)), now);
        }
        assert_eq!(throttle.buckets.len(), BUCKETS_MAX);
    }
}
