//! `/api/v1/proxy`, `/proxy/intercept`

use serde::{Deserialize, Serialize};

/// The proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// `false` while it stops.
    pub running: bool,
    /// `IP:port`, as in `--proxy-addr`.
    pub listen_address: String,
    /// What a container of the default network uses as `HTTP_PROXY`; empty while there is no managed network.
    pub proxy_url: String,
    /// Connections of clients that are open now.
    pub active_connections: u64,
    /// Requests and CONNECTs since the start.
    pub total_requests: u64,
    /// Of these, refused.
    pub total_blocked: u64,
}

/// Interception.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterceptStatus {
    /// Always true: without a CA the answer is 404.
    pub ca_loaded: bool,
    /// Certificates that are kept now.
    pub leaf_cache_size: u64,
    /// The most that are kept.
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
