//! `/api/v1/ca`

use serde::{Deserialize, Serialize};

/// `GET /ca`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaStatus {
    /// Always true: without a CA the answer is 404.
    pub loaded: bool,
    /// Distinguished name.
    pub subject: String,
    /// Upper-case hex digits with a colon between bytes, as `openssl x509 -fingerprint -sha256` prints it.
    pub fingerprint_sha256: String,
    /// First moment at which it counts (RFC 3339, UTC).
    pub not_before: String,
    /// Last.
    pub not_after: String,
    /// Certificates of intercepted hosts that are kept.
    pub leaf_cache_size: u64,
    /// How many may be.
    pub leaf_cache_max: u64,
}

/// `GET /ca/bundle`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaBundle {
    /// The system's roots and the CA: what containers made by outcalld trust.
    pub pem_bundle: String,
}
