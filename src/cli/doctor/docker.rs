//! Docker: whether it answers, and whether its containers are this kernel's to filter.
//!
//! Owns: the two calls. Does not own: anything that changes something.

use std::path::Path;

use serde::Deserialize;

use super::{bad, good};
use crate::api::{DoctorVerdict, Finding};
use crate::cli::client::{Client, peer_pid};

const DOCKER: &str = "docker";
/// Oldest API that the daemon's calls fit: Engine 20.10.
const OLDEST_API: (u32, u32) = (1, 41);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    version: String,
    api_version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Info {
    cgroup_driver: String,
    cgroup_version: String,
    security_options: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    state: State,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    pid: i32,
}

/// Asks the Engine.
pub(super) fn look(socket: &Path) -> Vec<Finding> {
    let engine = Client::new(socket);
    let shown = socket.display();
    let version: Version = match engine.plain("/version") {
        Ok(version) => version,
        Err(error) => {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            return vec![bad(
                DoctorVerdict::Problem,
                DOCKER,
                format!("no Engine answers at {shown}: {cause}"),
                "apt-get install docker.io, systemctl start docker, or name its socket with --docker-socket",
            )];
        }
    };
    let mut findings = Vec::new();
    let info: Info = engine.plain("/info").unwrap_or_default();
    let text = format!(
        "Engine {} (API {}) at {shown}, cgroup v{} by {}",
        version.version, version.api_version, info.cgroup_version, info.cgroup_driver
    );
    if parsed(&version.api_version).is_none_or(|api| api < OLDEST_API) {
        findings.push(bad(DoctorVerdict::Problem, DOCKER, format!("{text}: too old"), "install Engine 20.10 or later"));
    } else {
        findings.push(good(DOCKER, text));
    }
    if info.security_options.iter().any(|option| option.contains("name=rootless")) {
        findings.push(bad(
            DoctorVerdict::Problem,
            DOCKER,
            "the Engine is rootless: its bridges live in a network namespace of its own, where this daemon has no table",
            "use the Engine of the host, as root",
        ));
    }
    findings.push(pids(&engine, socket));
    findings
}

/// Whether this process sees the containers' processes: an agent is known by its process id.
fn pids(engine: &Client, socket: &Path) -> Finding {
    const PIDS: &str = "container pids";
    const REMEDY: &str = "run outcalld on the host, or in a container with the host's process ids (--pid host)";
    let running: Vec<Listed> = engine.plain("/containers/json?limit=1").unwrap_or_default();
    let Some(first) = running.first() else {
        // Nothing runs: the Engine's own process tells as much, where it made its socket itself.
        return match peer_pid(socket) {
            Some(0) => bad(DoctorVerdict::Problem, PIDS, "the Engine's process is not visible from here", REMEDY),
            _ => good(PIDS, "no container runs that could be looked for; the Engine's process is visible"),
        };
    };
    let id = &first.id;
    let short = id.get(..12).unwrap_or(id);
    let Ok(container) = engine.plain::<Inspected>(&format!("/containers/{id}/json")) else {
        return bad(DoctorVerdict::Unknown, PIDS, format!("container {short} went away"), "run `outcall doctor` again");
    };
    let pid = container.state.pid;
    // In a control group namespace of its own a container sees no id; the host does.
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    if groups.contains(id.as_str()) {
        good(PIDS, format!("container {short} is process {pid} here"))
    } else {
        bad(DoctorVerdict::Problem, PIDS, format!("process {pid} of container {short} is not visible as such"), REMEDY)
    }
}

/// `1.41` as numbers.
fn parsed(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_versions_are_compared_as_numbers() {
        assert!(parsed("1.100").unwrap() > OLDEST_API && parsed("1.9").unwrap() < OLDEST_API);
        assert_eq!(parsed("new"), None);
    }

    #[test]
    fn an_absent_engine_is_a_problem_with_a_remedy() {
        let found = look(Path::new("/nonexistent/docker.sock"));
        assert_eq!(found[0].verdict, DoctorVerdict::Problem);
        assert!(found[0].remedy.as_ref().unwrap().contains("--docker-socket"));
    }
}
