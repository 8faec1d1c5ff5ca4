//! `outcall dns`

use serde_json::json;

use super::count;
use crate::api::{DnsCache, DnsCacheStats, DnsFlushed, DnsStatus, EvaluateRequest, Evaluated};
use crate::cli::CliError;
use crate::cli::arguments::DnsCommand;
use crate::cli::client::Client;
use crate::cli::output::{Cell, Output};

pub(super) fn run(command: &DnsCommand, client: &Client, output: &mut Output) -> Result<(), CliError> {
    match command {
        DnsCommand::Status => status(client, output),
        DnsCommand::Test { host, record_type } => test(host, record_type, client, output),
        DnsCommand::Cache { entries: false } => {
            let stats: DnsCacheStats = client.get("/dns/cache")?;
            output.data(&stats, |output, stats| output.labels(&stats_rows(stats)))
        }
        DnsCommand::Cache { entries: true } => {
            let cache: DnsCache = client.get("/dns/cache?entries=true")?;
            output.data(&cache, entries)
        }
        DnsCommand::Flush => {
            let flushed: DnsFlushed = client.post_empty("/dns/cache/flush")?;
            output.data(&flushed, |output, flushed| {
                output.line(&format!("Flushed {} from the DNS cache.", count(flushed.entries_flushed, "answer")))
            })
        }
    }
}

fn status(client: &Client, output: &mut Output) -> Result<(), CliError> {
    let status: DnsStatus = client.get("/dns")?;
    output.data(&status, |output, status| {
        output.labels(&[
            ("DNS", Cell::state(status.running, if status.running { "running" } else { "not running" })),
            ("Listens on", format!("{}:{}", status.listen_address, status.listen_port).into()),
            ("Upstreams", status.upstreams.join(", ").into()),
            ("Cache", count(status.cache_entries, "answer").into()),
            ("Queries", status.queries_total.to_string().into()),
            ("Allowed", status.queries_allowed.to_string().into()),
            ("Blocked", status.queries_blocked.to_string().into()),
        ])
    })
}

fn test(host: &str, record_type: &str, client: &Client, output: &mut Output) -> Result<(), CliError> {
    let question = json!({ "dns": { "query": host, "record_type": record_type } });
    let serde_json::Value::Object(context) = question else {
        return Err(CliError::Unsuccessful("the question is no JSON object".to_owned()));
    };
    let verdict: Evaluated = client.post("/rule/evaluate", &EvaluateRequest { context })?;
    output.data(&verdict, |output, verdict| {
        output.labels(&[
            ("Query", format!("{host} {record_type}").into()),
            ("Decision", Cell::state(verdict.decision == "allow", verdict.decision.as_str())),
            ("Rule", verdict.matched_rule.as_deref().unwrap_or("none: what no rule allows is blocked").into()),
            ("File", verdict.file.as_deref().unwrap_or("-").into()),
        ])
    })
}

fn entries(output: &mut Output, cache: &DnsCache) -> Result<(), CliError> {
    output.labels(&stats_rows(&cache.stats))?;
    if cache.entries.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let rows = cache
        .entries
        .iter()
        .map(|entry| {
            vec![
                entry.hostname.as_str().into(),
                entry.record_type.as_str().into(),
                format!("{} s", entry.ttl_remaining_secs).into(),
                entry.cached_at.as_str().into(),
            ]
        })
        .collect();
    output.table(&["NAME", "TYPE", "TTL", "CACHED AT"], rows)
}

fn stats_rows(stats: &DnsCacheStats) -> [(&'static str, Cell); 4] {
    [
        ("Entries", format!("{} of {}", stats.entries, stats.max_entries).into()),
        ("Hits", stats.hits.to_string().into()),
        ("Misses", stats.misses.to_string().into()),
        ("Evictions", stats.evictions.to_string().into()),
    ]
}
