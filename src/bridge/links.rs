//! Links and addresses, by `neli`: bridges, their ports, and whose namespace the other end of a veth is in.
//!
//! Owns: the rtnetlink messages (`linux/rtnetlink.h`, `linux/if_link.h`). Does not own: which links there should be.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::Path;

use neli::consts::nl::{NlmF, Nlmsg};
use neli::consts::rtnl::{Arphrd, Ifa, IfaF, Iff, Ifla, IflaInfo, RtAddrFamily, RtScope, Rtm};
use neli::consts::socket::NlFamily;
use neli::err::SocketError;
use neli::nl::{NlPayload, Nlmsghdr, NlmsghdrBuilder};
use neli::rtnl::{Ifaddrmsg, IfaddrmsgBuilder, Ifinfomsg, IfinfomsgBuilder, Rtattr, RtattrBuilder};
use neli::socket::synchronous::NlSocketHandle;
use neli::types::{Buffer, RtBuffer};
use neli::utils::Groups;
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::socket::{KernelError, Socket};
use super::wire::{Attributes, NESTED, Request};

/// The bit of `RTNLGRP_LINK`.
const GROUP_LINK: u32 = 1;
/// `IFLA_EXT_MASK`: `RTEXT_FILTER_SKIP_STATS`, half of every answer.
const SKIP_STATISTICS: u32 = 8;
/// `AF_BRIDGE`, which neli does not name.
const AF_BRIDGE: u8 = 7;
/// `IFLA_BRPORT_ISOLATED`
const BRPORT_ISOLATED: u16 = 33;
/// `IFLA_INFO_SLAVE_DATA`
const INFO_SLAVE_DATA: u16 = 5;
/// `IFLA_INFO_KIND`
const INFO_KIND: u16 = 1;
/// `IFLA_INET6_ADDR_GEN_MODE`
const INET6_ADDR_GEN_MODE: u16 = 8;
/// `IN6_ADDR_GEN_MODE_NONE`: the bridge has no IPv6 address of its own.
const ADDR_GEN_MODE_NONE: u8 = 1;
/// `RTM_GETNSID`
const GET_NSID: u16 = 90;
/// `NETNSA_NSID`, `NETNSA_PID`, `NETNSA_FD`
const NETNSA_NSID: u16 = 1;
const NETNSA_PID: u16 = 2;
const NETNSA_FD: u16 = 3;

/// A link, as far as we look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    /// `bridge`, `veth`, …; empty for hardware.
    pub kind: String,
    /// The bridge it is a port of.
    pub master: Option<u32>,
    /// Our number for the namespace of a veth's other end, when that is another one.
    pub peer_namespace: Option<i32>,
    pub up: bool,
    /// The flag of a bridge port.
    pub isolated: bool,
    /// Its MAC address; empty where it has none.
    pub mac: Vec<u8>,
}

/// The rtnetlink sockets: one for requests by `neli`, one for namespace numbers.
pub(super) struct Links {
    socket: NlSocketHandle,
    namespaces: Socket,
    seq: u32,
}

fn failed(operation: &str, error: &SocketError) -> KernelError {
    let errno = match error {
        SocketError::Io(error) => error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
        _ => Errno::EBADMSG,
    };
    KernelError::new(operation, errno)
}

/// What `neli`'s builders say when a field is missing: a bug here, reported rather than hidden.
fn unbuilt(operation: &str) -> impl FnOnce() -> KernelError + '_ {
    move || KernelError::new(operation, Errno::EINVAL)
}

fn attribute(kind: Ifla, value: &[u8]) -> Option<Rtattr<Ifla, Buffer>> {
    RtattrBuilder::default().rta_type(kind).rta_payload(value.to_vec()).build().ok()
}

/// A non-blocking socket that hears of every change of a link.
pub(super) fn link_monitor() -> Result<Socket, KernelError> {
    Socket::listening(SockProtocol::NetlinkRoute, GROUP_LINK)
}

impl Links {
    /// Opens the sockets.
    pub fn open() -> Result<Self, KernelError> {
        let socket = NlSocketHandle::connect(NlFamily::Route, None, Groups::empty())
            .map_err(|error| failed("open an rtnetlink socket", &error))?;
        Ok(Links { socket, namespaces: Socket::requests(SockProtocol::NetlinkRoute)?, seq: 0 })
    }

    /// All links.
    pub fn all(&mut self) -> Result<Vec<Link>, KernelError> {
        /// Repetitions of a listing that changes meanwhile.
        const ATTEMPTS: u32 = 16;
        for _ in 0..ATTEMPTS {
            if let Some(links) = self.list()? {
                return Ok(links);
            }
        }
        Err(KernelError::new("list the links", Errno::EAGAIN))
    }

    fn list(&mut self) -> Result<Option<Vec<Link>>, KernelError> {
        const LIST: &str = "list the links";
        let mut attributes = RtBuffer::new();
        attributes.push(attribute(Ifla::ExtMask, &SKIP_STATISTICS.to_ne_bytes()).ok_or_else(unbuilt(LIST))?);
        let message = IfinfomsgBuilder::default().ifi_family(RtAddrFamily::Unspecified).rtattrs(attributes);
        let message = message.build().map_err(|_| unbuilt(LIST)())?;
        let seq = self.send(LIST, Rtm::Getlink, NlmF::REQUEST | NlmF::DUMP, message)?;
        let mut links = Vec::new();
        let mut interrupted = false;
        loop {
            let (answers, _) = self.socket.recv::<u16, Ifinfomsg>().map_err(|error| failed(LIST, &error))?;
            for answer in answers {
                let answer: Nlmsghdr<u16, Ifinfomsg> = answer.map_err(|error| failed(LIST, &error))?;
                if *answer.nl_seq() != seq {
                    continue;
                }
                interrupted |= answer.nl_flags().contains(NlmF::DUMP_INTR);
                if *answer.nl_type() == u16::from(Nlmsg::Done) {
                    return Ok((!interrupted).then_some(links));
                }
                match answer.nl_payload() {
                    NlPayload::Payload(message) => links.extend(link(message)),
                    NlPayload::Err(error) => return Err(KernelError::new(LIST, Errno::from_raw(-error.error()))),
                    _ => {}
                }
            }
        }
    }

    /// Makes a bridge without an IPv6 address of its own, down.
    pub fn make_bridge(&mut self, name: &str) -> Result<(), KernelError> {
        self.make(name, "bridge")
    }

    /// Makes a veth, down; the kernel names its other end.
    pub fn make_veth(&mut self, name: &str) -> Result<(), KernelError> {
        self.make(name, "veth")
    }

    fn make(&mut self, name: &str, kind: &'static str) -> Result<(), KernelError> {
        let operation = format!("make the {kind} {name}");
        let build = || -> Option<Ifinfomsg> {
            let kind = RtattrBuilder::default().rta_type(IflaInfo::Kind).rta_payload(kind).build().ok()?;
            let info = attribute(Ifla::Linkinfo, &[])?.nest(&kind).ok()?;
            let mut attributes = RtBuffer::new();
            attributes.push(attribute(Ifla::Ifname, &nul_terminated(name))?);
            attributes.push(info);
            IfinfomsgBuilder::default().ifi_family(RtAddrFamily::Unspecified).rtattrs(attributes).build().ok()
        };
        let message = build().ok_or_else(unbuilt(&operation))?;
        self.request(&operation, Rtm::Newlink, NlmF::CREATE | NlmF::EXCL, message)
    }

    /// Keeps the kernel from giving a link an IPv6 address of its own.
    pub fn without_ipv6(&mut self, index: u32, name: &str) -> Result<(), KernelError> {
        let operation = format!("keep {name} without IPv6 address");
        // AF_INET6 is an attribute type here.
        let mode = nested(INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]);
        let inet6 = nested(libc::AF_INET6 as u16, &mode);
        self.set_link(&operation, RtAddrFamily::Unspecified, index, Ifla::AfSpec, &inet6)
    }

    /// Deletes a link.
    pub fn delete(&mut self, index: u32, name: &str) -> Result<(), KernelError> {
        let operation = format!("delete the link {name}");
        let message = link_message(index).build().map_err(|_| unbuilt(&operation)())?;
        self.request(&operation, Rtm::Dellink, NlmF::empty(), message)
    }

    /// Gives a link a MAC address.
    pub fn set_mac(&mut self, index: u32, name: &str, mac: [u8; 6]) -> Result<(), KernelError> {
        let operation = format!("give {name} its MAC address");
        self.set_link(&operation, RtAddrFamily::Unspecified, index, Ifla::Address, &mac)
    }

    /// Sets a link up or down.
    pub fn set_up(&mut self, index: u32, name: &str, up: bool) -> Result<(), KernelError> {
        let operation = format!("set the link {name} {}", if up { "up" } else { "down" });
        let message = link_message(index);
        let message = if up { message.up() } else { message.down() };
        let message = message.build().map_err(|_| unbuilt(&operation)())?;
        self.request(&operation, Rtm::Newlink, NlmF::empty(), message)
    }

    /// Puts a link on a bridge.
    pub fn enslave(&mut self, index: u32, name: &str, master: u32) -> Result<(), KernelError> {
        let operation = format!("put {name} back on its bridge");
        self.set_link(&operation, RtAddrFamily::Unspecified, index, Ifla::Master, &master.to_ne_bytes())
    }

    /// Keeps a bridge port from exchanging frames with other isolated ports.
    pub fn isolate(&mut self, index: u32, name: &str) -> Result<(), KernelError> {
        let operation = format!("isolate the port {name}");
        // Without the flag the kernel takes the value for the port's spanning tree state.
        let kind = Ifla::from(libc::IFLA_PROTINFO | NESTED);
        self.set_link(&operation, RtAddrFamily::from(AF_BRIDGE), index, kind, &nested(BRPORT_ISOLATED, &[1]))
    }

    /// Gives a link an address; one that it has already is fine.
    pub fn add_address(&mut self, index: u32, name: &str, address: Ipv4Addr, prefix: u8) -> Result<(), KernelError> {
        let operation = format!("give {name} the address {address}/{prefix}");
        let build = || -> Option<Ifaddrmsg> {
            let attribute =
                |kind| RtattrBuilder::default().rta_type(kind).rta_payload(address.octets().to_vec()).build().ok();
            let mut attributes = RtBuffer::new();
            attributes.push(attribute(Ifa::Local)?);
            attributes.push(attribute(Ifa::Address)?);
            IfaddrmsgBuilder::default()
                .ifa_family(RtAddrFamily::Inet)
                .ifa_prefixlen(prefix)
                .ifa_flags(IfaF::empty())
                .ifa_scope(RtScope::Universe)
                .ifa_index(index)
                .rtattrs(attributes)
                .build()
                .ok()
        };
        let message = build().ok_or_else(unbuilt(&operation))?;
        match self.request(&operation, Rtm::Newaddr, NlmF::CREATE | NlmF::EXCL, message) {
            Err(error) if error.errno == Errno::EEXIST => Ok(()),
            other => other,
        }
    }

    /// Our number for the network namespace at `path` (a sandbox key), or for the one of process `pid`.
    /// `None` when neither exists yet, or when we have no number for it: then no veth leads there.
    pub fn namespace_number(&mut self, path: &str, pid: i32) -> Option<i32> {
        const ASK: &str = "ask for a namespace's number";
        let file = if path.is_empty() { None } else { File::open(Path::new(path)).ok() };
        let request = || Request::new(GET_NSID, 0).bytes(&[0; 4]);
        let by_path = file.and_then(|file| {
            self.namespaces.ask(ASK, request().attribute(NETNSA_FD, &file.as_raw_fd().to_ne_bytes())).ok()
        });
        // In a mount namespace of our own that Docker's mounts do not reach, the path is an empty file.
        let answer = match by_path {
            Some(answer) => answer,
            None if pid > 0 => self.namespaces.ask(ASK, request().attribute(NETNSA_PID, &pid.to_ne_bytes())).ok()?,
            None => return None,
        };
        // struct rtgenmsg, one byte, padded to four.
        let number = Attributes(answer.payload.get(4..)?).find(NETNSA_NSID)?;
        Some(i32::from_ne_bytes(number.value.try_into().ok()?)).filter(|number| *number >= 0)
    }

    fn set_link(
        &mut self,
        operation: &str,
        family: RtAddrFamily,
        index: u32,
        kind: Ifla,
        value: &[u8],
    ) -> Result<(), KernelError> {
        let mut attributes = RtBuffer::new();
        attributes.push(attribute(kind, value).ok_or_else(unbuilt(operation))?);
        let message = link_message(index).ifi_family(family).rtattrs(attributes);
        let message = message.build().map_err(|_| unbuilt(operation)())?;
        self.request(operation, Rtm::Setlink, NlmF::empty(), message)
    }

    fn request<P>(&mut self, operation: &str, kind: Rtm, flags: NlmF, payload: P) -> Result<(), KernelError>
    where
        P: neli::Size + neli::ToBytes + std::fmt::Debug,
    {
        let seq = self.send(operation, kind, NlmF::REQUEST | NlmF::ACK | flags, payload)?;
        loop {
            let (answers, _) = self.socket.recv::<u16, Buffer>().map_err(|error| failed(operation, &error))?;
            for answer in answers {
                let answer: Nlmsghdr<u16, Buffer> = answer.map_err(|error| failed(operation, &error))?;
                if *answer.nl_seq() != seq {
                    continue;
                }
                match answer.nl_payload() {
                    NlPayload::Ack(_) => return Ok(()),
                    NlPayload::Err(error) => {
                        return Err(KernelError::new(operation, Errno::from_raw(-error.error())));
                    }
                    _ => {}
                }
            }
        }
    }

    fn send<P>(&mut self, operation: &str, kind: Rtm, flags: NlmF, payload: P) -> Result<u32, KernelError>
    where
        P: neli::Size + neli::ToBytes + std::fmt::Debug,
    {
        self.seq = self.seq.wrapping_add(1).max(1);
        let message = NlmsghdrBuilder::default()
            .nl_type(kind)
            .nl_flags(flags)
            .nl_seq(self.seq)
            .nl_payload(NlPayload::Payload(payload))
            .build()
            .map_err(|_| unbuilt(operation)())?;
        self.socket.send(&message).map_err(|error| failed(operation, &error))?;
        Ok(self.seq)
    }
}

fn link_message(index: u32) -> IfinfomsgBuilder {
    IfinfomsgBuilder::default()
        .ifi_family(RtAddrFamily::Unspecified)
        .ifi_type(Arphrd::None)
        .ifi_flags(Iff::empty())
        // Interface indices are positive and fit an int (`struct ifinfomsg`).
        .ifi_index(index.cast_signed())
}

fn nul_terminated(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// An attribute as bytes, to be put into another one.
fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn link(message: &Ifinfomsg) -> Option<Link> {
    let handle = message.rtattrs().get_attr_handle();
    let bytes = |kind: Ifla| handle.get_attribute(kind).map(|attribute| attribute.rta_payload().as_ref());
    let number = |kind: Ifla| bytes(kind).and_then(|value| Some(u32::from_ne_bytes(value.try_into().ok()?)));
    let text = |value: &[u8]| String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
    let info = Attributes(bytes(Ifla::Linkinfo).unwrap_or_default());
    let isolated = info
        .find(INFO_SLAVE_DATA)
        .and_then(|slave| slave.inner().find(BRPORT_ISOLATED))
        .is_some_and(|flag| flag.value == [1]);
    Some(Link {
        index: u32::try_from(*message.ifi_index()).ok()?,
        name: text(bytes(Ifla::Ifname)?),
        kind: info.find(INFO_KIND).map(|kind| text(kind.value)).unwrap_or_default(),
        master: number(Ifla::Master),
        peer_namespace: number(Ifla::LinkNetnsid).map(u32::cast_signed).filter(|number| *number >= 0),
        up: message.ifi_flags().contains(Iff::UP),
        isolated,
        mac: bytes(Ifla::Address).unwrap_or_default().to_vec(),
    })
}
