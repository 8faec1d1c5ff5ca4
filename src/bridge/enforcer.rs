//! The kernel's side as a whole: bridges, tables, filters and grants, kept as planned.
//!
//! Owns: what was planned, what was made, and the order of changes: the tables always cover a bridge before it is
//! up, and a bridge is down before its tables go. Does not own: channels and the event loop (`run.rs`); identities
//! are in `identity.rs`, grants in `flows.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use tracing::{info, warn};

use crate::api::BridgeStatus;
use crate::daemon::Snapshot;
use crate::docker_manager::Ipv4Net;
use crate::network;

use super::StopMode;
use super::config::{BridgeConfig, StartError};
use super::conntrack::Conntrack;
use super::firewall::Firewall;
use super::grants::GrantBook;
use super::links::{Link, Links};
use super::operator::OperatorGrant;
use super::plan::{NetworkPlan, Plan};
use super::ports::Claim;
use super::socket::KernelError;

/// The log target of this part.
pub(super) const LOG: &str = "bridge";

/// All of it.
pub(super) struct Enforcer {
    pub firewall: Firewall,
    pub links: Links,
    pub conntrack: Conntrack,
    pub plan: Plan,
    /// Bridges away, tables away: `POST /bridge/down`.
    pub down: bool,
    pub snapshot: Option<Arc<Snapshot>>,
    /// Ports whose owner is known, by interface index.
    pub claims: BTreeMap<u32, Claim>,
    /// On which bridge a veth was last claimed: what tells two veths of one container apart when both lost theirs.
    pub homes: BTreeMap<u32, String>,
    pub grants: GrantBook,
    /// A change of flows failed: the kernel may have some that the book does not hold.
    pub in_doubt: bool,
    /// Flows that an operator opened before the daemon was started anew, until their container is seen.
    pub awaited: Vec<OperatorGrant>,
    /// Endpoints whose veth is gone, to be told to control.
    pub gone: Vec<Claim>,
    /// Bridges that this process made.
    made: BTreeSet<String>,
    /// Whether tables of an earlier run were there at the start.
    found_tables: bool,
}

impl Enforcer {
    /// Puts the base table in place, makes or adopts the default bridge, and checks what the kernel shows.
    pub fn start(config: &BridgeConfig) -> Result<Self, StartError> {
        let mut firewall = Firewall::open()?;
        let found_tables = firewall.any_table().map_err(|error| match error.errno {
            // What nfnetlink answers for a subsystem that is not there.
            Errno::EINVAL | Errno::EOPNOTSUPP => StartError::NoNfTables(error),
            _ => StartError::Kernel(error),
        })?;
        let mut enforcer = Enforcer {
            firewall,
            links: Links::open()?,
            conntrack: Conntrack::open()?,
            plan: Plan { serving: true, ..config.closed_plan() },
            down: false,
            snapshot: None,
            claims: BTreeMap::new(),
            homes: BTreeMap::new(),
            grants: GrantBook::default(),
            in_doubt: false,
            awaited: Vec::new(),
            gone: Vec::new(),
            made: BTreeSet::new(),
            found_tables,
        };
        if let Some(other) = enforcer.named(&config.bridge)?.filter(|link| link.kind != "bridge") {
            return Err(StartError::NotABridge { name: other.name, kind: other.kind });
        }
        let started = enforcer.begin(config);
        if started.is_err() {
            // The caller reports why; what cannot be undone stays closed.
            if let Err(error) = enforcer.stop(StopMode::Undo) {
                warn!(target: LOG, "undoing the failed start: {error}");
            }
        }
        started.map(|()| enforcer)
    }

    fn begin(&mut self, config: &BridgeConfig) -> Result<(), StartError> {
        self.firewall.install(&self.plan, &[])?;
        let differences = self.firewall.read(&self.plan)?.differences;
        if !differences.is_empty() {
            return Err(StartError::Differs(differences));
        }
        // Grants of an earlier run are gone with its table; so are their flows.
        self.conntrack.end(|_| true)?;
        self.make_bridge(&config.bridge)?;
        Ok(())
    }

    /// The link called `name`.
    pub fn named(&mut self, name: &str) -> Result<Option<Link>, KernelError> {
        Ok(self.links.all()?.into_iter().find(|link| link.name == name))
    }

    /// Makes or adopts a bridge and sets it up; gives its index.
    fn make_bridge(&mut self, name: &str) -> Result<u32, KernelError> {
        let link = match self.named(name)? {
            Some(link) => link,
            None => {
                self.links.make_bridge(name)?;
                self.made.insert(name.to_owned());
                self.named(name)?.ok_or_else(|| KernelError::new(format!("find the bridge {name}"), Errno::ENODEV))?
            }
        };
        if link.kind != "bridge" {
            let operation = format!("use {name}, a {} interface, as a bridge", link.kind);
            return Err(KernelError::new(operation, Errno::EEXIST));
        }
        if let Err(error) = self.links.without_ipv6(link.index, name) {
            // A kernel without IPv6 says so here, and is right; the tables drop IPv6 in any case.
            info!(target: LOG, "{error}");
        }
        // Left to itself a bridge takes the lowest address of its ports, and another when that port leaves: the
        // containers that remain would send to an address that is gone.
        let mac = network::bridge_mac(name);
        if link.mac != mac {
            self.links.set_mac(link.index, name, mac)?;
        }
        self.links.set_up(link.index, name, true)?;
        Ok(link.index)
    }

    /// Makes (or adopts) the bridge of a network and gives it its gateway address. Idempotent.
    pub fn ensure_network(&mut self, bridge: &str, network: NetworkPlan) -> Result<(), String> {
        if self.down {
            return Err("the bridges are down; POST /api/v1/bridge/up (outcall bridge up) first".to_owned());
        }
        if !self.plan.covers(bridge) {
            return Err(format!(
                "the bridge {bridge} is not covered by the tables: its name must be {} or begin with {}",
                self.plan.bridge,
                super::plan::BRIDGE_PREFIX
            ));
        }
        self.plan_network(bridge, network).map_err(|error| error.to_string())?;
        self.place_network(bridge, network.subnet, network.gateway).map_err(|error| error.to_string())
    }

    fn plan_network(&mut self, bridge: &str, network: NetworkPlan) -> Result<(), KernelError> {
        if self.plan.networks.get(bridge) == Some(&network) {
            return Ok(());
        }
        if let Some(former) = self.plan.networks.get(bridge).copied() {
            self.firewall.remove_network(bridge, &former, self.plan.serving)?;
            self.plan.networks.remove(bridge);
        }
        self.firewall.add_network(bridge, &network, self.plan.serving)?;
        self.plan.networks.insert(bridge.to_owned(), network);
        Ok(())
    }

    fn place_network(&mut self, bridge: &str, subnet: Ipv4Net, gateway: std::net::Ipv4Addr) -> Result<(), KernelError> {
        let index = self.make_bridge(bridge)?;
        self.links.add_address(index, bridge, gateway, subnet.prefix())
    }

    /// Makes a bridge of the plan again, with its gateway address.
    pub fn restore_bridge(&mut self, bridge: &str) -> Result<(), KernelError> {
        match self.plan.networks.get(bridge).copied() {
            Some(network) => self.place_network(bridge, network.subnet, network.gateway),
            None => self.make_bridge(bridge).map(drop),
        }
    }

    /// Forgets a network, and deletes its bridge unless it is the default network's.
    pub fn remove_network(&mut self, bridge: &str) -> Result<(), String> {
        self.try_remove_network(bridge).map_err(|error| error.to_string())
    }

    fn try_remove_network(&mut self, bridge: &str) -> Result<(), KernelError> {
        if bridge != self.plan.bridge
            && self.plan.covers(bridge)
            && let Some(link) = self.named(bridge)?.filter(|link| link.kind == "bridge")
        {
            self.links.set_up(link.index, bridge, false)?;
            self.links.delete(link.index, bridge)?;
        }
        self.made.remove(bridge);
        if let Some(network) = self.plan.networks.get(bridge).copied() {
            if !self.down {
                self.firewall.remove_network(bridge, &network, self.plan.serving)?;
            }
            self.plan.networks.remove(bridge);
        }
        Ok(())
    }

    /// Works by `snapshot`: what is no longer allowed ends, networks and ports are put in place.
    pub fn take(&mut self, snapshot: &Arc<Snapshot>, now: Instant) -> Result<(), KernelError> {
        self.snapshot = Some(Arc::clone(snapshot));
        if self.down {
            return Ok(());
        }
        if self.grants.any() {
            self.rejudge(snapshot, now)?;
            self.end_orphans()?;
        }
        for network in &snapshot.directory.networks {
            let plan = NetworkPlan { subnet: network.subnet, gateway: network.gateway };
            if let Err(reason) = self.ensure_network(&network.bridge, plan) {
                warn!(target: LOG, "network {}: {reason}", network.name);
            }
        }
        self.reconcile()?;
        self.restore(now);
        Ok(())
    }

    /// The bridges that the policy covers and that exist.
    pub fn covered(&self, links: &[Link]) -> Vec<Link> {
        let ours = |link: &&Link| link.kind == "bridge" && self.plan.covers(&link.name);
        links.iter().filter(ours).cloned().collect()
    }

    /// Compares the kernel with the plan and puts back what differs; gives what differed.
    pub fn check(&mut self, now: Instant) -> Result<Vec<String>, KernelError> {
        if self.down {
            return Ok(Vec::new());
        }
        let reading = self.firewall.read(&self.plan)?;
        let mut differences = reading.differences;
        let flows = self.grants.flows(now);
        if reading.flows.iter().any(|flow| !self.grants.holds(&flow.key) && flow.expires_ms > EXPIRING_MS) {
            differences.push("set inet outcall direct4 has flows that nobody granted".to_owned());
        }
        let has = |key| reading.flows.iter().any(|flow| flow.key == key);
        if flows.iter().any(|(key, left)| *left > EXPIRING_MS && !has(*key)) {
            differences.push("set inet outcall direct4 lacks granted flows".to_owned());
        }
        if !differences.is_empty() {
            self.firewall.install(&self.plan, &flows)?;
            // What began through somebody else's opening would run on as a flow that outlives its grant.
            self.conntrack.end(|flow| !self.grants.may_run(flow))?;
        }
        Ok(differences)
    }

    /// What `GET /bridge` answers, asked of the kernel.
    pub fn status(&mut self) -> BridgeStatus {
        let name = self.plan.bridge.clone();
        let link = self.named(&name).ok().flatten().filter(|link| link.kind == "bridge" && link.up);
        let same = !self.down && self.firewall.read(&self.plan).is_ok_and(|reading| reading.differences.is_empty());
        BridgeStatus {
            name,
            up: link.is_some(),
            index: link.map(|link| link.index),
            nftables_active: same,
            nftables: if same { "active" } else { "inactive" }.to_owned(),
        }
    }

    /// `POST /bridge/up`: tables first, then bridges, then the containers' veths.
    pub fn up(&mut self, now: Instant) -> Result<(), KernelError> {
        if self.down {
            self.firewall.install(&self.plan, &[])?;
            self.down = false;
        }
        self.make_bridge(&self.plan.bridge.clone())?;
        for (bridge, network) in self.plan.networks.clone() {
            self.place_network(&bridge, network.subnet, network.gateway)?;
        }
        match self.snapshot.clone() {
            Some(snapshot) => self.take(&snapshot, now),
            None => Ok(()),
        }
    }

    /// `POST /bridge/down`: the containers' veths down, bridges away, then the tables. A veth that stays up without a
    /// bridge would be an interface of the host like any other, and the host would forward what it sends.
    pub fn take_down(&mut self) -> Result<(), KernelError> {
        self.forget_awaited();
        self.grants.revoke_all();
        self.down = true;
        self.sweep()?;
        self.firewall.remove()?;
        self.claims.clear();
        self.plan.ports.clear();
        self.conntrack.end(|_| true)?;
        Ok(())
    }

    /// While down: no covered bridge stays, whoever makes it.
    pub fn sweep(&mut self) -> Result<(), KernelError> {
        let links = self.links.all()?;
        for bridge in self.covered(&links) {
            for port in links.iter().filter(|link| link.master == Some(bridge.index)) {
                tolerate_gone(self.links.set_up(port.index, &port.name, false))?;
            }
            tolerate_gone(self.links.set_up(bridge.index, &bridge.name, false))?;
            tolerate_gone(self.links.delete(bridge.index, &bridge.name))?;
        }
        Ok(())
    }

    /// The end of this thread's work.
    pub fn stop(&mut self, mode: StopMode) -> Result<(), KernelError> {
        self.grants.revoke_all();
        match mode {
            StopMode::Keep => self.stay_closed()?,
            StopMode::Teardown => {
                let links = self.links.all()?;
                for bridge in self.covered(&links) {
                    tolerate_gone(self.links.set_up(bridge.index, &bridge.name, false))?;
                }
                self.firewall.remove()?;
                self.remove_made()?;
            }
            StopMode::Undo => {
                self.remove_made()?;
                let links = self.links.all()?;
                if self.found_tables || !self.covered(&links).is_empty() {
                    self.stay_closed()?;
                } else {
                    self.firewall.remove()?;
                }
            }
        }
        self.conntrack.end(|_| true)?;
        Ok(())
    }

    /// The base table: filters stay, and nothing is open.
    fn stay_closed(&mut self) -> Result<(), KernelError> {
        self.plan.serving = false;
        match self.firewall.install(&self.plan, &[]) {
            // A port vanished this moment, and its filter cannot be made again: all ports stay closed.
            Err(error) if error.errno == Errno::ENOENT => {
                self.plan.ports.clear();
                self.firewall.install(&self.plan, &[])
            }
            other => other,
        }
    }

    /// Removes the bridges that this process made and that have no port.
    fn remove_made(&mut self) -> Result<(), KernelError> {
        let links = self.links.all()?;
        for bridge in self.covered(&links).iter().filter(|bridge| self.made.contains(&bridge.name)) {
            if links.iter().all(|link| link.master != Some(bridge.index)) {
                tolerate_gone(self.links.set_up(bridge.index, &bridge.name, false))?;
                tolerate_gone(self.links.delete(bridge.index, &bridge.name))?;
            }
        }
        Ok(())
    }
}

/// Flows with less than this left are not compared: they come and go between two readings. Milliseconds.
const EXPIRING_MS: u64 = 1000;

/// A link that went by itself is where we wanted it.
pub(super) fn tolerate_gone(result: Result<(), KernelError>) -> Result<(), KernelError> {
    match result {
        Err(error) if matches!(error.errno, Errno::ENODEV | Errno::ENOENT) => Ok(()),
        other => other,
    }
}
