//! The HTTP proxy: absolute-form requests and CONNECT tunnels on one mio loop.
//!
//! Owns: the proxy's listeners, client and upstream sockets, the judgement of each request and tunnel by the newest
//! snapshot, and the refusals that clients see. Does not own: policy ([`crate::rule_engine::RuleSet::decide`]),
//! names (asked of the DNS thread), HTTP framing ([`crate::http1`]).
//!
//! | file | what it is |
//! |---|---|
//! | `config` | what the proxy is started with, its caps and times |
//! | `serve` | the loop: poll, mailbox, accept, timers, snapshots, stop |
//! | `listeners` | one listening socket for each managed gateway, or the address given |
//! | `admission` | who is let in, and how many |
//! | `descriptors` | the file descriptor limit |
//! | `table`, `deadlines` | sessions by token, and when each is due |
//! | `leg` | one socket with its buffers |
//! | `session` | the states of a client connection |
//! | `request`, `dial`, `exchange`, `tunnel`, `closing` | the steps of those states |
//! | `splice` | pipes for tunnels at full speed |
//! | `judge` | facts of a request, and the verdict on them; sans-I/O |
//! | `preview` | the same judgement of a request that nobody sent; sans-I/O |
//! | `client_hello` | TLS ClientHello; sans-I/O |
//! | `intercept` | TLS on both sides, for hosts whose rules look inside |
//! | `answer` | the proxy's own responses |
//! | `report` | events |

mod admission;
mod answer;
mod client_hello;
mod closing;
mod config;
mod deadlines;
mod descriptors;
mod dial;
mod exchange;
mod intercept;
mod judge;
mod leg;
mod listeners;
mod preview;
mod report;
mod request;
mod serve;
mod session;
mod splice;
mod table;
mod tunnel;

use std::net::IpAddr;
use std::sync::Arc;

use crate::api;
use crate::authority::Minted;
use crate::daemon::Snapshot;
use crate::dns::ResolveError;
use crate::event_loop::Reply;

pub use answer::why;
pub use client_hello::{ClientHello, HelloError, HelloRead, read_client_hello};
pub use config::{ProxyConfig, ProxyLinks, StartError, Times};
pub use intercept::{DecodeError, decode};
pub use listeners::Listening;
pub use preview::{Preview, PreviewVerdict};
pub use serve::Proxy;
pub use table::SessionId;

/// What the proxy thread is asked to do.
pub enum ProxyCommand {
    /// Work by this snapshot: listeners for its gateways, tunnels it no longer allows closed. Acknowledge it to control.
    Snapshot(Arc<Snapshot>),
    /// The DNS thread's answer to a question of this proxy.
    Resolved {
        /// The session that waits for it.
        session: SessionId,
        /// The addresses of the name.
        result: Result<Vec<IpAddr>, ResolveError>,
    },
    /// A certificate that interception asked for, or why there is none.
    Minted(Minted),
    /// `GET /proxy`.
    Status(Reply<api::ProxyStatus>),
    /// `GET /proxy/intercept`; `None` without a CA.
    InterceptStatus(Reply<Option<api::InterceptStatus>>),
    /// `POST /proxy/intercept/cache/flush`: how many certificates were forgotten; `None` without a CA.
    FlushLeaves(Reply<Option<usize>>),
    /// Answered at once by a living thread.
    Ping(Reply<()>),
    /// Finish within 5 s.
    Stop,
}
