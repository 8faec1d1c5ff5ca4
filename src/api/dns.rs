//! `/api/v1/dns`

use serde::{Deserialize, Serialize};

/// The DNS filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsStatus {
    /// Always `true`: a filter that does not run cannot answer.
    pub running: bool,
    /// As in `--dns-listen`.
    pub listen_address: String,
    /// As in `--dns-port`.
    pub listen_port: u16,
    /// `IP:port`, in the order in which they are tried.
    pub upstreams: Vec<String>,
    /// Answers that are kept now.
    pub cache_entries: usize,
    /// Questions since the start, whoever asked.
    pub queries_total: u64,
    /// Of these, allowed.
    pub queries_allowed: u64,
    /// Of these, refused.
    pub queries_blocked: u64,
}

/// The cache's counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsCacheStats {
    /// Answers that are kept now.
    pub entries: usize,
    /// The most that are kept; the one unused longest makes room.
    pub max_entries: usize,
    /// Questions answered from it since the start.
    pub hits: u64,
    /// Questions that an upstream had to be asked.
    pub misses: u64,
    /// Answers that made room for others.
    pub evictions: u64,
}

/// One cached answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsCacheEntry {
    /// Lower case, without the final dot.
    pub hostname: String,
    /// Mnemonic (`A`), or `TYPEn` (RFC 3597).
    pub record_type: String,
    /// Seconds until it is asked again.
    pub ttl_remaining_secs: u64,
    /// RFC 3339, UTC.
    pub cached_at: String,
}

/// The cache with its entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsCache {
    /// The counters.
    pub stats: DnsCacheStats,
    /// What is kept.
    pub entries: Vec<DnsCacheEntry>,
}

/// `POST /dns/cache/flush`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsFlushed {
    /// How many answers were forgotten.
    pub entries_flushed: usize,
}
