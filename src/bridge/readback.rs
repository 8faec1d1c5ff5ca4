//! What the kernel has, compared with what was planned.
//!
//! Owns: the dumps of nf_tables and the comparison. The plan's own messages are the yardstick: each attribute that
//! libnftnl wrote must come back from the kernel with the same value, in the same order, and inside a rule nothing
//! else may. Does not own: what to do about a difference.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::batch::Transaction;
use super::plan::{DIRECT4, Plan};
use super::socket::{Dumped, KernelError, Socket};
use super::tables::Element;
use super::wire::{self, Attribute, Attributes, F_DUMP, Message, Request};

/// `NFNL_SUBSYS_NFTABLES`
pub(super) const SUBSYSTEM: u8 = 10;
const NEW_TABLE: u8 = 0;
const GET_TABLE: u8 = 1;
const NEW_CHAIN: u8 = 3;
const GET_CHAIN: u8 = 4;
const NEW_RULE: u8 = 6;
const GET_RULE: u8 = 7;
const NEW_SET: u8 = 9;
const GET_SET: u8 = 10;
const NEW_ELEMENT: u8 = 12;
const GET_ELEMENT: u8 = 13;
pub(super) const GET_GENERATION: u8 = 16;
/// Differences reported at most: enough to see what happened.
const REPORTED: usize = 8;
/// Readings of a changing ruleset before that counts as an error.
const ATTEMPTS: u32 = 16;

/// A granted flow as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FoundFlow {
    pub key: FlowKey,
    /// Milliseconds until it expires; `u64::MAX`: never.
    pub expires_ms: u64,
    pub packets: u64,
    pub bytes: u64,
}

/// The key of a granted flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FlowKey {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    pub port: u16,
}

impl FlowKey {
    /// The key as the set holds it: each part in registers of its own.
    pub fn bytes(&self) -> [u8; 16] {
        let mut key = [0; 16];
        key[0..4].copy_from_slice(&self.source.octets());
        key[4..8].copy_from_slice(&self.destination.octets());
        key[8] = self.protocol;
        key[12..14].copy_from_slice(&self.port.to_be_bytes());
        key
    }

    fn parse(key: &[u8]) -> Option<Self> {
        let key: &[u8; 16] = key.try_into().ok()?;
        let address = |at: usize| Ipv4Addr::new(key[at], key[at + 1], key[at + 2], key[at + 3]);
        let port = u16::from_be_bytes([key[12], key[13]]);
        Some(FlowKey { source: address(0), destination: address(4), protocol: key[8], port })
    }
}

/// The outcome of a comparison.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    /// What differs, in words; empty when the kernel does what was planned.
    pub differences: Vec<String>,
    /// The granted flows that the kernel has.
    pub flows: Vec<FoundFlow>,
}

/// Objects of our tables, by family, kind and name.
#[derive(Default)]
struct Objects<'a> {
    tables: BTreeMap<u8, Attributes<'a>>,
    chains: BTreeMap<(u8, String), Attributes<'a>>,
    rules: BTreeMap<(u8, String), Vec<Attributes<'a>>>,
    sets: BTreeMap<(u8, String), Attributes<'a>>,
    elements: BTreeMap<(u8, String), Vec<Attributes<'a>>>,
}

impl<'a> Objects<'a> {
    fn add(&mut self, message: &Message<'a>) {
        if message.kind >> 8 != u16::from(SUBSYSTEM) {
            return;
        }
        let attributes = message.netfilter_attributes();
        let family = message.netfilter_family();
        // Every object names its table in its first attribute, a table itself too.
        if attributes.find(1).is_none_or(|table| table.text() != "outcall") {
            return;
        }
        let name = |kind| (family, attributes.find(kind).map(|name| name.text().to_owned()).unwrap_or_default());
        match (message.kind & 0xff) as u8 {
            NEW_TABLE => drop(self.tables.insert(family, attributes)),
            NEW_CHAIN => drop(self.chains.insert(name(3), attributes)),
            NEW_RULE => self.rules.entry(name(2)).or_default().push(attributes),
            NEW_SET => drop(self.sets.insert(name(2), attributes)),
            NEW_ELEMENT => {
                let elements = attributes.find(3).map(|list| list.inner());
                self.elements
                    .entry(name(2))
                    .or_default()
                    .extend(elements.into_iter().flatten().map(|element| element.inner()));
            }
            _ => {}
        }
    }
}

/// Reads the kernel's tables and compares them with `plan`.
pub(super) fn read(socket: &mut Socket, plan: &Plan) -> Result<Reading, KernelError> {
    let mut transaction = Transaction::new();
    for table in plan.tables() {
        transaction.replace(&table);
    }
    let wanted_bytes = transaction.finish().bytes;
    let mut wanted = Objects::default();
    wire::messages(&wanted_bytes).for_each(|message| wanted.add(&message));
    let dumped = dump_consistently(socket)?;
    let mut found = Objects::default();
    dumped.iter().for_each(|answer| found.add(&answer.message()));
    Ok(compare(&wanted, &found))
}

/// True when one of our tables exists in any family.
pub(super) fn any_table(socket: &mut Socket) -> Result<bool, KernelError> {
    let tables = socket.dump("list the nftables tables", || get(GET_TABLE))?;
    Ok(tables
        .iter()
        .any(|table| table.message().netfilter_attributes().find(1).is_some_and(|name| name.text() == "outcall")))
}

/// The granted flows that the kernel has.
pub(super) fn flows(socket: &mut Socket) -> Result<Vec<FoundFlow>, KernelError> {
    let dumped = socket.dump("list the granted flows", || {
        let family = super::tables::Family::Inet as u8;
        Request::netfilter(SUBSYSTEM, GET_ELEMENT, F_DUMP, family, 0).text(1, "outcall").text(2, "direct4")
    })?;
    Ok(dumped
        .iter()
        .filter_map(|answer| answer.message().netfilter_attributes().find(3))
        .flat_map(|list| list.inner())
        .filter_map(|element| found_flow(element.inner()))
        .collect())
}

/// The kernel's handle of the set of granted flows.
pub(super) fn flows_handle(socket: &mut Socket) -> Result<u64, KernelError> {
    /// `NFTA_SET_HANDLE`
    const HANDLE: u16 = 16;
    let family = super::tables::Family::Inet as u8;
    let sets = socket
        .dump("list the sets", || Request::netfilter(SUBSYSTEM, GET_SET, F_DUMP, family, 0).text(1, "outcall"))?;
    let handle = sets.iter().find_map(|set| {
        let message = set.message();
        let attributes = message.netfilter_attributes();
        let ours = attributes.find(2)?.text().as_bytes() == DIRECT4.to_bytes();
        if ours { attributes.find(HANDLE)?.number() } else { None }
    });
    Ok(handle.unwrap_or(0))
}

fn get(kind: u8) -> Request {
    Request::netfilter(SUBSYSTEM, kind, F_DUMP, 0, 0)
}

/// The generation of the ruleset, which every transaction increases.
fn generation(socket: &mut Socket) -> Result<Option<u64>, KernelError> {
    let request = Request::netfilter(SUBSYSTEM, GET_GENERATION, 0, 0, 0);
    let answer = socket.ask("ask for the nftables generation", request)?;
    Ok(answer.message().netfilter_attributes().find(1).and_then(|id| id.number()))
}

/// Several dumps of one and the same generation.
fn dump_consistently(socket: &mut Socket) -> Result<Vec<Dumped>, KernelError> {
    for _ in 0..ATTEMPTS {
        let before = generation(socket)?;
        let mut all = Vec::new();
        for kind in [GET_TABLE, GET_CHAIN, GET_RULE, GET_SET] {
            all.extend(socket.dump("list the nftables rules", || get(kind))?);
        }
        let sets: Vec<(u8, String)> = all
            .iter()
            .filter(|answer| answer.kind & 0xff == u16::from(NEW_SET))
            .filter_map(|answer| {
                let message = answer.message();
                let attributes = message.netfilter_attributes();
                let ours = attributes.find(1)?.text() == "outcall";
                let name = attributes.find(2)?.text().to_owned();
                ours.then_some((message.netfilter_family(), name))
            })
            .collect();
        for (family, set) in sets {
            let dumped = socket.dump("list the elements of a set", || {
                Request::netfilter(SUBSYSTEM, GET_ELEMENT, F_DUMP, family, 0).text(1, "outcall").text(2, &set)
            });
            match dumped {
                Ok(elements) => all.extend(elements),
                // Gone since it was listed: the generation below has changed too.
                Err(error) if error.errno == nix::errno::Errno::ENOENT => {}
                Err(error) => return Err(error),
            }
        }
        if generation(socket)? == before {
            return Ok(all);
        }
    }
    Err(KernelError::new("read the nftables rules, which keep changing", nix::errno::Errno::EAGAIN))
}

fn compare(wanted: &Objects<'_>, found: &Objects<'_>) -> Reading {
    let mut reading = Reading::default();
    let mut differs = |what: String| {
        if reading.differences.len() < REPORTED {
            reading.differences.push(what);
        }
    };
    for (family, table) in &wanted.tables {
        match found.tables.get(family) {
            Some(other) if covers(*table, *other, true) => {}
            Some(_) => differs(format!("table {} outcall has other flags", family_name(*family))),
            None => differs(format!("table {} outcall is missing", family_name(*family))),
        }
    }
    named(&wanted.chains, &found.chains, "chain", &mut differs);
    named(&wanted.sets, &found.sets, "set", &mut differs);
    for chain in wanted.rules.keys().chain(found.rules.keys()).collect::<BTreeSet<_>>() {
        let none = Vec::new();
        let (wanted, found) = (wanted.rules.get(chain).unwrap_or(&none), found.rules.get(chain).unwrap_or(&none));
        let same = wanted.len() == found.len()
            && wanted.iter().zip(found).all(|(wanted, found)| covers(*wanted, *found, true));
        if !same {
            let (count, instead) = (found.len(), wanted.len());
            differs(format!("{}: {count} rules instead of the planned {instead}, or other ones", path(chain)));
        }
    }
    for set in wanted.sets.keys() {
        let none = Vec::new();
        let found = found.elements.get(set).unwrap_or(&none);
        if set.1.as_bytes() == DIRECT4.to_bytes() {
            reading.flows = found.iter().filter_map(|element| found_flow(*element)).collect();
            continue;
        }
        let keys = |elements: &Vec<Attributes<'_>>| -> BTreeSet<Element> {
            elements.iter().filter_map(|element| element_key(*element)).collect()
        };
        if keys(wanted.elements.get(set).unwrap_or(&none)) != keys(found) {
            differs(format!("{}: other elements", path(set)));
        }
    }
    reading
}

fn named(
    wanted: &BTreeMap<(u8, String), Attributes<'_>>,
    found: &BTreeMap<(u8, String), Attributes<'_>>,
    kind: &str,
    differs: &mut impl FnMut(String),
) {
    for (name, object) in wanted {
        match found.get(name) {
            Some(other) if covers(*object, *other, true) => {}
            Some(_) => differs(format!("{kind} {} is defined otherwise", path(name))),
            None => differs(format!("{kind} {} is missing", path(name))),
        }
    }
    for name in found.keys().filter(|name| !wanted.contains_key(*name)) {
        differs(format!("{kind} {} is not ours", path(name)));
    }
}

/// Whether `found` says what `wanted` says. `open`: the kernel may add attributes (handles, use counts); inside an
/// expression it may add only zeroes (defaults spelled out).
fn covers(wanted: Attributes<'_>, found: Attributes<'_>, open: bool) -> bool {
    let mut left: Vec<Attribute<'_>> = found.collect();
    // A counter's numbers are no policy.
    if is_counter(found) {
        return is_counter(wanted);
    }
    for attribute in wanted {
        // Flags that are all clear are not dumped.
        let left_out = NOT_DUMPED.contains(&attribute.kind) || attribute.value.iter().all(|byte| *byte == 0);
        if open && left_out && left.iter().all(|other| other.kind != attribute.kind) {
            continue;
        }
        // The first of its type: lists keep their order.
        let Some(at) = left.iter().position(|other| other.kind == attribute.kind) else { return false };
        let other = left.remove(at);
        let same = if attribute.nested {
            covers(attribute.inner(), other.inner(), open && attribute.kind == CHAIN_HOOK)
        } else {
            attribute.value == other.value
        };
        if !same {
            return false;
        }
    }
    open || left.iter().all(|extra| extra.value.iter().all(|byte| *byte == 0))
}

/// `NFTA_SET_ID`, which exists only within a transaction.
const NOT_DUMPED: [u16; 1] = [10];
/// `NFTA_CHAIN_HOOK`: the kernel lists the device a second time.
const CHAIN_HOOK: u16 = 4;

fn is_counter(expression: Attributes<'_>) -> bool {
    expression.find(1).is_some_and(|name| name.value == b"counter\0")
}

fn element_key(element: Attributes<'_>) -> Option<Element> {
    let key = element.find(1)?.inner().find(1)?.value.to_vec();
    let interval_end = element.find(3).and_then(|flags| flags.number()).is_some_and(|flags| flags & 1 != 0);
    Some(Element { key, interval_end, timeout: None })
}

fn found_flow(element: Attributes<'_>) -> Option<FoundFlow> {
    let key = FlowKey::parse(&element_key(element)?.key)?;
    let number = |attribute: Option<Attribute<'_>>| attribute.and_then(|value| value.number()).unwrap_or(0);
    let counter = element.find(7).and_then(|expression| expression.inner().find(2));
    Some(FoundFlow {
        key,
        // Ours all end; one without an end is somebody else's and stays for ever.
        expires_ms: element.find(5).map_or(u64::MAX, |left| number(Some(left))),
        bytes: number(counter.and_then(|counter| counter.inner().find(1))),
        packets: number(counter.and_then(|counter| counter.inner().find(2))),
    })
}

fn family_name(family: u8) -> &'static str {
    match family {
        1 => "inet",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        _ => "other",
    }
}

fn path((family, name): &(u8, String)) -> String {
    format!("{} outcall {name}", family_name(*family))
}

#[cfg(test)]
mod tests {
    use super::super::plan::{NetworkPlan, PortPlan};
    use super::super::plan_ports;
    use super::super::reason::Reason;
    use super::super::tables::{Family, Table};
    use super::*;

    fn plan() -> Plan {
        let mut plan = Plan { serving: true, ..Plan::closed("outcall0", 5353, Some(8080)) };
        let subnet = "10.200.0.0/24".parse().unwrap();
        let network = NetworkPlan { subnet, gateway: Ipv4Addr::new(10, 200, 0, 1) };
        plan.networks.insert("outcall0".to_owned(), network);
        let port = PortPlan { index: 7, mac: [2, 0, 0, 0, 0, 2], address: Ipv4Addr::new(10, 200, 0, 2) };
        plan.ports.insert("vethA".to_owned(), port);
        plan
    }

    fn messages(plan: &Plan) -> Vec<u8> {
        let mut transaction = Transaction::new();
        plan.tables().iter().for_each(|table| transaction.replace(table));
        transaction.finish().bytes
    }

    fn differences(wanted: &Plan, found: &[u8]) -> Vec<String> {
        let wanted = messages(wanted);
        let (mut one, mut other) = (Objects::default(), Objects::default());
        wire::messages(&wanted).for_each(|message| one.add(&message));
        wire::messages(found).for_each(|message| other.add(&message));
        compare(&one, &other).differences
    }

    #[test]
    fn a_plan_equals_itself_and_no_other() {
        let plan = plan();
        assert_eq!(differences(&plan, &messages(&plan)), [""; 0]);
        let edits: [fn(&mut Plan); 7] = [
            |plan| plan.bridge = "outcall1".to_owned(),
            |plan| plan.dns_port = 53,
            |plan| plan.proxy_port = None,
            |plan| plan.serving = false,
            |plan| plan.networks.clear(),
            |plan| plan.ports.clear(),
            |plan| plan.ports.get_mut("vethA").unwrap().mac[5] = 3,
        ];
        for (number, edit) in edits.iter().enumerate() {
            let mut other = plan.clone();
            edit(&mut other);
            assert!(!differences(&plan, &messages(&other)).is_empty(), "edit {number}");
            assert!(!differences(&other, &messages(&plan)).is_empty(), "edit {number}, reversed");
        }
    }

    #[test]
    fn rules_in_another_order_or_number_differ() {
        let plan = plan();
        let tamper = |edit: &dyn Fn(&mut Table)| {
            let mut transaction = Transaction::new();
            for mut table in plan.tables() {
                edit(&mut table);
                transaction.replace(&table);
            }
            differences(&plan, &transaction.finish().bytes)
        };
        assert!(tamper(&|_| ()).is_empty());
        assert!(!tamper(&|table| table.chains.iter_mut().for_each(|chain| chain.rules.reverse())).is_empty());
        assert!(!tamper(&|table| table.chains.iter_mut().for_each(|chain| drop(chain.rules.pop()))).is_empty());
        assert!(!tamper(&|table| drop(table.chains.pop())).is_empty());
        let stranger =
            || plan_ports::port_chain("vethX", &PortPlan { index: 9, mac: [2; 6], address: Ipv4Addr::LOCALHOST });
        let netdev = |table: &mut Table| {
            if table.family == Family::NetDev {
                table.chains.push(stranger());
            }
        };
        assert!(!tamper(&netdev).is_empty());
        assert!(differences(&plan, &[]).len() >= 4);
        assert!(Reason::ALL.iter().all(|reason| !reason.code().is_empty()));
    }

    #[test]
    fn a_flow_key_survives_its_bytes() {
        let key = FlowKey {
            source: Ipv4Addr::new(10, 200, 0, 2),
            destination: Ipv4Addr::new(1, 2, 3, 4),
            protocol: 6,
            port: 443,
        };
        assert_eq!(FlowKey::parse(&key.bytes()), Some(key));
        assert_eq!(FlowKey::parse(&key.bytes()[1..]), None);
    }
}
