//! The rule files of a directory, as texts.
//!
//! Owns which files count and how large they may be. Does not own what is in them.

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::load::LoadError;

/// Bytes of one file: ten thousand rules are about 2 MiB.
const FILE_MAX: u64 = 8 * 1024 * 1024;
/// Bytes of all files.
const TOTAL_MAX: usize = 32 * 1024 * 1024;
/// Number of files.
const FILES_MAX: usize = 1_000;

/// A rule file.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name, without a directory.
    pub name: String,
    /// What is in it.
    pub text: String,
}

/// Reads `*.yaml` and `*.yml` of `directory`, sorted by name; names with a leading dot are left out, as a shell's
/// `*` does. `Ok(None)` when the directory does not exist.
///
/// # Errors
/// Everything that could not be read, and the caps that were hit.
pub(super) fn read(directory: &Path) -> Result<Option<Vec<Source>>, Vec<LoadError>> {
    let shown = directory.display();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            let reason = format!("cannot read the rules in {shown}: it is a file; give the directory that holds it");
            return Err(vec![LoadError::of_directory(reason)]);
        }
        Err(error) => return Err(vec![LoadError::of_directory(format!("cannot read the rules in {shown}: {error}"))]),
    };
    let mut errors = Vec::new();
    let mut names = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => match entry.file_name().into_string() {
                Ok(name) if is_rule_file(&name) => names.push(name),
                Ok(_) => {}
                Err(name) if is_rule_file(&name.to_string_lossy()) => {
                    let reason = format!("the name of {} in {shown} is no UTF-8", name.display());
                    errors.push(LoadError::of_directory(reason));
                }
                Err(_) => {}
            },
            Err(error) => errors.push(LoadError::of_directory(format!("cannot list {shown}: {error}"))),
        }
    }
    names.sort_unstable();
    if names.len() > FILES_MAX {
        let reason = format!("{shown} has {} rule files; at most {FILES_MAX} are accepted", names.len());
        return Err(vec![LoadError::of_directory(reason)]);
    }
    let mut sources = Vec::with_capacity(names.len());
    let mut total = 0;
    for name in names {
        match read_file(&directory.join(&name)) {
            Ok(text) => {
                total += text.len();
                sources.push(Source { name, text });
            }
            Err((line, reason)) => errors.push(LoadError::of_file(&name, line, reason)),
        }
        if total > TOTAL_MAX {
            errors.push(LoadError::of_directory(format!("the files in {shown} hold over {TOTAL_MAX} bytes")));
            break;
        }
    }
    if errors.is_empty() { Ok(Some(sources)) } else { Err(errors) }
}

fn is_rule_file(name: &str) -> bool {
    !name.starts_with('.') && (name.ends_with(".yaml") || name.ends_with(".yml"))
}

fn read_file(path: &Path) -> Result<String, (Option<usize>, String)> {
    let cannot = |error: std::io::Error| (None, format!("cannot be read: {error}"));
    // Not blocking, so that a FIFO of that name does not hold the load up; regular files ignore it.
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    if !metadata.is_file() {
        return Err((None, "is no regular file".to_owned()));
    }
    let too_large = || (None, format!("is over {FILE_MAX} bytes"));
    if metadata.len() > FILE_MAX {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    // It may have grown since.
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(too_large());
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        (Some(line), "is no UTF-8 here".to_owned())
    })
}
