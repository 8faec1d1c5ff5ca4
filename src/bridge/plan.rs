//! What the kernel shall do, as a value: the tables `outcall` (inet, arp, bridge, netdev).
//!
//! Owns: the policy's shape: tables, chains, sets, rules and their order. Does not own: how it becomes a batch
//! (`batch.rs`), the comparison with the kernel (`readback.rs`), links. The layer-2 tables are in `plan_ports.rs`.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::net::Ipv4Addr;

use crate::docker_manager::Ipv4Net;

use super::expression::{self as ex, Expressions, Header, Meta, State, Verdict};
use super::plan_ports;
use super::reason::Reason;
use super::tables::{
    Base, Chain, Element, Family, KeyPart, Rule, SET_CONCAT, SET_INTERVAL, SET_TIMEOUT, Set, Table, rule,
};

/// The mark of a packet whose sender was checked by its port's filter (`skb->mark`, the whole word).
pub const VETTED_MARK: u32 = 0x0ca1_1000;
/// The mark of a conntrack entry that a grant opened (the whole word).
pub const FLOW_MARK: u32 = 0x0ca1_1d17;
/// The name prefix of the bridges of all but the default network.
pub const BRIDGE_PREFIX: &str = "oc-";
/// The set of granted flows.
pub(super) const DIRECT4: &CStr = c"direct4";
/// The set of gateways, by bridge.
pub(super) const GATEWAYS: &CStr = c"gateways";
/// The set of managed subnets.
pub(super) const SUBNETS: &CStr = c"subnets";
/// The set of ports of managed bridges.
pub(super) const PORTS: &CStr = c"ports";

/// A managed network, as far as the kernel's tables know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkPlan {
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// The bridge's address.
    pub gateway: Ipv4Addr,
}

/// The identity that may send through a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// Interface index of the host-side veth.
    pub index: u32,
    /// The only sender's MAC address.
    pub mac: [u8; 6],
    /// The only sender's IPv4 address.
    pub address: Ipv4Addr,
}

/// Everything the tables are made of, but for the granted flows, which live in a set of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The default network's bridge.
    pub bridge: String,
    /// Where DNS listens.
    pub dns_port: u16,
    /// Where the proxy listens.
    pub proxy_port: Option<u16>,
    /// Whether DNS and proxy of the gateways are open: not without a daemon behind them.
    pub serving: bool,
    /// Networks by bridge name.
    pub networks: BTreeMap<String, NetworkPlan>,
    /// Ports by the name of the host-side veth.
    pub ports: BTreeMap<String, PortPlan>,
}

/// IP protocol numbers.
const ICMP: u8 = 1;
const IGMP: u8 = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;

impl Plan {
    /// The closed plan: everything of the managed bridges is dropped.
    #[must_use]
    pub fn closed(bridge: &str, dns_port: u16, proxy_port: Option<u16>) -> Self {
        Plan {
            bridge: bridge.to_owned(),
            dns_port,
            proxy_port,
            serving: false,
            networks: BTreeMap::new(),
            ports: BTreeMap::new(),
        }
    }

    /// True when the policy covers a bridge of this name.
    #[must_use]
    pub fn covers(&self, bridge: &str) -> bool {
        bridge == self.bridge || bridge.starts_with(BRIDGE_PREFIX)
    }

    /// The tables that this plan asks for.
    pub(super) fn tables(&self) -> [Table; 4] {
        [self.inet(), plan_ports::arp_table(self), plan_ports::bridge_table(self), plan_ports::netdev_table(self)]
    }

    /// The elements of the set of gateways.
    pub(super) fn gateway_elements(bridge: &str, network: &NetworkPlan) -> Vec<Element> {
        let mut key = ex::ifname(bridge).to_vec();
        key.extend(network.gateway.octets());
        vec![Element::plain(&key)]
    }

    /// The elements of the set of subnets: an interval and its end.
    pub(super) fn subnet_elements(network: &NetworkPlan) -> Vec<Element> {
        let first = Element::plain(&network.subnet.address().octets());
        let end = network.subnet.last().to_bits().wrapping_add(1).to_be_bytes();
        vec![first, Element { interval_end: true, ..Element::plain(&end) }]
    }

    /// The set of managed subnets, for any family.
    pub(super) fn subnets(&self) -> Set {
        Set {
            name: SUBNETS,
            key: &[KeyPart::Ipv4],
            flags: SET_INTERVAL,
            counted: false,
            elements: self.networks.values().flat_map(Self::subnet_elements).collect(),
        }
    }

    /// One rule for the default bridge, one for all others, which also holds before they exist.
    pub(super) fn for_bridges(&self, key: Meta, comment: &'static CStr, chain: &CStr) -> [Rule; 2] {
        [
            rule(comment, [ex::interface(key, &self.bridge)], &Verdict::Goto(chain)),
            rule(comment, [ex::interface_prefix(key, BRIDGE_PREFIX)], &Verdict::Goto(chain)),
        ]
    }

    fn inet(&self) -> Table {
        let gateways = if self.serving {
            self.networks.iter().flat_map(|(bridge, network)| Self::gateway_elements(bridge, network)).collect()
        } else {
            Vec::new()
        };
        let sets = vec![
            Set {
                name: DIRECT4,
                key: &[KeyPart::Ipv4, KeyPart::Ipv4, KeyPart::Protocol, KeyPart::Port],
                flags: SET_TIMEOUT | SET_CONCAT,
                counted: true,
                elements: Vec::new(),
            },
            Set {
                name: GATEWAYS,
                key: &[KeyPart::Interface, KeyPart::Ipv4],
                flags: SET_CONCAT,
                counted: false,
                elements: gateways,
            },
            self.subnets(),
        ];
        let mut chains: Vec<Chain> = [
            Reason::Ipv6,
            Reason::Unvetted,
            Reason::Misplaced,
            Reason::Neighbour,
            Reason::NoGrant,
            Reason::Inbound,
            Reason::HostService,
            Reason::FromHost,
        ]
        .map(Reason::chain)
        .into();
        chains.extend(self.vetting_chains());
        chains.extend(self.forward_chains());
        chains.extend(self.host_chains());
        chains.extend(self.nat_chains());
        Table { family: Family::Inet, sets, chains }
    }

    /// Who sent it. Before fragments are put together (priority -400), so that nobody adds to another's packet.
    fn vetting_chains(&self) -> [Chain; 2] {
        let from_bridge = Chain {
            name: c"from_bridge".to_owned(),
            base: None,
            rules: vec![
                Reason::Ipv6.refuse(c"no IPv6 in any form", [ex::meta(Meta::NfProto, &[10])]),
                rule(
                    c"its port's filter knows the sender",
                    [ex::meta(Meta::Mark, &VETTED_MARK.to_ne_bytes())],
                    &Verdict::Accept,
                ),
                Reason::Unvetted.refuse(c"no filter, no traffic", []),
            ],
        };
        let mut rules: Vec<Rule> = self.for_bridges(Meta::IifName, c"from a container", &from_bridge.name).into();
        rules.push(rule(c"the host's own traffic", [ex::interface(Meta::IifName, "lo")], &Verdict::Accept));
        rules.push(Reason::Misplaced.refuse(
            c"a managed address that arrives elsewhere",
            [ex::ipv4(), ex::address_in(Header::Network, 12, SUBNETS)],
        ));
        let base = Base { nat: false, hook: nftnl::Hook::PreRouting, priority: -450, drop: false, device: None };
        [from_bridge, Chain { name: c"prerouting".to_owned(), base: Some(base), rules }]
    }

    /// What is routed: out by grant only, in only as an answer.
    fn forward_chains(&self) -> [Chain; 3] {
        let leaving = Chain {
            name: c"leaving".to_owned(),
            base: None,
            rules: [
                // Before the grants: no grant opens a way to another container.
                vec![
                    Reason::Neighbour.refuse(c"to a container", [ex::interface(Meta::OifName, &self.bridge)]),
                    Reason::Neighbour.refuse(c"to a container", [ex::interface_prefix(Meta::OifName, BRIDGE_PREFIX)]),
                    Reason::NoGrant.refuse(c"not part of any flow", [ex::ct_state(State::Invalid)]),
                ],
                vec![
                    // Looked up for every packet, not only the first: the element counts the flow's packets.
                    rule(
                        c"a granted flow",
                        [ex::ipv4(), ex::ct_direction(false), ex::flow_in(DIRECT4), ex::set_ct_mark(FLOW_MARK)],
                        &Verdict::Accept,
                    ),
                    rule(
                        c"a flow that outlives its grant",
                        [
                            ex::ct_direction(false),
                            ex::ct_state(State::Established),
                            ex::ct_mark(FLOW_MARK),
                            ex::counter(),
                        ],
                        &Verdict::Accept,
                    ),
                    rule(
                        c"its ICMP errors",
                        [ex::l4proto(ICMP), ex::ct_state(State::Related), ex::ct_mark(FLOW_MARK), ex::counter()],
                        &Verdict::Accept,
                    ),
                    Reason::NoGrant.refuse(c"all else", []),
                ],
            ]
            .concat(),
        };
        let entering = Chain {
            name: c"entering".to_owned(),
            base: None,
            rules: vec![
                rule(
                    c"answers of granted flows",
                    [ex::ct_direction(true), ex::ct_state(State::Established), ex::ct_mark(FLOW_MARK), ex::counter()],
                    &Verdict::Accept,
                ),
                rule(
                    c"ICMP errors of granted flows (path MTU)",
                    [ex::l4proto(ICMP), ex::ct_state(State::Related), ex::ct_mark(FLOW_MARK), ex::counter()],
                    &Verdict::Accept,
                ),
                Reason::Inbound.refuse(c"all else", []),
            ],
        };
        // `leaving` first: container to container belongs to it.
        let mut rules: Vec<Rule> = self.for_bridges(Meta::IifName, c"from a container", &leaving.name).into();
        rules.extend(self.for_bridges(Meta::OifName, c"to a container", &entering.name));
        rules.push(rule(c"other interfaces are not ours", [], &Verdict::Accept));
        let base = Base { nat: false, hook: nftnl::Hook::Forward, priority: 0, drop: true, device: None };
        [leaving, entering, Chain { name: c"forward".to_owned(), base: Some(base), rules }]
    }

    /// The host itself: DNS, proxy and ping on the gateway of the container's own bridge.
    fn host_chains(&self) -> [Chain; 4] {
        let gateway = |matches: Expressions| [ex::ipv4(), ex::gateway_in(GATEWAYS), matches, ex::counter()];
        let mut rules = vec![
            rule(c"DNS", gateway(ex::dport(UDP, self.dns_port)), &Verdict::Accept),
            rule(c"DNS over TCP", gateway(ex::dport(TCP, self.dns_port)), &Verdict::Accept),
        ];
        if let Some(port) = self.proxy_port {
            rules.push(rule(c"proxy", gateway(ex::dport(TCP, port)), &Verdict::Accept));
        }
        let echo = [ex::l4proto(ICMP), ex::payload(Header::Transport, 0, &[8])].concat();
        rules.push(rule(c"ping", gateway(echo), &Verdict::Accept));
        let errors = [ex::l4proto(ICMP), ex::ct_state(State::Related)].concat();
        rules.push(rule(c"ICMP errors of these", gateway(errors), &Verdict::Accept));
        rules.push(Reason::HostService.refuse(c"every other port, address and protocol", []));
        let to_host = Chain { name: c"to_host".to_owned(), base: None, rules };
        let from_host = Chain {
            name: c"from_host_to_container".to_owned(),
            base: None,
            rules: vec![
                // The bridge's own router solicitations and group reports are no attempt of anybody.
                rule(c"no IPv6", [ex::meta(Meta::NfProto, &[10]), ex::counter()], &Verdict::Drop),
                rule(c"no multicast", [ex::l4proto(IGMP), ex::counter()], &Verdict::Drop),
                rule(
                    c"answers of DNS, proxy and ping",
                    [ex::ct_direction(true), ex::ct_state(State::Established)],
                    &Verdict::Accept,
                ),
                rule(
                    c"ICMP errors of containers' flows",
                    [ex::l4proto(ICMP), ex::ct_state(State::Related)],
                    &Verdict::Accept,
                ),
                Reason::FromHost.refuse(c"all else", []),
            ],
        };
        let base = |hook| Base { nat: false, hook, priority: 0, drop: false, device: None };
        let input = Chain {
            name: c"input".to_owned(),
            base: Some(base(nftnl::Hook::In)),
            rules: self.for_bridges(Meta::IifName, c"from a container", &to_host.name).into(),
        };
        let output = Chain {
            name: c"output".to_owned(),
            base: Some(base(nftnl::Hook::Out)),
            rules: self.for_bridges(Meta::OifName, c"to a container", &from_host.name).into(),
        };
        [to_host, from_host, input, output]
    }

    /// Containers know port 53 only; granted flows leave with the host's address.
    fn nat_chains(&self) -> [Chain; 2] {
        /// The port a resolver asks.
        const DNS: u16 = 53;
        let redirect = |protocol| {
            let mut expressions = [ex::ipv4(), ex::gateway_in(GATEWAYS), ex::dport(protocol, DNS)].concat();
            expressions.extend(ex::redirect(self.dns_port));
            Rule { comment: c"DNS listens elsewhere", expressions }
        };
        let rules = if self.dns_port == DNS { Vec::new() } else { vec![redirect(UDP), redirect(TCP)] };
        let masquerade = Rule {
            comment: c"granted flows only",
            expressions: [ex::ipv4(), ex::ct_mark(FLOW_MARK), ex::masquerade()].concat(),
        };
        let base = |hook, priority| Base { nat: true, hook, priority, drop: false, device: None };
        [
            Chain {
                name: c"nat_prerouting".to_owned(),
                // Before Docker's own (-100): the first that decides wins.
                base: Some(base(nftnl::Hook::PreRouting, -101)),
                rules,
            },
            Chain {
                name: c"nat_postrouting".to_owned(),
                base: Some(base(nftnl::Hook::PostRouting, 99)),
                rules: vec![masquerade],
            },
        ]
    }
}
