//! What the manager still has to ask Docker, in the order of its urgency. No I/O.
//!
//! Events and questions only mark something as due, so that any number of them leads to one reading.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::engine::{PROBE_TIMEOUT, READ_TIMEOUT};

/// Everything is read anew this often, as a net under events that were missed.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(30);
/// The least time between two readings that unknown addresses caused: they may send as fast as they like.
const IDENTIFY_GAP: Duration = Duration::from_millis(20);
/// When and for how long a container is looked at that may be starting: its inspection waits for the end of the start.
const PROBES: [(Duration, Duration); 3] = [
    (Duration::ZERO, PROBE_TIMEOUT),
    (Duration::from_millis(300), Duration::from_millis(100)),
    (Duration::from_secs(2), READ_TIMEOUT),
];
/// Containers that were made and have not started; past it they are probed like any other.
const CREATED_CAP: usize = 4096;

/// One thing to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// The list of networks.
    List,
    /// One network's endpoints.
    Network(String),
    /// One container, within this limit.
    Container(String, Duration),
}

/// The queue.
pub(super) struct Tasks {
    list_due: Instant,
    networks: BTreeSet<String>,
    containers: VecDeque<String>,
    probes: Vec<Probe>,
    created: HashSet<String>,
    identified: Option<Instant>,
    identify_due: Option<Instant>,
}

struct Probe {
    container: String,
    due: Instant,
    attempt: usize,
}

impl Tasks {
    /// A queue whose first task is a list at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Tasks {
            list_due: now,
            networks: BTreeSet::new(),
            containers: VecDeque::new(),
            probes: Vec::new(),
            created: HashSet::new(),
            identified: None,
            identify_due: None,
        }
    }

    /// The list, no later than `due`.
    pub(super) fn list_by(&mut self, due: Instant) {
        self.list_due = self.list_due.min(due);
    }

    /// The list at `due` and nothing else before it: Docker is away.
    pub(super) fn only_list_at(&mut self, due: Instant) {
        self.list_due = due;
        self.networks.clear();
        self.containers.clear();
        self.probes.clear();
        // Their start may be among the events that are missed meanwhile.
        self.created.clear();
        self.identify_due = None;
    }

    /// The list came.
    pub(super) fn listed(&mut self, now: Instant, networks: Vec<String>) {
        self.list_due = now + HEARTBEAT;
        self.networks = networks.into_iter().collect();
    }

    /// This network's endpoints.
    pub(super) fn network(&mut self, id: String) {
        self.networks.insert(id);
    }

    /// Somebody unknown sent something.
    pub(super) fn identify(&mut self, now: Instant) {
        let due = self.identified.map_or(now, |last| now.max(last + IDENTIFY_GAP));
        self.identify_due.get_or_insert(due);
    }

    /// True once when an unknown address is to be asked about; every network is to be read then.
    pub(super) fn take_identify(&mut self, now: Instant) -> bool {
        let due = self.identify_due.is_some_and(|due| due <= now);
        if due {
            self.identify_due = None;
            self.identified = Some(now);
        }
        due
    }

    /// A container was made: it is not worth a look before its start event.
    pub(super) fn created(&mut self, container: String) {
        if self.created.len() < CREATED_CAP {
            self.created.insert(container);
        }
    }

    /// A container's start ended: its inspection answers at once.
    pub(super) fn started(&mut self, container: String) {
        self.ended(&container);
        self.containers.push_back(container);
    }

    /// A container is gone.
    pub(super) fn ended(&mut self, container: &str) {
        self.created.remove(container);
        self.probes.retain(|probe| probe.container != container);
        self.containers.retain(|other| other != container);
    }

    /// A container that may be starting.
    pub(super) fn probe(&mut self, container: String, now: Instant) {
        if !self.created.contains(&container) && !self.probes.iter().any(|probe| probe.container == container) {
            self.probes.push(Probe { container, due: now + PROBES[0].0, attempt: 0 });
        }
    }

    /// A container did not answer: it is starting, or Docker is slow.
    pub(super) fn unanswered(&mut self, container: String, attempt_limit: Duration, now: Instant) {
        let attempt = PROBES.iter().position(|(_, limit)| *limit > attempt_limit);
        if let Some(attempt) = attempt {
            self.probes.push(Probe { container, due: now + PROBES[attempt].0, attempt });
        }
    }

    /// True while networks wait to be read: what is known is half old, half new.
    pub(super) fn reading(&self, now: Instant) -> bool {
        !self.networks.is_empty() || self.list_due <= now
    }

    /// True while containers wait whose inspection answers at once.
    pub(super) fn inspecting(&self) -> bool {
        !self.containers.is_empty()
    }

    /// The next task that concerns networks.
    pub(super) fn next_reading(&mut self, now: Instant) -> Option<Task> {
        if self.list_due <= now {
            return Some(Task::List);
        }
        self.networks.pop_first().map(Task::Network)
    }

    /// The next task that concerns a container.
    pub(super) fn next_container(&mut self, now: Instant) -> Option<Task> {
        if let Some(container) = self.containers.pop_front() {
            return Some(Task::Container(container, READ_TIMEOUT));
        }
        let due = self.probes.iter().position(|probe| probe.due <= now)?;
        let probe = self.probes.swap_remove(due);
        Some(Task::Container(probe.container, PROBES[probe.attempt].1))
    }

    /// When the next task is due.
    pub(super) fn next_due(&self, now: Instant) -> Instant {
        if !self.networks.is_empty() || !self.containers.is_empty() {
            return now;
        }
        let probes = self.probes.iter().map(|probe| probe.due);
        probes.chain(self.identify_due).fold(self.list_due, Instant::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(now: Instant) -> Tasks {
        let mut tasks = Tasks::new(now);
        assert_eq!(tasks.next_reading(now), Some(Task::List));
        tasks.listed(now, Vec::new());
        tasks
    }

    #[test]
    fn many_events_lead_to_one_reading() {
        let now = Instant::now();
        let mut tasks = settled(now);
        for _ in 0..100 {
            tasks.network("n".to_owned());
        }
        assert_eq!(tasks.next_reading(now), Some(Task::Network("n".to_owned())));
        assert_eq!(tasks.next_reading(now), None);
        assert_eq!(tasks.next_due(now), now + HEARTBEAT);
    }

    #[test]
    fn unknown_addresses_are_asked_about_at_a_limited_pace() {
        let now = Instant::now();
        let mut tasks = settled(now);
        tasks.identify(now);
        tasks.identify(now);
        assert!(tasks.take_identify(now) && !tasks.take_identify(now));
        tasks.identify(now + Duration::from_millis(1));
        assert!(!tasks.take_identify(now + Duration::from_millis(1)));
        assert_eq!(tasks.next_due(now), now + IDENTIFY_GAP);
        assert!(tasks.take_identify(now + IDENTIFY_GAP));
    }

    #[test]
    fn a_container_that_is_starting_is_not_waited_for() {
        let now = Instant::now();
        let mut tasks = settled(now);
        tasks.created("c".to_owned());
        tasks.probe("c".to_owned(), now);
        assert_eq!(tasks.next_container(now), None);
        tasks.started("c".to_owned());
        assert_eq!(tasks.next_container(now), Some(Task::Container("c".to_owned(), READ_TIMEOUT)));
        tasks.probe("d".to_owned(), now);
        tasks.probe("d".to_owned(), now);
        assert_eq!(tasks.next_container(now), Some(Task::Container("d".to_owned(), PROBE_TIMEOUT)));
        tasks.unanswered("d".to_owned(), PROBE_TIMEOUT, now);
        assert_eq!(tasks.next_container(now), None);
        let later = now + Duration::from_millis(300);
        assert_eq!(tasks.next_container(later), Some(Task::Container("d".to_owned(), Duration::from_millis(100))));
        tasks.unanswered("d".to_owned(), READ_TIMEOUT, later);
        assert_eq!(tasks.next_due(later), now + HEARTBEAT, "given up until the next full reading");
    }
}
