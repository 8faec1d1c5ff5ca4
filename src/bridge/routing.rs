//! Whether an address is this host's own, by the kernel's routing (`linux/rtnetlink.h`).
//!
//! The source that the kernel would choose towards an address does not tell: towards the second address of a subnet it
//! is the first one.

use std::cell::RefCell;
use std::net::IpAddr;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::socket::{KernelError, Socket};
use super::wire::Request;

/// `RTM_GETROUTE`
const GET_ROUTE: u16 = 26;
/// `RTA_DST`
const DESTINATION: u16 = 1;
/// Where the type of the route is in `struct rtmsg`, which is twelve bytes.
const TYPE_AT: usize = 7;
const RTMSG: usize = 12;
/// `RTN_UNICAST`: what goes elsewhere. All other types stay on this host, or reach nobody.
const UNICAST: u8 = 1;

thread_local! {
    /// Each thread that asks has a socket of its own, so that an answer costs two syscalls.
    static SOCKET: RefCell<Option<Socket>> = const { RefCell::new(None) };
}

/// Asks the kernel's routing. An address without a route is nobody's, and cannot be dialled either. When the kernel
/// does not say (no descriptor is left, say), the address counts as own: a rule must open it then.
#[must_use]
pub fn is_this_host(address: IpAddr) -> bool {
    SOCKET.with_borrow_mut(|socket| match ask(socket, address.to_canonical()) {
        Ok(kind) => kind != UNICAST,
        Err(error) if has_no_route(error.errno) => false,
        Err(_) => {
            *socket = None;
            true
        }
    })
}

/// The type of the route to `address`.
fn ask(socket: &mut Option<Socket>, address: IpAddr) -> Result<u8, KernelError> {
    const OPERATION: &str = "ask for a route";
    let socket = match socket {
        Some(socket) => socket,
        None => socket.insert(Socket::questions(SockProtocol::NetlinkRoute)?),
    };
    let mut header = [0; RTMSG];
    let request = Request::new(GET_ROUTE, 0);
    let request = match address {
        IpAddr::V4(address) => {
            [header[0], header[1]] = [libc::AF_INET as u8, 32];
            request.bytes(&header).attribute(DESTINATION, &address.octets())
        }
        IpAddr::V6(address) => {
            [header[0], header[1]] = [libc::AF_INET6 as u8, 128];
            request.bytes(&header).attribute(DESTINATION, &address.octets())
        }
    };
    let answer = socket.ask(OPERATION, request)?;
    answer.payload.get(TYPE_AT).copied().ok_or_else(|| KernelError::new(OPERATION, Errno::EBADMSG))
}

/// Whether the kernel says that nothing can be sent there. One without IPv6 has no address of it.
fn has_no_route(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EADDRNOTAVAIL | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_addresses_are_known() {
        assert!(is_this_host(IpAddr::from([127, 0, 0, 1])));
        assert!(!is_this_host(IpAddr::from([192, 0, 2, 1])));
    }

    #[test]
    fn an_address_that_is_not_the_first_of_its_subnet_is_known_too() {
        assert!(is_this_host(IpAddr::from([127, 0, 0, 2])), "the kernel sends from 127.0.0.1 there");
        assert!(is_this_host("::ffff:127.0.0.2".parse().unwrap()));
    }

    #[test]
    fn only_a_missing_route_makes_an_address_nobodys() {
        for (errno, no_route) in [
            (Errno::EADDRNOTAVAIL, true),
            (Errno::ENETUNREACH, true),
            (Errno::EHOSTUNREACH, true),
            (Errno::EAFNOSUPPORT, true),
            (Errno::EOPNOTSUPP, true),
            (Errno::EMFILE, false),
            (Errno::ENFILE, false),
            (Errno::ENOBUFS, false),
            (Errno::ETIMEDOUT, false),
            (Errno::EINVAL, false),
        ] {
            assert_eq!(has_no_route(errno), no_route, "{errno}");
        }
    }
}
