//! The listening sockets: one for each managed gateway, or one for the address given.

use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::os::fd::AsRawFd;

use mio::net::TcpListener;
use mio::{Interest, Registry, Token};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

use crate::docker_manager::Directory;

use super::{ProxyConfig, StartError};

/// The token of the first listener; sessions have small tokens.
const FIRST_TOKEN: usize = usize::MAX / 2;

/// Connections that the kernel completes and keeps until they are accepted; it cuts this to `somaxconn`.
const BACKLOG: i32 = 1024;

/// What is listened on.
pub(super) struct Listeners {
    sockets: Vec<Listener>,
    next_token: usize,
}

pub(super) struct Listener {
    /// As asked for.
    address: SocketAddr,
    /// As bound: with the port that the kernel chose, if it was to choose.
    bound: SocketAddr,
    pub(super) socket: TcpListener,
    token: Token,
    /// The poll has said that connections wait.
    pub(super) ready: bool,
}

impl Listeners {
    pub(super) fn new() -> Self {
        Listeners { sockets: Vec::new(), next_token: FIRST_TOKEN }
    }

    /// Opens what `directory` asks for and is not there, closes what it asks for no longer. Every failure is given;
    /// the other listeners work.
    pub(super) fn update(
        &mut self,
        config: &ProxyConfig,
        directory: &Directory,
        registry: &Registry,
    ) -> Vec<StartError> {
        let listening = Listening { address: config.listen, extra_peers: !config.extra_peers.is_empty() };
        let wanted = wanted(listening, directory);
        self.sockets.retain(|listener| wanted.contains(&listener.address));
        let mut failures = Vec::new();
        for address in wanted {
            if self.sockets.iter().any(|listener| listener.address == address) {
                continue;
            }
            let token = Token(self.next_token);
            match open(address, registry, token) {
                Ok(socket) => {
                    let bound = socket.local_addr().unwrap_or(address);
                    tracing::info!(target: "proxy", address = %bound, "listening");
                    self.next_token += 1;
                    self.sockets.push(Listener { address, bound, socket, token, ready: true });
                }
                Err(source) => failures.push(StartError::Listen { address, source }),
            }
        }
        failures
    }

    /// Notes that connections wait; false when the token is no listener's.
    pub(super) fn note(&mut self, token: Token) -> bool {
        if token.0 < FIRST_TOKEN {
            return false;
        }
        if let Some(listener) = self.sockets.iter_mut().find(|listener| listener.token == token) {
            listener.ready = true;
        }
        true
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Listener> {
        self.sockets.iter_mut()
    }

    /// Whether connections may wait.
    pub(super) fn any_ready(&self) -> bool {
        self.sockets.iter().any(|listener| listener.ready)
    }

    /// Whether a connection to `target` would come back to this proxy. `local`: whether the address is known to be
    /// one of this host.
    pub(super) fn is_own(&self, target: SocketAddr, local: bool) -> bool {
        self.sockets.iter().any(|listener| reaches(listener.bound, target, local))
    }

    /// The addresses listened on.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|listener| listener.bound).collect()
    }

    /// Closes all.
    pub(super) fn close(&mut self) {
        self.sockets.clear();
    }
}

/// Whether a connection to `target` reaches the listener at `own`.
fn reaches(own: SocketAddr, target: SocketAddr, local: bool) -> bool {
    let ip = target.ip().to_canonical();
    own.port() == target.port()
        && (own.ip() == ip || ip.is_unspecified() || own.ip().is_unspecified() && (local || ip.is_loopback()))
}

/// How a proxy listens.
#[derive(Clone, Copy, Debug)]
pub struct Listening {
    /// `--proxy-addr`.
    pub address: SocketAddr,
    /// Whether there are `--extra-peers`: then an unspecified address is the true wildcard.
    pub extra_peers: bool,
}

impl Listening {
    /// Whether `target` is one of the addresses that this proxy listens on for the networks of `directory`.
    pub(super) fn is_own(self, directory: &Directory, target: SocketAddr) -> bool {
        wanted(self, directory).into_iter().any(|own| reaches(own, target, false))
    }
}

fn wanted(listening: Listening, directory: &Directory) -> Vec<SocketAddr> {
    if !listening.address.ip().is_unspecified() || listening.extra_peers {
        return vec![listening.address];
    }
    let mut gateways: Vec<SocketAddr> = directory
        .networks
        .iter()
        .map(|network| SocketAddr::new(IpAddr::V4(network.gateway), listening.address.port()))
        .collect();
    gateways.sort_unstable();
    gateways.dedup();
    gateways
}

fn open(address: SocketAddr, registry: &Registry, token: Token) -> std::io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    // A gateway whose bridge is down or not there yet can be listened on all the same.
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    // Taken over by each connection that is accepted, as `Leg` wants it.
    setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    let mut socket = TcpListener::from_std(StdListener::from(socket));
    registry.register(&mut socket, token, Interest::READABLE)?;
    Ok(socket)
}
