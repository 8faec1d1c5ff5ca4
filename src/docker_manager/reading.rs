//! What is read of Docker, and what is published of it.
//!
//! Owns: one reading at a time, and what each leads to: further readings, the default network made again, Docker away
//! and back, the directory given to control. Does not own: in which order (`manager`, `tasks`), what an answer means
//! (`view`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::DockerError;
use super::commands::Job;
use super::engine::{self, READ_TIMEOUT};
use super::manager::judge_list;
use super::tasks::Task;
use super::view::Facts;
use super::{DockerFailure, DockerManager, ManagedNetwork};
use crate::api;
use crate::daemon::control::ControlMessage;
use crate::event_loop::{Reply, SendError};
use crate::network::DEFAULT_NETWORK;

/// How long control may take to have room for a directory; it only moves pointers.
pub(super) const PUBLISH_LIMIT: Duration = Duration::from_millis(300);
/// Between two attempts to publish to a control that had no room.
const PUBLISH_RETRY: Duration = Duration::from_millis(100);
/// Between two attempts to read a Docker that is away or whose events are: the event reader's notice comes sooner.
const RETRY: Duration = Duration::from_secs(1);
/// Between two attempts to make the default network again.
const DEFAULT_RETRY: Duration = Duration::from_secs(10);

impl DockerManager {
    pub(super) fn perform(&mut self, task: Task) {
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

    pub(super) fn publish(&mut self) -> Result<(), String> {
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
}
