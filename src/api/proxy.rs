//! `/api/v1/proxy`, `/proxy/intercept`

use serde::{Deserialize, Serialize};

/// The proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the documents' own words
pub struct ProxyStatus {
    pub running: bool,
    pub listen_address: String,
    /// What a container of the default network uses as `HTTP_PROXY`; empty while there is no managed network.
    pub proxy_url: String,
    pub active_connections: u64,
    pub total_requests: u64,
    pub total_blocked: u64,
}

/// Interception.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the documents' own words
pub struct InterceptStatus {
    /// Always true: without a CA the answer is 404.
    pub ca_loaded: bool,
    pub leaf_cache_size: u64,
    pub leaf_cache_max: u64,
    /// Requests judged after decryption.
    pub intercepted_total: u64,
    /// Of these, blocked.
    pub blocked_total: u64,
}

/// `POST /proxy/intercept/cache/flush`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeavesFlushed {
    /// How many certificates were forgotten.
    pub evicted: u64,
}
