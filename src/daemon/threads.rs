//! Subsystem threads: started with their name, fenced against panics, joined with a deadline.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Subsystem;
use super::control::ControlMessage;
use crate::event_loop::Address;

/// Between two looks at whether a thread has ended, while stopping.
const JOIN_POLL: Duration = Duration::from_millis(2);

/// A running subsystem and how to tell it to stop.
pub struct Running {
    /// Which one.
    pub subsystem: Subsystem,
    stop: Box<dyn Fn() + Send>,
    handle: JoinHandle<()>,
}

/// Starts `work` on a thread named after `subsystem`. However it ends, control is told.
///
/// # Errors
/// What `pthread_create` says.
pub fn spawn(
    subsystem: Subsystem,
    control: Address<ControlMessage>,
    work: impl FnOnce() -> Result<(), String> + Send + 'static,
    stop: impl Fn() + Send + 'static,
) -> std::io::Result<Running> {
    let handle = std::thread::Builder::new().name(subsystem.name().to_owned()).spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panic_text(panic.as_ref())));
        // Control is gone only when the process is ending anyway.
        let _ = control.send_within(ControlMessage::Ended { subsystem, outcome }, Duration::from_secs(1));
    })?;
    Ok(Running { subsystem, stop: Box::new(stop), handle })
}

impl Running {
    /// Tells the thread to stop.
    pub fn stop(&self) {
        (self.stop)();
    }

    /// Waits for the end of the thread until `deadline`; false: it runs on.
    #[must_use]
    pub fn join_until(self, deadline: Instant) -> bool {
        while !self.handle.is_finished() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::park_timeout(JOIN_POLL);
        }
        // A panic inside was caught and reported by the thread itself.
        self.handle.join().is_ok()
    }
}

/// What a panic said.
#[must_use]
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", text.unwrap_or("without a message"))
}
