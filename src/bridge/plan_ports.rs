//! The layer-2 part of the plan: who may send through a port, and that ports do not reach each other.
//!
//! Owns: the tables `arp outcall`, `bridge outcall` and `netdev outcall`. Does not own: which veth is whose (`ports.rs`).

use std::ffi::CString;

use super::expression::{self as ex, Header, Meta, Verdict};
use super::plan::{PORTS, Plan, PortPlan, SUBNETS, VETTED_MARK};
use super::reason::Reason;
use super::tables::{Base, Chain, Element, Family, KeyPart, Set, Table, rule};

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// Offsets in an Ethernet header.
const ETHER_SOURCE: u32 = 6;
const ETHER_TYPE: u32 = 12;

/// The element of the set of ports.
pub(super) fn port_element(name: &str) -> Element {
    Element::plain(&ex::ifname(name))
}

/// Frames bridged from port to port.
///
/// A kernel need not be able to match the bridge of a frame (`meta ibrname` is optional), so four signs are used,
/// of which each alone suffices: the mark of a vetted sender, a known port on either side, and a managed
/// address. Ports are isolated besides. Holds with `br_netfilter` on and off.
pub(super) fn bridge_table(plan: &Plan) -> Table {
    let refuse = |comment, matches| Reason::Neighbour.refuse(comment, [matches]);
    let with = |ethertype: &[u8], offset| {
        [ex::meta(Meta::Protocol, ethertype), ex::address_in(Header::Network, offset, SUBNETS)].concat()
    };
    let forward = Chain {
        name: c"forward".to_owned(),
        base: Some(Base { nat: false, hook: nftnl::Hook::Forward, priority: -300, drop: false, device: None }),
        rules: vec![
            refuse(c"from a vetted sender", ex::meta(Meta::Mark, &VETTED_MARK.to_ne_bytes())),
            refuse(c"from a container's port", ex::interface_in(Meta::IifName, PORTS)),
            refuse(c"to a container's port", ex::interface_in(Meta::OifName, PORTS)),
            refuse(c"from a managed address", with(&ETHERTYPE_IPV4, 12)),
            refuse(c"to a managed address", with(&ETHERTYPE_IPV4, 16)),
            refuse(c"ARP from a managed address", with(&ETHERTYPE_ARP, 14)),
            refuse(c"ARP for a managed address", with(&ETHERTYPE_ARP, 24)),
        ],
    };
    let ports = Set {
        name: PORTS,
        key: &[KeyPart::Interface],
        flags: 0,
        counted: false,
        elements: plan.ports.keys().map(|name| port_element(name)).collect(),
    };
    Table {
        family: Family::Bridge,
        sets: vec![ports, plan.subnets()],
        chains: vec![Reason::Neighbour.chain(), forward],
    }
}

/// ARP that reaches the host: of vetted senders only, so that a port without filter poisons no neighbour entry.
pub(super) fn arp_table(plan: &Plan) -> Table {
    let from_bridge = Chain {
        name: c"from_bridge".to_owned(),
        base: None,
        rules: vec![
            rule(
                c"its port's filter knows the sender",
                [ex::meta(Meta::Mark, &VETTED_MARK.to_ne_bytes())],
                &Verdict::Accept,
            ),
            Reason::Unvetted.refuse(c"no filter, no traffic", []),
        ],
    };
    let input = Chain {
        name: c"input".to_owned(),
        // `NF_ARP_IN` is 0, as is `NF_INET_PRE_ROUTING`.
        base: Some(Base { nat: false, hook: nftnl::Hook::PreRouting, priority: 0, drop: false, device: None }),
        rules: plan.for_bridges(Meta::IifName, c"from a container", &from_bridge.name).into(),
    };
    Table { family: Family::Arp, sets: Vec::new(), chains: vec![Reason::Unvetted.chain(), from_bridge, input] }
}

/// The identity filters, one chain a port.
pub(super) fn netdev_table(plan: &Plan) -> Table {
    let mut chains: Vec<Chain> = [Reason::Spoofed, Reason::Ipv6].map(Reason::chain).into();
    chains.extend(plan.ports.iter().map(|(name, port)| port_chain(name, port)));
    Table { family: Family::NetDev, sets: Vec::new(), chains }
}

/// The name of a port's chain: the port's, or its index where the name holds what `nft` would not read as a name.
pub(super) fn port_chain_name(name: &str, index: u32) -> CString {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let chain = if plain { format!("port_{name}") } else { format!("port_{index}") };
    // Neither form holds a NUL.
    CString::new(chain).unwrap_or_default()
}

/// Passes the port's own sender, marked as vetted, and nothing else.
pub(super) fn port_chain(name: &str, port: &PortPlan) -> Chain {
    // A VLAN tag in the frame makes the type at this offset 0x8100, also where the tag was taken out already.
    let ether = |ethertype: &[u8]| ex::payload(Header::Link, ETHER_TYPE, ethertype);
    let vetted = |comment, matches: ex::Expressions| {
        rule(comment, [matches, ex::set_mark(VETTED_MARK), ex::counter()], &Verdict::Accept)
    };
    let ipv4 = [ether(&ETHERTYPE_IPV4), ex::saddr(port.address)].concat();
    let arp = [
        ether(&ETHERTYPE_ARP),
        // Ethernet and IPv4, six and four bytes: else the sender's addresses lie elsewhere.
        ex::payload(Header::Network, 0, &[0, 1]),
        ex::payload(Header::Network, 2, &ETHERTYPE_IPV4),
        ex::payload(Header::Network, 4, &[6]),
        ex::payload(Header::Network, 5, &[4]),
        ex::payload(Header::Network, 8, &port.mac),
        ex::payload(Header::Network, 14, &port.address.octets()),
    ]
    .concat();
    Chain {
        name: port_chain_name(name, port.index),
        base: Some(Base {
            nat: false,
            // `NF_NETDEV_INGRESS` is 0, as is `NF_INET_PRE_ROUTING`.
            hook: nftnl::Hook::PreRouting,
            priority: -500,
            drop: true,
            device: CString::new(name).ok(),
        }),
        rules: vec![
            Reason::Spoofed.refuse(c"own MAC only", [ex::payload_other(Header::Link, ETHER_SOURCE, &port.mac)]),
            vetted(c"own IPv4 address", ipv4),
            vetted(c"own ARP", arp),
            Reason::Ipv6.refuse(c"no IPv6", [ether(&ETHERTYPE_IPV6)]),
            Reason::Spoofed.refuse(c"all else", []),
        ],
    }
}
