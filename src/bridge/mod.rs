//! The enforcement in the kernel: links and addresses, nftables, per-veth identity filters, conntrack, kernel log.
//!
//! | file | what it owns |
//! |---|---|
//! | `plan` | what the tables shall be, as a value (`plan_ports`: layer 2; `tables`, `expression`: the vocabulary; `reason`: the drops) |
//! | `batch` | from plan to messages, by libnftnl; `firewall` sends them |
//! | `readback` | the kernel's tables, compared with the plan |
//! | `links` | bridges, ports, addresses, by neli |
//! | `routing` | whether an address is this host's own |
//! | `ports`, `identity` | whose a veth is, and its filter |
//! | `grants`, `flows`, `conntrack` | granted flows, and their end; `operator`: those opened by hand |
//! | `kernel_log` | drops become events |
//! | `probe`, `foreign` | for `outcall doctor`: whether this kernel can do all that, and who else is in the packet path |
//! | `enforcer` | all of that, in the right order; `run` is the thread, `closer` its end in a panic |

mod batch;
mod closer;
mod config;
mod conntrack;
mod enforcer;
mod expression;
mod firewall;
mod flows;
mod foreign;
mod grants;
mod identity;
mod kernel_log;
mod links;
mod operator;
mod plan;
mod plan_ports;
mod ports;
mod probe;
mod readback;
mod reason;
mod routing;
mod run;
mod socket;
mod tables;
mod wire;

pub use closer::Closer;
pub use config::{BridgeConfig, StartError};
pub use foreign::foreign_hooks;
pub use grants::{GrantedFlow, MAX_PER_CONTAINER};
pub use operator::{
    Allowed, LONGEST, MAX_OPERATED, MAX_OPERATED_PER_CONTAINER, OperatorGrant, OperatorRefusal, OperatorWish,
    OwnedFlow, Protocol,
};
pub use plan::{BRIDGE_PREFIX, FLOW_MARK, VETTED_MARK};
pub use probe::probe;
pub use reason::{LOG_GROUP, Reason};
pub use routing::is_this_host;
pub use run::Bridge;
pub use socket::KernelError;

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
    /// Open a flow that the operator asks for; answered when the kernel has it.
    Allow(OperatorWish, Reply<Result<Allowed, OperatorRefusal>>),
    /// Take such a flow back.
    TakeBack(OwnedFlow, Reply<Result<(), String>>),
    /// Open the flows again that an operator had opened before this daemon was started, each as soon as its container
    /// is known to be there with its address.
    Restore {
        /// What was kept.
        kept: Vec<OperatorGrant>,
        /// Told, from now on, of operators' flows that end otherwise than by their time; false: not now.
        ended: TellEnded,
    },
    /// The flows granted now, with the kernel's counters.
    Grants(Reply<Result<Vec<GrantedFlow>, String>>),
    /// End all granted flows, running ones too; answered with the number of grants.
    Flush(Reply<Result<usize, String>>),
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

/// How whoever keeps operators' flows hears of those that ended; false: not now.
pub type TellEnded = Box<dyn Fn(&[OwnedFlow]) -> bool + Send>;

/// Puts the closed base table in place and nothing else (`--lockdown`): at boot, before Docker starts. What the
/// tables of a running daemon have open is closed too; that daemon puts it back.
///
/// # Errors
/// What the kernel refused.
pub fn lockdown(config: &BridgeConfig) -> Result<(), StartError> {
    let mut firewall = firewall::Firewall::open()?;
    firewall.install(&config.closed_plan(), &[])?;
    let differences = firewall.read(&config.closed_plan())?.differences;
    if differences.is_empty() { Ok(()) } else { Err(StartError::Differs(differences)) }
}

/// Closes everything at once, from any thread and with a socket of its own: for a panic. Grants, DNS and proxy are
/// shut; the ports' identity filters stay, since they only ever take away.
///
/// # Errors
/// What the kernel refused.
pub fn panic_closed(config: &BridgeConfig) -> Result<(), KernelError> {
    firewall::Firewall::open()?.close(&config.closed_plan())
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
