//! Who is asking: from the kernel alone. A connected socket gives a process, its cgroup gives a container id.
//!
//! Nothing that an agent says or can change takes part. The process is held by a pidfd while `/proc` is read, and
//! must still be alive afterwards: a pid that was given to another process meanwhile is never taken for the peer. A
//! process can move itself only below the cgroup that the container was started in, so the outermost container id
//! of its path is the right one, whatever sub-cgroups it makes and names.
//!
//! Whether the container is on a managed network is not decided here: that is the directory's word.

use std::io::Read as _;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::unix_http::PidFd;

/// Length of a container id in hex digits.
const CONTAINER_ID: usize = 64;
/// Bytes read of `/proc/PID/cgroup`: cgroup v1 has some 14 lines, each with a path of at most PATH_MAX.
const CGROUP_MAX: u64 = 64 * 1024;
/// For connecting to Docker's socket, once, at the start.
const CONNECT_WITHIN_MS: i64 = 1000;

/// Why a peer has no container.
#[derive(Debug)]
pub enum Unidentified {
    /// Its pid is not visible in the daemon's pid namespace.
    PidHidden,
    /// It ended before it was looked at.
    Gone,
    /// It runs on the host, or in the daemon's own container.
    NoContainer,
    /// Its cgroups name more than one container.
    Ambiguous,
    /// Its cgroups cannot be read.
    Unreadable(std::io::Error),
}

impl std::fmt::Display for Unidentified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unidentified::PidHidden => f.write_str(
                "its process is not visible to outcalld; run outcalld on the host, or its container with --pid=host",
            ),
            Unidentified::Gone => f.write_str("its process has ended"),
            Unidentified::NoContainer => f.write_str("its process is in no container"),
            Unidentified::Ambiguous => f.write_str("its cgroups name more than one container"),
            Unidentified::Unreadable(error) => write!(f, "its cgroups cannot be read ({error})"),
        }
    }
}

impl std::error::Error for Unidentified {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Unidentified::Unreadable(error) => Some(error),
            _ => None,
        }
    }
}

/// Tells which container a peer is in.
#[derive(Debug)]
pub struct Identifier {
    /// The daemon's own `/proc/self/cgroup`: what is outside of everything it sees.
    own: String,
}

impl Identifier {
    /// Reads the daemon's own place.
    ///
    /// # Errors
    /// When `/proc/self/cgroup` cannot be read.
    pub fn new() -> std::io::Result<Self> {
        Ok(Identifier { own: read_cgroup("self")? })
    }

    /// The id of the container that the process `pid`, which connected `socket`, is in.
    ///
    /// # Errors
    /// [`Unidentified`]: it is not served.
    pub fn container_of(&self, socket: BorrowedFd<'_>, pid: i32) -> Result<String, Unidentified> {
        if pid <= 0 {
            return Err(Unidentified::PidHidden);
        }
        let process = match PidFd::of_peer(socket) {
            Ok(Some(process)) => process,
            // Before Linux 6.5: the pid of the credentials, held from here on.
            Ok(None) => PidFd::open(pid).map_err(|_| Unidentified::Gone)?,
            Err(_) => return Err(Unidentified::Gone),
        };
        let cgroup = read_cgroup(&pid.to_string());
        if !process.is_alive() {
            return Err(Unidentified::Gone);
        }
        container_id(&self.own, &cgroup.map_err(Unidentified::Unreadable)?)
    }
}

fn read_cgroup(process: &str) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(format!("/proc/{process}/cgroup"))?.take(CGROUP_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The container of a `/proc/PID/cgroup` (cgroups(7): lines `hierarchy:controllers:path`), both texts read by the
/// daemon, `own` being its own. Every hierarchy that names a container must name the same one.
fn container_id(own: &str, theirs: &str) -> Result<String, Unidentified> {
    let mut found: Option<&str> = None;
    for (controllers, path) in theirs.lines().filter_map(controllers_and_path) {
        let around: Vec<&str> = own
            .lines()
            .filter_map(controllers_and_path)
            .find(|(own_controllers, _)| *own_controllers == controllers)
            .map(|(_, path)| ids(path).collect())
            .unwrap_or_default();
        let path: Vec<&str> = ids(path).collect();
        // A daemon in a container sees its own container around those that run beside it in the same one.
        let inside = path.strip_prefix(around.as_slice()).unwrap_or(&path);
        match (inside.first(), found) {
            (None, _) => {}
            (Some(id), None) => found = Some(id),
            (Some(id), Some(other)) if *id == other => {}
            (Some(_), Some(_)) => return Err(Unidentified::Ambiguous),
        }
    }
    found.map(str::to_owned).ok_or(Unidentified::NoContainer)
}

fn controllers_and_path(line: &str) -> Option<(&str, &str)> {
    let mut parts = line.splitn(3, ':').skip(1);
    Some((parts.next()?, parts.next()?))
}

/// Container ids in a cgroup path, outermost first.
fn ids(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(segment_id)
}

/// Docker's two cgroup drivers: `ID` (cgroupfs) and `docker-ID.scope` (systemd).
fn segment_id(segment: &str) -> Option<&str> {
    let id = segment.strip_prefix("docker-").and_then(|rest| rest.strip_suffix(".scope")).unwrap_or(segment);
    let hex = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (id.len() == CONTAINER_ID && hex).then_some(id)
}

/// Whether the processes of Docker's containers can be seen from here: not when Docker itself is in a pid namespace
/// around ours. `None`: Docker does not answer, so nobody can tell.
#[must_use]
pub fn containers_are_visible(docker: &Path) -> Option<bool> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    // A full backlog would hold us here.
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::milliseconds(CONNECT_WITHIN_MS)).ok()?;
    let address = UnixAddr::new(docker).ok()?;
    match connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address) {
        Ok(()) => {}
        Err(_) => return None,
    }
    // The credentials of whoever listens, in our pid namespace; 0: it is not in ours.
    Some(getsockopt(&socket, sockopt::PeerCredentials).ok()?.pid() != 0)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    const HOST: &str = "0::/system.slice/outcalld.service\n";

    fn id(digit: char) -> String {
        std::iter::repeat_n(digit, CONTAINER_ID).collect()
    }

    fn of(own: &str, theirs: &str) -> Option<String> {
        container_id(own, theirs).ok()
    }

    #[test]
    fn both_cgroup_versions_and_both_drivers_are_read() {
        let a = id('a');
        for theirs in [
            format!("0::/docker/{a}\n"),
            format!("0::/system.slice/docker-{a}.scope\n"),
            format!("0::/user.slice/user-1000.slice/user@1000.service/app.slice/docker-{a}.scope\n"),
            format!("12:pids:/docker/{a}\n5:cpu,cpuacct:/docker/{a}\n1:name=systemd:/docker/{a}\n0::/\n"),
            format!("12:pids:/system.slice/docker-{a}.scope\n0::/system.slice/containerd.service\n"),
            format!("0::/custom-parent/{a}\n"),
            format!("0::/../../docker/{a}\n"),
            format!("0::/docker/{a}/init\n"),
        ] {
            assert_eq!(of(HOST, &theirs).as_ref(), Some(&a), "{theirs}");
        }
    }

    #[test]
    fn a_container_cannot_name_itself_another_one_with_cgroups_of_its_own() {
        let (own, victim) = (id('a'), id('b'));
        for theirs in [
            format!("0::/docker/{own}/{victim}\n"),
            format!("0::/docker/{own}/docker/{victim}\n"),
            format!("0::/system.slice/docker-{own}.scope/docker-{victim}.scope\n"),
        ] {
            assert_eq!(of(HOST, &theirs).as_ref(), Some(&own), "{theirs}");
        }
        let torn = format!("3:memory:/docker/{own}\n4:pids:/docker/{victim}\n");
        assert!(matches!(container_id(HOST, &torn), Err(Unidentified::Ambiguous)));
    }

    #[test]
    fn what_is_no_docker_container_has_no_identity() {
        let a = id('a');
        for theirs in [
            "0::/\n".to_owned(),
            String::new(),
            "0::/user.slice/user-0.slice/session-3.scope\n".to_owned(),
            format!("0::/docker/{}\n", &a[1..]),
            format!("0::/docker/{a}0\n"),
            format!("0::/docker/{}\n", a.to_uppercase()),
            format!("0::/machine.slice/libpod-{a}.scope\n"),
            format!("0::/docker/{a} (deleted)\n"),
            format!("0::/system.slice/xdocker-{a}.scope\n"),
            "no colons at all\n".to_owned(),
        ] {
            assert!(matches!(container_id(HOST, &theirs), Err(Unidentified::NoContainer)), "{theirs}");
        }
    }

    #[test]
    fn a_daemon_in_a_container_looks_behind_its_own() {
        let (outer, inner) = (id('a'), id('b'));
        let own = format!("4:memory:/docker/{outer}\n0::/\n");
        assert_eq!(of(&own, &format!("4:memory:/docker/{outer}/docker/{inner}\n")), Some(inner.clone()));
        assert_eq!(of(&own, &format!("4:memory:/docker/{outer}\n")), None);
        // A container beside it, on the host.
        assert_eq!(of(&own, &format!("4:memory:/docker/{inner}\n")), Some(inner));
    }

    #[test]
    fn a_process_of_the_host_is_in_no_container_and_one_that_ended_is_gone() {
        let identifier = Identifier { own: read_cgroup("self").unwrap() };
        let (one, _other) = UnixStream::pair().unwrap();
        let own = std::process::id().cast_signed();
        assert!(matches!(identifier.container_of(one.as_fd(), own), Err(Unidentified::NoContainer)));
        assert!(matches!(identifier.container_of(one.as_fd(), 0), Err(Unidentified::PidHidden)));

        let path = std::env::temp_dir().join(format!("outcall-identity-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let script = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])";
        let Ok(mut child) = std::process::Command::new("python3").arg("-c").arg(script).arg(&path).spawn() else {
            std::fs::remove_file(&path).unwrap();
            return;
        };
        let (stream, _) = listener.accept().unwrap();
        child.wait().unwrap();
        let gone = identifier.container_of(stream.as_fd(), child.id().cast_signed());
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(gone, Err(Unidentified::Gone)), "{gone:?}");
    }

    #[test]
    fn a_listener_of_our_own_pid_namespace_is_visible_and_nobody_is_unknown() {
        let path = std::env::temp_dir().join(format!("outcall-visible-{}.sock", std::process::id()));
        let _listener = UnixListener::bind(&path).unwrap();
        assert_eq!(containers_are_visible(&path), Some(true));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(containers_are_visible(&path), None);
    }
}
