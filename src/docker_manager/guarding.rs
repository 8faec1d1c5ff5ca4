//! What follows from a reading outside of Docker's answers: warnings, containers that must go, bridges to prepare.
//!
//! Owns: acting on the judgements of `warnings`, and the commands to the bridge thread. Does not own: the judgements.

use std::time::Duration;

use super::client::{Client, DockerError};
use super::manager::{Noticed, STOP_LIMIT};
use super::reading::PUBLISH_LIMIT;
use super::resolver_guard::HostResolver;
use super::warnings::{self, Cut};
use super::{DockerCommand, DockerManager, ManagedNetwork, Notice, engine};
use crate::bridge::BridgeCommand;
use crate::event_loop::Reply;

/// How often a container that must not run on is paused until Docker does it, and the wait between.
const PAUSE_ATTEMPTS: usize = 5;
const PAUSE_GAP: Duration = Duration::from_millis(400);

impl DockerManager {
    /// Judges every attachment: warnings, and containers that must go.
    pub(super) fn guard(&mut self) {
        let host = HostResolver::read(&self.config.files);
        let findings = warnings::judge(&self.view, &host, &self.look_alikes);
        warnings::tell(&mut self.told, findings.warnings, &self.links.readiness, &self.links.events);
        for (container, network) in &findings.fine {
            if self.view.accept(container, network) {
                self.unpublished.get_or_insert_with(std::time::Instant::now);
            }
        }
        for cut in findings.cuts {
            if self.view.refuse(&cut.container, &cut.network.id) {
                self.unpublished.get_or_insert_with(std::time::Instant::now);
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

    pub(super) fn prepare_bridge(&self, network: &ManagedNetwork) {
        let (bridge, own) = (network.bridge.clone(), self.links.own.clone());
        let done = Reply::new(move |result| {
            let noticed = Noticed::Bridge { bridge, result };
            // Told to the log and `/ready` only: a full mailbox loses no enforcement.
            let _ = own.send(DockerCommand::Noticed(Notice(noticed)));
        });
        let (bridge, subnet, gateway) = (network.bridge.clone(), network.subnet, network.gateway);
        self.command_bridge(BridgeCommand::EnsureNetwork { bridge, subnet, gateway, done }, &network.bridge);
    }

    pub(super) fn remove_bridge(&self, bridge: &str) {
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
