//! `/proxy`

use std::time::Duration;

use crate::api::ProxyStatus;
use crate::daemon::Subsystem;
use crate::proxy::ProxyCommand;
use crate::unix_http::{Answer, Response};

use super::api::Api;
use super::call::Call;
use super::respond::ok;

/// The proxy's loop never waits; it answers between two events.
const LIMIT: Duration = Duration::from_secs(5);

pub(super) fn status(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    match api.links.proxy.clone() {
        Some(owner) => api.ask(call.ticket, (Subsystem::Proxy, &owner), LIMIT, ProxyCommand::Status, ok),
        None => Ok(Answer::Now(ok(no_proxy()))),
    }
}

/// What `--no-proxy` looks like.
fn no_proxy() -> ProxyStatus {
    ProxyStatus {
        running: false,
        listen_address: String::new(),
        proxy_url: String::new(),
        active_connections: 0,
        total_requests: 0,
        total_blocked: 0,
    }
}
