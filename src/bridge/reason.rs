//! Why the kernel drops a packet, and the chain that says so: logs, counts, drops.

use std::ffi::CStr;

use super::expression::{self as ex, Expressions, Verdict};
use super::tables::{Chain, Rule, rule};

/// The NFLOG group that drops are logged to.
pub const LOG_GROUP: u16 = 0x0ca1;
/// Bytes of a logged packet: the longest IPv4 header and the first 68 bytes behind it, for ports.
const LOG_SNAPLEN: u32 = 128;
/// Logged drops of one reason, a second: enough to see every attempt of a person or an agent, too few to burn a core.
const LOG_RATE: u64 = 100;
/// The burst above `LOG_RATE`, in packets.
const LOG_BURST: u32 = 200;
/// Why a packet was dropped: the prefix of its log message, the name of the chain that drops it, the event's reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// IPv6 from a container.
    Ipv6,
    /// From a port whose sender is not known.
    Unvetted,
    /// A sender's MAC, IPv4 or ARP address that is not its container's.
    Spoofed,
    /// A managed source address that arrives through another interface.
    Misplaced,
    /// Container to container.
    Neighbour,
    /// No grant for this flow.
    NoGrant,
    /// A flow towards a container that nobody there began.
    Inbound,
    /// A host service other than DNS, proxy and ping on the gateway.
    HostService,
    /// A flow that the host began towards a container.
    FromHost,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Reason; 9] = [
        Reason::Ipv6,
        Reason::Unvetted,
        Reason::Spoofed,
        Reason::Misplaced,
        Reason::Neighbour,
        Reason::NoGrant,
        Reason::Inbound,
        Reason::HostService,
        Reason::FromHost,
    ];

    /// The short code of events and log prefixes.
    #[must_use]
    pub fn code(self) -> &'static str {
        // Every text below is ASCII.
        self.text().to_str().unwrap_or("refused")
    }

    fn text(self) -> &'static CStr {
        match self {
            Reason::Ipv6 => c"ipv6",
            Reason::Unvetted => c"unvetted",
            Reason::Spoofed => c"spoofed",
            Reason::Misplaced => c"misplaced_source",
            Reason::Neighbour => c"container_to_container",
            Reason::NoGrant => c"no_grant",
            Reason::Inbound => c"inbound",
            Reason::HostService => c"host_service",
            Reason::FromHost => c"from_host",
        }
    }

    fn comment(self) -> &'static CStr {
        match self {
            Reason::Ipv6 => c"managed networks have no IPv6",
            Reason::Unvetted => c"the port has no identity filter (yet)",
            Reason::Spoofed => c"not the container's own MAC, IPv4 or ARP address",
            Reason::Misplaced => c"a container's address from somewhere else",
            Reason::Neighbour => c"containers do not reach each other",
            Reason::NoGrant => c"no rule opened this flow",
            Reason::Inbound => c"nobody but a container begins flows",
            Reason::HostService => c"the host offers DNS, proxy and ping on the gateway only",
            Reason::FromHost => c"the host only answers containers",
        }
    }

    /// The chain that logs, counts and drops.
    pub(super) fn chain(self) -> Chain {
        Chain {
            name: self.text().to_owned(),
            base: None,
            rules: vec![
                // The limit is on the log alone: it ends this rule, and the drop below follows in any case.
                Rule {
                    comment: c"for decisions.jsonl",
                    expressions: [ex::limit(LOG_RATE, LOG_BURST), ex::log(LOG_GROUP, LOG_SNAPLEN, self.text())]
                        .concat(),
                },
                rule(self.comment(), [ex::counter()], &Verdict::Drop),
            ],
        }
    }

    /// A rule that refuses what `matches`.
    pub(super) fn refuse<const N: usize>(self, comment: &'static CStr, matches: [Expressions; N]) -> Rule {
        rule(comment, matches, &Verdict::Goto(self.text()))
    }
}
