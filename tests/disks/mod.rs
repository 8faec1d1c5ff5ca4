//! A disk on which the process dies, and one that fills: what the tests of all state files share.
//!
//! A kill test runs itself as a child that works on a store and kills itself at its Nth moment, for every N there is.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use outcall::state::{Disk, RealDisk};

const STATE: &str = "OUTCALL_TEST_STORE";
const KILL_AT: &str = "OUTCALL_TEST_KILL_AT";

/// An empty directory.
pub fn scratch(name: &str) -> PathBuf {
    let base = std::env::temp_dir().join(format!("outcall-disks-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&base);
    std::fs::create_dir_all(&base).unwrap();
    base
}

/// In the child: does `work` in the parent's directory, on a disk that kills. In the parent nothing.
pub fn as_child(work: impl FnOnce(&Path, KillingDisk)) {
    if let (Some(base), Ok(left)) = (std::env::var_os(STATE), std::env::var(KILL_AT)) {
        work(&PathBuf::from(base), KillingDisk { left: left.parse().unwrap() });
    }
}

/// Runs the test `child` again and again, each time killed a moment later, until it is done; `look` sees what each left
/// behind, and whether it was the one that came to its end. Gives the number of kills.
pub fn kill_at_each_moment(child: &str, name: &str, mut look: impl FnMut(u32, &Path, bool)) -> u32 {
    for kill_at in 0.. {
        let base = scratch(name);
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", child, "--test-threads=1"])
            .env(STATE, &base)
            .env(KILL_AT, kill_at.to_string())
            .output()
            .unwrap();
        let done = ended.status.success();
        assert!(done || ended.status.signal() == Some(9), "{}", String::from_utf8_lossy(&ended.stderr));
        look(kill_at, &base, done);
        std::fs::remove_dir_all(&base).unwrap();
        if done {
            return kill_at;
        }
    }
    unreachable!("the moments ran out")
}

/// A disk that takes so many writes more, and then is full.
pub struct FullDisk(pub Arc<AtomicU32>);

impl Disk for FullDisk {
    fn write(&mut self, path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
        let room = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        room.map_err(|_| std::io::ErrorKind::StorageFull)?;
        RealDisk.write(path, bytes, mode)
    }
    fn sync(&mut self, path: &Path) -> std::io::Result<()> {
        RealDisk.sync(path)
    }
    fn rename(&mut self, from: &Path, to: &Path) -> std::io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove(&mut self, path: &Path) -> std::io::Result<()> {
        RealDisk.remove(path)
    }
    fn sync_directory(&mut self, path: &Path) -> std::io::Result<()> {
        RealDisk.sync_directory(path)
    }
}

/// Ends the process by SIGKILL at the Nth moment between or within steps.
pub struct KillingDisk {
    /// Moments that pass before.
    left: u32,
}

impl KillingDisk {
    fn moment(&mut self) {
        if self.left == 0 {
            let own = nix::unistd::Pid::this();
            nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGKILL).unwrap();
            loop {
                std::thread::park();
            }
        }
        self.left -= 1;
    }
}

impl Disk for KillingDisk {
    fn write(&mut self, path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
        self.moment();
        if self.left == 0 {
            RealDisk.write(path, &bytes[..bytes.len() / 2], mode)?;
        }
        self.moment();
        RealDisk.write(path, bytes, mode)?;
        self.moment();
        Ok(())
    }
    fn sync(&mut self, path: &Path) -> std::io::Result<()> {
        RealDisk.sync(path)?;
        self.moment();
        Ok(())
    }
    fn rename(&mut self, from: &Path, to: &Path) -> std::io::Result<()> {
        RealDisk.rename(from, to)?;
        self.moment();
        Ok(())
    }
    fn remove(&mut self, path: &Path) -> std::io::Result<()> {
        RealDisk.remove(path)?;
        self.moment();
        Ok(())
    }
    fn sync_directory(&mut self, path: &Path) -> std::io::Result<()> {
        RealDisk.sync_directory(path)?;
        self.moment();
        Ok(())
    }
}
