//! `/api/v1/proxy`

use serde::{Deserialize, Serialize};

/// The proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the contract's own words
pub struct ProxyStatus {
    pub running: bool,
    pub listen_address: String,
    /// What a container of the default network uses as `HTTP_PROXY`.
    pub proxy_url: String,
    pub active_connections: u64,
    pub total_requests: u64,
    pub total_blocked: u64,
}
