//! The DNS filter of the containers and the resolver of the proxy: one mio loop.
//!
//! | file | what it is |
//! |---|---|
//! | `message` | questions in, answers out, on the side of the clients |
//! | `filter`, `vetted` | the judgement of one question, and of the addresses of its answer |
//! | `core` | the filter without its sockets: who waits for what, and all limits |
//! | `cache` | what upstream said, for its time |
//! | `lookup`, `answer`, `random` | one question to the upstreams, and what their messages are reduced to |
//! | `datagrams`, `streams`, `listeners`, `asking` | sockets: UDP, TCP, one pair for each gateway, and towards upstream |
//! | `server`, `status`, `config` | the loop, what it says of itself, what it is given |

mod answer;
mod asking;
mod cache;
mod config;
mod core;
mod datagrams;
mod filter;
mod listeners;
mod lookup;
mod message;
mod random;
mod server;
mod status;
mod streams;
mod vetted;

pub use config::{DnsConfig, DnsLinks, StartError};
pub use filter::{NameQuestion, NameVerdict};
pub use listeners::BindError;
pub use server::{DESCRIPTORS_MAX, DnsServer};

use std::net::IpAddr;
use std::sync::Arc;

use crate::api;
use crate::daemon::Snapshot;
use crate::event_loop::Reply;
use crate::names::HostName;

/// The numbers of the filter and its cache.
#[derive(Clone, Debug)]
pub struct DnsMetrics {
    /// As `GET /dns` gives them.
    pub status: api::DnsStatus,
    /// As `GET /dns/cache` gives them.
    pub cache: api::DnsCacheStats,
}

/// What the DNS thread is asked to do.
pub enum DnsCommand {
    /// Work by this snapshot: sockets for its gateways, cache flushed when the rules changed. Acknowledge it to control.
    Snapshot(Arc<Snapshot>),
    /// Resolve a name that a rule already allows. The addresses are not filtered: the asker judges each.
    Resolve(HostName, Reply<Result<Vec<IpAddr>, ResolveError>>),
    /// `GET /dns`.
    Status(Reply<api::DnsStatus>),
    /// `GET /dns/cache`.
    Cache(Reply<api::DnsCache>),
    /// For `/metrics`: the counters, without the entries.
    Metrics(Reply<DnsMetrics>),
    /// `POST /dns/cache/flush`: how many entries went.
    Flush(Reply<usize>),
    /// The bridge's answer to a grant that DNS asked for; posted by the reply that went with it.
    Granted {
        /// Which grant.
        ticket: u64,
        /// Whether the kernel has it.
        outcome: Result<(), String>,
    },
    /// Answered at once by a living thread.
    Ping(Reply<()>),
    /// Finish within 5 s.
    Stop,
}

/// Why a name has no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveError {
    /// NXDOMAIN.
    NoSuchName,
    /// The name exists but has no A or AAAA record.
    NoAddress,
    /// No upstream gave an answer in time.
    Timeout,
    /// Every upstream failed or answered SERVFAIL, or the table of open questions is full.
    Failed,
}
