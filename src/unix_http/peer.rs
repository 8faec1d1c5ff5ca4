//! Who connected: the kernel's word (SO_PEERCRED, unix(7)), and the container its process is in (cgroups(7)).

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::{getsockopt, sockopt};

use super::pidfd::PidFd;

/// Length of a container's id in hex digits, in every runtime that puts it into a cgroup's name.
const CONTAINER_ID: usize = 64;

/// The process that called connect(2), as the kernel recorded it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// In the daemon's pid namespace; 0 when it is not visible there.
    pub pid: i32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

impl Peer {
    /// The peer of a connected Unix socket.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn of(socket: &impl AsFd) -> std::io::Result<Self> {
        let credentials = getsockopt(socket, sockopt::PeerCredentials)?;
        Ok(Peer { pid: credentials.pid(), uid: credentials.uid(), gid: credentials.gid() })
    }
}

/// Where a peer's process is, compared with the daemon's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerContainer {
    /// On the host, or in the daemon's own container.
    Own,
    /// In another container; its id.
    Other(String),
    /// It has ended, or is in a pid namespace that the daemon does not see.
    Unknown,
}

/// In which container the process of `peer`, which connected `socket`, is: by the container ids in the cgroup paths of
/// both (cgroup v1 and v2). It is held while they are read and must be alive afterwards, so that a process that got its
/// pid while the connection waited is not taken for it; before Linux 6.5 its pid alone has to do.
#[must_use]
pub fn container_of_peer(peer: Peer, socket: BorrowedFd<'_>) -> PeerContainer {
    if peer.pid <= 0 {
        return PeerContainer::Unknown;
    }
    let Ok(process) = PidFd::of_peer(socket) else {
        return PeerContainer::Unknown;
    };
    let read = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
    let (Ok(own), Ok(theirs)) = (read("self"), read(&peer.pid.to_string())) else {
        return PeerContainer::Unknown;
    };
    if process.is_some_and(|process| !process.is_alive()) {
        return PeerContainer::Unknown;
    }
    compare(&own, &theirs)
}

/// The innermost container of this process, by its cgroup paths. `None` where there is none, or where a cgroup
/// namespace hides it.
#[must_use]
pub fn own_container() -> Option<String> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    container_path(&own).last().map(|id| (*id).to_owned())
}

fn compare(own: &str, theirs: &str) -> PeerContainer {
    let own = container_path(own);
    let theirs = container_path(theirs);
    match theirs.last() {
        None => PeerContainer::Own,
        Some(_) if theirs == own => PeerContainer::Own,
        Some(innermost) => PeerContainer::Other((*innermost).to_owned()),
    }
}

/// The container ids of the line of `/proc/PID/cgroup` that has most of them, outermost first: a container in a
/// container has two. Lines are `hierarchy:controllers:path`; the id stands alone (`/docker/ID`) or within a unit
/// name (`docker-ID.scope`, `cri-containerd-ID.scope`).
fn container_path(cgroup: &str) -> Vec<&str> {
    cgroup
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .map(|path| path.split('/').filter_map(container_id).collect::<Vec<_>>())
        .max_by_key(Vec::len)
        .unwrap_or_default()
}

fn container_id(segment: &str) -> Option<&str> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let id = name.rsplit(['-', ':']).next()?;
    (id.len() == CONTAINER_ID && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn id(digit: char) -> String {
        std::iter::repeat_n(digit, CONTAINER_ID).collect()
    }

    #[test]
    fn processes_of_the_host_and_of_the_own_container_are_own() {
        let host = "0::/user.slice/user-0.slice/session-3.scope\n";
        let daemon = "0::/system.slice/outcalld.service\n";
        assert_eq!(compare(daemon, host), PeerContainer::Own);
        let contained = format!("0::/system.slice/docker-{}.scope\n", id('a'));
        assert_eq!(compare(&contained, &contained), PeerContainer::Own);
        assert_eq!(compare(&contained, host), PeerContainer::Own);
    }

    #[test]
    fn processes_of_other_containers_are_told_in_both_cgroup_versions() {
        let daemon = "0::/system.slice/outcalld.service\n";
        let forms = [
            format!("0::/system.slice/docker-{}.scope\n", id('b')),
            format!("0::/../{}\n", id('b')),
            format!("12:pids:/docker/{0}\n1:name=systemd:/docker/{0}\n0::/\n", id('b')),
            format!("0::/kubepods.slice/cri-containerd-{}.scope/init\n", id('b')),
            format!("0::/kubepods-besteffort-pod1.slice:cri-containerd:{}\n", id('b')),
        ];
        for form in forms {
            assert_eq!(compare(daemon, &form), PeerContainer::Other(id('b')), "{form}");
        }
    }

    #[test]
    fn a_container_inside_the_daemons_own_is_another_one() {
        let daemon = format!("4:memory:/docker/{}\n", id('a'));
        let nested = format!("4:memory:/docker/{}/docker/{}\n", id('a'), id('b'));
        assert_eq!(compare(&daemon, &nested), PeerContainer::Other(id('b')));
    }

    #[test]
    fn a_peer_without_a_visible_process_is_unknown() {
        let (one, _other) = UnixStream::pair().unwrap();
        let container = |pid, socket: &UnixStream| container_of_peer(Peer { pid, uid: 0, gid: 0 }, socket.as_fd());
        assert_eq!(container(0, &one), PeerContainer::Unknown);
        assert_eq!(container(std::process::id().cast_signed(), &one), PeerContainer::Own);
    }

    #[test]
    fn a_process_that_got_the_pid_of_a_peer_that_ended_is_not_taken_for_it() {
        let path = std::env::temp_dir().join(format!("outcall-peer-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let script = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])";
        let Ok(mut child) = std::process::Command::new("python3").arg("-c").arg(script).arg(&path).spawn() else {
            std::fs::remove_file(&path).unwrap();
            return;
        };
        let (stream, _) = listener.accept().unwrap();
        let has_pidfd = !matches!(PidFd::of_peer(stream.as_fd()), Ok(None));
        child.wait().unwrap();
        std::fs::remove_file(&path).unwrap();
        // This process stands for the one that has the pid now.
        let peer = Peer { pid: std::process::id().cast_signed(), uid: 0, gid: 0 };
        let expected = if has_pidfd { PeerContainer::Unknown } else { PeerContainer::Own };
        assert_eq!(container_of_peer(peer, stream.as_fd()), expected);
    }
}
