//! Grants in the kernel: opened, closed, and ended with their running connections.
//!
//! Owns: the agreement of the grant book, the kernel's set and conntrack. Does not own: which grants hold
//! (`grants.rs`).

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use nix::errno::Errno;
use tracing::{info, warn};

use crate::daemon::Snapshot;
use crate::docker_manager::Endpoint;

use super::Grant;
use super::enforcer::{Enforcer, LOG};
use super::grants::{Change, GrantedFlow, Operated, allowed};
use super::operator::{self, Allowed, LONGEST, OperatorGrant, OperatorRefusal, OperatorWish, OwnedFlow, Protocol};
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
        let Some(known) = known.filter(|endpoint| same_identity(endpoint, &grant.endpoint)) else {
            return Err(format!("{} no longer has the address {}", grant.endpoint.container, grant.endpoint.address));
        };
        // The asker may have judged by an older snapshot, and by the name the container had in it: what this one
        // refuses is not opened.
        let mut grant = Grant { endpoint: Arc::clone(known), ..grant.clone() };
        let Grant { endpoint, name, ports, addresses, .. } = &mut grant;
        addresses.retain(|address| ports.iter().all(|port| allowed(&snapshot.rules, endpoint, name, *address, *port)));
        if addresses.is_empty() {
            return Err(format!("the rules no longer allow {name} directly"));
        }
        let change = self.grants.grant(&grant, now);
        self.apply(&change).map_err(|error| error.to_string())
    }

    fn apply(&mut self, change: &Change) -> Result<(), KernelError> {
        let applied = self.change_flows(&change.close, &change.open);
        if applied.is_err() {
            // What the kernel does not have must not stand in the book.
            for (key, _) in &change.open {
                self.grants.forget(key);
            }
        }
        applied
    }

    /// Closes those of `close` that are there and opens `open`. The book has changed already: after a failure the
    /// kernel may have flows that it does not hold, so the kernel is read back.
    fn change_flows(&mut self, close: &[FlowKey], open: &[(FlowKey, u64)]) -> Result<(), KernelError> {
        if close.is_empty() && open.is_empty() {
            return Ok(());
        }
        let changed = once_more_if_gone(|| {
            let closing = self.existing(close)?;
            self.firewall.change_flows(&closing, open)
        });
        self.in_doubt |= changed.is_err();
        changed
    }

    /// Opens a flow that the operator asks for; done when the kernel has it.
    pub fn allow(&mut self, wish: &OperatorWish, now: Instant) -> Result<Allowed, OperatorRefusal> {
        if self.down {
            let text = "the bridges are down; POST /api/v1/bridge/up (outcall bridge up) first";
            return Err(OperatorRefusal::Conflict(text.to_owned()));
        }
        let Some(snapshot) = self.snapshot.clone() else {
            return Err(OperatorRefusal::Conflict("no container is known yet; try again".to_owned()));
        };
        let endpoint = operator::judge(wish, &snapshot.directory)?;
        let key = FlowKey {
            source: endpoint.address,
            destination: wish.destination,
            protocol: wish.protocol.number(),
            port: wish.port,
        };
        let lasts = wish.lasts.min(LONGEST);
        let operated = self.grants.operate(&endpoint, key, lasts, now).map_err(OperatorRefusal::Conflict)?;
        let Operated { change, new, inserted_at, left } = operated;
        let failed = |error: KernelError| OperatorRefusal::Failed(error.to_string());
        self.apply(&change).map_err(failed)?;
        let found = self.firewall.flows().map_err(failed)?.into_iter().find(|flow| flow.key == key);
        let handle = self.firewall.flows_handle().map_err(failed)?;
        let shown = found.and_then(|found| self.grants.describe(&found, handle, now));
        let flow = OwnedFlow::new(&endpoint.container_id, key);
        let expires_at = SystemTime::now() + left;
        let grant = OperatorGrant { flow, container: Arc::clone(&endpoint.container), inserted_at, expires_at };
        match shown {
            Some(shown) => Ok(Allowed { grant, shown, new }),
            None => Err(OperatorRefusal::Failed("the kernel does not show the flow that it took".to_owned())),
        }
    }

    /// Takes the operator's word for a flow back, and ends what runs of it unless a name allows it too.
    pub fn take_back(&mut self, flow: &OwnedFlow, now: Instant) -> Result<(), KernelError> {
        let change = self.grants.take_back(&flow.key(), now);
        self.change_flows(&change.close, &change.open)?;
        if change.close.is_empty() {
            return Ok(());
        }
        self.conntrack.end(|flow| change.close.contains(flow)).map(drop)
    }

    /// Opens the kept flows of containers that are there with the address they had; those whose container is not, are
    /// told as ended, as soon as Docker has said who is there.
    pub fn restore(&mut self, now: Instant) {
        let Some(snapshot) = self.snapshot.clone().filter(|_| !self.awaited.is_empty() && !self.down) else { return };
        let directory = &snapshot.directory;
        for grant in std::mem::take(&mut self.awaited) {
            let OwnedFlow { container_id, source, destination, protocol, port } = grant.flow.clone();
            let left = grant.expires_at.duration_since(SystemTime::now()).unwrap_or_default();
            let Some(protocol) = Protocol::numbered(protocol).filter(|_| !left.is_zero()) else {
                self.grants.ended.push(grant.flow);
                continue;
            };
            let same = directory.endpoints.get(&source).is_some_and(|endpoint| endpoint.container_id == container_id);
            if !same && !directory.read {
                self.awaited.push(grant);
                continue;
            }
            let container = container_id.to_string();
            let wish = OperatorWish { container, source, destination, protocol, port, lasts: left };
            match self.allow(&wish, now) {
                Ok(allowed) => {
                    info!(target: LOG, "{} may reach {destination}:{port} again", allowed.shown.endpoint.container)
                }
                Err(refusal) => {
                    warn!(target: LOG, "the kept flow of {} to {destination}:{port} is not opened: {refusal}", grant.container);
                    self.grants.ended.push(grant.flow);
                }
            }
        }
    }

    /// Closes flows; those running go on.
    pub fn close_flows(&mut self, keys: &[FlowKey]) -> Result<(), KernelError> {
        self.change_flows(keys, &[])
    }

    /// Closes what `snapshot` no longer allows, by its rules or its containers' names, gives what another name holds the
    /// time of that one, and ends what runs of the closed, be its grant in force or past.
    pub fn rejudge(&mut self, snapshot: &Snapshot, now: Instant) -> Result<(), KernelError> {
        let change = self.grants.rejudge(&snapshot.rules, &snapshot.directory.endpoints, now);
        self.change_flows(&change.close, &change.open)?;
        self.conntrack.end(|flow| !self.grants.may_run(flow)).map(drop)
    }

    /// Ends all granted flows of an endpoint, or of all; gives their number.
    pub fn flush(&mut self, endpoint: Option<&Endpoint>) -> Result<usize, KernelError> {
        let keys = match endpoint {
            Some(endpoint) => self.grants.revoke(endpoint),
            None => {
                self.forget_awaited();
                self.grants.revoke_all()
            }
        };
        if !self.down {
            self.close_flows(&keys)?;
        }
        // Also those whose grant has expired already.
        let source = endpoint.map(|endpoint| endpoint.address);
        self.conntrack.end(|flow| source.is_none_or(|source| source == flow.source))?;
        Ok(keys.len())
    }

    /// What was kept and is not open yet will not be.
    pub fn forget_awaited(&mut self) {
        self.grants.ended.extend(self.awaited.drain(..).map(|grant| grant.flow));
    }

    /// Ends the flows of endpoints that are gone. Those whose port is known end with it; a flow that was opened by hand
    /// for a container without one must not wait for the next holder of the address.
    pub fn end_orphans(&mut self) -> Result<(), KernelError> {
        let Some(snapshot) = self.snapshot.clone() else { return Ok(()) };
        let endpoints = &snapshot.directory.endpoints;
        let known =
            |endpoint: &Endpoint| endpoints.get(&endpoint.address).is_some_and(|now| same_identity(now, endpoint));
        for endpoint in self.grants.orphans(known) {
            self.flush(Some(&endpoint))?;
        }
        Ok(())
    }

    /// The granted flows with the kernel's counters.
    pub fn granted(&mut self, now: Instant) -> Result<Vec<GrantedFlow>, KernelError> {
        if self.down {
            return Ok(Vec::new());
        }
        let found = self.firewall.flows()?;
        let handle = self.firewall.flows_handle()?;
        Ok(found.iter().filter_map(|flow| self.grants.describe(flow, handle, now)).collect())
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

/// A flow that expired between the reading and its deletion fails the whole transaction: read again, once.
fn once_more_if_gone(mut change: impl FnMut() -> Result<(), KernelError>) -> Result<(), KernelError> {
    match change() {
        Err(error) if error.errno == Errno::ENOENT => change(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_that_expires_before_its_deletion_does_not_fail_the_change() {
        let outcome = |errnos: &[Option<Errno>]| {
            let mut errnos = errnos.iter();
            let changed = once_more_if_gone(|| match errnos.next() {
                Some(Some(errno)) => Err(KernelError::new("change the granted flows", *errno)),
                _ => Ok(()),
            });
            (changed.map_err(|error| error.errno), errnos.len())
        };
        assert_eq!(outcome(&[Some(Errno::ENOENT), None]), (Ok(()), 0));
        assert_eq!(outcome(&[Some(Errno::ENOENT), Some(Errno::ENOENT), None]), (Err(Errno::ENOENT), 1));
        assert_eq!(outcome(&[Some(Errno::EPERM), None]), (Err(Errno::EPERM), 1));
    }
}
