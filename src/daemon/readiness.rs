//! What `/ready` says: each start step and Docker, with `ok` or the reason it is not.
//!
//! Written a few times in a daemon's life by the owner of each part, read by the operator API; never on a
//! packet's path, so a lock is fine here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shared, cheap to clone.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    parts: BTreeMap<&'static str, Result<(), String>>,
    warnings: BTreeMap<String, String>,
}

impl Readiness {
    /// Records the state of `part` ("bridge", "rules", "network", "dns", "proxy", "docker", "host_api", …).
    pub fn set(&self, part: &'static str, state: Result<(), String>) {
        self.lock().parts.insert(part, state);
    }

    /// Records (`Some`) or clears (`None`) the warning known by `key`.
    pub fn warn(&self, key: &str, text: Option<String>) {
        let mut state = self.lock();
        match text {
            Some(text) => state.warnings.insert(key.to_owned(), text),
            None => state.warnings.remove(key),
        };
    }

    /// Every part with its state, by name.
    #[must_use]
    pub fn parts(&self) -> Vec<(&'static str, Result<(), String>)> {
        self.lock().parts.iter().map(|(name, state)| (*name, state.clone())).collect()
    }

    /// The warnings in force.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.lock().warnings.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every write is one insertion: a panic elsewhere cannot leave the maps half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
