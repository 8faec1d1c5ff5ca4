//! The HTTP proxy: absolute-form requests and CONNECT tunnels on one mio loop.

use std::sync::Arc;

use crate::api;
use crate::daemon::Snapshot;
use crate::event_loop::Reply;

/// What the proxy thread is asked to do.
pub enum ProxyCommand {
    /// Work by this snapshot: listeners for its gateways, tunnels it no longer allows closed. Acknowledge it to control.
    Snapshot(Arc<Snapshot>),
    /// `GET /proxy`.
    Status(Reply<api::ProxyStatus>),
    /// Answered at once by a living thread.
    Ping(Reply<()>),
    /// Finish within 5 s.
    Stop,
}
