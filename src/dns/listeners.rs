//! The sockets that clients ask: UDP and TCP on one address, for each managed gateway or for `--dns-listen`.
//!
//! Owns: which addresses are wanted, binding them, and what a failure to bind means for the operator. Does not own:
//! what arrives.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

use crate::docker_manager::Directory;

/// Connections that wait for accept.
const BACKLOG: i32 = 128;
/// Tries to find a port that is free for both when any will do (port 0).
const PORT_TRIES: usize = 16;

/// UDP and TCP on one address and port.
pub(super) struct Pair {
    /// The address bound, the wildcard among them.
    pub(super) address: SocketAddr,
    pub(super) udp: mio::net::UdpSocket,
    pub(super) tcp: mio::net::TcpListener,
}

/// Why an address could not be bound.
#[derive(Debug)]
pub struct BindError {
    /// The address and port.
    pub address: SocketAddr,
    /// `UDP` or `TCP`.
    pub transport: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BindError { address, transport, source } = self;
        write!(f, "cannot serve DNS on {address}/{transport}: {source}; ")?;
        match source.kind() {
            io::ErrorKind::AddrInUse => write!(
                f,
                "another program has it (`ss -lnp 'sport = :{}'` names it): stop it, or give --dns-port another port",
                address.port()
            ),
            io::ErrorKind::PermissionDenied => {
                f.write_str("ports below 1024 need CAP_NET_BIND_SERVICE: grant it, or give --dns-port a higher port")
            }
            io::ErrorKind::AddrNotAvailable => {
                f.write_str("no interface has this address: give --dns-listen one of the host's own")
            }
            _ => f.write_str("check --dns-listen and --dns-port"),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// The addresses to serve: the one given, or every managed gateway for a wildcard without extra peers.
pub(super) fn wanted(listen: IpAddr, has_extra_peers: bool, directory: &Directory) -> Vec<IpAddr> {
    if !listen.is_unspecified() || has_extra_peers {
        return vec![listen];
    }
    let mut gateways: Vec<IpAddr> = directory.networks.iter().map(|network| IpAddr::V4(network.gateway)).collect();
    gateways.sort_unstable();
    gateways.dedup();
    gateways
}

impl Pair {
    /// Binds `address` for both transports. A gateway may be bound before its bridge has the address.
    ///
    /// # Errors
    /// [`BindError`]; nothing stays open then.
    pub(super) fn bind(address: IpAddr, port: u16) -> Result<Self, BindError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let udp = bound(SocketAddr::new(address, port), Kind::Udp)?;
            let udp = std::net::UdpSocket::from(udp);
            let failed = |transport, source| BindError { address: SocketAddr::new(address, port), transport, source };
            let actual = udp.local_addr().map_err(|source| failed("UDP", source))?;
            match bound(actual, Kind::Tcp) {
                Ok(tcp) => {
                    let udp = mio::net::UdpSocket::from_std(udp);
                    let tcp = mio::net::TcpListener::from_std(std::net::TcpListener::from(tcp));
                    return Ok(Pair { address: actual, udp, tcp });
                }
                // Any port will do, but it must be free for both.
                Err(_) if port == 0 && tries < PORT_TRIES => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Udp,
    Tcp,
}

fn bound(address: SocketAddr, kind: Kind) -> Result<OwnedFd, BindError> {
    open(address, kind).map_err(|errno| BindError {
        address,
        transport: if kind == Kind::Udp { "UDP" } else { "TCP" },
        source: io::Error::from(errno),
    })
}

fn open(address: SocketAddr, kind: Kind) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let sock_type = if kind == Kind::Udp { SockType::Datagram } else { SockType::Stream };
    let fd = socket(family, sock_type, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) if kind == Kind::Udp => setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?,
        IpAddr::V4(_) => setsockopt(&fd, sockopt::IpFreebind, &true)?,
        IpAddr::V6(v6) => {
            let wildcard = v6 == Ipv6Addr::UNSPECIFIED;
            setsockopt(&fd, sockopt::Ipv6V6Only, &!wildcard)?;
            if wildcard && kind == Kind::Udp {
                setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
            }
        }
    }
    if kind == Kind::Tcp {
        // Connections of the daemon before that linger in TIME_WAIT are no conflict; another listener still is.
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    if kind == Kind::Tcp {
        listen(&fd, Backlog::new(BACKLOG)?)?;
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker_manager::ManagedNetwork;
    use std::sync::Arc;
    use std::time::Instant;

    #[test]
    fn a_wildcard_means_the_gateways_unless_others_may_ask() {
        let mut directory = Directory::empty(Instant::now());
        for (subnet, gateway) in [("10.200.1.0/24", "10.200.1.1"), ("10.200.0.0/24", "10.200.0.1")] {
            directory.networks.push(Arc::new(ManagedNetwork {
                name: format!("outcall-{subnet}"),
                id: String::new(),
                bridge: "oc-0".to_owned(),
                subnet: subnet.parse().unwrap(),
                gateway: gateway.parse().unwrap(),
            }));
        }
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let gateways: Vec<IpAddr> = vec!["10.200.0.1".parse().unwrap(), "10.200.1.1".parse().unwrap()];
        assert_eq!(wanted(any, false, &directory), gateways);
        assert_eq!(wanted(any, true, &directory), [any]);
        assert_eq!(wanted(gateways[1], false, &directory), [gateways[1]]);
    }

    #[test]
    fn a_missing_capability_is_named() {
        let address = "10.200.0.1:53".parse().unwrap();
        let source = io::Error::from(Errno::EACCES);
        let text = BindError { address, transport: "UDP", source }.to_string();
        assert!(text.contains("10.200.0.1:53/UDP") && text.contains("CAP_NET_BIND_SERVICE"), "{text}");
    }
}
