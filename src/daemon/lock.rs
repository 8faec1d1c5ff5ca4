//! One daemon a network namespace: the table and the bridges have one owner.
//!
//! The lock is an abstract Unix socket: its name lives in the network namespace, as the table does, and the kernel
//! frees it however the process ends.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, listen, socket, sockopt};

const NAME: &[u8] = b"outcalld";

/// Held as long as the daemon lives.
#[derive(Debug)]
pub struct Lock {
    _socket: OwnedFd,
}

impl Lock {
    /// Takes the lock.
    ///
    /// # Errors
    /// One line: who has it, or why it cannot be taken.
    pub fn take() -> Result<Self, String> {
        let failed = |errno: Errno| format!("cannot take the daemon's lock (abstract socket @outcalld): {errno}");
        let socket =
            socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
                .map_err(failed)?;
        let name = UnixAddr::new_abstract(NAME).map_err(failed)?;
        let bound = bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &name);
        match bound {
            Ok(()) => {
                // Listening lets a second daemon ask the kernel who we are.
                listen(&socket, nix::sys::socket::Backlog::new(1).map_err(failed)?).map_err(failed)?;
                Ok(Lock { _socket: socket })
            }
            Err(Errno::EADDRINUSE) => Err(format!(
                "another outcalld{} runs in this network namespace and was left alone; stop it first",
                holder(&name).map(|pid| format!(" (pid {pid})")).unwrap_or_default()
            )),
            Err(errno) => Err(failed(errno)),
        }
    }
}

/// The process id of the daemon that holds this network namespace; takes root.
///
/// Read from /proc: a question to the lock's socket would stay in its queue, which holds two.
pub fn running() -> Option<i32> {
    let held = std::fs::read_to_string("/proc/net/unix").ok()?.lines().any(|line| line.ends_with(" @outcalld"));
    let here = std::fs::read_link("/proc/self/ns/net").ok()?;
    let mut found = None;
    for entry in std::fs::read_dir("/proc").ok().filter(|_| held)?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let file = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let is_daemon = file("comm") == b"outcalld\n"
            && std::fs::read_link(entry.path().join("ns/net")).is_ok_and(|namespace| namespace == here)
            // Not this helper, nor the child that tries rules.
            && !file("cmdline").split(|byte| *byte == 0).any(|word| word.starts_with(b"--internal-"));
        if is_daemon {
            found = Some(found.map_or(pid, |first: i32| first.min(pid)));
        }
    }
    found
}

fn holder(name: &UnixAddr) -> Option<i32> {
    let asking =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None).ok()?;
    nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&asking), name).ok()?;
    nix::sys::socket::getsockopt(&asking, sockopt::PeerCredentials).ok().map(|credentials| credentials.pid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_is_told_who_has_it() {
        // Another daemon on this machine would hold the name: then this test has seen the refusal already.
        let Ok(first) = Lock::take() else { return };
        let refused = Lock::take().unwrap_err();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        drop(first);
        Lock::take().unwrap();
    }
}
