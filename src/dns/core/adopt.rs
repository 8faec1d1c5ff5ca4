//! A new snapshot, for everybody who waits: held questions are identified again, questions in flight are judged again.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::daemon::Snapshot;
use crate::docker_manager::Peer;

use super::{Allowed, Core, Granting, Outcome, Timer};
use crate::dns::filter::{self, Judgement};
use crate::dns::message::Extended;

impl Core {
    /// Works by `snapshot` from now on, also for who already waits.
    pub(in crate::dns) fn adopt(&mut self, snapshot: Arc<Snapshot>, now: Instant) {
        let rules_changed = !Arc::ptr_eq(&self.snapshot.rules, &snapshot.rules);
        self.snapshot = snapshot;
        let endpoints = &self.snapshot.directory.endpoints;
        self.throttle.retain(|peer| matches!(peer, IpAddr::V4(address) if endpoints.contains_key(&address)));
        if rules_changed {
            let flushed = self.cache.flush();
            tracing::debug!(target: "dns", flushed, "cache flushed for the new rules");
        }
        let ids: Vec<u64> = self.flights.keys().copied().collect();
        for id in ids {
            let Some(flight) = self.flights.get_mut(&id) else { continue };
            let clients = std::mem::take(&mut flight.clients);
            let still: Vec<Allowed> =
                clients.into_iter().filter_map(|allowed| self.reconsider(allowed, rules_changed)).collect();
            if let Some(flight) = self.flights.get_mut(&id) {
                flight.clients = still;
            }
        }
        let tickets: Vec<u64> = self.grants.keys().copied().collect();
        for ticket in tickets {
            let Some(Granting { allowed, answer, age, deadline }) = self.grants.remove(&ticket) else { continue };
            match self.reconsider(allowed, rules_changed) {
                // The grant that is under way is of the old rules: the bridge drops it, and the new rule asks anew.
                Some(allowed) if rules_changed => {
                    self.timers.remove(&(deadline, Timer::Grant(ticket)));
                    self.close_peer(allowed.asked.client.peer.ip());
                    self.deliver(allowed, answer, age, now);
                }
                Some(allowed) => {
                    self.grants.insert(ticket, Granting { allowed, answer, age, deadline });
                }
                None => {
                    self.timers.remove(&(deadline, Timer::Grant(ticket)));
                }
            }
        }
        for asked in std::mem::take(&mut self.held) {
            match self.identify(asked.client.peer.ip(), asked.arrival) {
                Peer::Unasked => self.hold(asked),
                peer => self.judge(asked, peer, now),
            }
        }
    }

    /// Judges who waits by the snapshot just taken; `None` when it has been answered with a refusal.
    fn reconsider(&mut self, mut allowed: Allowed, rules_changed: bool) -> Option<Allowed> {
        let address = allowed.asked.client.peer.ip();
        let peer = self.identify(address, allowed.asked.arrival);
        let same = match (allowed.peer.endpoint(), peer.endpoint()) {
            (Some(before), Some(now)) => before.container_id == now.container_id,
            (None, None) => matches!(peer, Peer::Extra),
            _ => false,
        };
        if !same {
            self.close_peer(address);
            self.refuse(allowed.asked);
            return None;
        }
        allowed.peer = peer;
        if !rules_changed {
            return Some(allowed);
        }
        match filter::judge(&self.snapshot.rules, &allowed.asked.query, &allowed.peer) {
            Judgement::Resolve { rule, .. } => Some(Allowed { rule, ..allowed }),
            Judgement::Empty { rule } => {
                self.close_peer(address);
                let bytes = allowed.asked.query.no_data();
                self.finish(allowed.asked, &allowed.peer, Outcome::allow("no_data", rule), bytes);
                None
            }
            Judgement::Block { reason, rule } => {
                self.close_peer(address);
                let text = super::blocked_text(rule.as_deref());
                let bytes = allowed.asked.query.no_such_name(Extended::Blocked, &text);
                self.finish(allowed.asked, &allowed.peer, Outcome::block(reason, rule), bytes);
                None
            }
        }
    }
}
