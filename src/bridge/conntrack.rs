//! Ends running flows: deletes the conntrack entries of revoked grants.
//!
//! Owns: the ctnetlink messages (`linux/netfilter/nfnetlink_conntrack.h`). Does not own: which flows end.

use std::net::Ipv4Addr;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::plan::FLOW_MARK;
use super::readback::FlowKey;
use super::socket::{KernelError, Socket};
use super::wire::{Attributes, F_ACK, F_DUMP, Message, NESTED, Request};

/// `NFNL_SUBSYS_CTNETLINK`
const SUBSYSTEM: u8 = 1;
/// `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`
const GET: u8 = 1;
const DELETE: u8 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const MARK: u16 = 8;
const ID: u16 = 12;
const ZONE: u16 = 18;
const MARK_MASK: u16 = 21;

/// The conntrack side of the kernel.
pub(super) struct Conntrack {
    socket: Socket,
}

/// The original direction of a flow.
fn original(attributes: Attributes<'_>) -> Option<FlowKey> {
    let tuple = attributes.find(TUPLE_ORIGINAL)?.inner();
    let (addresses, transport) = (tuple.find(1)?.inner(), tuple.find(2)?.inner());
    let address = |kind| {
        let octets: [u8; 4] = addresses.find(kind)?.value.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    let port = transport.find(3).and_then(|port| port.number()).and_then(|port| u16::try_from(port).ok());
    Some(FlowKey {
        source: address(1)?,
        destination: address(2)?,
        protocol: *transport.find(1)?.value.first()?,
        port: port.unwrap_or(0),
    })
}

impl Conntrack {
    /// Opens the socket.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Conntrack { socket: Socket::requests(SockProtocol::NetlinkNetFilter)? })
    }

    /// Ends every granted flow that `ends` says; gives their number.
    pub fn end(&mut self, ends: impl Fn(&FlowKey) -> bool) -> Result<usize, KernelError> {
        let marked = self.socket.dump("list the granted flows that run", || {
            Request::netfilter(SUBSYSTEM, GET, F_DUMP, libc::AF_INET as u8, 0)
                .attribute(MARK, &FLOW_MARK.to_be_bytes())
                .attribute(MARK_MASK, &u32::MAX.to_be_bytes())
        })?;
        let mut ended = 0;
        for entry in &marked {
            let attributes = entry.message().netfilter_attributes();
            if original(attributes).is_none_or(|flow| !ends(&flow)) {
                continue;
            }
            match self.socket.request("end a running flow", deletion(&entry.message())) {
                Ok(()) => ended += 1,
                // It ended by itself.
                Err(error) if error.errno == Errno::ENOENT => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ended)
    }
}

/// Deletes exactly the entry that was dumped: by tuple, zone and id.
fn deletion(entry: &Message<'_>) -> Request {
    let mut request = Request::netfilter(SUBSYSTEM, DELETE, F_ACK, libc::AF_INET as u8, 0);
    for attribute in entry.netfilter_attributes() {
        request = match attribute.kind {
            TUPLE_ORIGINAL => request.attribute(TUPLE_ORIGINAL | NESTED, attribute.value),
            ID | ZONE => request.attribute(attribute.kind, attribute.value),
            _ => request,
        };
    }
    request
}

#[cfg(test)]
mod tests {
    use super::super::wire::messages;
    use super::*;

    #[test]
    fn the_entry_that_was_dumped_is_the_one_deleted() {
        let entry = Request::netfilter(SUBSYSTEM, 0, 0, 2, 0)
            .nest(TUPLE_ORIGINAL, |tuple| {
                tuple
                    .nest(1, |ip| ip.address(1, Ipv4Addr::new(10, 200, 0, 2)).address(2, Ipv4Addr::new(1, 1, 1, 1)))
                    .nest(2, |transport| {
                        transport.attribute(1, &[6]).attribute(2, &[0x80, 0]).attribute(3, &443u16.to_be_bytes())
                    })
            })
            .attribute(ID, &[1, 2, 3, 4])
            .attribute(7, &[9, 9, 9, 9])
            .finish(1);
        let entry = messages(&entry).next().unwrap();
        let flow = original(entry.netfilter_attributes()).unwrap();
        assert_eq!((flow.source, flow.port, flow.protocol), (Ipv4Addr::new(10, 200, 0, 2), 443, 6));
        let deletion = deletion(&entry).finish(2);
        let deletion = messages(&deletion).next().unwrap();
        assert_eq!(original(deletion.netfilter_attributes()), Some(flow));
        assert_eq!(deletion.netfilter_attributes().find(ID).unwrap().value, [1, 2, 3, 4]);
        assert!(deletion.netfilter_attributes().find(7).is_none());
    }
}
