//! The Prometheus text of the daemon's numbers (text format 0.0.4), sans-I/O but for `/proc/self`.
//!
//! Labels have few values: layers, verdicts, reasons of this code, and at most a thousand rules. Never a name,
//! address or container that somebody else chooses.

use std::fmt::{Display, Write as _};

use crate::daemon::{Snapshot, Subsystem};
use crate::events::{BUCKETS, Layer, Verdict};

use super::metrics::Gathered;

/// What the operator API's thread knows itself.
pub(super) struct Here<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) reloads: u64,
    pub(super) readers: usize,
    pub(super) lost_to_readers: u64,
}

/// Text in the making.
struct Text(String);

/// Name and value of each label.
type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    /// The head of a family; its samples follow.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        self.0.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let escaped = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _ = write!(self.0, "{}{label}=\"{escaped}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn counter(&mut self, name: &str, help: &str, samples: &[(Labels<'_>, u64)]) {
        self.family(name, "counter", help);
        samples.iter().for_each(|(labels, value)| self.sample(name, labels, value));
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }
}

/// All of it.
pub(super) fn write(gathered: &Gathered, here: &Here<'_>) -> String {
    let mut text = Text(String::new());
    text.family("outcall_build_info", "gauge", "Always 1; the version is a label.");
    text.sample("outcall_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.family("outcall_subsystem_up", "gauge", "1 when the thread answered this scrape within a second.");
    for subsystem in gathered.answered.iter().chain([&Subsystem::HostApi]) {
        text.sample("outcall_subsystem_up", &[("subsystem", subsystem.name())], 1);
    }
    for subsystem in &gathered.out {
        text.sample("outcall_subsystem_up", &[("subsystem", subsystem.name())], 0);
    }
    decisions(&mut text, gathered, here);
    policy(&mut text, gathered, here);
    traffic(&mut text, gathered);
    process(&mut text);
    text.0
}

fn decisions(text: &mut Text, gathered: &Gathered, here: &Here<'_>) {
    const DECISIONS: &str = "outcall_decisions_total";
    const LATENCY: &str = "outcall_decision_duration_seconds";
    let Some(tally) = &gathered.tally else { return };
    text.family(
        DECISIONS,
        "counter",
        "Decisions by layer, verdict and rule; no rule: the default block, or no rule's.",
    );
    let mut rules: Vec<_> = tally.decisions.iter().collect();
    rules.sort_unstable();
    for (rule, counts) in rules {
        for (layer, by_verdict) in Layer::ALL.iter().zip(counts) {
            for (verdict, count) in [Verdict::Allow, Verdict::Block].iter().zip(by_verdict) {
                if *count > 0 {
                    let labels = [("layer", layer.name()), ("verdict", verdict.name()), ("rule", rule)];
                    text.sample(DECISIONS, &labels, count);
                }
            }
        }
    }
    text.family(LATENCY, "histogram", "From a question or request to its decision, resolving included.");
    for (layer, histogram) in Layer::ALL.iter().zip(&tally.latency) {
        if histogram.count == 0 {
            continue;
        }
        let mut below = 0;
        for (bound, count) in BUCKETS.iter().zip(&histogram.buckets) {
            below += count;
            let bound = seconds(*bound);
            text.sample(&format!("{LATENCY}_bucket"), &[("layer", layer.name()), ("le", &bound)], below);
        }
        text.sample(&format!("{LATENCY}_bucket"), &[("layer", layer.name()), ("le", "+Inf")], histogram.count);
        text.sample(&format!("{LATENCY}_sum"), &[("layer", layer.name())], seconds(histogram.sum));
        text.sample(&format!("{LATENCY}_count"), &[("layer", layer.name())], histogram.count);
    }
    let mut drops: Vec<_> = tally.drops.iter().collect();
    drops.sort_unstable();
    text.family("outcall_kernel_drops_logged_total", "counter", "Packets dropped in the kernel that became events.");
    for (reason, count) in drops {
        text.sample("outcall_kernel_drops_logged_total", &[("reason", reason)], count);
    }
    text.counter("outcall_events_total", "Events that were recorded and not lost.", &[(&[], tally.recorded)]);
    let lost = [
        (&[("where", "channel")] as Labels<'_>, tally.lost_in_channel),
        (&[("where", "disk")], tally.lost_on_disk),
        (&[("where", "readers")], here.lost_to_readers),
    ];
    text.counter("outcall_events_lost_total", "Events lost on their way; no decision was.", &lost);
    let [ended, up, down] = tally.tunnels;
    text.counter("outcall_tunnels_ended_total", "Tunnels that ended.", &[(&[], ended)]);
    let bytes = [(&[("direction", "up")] as Labels<'_>, up), (&[("direction", "down")], down)];
    text.counter("outcall_tunnel_bytes_total", "Bytes of the tunnels that ended.", &bytes);
}

fn policy(text: &mut Text, gathered: &Gathered, here: &Here<'_>) {
    let Snapshot { generation, rules, directory } = here.snapshot;
    text.gauge("outcall_rules", "Rules in force.", rules.rules().len());
    text.counter("outcall_rule_sets_total", "Rule sets put in force after the first one.", &[(&[], here.reloads)]);
    text.gauge("outcall_snapshot_generation", "Generation of rules and identities in force.", generation);
    text.gauge("outcall_containers", "Addresses of containers on managed networks.", directory.endpoints.len());
    text.gauge("outcall_event_readers", "Readers that follow the events.", here.readers);
    if let Some(grants) = gathered.grants {
        text.gauge("outcall_grants", "Direct flows that are open in the kernel.", grants);
    }
}

fn traffic(text: &mut Text, gathered: &Gathered) {
    if let Some(dns) = &gathered.dns {
        let queries = [
            (&[("verdict", "allow")] as Labels<'_>, dns.status.queries_allowed),
            (&[("verdict", "block")], dns.status.queries_blocked),
        ];
        text.counter("outcall_dns_queries_total", "Questions answered.", &queries);
        text.gauge("outcall_dns_cache_entries", "Answers in the cache.", dns.cache.entries);
        text.counter("outcall_dns_cache_hits_total", "Answers from the cache.", &[(&[], dns.cache.hits)]);
        text.counter("outcall_dns_cache_misses_total", "Questions that were not in it.", &[(&[], dns.cache.misses)]);
        text.counter("outcall_dns_cache_evictions_total", "Answers pushed out.", &[(&[], dns.cache.evictions)]);
    }
    if let Some(proxy) = &gathered.proxy {
        text.gauge("outcall_proxy_connections", "Client connections open.", proxy.active_connections);
        text.counter("outcall_proxy_requests_total", "Requests read.", &[(&[], proxy.total_requests)]);
        text.counter("outcall_proxy_blocked_total", "Of these, refused.", &[(&[], proxy.total_blocked)]);
    }
}

/// The names that every exporter uses for its own process.
fn process(text: &mut Text) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    if let (Some(size), Some(resident)) = (kibibytes("VmSize:"), kibibytes("VmRSS:")) {
        text.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", size * 1024);
        text.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", resident * 1024);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        text.gauge("process_open_fds", "Number of open file descriptors.", open.count());
    }
}

/// Microseconds as seconds, exactly.
fn seconds(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_exact() {
        assert_eq!(seconds(50), "0.00005");
        assert_eq!(seconds(2_500_000), "2.5");
        assert_eq!(seconds(10_000_000), "10");
        assert_eq!(seconds(0), "0");
    }

    #[test]
    fn label_values_are_escaped() {
        let mut text = Text(String::new());
        text.sample("x", &[("a", "b\"c\\d\ne"), ("f", "g")], 1);
        assert_eq!(text.0, "x{a=\"b\\\"c\\\\d\\ne\",f=\"g\"} 1\n");
    }
}
