//! One decision of one layer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use crate::docker_manager::Endpoint;
use crate::rule_engine::Rule;

use super::Text;
use super::flow::Party;

/// Bytes of a host name in normal form.
pub const HOST_MAX: usize = 253;
/// Bytes of a path; longer ones are cut, marked with `…`.
pub const PATH_MAX: usize = 256;
/// Bytes of a method; the longest registered one has 17.
pub const METHOD_MAX: usize = 24;
/// Bytes of a record type: `TYPE65535`, and the longest mnemonic.
pub const RECORD_TYPE_MAX: usize = 16;

/// The layer that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The DNS filter.
    Dns,
    /// The proxy, on what it sees without decrypting.
    Proxy,
    /// The proxy, on a decrypted request.
    Intercept,
    /// The bridge, on a flow past the proxy.
    DirectIp,
    /// The kernel: a packet that the table dropped.
    Kernel,
    /// A permission check.
    AgentApi,
}

impl Layer {
    /// All of them, each at the place of its number.
    pub const ALL: [Layer; 6] =
        [Layer::Dns, Layer::Proxy, Layer::Intercept, Layer::DirectIp, Layer::Kernel, Layer::AgentApi];

    /// The word that the documents use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Layer::Dns => "dns",
            Layer::Proxy => "proxy",
            Layer::Intercept => "intercept",
            Layer::DirectIp => "direct_ip",
            Layer::Kernel => "kernel",
            Layer::AgentApi => "agent_api",
        }
    }
}

impl Verdict {
    /// The word that the documents use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Allow => "allow",
            Verdict::Block => "block",
        }
    }
}

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may not.
    Block,
}

/// A decision, as the deciding thread records it: one block of a fixed size, no formatting, no I/O. Fields that do not
/// apply stay `None`.
#[derive(Clone, Debug)]
pub struct Event {
    /// When it was decided.
    pub at: SystemTime,
    /// Where.
    pub layer: Layer,
    /// What.
    pub verdict: Verdict,
    /// The number that it shares with the other events of the same attempt: see [`super::Flows`].
    pub flow: Option<u64>,
    /// Who asked; `None` for an unknown peer.
    pub endpoint: Option<Arc<Endpoint>>,
    /// The peer's own address.
    pub peer: Option<IpAddr>,
    /// The deciding rule; `None` is the default block.
    pub rule: Option<Arc<Rule>>,
    /// A short reason code (`default`, `rule`, `private_address`, `not_tls`, `unknown_peer`, …).
    pub reason: &'static str,
    /// The host name asked for.
    pub host: Option<Text<HOST_MAX>>,
    /// The address and port reached for.
    pub destination: Option<SocketAddr>,
    /// The port, where there is no address.
    pub port: Option<u16>,
    /// `tcp`, `udp`, `icmp`, `http`, `https`, …
    pub protocol: Option<&'static str>,
    /// HTTP method.
    pub method: Option<Text<METHOD_MAX>>,
    /// HTTP path, never with its query.
    pub path: Option<Text<PATH_MAX>>,
    /// DNS record type.
    pub record_type: Option<Text<RECORD_TYPE_MAX>>,
    /// Bytes from the container.
    pub bytes_up: Option<u64>,
    /// Bytes to the container.
    pub bytes_down: Option<u64>,
    /// How long it took, in microseconds.
    pub duration_us: Option<u64>,
}

impl Event {
    /// A decision without details, made now.
    #[must_use]
    pub fn new(layer: Layer, verdict: Verdict, reason: &'static str) -> Self {
        Event {
            at: SystemTime::now(),
            layer,
            verdict,
            flow: None,
            endpoint: None,
            peer: None,
            rule: None,
            reason,
            host: None,
            destination: None,
            port: None,
            protocol: None,
            method: None,
            path: None,
            record_type: None,
            bytes_up: None,
            bytes_down: None,
            duration_us: None,
        }
    }

    /// For whom the flow counts: the container, or the peer's address where none is known.
    #[must_use]
    pub fn party(&self) -> Option<Party<'_>> {
        party(self.endpoint.as_deref(), self.peer)
    }
}

/// For whom a flow counts.
#[must_use]
pub fn party(endpoint: Option<&Endpoint>, peer: Option<IpAddr>) -> Option<Party<'_>> {
    endpoint.map(|endpoint| Party::Container(&endpoint.container_id)).or(peer.map(Party::Address))
}
