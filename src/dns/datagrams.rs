//! Datagrams of clients: many in one `recvmmsg`, with the address that was asked where a socket has many; and the way
//! back from that same address, many in one `sendmmsg`. `recvmmsg(2)`, `ip(7)` IP_PKTINFO, `ipv6(7)` IPV6_PKTINFO.
//!
//! Owns: the receive buffers and the only `unsafe` of the DNS room. Does not own: the sockets.
//!
//! One `recvmmsg` that comes back with room to spare has emptied the socket, which edge-triggered epoll wants to know:
//! so what came together costs one receive and one send, with no second receive that finds nothing.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{SockaddrLike, SockaddrStorage};

/// Datagrams of one receive.
pub(super) const COUNT: usize = 16;
/// The longest question taken, in bytes: a name, a type and an OPT are under 700.
const SIZE: usize = 1500;
/// Room for one PKTINFO of either family with its header, in bytes.
const CONTROL: usize = 64;

/// Receive buffers, reused.
pub(super) struct Batch {
    buffers: Box<[[u8; SIZE]; COUNT]>,
    received: [Option<Received>; COUNT],
}

#[derive(Clone, Copy)]
struct Received {
    length: usize,
    from: SocketAddr,
    local: Option<IpAddr>,
}

/// One datagram.
pub(super) struct Datagram<'a> {
    /// Its payload.
    pub(super) bytes: &'a [u8],
    /// Its source.
    pub(super) from: SocketAddr,
    /// The address it was sent to; only from sockets with PKTINFO on.
    pub(super) local: Option<IpAddr>,
}

/// Control data must be aligned for `cmsghdr`.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

impl Batch {
    pub(super) fn new() -> Self {
        Batch { buffers: Box::new([[0; SIZE]; COUNT]), received: [None; COUNT] }
    }

    /// Receives what is there, at most [`COUNT`]; fewer means that the socket is empty now.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: all-zero is a valid value of these plain C structures.
        let mut headers: [libc::mmsghdr; COUNT] = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: as above.
        let mut names: [libc::sockaddr_storage; COUNT] = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: as above.
        let mut vectors: [libc::iovec; COUNT] = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut controls = [Control([0; CONTROL]); COUNT];
        for index in 0..COUNT {
            vectors[index].iov_base = self.buffers[index].as_mut_ptr().cast();
            vectors[index].iov_len = SIZE;
            let header = &mut headers[index].msg_hdr;
            header.msg_name = (&raw mut names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut vectors[index];
            header.msg_iovlen = 1;
            header.msg_control = controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL as _;
        }
        // SAFETY: every pointer in `headers` leads to memory of the stated length that lives in this frame or in
        // `self`, is written by nobody else, and is not kept by the kernel past the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                COUNT as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        self.received = [None; COUNT];
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for index in 0..count.min(COUNT) {
            let header = &headers[index];
            let whole = header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
            // SAFETY: the kernel has filled in the name and the control data that this header points to.
            let (from, local) = unsafe { (source(&names[index]), asked(&header.msg_hdr)) };
            self.received[index] = from.filter(|_| whole).map(|from| Received {
                length: (header.msg_len as usize).min(SIZE),
                from,
                local,
            });
        }
        Ok(count)
    }

    /// The datagram at `index` of the last receive; `None` for one that was too long.
    pub(super) fn datagram(&self, index: usize) -> Option<Datagram<'_>> {
        let Received { length, from, local } = (*self.received.get(index)?)?;
        Some(Datagram { bytes: &self.buffers[index][..length], from, local })
    }
}

/// # Safety
/// `name` holds an address that the kernel wrote.
unsafe fn source(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which structure this storage holds; it is large and aligned enough for each.
            let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in>() };
            let address = Ipv4Addr::from_bits(u32::from_be(name.sin_addr.s_addr));
            Some(SocketAddr::from((address, u16::from_be(name.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in6>() };
            let address = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let port = u16::from_be(name.sin6_port);
            Some(std::net::SocketAddrV6::new(address, port, name.sin6_flowinfo, name.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// # Safety
/// `header` and its control data were filled in by `recvmmsg`.
unsafe fn asked(header: &libc::msghdr) -> Option<IpAddr> {
    // SAFETY: the CMSG macros walk the control data within the length that the kernel set.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: not null, so inside the control data; the level and type say what the data is, and it may lie
        // unaligned.
        unsafe {
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = libc::CMSG_DATA(message).cast::<libc::in_pktinfo>().read_unaligned();
                    return Some(IpAddr::V4(Ipv4Addr::from_bits(u32::from_be(info.ipi_addr.s_addr))));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = libc::CMSG_DATA(message).cast::<libc::in6_pktinfo>().read_unaligned();
                    return Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                }
                _ => message = libc::CMSG_NXTHDR(header, message),
            }
        }
    }
    None
}

/// A datagram to send.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// Its payload.
    pub(super) bytes: Vec<u8>,
    /// Where to.
    pub(super) to: SocketAddr,
    /// The address it is sent from; `None` where the socket has but one.
    pub(super) local: Option<IpAddr>,
}

/// Sends `datagrams`; `failed` hears of each that cannot be sent.
pub(super) fn send(socket: BorrowedFd<'_>, datagrams: &[Outgoing], mut failed: impl FnMut(&Outgoing, nix::Error)) {
    let mut rest = datagrams;
    while let Some(first) = rest.first() {
        let done = send_together(socket, rest).unwrap_or_else(|error| {
            failed(first, error);
            1
        });
        rest = rest.get(done.max(1)..).unwrap_or_default();
    }
}

/// Sends at most [`COUNT`] of `datagrams`: how many, from the first. An error is that of the first.
fn send_together(socket: BorrowedFd<'_>, datagrams: &[Outgoing]) -> nix::Result<usize> {
    let mut names = [SockaddrStorage::from(SocketAddr::from(([0; 4], 0))); COUNT];
    // SAFETY: all-zero is a valid value of these plain C structures.
    let mut headers: [libc::mmsghdr; COUNT] = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: as above.
    let mut vectors: [libc::iovec; COUNT] = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut controls = [Control([0; CONTROL]); COUNT];
    let count = datagrams.len().min(COUNT);
    for (index, datagram) in datagrams.iter().take(count).enumerate() {
        names[index] = SockaddrStorage::from(datagram.to);
        vectors[index].iov_base = datagram.bytes.as_ptr().cast_mut().cast();
        vectors[index].iov_len = datagram.bytes.len();
        let header = &mut headers[index].msg_hdr;
        header.msg_name = names[index].as_ptr().cast_mut().cast();
        header.msg_namelen = names[index].len();
        header.msg_iov = &raw mut vectors[index];
        header.msg_iovlen = 1;
        match datagram.local {
            None => {}
            Some(IpAddr::V4(local)) => {
                let any = libc::in_addr { s_addr: 0 };
                let local = libc::in_addr { s_addr: local.to_bits().to_be() };
                let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: local, ipi_addr: any };
                attach(header, &mut controls[index], (libc::IPPROTO_IP, libc::IP_PKTINFO), info);
            }
            Some(IpAddr::V6(local)) => {
                let local = libc::in6_addr { s6_addr: local.octets() };
                let info = libc::in6_pktinfo { ipi6_addr: local, ipi6_ifindex: 0 };
                attach(header, &mut controls[index], (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), info);
            }
        }
    }
    // SAFETY: every pointer in the first `count` headers leads to memory of the stated length that lives in this frame
    // or in `datagrams`; the kernel only reads it, and keeps none of it past the call.
    let sent = unsafe {
        libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count as libc::c_uint, libc::MSG_DONTWAIT as _)
    };
    usize::try_from(sent).map_err(|_| nix::Error::last())
}

/// Gives a message that is to be sent one item of control data, kept in `control`.
fn attach<T>(header: &mut libc::msghdr, control: &mut Control, (level, kind): (i32, i32), item: T) {
    let length = size_of::<T>() as libc::c_uint;
    // SAFETY: these compute lengths; the room is checked before anything is written to it.
    let (space, whole) = unsafe { (libc::CMSG_SPACE(length), libc::CMSG_LEN(length)) };
    assert!(space as usize <= CONTROL);
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = space as _;
    // SAFETY: the header's control data is `control`, aligned and with room for this one item, so the first header is
    // there and its data lies within; nobody else has a reference to it.
    unsafe {
        let message = libc::CMSG_FIRSTHDR(header);
        (*message).cmsg_level = level;
        (*message).cmsg_type = kind;
        (*message).cmsg_len = whole as _;
        libc::CMSG_DATA(message).cast::<T>().write_unaligned(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn datagrams_arrive_in_one_batch_and_long_ones_are_left_out() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = server.local_addr().unwrap();
        client.send_to(b"one", to).unwrap();
        client.send_to(&[7; SIZE + 1], to).unwrap();
        client.send_to(b"three", to).unwrap();
        let mut batch = Batch::new();
        assert_eq!(batch.receive(server.as_fd()).unwrap(), 3);
        let first = batch.datagram(0).unwrap();
        assert_eq!((first.bytes, first.from, first.local), (&b"one"[..], client.local_addr().unwrap(), None));
        assert!(batch.datagram(1).is_none());
        assert_eq!(batch.datagram(2).unwrap().bytes, b"three");
        assert_eq!(batch.receive(server.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(batch.datagram(0).is_none());
    }

    #[test]
    fn what_cannot_be_sent_keeps_nothing_else_back() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let (from, to) = (server.local_addr().unwrap(), client.local_addr().unwrap());
        let elsewhere = "[::1]:9".parse().unwrap();
        let own = Some("127.0.0.1".parse().unwrap());
        let mut datagrams: Vec<Outgoing> =
            (0..2 * COUNT as u8).map(|number| Outgoing { bytes: vec![number], to, local: None }).collect();
        // The first of a batch, one in its middle; and some that name their source.
        datagrams[0].to = elsewhere;
        datagrams[5].to = elsewhere;
        datagrams[7].local = own;
        datagrams[8].local = own;
        let mut lost = Vec::new();
        send(server.as_fd(), &datagrams, |datagram, _| lost.push(datagram.bytes[0]));
        assert_eq!(lost, [0, 5]);
        let mut buffer = [0; 16];
        for number in (0..2 * COUNT as u8).filter(|number| !lost.contains(number)) {
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (1, from));
            assert_eq!(buffer[0], number);
        }
    }
}
