//! Grants in the kernel: opened, closed, and ended with their running connections.
//!
//! Owns: the agreement of the grant book, the kernel's set and conntrack. Does not own: which grants hold
//! (`grants.rs`).

use std::time::Instant;

use crate::docker_manager::Endpoint;
use crate::rule_engine::RuleSet;

use super::Grant;
use super::enforcer::Enforcer;
use super::grants::{GrantedFlow, allowed};
use super::ports::same_identity;
use super::readback::FlowKey;
use super::socket::KernelError;

impl Enforcer {
    /// Opens the flows of a grant; done when the kernel has them.
    pub fn grant(&mut self, grant: &Grant, now: Instant) -> Result<(), String> {
        if self.down {
            return Err("the bridges are down".to_owned());
        }
        let Some(snapshot) = self.snapshot.clone() else {
            return Err("no snapshot has been published yet".to_owned());
        };
        let known = snapshot.directory.endpoints.get(&grant.endpoint.address);
        if !known.is_some_and(|endpoint| same_identity(endpoint, &grant.endpoint)) {
            return Err(format!("{} no longer has the address {}", grant.endpoint.container, grant.endpoint.address));
        }
        // The asker may have judged by an older snapshot: what this one refuses is not opened.
        let mut grant = grant.clone();
        let Grant { endpoint, name, ports, addresses, .. } = &mut grant;
        addresses.retain(|address| ports.iter().all(|port| allowed(&snapshot.rules, endpoint, name, *address, *port)));
        if addresses.is_empty() {
            return Err(format!("the rules no longer allow {name} directly"));
        }
        let change = self.grants.grant(&grant, now);
        let closing = self.existing(&change.close).map_err(|error| error.to_string())?;
        self.firewall.change_flows(&closing, &change.open).map_err(|error| {
            // What the kernel does not have must not stand in the book.
            for (key, _) in &change.open {
                self.grants.forget(key);
            }
            error.to_string()
        })
    }

    /// Closes flows; those running go on.
    pub fn close_flows(&mut self, keys: &[FlowKey]) -> Result<(), KernelError> {
        if keys.is_empty() {
            return Ok(());
        }
        let closing = self.existing(keys)?;
        match self.firewall.change_flows(&closing, &[]) {
            // One expired between the reading and the deletion: read again.
            Err(error) if error.errno == nix::errno::Errno::ENOENT => {
                let closing = self.existing(keys)?;
                self.firewall.change_flows(&closing, &[])
            }
            other => other,
        }
    }

    /// Closes what `rules` no longer allow and ends what runs of it, be its grant in force or past.
    pub fn rejudge(&mut self, rules: &RuleSet, now: Instant) -> Result<(), KernelError> {
        let closed = self.grants.rejudge(rules, now);
        self.close_flows(&closed)?;
        self.conntrack.end(|flow| !self.grants.may_run(flow)).map(drop)
    }

    /// Ends all granted flows of an endpoint, or of all; gives their number.
    pub fn flush(&mut self, endpoint: Option<&Endpoint>) -> Result<usize, KernelError> {
        let keys = match endpoint {
            Some(endpoint) => self.grants.revoke(endpoint),
            None => self.grants.revoke_all(),
        };
        if !self.down {
            self.close_flows(&keys)?;
        }
        // Also those whose grant has expired already.
        let source = endpoint.map(|endpoint| endpoint.address);
        self.conntrack.end(|flow| source.is_none_or(|source| source == flow.source))?;
        Ok(keys.len())
    }

    /// The granted flows with the kernel's counters.
    pub fn granted(&mut self, now: Instant) -> Result<Vec<GrantedFlow>, KernelError> {
        if self.down {
            return Ok(Vec::new());
        }
        let found = self.firewall.flows()?;
        Ok(found.iter().filter_map(|flow| self.grants.describe(&flow.key, now, flow.packets, flow.bytes)).collect())
    }

    /// Those of `keys` that the kernel still has: deleting another fails the whole transaction.
    fn existing(&mut self, keys: &[FlowKey]) -> Result<Vec<FlowKey>, KernelError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.firewall.flows()?;
        Ok(found.iter().map(|flow| flow.key).filter(|key| keys.contains(key)).collect())
    }
}
