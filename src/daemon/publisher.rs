//! The one place that makes snapshots: rules and directory in, one generation out to every reader.
//!
//! Pure but for the readers it is given. Order matters: the bridge reads last, so that a container is known to DNS
//! and proxy before its first packet is let through.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Snapshot, Subsystem};
use crate::docker_manager::Directory;
use crate::event_loop::Reply;
use crate::rule_engine::RuleSet;

/// How long a reader may take to accept and to acknowledge a snapshot. Past it the reader is dead: a daemon that
/// half works by old rules must not go on.
pub const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(10);

/// Endpoints that are gone are remembered this long: longer than any reading of Docker takes.
const GONE_FOR: Duration = Duration::from_secs(60);

/// A thread that works by snapshots.
pub struct Reader {
    /// Which one.
    pub subsystem: Subsystem,
    /// Puts a snapshot into its mailbox; false: it did not get there in time.
    pub deliver: Box<dyn Fn(Arc<Snapshot>) -> bool + Send>,
}

/// A reader that did not take or acknowledge a snapshot in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderStuck(pub Subsystem);

struct Gone {
    container_id: Arc<str>,
    address: Ipv4Addr,
    at: Instant,
}

struct Awaited {
    generation: u64,
    since: Instant,
    published: Option<Reply<u64>>,
}

/// The current snapshot and who has taken which generation.
pub struct Publisher {
    current: Snapshot,
    readers: Vec<(Reader, u64)>,
    gone: Vec<Gone>,
    awaited: Vec<Awaited>,
}

impl Publisher {
    /// Starts from `first`, which nobody has yet.
    #[must_use]
    pub fn new(first: Snapshot) -> Self {
        Publisher { current: first, readers: Vec::new(), gone: Vec::new(), awaited: Vec::new() }
    }

    /// The snapshot in force.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        Arc::new(self.current.clone())
    }

    /// Adds a reader that starts with the current snapshot. Readers are served in the order they were added.
    pub fn add(&mut self, reader: Reader) {
        self.readers.push((reader, self.current.generation));
    }

    /// Publishes other rules; `published` is answered when every reader works by them.
    ///
    /// # Errors
    /// [`ReaderStuck`]
    pub fn rules(&mut self, rules: Arc<RuleSet>, published: Reply<u64>, now: Instant) -> Result<(), ReaderStuck> {
        self.current.rules = rules;
        self.publish(Some(published), now)
    }

    /// Publishes a new reading of Docker, less the endpoints that the kernel has seen leave since it began.
    ///
    /// # Errors
    /// [`ReaderStuck`]
    pub fn directory(&mut self, directory: Arc<Directory>, now: Instant) -> Result<(), ReaderStuck> {
        self.gone.retain(|gone| now.duration_since(gone.at) < GONE_FOR);
        let stale: Vec<Ipv4Addr> = self
            .gone
            .iter()
            .filter(|gone| gone.at >= directory.as_of && is_at(&directory, gone.address, &gone.container_id))
            .map(|gone| gone.address)
            .collect();
        self.current.directory = if stale.is_empty() { directory } else { Arc::new(without(&directory, &stale)) };
        self.publish(None, now)
    }

    /// Ends one container's identity at once.
    ///
    /// # Errors
    /// [`ReaderStuck`]
    pub fn endpoint_gone(
        &mut self,
        container_id: Arc<str>,
        address: Ipv4Addr,
        at: Instant,
        now: Instant,
    ) -> Result<(), ReaderStuck> {
        let known = is_at(&self.current.directory, address, &container_id);
        self.gone.push(Gone { container_id, address, at });
        if !known {
            return Ok(());
        }
        self.current.directory = Arc::new(without(&self.current.directory, &[address]));
        self.publish(None, now)
    }

    /// Notes that `subsystem` works by `generation`, and answers those who waited for it.
    pub fn acknowledged(&mut self, subsystem: Subsystem, generation: u64) {
        for (reader, taken) in &mut self.readers {
            if reader.subsystem == subsystem {
                *taken = generation.max(*taken);
            }
        }
        let everywhere = self.readers.iter().map(|(_, taken)| *taken).min().unwrap_or(self.current.generation);
        for awaited in &mut self.awaited {
            if awaited.generation <= everywhere
                && let Some(published) = awaited.published.take()
            {
                published.send(awaited.generation);
            }
        }
        self.awaited.retain(|awaited| awaited.generation > everywhere);
    }

    /// When [`Self::check`] must be asked next; `None` while nothing is awaited.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.awaited.iter().map(|awaited| awaited.since + ACKNOWLEDGE_WITHIN).min()
    }

    /// Finds a reader that is too late.
    ///
    /// # Errors
    /// [`ReaderStuck`], naming the one that is furthest behind.
    pub fn check(&self, now: Instant) -> Result<(), ReaderStuck> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        match self.readers.iter().min_by_key(|(_, taken)| *taken) {
            Some((reader, _)) => Err(ReaderStuck(reader.subsystem)),
            None => Ok(()),
        }
    }

    fn publish(&mut self, published: Option<Reply<u64>>, now: Instant) -> Result<(), ReaderStuck> {
        self.current.generation += 1;
        let generation = self.current.generation;
        self.awaited.push(Awaited { generation, since: now, published });
        let snapshot = self.current();
        for (reader, _) in &self.readers {
            if !(reader.deliver)(Arc::clone(&snapshot)) {
                return Err(ReaderStuck(reader.subsystem));
            }
        }
        if self.readers.is_empty() {
            self.acknowledged(Subsystem::Control, generation);
        }
        Ok(())
    }
}

fn is_at(directory: &Directory, address: Ipv4Addr, container_id: &str) -> bool {
    directory.endpoints.get(&address).is_some_and(|endpoint| *endpoint.container_id == *container_id)
}

fn without(directory: &Directory, addresses: &[Ipv4Addr]) -> Directory {
    let mut directory = directory.clone();
    directory.endpoints.retain(|address, _| !addresses.contains(address));
    directory
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker_manager::{Endpoint, ManagedNetwork};
    use crate::event_loop::reply_channel;
    use std::sync::Mutex;

    fn endpoint(id: &str, address: Ipv4Addr) -> Arc<Endpoint> {
        let network = Arc::new(ManagedNetwork {
            name: "outcall-default".to_owned(),
            id: "n".to_owned(),
            bridge: "outcall0".to_owned(),
            subnet: "10.200.0.0/24".parse().unwrap(),
            gateway: "10.200.0.1".parse().unwrap(),
        });
        Arc::new(Endpoint {
            container_id: id.into(),
            container: "c".into(),
            agent: "c".into(),
            network,
            address,
            mac: [2, 0, 0, 0, 0, 1],
            sandbox_key: String::new(),
            pid: 1,
        })
    }

    fn publisher() -> (Publisher, Arc<Mutex<Vec<Arc<Snapshot>>>>) {
        let first = Snapshot {
            generation: 1,
            rules: Arc::new(RuleSet::block_all()),
            directory: Arc::new(Directory::empty(Instant::now())),
        };
        let mut publisher = Publisher::new(first);
        let seen: Arc<Mutex<Vec<Arc<Snapshot>>>> = Arc::default();
        let into = Arc::clone(&seen);
        publisher.add(Reader {
            subsystem: Subsystem::Dns,
            deliver: Box::new(move |snapshot| {
                into.lock().unwrap().push(snapshot);
                true
            }),
        });
        (publisher, seen)
    }

    #[test]
    fn rules_are_published_when_every_reader_has_them() {
        let (mut publisher, seen) = publisher();
        publisher.add(Reader { subsystem: Subsystem::Proxy, deliver: Box::new(|_| true) });
        let (reply, answer) = reply_channel();
        publisher.rules(Arc::new(RuleSet::block_all()), reply, Instant::now()).unwrap();
        assert_eq!(seen.lock().unwrap().last().unwrap().generation, 2);
        publisher.acknowledged(Subsystem::Dns, 2);
        assert!(answer.try_recv().is_err());
        publisher.acknowledged(Subsystem::Proxy, 2);
        assert_eq!(answer.try_recv(), Ok(2));
        assert!(publisher.deadline().is_none());
    }

    #[test]
    fn a_directory_read_before_a_veth_left_does_not_bring_its_container_back() {
        let (mut publisher, seen) = publisher();
        let address = Ipv4Addr::new(10, 200, 0, 2);
        let start = Instant::now();
        let mut directory = Directory::empty(start);
        directory.endpoints.insert(address, endpoint("old", address));
        let directory = Arc::new(directory);
        publisher.directory(Arc::clone(&directory), start).unwrap();
        let left = start + Duration::from_millis(5);
        publisher.endpoint_gone("old".into(), address, left, left).unwrap();
        assert!(seen.lock().unwrap().last().unwrap().directory.endpoints.is_empty());
        publisher.directory(Arc::clone(&directory), left).unwrap();
        assert!(seen.lock().unwrap().last().unwrap().directory.endpoints.is_empty());
        let mut later = (*directory).clone();
        later.as_of = left + Duration::from_millis(1);
        publisher.directory(Arc::new(later), left).unwrap();
        assert_eq!(seen.lock().unwrap().last().unwrap().directory.endpoints.len(), 1);
    }

    #[test]
    fn a_reader_that_does_not_take_a_snapshot_is_named() {
        let (mut publisher, _seen) = publisher();
        let now = Instant::now();
        publisher.rules(Arc::new(RuleSet::block_all()), Reply::nobody(), now).unwrap();
        assert_eq!(publisher.check(now), Ok(()));
        assert_eq!(publisher.check(now + ACKNOWLEDGE_WITHIN), Err(ReaderStuck(Subsystem::Dns)));
        publisher.add(Reader { subsystem: Subsystem::Bridge, deliver: Box::new(|_| false) });
        let refused = publisher.rules(Arc::new(RuleSet::block_all()), Reply::nobody(), now);
        assert_eq!(refused, Err(ReaderStuck(Subsystem::Bridge)));
    }
}
