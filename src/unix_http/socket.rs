//! The socket file: made with its mode and group before anybody can connect, replaced only when it is a socket on
//! which nobody answers, removed only when it is still the one made here.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};

/// Mode of the socket's directory when it is made here.
const DIRECTORY_MODE: u32 = 0o755;
/// Mode of the lock file.
const LOCK_MODE: u32 = 0o600;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Largest group file read, in bytes; a host's has a few KiB.
const GROUP_FILE_MAX: u64 = 1024 * 1024;

/// Why there is no socket.
#[derive(Debug)]
pub enum SocketError {
    /// A daemon serves it already.
    AnotherAnswers {
        /// The socket.
        path: PathBuf,
    },
    /// Something else than a socket is there; it is left alone.
    NotASocket {
        /// Where.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A call failed.
    System {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl std::fmt::Display for SocketError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SocketError::AnotherAnswers { path } => {
                write!(
                    f,
                    "another outcalld answers at {}: stop it first, or give this one another path",
                    path.display()
                )
            }
            SocketError::NotASocket { path, what } => {
                write!(f, "{} is {what}, not a socket: move it away, or give another path", path.display())
            }
            SocketError::System { operation, path, source } => {
                write!(f, "cannot {operation} {}: {source}", path.display())
            }
        }
    }
}

impl std::error::Error for SocketError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SocketError::System { source, .. } => Some(source),
            SocketError::AnotherAnswers { .. } | SocketError::NotASocket { .. } => None,
        }
    }
}

/// A socket file made here. Dropping it removes the file if it is still the same one.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Somebody else made it, and removes it.
    foreign: bool,
    _lock: Lock,
}

/// `PATH.lock`, held for as long as the socket is: two daemons that start at the same moment cannot both find the
/// path free. The kernel lets go of it however the daemon ends.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _held: Flock<File>,
}

impl SocketFile {
    /// Makes `path` (and its directory), with `mode`, owned by `group` where /etc/group has it, and listens.
    ///
    /// Where the group may not be given (no CAP_CHOWN), the file stays with the process's own group and the second
    /// part of the answer says so: less is open then, not more.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn listen(
        path: &Path,
        mode: u32,
        group: Option<&str>,
    ) -> Result<(UnixListener, SocketFile, Option<String>), SocketError> {
        let system = |operation: &'static str, source: std::io::Error| SocketError::System {
            operation,
            path: path.to_owned(),
            source,
        };
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        make_directory(directory)?;
        let lock = Lock::take(path)?;
        if another_answers(path)? {
            return Err(SocketError::AnotherAnswers { path: path.to_owned() });
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(system("remove the stale socket", error)),
            _ => {}
        }
        let address = UnixAddr::new(path).map_err(|errno| system("use as a socket's path", errno.into()))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .map_err(|errno| system("make a socket for", errno.into()))?;
        bind(fd.as_raw_fd(), &address).map_err(|errno| system("bind", errno.into()))?;
        // Nobody can connect before listen(2), so mode and group are right from the first moment.
        let made = fs::symlink_metadata(path).map_err(|error| system("look at", error))?;
        let file =
            SocketFile { path: path.to_owned(), device: made.dev(), inode: made.ino(), foreign: false, _lock: lock };
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(|error| system("set the mode of", error))?;
        let warning = give_to_group(path, group);
        let backlog = Backlog::new(BACKLOG).map_err(|errno| system("listen on", errno.into()))?;
        listen(&fd, backlog).map_err(|errno| system("listen on", errno.into()))?;
        Ok((UnixListener::from(fd), file, warning))
    }

    /// The file of a socket that the service manager made, bound and listens on: it stays when this is dropped.
    ///
    /// # Errors
    /// [`SocketError`]: also when another daemon holds it.
    pub fn adopt(path: &Path) -> Result<SocketFile, SocketError> {
        let lock = Lock::take(path)?;
        let made = fs::symlink_metadata(path).map_err(|source| SocketError::System {
            operation: "look at",
            path: path.to_owned(),
            source,
        })?;
        Ok(SocketFile { path: path.to_owned(), device: made.dev(), inode: made.ino(), foreign: true, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if ours && !self.foreign {
            // A file that cannot be removed is found stale by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Lock {
    fn take(socket: &Path) -> Result<Self, SocketError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let system = |operation: &'static str, source: std::io::Error| SocketError::System {
            operation,
            path: path.clone(),
            source,
        };
        let taken = || SocketError::AnotherAnswers { path: socket.to_owned() };
        // Nobody but the daemon's user may open it: whoever can, can lock it and so keep the daemon from starting.
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(LOCK_MODE)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&path)
            .map_err(|error| system("open", error))?;
        let held = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => held,
            Err((_, Errno::EWOULDBLOCK)) => return Err(taken()),
            Err((_, errno)) => return Err(system("lock", errno.into())),
        };
        // The one before us removes the file at its end; a lock on a removed file is worth nothing.
        let (ours, there) = (held.metadata(), fs::symlink_metadata(&path));
        match (ours, there) {
            (Ok(ours), Ok(there)) if ours.dev() == there.dev() && ours.ino() == there.ino() => {
                Ok(Lock { path, _held: held })
            }
            _ => Err(taken()),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still held here, so it is ours; one that stays behind is taken by the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether somebody answers at `path`; the first thing a daemon asks, before it touches bridge or tables.
///
/// # Errors
/// [`SocketError`] when something else than a socket is there, or it cannot be asked.
pub fn another_answers(path: &Path) -> Result<bool, SocketError> {
    let system = |operation: &'static str, source: std::io::Error| SocketError::System {
        operation,
        path: path.to_owned(),
        source,
    };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(system("look at", error)),
    };
    if !found.is_socket() {
        let what = match found {
            kind if kind.is_symlink() => "a symbolic link",
            kind if kind.is_dir() => "a directory",
            kind if kind.is_file() => "a file",
            _ => "a device or pipe",
        };
        return Err(SocketError::NotASocket { path: path.to_owned(), what });
    }
    let address = UnixAddr::new(path).map_err(|errno| system("use as a socket's path", errno.into()))?;
    // Non-blocking: a daemon that hangs has a full backlog, and would keep us here.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| system("make a socket for", errno.into()))?;
    match connect(fd.as_raw_fd(), &address) {
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(system("connect to", errno.into())),
    }
}

fn make_directory(directory: &Path) -> Result<(), SocketError> {
    if directory.is_dir() {
        return Ok(());
    }
    let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory);
    // The umask may have taken bits away.
    made.and_then(|()| fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE)))
        .map_err(|source| SocketError::System { operation: "make the directory", path: directory.to_owned(), source })
}

fn give_to_group(path: &Path, group: Option<&str>) -> Option<String> {
    let group = group?;
    let text = read_group_file().ok()?;
    let gid = group_id(&text, group)?;
    std::os::unix::fs::lchown(path, None, Some(gid)).err().map(|error| {
        format!(
            "cannot give {} to the group {group}: {error} (CAP_CHOWN is missing?); only the daemon's own user can use it",
            path.display()
        )
    })
}

/// /etc/group itself: getgrnam(3) wants shared libraries at run time in a static binary.
fn read_group_file() -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    File::open("/etc/group")?.take(GROUP_FILE_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The id of `name` in the text of a group file (group(5): `name:password:gid:members`).
fn group_id(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut parts = line.split(':');
        (parts.next() == Some(name)).then(|| parts.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of its own, removed with everything in it.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("outcall-socket-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_socket_has_its_mode_and_goes_with_its_owner() {
        let scratch = Scratch::new("mode");
        let path = scratch.0.join("run/host.sock");
        let (_listener, file, _) = SocketFile::listen(&path, 0o660, None).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777, 0o660);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o7777, 0o755);
        drop(file);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_second_daemon_is_refused_and_a_stale_socket_replaced() {
        let scratch = Scratch::new("stale");
        let path = scratch.0.join("host.sock");
        let (listener, file, _) = SocketFile::listen(&path, 0o660, None).unwrap();
        assert!(matches!(SocketFile::listen(&path, 0o660, None), Err(SocketError::AnotherAnswers { .. })));
        drop((listener, file));
        // What a SIGKILL leaves: both files, with nobody behind them.
        drop(UnixListener::bind(&path).unwrap());
        fs::write(scratch.0.join("host.sock.lock"), "").unwrap();
        assert!(!another_answers(&path).unwrap());
        let (_listener, _file, _) = SocketFile::listen(&path, 0o660, None).unwrap();
        assert!(another_answers(&path).unwrap());
    }

    #[test]
    fn two_that_start_at_once_do_not_both_get_the_path() {
        let scratch = Scratch::new("race");
        let path = scratch.0.join("host.sock");
        for _ in 0..50 {
            drop(UnixListener::bind(&path));
            let starts: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| SocketFile::listen(&path, 0o660, None))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(starts.iter().filter(|start| start.is_ok()).count(), 1);
            assert!(another_answers(&path).unwrap());
        }
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 0, "something stays behind");
    }

    #[test]
    fn a_socket_of_another_kind_of_daemon_is_not_taken_over() {
        let scratch = Scratch::new("foreign");
        let path = scratch.0.join("host.sock");
        let _other = UnixListener::bind(&path).unwrap();
        assert!(matches!(SocketFile::listen(&path, 0o660, None), Err(SocketError::AnotherAnswers { .. })));
        assert!(another_answers(&path).unwrap());
    }

    #[test]
    fn other_files_are_left_alone() {
        let scratch = Scratch::new("other");
        let path = scratch.0.join("host.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(SocketFile::listen(&path, 0o660, None), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let link = scratch.0.join("link.sock");
        std::os::unix::fs::symlink(scratch.0.join("real.sock"), &link).unwrap();
        let refusal = SocketFile::listen(&link, 0o660, None).unwrap_err();
        assert!(refusal.to_string().contains("symbolic link"), "{refusal}");
    }

    #[test]
    fn a_socket_that_somebody_else_made_meanwhile_is_not_removed() {
        let scratch = Scratch::new("ours");
        let path = scratch.0.join("host.sock");
        let (_first, file, _) = SocketFile::listen(&path, 0o660, None).unwrap();
        fs::rename(&path, scratch.0.join("away")).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn groups_are_found_by_their_whole_name() {
        let text = "root:x:0:\noutcaller:x:7:\noutcall:x:998:ann,bob\n";
        assert_eq!(group_id(text, "outcall"), Some(998));
        assert_eq!(group_id(text, "outcal"), None);
        assert_eq!(group_id("outcall:x", "outcall"), None);
    }
}
