//! Closing for good while the bridge thread may still be alive.
//!
//! Owns: the agreement that after a close nothing is put back or opened any more by this process. Does not own: what
//! is put in place (`panic_closed`). Without it, the bridge thread would take the closed table for a foreign change.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::config::BridgeConfig;
use super::panic_closed;
use super::socket::KernelError;

/// How long a close waits for the bridge thread's current turn: that takes milliseconds, unless it is the thread
/// that died; then the table is closed all the same.
const TURN: Duration = Duration::from_millis(200);
/// Between two looks at a turn that is not over.
const LOOK: Duration = Duration::from_millis(1);

/// Closes everything, from any thread; cheap to clone.
#[derive(Clone)]
pub struct Closer {
    config: BridgeConfig,
    /// Held by the bridge thread for each turn of its loop; `true` once closed. No packet waits for it.
    closed: Arc<Mutex<bool>>,
}

impl Closer {
    pub(super) fn new(config: BridgeConfig) -> Self {
        Closer { config, closed: Arc::default() }
    }

    /// Puts the closed base table in force and keeps the bridge thread from changing it again. For a panic hook, and
    /// for the end of a process whose threads cannot be stopped in order.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn close(&self) -> Result<(), KernelError> {
        let begun = Instant::now();
        let _turn = loop {
            match self.closed.try_lock() {
                Ok(mut closed) => {
                    *closed = true;
                    break Some(closed);
                }
                Err(TryLockError::Poisoned(poisoned)) => {
                    let mut closed = poisoned.into_inner();
                    *closed = true;
                    break Some(closed);
                }
                // The thread that panics may be the one that holds it: go on without.
                Err(TryLockError::WouldBlock) if begun.elapsed() >= TURN => break None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
            }
        };
        panic_closed(&self.config)
    }

    /// The right to change the kernel for one turn; holds `true` when there is none any more.
    pub(super) fn turn(&self) -> MutexGuard<'_, bool> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
