//! The daemon's binary as a helper: it holds the loader that `rules check` runs, and the helper of `doctor`.
//!
//! Owns: finding and running it. Does not own: what it says.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::CliError;
use crate::api::RulesChecked;

const DAEMON: &str = "outcalld";

/// The `outcalld` beside this program, else the one that PATH finds.
pub(super) fn path() -> PathBuf {
    std::env::current_exe()
        .ok()
        .map(|own| own.with_file_name(DAEMON))
        .filter(|beside| beside.is_file())
        .unwrap_or_else(|| PathBuf::from(DAEMON))
}

/// Runs the daemon's own loader over `directory`, so that what is checked here is what a start would do. `ca` are flags
/// that a start would have too.
pub(super) fn check_rules(directory: &Path, ca: &[(&str, &Option<PathBuf>)]) -> Result<RulesChecked, CliError> {
    let daemon = path();
    let mut command = Command::new(&daemon);
    command.args(["--check", "--check-json", "--rules-dir"]).arg(directory).stdin(Stdio::null());
    for (flag, path) in ca {
        if let Some(path) = path {
            command.arg(flag).arg(path);
        }
    }
    let ran = command.output().map_err(|source| CliError::Local {
        what: format!("{DAEMON}, which checks the rules, cannot be run as {}", daemon.display()),
        source,
    })?;
    serde_json::from_slice(&ran.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&ran.stderr);
        let text = format!("{} --check did not finish: {}\n{}", daemon.display(), ran.status, said.trim_end());
        CliError::Unsuccessful(text)
    })
}
