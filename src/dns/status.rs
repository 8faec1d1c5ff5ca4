//! What the operator API says of DNS.

use std::time::{Instant, SystemTime};

use crate::api;

use super::cache::{Cache, ENTRIES_MAX};
use super::config::DnsConfig;
use super::core::Core;
use super::message::type_text;

/// `GET /dns`.
pub(super) fn status(config: &DnsConfig, core: &Core) -> api::DnsStatus {
    api::DnsStatus {
        running: true,
        listen_address: config.listen.to_string(),
        listen_port: config.port,
        upstreams: core.upstreams().iter().map(ToString::to_string).collect(),
        cache_entries: core.cache.len(),
        queries_total: core.counters.total,
        queries_allowed: core.counters.allowed,
        queries_blocked: core.counters.blocked,
    }
}

/// `GET /dns/cache`.
pub(super) fn cache(cache: &Cache, now: Instant) -> api::DnsCache {
    let wall = SystemTime::now();
    let entries = cache.entries(now).into_iter().map(|(key, left, age)| api::DnsCacheEntry {
        hostname: key.name.as_str().to_owned(),
        record_type: type_text(key.record_type).into(),
        ttl_remaining_secs: left,
        cached_at: humantime::format_rfc3339_seconds(wall.checked_sub(age).unwrap_or(wall)).to_string(),
    });
    let entries: Vec<_> = entries.collect();
    api::DnsCache { stats: cache_stats(cache), entries }
}

/// The cache's counters alone.
pub(super) fn cache_stats(cache: &Cache) -> api::DnsCacheStats {
    api::DnsCacheStats {
        entries: cache.len(),
        max_entries: ENTRIES_MAX,
        hits: cache.hits,
        misses: cache.misses,
        evictions: cache.evictions,
    }
}
