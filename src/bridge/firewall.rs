//! The tables in the kernel: put in place, changed and checked.
//!
//! Owns: the nf_tables socket and the transactions. Does not own: when to do what (`run.rs`), or links.

use nix::sys::socket::SockProtocol;

use super::batch::Transaction;
use super::plan::{DIRECT4, GATEWAYS, NetworkPlan, PORTS, Plan, PortPlan, SUBNETS};
use super::plan_ports::{port_chain, port_chain_name, port_element};
use super::readback::{self, FlowKey, FoundFlow, Reading};
use super::socket::{KernelError, Socket};
use super::tables::{Element, Family};

/// The first Linux that gives an element another timeout when it is added again; before, adding it changes nothing.
const RETIMES_SINCE: (u32, u32) = (6, 12);

/// The nf_tables side of the kernel.
pub(super) struct Firewall {
    socket: Socket,
    /// Whether the kernel takes another timeout for an element that exists.
    retimes: bool,
}

impl Firewall {
    /// Opens the socket.
    pub fn open() -> Result<Self, KernelError> {
        // A release that cannot be read counts as an old one: what is done for those is right on every kernel.
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Firewall { socket: Socket::requests(SockProtocol::NetlinkNetFilter)?, retimes: retimes(&release) })
    }

    /// The port id that the kernel's notifications carry for our own changes.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Puts all of `plan` in place in one transaction, with the flows granted and the milliseconds they have left.
    pub fn install(&mut self, plan: &Plan, flows: &[(FlowKey, u64)]) -> Result<(), KernelError> {
        let mut transaction = Transaction::new();
        for table in plan.tables() {
            transaction.replace(&table);
        }
        transaction.add_elements(Family::Inet, DIRECT4, &flow_elements(flows));
        self.apply("put the nftables tables in place", transaction)
    }

    /// Puts the closed tables in place. The ports' filters stay as they are: they only ever take away.
    pub fn close(&mut self, plan: &Plan) -> Result<(), KernelError> {
        let mut transaction = Transaction::new();
        for table in plan.tables().iter().filter(|table| table.family != Family::NetDev) {
            transaction.replace(table);
        }
        self.apply("put the closed nftables tables in place", transaction)
    }

    /// Removes the tables.
    pub fn remove(&mut self) -> Result<(), KernelError> {
        let mut transaction = Transaction::new();
        for family in [Family::Inet, Family::Arp, Family::Bridge, Family::NetDev] {
            transaction.remove(family);
        }
        self.apply("remove the nftables tables", transaction)
    }

    /// Compares the kernel's tables with `plan`.
    pub fn read(&mut self, plan: &Plan) -> Result<Reading, KernelError> {
        readback::read(&mut self.socket, plan)
    }

    /// The granted flows that the kernel has.
    pub fn flows(&mut self) -> Result<Vec<FoundFlow>, KernelError> {
        readback::flows(&mut self.socket)
    }

    /// The kernel's handle of their set.
    pub fn flows_handle(&mut self) -> Result<u64, KernelError> {
        readback::flows_handle(&mut self.socket)
    }

    /// True when a table of ours exists.
    pub fn any_table(&mut self) -> Result<bool, KernelError> {
        readback::any_table(&mut self.socket)
    }

    /// Opens DNS, proxy and ping of a network's gateway, and protects its addresses.
    pub fn add_network(&mut self, bridge: &str, network: &NetworkPlan, serving: bool) -> Result<(), KernelError> {
        let mut transaction = Transaction::new();
        for family in [Family::Inet, Family::Bridge] {
            transaction.add_elements(family, SUBNETS, &Plan::subnet_elements(network));
        }
        if serving {
            transaction.add_elements(Family::Inet, GATEWAYS, &Plan::gateway_elements(bridge, network));
        }
        self.apply("add a network to the nftables tables", transaction)
    }

    /// Undoes [`Firewall::add_network`].
    pub fn remove_network(&mut self, bridge: &str, network: &NetworkPlan, serving: bool) -> Result<(), KernelError> {
        let mut transaction = Transaction::new();
        for family in [Family::Inet, Family::Bridge] {
            transaction.delete_elements(family, SUBNETS, &Plan::subnet_elements(network));
        }
        if serving {
            transaction.delete_elements(Family::Inet, GATEWAYS, &Plan::gateway_elements(bridge, network));
        }
        self.apply("remove a network from the nftables tables", transaction)
    }

    /// Installs the identity filter of a port.
    pub fn add_port(&mut self, name: &str, port: &PortPlan) -> Result<(), KernelError> {
        let mut transaction = Transaction::new();
        transaction.add_elements(Family::Bridge, PORTS, &[port_element(name)]);
        transaction.add_chain(Family::NetDev, &port_chain(name, port));
        self.apply(&format!("install the identity filter of {name}"), transaction)
    }

    /// Removes the identity filter of a port that still exists.
    pub fn remove_port(&mut self, name: &str, port: &PortPlan) -> Result<(), KernelError> {
        let mut transaction = Transaction::new();
        transaction.delete_chain(Family::NetDev, &port_chain_name(name, port.index));
        transaction.delete_elements(Family::Bridge, PORTS, &[port_element(name)]);
        self.apply(&format!("remove the identity filter of {name}"), transaction)
    }

    /// Takes a port that is gone (its chain went with it) out of the set of ports.
    pub fn forget_port(&mut self, name: &str) -> Result<(), KernelError> {
        let mut transaction = Transaction::new();
        transaction.delete_elements(Family::Bridge, PORTS, &[port_element(name)]);
        self.apply(&format!("forget the port {name}"), transaction)
    }

    /// Closes and opens flows in one transaction, or gives those that are open another time; those to close must be there.
    pub fn change_flows(&mut self, close: &[FlowKey], open: &[(FlowKey, u64)]) -> Result<(), KernelError> {
        let mut transaction = Transaction::new();
        let closing: Vec<Element> = close.iter().map(|key| Element::plain(&key.bytes())).collect();
        transaction.delete_elements(Family::Inet, DIRECT4, &closing);
        let opening = flow_elements(open);
        if !self.retimes {
            // Made sure of, taken out and made anew: no packet sees the moment between, but its counters begin anew.
            transaction.add_elements(Family::Inet, DIRECT4, &opening);
            let plain: Vec<Element> = open.iter().map(|(key, _)| Element::plain(&key.bytes())).collect();
            transaction.delete_elements(Family::Inet, DIRECT4, &plain);
        }
        transaction.add_elements(Family::Inet, DIRECT4, &opening);
        self.apply("change the granted flows", transaction)
    }

    fn apply(&mut self, operation: &str, transaction: Transaction) -> Result<(), KernelError> {
        let finished = transaction.finish();
        self.socket.transact(operation, &finished.bytes, finished.last)
    }
}

fn flow_elements(flows: &[(FlowKey, u64)]) -> Vec<Element> {
    flows.iter().map(|(key, timeout)| Element { timeout: Some(*timeout), ..Element::plain(&key.bytes()) }).collect()
}

/// Whether the kernel of this release gives existing elements another timeout.
fn retimes(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return false };
    (major, minor) >= RETIMES_SINCE
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::super::config::BridgeConfig;
    use super::*;

    #[test]
    fn kernels_that_retime_are_known_by_their_release() {
        for (release, expected) in
            [("6.12.0-1-amd64\n", true), ("6.18.44", true), ("7.0-rc1", true), ("6.1.0-28-amd64", false), ("", false)]
        {
            assert_eq!(retimes(release), expected, "{release}");
        }
    }

    /// Needs root, as the tests of `tests/bridge_world` do.
    #[test]
    fn a_flow_that_is_open_takes_another_time_in_both_ways_of_kernels() {
        if !nix::unistd::geteuid().is_root() || unshare(CloneFlags::CLONE_NEWNET).is_err() {
            eprintln!("skipped: needs root and a network namespace of its own");
            return;
        }
        let config = BridgeConfig { bridge: "outcall0".to_owned(), dns_port: 53, proxy_port: None };
        let mut firewall = Firewall::open().unwrap();
        firewall.install(&config.closed_plan(), &[]).unwrap();
        let key = FlowKey { source: [10, 200, 0, 2].into(), destination: [9, 9, 9, 9].into(), protocol: 6, port: 443 };
        for retimes in [firewall.retimes, false] {
            firewall.retimes = retimes;
            for wanted in [600_000, 60_000, 3_600_000] {
                firewall.change_flows(&[], &[(key, wanted)]).unwrap();
                let [flow] = &firewall.flows().unwrap()[..] else { panic!("one flow") };
                let left = flow.expires_ms;
                assert!(flow.key == key && left <= wanted && left > wanted - 30_000, "{retimes} {wanted} {left}");
            }
            firewall.change_flows(&[key], &[]).unwrap();
            assert!(firewall.flows().unwrap().is_empty());
        }
    }
}
