//! What the bridge needs to know to start, and why a start fails.

use std::fmt;

use super::plan::Plan;
use super::socket::KernelError;

/// The settings of the kernel's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeConfig {
    /// The default network's bridge.
    pub bridge: String,
    /// The port DNS listens on.
    pub dns_port: u16,
    /// The port the proxy listens on; `None` without proxy.
    pub proxy_port: Option<u16>,
}

impl BridgeConfig {
    pub(super) fn closed_plan(&self) -> Plan {
        Plan::closed(&self.bridge, self.dns_port, self.proxy_port)
    }
}

/// Why the kernel's side did not start.
#[derive(Debug)]
pub enum StartError {
    /// The kernel refused something, for want of a capability or of a feature.
    Kernel(KernelError),
    /// The kernel answers netlink, but has no nf_tables behind it.
    NoNfTables(KernelError),
    /// The bridge's name belongs to an interface that is no bridge.
    NotABridge {
        /// The name.
        name: String,
        /// What it is instead (`veth`, `dummy`, …; empty for hardware).
        kind: String,
    },
    /// The kernel accepted the tables and then showed other ones.
    Differs(Vec<String>),
    /// The event loop could not be set up.
    Poll(std::io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Kernel(error) => error.fmt(f),
            StartError::NoNfTables(error) => {
                write!(
                    f,
                    "this kernel has no nf_tables ({}); load the module or enable CONFIG_NF_TABLES",
                    error.errno.desc()
                )
            }
            StartError::NotABridge { name, kind } => {
                let kind = if kind.is_empty() { "network device" } else { kind };
                write!(f, "the name {name} belongs to a {kind}, which is no bridge; choose another --bridge name")
            }
            StartError::Differs(differences) => {
                write!(
                    f,
                    "the kernel's nftables tables differ from what was put in place ({})",
                    differences.join("; ")
                )?;
                write!(f, "; is another tool changing table outcall?")
            }
            StartError::Poll(_) => write!(f, "cannot set up the event loop of the bridge"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::Kernel(error) | StartError::NoNfTables(error) => Some(&error.errno),
            StartError::Poll(error) => Some(error),
            StartError::NotABridge { .. } | StartError::Differs(_) => None,
        }
    }
}

impl From<KernelError> for StartError {
    fn from(error: KernelError) -> Self {
        StartError::Kernel(error)
    }
}
