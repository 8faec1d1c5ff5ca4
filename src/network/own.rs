//! Whether an address is this host's own.

use std::net::{SocketAddr, UdpSocket};

/// Asks the kernel's routing: towards an address of its own, a host speaks from that address. No packet is sent. An
/// address without a route is nobody's, and cannot be dialled either.
#[must_use]
pub fn is_this_host(address: SocketAddr) -> bool {
    let any = if address.is_ipv4() { SocketAddr::from(([0; 4], 0)) } else { SocketAddr::from(([0u16; 8], 0)) };
    let source = UdpSocket::bind(any).and_then(|socket| socket.connect(address).and_then(|()| socket.local_addr()));
    source.is_ok_and(|source| source.ip() == address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_addresses_are_known() {
        assert!(is_this_host(SocketAddr::from(([127, 0, 0, 1], 80))));
        assert!(!is_this_host(SocketAddr::from(([192, 0, 2, 1], 80))));
    }
}
