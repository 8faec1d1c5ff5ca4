//! The kernel's log of drops (NFLOG), turned into decision events.
//!
//! Owns: the nfnetlink_log messages (`linux/netfilter/nfnetlink_log.h`) and the cap on events. Does not own: which
//! drops are logged (`plan.rs`), or what happens to an event.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::reason::{LOG_GROUP, Reason};
use super::socket::{KernelError, Socket};
use super::wire::{self, F_ACK, Message, Request};

/// `NFNL_SUBSYS_ULOG`
const SUBSYSTEM: u8 = 4;
const PACKET: u8 = 0;
const CONFIGURE: u8 = 1;
/// Bytes of a packet that are copied: the longest IPv4 header and the ports behind it.
const COPIED: u32 = 128;
/// Messages the kernel collects before it wakes us, and for how long (in hundredths of a second).
const COLLECTED: u32 = 64;
const COLLECTED_FOR: u32 = 5;
/// Events of one sender, in one `WINDOW`: a flood by one container does not hide what others try.
const EVENTS_PER_SENDER: u32 = 50;
/// The window of `EVENTS_PER_SENDER`.
const WINDOW: Duration = Duration::from_secs(1);
/// Senders told apart in one window; spoofed sources share what is left.
const SENDERS: usize = 4096;

/// A dropped packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Drop {
    pub reason: Reason,
    /// Interface indices that the packet came through: the port before the bridge.
    pub interfaces: [Option<u32>; 2],
    pub source: Option<IpAddr>,
    pub destination: Option<IpAddr>,
    pub port: Option<u16>,
    pub protocol: &'static str,
}

impl Drop {
    /// Address and port reached for.
    pub fn socket_address(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.destination?, self.port.unwrap_or(0)))
    }
}

/// The subscription.
pub(super) struct KernelLog {
    socket: Socket,
    window: Instant,
    seen: HashMap<Option<IpAddr>, u32>,
    /// Events that the cap left out.
    pub suppressed: u64,
}

impl KernelLog {
    /// Subscribes to the group that the tables log to.
    pub fn open(now: Instant) -> Result<Self, KernelError> {
        const LISTEN: &str = "listen to the kernel log of drops";
        let mut socket = Socket::listening(SockProtocol::NetlinkNetFilter, 0)?;
        let configure = || Request::netfilter(SUBSYSTEM, CONFIGURE, F_ACK, 0, LOG_GROUP);
        // NFULA_CFG_CMD: NFULNL_CFG_CMD_BIND
        socket.request(LISTEN, configure().attribute(1, &[1]))?;
        let [a, b, c, d] = COPIED.to_be_bytes();
        // NFULA_CFG_MODE: NFULNL_COPY_PACKET; NFULA_CFG_TIMEOUT; NFULA_CFG_QTHRESH
        let settings = configure()
            .attribute(2, &[a, b, c, d, 2, 0])
            .attribute(4, &COLLECTED_FOR.to_be_bytes())
            .attribute(5, &COLLECTED.to_be_bytes());
        socket.request(LISTEN, settings)?;
        Ok(KernelLog { socket, window: now, seen: HashMap::new(), suppressed: 0 })
    }

    /// Reads the drops that wait; those above the cap are counted only.
    pub fn read(&mut self, now: Instant) -> Vec<Drop> {
        let mut drops = Vec::new();
        loop {
            match self.socket.heard() {
                Ok(Some(buffer)) => drops.extend(wire::messages(buffer).filter_map(|message| parse(&message))),
                Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Ok(None) | Err(_) => break,
            }
        }
        if now.saturating_duration_since(self.window) >= WINDOW {
            self.window = now;
            self.seen.clear();
        }
        drops.retain(|drop| {
            let sender = if self.seen.len() < SENDERS { drop.source } else { None };
            let count = self.seen.entry(sender).or_insert(0);
            *count += 1;
            let kept = *count <= EVENTS_PER_SENDER;
            self.suppressed += u64::from(!kept);
            kept
        });
        drops
    }
}

impl AsRawFd for KernelLog {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn parse(message: &Message<'_>) -> Option<Drop> {
    if message.kind != u16::from(SUBSYSTEM) << 8 | u16::from(PACKET) {
        return None;
    }
    let attributes = message.netfilter_attributes();
    let prefix = attributes.find(10)?.text();
    let reason = Reason::ALL.into_iter().find(|reason| reason.code() == prefix)?;
    let hardware = attributes.find(1).and_then(|header| Some([*header.value.first()?, *header.value.get(1)?]));
    let index = |kind| attributes.find(kind).and_then(|index| index.number()).and_then(|index| index.try_into().ok());
    let packet = attributes.find(9).map(|payload| payload.value).unwrap_or_default();
    let mut drop = match hardware {
        Some([0x08, 0x00]) => ipv4(packet),
        Some([0x86, 0xdd]) => ipv6(packet),
        Some([0x08, 0x06]) => arp(packet),
        _ => unreadable("other"),
    };
    drop.reason = reason;
    // NFULA_IFINDEX_PHYSINDEV, NFULA_IFINDEX_INDEV
    drop.interfaces = [index(6), index(4)];
    Some(drop)
}

fn unreadable(protocol: &'static str) -> Drop {
    Drop { reason: Reason::Unvetted, interfaces: [None; 2], source: None, destination: None, port: None, protocol }
}

fn protocol_name(number: u8) -> &'static str {
    match number {
        1 => "icmp",
        2 => "igmp",
        6 => "tcp",
        17 => "udp",
        41 => "ipv6",
        47 => "gre",
        50 => "esp",
        58 => "icmpv6",
        132 => "sctp",
        136 => "udplite",
        _ => "other",
    }
}

fn has_ports(number: u8) -> bool {
    matches!(number, 6 | 17 | 132 | 136)
}

fn address4(packet: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
    Some(IpAddr::V4(Ipv4Addr::from(octets)))
}

fn port(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(packet.get(at + 2..at + 4)?.try_into().ok()?))
}

fn ipv4(packet: &[u8]) -> Drop {
    let (Some(first), Some(number)) = (packet.first(), packet.get(9)) else { return unreadable("ip") };
    let first_fragment = packet.get(6..8).is_some_and(|offset| offset[0] & 0x1f == 0 && offset[1] == 0);
    let header = usize::from(first & 15) * 4;
    Drop {
        source: address4(packet, 12),
        destination: address4(packet, 16),
        port: if has_ports(*number) && first_fragment { port(packet, header) } else { None },
        ..unreadable(protocol_name(*number))
    }
}

fn ipv6(packet: &[u8]) -> Drop {
    let address = |at: usize| {
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(octets)))
    };
    let Some(number) = packet.get(6) else { return unreadable("ipv6") };
    Drop {
        source: address(8),
        destination: address(24),
        port: if has_ports(*number) { port(packet, 40) } else { None },
        ..unreadable(protocol_name(*number))
    }
}

fn arp(packet: &[u8]) -> Drop {
    Drop { source: address4(packet, 14), destination: address4(packet, 24), ..unreadable("arp") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(hardware: [u8; 2], prefix: &str, packet: &[u8]) -> Option<Drop> {
        let bytes = Request::netfilter(SUBSYSTEM, PACKET, 0, 1, LOG_GROUP)
            .attribute(1, &[hardware[0], hardware[1], 3, 0])
            .text(10, prefix)
            .attribute(4, &7u32.to_be_bytes())
            .attribute(9, packet)
            .finish(0);
        parse(&wire::messages(&bytes).next().unwrap())
    }

    #[test]
    fn a_dropped_packet_is_read_to_its_port() {
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 200, 0, 2, 1, 1, 1, 1];
        packet.extend([0x80, 0, 0x01, 0xbb]);
        let drop = logged([8, 0], "no_grant", &packet).unwrap();
        assert_eq!(drop.reason, Reason::NoGrant);
        assert_eq!(drop.socket_address(), Some("1.1.1.1:443".parse().unwrap()));
        assert_eq!((drop.protocol, drop.interfaces), ("tcp", [None, Some(7)]));
        // A later fragment has no ports where the first one has.
        packet[7] = 1;
        assert_eq!(logged([8, 0], "no_grant", &packet).unwrap().port, None);
    }

    #[test]
    fn no_packet_is_too_short_to_be_reported() {
        for length in 0..24 {
            for hardware in [[8, 0], [8, 6], [0x86, 0xdd], [1, 2]] {
                assert!(logged(hardware, "spoofed", &vec![0x4f; length]).is_some());
            }
        }
        assert!(logged([8, 0], "something else", &[]).is_none());
    }
}
