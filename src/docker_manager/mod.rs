//! Docker's containers and networks: a blocking client on a thread of its own.
//!
//! | file | what it owns |
//! |---|---|
//! | `transport`, `client` | HTTP over the Unix socket, API version, errors |
//! | `engine` | the calls made and the JSON read |
//! | `stream` | the reader of `/events` |
//! | `view` | what Docker said, and the [`Directory`] that follows |
//! | `resolver_guard` | containers whose names would be resolved past every rule |
//! | `network_ops` | making and removing networks |
//! | `start`, `manager` | the "network" step of the start, and the thread |
//! | `reading`, `guarding` | what the thread reads and publishes; what follows outside of Docker's answers |
//! | `commands` | the operator's changes of networks and questions |
//! | `containers` | containers made by outcalld, and the operator's commands about them |
//! | `tasks` | what is still to be asked, by urgency |
//! | `warnings` | what is wrong with containers and networks, told once |
//! | `sandbox` | a container's init process, before Docker tells it |
//! | `peer` | who may use DNS and proxy |

mod client;
mod commands;
mod containers;
mod directory;
pub mod engine;
mod guarding;
mod manager;
mod network_ops;
mod peer;
mod reading;
mod resolver_guard;
mod sandbox;
mod start;
mod stream;
mod tasks;
mod transport;
mod view;
mod warnings;

pub use client::{Client, DockerError};
pub use containers::ContainerCommand;
pub use directory::{Directory, Endpoint, Ipv4Net, Ipv4NetError, ManagedNetwork, agent_name};
pub use manager::DockerManager;
pub use peer::{Peer, PeerRange};
pub use resolver_guard::{HostFiles, resolver_trap};
pub use sandbox::init_pid;
pub use start::{DockerConfig, DockerLinks, StartError, StartNetwork};

use crate::api;
use crate::event_loop::Reply;

/// What the Docker manager is asked to do.
pub enum DockerCommand {
    /// Somebody unknown at this address of a managed bridge sent something: read Docker anew and publish a
    /// directory whose `as_of` is later than this command's arrival. Many are coalesced into one reading.
    Identify(std::net::Ipv4Addr),
    /// Create (or find) a network.
    CreateNetwork(api::NetworkCreate, Reply<Result<api::NetworkCreated, DockerFailure>>),
    /// Remove a network.
    DestroyNetwork(api::NetworkSelect, Reply<Result<api::NetworkDestroyed, DockerFailure>>),
    /// One network's state.
    Network(api::NetworkSelect, Reply<Result<api::NetworkStatus, DockerFailure>>),
    /// All managed networks.
    Networks(Reply<Result<Vec<api::NetworkStatus>, DockerFailure>>),
    /// A command about containers.
    Container(ContainerCommand),
    /// From the manager's own helper threads.
    Noticed(Notice),
    /// Answered at once by a living thread.
    Ping(Reply<()>),
    /// Finish.
    Stop,
}

/// What the manager's helper threads tell it; only they can make one.
pub struct Notice(manager::Noticed);

impl Notice {
    fn stream(change: stream::Change) -> Self {
        Notice(manager::Noticed::Stream(change))
    }
}

/// Why a Docker command failed; `status` is the operator API's HTTP status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerFailure {
    /// 400, 404, 409, 500 or 503.
    pub status: u16,
    /// What happened, to what, and what to do.
    pub message: String,
}
