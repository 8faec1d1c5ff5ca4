//! Changes to files that survive a crash at any moment: temporary file, fsync, rename, fsync of the directory.
//!
//! Each step is a call of its own on [`Disk`], so that a test can end the process between any two of them.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The steps that change something on disk.
pub trait Disk: Send {
    /// Makes `path` anew with these bytes and `mode`; a file of that name is replaced, a link is not followed.
    ///
    /// # Errors
    /// What the kernel says; so for all of these.
    fn write(&mut self, path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()>;
    /// fsync(2) of a file.
    fn sync(&mut self, path: &Path) -> std::io::Result<()>;
    /// rename(2)
    fn rename(&mut self, from: &Path, to: &Path) -> std::io::Result<()>;
    /// unlink(2); a file that is not there is no error.
    fn remove(&mut self, path: &Path) -> std::io::Result<()>;
    /// fsync(2) of a directory.
    fn sync_directory(&mut self, path: &Path) -> std::io::Result<()>;
}

/// The real one.
#[derive(Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn write(&mut self, path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
        self.remove(path)?;
        // `create_new` follows no link and takes no file that somebody else made.
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?.write_all(bytes)
    }

    fn sync(&mut self, path: &Path) -> std::io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&mut self, from: &Path, to: &Path) -> std::io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&mut self, path: &Path) -> std::io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync_directory(&mut self, path: &Path) -> std::io::Result<()> {
        File::open(path)?.sync_all()
    }
}

/// Puts `bytes` at `path` whole or not at all; returns when they are durable.
///
/// # Errors
/// What the kernel says; the file of before is then still there, or the new one is.
pub fn replace(disk: &mut dyn Disk, path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let (directory, temporary) = beside(path)?;
    let written = disk
        .write(&temporary, bytes, mode)
        .and_then(|()| disk.sync(&temporary))
        .and_then(|()| disk.rename(&temporary, path));
    if written.is_err() {
        // It is in nobody's way: the next write replaces it.
        let _ = disk.remove(&temporary);
    }
    written?;
    disk.sync_directory(directory)
}

/// Removes `path`; returns when that is durable.
///
/// # Errors
/// What the kernel says.
pub fn remove(disk: &mut dyn Disk, path: &Path) -> std::io::Result<()> {
    let (directory, _) = beside(path)?;
    disk.remove(path)?;
    match disk.sync_directory(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// All of a file, at most `max` bytes; `None` when it is not there.
///
/// # Errors
/// What the kernel says; a larger file is an error.
pub fn read(path: &Path, max: u64) -> std::io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(std::io::Error::new(ErrorKind::FileTooLarge, format!("it is over {max} bytes")));
    }
    Ok(Some(bytes))
}

/// Gives a damaged file another name, with its bytes; tells which. `now_secs` (since 1970) is part of it.
///
/// # Errors
/// What the kernel says; the file is then where it was.
pub fn set_aside(disk: &mut dyn Disk, file: &Path, now_secs: u64) -> std::io::Result<PathBuf> {
    let mut kept = file.with_extension(format!("json.damaged-{now_secs}"));
    let mut number = 1;
    while kept.symlink_metadata().is_ok() {
        kept = file.with_extension(format!("json.damaged-{now_secs}-{number}"));
        number += 1;
    }
    disk.rename(file, &kept)?;
    if let Some(directory) = file.parent() {
        // The rename itself is done; a crash now would only set it aside again.
        let _ = disk.sync_directory(directory);
    }
    Ok(kept)
}

/// Makes a directory (and those above it) with `mode` where there is none.
///
/// # Errors
/// What the kernel says.
pub fn make_directory(path: &Path, mode: u32) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// The directory of a file, and the name of its temporary file there: hidden, so that nobody who lists `*.yaml` sees it.
fn beside(path: &Path) -> std::io::Result<(&Path, PathBuf)> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::Error::new(ErrorKind::InvalidInput, "not the path of a file"));
    };
    Ok((directory, directory.join(format!(".{}.tmp", name.to_string_lossy()))))
}
