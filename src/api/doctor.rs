//! What `outcall doctor` prints, and what its helper `outcalld` tells it. Not part of the operator API: it works
//! without a running daemon.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DoctorVerdict {
    /// As it should be.
    Ok,
    /// It filters, but something will not work as expected.
    Warning,
    /// It could not filter, or not start.
    Problem,
    /// It could not be asked.
    Unknown,
}

/// One line of `outcall doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at: `kernel`, `docker`, …
    pub area: String,
    /// The verdict.
    pub verdict: DoctorVerdict,
    /// What was found.
    pub found: String,
    /// What to do about it; absent when there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remedy: Option<String>,
}

/// What `outcalld` found out about its host: one JSON object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostProbe {
    /// The daemon that holds this network namespace.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub running: Option<i32>,
    /// What the flags say.
    pub settings: ProbedSettings,
    /// Each kernel feature, tried in a network namespace made for that.
    pub kernel: Vec<ProbedFeature>,
    /// Why the kernel was not asked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kernel_unasked: Option<String>,
    /// Base chains and flowtables of others; absent when they could not be listed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub foreign: Option<Vec<ForeignHook>>,
    /// The resolver of the host that Docker would ask past every rule.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub resolver_trap: Option<String>,
    /// The upstream resolvers, or why there are none.
    pub upstreams: Result<Vec<String>, String>,
    /// The rules, loaded as a start would.
    pub rules: ProbedRules,
    /// The CA: loaded (with warnings), off (with the reason when the flags ask for one), or what is wrong.
    pub ca: ProbedCa,
}

/// What the daemon's flags mean to `outcall doctor`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProbedSettings {
    /// `--rules-dir`
    pub rules_dir: PathBuf,
    /// `--state-dir`
    pub state_dir: PathBuf,
    /// `--docker-socket`
    pub docker_socket: PathBuf,
    /// `--agent-socket-host-path`
    pub agent_socket: PathBuf,
    /// `--shim-host-path`
    pub shim: PathBuf,
    /// `--dns-port`
    pub dns_port: u16,
    /// The port of `--proxy-addr`; absent with `--no-proxy`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub proxy_port: Option<u16>,
}

/// What the loader says about the rules.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProbedRules {
    /// Whether a start would take them.
    pub valid: bool,
    /// The report of `outcalld --check`.
    pub report: String,
}

/// What the kernel said to one feature.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProbedFeature {
    /// The feature.
    pub feature: String,
    /// What was refused; absent when it works.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

/// A place where another tool's table meets packets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForeignHook {
    /// `inet filter input`, say: family, table and chain or flowtable.
    pub name: String,
    /// Where it hangs: `input`, `forward`, `ingress`, …; absent for a flowtable.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hook: Option<String>,
    /// Whether what no rule of it matches is dropped.
    pub drops: bool,
}

/// The CA of interception.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbedCa {
    /// Loaded, with what an operator should know.
    On(Vec<String>),
    /// Off, and why if the flags ask for it.
    Off(Option<String>),
    /// A start would stop here.
    Bad(String),
}
