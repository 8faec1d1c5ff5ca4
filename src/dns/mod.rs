//! The DNS filter of the containers and the resolver of the proxy: one mio loop.

use std::net::IpAddr;
use std::sync::Arc;

use crate::api;
use crate::daemon::Snapshot;
use crate::event_loop::Reply;
use crate::names::HostName;

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
    /// `POST /dns/cache/flush`: how many entries went.
    Flush(Reply<usize>),
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
