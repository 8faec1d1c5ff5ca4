//! Where the agents' socket lives: in a directory of its own, which is what containers mount.
//!
//! A bind-mounted socket file goes dead when the daemon makes it anew; a mounted directory shows the new one. The
//! path of `--agent-socket-host-path` is a hard link to the same socket, for whoever uses it on the host.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::unix_http::{SocketError, SocketFile, another_answers};

/// The directory beside the flag's path.
const DIRECTORY: &str = "agent";
/// The socket in it.
const NAME: &str = "agent.sock";
/// Everybody may connect: who it is, the kernel says, and who is served, the directory of containers.
const MODE: u32 = 0o666;

/// The socket under both its names. Dropping it removes them, if they are still the same.
#[derive(Debug)]
pub struct AgentSocket {
    _file: SocketFile,
    link: PathBuf,
    identity: (u64, u64),
    /// The socket outlives this daemon, and its link with it.
    stays: bool,
}

/// The directory that containers mount, for a flag's path.
#[must_use]
pub fn socket_directory(flag: &Path) -> PathBuf {
    flag.parent().unwrap_or(Path::new("/")).join(DIRECTORY)
}

/// The socket in that directory.
#[must_use]
pub fn socket_path(flag: &Path) -> PathBuf {
    socket_directory(flag).join(NAME)
}

impl AgentSocket {
    /// Makes the socket and listens on it.
    ///
    /// # Errors
    /// [`SocketError`]: also when another daemon answers on it.
    pub fn listen(flag: &Path) -> Result<(UnixListener, Self), SocketError> {
        // Looked at first, so that a path that cannot be used leaves nothing behind.
        if another_answers(flag)? {
            return Err(SocketError::AnotherAnswers { path: flag.to_owned() });
        }
        let path = socket_path(flag);
        let (listener, file, _) = SocketFile::listen(&path, MODE, None)?;
        Ok((listener, Self::link(flag, &path, file, false)?))
    }

    /// Takes over the socket that the service manager made in the directory for containers, and links it.
    ///
    /// # Errors
    /// [`SocketError`]: also when another daemon holds it, or the flag's path is no socket.
    pub fn adopt(flag: &Path) -> Result<Self, SocketError> {
        let path = socket_path(flag);
        let file = SocketFile::adopt(&path)?;
        let identity = |path: &Path| fs::symlink_metadata(path).map(|found| (found.dev(), found.ino())).ok();
        // The link of the daemon before this one is the right one, and answers by this daemon's own backlog.
        if identity(flag) != identity(&path) && another_answers(flag)? {
            return Err(SocketError::AnotherAnswers { path: flag.to_owned() });
        }
        Self::link(flag, &path, file, true)
    }

    fn link(flag: &Path, path: &Path, file: SocketFile, stays: bool) -> Result<Self, SocketError> {
        let system = |operation: &'static str| {
            move |source: std::io::Error| SocketError::System { operation, path: flag.to_owned(), source }
        };
        match fs::remove_file(flag) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(system("remove the stale socket")(error));
            }
            _ => {}
        }
        fs::hard_link(path, flag).map_err(system("link the agents' socket to"))?;
        let made = fs::symlink_metadata(flag).map_err(system("look at"))?;
        Ok(AgentSocket { _file: file, link: flag.to_owned(), identity: (made.dev(), made.ino()), stays })
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.link);
        if !self.stays && found.is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            // A link that cannot be removed is found stale by the next start.
            let _ = fs::remove_file(&self.link);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("outcall-agent-socket-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn both_names_are_the_same_socket_and_go_together() {
        let scratch = scratch("names");
        let flag = scratch.join("custom.sock");
        for _ in 0..2 {
            let (_listener, socket) = AgentSocket::listen(&flag).unwrap();
            let inside = scratch.join("agent/agent.sock");
            for path in [&flag, &inside] {
                assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o666);
                UnixStream::connect(path).unwrap();
            }
            assert!(matches!(AgentSocket::listen(&flag), Err(SocketError::AnotherAnswers { .. })));
            drop(socket);
            assert!(!flag.exists() && !inside.exists());
        }
        fs::remove_dir_all(&scratch).unwrap();
    }

    #[test]
    fn a_socket_of_the_service_manager_stays_and_is_linked_anew() {
        let scratch = scratch("adopt");
        let flag = scratch.join("agent.sock");
        std::fs::create_dir_all(socket_directory(&flag)).unwrap();
        let listener = UnixListener::bind(socket_path(&flag)).unwrap();
        let identity = |path: &Path| std::fs::symlink_metadata(path).map(|found| found.ino()).unwrap();
        for _ in 0..2 {
            let adopted = AgentSocket::adopt(&flag).unwrap();
            assert_eq!(identity(&flag), identity(&socket_path(&flag)));
            assert!(AgentSocket::adopt(&flag).is_err(), "two daemons on one socket");
            drop(adopted);
            UnixStream::connect(&flag).unwrap();
        }
        std::fs::remove_file(&flag).unwrap();
        std::fs::write(&flag, "a file").unwrap();
        assert!(AgentSocket::adopt(&flag).is_err(), "another file is left alone");
        drop(listener);
        std::fs::remove_dir_all(&scratch).unwrap();
    }

    #[test]
    fn what_a_crash_leaves_is_replaced_and_other_files_are_not() {
        let scratch = scratch("stale");
        let flag = scratch.join("agent.sock");
        let (listener, socket) = AgentSocket::listen(&flag).unwrap();
        drop(listener);
        fs::rename(&flag, scratch.join("kept")).unwrap();
        drop(socket);
        fs::rename(scratch.join("kept"), &flag).unwrap();
        let (listener, socket) = AgentSocket::listen(&flag).unwrap();
        drop((listener, socket));
        fs::write(&flag, "precious").unwrap();
        assert!(matches!(AgentSocket::listen(&flag), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read(&flag).unwrap(), b"precious");
        fs::remove_dir_all(&scratch).unwrap();
    }
}
