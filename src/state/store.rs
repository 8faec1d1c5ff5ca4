//! The ledger on disk, and approvals.
//!
//! An approval is three writes: the intent into the ledger, the file into the rules directory, the result into the
//! ledger, with a reload between the last two. When a part fails, what was done is undone. When the process ends
//! between two of them, the intent says so to the next start, which takes the file away again before the rules are
//! read: half an approval is none, and the operator finds the request pending.

use std::path::{Path, PathBuf};

use super::disk::{self, Disk};
use super::ledger::{Ledger, LedgerError, RuleRequest};

const FILE: &str = "rule-requests.json";
/// Bytes read of the ledger: twice what the caps let it hold as JSON text.
const FILE_MAX: u64 = 32 * 1024 * 1024;
const FILE_MODE: u32 = 0o600;
const STATE_DIRECTORY_MODE: u32 = 0o700;
const RULES_DIRECTORY_MODE: u32 = 0o755;

/// Why a change did not happen.
#[derive(Debug)]
pub enum StoreError {
    /// The ledger says no.
    Ledger(LedgerError),
    /// The ledger cannot be used since the start; the text says why.
    Unusable(String),
    /// The ledger could not be written.
    Write {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StoreError::Ledger(error) => error.fmt(f),
            StoreError::Unusable(why) => write!(f, "rule requests cannot be kept: {why}"),
            StoreError::Write { path, source } => write!(f, "cannot write {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StoreError::Ledger(error) => Some(error),
            StoreError::Write { source, .. } => Some(source),
            StoreError::Unusable(_) => None,
        }
    }
}

impl From<LedgerError> for StoreError {
    fn from(error: LedgerError) -> Self {
        StoreError::Ledger(error)
    }
}

/// Why the rules do not hold after a file was written.
#[derive(Debug)]
pub struct NotInstalled {
    /// One line for each reason.
    pub reasons: Vec<String>,
    /// True when the new set may be in force all the same: nobody answered.
    pub unclear: bool,
}

/// Why an approval did not happen. Everything it did is undone.
#[derive(Debug)]
pub enum ApproveError {
    /// The ledger or its file.
    Store(StoreError),
    /// A file of that name is in the rules directory already.
    FileExists(PathBuf),
    /// The rule file could not be written.
    File {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The rule engine refuses the set with the new file in it.
    Refused(Vec<String>),
}

impl std::fmt::Display for ApproveError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ApproveError::Store(error) => error.fmt(f),
            ApproveError::FileExists(path) => {
                write!(f, "{} exists already; move it away and approve again", path.display())
            }
            ApproveError::File { path, source } => write!(f, "cannot write {}: {source}", path.display()),
            ApproveError::Refused(reasons) => {
                write!(f, "the rules do not load with this request in them: {}", reasons.join("; "))
            }
        }
    }
}

impl std::error::Error for ApproveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ApproveError::Store(error) => Some(error),
            ApproveError::File { source, .. } => Some(source),
            ApproveError::FileExists(_) | ApproveError::Refused(_) => None,
        }
    }
}

impl From<StoreError> for ApproveError {
    fn from(error: StoreError) -> Self {
        ApproveError::Store(error)
    }
}

/// The rule requests and the files that belong to them.
pub struct RequestStore {
    disk: Box<dyn Disk>,
    file: PathBuf,
    rules: PathBuf,
    ledger: Result<Ledger, String>,
}

impl RequestStore {
    /// Reads the ledger of `state` and undoes half-done approvals in `rules`. Call it before the rules are loaded.
    ///
    /// Never fails: the daemon enforces without rule requests too. A damaged ledger is set aside with its bytes. The
    /// second part holds what the operator should hear, one line each. `now` in seconds since 1970 names the file
    /// that is set aside.
    #[must_use]
    pub fn open(mut disk: Box<dyn Disk>, state: &Path, rules: &Path, now_secs: u64) -> (Self, Vec<String>) {
        let file = state.join(FILE);
        let mut said = Vec::new();
        let ledger = read_ledger(disk.as_mut(), &file, now_secs, &mut said);
        if let Err(why) = &ledger {
            said.push(format!("rule requests are not taken: {why}"));
        }
        let mut store = RequestStore { disk, file, rules: rules.to_owned(), ledger };
        store.undo_half_done(&mut said);
        (store, said)
    }

    /// The requests as they stand.
    ///
    /// # Errors
    /// [`StoreError::Unusable`]
    pub fn ledger(&self) -> Result<&Ledger, StoreError> {
        self.ledger.as_ref().map_err(|why| StoreError::Unusable(why.clone()))
    }

    /// Adds a pending request; it is durable when this returns.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn submit(&mut self, request: RuleRequest, lives: impl Fn(&str) -> bool, now: &str) -> Result<(), StoreError> {
        let next = self.ledger()?.submitted(request, lives, now)?;
        self.save(next)
    }

    /// Refuses a pending request.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn reject(&mut self, id: &str, reason: Option<String>, now: &str) -> Result<(), StoreError> {
        let next = self.ledger()?.rejected(id, reason, now)?;
        self.save(next)
    }

    /// Installs `bytes` as the file of the pending request `id`. `reload` makes the rules hold and gives their number.
    ///
    /// # Errors
    /// [`ApproveError`]; the request is then pending as before, and the rules are the old ones.
    pub fn approve(
        &mut self,
        id: &str,
        bytes: &[u8],
        now: &str,
        reload: &mut dyn FnMut() -> Result<usize, NotInstalled>,
    ) -> Result<usize, ApproveError> {
        let next = self.ledger()?.approving(id).map_err(StoreError::from)?;
        // Found: the ledger has just changed it.
        let path = self.rules.join(next.find(id).map(RuleRequest::file_name).unwrap_or_default());
        if path.symlink_metadata().is_ok() {
            return Err(ApproveError::FileExists(path));
        }
        self.save(next)?;
        let written = disk::make_directory(&self.rules, RULES_DIRECTORY_MODE)
            .and_then(|()| disk::replace(self.disk.as_mut(), &path, bytes, FILE_MODE));
        if let Err(source) = written {
            self.undo(id, &path);
            return Err(ApproveError::File { path, source });
        }
        let rules_loaded = match reload() {
            Ok(rules_loaded) => rules_loaded,
            Err(NotInstalled { reasons, unclear }) => {
                self.undo(id, &path);
                if unclear {
                    reload_undone(reload);
                }
                return Err(ApproveError::Refused(reasons));
            }
        };
        let marked = self.ledger().and_then(|ledger| Ok(ledger.approved(id, now)?));
        if let Err(error) = marked.and_then(|next| self.save(next)) {
            self.undo(id, &path);
            reload_undone(reload);
            return Err(error.into());
        }
        Ok(rules_loaded)
    }

    /// Writes `next` down, then works by it.
    fn save(&mut self, next: Ledger) -> Result<(), StoreError> {
        let failed = |source| StoreError::Write { path: self.file.clone(), source };
        let bytes = next.to_bytes().map_err(|error| failed(error.into()))?;
        if let Some(directory) = self.file.parent() {
            disk::make_directory(directory, STATE_DIRECTORY_MODE).map_err(failed)?;
        }
        disk::replace(self.disk.as_mut(), &self.file, &bytes, FILE_MODE).map_err(failed)?;
        self.ledger = Ok(next);
        Ok(())
    }

    /// Takes a file away and the approval back. The file goes first: without it, the intent in the ledger is harmless.
    fn undo(&mut self, id: &str, path: &Path) {
        if let Err(error) = disk::remove(self.disk.as_mut(), path) {
            tracing::error!(target: "agent_api", "cannot take back {}: {error}; remove it by hand and reload", path.display());
            return;
        }
        let Ok(next) = self.ledger().and_then(|ledger| Ok(ledger.undone(id)?)) else { return };
        if let Err(error) = self.save(next.clone()) {
            tracing::error!(target: "agent_api", "{error}; the next start takes the approval of {id} back");
            self.ledger = Ok(next);
        }
    }

    fn undo_half_done(&mut self, said: &mut Vec<String>) {
        let Ok(ledger) = &self.ledger else { return };
        let half_done: Vec<(String, PathBuf)> =
            ledger.half_done().map(|request| (request.id.clone(), self.rules.join(request.file_name()))).collect();
        for (id, path) in half_done {
            said.push(format!("the approval of rule request {id} was cut short; it is pending again"));
            self.undo(&id, &path);
        }
    }
}

/// After the file is gone: whatever holds now, the old rules shall.
fn reload_undone(reload: &mut dyn FnMut() -> Result<usize, NotInstalled>) {
    if let Err(NotInstalled { reasons, .. }) = reload() {
        tracing::error!(target: "agent_api", reason = reasons.first(), "the rules could not be reloaded after an approval was undone");
    }
}

fn read_ledger(disk: &mut dyn Disk, file: &Path, now_secs: u64, said: &mut Vec<String>) -> Result<Ledger, String> {
    let shown = file.display();
    let bytes = match disk::read(file, FILE_MAX) {
        Ok(None) => return Ok(Ledger::new()),
        Ok(Some(bytes)) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
            return set_aside(disk, file, &error.to_string(), now_secs, said);
        }
        Err(error) => return Err(format!("cannot read {shown}: {error}")),
    };
    match Ledger::from_bytes(&bytes) {
        Ok(ledger) => Ok(ledger),
        Err(why) => set_aside(disk, file, &why, now_secs, said),
    }
}

/// Keeps a damaged ledger under another name, and begins a new one.
fn set_aside(
    disk: &mut dyn Disk,
    file: &Path,
    why: &str,
    now_secs: u64,
    said: &mut Vec<String>,
) -> Result<Ledger, String> {
    let kept = disk::set_aside(disk, file, now_secs)
        .map_err(|error| format!("{} is damaged ({why}) and cannot be set aside: {error}", file.display()))?;
    said.push(format!(
        "{} is damaged ({why}); its bytes are kept in {}, and the requests in it must be submitted again",
        file.display(),
        kept.display()
    ));
    Ok(Ledger::new())
}
