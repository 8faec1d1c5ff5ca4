//! The manager's thread: a mio loop over its mailbox that asks Docker one short question at a time.
//!
//! Owns: when Docker is asked. Between any two questions
//! the mailbox is drained, so that a ping is answered within one read's timeout. Changes of networks take seconds and
//! run on a thread of their own; so do disconnections, which wait for a container's start to end.
//! Does not own: how Docker is asked (`engine`), what is read and published (`reading`), what follows from the answers
//! (`view`, `warnings`, `guarding`).

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::Client;
use super::commands::{Job, Query};
use super::containers::{Containers, Finished};
use super::engine;
use super::network_ops::NetworkOps;
use super::start::{DockerConfig, DockerLinks, StartNetwork};
use super::stream::{Change, Stream};
use super::tasks::Tasks;
use super::view::View;
use super::warnings::Warning;
use super::{Directory, DockerCommand, ManagedNetwork, Notice};
use crate::event_loop::Mailbox;
use crate::network::{self, Verdict};

/// How long an endpoint waits for others to be published with it, once its own reading is done.
const COALESCE: Duration = Duration::from_millis(10);
/// How long a change under way may take to end at the stop.
pub(super) const STOP_LIMIT: Duration = Duration::from_secs(3);

/// What the helper threads say.
pub(super) enum Noticed {
    Stream(Change),
    /// The bridge thread's answer for a network seen by itself.
    Bridge {
        bridge: String,
        result: Result<(), String>,
    },
    /// A change of networks ended; `answer` is for whoever asked.
    Changed {
        default_wanted: Option<bool>,
        answer: Box<dyn FnOnce() + Send>,
    },
    /// A thread of the containers' commands ended.
    Container(Finished),
    /// A disconnection ended.
    Cut {
        container: String,
        network: String,
        result: Result<(), String>,
    },
}

/// The manager. Made by [`DockerManager::start`].
pub struct DockerManager {
    pub(super) config: DockerConfig,
    pub(super) links: DockerLinks,
    pub(super) ops: NetworkOps,
    pub(super) view: View,
    pub(super) look_alikes: BTreeMap<String, String>,
    pub(super) made: StartNetwork,
    poll: mio::Poll,
    mailbox: Mailbox<DockerCommand>,
    pub(super) tasks: Tasks,
    pub(super) jobs: VecDeque<Job>,
    pub(super) job_running: bool,
    pub(super) queries: VecDeque<Query>,
    pub(super) containers: Containers,
    /// Answers that wait until the directory they speak of is published.
    pub(super) answers: Vec<Box<dyn FnOnce() + Send>>,
    /// Since when something waits to be published.
    pub(super) unpublished: Option<Instant>,
    pub(super) publish_after: Instant,
    /// Why Docker cannot be used, as it was told last.
    pub(super) away: Option<String>,
    pub(super) stream_open: bool,
    /// Every bridge is to be prepared at the next list: Docker came back.
    pub(super) prepare_all: bool,
    /// The operator has not destroyed the default network.
    pub(super) default_wanted: bool,
    /// It is not made again before this.
    pub(super) default_after: Instant,
    pub(super) cutting: HashSet<(String, String)>,
    pub(super) told: BTreeMap<String, Warning>,
    stopping: bool,
}

/// The managed networks of a list, and the look-alikes: name → reason.
pub(super) fn judge_list(
    all: &[engine::Network],
    default_bridge: &str,
) -> (Vec<ManagedNetwork>, BTreeMap<String, String>) {
    let (mut managed, mut look_alikes) = (Vec::new(), BTreeMap::new());
    for found in all {
        match network::judge(found, default_bridge) {
            Verdict::Managed(network) => managed.push(network),
            Verdict::LookAlike(reason) => drop(look_alikes.insert(found.name.clone(), reason)),
            Verdict::Foreign => {}
        }
    }
    (managed, look_alikes)
}

impl DockerManager {
    pub(super) fn new(
        config: DockerConfig,
        links: DockerLinks,
        ops: NetworkOps,
        poll: mio::Poll,
        mailbox: Mailbox<DockerCommand>,
    ) -> Self {
        let now = Instant::now();
        let containers = Containers::new(&config, &ops.client);
        DockerManager {
            config,
            links,
            ops,
            view: View::new(now),
            look_alikes: BTreeMap::new(),
            made: StartNetwork::default(),
            poll,
            mailbox,
            tasks: Tasks::new(now),
            jobs: VecDeque::new(),
            job_running: false,
            queries: VecDeque::new(),
            containers,
            answers: Vec::new(),
            unpublished: None,
            publish_after: now,
            away: None,
            stream_open: true,
            prepare_all: false,
            default_wanted: true,
            default_after: now,
            cutting: HashSet::new(),
            told: BTreeMap::new(),
            stopping: false,
        }
    }

    /// The directory as it was read last; for the first snapshot.
    #[must_use]
    pub fn directory(&self) -> Arc<Directory> {
        Arc::clone(self.view.last())
    }

    /// Runs until [`DockerCommand::Stop`].
    ///
    /// # Errors
    /// Why it ended without being told to.
    pub fn run(mut self) -> Result<(), String> {
        let client = Client::new(&self.config.socket);
        let stream = Stream::start(client, self.links.own.clone())
            .map_err(|error| format!("cannot start the thread docker_events: {error}"))?;
        let mut events = mio::Events::with_capacity(4);
        while !self.stopping {
            self.wait(&mut events, self.next_due())?;
            loop {
                self.drain();
                if self.stopping || !self.step()? {
                    break;
                }
            }
            if stream.is_finished() && !self.stopping {
                return Err("the thread docker_events ended by itself".to_owned());
            }
        }
        drop(stream);
        let deadline = Instant::now() + STOP_LIMIT;
        while (self.job_running || self.containers.busy() || !self.cutting.is_empty()) && Instant::now() < deadline {
            self.wait(&mut events, deadline)?;
            self.drain();
        }
        for answer in self.answers.drain(..) {
            answer();
        }
        Ok(())
    }

    fn wait(&mut self, events: &mut mio::Events, due: Instant) -> Result<(), String> {
        if !self.mailbox.is_empty() {
            return Ok(());
        }
        match self.poll.poll(events, Some(due.saturating_duration_since(Instant::now()))) {
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => Err(format!("epoll_wait: {error}")),
            _ => Ok(()),
        }
    }

    fn next_due(&self) -> Instant {
        let now = Instant::now();
        let publish = self.unpublished.map(|_| self.publish_after);
        let others = [publish, self.containers.next_due()].into_iter().flatten().min();
        self.tasks.next_due(now).min(others.unwrap_or(now + super::tasks::HEARTBEAT))
    }

    /// Takes everything that waits in the mailbox. Asks nothing.
    pub(super) fn drain(&mut self) {
        while let Some(command) = self.mailbox.take() {
            match command {
                DockerCommand::Ping(reply) => reply.send(()),
                DockerCommand::Stop => self.stopping = true,
                DockerCommand::Identify(_) => self.tasks.identify(Instant::now()),
                DockerCommand::CreateNetwork(request, reply) => self.enqueue(Job::Create(request, reply)),
                DockerCommand::DestroyNetwork(select, reply) => self.enqueue(Job::Destroy(select, reply)),
                DockerCommand::Network(select, reply) => self.ask(Query::Network(select, reply)),
                DockerCommand::Networks(reply) => self.ask(Query::Networks(reply)),
                DockerCommand::Container(command) => self.containers.enqueue(command),
                DockerCommand::Noticed(Notice(noticed)) => self.noticed(noticed),
            }
        }
    }

    fn noticed(&mut self, noticed: Noticed) {
        match noticed {
            Noticed::Stream(change) => self.changed(change),
            Noticed::Bridge { bridge, result } => {
                let key = format!("bridge/{bridge}");
                if let Err(reason) = &result {
                    tracing::error!(target: "network", bridge, reason, "the bridge thread refused");
                }
                self.links.readiness.warn(&key, result.err());
            }
            Noticed::Changed { default_wanted, answer } => {
                self.job_running = false;
                self.default_wanted = default_wanted.unwrap_or(self.default_wanted);
                self.answers.push(answer);
                self.unpublished.get_or_insert_with(Instant::now);
                self.tasks.list_by(Instant::now());
            }
            Noticed::Container(finished) => self.containers.finished(finished, Instant::now()),
            Noticed::Cut { container, network, result } => {
                match result {
                    Ok(()) => tracing::info!(target: "docker_manager", container, "disconnected and paused"),
                    // It has no identity meanwhile. While it is on the network the next reading tries again.
                    Err(reason) => {
                        tracing::error!(target: "docker_manager", container, reason, "cannot disconnect and pause a container that must not stay");
                    }
                }
                self.tasks.network(network.clone());
                self.cutting.remove(&(container, network));
            }
        }
    }

    fn changed(&mut self, change: Change) {
        let now = Instant::now();
        match change {
            Change::Opened => {
                self.stream_open = true;
                self.prepare_all = true;
                self.tasks.list_by(now);
                self.containers.sweep_now(now);
            }
            Change::Lost(reason) => {
                self.stream_open = false;
                self.away(reason);
            }
            Change::Networks => self.tasks.list_by(now),
            Change::Endpoints { network, container } => {
                if self.view.knows_network(&network) {
                    self.tasks.network(network);
                } else if let Some(container) = container.filter(|container| self.view.is_attached(container)) {
                    // One of ours came to or left a network that nobody filters.
                    self.tasks.probe(container, now);
                }
            }
            Change::Created(container) => self.tasks.created(container),
            Change::Started(container) => self.tasks.started(container),
            Change::Ended(container) => {
                self.tasks.ended(&container);
                self.view.forget(&container);
                for network in self.view.networks_of(&container) {
                    self.tasks.network(network);
                }
            }
            Change::Renamed(container) => {
                for network in self.view.networks_of(&container) {
                    self.tasks.network(network);
                }
            }
        }
    }

    /// Does the most urgent thing there is, with one question to Docker at most. `false`: nothing is due.
    fn step(&mut self) -> Result<bool, String> {
        let now = Instant::now();
        // While Docker is away nobody can be identified; its return reads everything anyway.
        if self.tasks.take_identify(now) && self.away.is_none() {
            let networks = self.view.network_ids();
            if networks.is_empty() {
                self.tasks.list_by(now);
            }
            for id in networks {
                self.tasks.network(id);
            }
            self.unpublished.get_or_insert(now);
        }
        if let Some(task) = self.tasks.next_reading(now) {
            self.perform(task);
            return Ok(true);
        }
        if self.unpublished.is_some_and(|since| !self.tasks.inspecting() || now >= since + COALESCE)
            && now >= self.publish_after
        {
            self.publish()?;
            return Ok(true);
        }
        if let Some(task) = self.tasks.next_container(now) {
            self.perform(task);
            return Ok(true);
        }
        if !self.job_running
            && let Some(job) = self.jobs.pop_front()
        {
            self.begin(job);
            return Ok(true);
        }
        if self.begin_container_work() {
            return Ok(true);
        }
        if let Some(query) = self.queries.pop_front() {
            self.answer(query);
            return Ok(true);
        }
        Ok(false)
    }
}
