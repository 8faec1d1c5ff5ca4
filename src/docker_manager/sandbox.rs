//! A container's first process, before Docker tells it.
//!
//! Docker answers a container's inspection only when its start has ended, some milliseconds after the process's first
//! instruction. The kernel knows earlier: when the veth's peer moves into the namespace, the runtime's init already
//! sits in the container's control group, whose name holds the container's id.
//!
//! Owns: the layouts of the control group tree that the Engine uses. Does not own: namespaces, veths (`bridge`).

use std::path::Path;

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// Where a container's group lies: v2 and v1, with the cgroupfs and with the systemd driver. v1 has a tree for each
/// controller; any of these exists on every kernel that Docker runs on.
const LAYOUTS: [(&str, &str); 6] = [
    ("system.slice/docker-", ".scope"),
    ("docker/", ""),
    ("pids/docker/", ""),
    ("memory/docker/", ""),
    ("pids/system.slice/docker-", ".scope"),
    ("memory/system.slice/docker-", ".scope"),
];

/// The first process in the control group of the container `id` (64 hex digits), which is its init, also while it is
/// being started. `None` when there is none, or when `--cgroup-parent` put it elsewhere: Docker tells it later then.
#[must_use]
pub fn init_pid(id: &str) -> Option<i32> {
    init_pid_under(Path::new(MOUNT), id)
}

fn init_pid_under(mount: &Path, id: &str) -> Option<i32> {
    if id.len() != 64 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let groups = LAYOUTS.iter().map(|(before, after)| mount.join(format!("{before}{id}{after}")));
    groups.flat_map(|group| first_pid(&group)).next()
}

/// The lowest process of the group: the kernel lists them in no order that is promised, and init is the oldest unless
/// process ids wrapped around since, which a container that is just starting has no time for.
fn first_pid(group: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(group.join("cgroup.procs")).ok()?;
    text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_is_found_in_every_layout_and_ids_never_leave_the_tree() {
        let root = std::env::temp_dir().join(format!("outcall-cgroup-{}", std::process::id()));
        let id = "ab".repeat(32);
        for (before, after) in LAYOUTS {
            let group = root.join(format!("{before}{id}{after}"));
            std::fs::create_dir_all(&group).unwrap();
            std::fs::write(group.join("cgroup.procs"), "42\n7\n").unwrap();
            assert_eq!(init_pid_under(&root, &id), Some(7), "{before}");
            std::fs::remove_dir_all(&root).unwrap();
        }
        assert_eq!(init_pid_under(&root, &id), None);
        assert_eq!(init_pid_under(&root, "../../etc"), None);
    }
}
