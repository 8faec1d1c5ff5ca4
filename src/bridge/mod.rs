//! The enforcement in the kernel: links and addresses, nftables, per-veth identity filters, conntrack, kernel log.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use crate::api;
use crate::daemon::Snapshot;
use crate::docker_manager::{Endpoint, Ipv4Net};
use crate::event_loop::Reply;
use crate::rule_engine::Rule;

/// What the bridge thread is asked to do.
pub enum BridgeCommand {
    /// Work by this snapshot: filters for its endpoints, grants that its rules still allow. Acknowledge it to control.
    Snapshot(Arc<Snapshot>),
    /// Make (or adopt) the bridge of a managed network and give it its gateway address.
    EnsureNetwork {
        /// Link name.
        bridge: String,
        /// The network.
        subnet: Ipv4Net,
        /// The bridge's address.
        gateway: Ipv4Addr,
        /// `Err` says what and what to do.
        done: Reply<Result<(), String>>,
    },
    /// Remove the bridge of a network that is gone (never the default network's).
    RemoveNetwork {
        /// Link name.
        bridge: String,
        /// Answered when it is gone.
        done: Reply<Result<(), String>>,
    },
    /// Open direct flows; answered when the kernel has them.
    Grant(Grant, Reply<Result<(), String>>),
    /// `GET /bridge`: asked of the kernel.
    Status(Reply<api::BridgeStatus>),
    /// `POST /bridge/up`.
    Up(Reply<Result<api::BridgeStatus, String>>),
    /// `POST /bridge/down`.
    Down(Reply<Result<api::BridgeStatus, String>>),
    /// Answered at once by a living thread.
    Ping(Reply<()>),
    /// Finish.
    Stop(StopMode),
}

/// What remains of the kernel's side when the thread ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Bridges down, then the tables deleted, then the bridges that this daemon made removed if no port is on them.
    Teardown,
    /// Bridges stay, under the base table with every grant removed.
    Keep,
    /// A start that failed: what this start made is removed; what it found is left closed, under the base table.
    Undo,
}

/// Direct flows that a DNS answer opens.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Whose.
    pub endpoint: Arc<Endpoint>,
    /// The name that was asked for, in normal form.
    pub name: Box<str>,
    /// The rule that allowed it.
    pub rule: Arc<Rule>,
    /// The addresses answered.
    pub addresses: Vec<Ipv4Addr>,
    /// TCP ports.
    pub ports: Vec<u16>,
    /// 60 s to 1 h.
    pub ttl: Duration,
}
