//! What the DNS thread is given at its start, and what is wrong with it.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::bridge::BridgeCommand;
use crate::daemon::{Readiness, control::ControlMessage};
use crate::docker_manager::{Directory, DockerCommand, PeerRange};
use crate::event_loop::Address;
use crate::events::EventSink;

use super::DnsCommand;
use super::listeners::BindError;

/// The port that containers ask, whatever `--dns-port` says: the kernel's table redirects it.
const DNS_PORT: u16 = 53;

/// The flags that concern DNS.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// `--dns-listen`. A wildcard means every managed gateway; with extra peers, the true wildcard.
    pub listen: IpAddr,
    /// `--dns-port`; 0 takes any free port, the same for UDP and TCP (tests).
    pub port: u16,
    /// `--dns-upstream`, in the order of asking.
    pub upstreams: Vec<SocketAddr>,
    /// `--extra-peers`.
    pub extra_peers: Vec<PeerRange>,
}

/// Whom the DNS thread talks to.
#[derive(Clone)]
pub struct DnsLinks {
    /// Told of every snapshot taken.
    pub control: Address<ControlMessage>,
    /// Asked who is at an unknown address.
    pub docker: Address<DockerCommand>,
    /// Opens direct flows.
    pub bridge: Address<BridgeCommand>,
    /// The DNS thread's own mailbox, for the bridge's answers.
    pub own: Address<DnsCommand>,
    /// Decisions.
    pub events: EventSink,
    /// What `/ready` says of DNS (part `dns`, warning `dns-listen`).
    pub readiness: Readiness,
}

/// Why the DNS filter does not start.
#[derive(Debug)]
pub enum StartError {
    /// An address cannot be bound.
    Bind(BindError),
    /// Nobody to ask.
    NoUpstream,
    /// An upstream that is this filter itself would ask itself for ever.
    UpstreamIsSelf(SocketAddr),
    /// The loop cannot watch a socket.
    Poll(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Bind(error) => error.fmt(f),
            StartError::NoUpstream => f.write_str("no DNS upstream is known: give --dns-upstream IP[:port]"),
            StartError::UpstreamIsSelf(address) => write!(
                f,
                "the DNS upstream {address} is this filter itself: give --dns-upstream the resolver of the host's network"
            ),
            StartError::Poll(error) => write!(f, "the DNS loop cannot watch its sockets: {error}"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::Bind(error) => error.source(),
            StartError::Poll(error) => Some(error),
            StartError::NoUpstream | StartError::UpstreamIsSelf(_) => None,
        }
    }
}

/// Refuses upstreams that lead back here.
pub(super) fn check_upstreams(config: &DnsConfig, directory: &Directory) -> Result<(), StartError> {
    if config.upstreams.is_empty() {
        return Err(StartError::NoUpstream);
    }
    let is_self = |upstream: &&SocketAddr| {
        let ip = upstream.ip().to_canonical();
        let own_port = upstream.port() == config.port;
        let gateway = directory.networks.iter().any(|network| IpAddr::V4(network.gateway) == ip);
        let wildcard = config.listen.is_unspecified() && !config.extra_peers.is_empty();
        gateway && (own_port || upstream.port() == DNS_PORT)
            || own_port && (ip == config.listen || wildcard && ip.is_loopback())
            || ip.is_unspecified()
    };
    match config.upstreams.iter().find(is_self) {
        Some(upstream) => Err(StartError::UpstreamIsSelf(*upstream)),
        None => Ok(()),
    }
}

/// The warning that no container reaches the address given, if so.
pub(super) fn reachability(config: &DnsConfig, directory: &Directory) -> Option<String> {
    let listen = config.listen;
    if listen.is_unspecified() || directory.networks.iter().any(|network| IpAddr::V4(network.gateway) == listen) {
        return None;
    }
    Some(format!(
        "--dns-listen {listen} is the gateway of no managed network: no container reaches DNS there; 0.0.0.0 serves \
         every managed gateway"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker_manager::ManagedNetwork;
    use std::sync::Arc;
    use std::time::Instant;

    #[test]
    fn an_upstream_that_leads_back_here_is_refused() {
        let mut directory = Directory::empty(Instant::now());
        directory.networks.push(Arc::new(ManagedNetwork {
            name: "outcall-default".to_owned(),
            id: String::new(),
            bridge: "outcall0".to_owned(),
            subnet: "10.200.0.0/24".parse().unwrap(),
            gateway: "10.200.0.1".parse().unwrap(),
        }));
        let check = |listen: &str, extra: bool, upstream: &str| {
            let extra_peers = if extra { vec!["127.0.0.0/8".parse().unwrap()] } else { Vec::new() };
            let upstreams = vec![upstream.parse().unwrap()];
            check_upstreams(
                &DnsConfig { listen: listen.parse().unwrap(), port: 5353, upstreams, extra_peers },
                &directory,
            )
        };
        assert!(check("0.0.0.0", false, "10.200.0.1:53").is_err(), "the kernel redirects it to our port");
        assert!(check("0.0.0.0", false, "10.200.0.1:5353").is_err());
        assert!(check("0.0.0.0", true, "127.0.0.53:5353").is_err());
        assert!(check("127.0.0.1", true, "127.0.0.1:5353").is_err());
        assert!(check("0.0.0.0", false, "127.0.0.53:53").is_ok(), "the host's own resolver is no conflict");
        assert!(check("0.0.0.0", false, "0.0.0.0:53").is_err(), "connect takes it for this host");
    }
}
