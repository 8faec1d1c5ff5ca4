//! Process descriptors: SO_PEERPIDFD (unix(7), since Linux 6.5) and pidfd_open(2). The system calls that Rust counts
//! as unsafe, and nothing else.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A process that cannot be taken for another one: its pid is not given out again while this is open.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// The process that connected `socket`; `Ok(None)` when this kernel has no SO_PEERPIDFD.
    ///
    /// # Errors
    /// What getsockopt(2) says; a process that has ended is an error as well.
    pub fn of_peer(socket: BorrowedFd<'_>) -> nix::Result<Option<Self>> {
        let mut descriptor: libc::c_int = -1;
        let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(|_| Errno::EINVAL)?;
        // SAFETY: the two pointers are to live values of the size that is passed with them, as SO_PEERPIDFD wants.
        let done = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERPIDFD,
                (&raw mut descriptor).cast(),
                &raw mut length,
            )
        };
        match Errno::result(done) {
            // SAFETY: the kernel made this descriptor for us in this call; nobody else has it.
            Ok(_) if descriptor >= 0 => Ok(Some(PidFd(unsafe { OwnedFd::from_raw_fd(descriptor) }))),
            Ok(_) => Err(Errno::ESRCH),
            Err(Errno::ENOPROTOOPT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The process that has `pid` now.
    ///
    /// # Errors
    /// What pidfd_open(2) says.
    pub fn open(pid: i32) -> nix::Result<Self> {
        // SAFETY: pidfd_open takes two integers and gives a new descriptor or an error.
        let descriptor = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        let descriptor = i32::try_from(descriptor).map_err(|_| Errno::EBADF)?;
        // SAFETY: the kernel made this descriptor for us in this call; nobody else has it.
        Ok(PidFd(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// True until the process has ended. What was read of its pid before a `true` was its own.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let mut descriptors = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        // Readable means ended (pidfd_open(2)); a failed poll says nothing, so it is not "alive".
        matches!(poll(&mut descriptors, PollTimeout::ZERO), Ok(0))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use super::*;

    #[test]
    fn the_peer_of_a_socket_is_the_process_that_made_it() {
        let (one, _other) = UnixStream::pair().unwrap();
        match PidFd::of_peer(one.as_fd()) {
            Ok(Some(own)) => assert!(own.is_alive()),
            Ok(None) => {}
            Err(errno) => panic!("{errno}"),
        }
    }

    #[test]
    fn an_ended_process_is_not_alive() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let descriptor = PidFd::open(child.id().cast_signed()).unwrap();
        assert!(descriptor.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!descriptor.is_alive());
        assert!(PidFd::open(child.id().cast_signed()).is_err());
    }
}
