//! The daemon's binary as a helper: it holds the loader that `rules check` runs, and the helper of `doctor`.
//!
//! Owns: finding and running it. Does not own: what it says.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use super::CliError;

const DAEMON: &str = "outcalld";

/// What the loader said about a directory of rules.
#[derive(Serialize)]
pub(super) struct Checked {
    /// Whether a start would take them.
    pub(super) valid: bool,
    /// The report, by lines.
    pub(super) report: Vec<String>,
}

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
pub(super) fn check_rules(directory: &Path, ca: &[(&str, &Option<PathBuf>)]) -> Result<Checked, CliError> {
    let daemon = path();
    let mut command = Command::new(&daemon);
    command.args(["--check", "--rules-dir"]).arg(directory).stdin(Stdio::null());
    for (flag, path) in ca {
        if let Some(path) = path {
            command.arg(flag).arg(path);
        }
    }
    let ran = command.output().map_err(|source| CliError::Local {
        what: format!("{DAEMON}, which checks the rules, cannot be run as {}", daemon.display()),
        source,
    })?;
    let report: Vec<String> = [&ran.stdout, &ran.stderr]
        .into_iter()
        .flat_map(|bytes| String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    match ran.status.code() {
        Some(0 | 1) => Ok(Checked { valid: ran.status.success(), report }),
        _ => {
            let said = report.join("\n");
            Err(CliError::Unsuccessful(format!("{} --check did not finish: {}\n{said}", daemon.display(), ran.status)))
        }
    }
}
