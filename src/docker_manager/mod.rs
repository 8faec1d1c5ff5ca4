//! Docker's containers and networks: a blocking client on a thread of its own.

mod directory;
mod peer;

pub use directory::{Directory, Endpoint, Ipv4Net, Ipv4NetError, ManagedNetwork, agent_name};
pub use peer::{Peer, PeerRange};

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
    /// Answered at once by a living thread.
    Ping(Reply<()>),
    /// Finish.
    Stop,
}

/// Why a Docker command failed; `status` is the operator API's HTTP status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerFailure {
    /// 400, 404, 409, 500 or 503.
    pub status: u16,
    /// What happened, to what, and what to do.
    pub message: String,
}
