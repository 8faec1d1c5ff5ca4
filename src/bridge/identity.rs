//! Identities: the filter of each container's port is in place before its process sends, and gone with it.
//!
//! Owns: the reconciliation of endpoints with ports. Does not own: how a port is recognised (`ports.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tracing::{debug, info, warn};

use crate::docker_manager::{Endpoint, init_pid};

use super::enforcer::{Enforcer, LOG, tolerate_gone};
use super::links::Link;
use super::plan::PortPlan;
use super::ports::{self, Claim, Located};
use super::socket::KernelError;

impl Enforcer {
    /// Brings ports in line with the links that exist and the endpoints that Docker knows.
    pub fn reconcile(&mut self) -> Result<(), KernelError> {
        if self.down {
            return self.sweep();
        }
        let mut links = self.links.all()?;
        if self.make_missing_bridges(&links)? {
            links = self.links.all()?;
        }
        let bridges: BTreeMap<String, u32> =
            self.covered(&links).into_iter().map(|bridge| (bridge.name, bridge.index)).collect();
        self.isolate(&links, &bridges);
        self.withdraw_stale(&links)?;
        self.homes.retain(|index, _| links.iter().any(|link| link.index == *index));
        let located = self.locate();
        let taken: BTreeSet<u32> = self.claims.keys().copied().collect();
        for claim in ports::claim(&links, &bridges, &taken, &self.homes, &located) {
            if let Err(error) = self.install(&claim) {
                // The veth went away meanwhile, or the kernel refused: without filter it has no traffic.
                debug!(target: LOG, "{error}");
            }
        }
        self.reattach(&links, &bridges);
        Ok(())
    }

    /// True while an endpoint waits for its veth.
    pub fn waits(&self) -> bool {
        !self.down && self.unclaimed().next().is_some()
    }

    fn make_missing_bridges(&mut self, links: &[Link]) -> Result<bool, KernelError> {
        let there: BTreeSet<String> = self.covered(links).into_iter().map(|bridge| bridge.name).collect();
        let missing: Vec<String> = self
            .plan
            .networks
            .keys()
            .chain([&self.plan.bridge])
            .filter(|bridge| !there.contains(*bridge))
            .cloned()
            .collect();
        for bridge in &missing {
            warn!(target: LOG, "the bridge {bridge} is gone; making it again");
            self.restore_bridge(bridge)?;
        }
        Ok(!missing.is_empty())
    }

    /// Every port, claimed or not, before anything else: two unknown ports do not talk to each other either.
    fn isolate(&mut self, links: &[Link], bridges: &BTreeMap<String, u32>) {
        let ours: BTreeSet<u32> = bridges.values().copied().collect();
        for port in links.iter().filter(|link| link.master.is_some_and(|master| ours.contains(&master))) {
            if !port.isolated
                && let Err(error) = tolerate_gone(self.links.isolate(port.index, &port.name))
            {
                warn!(target: LOG, "{error}");
            }
        }
    }

    /// Ends identities whose veth is gone, or whose endpoint is no longer the same.
    fn withdraw_stale(&mut self, links: &[Link]) -> Result<(), KernelError> {
        let stale: Vec<(u32, bool)> = self
            .claims
            .iter()
            .filter_map(|(index, claim)| {
                let exists = links.iter().any(|link| link.index == *index && link.name == claim.name);
                let current = self.current(claim.endpoint.address);
                let same = current.is_some_and(|other| ports::same_identity(&claim.endpoint, other));
                (!exists || !same).then_some((*index, exists))
            })
            .collect();
        for (index, exists) in stale {
            self.withdraw(index, exists)?;
        }
        Ok(())
    }

    fn current(&self, address: std::net::Ipv4Addr) -> Option<&Arc<Endpoint>> {
        self.snapshot.as_ref().and_then(|snapshot| snapshot.directory.endpoints.get(&address))
    }

    fn withdraw(&mut self, index: u32, exists: bool) -> Result<(), KernelError> {
        let Some(claim) = self.claims.remove(&index) else { return Ok(()) };
        let plan = self.plan.ports.remove(&claim.name);
        info!(target: LOG, "{} ({}) no longer sends through {}", claim.endpoint.container, claim.endpoint.address, claim.name);
        if let Some(plan) = plan
            && self.firewall.remove_port(&claim.name, &plan).is_err()
        {
            // The chain went with its device.
            tolerate_gone(self.firewall.forget_port(&claim.name))?;
        }
        let closed = self.grants.revoke(&claim.endpoint);
        self.close_flows(&closed)?;
        let address = claim.endpoint.address;
        self.conntrack.end(|flow| flow.source == address)?;
        if !exists {
            self.gone.push(claim);
        }
        Ok(())
    }

    fn unclaimed(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        let endpoints = self.snapshot.iter().flat_map(|snapshot| snapshot.directory.endpoints.values());
        endpoints.filter(|endpoint| !self.claims.values().any(|claim| ports::same_identity(&claim.endpoint, endpoint)))
    }

    fn locate(&mut self) -> Vec<Located> {
        let unclaimed: Vec<Arc<Endpoint>> = self.unclaimed().cloned().collect();
        unclaimed
            .into_iter()
            .filter_map(|endpoint| {
                // Docker tells neither before the container runs; the kernel knows its first process earlier, and a
                // filter that waits for Docker is too late for the first packet.
                let told = endpoint.pid > 0 || !endpoint.sandbox_key.is_empty();
                let pid = if told { endpoint.pid } else { init_pid(&endpoint.container_id).unwrap_or(0) };
                let namespace = self.links.namespace_number(&endpoint.sandbox_key, pid)?;
                Some(Located { endpoint, namespace })
            })
            .collect()
    }

    fn install(&mut self, claim: &Claim) -> Result<(), KernelError> {
        let Claim { endpoint, index, name } = claim;
        let port = PortPlan { index: *index, mac: endpoint.mac, address: endpoint.address };
        self.firewall.add_port(name, &port)?;
        info!(target: LOG, "{} ({}) sends through {name}", endpoint.container, endpoint.address);
        self.plan.ports.insert(name.clone(), port);
        self.homes.insert(*index, endpoint.network.bridge.clone());
        self.claims.insert(*index, claim.clone());
        Ok(())
    }

    /// Puts claimed veths back on their bridge: the filter is there by now.
    fn reattach(&mut self, links: &[Link], bridges: &BTreeMap<String, u32>) {
        for claim in self.claims.values() {
            let Some(link) = links.iter().find(|link| link.index == claim.index) else { continue };
            let Some(bridge) = bridges.get(&claim.endpoint.network.bridge) else { continue };
            if link.master.is_some() {
                continue;
            }
            let attached = self
                .links
                .enslave(link.index, &link.name, *bridge)
                .and_then(|()| self.links.isolate(link.index, &link.name))
                .and_then(|()| self.links.set_up(link.index, &link.name, true));
            match tolerate_gone(attached) {
                Ok(()) => info!(target: LOG, "{} is back on {}", link.name, claim.endpoint.network.bridge),
                Err(error) => warn!(target: LOG, "{error}"),
            }
        }
    }
}
