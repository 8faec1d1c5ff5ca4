//! Which paths of the host a container may see: binds are resolved here, and the resolved path is what Docker is given.
//!
//! Refused is what equals, holds or leads to a control socket or to Outcall's own files: by any name of the path
//! (symbolic links, `..`, `/proc/PID/root`), by any other mount of the same directory, by a hard link. What is checked
//! could still be swapped for a link before Docker mounts it, by somebody who may write beside it; so a container's own
//! mount table is looked at again once it runs ([`Protected::reaches`]).
//!
//! Owns: the judgement. Does not own: what a caller may write (`wish`), the other mounts (`helpers`).

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::super::DockerFailure;
use super::super::network_ops::failure;
use super::mounts::{Mounts, Place, is_text};
use super::wish::{Source, Volume};

/// Sockets of container engines: whoever can talk to one is root on the host. The links of `/var/run` are resolved.
const ENGINE_SOCKETS: [&str; 8] = [
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/var/run/containerd/containerd.sock",
    "/run/docker/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/cri-dockerd.sock",
];
/// A process's directory there leads to every file of the host.
const PROCESS_FILES: &str = "proc";

/// Where the daemon's own sockets and files are.
#[derive(Clone, Debug, Default)]
pub(super) struct Own {
    /// Its sockets, and Docker's: nothing that holds one may be bound.
    pub(super) sockets: Vec<PathBuf>,
    /// Its files and directories: nothing that holds one, and nothing inside.
    pub(super) trees: Vec<PathBuf>,
}

/// What no container may see, as it is on the host now.
pub(super) struct Protected {
    mounts: Mounts,
    guarded: Vec<Guarded>,
}

struct Guarded {
    /// As the operator knows it.
    name: PathBuf,
    place: Option<Place>,
    /// Every path by which it can be reached.
    paths: Vec<PathBuf>,
    /// A directory or file of which no part may be bound; else a socket.
    tree: bool,
    /// Device and inode of a socket.
    socket: Option<(u64, u64)>,
}

/// A mount of the host's that passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bind {
    /// Resolved.
    pub(super) source: PathBuf,
    pub(super) target: String,
    pub(super) read_only: bool,
}

impl Protected {
    /// Looks at the host.
    ///
    /// # Errors
    /// 500 when the daemon's own mount table cannot be read: then nothing can be judged.
    pub(super) fn look(own: &Own) -> Result<Self, DockerFailure> {
        let mounts = Mounts::of("self").map_err(|error| {
            failure(500, format!("cannot read /proc/self/mountinfo, so no bind can be checked: {error}"))
        })?;
        Ok(Protected::of(own, mounts))
    }

    fn of(own: &Own, mounts: Mounts) -> Self {
        let engines = ENGINE_SOCKETS.iter().map(Path::new);
        let sockets = own.sockets.iter().map(PathBuf::as_path).chain(engines).map(|path| (path, false));
        let trees = own.trees.iter().map(|path| (path.as_path(), true));
        let guarded = sockets
            .chain(trees)
            .map(|(name, tree)| {
                let path = resolved(name);
                let place = mounts.place(&path);
                let mut paths = place.as_ref().map(|place| mounts.aliases(place)).unwrap_or_default();
                let found = fs::metadata(&path).ok();
                let socket =
                    found.filter(|found| found.file_type().is_socket()).map(|found| (found.dev(), found.ino()));
                // The flag's own words count too, whatever they lead to now.
                paths.extend([path, name.to_path_buf()]);
                Guarded { name: name.to_path_buf(), place, paths, tree, socket }
            })
            .collect();
        Protected { mounts, guarded }
    }

    /// Resolves and judges a volume whose source is a path.
    ///
    /// # Errors
    /// 400: what the source leads to, or why it cannot be told.
    pub(super) fn judge(&self, volume: &Volume) -> Result<Option<Bind>, DockerFailure> {
        let Source::Path(given) = &volume.source else { return Ok(None) };
        let source = self.resolve(given).map_err(|reason| {
            failure(400, format!("volume {}:{} is refused: {reason}", given.display(), volume.target))
        })?;
        Ok(Some(Bind { source, target: volume.target.clone(), read_only: volume.read_only }))
    }

    fn resolve(&self, given: &Path) -> Result<PathBuf, String> {
        let source = fs::canonicalize(given).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "its source does not exist on the host; make it first".to_owned(),
            _ => format!("its source cannot be resolved: {error}"),
        })?;
        if !is_text(&source) {
            return Err("its source is no UTF-8, which Docker's API needs".to_owned());
        }
        let shown = source.display();
        let proc = self.mounts.0.iter().filter(|mount| mount.kind == PROCESS_FILES);
        if let Some(mount) = proc.map(|mount| &mount.point).find(|at| at.starts_with(&source) || source.starts_with(at))
        {
            return Err(format!("{shown} leads to every file of the host by {}", mount.display()));
        }
        let found = fs::symlink_metadata(&source).map_err(|error| format!("cannot look at {shown}: {error}"))?;
        let identity = (found.dev(), found.ino());
        for guarded in &self.guarded {
            let name = guarded.name.display();
            if guarded.paths.iter().any(|path| path.starts_with(&source)) || guarded.socket == Some(identity) {
                return Err(format!("{shown} is or holds {name}, which no container may have"));
            }
            if guarded.tree && guarded.paths.iter().any(|path| source.starts_with(path)) {
                return Err(format!("{shown} lies in {name}, which no container may have"));
            }
        }
        Ok(source)
    }

    /// Looks at the mounts of a running container, except those at `ours`: the name of what it must not see and does.
    pub(super) fn reaches(&self, container: &Mounts, ours: &[&str]) -> Option<&Path> {
        let theirs = container.0.iter().filter(|mount| !ours.iter().any(|ours| mount.point == Path::new(ours)));
        for mount in theirs {
            let hit = self.guarded.iter().find(|guarded| {
                guarded.place.as_ref().is_some_and(|place| {
                    place.device == mount.device
                        && (place.path.starts_with(&mount.root) || guarded.tree && mount.root.starts_with(&place.path))
                })
            });
            if let Some(guarded) = hit {
                return Some(&guarded.name);
            }
        }
        None
    }
}

/// `path` without links, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (fs::canonicalize(ancestor), path.strip_prefix(ancestor)) {
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_path_buf()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A directory with a socket, a state directory and harmless data, and what protects it.
    struct Host {
        root: PathBuf,
        own: Own,
    }

    impl Host {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("outcall-binds-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            for directory in ["run", "state/sub", "data/inner", "data2"] {
                fs::create_dir_all(root.join(directory)).unwrap();
            }
            fs::write(root.join("state/sub/file"), "x").unwrap();
            let root = fs::canonicalize(root).unwrap();
            drop(UnixListener::bind(root.join("run/host.sock")).unwrap());
            let own = Own { sockets: vec![root.join("run/host.sock")], trees: vec![root.join("state")] };
            Host { root, own }
        }

        fn judge(&self, source: &str) -> Result<PathBuf, String> {
            let source = if source.starts_with('/') { PathBuf::from(source) } else { self.root.join(source) };
            Protected::look(&self.own).unwrap().resolve(&source)
        }
    }

    impl Drop for Host {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    #[test]
    fn harmless_paths_are_resolved() {
        let host = Host::new("harmless");
        symlink("data", host.root.join("link")).unwrap();
        for source in ["data", "link", "data/../link", "state/../data", "data/inner/.."] {
            assert_eq!(host.judge(source), Ok(host.root.join("data")), "{source}");
        }
        assert_eq!(host.judge("link/inner"), Ok(host.root.join("data/inner")));
    }

    #[test]
    fn what_is_holds_or_leads_to_a_socket_is_refused() {
        let host = Host::new("sockets");
        symlink("run", host.root.join("to-run")).unwrap();
        symlink("run/host.sock", host.root.join("to-socket")).unwrap();
        symlink("to-run", host.root.join("to-link")).unwrap();
        symlink("/", host.root.join("data/inner/root")).unwrap();
        fs::hard_link(host.root.join("run/host.sock"), host.root.join("data2/hard")).unwrap();
        for source in [
            "run/host.sock",
            "run",
            "",
            "to-run",
            "to-socket",
            "to-link",
            "to-link/host.sock",
            "data/../run",
            "data/inner/root",
            "data2/hard",
            "/",
            "/proc/self/root",
            "/proc/1/root",
            "/proc/thread-self/root",
            "/proc",
            "/proc/self",
            "/proc/self/cwd/../../../../../../../..",
        ] {
            assert!(host.judge(source).is_err(), "{source}: {:?}", host.judge(source));
        }
        for engine in ["/run", "/var/run", "/var", "/run/../run"] {
            if Path::new(engine).exists() && engine != "/var" {
                assert!(host.judge(engine).unwrap_err().contains("sock"), "{engine}");
            }
        }
    }

    #[test]
    fn trees_are_refused_whole_and_in_part() {
        let host = Host::new("trees");
        symlink("../state/sub", host.root.join("data/into")).unwrap();
        for source in ["state", "state/sub", "state/sub/file", "data/into", "data/into/file"] {
            assert!(host.judge(source).unwrap_err().contains("state"), "{source}");
        }
        // A file of the same beginning is another one.
        fs::create_dir(host.root.join("state2")).unwrap();
        assert!(host.judge("state2").is_ok());
        assert!(host.judge("absent").unwrap_err().contains("does not exist"));
        assert!(host.judge("state/sub/file/x").is_err());
    }

    #[test]
    fn other_mounts_of_a_protected_directory_are_refused() {
        let host = Host::new("mounts");
        let own = Mounts::of("self").unwrap();
        let state = own.place(&host.root.join("state")).unwrap();
        let mut mounts = own.clone();
        let alias = host.root.join("data");
        mounts.0.push(super::super::mounts::Mount {
            device: state.device,
            root: state.path,
            point: alias.join("inner"),
            kind: "ext4".to_owned(),
        });
        let protected = Protected::of(&host.own, mounts);
        assert!(protected.resolve(&alias).unwrap_err().contains("holds"));
        assert!(protected.resolve(&alias.join("inner")).is_err());
        assert!(protected.resolve(&host.root.join("data2")).is_ok());
    }

    #[test]
    fn a_container_s_own_mounts_tell_what_was_swapped_after_the_check() {
        let host = Host::new("swapped");
        let protected = Protected::look(&host.own).unwrap();
        let mounts = Mounts::of("self").unwrap();
        let mount = |path: &str, point: &str| {
            let place = mounts.place(&host.root.join(path)).unwrap();
            let (device, root) = (place.device, place.path);
            Mounts(vec![super::super::mounts::Mount { device, root, point: point.into(), kind: "ext4".to_owned() }])
        };
        assert_eq!(protected.reaches(&mount("data", "/data"), &[]), None);
        assert_eq!(protected.reaches(&mount("run", "/data"), &[]), Some(host.root.join("run/host.sock").as_path()));
        assert_eq!(protected.reaches(&mount("state/sub", "/data"), &[]), Some(host.root.join("state").as_path()));
        assert_eq!(protected.reaches(&mount("state/sub", "/etc/outcall/ca"), &["/etc/outcall/ca"]), None);
    }
}
