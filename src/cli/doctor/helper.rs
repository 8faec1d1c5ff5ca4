//! `outcalld` as the helper: what only the daemon's own code can tell.
//!
//! Owns: running it, with the flags that the unit would give it. Does not own: what it tells.

use std::process::{Command, Stdio};

use super::bad;
use crate::api::{DoctorVerdict, Finding, HostProbe};
use crate::cli::daemon_program;

/// Where the package keeps the daemon's flags.
const DEFAULTS: &str = "/etc/default/outcalld";
/// Where the unit is, an operator's own first.
const UNITS: [&str; 2] = ["/etc/systemd/system/outcalld.service", "/usr/lib/systemd/system/outcalld.service"];
/// The helper's first argument, an agreement between the two programs of one version.
const PROBE_ARGUMENT: &str = "--internal-probe-host";

/// Asks `outcalld` about the host; a finding when it cannot tell.
pub(super) fn ask() -> Result<HostProbe, Finding> {
    const DAEMON: &str = "outcalld";
    let program = daemon_program::path();
    let problem = |found: String, remedy: &str| bad(DoctorVerdict::Problem, DAEMON, found, remedy);
    let ran = Command::new(&program).arg(PROBE_ARGUMENT).args(unit_flags()).stdin(Stdio::null()).output().map_err(
        |error| {
            problem(format!("cannot run {}: {error}", program.display()), "install outcalld beside outcall, or on PATH")
        },
    )?;
    let said = String::from_utf8_lossy(&ran.stderr);
    match ran.status.code() {
        Some(0) => serde_json::from_slice(&ran.stdout).map_err(|error| {
            problem(
                format!("{} gave an answer that is not understood ({error})", program.display()),
                "install outcall and outcalld of one version",
            )
        }),
        Some(2) => Err(problem(
            said.lines().next().unwrap_or("bad flags").trim_start_matches("error: ").to_owned(),
            "correct OUTCALLD_FLAGS in /etc/default/outcalld; outcalld --help lists the flags",
        )),
        _ => Err(problem(format!("{}: {}: {}", program.display(), ran.status, said.trim()), "see what it says")),
    }
}

/// The words that follow the program in the unit's `ExecStart=`, with those of the environment file in their place.
fn unit_flags() -> Vec<String> {
    let own = std::fs::read_to_string(DEFAULTS).map(|text| flags(&text)).unwrap_or_default();
    let unit = UNITS.iter().find_map(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap_or("outcalld $OUTCALLD_FLAGS");
    line.split_ascii_whitespace()
        .skip(1)
        .flat_map(|word| if word == "$OUTCALLD_FLAGS" { own.clone() } else { vec![word.to_owned()] })
        .collect()
}

/// The words of `OUTCALLD_FLAGS` in an environment file, quotes of the whole value taken off, split at blanks as
/// systemd does with `$OUTCALLD_FLAGS`.
fn flags(text: &str) -> Vec<String> {
    let value = text.lines().rev().find_map(|line| line.trim().strip_prefix("OUTCALLD_FLAGS=")).unwrap_or_default();
    value.trim().trim_matches(['"', '\'']).split_ascii_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_the_environment_file_are_split_as_systemd_does() {
        let text = "# comment\n#OUTCALLD_FLAGS=\"--no-proxy\"\nOUTCALLD_FLAGS=\"--bridge oc0  --dns-port 5353\"\n";
        assert_eq!(flags(text), ["--bridge", "oc0", "--dns-port", "5353"]);
        assert!(flags("OUTCALLD_FLAGS=\"\"\n").is_empty() && flags("").is_empty());
    }
}
