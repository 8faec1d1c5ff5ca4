//! The mounts that outcalld itself gives a container: the agents' socket, the shim, the certificates.
//!
//! Owns: that each is what it must be. Does not own: who gets them (`create`).

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::super::DockerFailure;
use super::super::network_ops::failure;
use super::binds::Bind;
use super::{AGENT_DIRECTORY_TARGET, CA_TARGET, SHIM_TARGET};

/// Name of the agents' socket in its directory.
const AGENT_SOCKET: &str = "agent.sock";

/// The directory of the agents' socket, and the shim.
///
/// # Errors
/// 500: what is missing or is not what it must be.
pub(super) fn helpers(agent_directory: &Path, shim: &Path) -> Result<[Bind; 2], DockerFailure> {
    let without = "; or give `include_outcall_helper_mounts: false`";
    let socket = real(&agent_directory.join(AGENT_SOCKET), "agents' socket", |kind, _| kind.is_socket(), "socket");
    let socket = socket.map_err(|reason| failure(500, format!("{reason}{without}")))?;
    let executable = |kind: fs::FileType, mode: u32| kind.is_file() && mode & 0o111 != 0;
    let shim = real(shim, "shim", executable, "executable file").map_err(|reason| {
        failure(500, format!("{reason}; install outcall-agent, name it with --shim-host-path{without}"))
    })?;
    // The path has a parent: the socket was found in it.
    let directory = socket.parent().unwrap_or(&socket).to_path_buf();
    Ok([read_only(directory, AGENT_DIRECTORY_TARGET), read_only(shim, SHIM_TARGET)])
}

/// The directory of the bundle of certificates.
///
/// # Errors
/// 500: it is not there.
pub(super) fn certificates(bundle: &Path) -> Result<Bind, DockerFailure> {
    let bundle = real(bundle, "bundle of certificates", |kind, _| kind.is_file(), "file");
    let bundle = bundle.map_err(|reason| failure(500, format!("{reason}; restart outcalld, which writes it")))?;
    let directory = bundle.parent().unwrap_or(&bundle).to_path_buf();
    Ok(read_only(directory, CA_TARGET))
}

fn read_only(source: PathBuf, target: &str) -> Bind {
    Bind { source, target: target.to_owned(), read_only: true }
}

/// `path` itself, links in its directory resolved, none at its end.
fn real(path: &Path, what: &str, is: impl Fn(fs::FileType, u32) -> bool, kind: &str) -> Result<PathBuf, String> {
    let shown = path.display();
    let found = fs::symlink_metadata(path).map_err(|error| format!("the {what} {shown} cannot be mounted: {error}"))?;
    if found.file_type().is_symlink() {
        return Err(format!("the {what} {shown} is a symbolic link, which could lead elsewhere tomorrow"));
    }
    if !is(found.file_type(), found.permissions().mode()) {
        return Err(format!("the {what} {shown} is no {kind}"));
    }
    fs::canonicalize(path).map_err(|error| format!("the {what} {shown} cannot be resolved: {error}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_the_real_things_are_mounted() {
        let root = std::env::temp_dir().join(format!("outcall-helpers-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("agent")).unwrap();
        let (agent, shim) = (root.join("agent"), root.join("shim"));
        let check = || helpers(&agent, &shim).map_err(|failure| failure.message);
        assert!(check().unwrap_err().contains("agents' socket"));
        drop(UnixListener::bind(agent.join("agent.sock")).unwrap());
        assert!(check().unwrap_err().contains("shim"));
        fs::write(&shim, "#!").unwrap();
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(check().unwrap_err().contains("no executable file"));
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
        let [socket, program] = check().unwrap();
        assert_eq!((socket.target.as_str(), program.target.as_str()), ("/run/outcall", "/usr/local/bin/outcall"));
        assert!(socket.read_only && program.read_only && socket.source.ends_with("agent"));
        fs::rename(&shim, root.join("elsewhere")).unwrap();
        symlink("elsewhere", &shim).unwrap();
        assert!(check().unwrap_err().contains("symbolic link"));
        fs::rename(agent.join("agent.sock"), root.join("sock")).unwrap();
        symlink("../sock", agent.join("agent.sock")).unwrap();
        assert!(check().unwrap_err().contains("symbolic link"));
        assert!(certificates(&root.join("ca/bundle.pem")).is_err());
        fs::remove_dir_all(&root).unwrap();
    }
}
