//! The "network" step of the daemon's start: default network, bridges, the first directory.
//!
//! Owns: what may stop a start, and what only delays it (Docker alone may be away). Does not own: the thread
//! (`manager`), the operations themselves (`network_ops`).

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::client::Client;
use super::manager::judge_list;
use super::network_ops::NetworkOps;
use super::view::Facts;
use super::{DockerCommand, DockerFailure, DockerManager, HostFiles, Ipv4Net, engine};
use crate::bridge::BridgeCommand;
use crate::daemon::Readiness;
use crate::daemon::control::ControlMessage;
use crate::event_loop::{Address, Mailbox};
use crate::events::EventSink;
use crate::network::DEFAULT_NETWORK;

/// One read at the start: Docker may be starting too.
const START_READ: Duration = Duration::from_secs(2);
/// All inspections of containers together; those that are left are made once the thread runs.
const INSPECTIONS: Duration = Duration::from_secs(2);
/// One of them: a container that is starting does not answer.
const INSPECTION: Duration = Duration::from_millis(100);

/// What the flags say.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    /// `--docker-socket`.
    pub socket: PathBuf,
    /// `--bridge`.
    pub bridge: String,
    /// `--subnet-block`.
    pub subnet_block: Ipv4Net,
    /// Where the host's resolver is configured.
    pub files: HostFiles,
    /// `--socket`: no container may see it.
    pub operator_socket: PathBuf,
    /// The daemon's own files and directories, of which no container may see a part.
    pub protected: Vec<PathBuf>,
    /// The directory of the agents' socket, as containers mount it.
    pub agent_directory: PathBuf,
    /// `--shim-host-path`.
    pub shim: PathBuf,
    /// `--proxy-addr`; `None` with `--no-proxy`.
    pub proxy: Option<SocketAddr>,
    /// System roots and our CA in one file, whose directory containers mount; `None` without a CA.
    pub ca_bundle: Option<PathBuf>,
}

/// The ways to the other parts.
pub struct DockerLinks {
    /// Takes directories.
    pub control: Address<ControlMessage>,
    /// Makes bridges; its thread must run already.
    pub bridge: Address<BridgeCommand>,
    /// Takes events.
    pub events: EventSink,
    /// Told about Docker.
    pub readiness: Readiness,
    /// The manager's own mailbox, for its helper threads.
    pub own: Address<DockerCommand>,
}

/// Why the network step failed; each message says what to do.
#[derive(Debug)]
pub enum StartError {
    /// The default network cannot be used or made.
    Network(DockerFailure),
    /// Its bridge cannot be made.
    Bridge {
        /// Link name.
        bridge: String,
        /// What the bridge thread said.
        reason: String,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Network(failure) => f.write_str(&failure.message),
            StartError::Bridge { bridge, reason } => write!(f, "cannot prepare bridge {bridge}: {reason}"),
        }
    }
}

impl std::error::Error for StartError {}

impl DockerManager {
    /// Makes or finds the default network, has the bridges of all managed networks made, and reads the directory.
    /// Without Docker it succeeds too, with an empty directory, and goes on trying once it runs.
    ///
    /// # Errors
    /// [`StartError`]: Docker answers, but the default network cannot be what it must be.
    pub fn start(
        config: DockerConfig,
        links: DockerLinks,
        poll: mio::Poll,
        mailbox: Mailbox<DockerCommand>,
    ) -> Result<DockerManager, StartError> {
        let ops = NetworkOps {
            client: Client::new(&config.socket),
            bridge: links.bridge.clone(),
            default_bridge: config.bridge.clone(),
            subnet_block: config.subnet_block,
        };
        let mut manager = DockerManager::new(config, links, ops, poll, mailbox);
        match manager.first_reading() {
            Ok(()) => {
                manager.links.readiness.set("docker", Ok(()));
                Ok(manager)
            }
            Err(First::Away(reason)) => {
                manager.view.directory();
                manager.away(reason);
                Ok(manager)
            }
            Err(First::Fatal(error)) => {
                manager.made.undo();
                Err(error)
            }
        }
    }

    /// What [`StartNetwork::undo`] takes back if a later step fails.
    #[must_use]
    pub fn undo_start(&self) -> StartNetwork {
        self.made.clone()
    }

    fn first_reading(&mut self) -> Result<(), First> {
        let created = self.ops.create(&crate::api::NetworkCreate::default()).map_err(|failure| {
            if failure.status == 503 {
                First::Away(failure.message)
            } else {
                First::Fatal(StartError::Network(failure))
            }
        })?;
        tracing::info!(target: "network", name = created.name, subnet = created.subnet, gateway = created.gateway,
            created = created.created, "default network");
        if created.created {
            self.made.0 = Some((self.ops.client.clone(), created.network_id.clone()));
        }
        let asked = Instant::now();
        let all = engine::networks(&self.ops.client, START_READ).map_err(|error| First::Away(error.to_string()))?;
        let (managed, look_alikes) = judge_list(&all, &self.ops.default_bridge);
        for network in &managed {
            // The default network's bridge was made with it.
            if network.name != DEFAULT_NETWORK {
                if let Err(reason) = self.ops.ensure_bridge(network) {
                    // Its containers have no network then, which is closed; the others work.
                    tracing::error!(target: "network", network = network.name, reason, "cannot prepare a bridge");
                    self.links.readiness.warn(&format!("bridge/{}", network.bridge), Some(reason));
                }
            } else if network.id != created.network_id {
                let reason = format!("Docker has two networks named {DEFAULT_NETWORK}: remove one");
                return Err(First::Fatal(StartError::Bridge { bridge: network.bridge.clone(), reason }));
            }
        }
        self.look_alikes = look_alikes;
        self.view.listed(managed, asked);
        for id in self.view.network_ids() {
            let asked = Instant::now();
            let network = engine::network(&self.ops.client, &id, START_READ);
            let network = network.map_err(|error| First::Away(error.to_string()))?;
            self.view.inspected(&id, network.containers, asked);
        }
        let deadline = Instant::now() + INSPECTIONS;
        for id in self.view.containers() {
            if Instant::now() >= deadline {
                break;
            }
            match engine::container(&self.ops.client, &id, INSPECTION) {
                Ok(container) => drop(self.view.learnt(&id, Facts::from(container))),
                // It is starting or gone; the event stream tells more once the thread runs.
                Err(error) => tracing::debug!(target: "docker_manager", container = id, %error, "not inspected"),
            }
        }
        self.guard();
        self.view.directory();
        Ok(())
    }
}

/// The Docker network that a start made, for when a later step fails.
#[derive(Clone, Default)]
pub struct StartNetwork(Option<(Client, String)>);

impl StartNetwork {
    /// Removes the network if this start made it and no container came to it since; else does nothing. Blocks for as
    /// long as Docker takes, 17 s at most. Its bridge is left to the bridge thread.
    pub fn undo(&self) {
        let Some((client, id)) = &self.0 else { return };
        let removed = engine::network(client, id, START_READ).and_then(|network| {
            if network.containers.is_empty() { engine::remove_network(client, id).map(|()| true) } else { Ok(false) }
        });
        match removed {
            Ok(true) => {
                tracing::info!(target: "network", name = DEFAULT_NETWORK, "the network of this start is removed again")
            }
            Ok(false) => {
                tracing::warn!(target: "network", name = DEFAULT_NETWORK, "the network of this start stays: it has containers");
            }
            Err(error) if error.status() == Some(404) => {}
            Err(error) => {
                tracing::warn!(target: "network", name = DEFAULT_NETWORK, %error, "cannot remove the network of this start");
            }
        }
    }
}

enum First {
    Away(String),
    Fatal(StartError),
}
