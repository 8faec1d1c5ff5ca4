//! Pipes through which a tunnel's bytes move without a copy into this process: splice(2).
//!
//! Owns: a small pool of pipes and the two calls. Does not own: when a tunnel is worth one (`tunnel`), the sockets'
//! flags (`leg`). A pipe is lent only while a direction has bytes to move, so idle tunnels hold none; when none is
//! left, the tunnel copies as usual.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

/// Bytes that a pipe is asked to hold: four times the kernel's default, so that fewer calls move as much.
const PIPE_SIZE: i32 = 256 << 10;
/// Pipes in all, two descriptors each: more directions at full speed than a host's network gives work to.
pub(super) const PIPES_MAX: usize = 64;
/// Empty pipes that are kept: an idle daemon need not hold those of its busiest hour.
const SPARE_MAX: usize = 4;

/// A pipe and how many bytes are in it.
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    filled: usize,
}

impl Pipe {
    fn new() -> nix::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Over a user's share of pipe pages it stays as it is, which works too.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
        Ok(Pipe { read, write, filled: 0 })
    }

    /// Whether nothing waits in it.
    pub(super) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Moves what `socket` has into this pipe, which is empty: then `WouldBlock` speaks of the socket. 0 is its end.
    pub(super) fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let bytes = moved(|| splice(&socket, None, &self.write, None, PIPE_SIZE as usize, flags()))?;
        self.filled += bytes;
        Ok(bytes)
    }

    /// Moves what is in it into `socket`: how much that took.
    pub(super) fn drain(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let bytes = moved(|| splice(&self.read, None, &socket, None, self.filled, flags()))?;
        self.filled -= bytes;
        Ok(bytes)
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

fn moved(call: impl Fn() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// The pipes there are.
#[derive(Default)]
pub(super) struct Pipes {
    spare: Vec<Pipe>,
    lent: usize,
}

impl Pipes {
    /// An empty pipe; `None` when there are enough, or the kernel has none.
    pub(super) fn lend(&mut self) -> Option<Pipe> {
        if self.lent >= PIPES_MAX {
            return None;
        }
        let pipe = self.spare.pop().or_else(|| Pipe::new().ok())?;
        self.lent += 1;
        Some(pipe)
    }

    /// Takes a pipe back. One that still holds bytes is closed: they belong to nobody else.
    pub(super) fn take_back(&mut self, pipe: Pipe) {
        self.lent = self.lent.saturating_sub(1);
        if pipe.is_empty() && self.spare.len() < SPARE_MAX {
            self.spare.push(pipe);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_pass_unchanged_and_an_empty_source_blocks() {
        let (mut far, near) = UnixStream::pair().unwrap();
        let (out, mut end) = UnixStream::pair().unwrap();
        for socket in [&near, &out] {
            socket.set_nonblocking(true).unwrap();
        }
        let mut pipe = Pipe::new().unwrap();
        assert_eq!(pipe.fill(&near).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        far.write_all(b"as they came").unwrap();
        assert_eq!(pipe.fill(&near).unwrap(), 12);
        assert!(!pipe.is_empty());
        assert_eq!(pipe.drain(&out).unwrap(), 12);
        let mut got = [0; 12];
        end.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"as they came");
        drop(far);
        assert_eq!(pipe.fill(&near).unwrap(), 0);
    }

    #[test]
    fn a_pipe_with_somebodys_bytes_is_never_lent_again() {
        let (mut far, near) = UnixStream::pair().unwrap();
        let mut pipes = Pipes::default();
        let mut pipe = pipes.lend().unwrap();
        far.write_all(b"secret").unwrap();
        pipe.fill(&near).unwrap();
        pipes.take_back(pipe);
        assert!(pipes.spare.is_empty());
        let clean = pipes.lend().unwrap();
        assert!(clean.is_empty());
        pipes.take_back(clean);
        assert_eq!((pipes.spare.len(), pipes.lent), (1, 0));
    }

    #[test]
    fn pipes_are_bounded() {
        let mut pipes = Pipes::default();
        let held: Vec<Pipe> = std::iter::from_fn(|| pipes.lend()).take(PIPES_MAX + 1).collect();
        assert_eq!(held.len(), PIPES_MAX);
    }
}
