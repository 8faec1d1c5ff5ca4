//! A disk on which the process dies: what the kill tests of all state files share.

use std::path::Path;

use outcall::state::{Disk, RealDisk};

/// Ends the process by SIGKILL at the Nth moment between or within steps.
pub struct KillingDisk {
    /// Moments that pass before.
    pub left: u32,
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
