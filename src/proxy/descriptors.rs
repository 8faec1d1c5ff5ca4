//! The limit on file descriptors: raised to fit the connections asked for, or the start says what fits.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::StartError;

/// Descriptors of a client connection: its own socket and one to an upstream.
const PER_CONNECTION: u64 = 2;

/// Descriptors for everything else in the process: refusals above the cap, DNS sockets, Docker, netlink, state files, the
/// pipes of tunnels at full speed (`splice::PIPES_MAX`, two each).
const RESERVE: u64 = 1024;

/// Makes room for `connections` client connections.
pub(super) fn make_room(connections: usize) -> Result<(), StartError> {
    let needed = PER_CONNECTION * connections as u64 + RESERVE;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| refused(needed, 0, errno))?;
    if soft >= needed {
        return Ok(());
    }
    // Raising the hard limit wants CAP_SYS_RESOURCE; below it nothing is wanted.
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed)).map_err(|errno| refused(needed, hard, errno))
}

fn refused(needed: u64, limit: u64, errno: nix::Error) -> StartError {
    let fits = limit.saturating_sub(RESERVE) / PER_CONNECTION;
    StartError::Descriptors { needed, limit, fits, source: errno.into() }
}
