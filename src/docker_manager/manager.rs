//! The manager's thread: a mio loop over its mailbox that asks Docker one short question at a time.
//!
//! Owns: when Docker is asked, and what is published. Between any two questions
//! the mailbox is drained, so that a ping is answered within one read's timeout. Changes of networks take seconds and
//! run on a thread of their own; so do disconnections, which wait for a container's start to end.
//! Does not own: how Docker is asked (`engine`), what follows from the answers (`view`, `warnings`).

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::{Client, DockerError};
use super::commands::{Job, Query};
use super::engine::{self, READ_TIMEOUT};
use super::network_ops::NetworkOps;
use super::resolver_guard::HostResolver;
use super::start::{DockerConfig, DockerLinks, StartNetwork};
use super::stream::{Change, Stream};
use super::tasks::{Task, Tasks};
use super::view::{Facts, View};
use super::warnings::{self, Cut, Warning};
use super::{Directory, DockerCommand, DockerFailure, ManagedNetwork, Notice};
use crate::api;
use crate::bridge::BridgeCommand;
use crate::daemon::control::ControlMessage;
use crate::event_loop::{Mailbox, Reply, SendError};
use crate::network::{self, DEFAULT_NETWORK, Verdict};

/// How long an endpoint waits for others to be published with it, once its own reading is done.
const COALESCE: Duration = Duration::from_millis(10);
/// How long control may take to have room for a directory; it only moves pointers.
const PUBLISH_LIMIT: Duration = Duration::from_millis(300);
/// Between two attempts to publish to a control that had no room.
const PUBLISH_RETRY: Duration = Duration::from_millis(100);
/// Between two attempts to read a Docker that is away or whose events are: the event reader's notice comes sooner.
const RETRY: Duration = Duration::from_secs(1);
/// Between two attempts to make the default network again.
const DEFAULT_RETRY: Duration = Duration::from_secs(10);
/// How often a container that must not run on is paused until Docker does it, and the wait between.
const PAUSE_ATTEMPTS: usize = 5;
const PAUSE_GAP: Duration = Duration::from_millis(400);
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
    tasks: Tasks,
    pub(super) jobs: VecDeque<Job>,
    pub(super) job_running: bool,
    pub(super) queries: VecDeque<Query>,
    /// Answers that wait until the directory they speak of is published.
    answers: Vec<Box<dyn FnOnce() + Send>>,
    /// Since when something waits to be published.
    unpublished: Option<Instant>,
    publish_after: Instant,
    /// Why Docker cannot be used, as it was told last.
    away: Option<String>,
    stream_open: bool,
    /// Every bridge is to be prepared at the next list: Docker came back.
    prepare_all: bool,
    /// The operator has not destroyed the default network.
    default_wanted: bool,
    /// It is not made again before this.
    default_after: Instant,
    cutting: HashSet<(String, String)>,
    told: BTreeMap<String, Warning>,
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
        while (self.job_running || !self.cutting.is_empty()) && Instant::now() < deadline {
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
        self.tasks.next_due(now).min(publish.unwrap_or(now + super::tasks::HEARTBEAT))
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
        if let Some(query) = self.queries.pop_front() {
            self.answer(query);
            return Ok(true);
        }
        Ok(false)
    }

    fn perform(&mut self, task: Task) {
        match task {
            Task::List => self.list(),
            Task::Network(id) => self.read_network(&id),
            Task::Container(id, limit) => self.read_container(id, limit),
        }
    }

    fn list(&mut self) {
        let asked = Instant::now();
        let all = match engine::networks(&self.ops.client, READ_TIMEOUT) {
            Ok(all) => all,
            Err(error) => return self.away(error.to_string()),
        };
        let (managed, look_alikes) = judge_list(&all, &self.ops.default_bridge);
        let default_taken = managed.iter().any(|network| network.name == DEFAULT_NETWORK);
        let default_blocked = look_alikes.contains_key(DEFAULT_NETWORK);
        self.look_alikes = look_alikes;
        let change = self.view.listed(managed, asked);
        let prepare: Vec<Arc<ManagedNetwork>> =
            if self.prepare_all { self.view.networks().cloned().collect() } else { change.added };
        for network in prepare {
            self.prepare_bridge(&network);
        }
        for network in change.removed {
            tracing::info!(target: "network", name = network.name, "network is gone from Docker");
            self.unpublished.get_or_insert_with(Instant::now);
            let used = self.view.networks().any(|other| other.bridge == network.bridge);
            if !used && network.bridge != self.ops.default_bridge {
                self.remove_bridge(&network.bridge);
            }
        }
        let missing = !default_taken && self.default_wanted;
        let network = if missing { Err(format!("the network {DEFAULT_NETWORK} does not exist yet")) } else { Ok(()) };
        self.links.readiness.set("network", network);
        if self.prepare_all {
            for container in self.view.containers() {
                self.tasks.probe(container, Instant::now());
            }
        }
        self.prepare_all = false;
        self.tasks.listed(Instant::now(), self.view.network_ids());
        if missing && !default_blocked {
            self.want_default();
        }
        if self.view.network_ids().is_empty() {
            self.guard();
        }
        self.unpublished.get_or_insert_with(Instant::now);
        self.present();
    }

    /// Has the default network, which is missing, made again: now, or when its turn comes.
    fn want_default(&mut self) {
        let now = Instant::now();
        // A job that runs or waits ends with another list.
        if self.job_running || !self.jobs.is_empty() {
            return;
        }
        if now < self.default_after {
            self.tasks.list_by(self.default_after);
            return;
        }
        self.default_after = now + DEFAULT_RETRY;
        tracing::warn!(target: "network", name = DEFAULT_NETWORK, "the default network is missing: making it");
        let told = Reply::new(|made: Result<api::NetworkCreated, DockerFailure>| {
            if let Err(failure) = made {
                tracing::error!(target: "network", reason = failure.message, "cannot make the default network");
            }
        });
        self.jobs.push_back(Job::Create(api::NetworkCreate::default(), told));
    }

    fn read_network(&mut self, id: &str) {
        let asked = Instant::now();
        match engine::network(&self.ops.client, id, READ_TIMEOUT) {
            Ok(network) => {
                self.view.inspected(id, network.containers, asked);
                self.unpublished.get_or_insert(asked);
                for container in self.view.containers() {
                    if !self.view.has_facts(&container) {
                        self.tasks.probe(container, asked);
                    }
                }
                if !self.tasks.reading(asked) {
                    self.guard();
                }
            }
            Err(error) if error.status() == Some(404) => self.tasks.list_by(asked),
            Err(error) => self.away(error.to_string()),
        }
    }

    fn read_container(&mut self, id: String, limit: Duration) {
        if !self.view.is_attached(&id) {
            return;
        }
        match engine::container(&self.ops.client, &id, limit) {
            Ok(container) => {
                if self.view.learnt(&id, Facts::from(container)) {
                    self.unpublished.get_or_insert_with(Instant::now);
                    self.guard();
                }
            }
            Err(error) if error.status() == Some(404) => {
                for network in self.view.networks_of(&id) {
                    self.tasks.network(network);
                }
            }
            // One container's trouble is not Docker's.
            Err(DockerError::Timeout { .. } | DockerError::Refused { .. }) => {
                self.tasks.unanswered(id, limit, Instant::now())
            }
            Err(error) => self.away(error.to_string()),
        }
    }

    /// Docker cannot be used: the last directory stays in force, and the reading is tried again.
    pub(super) fn away(&mut self, reason: String) {
        if self.away.is_none() {
            tracing::warn!(target: "docker_manager", reason, "Docker is away; the last directory stays in force");
        } else {
            tracing::debug!(target: "docker_manager", reason, "Docker is still away");
        }
        self.links.readiness.set("docker", Err(reason.clone()));
        self.away = Some(reason);
        self.tasks.only_list_at(Instant::now() + RETRY);
        self.ops.client.forget_version();
        for answer in self.answers.drain(..) {
            answer();
        }
    }

    /// A list was read. Without events it is read again soon, and Docker is not well yet.
    fn present(&mut self) {
        if !self.stream_open {
            self.tasks.list_by(Instant::now() + RETRY);
            return;
        }
        if self.away.take().is_some() {
            tracing::info!(target: "docker_manager", "Docker is back");
        }
        self.links.readiness.set("docker", Ok(()));
    }

    fn publish(&mut self) -> Result<(), String> {
        let directory = self.view.directory();
        match self.links.control.send_within(ControlMessage::Directory(directory), PUBLISH_LIMIT) {
            Ok(()) => {
                self.unpublished = None;
                for answer in self.answers.drain(..) {
                    answer();
                }
                Ok(())
            }
            Err(SendError::Full(_)) => {
                tracing::error!(target: "docker_manager", "control has no room for a directory; trying again");
                self.publish_after = Instant::now() + PUBLISH_RETRY;
                Ok(())
            }
            Err(SendError::Closed(_)) => Err("control is gone".to_owned()),
        }
    }

    /// Judges every attachment: warnings, and containers that must go.
    pub(super) fn guard(&mut self) {
        let host = HostResolver::read(&self.config.files);
        let findings = warnings::judge(&self.view, &host, &self.look_alikes);
        warnings::tell(&mut self.told, findings.warnings, &self.links.readiness, &self.links.events);
        for (container, network) in &findings.fine {
            if self.view.accept(container, network) {
                self.unpublished.get_or_insert_with(Instant::now);
            }
        }
        for cut in findings.cuts {
            if self.view.refuse(&cut.container, &cut.network.id) {
                self.unpublished.get_or_insert_with(Instant::now);
            }
            self.cut(cut);
        }
    }

    /// Disconnects a container, on a thread of its own.
    fn cut(&mut self, cut: Cut) {
        let (container, network) = (cut.container.to_string(), cut.network.id.clone());
        if !self.cutting.insert((container.clone(), network.clone())) {
            return;
        }
        let (client, own) = (self.ops.client.clone(), self.links.own.clone());
        let key = (container.clone(), network.clone());
        let spawned = std::thread::Builder::new().name("docker_cut".to_owned()).spawn(move || {
            let result = match engine::disconnect(&client, &network, &container) {
                // It left by itself.
                Err(error) if error.status() == Some(404) => Ok(()),
                // Docker goes on resolving for a container that is on no network any more.
                Ok(()) => pause(&client, &container).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            // A manager that is gone needs no notice.
            let _ = own
                .send_within(DockerCommand::Noticed(Notice(Noticed::Cut { container, network, result })), STOP_LIMIT);
        });
        if let Err(error) = spawned {
            tracing::error!(target: "docker_manager", container = &*cut.name, %error, "cannot start a thread to disconnect");
            self.cutting.remove(&key);
        }
    }

    fn prepare_bridge(&self, network: &ManagedNetwork) {
        let (bridge, own) = (network.bridge.clone(), self.links.own.clone());
        let done = Reply::new(move |result| {
            let noticed = Noticed::Bridge { bridge, result };
            // Told to the log and `/ready` only: a full mailbox loses no enforcement.
            let _ = own.send(DockerCommand::Noticed(Notice(noticed)));
        });
        let (bridge, subnet, gateway) = (network.bridge.clone(), network.subnet, network.gateway);
        self.command_bridge(BridgeCommand::EnsureNetwork { bridge, subnet, gateway, done }, &network.bridge);
    }

    fn remove_bridge(&self, bridge: &str) {
        let name = bridge.to_owned();
        let done = Reply::new(move |result: Result<(), String>| {
            if let Err(reason) = result {
                tracing::warn!(target: "network", bridge = name, reason, "cannot remove the bridge of a network that is gone");
            }
        });
        self.command_bridge(BridgeCommand::RemoveNetwork { bridge: bridge.to_owned(), done }, bridge);
    }

    fn command_bridge(&self, command: BridgeCommand, bridge: &str) {
        if self.links.bridge.send_within(command, PUBLISH_LIMIT).is_err() {
            tracing::error!(target: "network", bridge, "the bridge thread takes no command");
        }
    }
}

/// Freezes a container that is off its network, and that no later reading finds there to try it again.
fn pause(client: &Client, container: &str) -> Result<(), DockerError> {
    let mut outcome = engine::pause(client, container);
    for _ in 1..PAUSE_ATTEMPTS {
        if outcome.is_ok() {
            break;
        }
        std::thread::sleep(PAUSE_GAP);
        outcome = engine::pause(client, container);
    }
    outcome
}
