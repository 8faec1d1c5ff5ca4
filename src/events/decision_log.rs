//! `decisions.jsonl`: appended, rotated by size, kept by count. A disk that fails costs lines, never enforcement.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// After a failed write, how long the disk is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Between two errors in the log: on a nearly full disk every other line has room.
const SAID_EVERY: Duration = Duration::from_secs(600);

/// The log file and its rotated predecessors `decisions.jsonl.1`, `.2`, …
pub struct DecisionLog {
    path: PathBuf,
    bytes_max: u64,
    files_max: u32,
    file: Option<File>,
    written: u64,
    failing_until: Option<Instant>,
    said: Option<Instant>,
    lost: u64,
}

impl DecisionLog {
    /// The log in `state_dir`; the directory is made (0700) if it is missing. Nothing fails here: see [`Self::append`].
    #[must_use]
    pub fn new(state_dir: &Path, bytes_max: u64, files_max: u32) -> Self {
        if let Err(error) = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir) {
            tracing::warn!(target: "outcalld", "cannot make the state directory {}: {error}", state_dir.display());
        }
        DecisionLog {
            path: state_dir.join("decisions.jsonl"),
            bytes_max,
            files_max,
            file: None,
            written: 0,
            failing_until: None,
            said: None,
            lost: 0,
        }
    }

    /// Appends whole lines. What cannot be written is lost and counted; the first failure in a row is logged.
    pub fn append(&mut self, lines: &[u8], count: u64, now: Instant) {
        if self.failing_until.is_some_and(|until| now < until) {
            self.lost += count;
            return;
        }
        match self.try_append(lines) {
            Ok(()) => {
                if self.failing_until.take().is_some() {
                    tracing::info!(target: "outcalld", lost = self.lost, "{} is written again", self.path.display());
                }
            }
            Err(error) => {
                self.lost += count;
                self.file = None;
                if self.failing_until.is_none() && self.said.is_none_or(|said| now >= said + SAID_EVERY) {
                    self.said = Some(now);
                    tracing::error!(target: "outcalld", "cannot write {}: {error}; decisions are enforced but not \
                        kept until it can be written again", self.path.display());
                }
                self.failing_until = Some(now + RETRY_AFTER);
            }
        }
    }

    /// How many lines were lost to a failing disk.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn try_append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.file.is_some() && self.written >= self.bytes_max {
            self.rotate()?;
        }
        if self.file.is_none() {
            // O_NOFOLLOW: a link planted in the state directory is an error, not a way to write elsewhere.
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&self.path)?;
            self.written = file.metadata()?.len();
            self.file = Some(file);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let before = self.written;
        if let Err(error) = file.write_all(lines) {
            // A line cut short by a full disk would spoil the next one.
            let _ = file.set_len(before);
            return Err(error);
        }
        self.written += lines.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        for number in (1..self.files_max).rev() {
            rename_if_there(&self.numbered(number), &self.numbered(number + 1))?;
        }
        rename_if_there(&self.path, &self.numbered(1))
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("outcall-log-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn rotation_keeps_the_newest_files() {
        let dir = scratch("rotation");
        let mut log = DecisionLog::new(&dir, 10, 2);
        for line in ["first-line\n", "second-line\n", "third-line\n", "fourth-line\n"] {
            log.append(line.as_bytes(), 1, Instant::now());
        }
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        assert_eq!(read("decisions.jsonl"), "fourth-line\n");
        assert_eq!(read("decisions.jsonl.1"), "third-line\n");
        assert_eq!(read("decisions.jsonl.2"), "second-line\n");
        assert!(!dir.join("decisions.jsonl.3").exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let dir = scratch("link");
        std::fs::create_dir_all(&dir).unwrap();
        let target = dir.join("elsewhere");
        std::os::unix::fs::symlink(&target, dir.join("decisions.jsonl")).unwrap();
        let mut log = DecisionLog::new(&dir, 10, 2);
        log.append(b"line\n", 1, Instant::now());
        assert_eq!(log.lost(), 1);
        assert!(!target.exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
