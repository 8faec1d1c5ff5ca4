//! Whether an address is this host's own.

use std::io;
use std::net::{SocketAddr, UdpSocket};

/// Asks the kernel's routing: towards an address of its own, a host speaks from that address. No packet is sent. An
/// address without a route is nobody's, and cannot be dialled either. When the kernel does not say (no descriptor is
/// left, say), the address counts as own: a rule must open it then.
#[must_use]
pub fn is_this_host(address: SocketAddr) -> bool {
    let any = if address.is_ipv4() { SocketAddr::from(([0; 4], 0)) } else { SocketAddr::from(([0u16; 8], 0)) };
    let source = UdpSocket::bind(any).and_then(|socket| socket.connect(address).and_then(|()| socket.local_addr()));
    match source {
        Ok(source) => source.ip() == address.ip(),
        Err(error) => !has_no_route(&error),
    }
}

/// Whether `error` says that nothing can be sent there.
fn has_no_route(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkUnreachable};
    // A kernel without IPv6 has no address of it.
    matches!(error.kind(), AddrNotAvailable | HostUnreachable | NetworkUnreachable)
        || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_addresses_are_known() {
        assert!(is_this_host(SocketAddr::from(([127, 0, 0, 1], 80))));
        assert!(!is_this_host(SocketAddr::from(([192, 0, 2, 1], 80))));
    }

    #[test]
    fn only_a_missing_route_makes_an_address_nobodys() {
        for (code, no_route) in [
            (libc::EADDRNOTAVAIL, true),
            (libc::ENETUNREACH, true),
            (libc::EHOSTUNREACH, true),
            (libc::EAFNOSUPPORT, true),
            (libc::EMFILE, false),
            (libc::ENFILE, false),
            (libc::ENOBUFS, false),
        ] {
            assert_eq!(has_no_route(&io::Error::from_raw_os_error(code)), no_route, "{code}");
        }
    }
}
