//! What the proxy is started with: addresses, caps, times, and the threads it talks to.

use std::net::SocketAddr;
use std::time::Duration;

use crate::authority::Interception;
use crate::daemon::Readiness;
use crate::daemon::control::ControlMessage;
use crate::dns::DnsCommand;
use crate::docker_manager::{DockerCommand, PeerRange};
use crate::event_loop::Address;
use crate::events::EventSink;

use super::ProxyCommand;

/// Flags of the proxy.
#[derive(Debug)]
pub struct ProxyConfig {
    /// `--proxy-addr`. An unspecified address means one socket for each managed gateway, and the true wildcard only
    /// when there are extra peers.
    pub listen: SocketAddr,
    /// `--extra-peers`.
    pub extra_peers: Vec<PeerRange>,
    /// `--proxy-max-connections`: client connections at once.
    pub max_connections: usize,
    /// `--proxy-max-per-container`: of one container, or one address that is no container.
    pub max_per_container: usize,
    /// What a loaded CA brings; without one there is no interception at all.
    pub interception: Option<Interception>,
    /// How long each state may last.
    pub times: Times,
}

/// How long each state of a session may last. The defaults are what the daemon runs with.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// An unknown peer of a managed network is held while Docker is asked.
    pub identify: Duration,
    /// From the first byte of a request head to its last: a slow head is an attack or a dead client.
    pub head: Duration,
    /// Between two requests of a kept-alive connection.
    pub keep_alive: Duration,
    /// For an answer of the DNS thread, whose own retries end before.
    pub resolve: Duration,
    /// For the TCP handshake with the last address tried.
    pub connect: Duration,
    /// For the handshake while another address is left to try.
    pub connect_next: Duration,
    /// Without a byte in either direction of an exchange, a long-polled answer's wait included.
    pub exchange_idle: Duration,
    /// From the first byte of a response head to its last.
    pub response_head: Duration,
    /// From the 200 of a CONNECT to a complete ClientHello or request head.
    pub hello: Duration,
    /// For a TLS handshake with a client, the wait for its certificate included, or with a server.
    pub handshake: Duration,
    /// For a TLS 1.3 server that asked for a client certificate to say that it insists on one.
    pub demand: Duration,
    /// A tunnel without a byte.
    pub tunnel_idle: Duration,
    /// To deliver a last answer, and to drain what the client still sends, so that no reset eats the answer.
    pub linger: Duration,
    /// For work in flight when the daemon stops: below the 5 s that everything together gets.
    pub stop: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Times {
            identify: Duration::from_secs(1),
            head: Duration::from_secs(30),
            keep_alive: Duration::from_secs(75),
            resolve: Duration::from_secs(15),
            connect: Duration::from_secs(10),
            connect_next: Duration::from_secs(3),
            exchange_idle: Duration::from_secs(300),
            response_head: Duration::from_secs(60),
            hello: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            demand: Duration::from_millis(500),
            tunnel_idle: Duration::from_secs(300),
            linger: Duration::from_secs(3),
            stop: Duration::from_secs(4),
        }
    }
}

/// The threads that the proxy talks to.
#[derive(Clone)]
pub struct ProxyLinks {
    /// Told of generations taken.
    pub control: Address<ControlMessage>,
    /// Asked who an unknown peer is.
    pub docker: Address<DockerCommand>,
    /// Asked for the addresses of names.
    pub dns: Address<DnsCommand>,
    /// Where decisions are recorded.
    pub events: EventSink,
    /// Where `/ready` learns of listeners that failed.
    pub readiness: Readiness,
    /// The proxy's own mailbox, for the answers of the DNS thread.
    pub own: Address<ProxyCommand>,
}

/// Why the proxy did not start.
#[derive(Debug)]
pub enum StartError {
    /// An address could not be listened on.
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The limit on file descriptors is too low and may not be raised.
    Descriptors {
        /// How many the flags ask for.
        needed: u64,
        /// The hard limit.
        limit: u64,
        /// The `--proxy-max-connections` that would fit.
        fits: u64,
        /// Why it was not raised.
        source: std::io::Error,
    },
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartError::Listen { address, source } if source.kind() == std::io::ErrorKind::AddrInUse => write!(
                f,
                "cannot listen on {address}: another process does; stop it (`ss -ltnp 'sport = :{}'` names it) or choose another port with --proxy-addr",
                address.port()
            ),
            StartError::Listen { address, source } if source.kind() == std::io::ErrorKind::PermissionDenied => write!(
                f,
                "cannot listen on {address}: {source}; ports below 1024 need CAP_NET_BIND_SERVICE, or choose another with --proxy-addr"
            ),
            StartError::Listen { address, source } => {
                write!(f, "cannot listen on {address}: {source}; choose another address with --proxy-addr")
            }
            StartError::Descriptors { needed, limit, fits, source } => write!(
                f,
                "the connections asked for need {needed} file descriptors and the limit is {limit} ({source}); raise it (LimitNOFILE=, ulimit -Hn) or set --proxy-max-connections {fits}"
            ),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::Listen { source, .. } | StartError::Descriptors { source, .. } => Some(source),
        }
    }
}
