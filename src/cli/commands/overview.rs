//! `outcall` alone: the state in about ten lines, and what to do next.

use serde::Serialize;

use super::{count, ready};
use crate::api::{BridgeStatus, DnsStatus, NetworkStatus, ProxyStatus, Ready, RuleSummary};
use crate::cli::CliError;
use crate::cli::client::Client;
use crate::cli::output::{Cell, Output};

/// Warnings shown before the rest is only counted.
const SHOWN_WARNINGS: usize = 3;

/// Everything that is shown; a part that the daemon could not tell is absent, with the reason in `errors`.
#[derive(Serialize)]
struct Overview {
    ready: Ready,
    bridge: Option<BridgeStatus>,
    networks: Option<Vec<NetworkStatus>>,
    rules: Option<RuleCount>,
    dns: Option<DnsStatus>,
    proxy: Option<ProxyStatus>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<String>,
}

#[derive(Serialize)]
struct RuleCount {
    rules: usize,
    allow: usize,
}

pub(super) fn run(client: &Client, output: &mut Output) -> Result<(), CliError> {
    let ready = ready::ask(client)?;
    let mut errors = Vec::new();
    let rules: Option<Vec<RuleSummary>> = kept(client.get("/rules"), &mut errors);
    let overview = Overview {
        ready,
        bridge: kept(client.get("/bridge"), &mut errors),
        networks: kept(client.get("/networks"), &mut errors),
        rules: rules.map(|rules| RuleCount {
            rules: rules.len(),
            allow: rules.iter().filter(|rule| rule.action == "allow").count(),
        }),
        dns: kept(client.get("/dns"), &mut errors),
        proxy: kept(client.get("/proxy"), &mut errors),
        errors,
    };
    output.data(&overview, text)
}

/// One part that fails must not hide the others.
fn kept<T>(answer: Result<T, CliError>, errors: &mut Vec<String>) -> Option<T> {
    answer.map_err(|error| errors.push(error.to_string())).ok()
}

fn text(output: &mut Output, overview: &Overview) -> Result<(), CliError> {
    let unknown = || Cell::bad("unknown");
    let mut rows: Vec<(&str, Cell)> = vec![
        ready::state(&overview.ready),
        ("Bridge", overview.bridge.as_ref().map_or_else(unknown, bridge)),
        ("Networks", overview.networks.as_deref().map_or_else(unknown, networks)),
        ("Rules", overview.rules.as_ref().map_or_else(unknown, rules)),
        ("DNS", overview.dns.as_ref().map_or_else(unknown, dns)),
        ("Proxy", overview.proxy.as_ref().map_or_else(unknown, proxy)),
    ];
    rows.extend(ready::faults(&overview.ready));
    for warning in overview.ready.warnings.iter().take(SHOWN_WARNINGS) {
        rows.push(("Warning", warning.as_str().into()));
    }
    if let Some(more @ 1..) = overview.ready.warnings.len().checked_sub(SHOWN_WARNINGS) {
        rows.push(("Warning", format!("and {more} more: outcall --json").into()));
    }
    for error in &overview.errors {
        rows.push(("Error", Cell::bad(error.as_str())));
    }
    output.labels(&rows)?;
    output.line("")?;
    output.line(&format!("Next: {}", next(overview)))
}

fn bridge(status: &BridgeStatus) -> Cell {
    let up = if status.up { "up" } else { "down" };
    Cell::state(status.up && status.nftables_active, format!("{} {up}, nftables {}", status.name, status.nftables))
}

fn networks(networks: &[NetworkStatus]) -> Cell {
    let containers = networks.iter().map(|network| network.containers.len()).sum();
    format!("{}, {}", count(networks.len(), "network"), count(containers, "container")).into()
}

fn rules(rules: &RuleCount) -> Cell {
    match rules.rules {
        0 => Cell::bad("none: everything is blocked"),
        all => format!("{}, {} to allow, {} to block", count(all, "rule"), rules.allow, all - rules.allow).into(),
    }
}

fn dns(status: &DnsStatus) -> Cell {
    let text = format!(
        "{}:{}, {} queries, {} blocked",
        status.listen_address, status.listen_port, status.queries_total, status.queries_blocked
    );
    if status.running { text.into() } else { Cell::bad("not running") }
}

fn proxy(status: &ProxyStatus) -> Cell {
    if !status.running {
        return "off".into();
    }
    let url = if status.proxy_url.is_empty() { "no network to serve yet" } else { &status.proxy_url };
    format!("{url}, {} requests, {} blocked", status.total_requests, status.total_blocked).into()
}

/// The first thing that a person would do in this state.
fn next(overview: &Overview) -> &'static str {
    let bridge_down = overview.bridge.as_ref().is_some_and(|bridge| !bridge.up);
    let no_rules = overview.rules.as_ref().is_some_and(|rules| rules.rules == 0);
    let no_network = overview.networks.as_ref().is_some_and(Vec::is_empty);
    let no_container =
        overview.networks.as_ref().is_some_and(|networks| networks.iter().all(|network| network.containers.is_empty()));
    if bridge_down {
        "containers have no network at all; put it back with `outcall bridge up`"
    } else if !overview.ready.ready {
        "mend what is not ready; `journalctl -u outcalld` has the details"
    } else if no_rules {
        "write a rule in /etc/outcall/rules.d, try it with `outcall rules check`, then `outcall rules reload`"
    } else if no_network {
        "make a network with `outcall network create`"
    } else if no_container {
        "start a container with `docker run --network outcall-default …`"
    } else {
        "`outcall rules list` shows which rules match; `outcall dns test HOST` asks about a name"
    }
}
