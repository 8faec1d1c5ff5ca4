//! Files and settings of the host: forwarding, the shim, the directory of the state.
//!
//! Owns: reading them. Does not own: sockets (`daemon.rs`).

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::{bad, good};
use crate::api::{DoctorVerdict, Finding, ProbedSettings};

/// Bytes that the decision log and the state should find free.
const FREE_BYTES: u64 = 64 << 20;

/// Whether the host forwards: without it direct flows go nowhere, and DNS and proxy work.
pub(super) fn forwarding() -> Finding {
    const SYSCTL: &str = "sysctl";
    const PATH: &str = "/proc/sys/net/ipv4/ip_forward";
    match fs::read_to_string(PATH) {
        Ok(value) if value.trim() == "0" => bad(
            DoctorVerdict::Warning,
            SYSCTL,
            "net.ipv4.ip_forward is 0: direct flows (egress.mode direct_ip) go nowhere; DNS and proxy work",
            "start Docker, which sets it, or sysctl -w net.ipv4.ip_forward=1",
        ),
        Ok(_) => good(SYSCTL, "net.ipv4.ip_forward is on"),
        Err(error) => bad(DoctorVerdict::Unknown, SYSCTL, format!("{PATH}: {error}"), "mount /proc"),
    }
}

/// The shim and the state directory.
pub(super) fn look(settings: &ProbedSettings) -> Vec<Finding> {
    vec![shim(&settings.shim), state(&settings.state_dir)]
}

fn shim(path: &Path) -> Finding {
    const SHIM: &str = "shim";
    let shown = path.display();
    let remedy = "install outcall-agent there, or name it with --shim-host-path";
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => bad(
            DoctorVerdict::Warning,
            SHIM,
            format!("{shown} is no regular file, and is not mounted into containers"),
            remedy,
        ),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => {
            bad(DoctorVerdict::Warning, SHIM, format!("{shown} is not executable"), remedy)
        }
        Ok(_) => good(SHIM, shown.to_string()),
        Err(error) => bad(
            DoctorVerdict::Warning,
            SHIM,
            format!("{shown}: {error}: containers have no shim, and are filtered all the same"),
            remedy,
        ),
    }
}

fn state(path: &Path) -> Finding {
    const STATE: &str = "state";
    let shown = path.display();
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let owner = fs::metadata(path).map(|found| (found.uid(), found.permissions().mode() & 0o7777));
    if let Ok((uid, mode)) = owner
        && mode & 0o022 != 0
    {
        return bad(
            DoctorVerdict::Warning,
            STATE,
            format!("{shown} (uid {uid}, mode {mode:04o}) can be written by others, who could change pending requests"),
            format!("chmod 0700 {shown}"),
        );
    }
    match nix::sys::statvfs::statvfs(existing) {
        Ok(disk) => {
            let free = disk.blocks_available().saturating_mul(disk.fragment_size());
            if free < FREE_BYTES {
                return bad(
                    DoctorVerdict::Warning,
                    STATE,
                    format!(
                        "{shown}: {} MiB are free: decisions will not be logged; enforcement does not stop",
                        free >> 20
                    ),
                    "make room, or lower --decision-log-bytes and --decision-log-files",
                );
            }
            good(STATE, format!("{shown}, {} MiB free", free >> 20))
        }
        Err(errno) => {
            bad(DoctorVerdict::Unknown, STATE, format!("{shown}: {}", errno.desc()), "see that the path exists")
        }
    }
}
