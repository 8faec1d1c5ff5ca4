//! The addresses of an answer as far as one asker may have them. Sans-I/O.
//!
//! Owns: which of them are stripped. Does not own: the judgement of the name (`filter`), and records.

use std::net::IpAddr;

use crate::docker_manager::Peer;
use crate::names::{HostName, special_purpose};
use crate::rule_engine::{Egress, EgressMode, Rule, RuleSet};

/// The reason when every address was special-purpose.
pub(super) const PRIVATE: &str = "private_address";
/// The reason when a rule on addresses speaks for one.
const BLOCKED: &str = "blocked_address";

/// What was found of an answer's addresses.
pub(super) struct Vetted {
    allow_private: bool,
    /// Addresses that rules before the asker's own speak for.
    refused: Vec<IpAddr>,
    pub(super) found: usize,
    pub(super) passed: usize,
}

impl Vetted {
    /// Vets `addresses`, which `name` has, for `peer`, whose question `rule` allows.
    pub(super) fn of((rules, rule): (&RuleSet, &Rule), peer: &Peer, name: &HostName, addresses: &[IpAddr]) -> Self {
        let allow_private = rule.egress.as_ref().is_some_and(|egress| egress.allow_private_ips);
        let mut vetted = Vetted { allow_private, refused: Vec::new(), found: addresses.len(), passed: 0 };
        if let Some(egress) = direct_egress(rule) {
            // What is private is stripped, as for every rule; this is about rules that block once the address is known.
            let refused = |ip: &&IpAddr| match ip {
                IpAddr::V4(ip) if allow_private || special_purpose(IpAddr::V4(*ip)).is_none() => {
                    let opens = |port: &u16| rules.opens_directly(peer.agent(), name.as_str(), *ip, *port);
                    !egress.ports.iter().all(opens)
                }
                // Opens nothing.
                _ => false,
            };
            vetted.refused = addresses.iter().filter(refused).copied().collect();
        }
        vetted.passed = addresses.iter().filter(|address| vetted.passes(**address)).count();
        vetted
    }

    /// Whether the asker is told this address.
    pub(super) fn passes(&self, address: IpAddr) -> bool {
        (self.allow_private || special_purpose(address).is_none()) && !self.refused.contains(&address)
    }

    /// Whether there were addresses, and the asker is told none.
    pub(super) fn none_passed(&self) -> bool {
        self.found > 0 && self.passed == 0
    }

    /// Why none passed: a code for events.
    pub(super) fn reason(&self) -> &'static str {
        if self.refused.is_empty() { PRIVATE } else { BLOCKED }
    }
}

/// The egress of a rule that opens addresses.
pub(super) fn direct_egress(rule: &Rule) -> Option<&Egress> {
    rule.egress.as_ref().filter(|egress| egress.mode == EgressMode::DirectIp)
}
