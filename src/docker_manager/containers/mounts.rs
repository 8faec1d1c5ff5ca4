//! A process's mounts, as `/proc/PID/mountinfo` lists them (proc_pid_mountinfo(5)): where on which file system a path
//! is, and by which other paths it can be reached.
//!
//! Owns: parsing, and the two questions. Does not own: which paths matter (`binds`).

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// Bytes of a mount table that are read: hosts with thousands of containers have some MiB.
const TABLE_CAP: u64 = 16 << 20;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// `major:minor` of the file system.
    pub(super) device: String,
    /// The directory (or file) of the file system that is mounted.
    pub(super) root: PathBuf,
    /// Where.
    pub(super) point: PathBuf,
    /// `ext4`, `proc`, …
    pub(super) kind: String,
}

/// A place on a file system, whatever it is mounted as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) device: String,
    pub(super) path: PathBuf,
}

/// All mounts of a process, in the order of mounting.
#[derive(Clone, Debug, Default)]
pub(super) struct Mounts(pub(super) Vec<Mount>);

impl Mounts {
    /// Those of process `pid` (`self`: the daemon's own).
    ///
    /// # Errors
    /// What open(2) and read(2) say; a table that is too large or not understood.
    pub(super) fn of(pid: &str) -> std::io::Result<Self> {
        let mut table = Vec::new();
        let file = std::fs::File::open(format!("/proc/{pid}/mountinfo"))?;
        file.take(TABLE_CAP + 1).read_to_end(&mut table)?;
        let broken = || std::io::Error::new(std::io::ErrorKind::InvalidData, "the mount table cannot be understood");
        if table.len() as u64 > TABLE_CAP {
            return Err(broken());
        }
        Mounts::parse(&table).ok_or_else(broken)
    }

    fn parse(table: &[u8]) -> Option<Self> {
        let lines = table.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(line).collect::<Option<_>>().map(Mounts)
    }

    /// Where `path`, which has no links in it, really is.
    pub(super) fn place(&self, path: &Path) -> Option<Place> {
        // The deepest mount point; of several on one point the last one hides the others.
        let over = self.0.iter().filter(|mount| path.starts_with(&mount.point));
        let mount = over.max_by_key(|mount| mount.point.components().count())?;
        let rest = path.strip_prefix(&mount.point).ok()?;
        Some(Place { device: mount.device.clone(), path: joined(&mount.root, rest) })
    }

    /// Every path by which `place`, or something inside it, can be reached.
    pub(super) fn aliases(&self, place: &Place) -> Vec<PathBuf> {
        let same = self.0.iter().filter(|mount| mount.device == place.device);
        same.filter_map(|mount| match place.path.strip_prefix(&mount.root) {
            Ok(rest) => Some(joined(&mount.point, rest)),
            Err(_) => mount.root.starts_with(&place.path).then(|| mount.point.clone()),
        })
        .collect()
    }
}

/// `join` without the slash that an empty rest would leave.
fn joined(base: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { base.to_path_buf() } else { base.join(rest) }
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`
fn line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let (root, point) = (unescaped(fields.next()?), unescaped(fields.next()?));
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount { device, root, point, kind: String::from_utf8_lossy(kind).into_owned() })
}

/// Space, tab, line feed and backslash are written as `\040`.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut at = 0;
    while let Some(byte) = field.get(at) {
        let octal = field.get(at + 1..at + 4).filter(|_| *byte == b'\\');
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(value.unwrap_or(*byte));
        at += if value.is_some() { 4 } else { 1 };
    }
    PathBuf::from(OsString::from_vec(out))
}

/// True when `path` has a component that is no text; such a path cannot be told to Docker.
pub(super) fn is_text(path: &Path) -> bool {
    std::str::from_utf8(path.as_os_str().as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw shared:1 - proc proc rw
24 22 0:23 / /run rw,nosuid shared:2 master:1 - tmpfs tmpfs rw
25 22 0:23 /docker /mnt/with\\040space rw - tmpfs tmpfs rw
26 22 8:1 /var/lib /srv/alias rw - ext4 /dev/sda1 rw
27 24 0:30 / /run rw - tmpfs hides rw
";

    #[test]
    fn a_path_is_placed_by_the_deepest_and_last_mount() {
        let mounts = Mounts::parse(TABLE.as_bytes()).unwrap();
        assert_eq!(mounts.0[3].point, PathBuf::from("/mnt/with space"));
        assert_eq!(mounts.0[1].kind, "proc");
        let place = |path: &str| mounts.place(Path::new(path)).unwrap();
        assert_eq!(place("/var/x"), Place { device: "8:1".into(), path: "/var/x".into() });
        assert_eq!(place("/srv/alias/outcall"), Place { device: "8:1".into(), path: "/var/lib/outcall".into() });
        assert_eq!(place("/run/docker.sock").device, "0:30");
    }

    #[test]
    fn aliases_are_all_ways_to_a_place() {
        let mounts = Mounts::parse(TABLE.as_bytes()).unwrap();
        let state = mounts.place(Path::new("/var/lib/outcall")).unwrap();
        assert_eq!(mounts.aliases(&state), ["/var/lib/outcall", "/srv/alias/outcall"].map(PathBuf::from));
        let socket = Place { device: "0:23".into(), path: "/docker/a.sock".into() };
        assert_eq!(mounts.aliases(&socket), ["/run/docker/a.sock", "/mnt/with space/a.sock"].map(PathBuf::from));
        // A mount of something inside counts too.
        let whole = Place { device: "8:1".into(), path: "/var".into() };
        assert_eq!(mounts.aliases(&whole), ["/var", "/srv/alias"].map(PathBuf::from));
    }

    #[test]
    fn the_own_table_is_understood() {
        assert!(!Mounts::of("self").unwrap().0.is_empty());
        assert!(Mounts::parse(b"1 2 3").is_none());
    }
}
