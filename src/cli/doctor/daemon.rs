//! The daemon that runs, if one does: its sockets, its privileges, what it says of itself.
//!
//! Owns: looking. Does not own: what `/ready` holds.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use super::{bad, good};
use crate::api::{DoctorVerdict, Finding, HostProbe, Ready};
use crate::cli::client::Client;

const DAEMON: &str = "outcalld";
/// CAP_NET_BIND_SERVICE and CAP_NET_ADMIN (linux/capability.h).
const NEEDED: [(u32, &str); 2] = [(10, "CAP_NET_BIND_SERVICE"), (12, "CAP_NET_ADMIN")];
const START: &str = "systemctl start outcall-lockdown outcalld.socket outcall-agent.socket outcalld";
/// The sockets are systemd's: a restart of the daemon does not make a lost one again, and none of them restarts under it.
const RESTART: &str = "systemctl stop outcalld.socket outcall-agent.socket outcalld && systemctl start outcalld";

/// Everything about it.
pub(super) fn look(socket: &Path, probe: &HostProbe) -> Vec<Finding> {
    let Some(pid) = probe.running else {
        return vec![
            privileges("self", "the daemon needs root, or CAP_NET_ADMIN, CAP_NET_BIND_SERVICE and Docker's socket"),
            bad(DoctorVerdict::Problem, DAEMON, "does not run in this network namespace", START),
        ];
    };
    let mut findings = vec![
        privileges(&pid.to_string(), "give the unit CAP_NET_ADMIN and CAP_NET_BIND_SERVICE"),
        socket_file("operator socket", socket, 0o660),
        socket_file("agent socket", &probe.settings.agent_socket, 0o666),
    ];
    findings.extend(ready(socket, pid));
    findings
}

fn ready(socket: &Path, pid: i32) -> Vec<Finding> {
    let answer = match Client::new(socket).get_any::<Ready>("/ready") {
        Ok(answer) => answer,
        Err(error) => {
            let remedy = "run this as root or as a member of the group outcall; name the socket with --socket";
            return vec![bad(DoctorVerdict::Problem, DAEMON, format!("pid {pid} runs, but: {error}"), remedy)];
        }
    };
    let Some(ready) = answer.envelope.data else {
        let remedy = "journalctl -u outcalld";
        return vec![bad(DoctorVerdict::Problem, DAEMON, format!("/ready: status {}", answer.status), remedy)];
    };
    let parts = ready.parts.iter().filter(|(_, state)| !state.ok).map(|(part, state)| {
        let reason = state.reason.as_deref().unwrap_or("no reason given");
        bad(DoctorVerdict::Problem, DAEMON, format!("{part}: {reason}"), "journalctl -u outcalld has the details")
    });
    let warnings = ready.warnings.iter().map(|warning| Finding {
        area: DAEMON.to_owned(),
        verdict: DoctorVerdict::Warning,
        found: warning.clone(),
        remedy: None,
    });
    let mut findings: Vec<Finding> = parts.chain(warnings).collect();
    if findings.is_empty() {
        findings.push(good(DAEMON, format!("runs as pid {pid}, ready")));
    }
    findings
}

/// The capabilities in /proc/PROCESS/status.
fn privileges(process: &str, remedy: &str) -> Finding {
    const PRIVILEGES: &str = "privileges";
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let Some(effective) = effective(&status) else {
        return bad(
            DoctorVerdict::Unknown,
            PRIVILEGES,
            format!("/proc/{process}/status cannot be read"),
            "run this as root",
        );
    };
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(bit, _)| effective >> bit & 1 == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return good(PRIVILEGES, "CAP_NET_ADMIN and CAP_NET_BIND_SERVICE");
    }
    // Of this command's own process they only say what a start by hand from this shell would have.
    let verdict = if process == "self" { DoctorVerdict::Warning } else { DoctorVerdict::Problem };
    bad(verdict, PRIVILEGES, format!("without {}", missing.join(" and ")), remedy)
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn socket_file(area: &str, path: &Path, most: u32) -> Finding {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            bad(DoctorVerdict::Problem, area, format!("{shown} is no socket"), format!("remove it, then {RESTART}"))
        }
        Ok(found) => {
            let mode = found.permissions().mode() & 0o777;
            if mode & !most == 0 {
                good(area, format!("{shown}, mode {mode:04o}"))
            } else {
                let remedy = format!("chmod {most:04o} {shown}");
                bad(DoctorVerdict::Problem, area, format!("{shown} is open to everybody (mode {mode:04o})"), remedy)
            }
        }
        Err(error) => bad(DoctorVerdict::Problem, area, format!("{shown}: {error}"), RESTART),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_as_the_kernel_writes_them() {
        assert_eq!(effective("Name:\tx\nCapEff:\t0000000000001400\n"), Some(0x1400));
        assert_eq!(effective(""), None);
    }

    #[test]
    fn a_socket_that_is_a_file_is_a_problem() {
        let found = socket_file("operator socket", Path::new("/proc/self/status"), 0o660);
        assert_eq!(found.verdict, DoctorVerdict::Problem);
    }
}
