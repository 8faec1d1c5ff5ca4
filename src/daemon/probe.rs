//! `outcalld` as the helper of `outcall doctor`: what its own code makes of the host it is on.
//!
//! A helper of the daemon and not a part of the command, which links no kernel library: what is asked is then exactly
//! what a start would do. Owns: the collection and its output. Does not own: the questions. Touches nothing: the kernel
//! is tried in a network namespace that goes with this process.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::process::ExitCode;

use clap::Parser as _;

use super::Flags;
use super::interception::{self, Interception};
use super::lock;
use super::settings::{bridge_config, load_options};
use crate::api::{HostProbe, ProbedCa, ProbedFeature, ProbedRules, ProbedSettings};
use crate::bridge;
use crate::docker_manager::{HostFiles, resolver_trap};
use crate::rule_engine;

/// The first argument that makes `outcalld` this helper; the flags of the daemon follow.
pub const PROBE_ARGUMENT: &str = "--internal-probe-host";

/// Prints a [`HostProbe`]. The flags are those of the daemon that runs in this network namespace, else those given; bad
/// ones end with exit code 2, as a start would.
#[must_use]
pub fn probe_host(given: impl Iterator<Item = OsString>) -> ExitCode {
    let running = lock::running();
    let flags = running
        .and_then(flags_of)
        .unwrap_or_else(|| Flags::parse_from(std::iter::once(OsString::from("outcalld")).chain(given)));
    let ca = match interception::load(&flags) {
        Ok(Interception::On(_, warnings)) => ProbedCa::On(warnings),
        Ok(Interception::Off(reason)) => ProbedCa::Off(reason),
        Err(error) => ProbedCa::Bad(error.to_string()),
    };
    let options = load_options(&flags, matches!(ca, ProbedCa::On(_)));
    let checked = rule_engine::check(&flags.rules_dir, &options);
    // Before the kernel is tried, which leaves this namespace.
    let foreign = bridge::foreign_hooks().ok();
    let (kernel, kernel_unasked) = match bridge::probe(&bridge_config(&flags)) {
        Ok(probed) => (probed, None),
        Err(errno) => (Vec::new(), Some(format!("cannot make a network namespace to try it in: {}", errno.desc()))),
    };
    let probe = HostProbe {
        running,
        kernel: kernel
            .into_iter()
            .map(|(feature, error)| ProbedFeature { feature: feature.to_owned(), error })
            .collect(),
        kernel_unasked,
        foreign,
        resolver_trap: resolver_trap(&HostFiles::default()).map(|server| server.to_string()),
        upstreams: flags.upstreams().map(|servers| servers.iter().map(ToString::to_string).collect()),
        rules: ProbedRules { valid: checked.valid, report: checked.report.join("\n") },
        ca,
        settings: ProbedSettings {
            dns_port: flags.dns_port,
            proxy_port: (!flags.no_proxy).then(|| flags.proxy_addr.port()),
            rules_dir: flags.rules_dir,
            state_dir: flags.state_dir,
            docker_socket: flags.docker_socket,
            agent_socket: flags.agent_socket_host_path,
            shim: flags.shim_host_path,
        },
    };
    match serde_json::to_string(&probe) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cannot print what was found: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The flags that process `pid` was started with; `None` when they cannot be read or are another version's.
fn flags_of(pid: i32) -> Option<Flags> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = line.strip_suffix(&[0]).unwrap_or(&line).split(|byte| *byte == 0);
    Flags::try_parse_from(words.map(|word| OsString::from_vec(word.to_vec()))).ok()
}
