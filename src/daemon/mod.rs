//! The daemon: flags, start order, control and supervision.
//!
//! `run` reads top to bottom and is the only place that makes channels and starts threads.

mod control_loop;
mod flags;
mod inherited;
mod interception;
mod lock;
mod logging;
mod notify;
mod probe;
mod publisher;
mod readiness;
mod run;
mod settings;
mod signals;
mod snapshot;
mod started;
mod subsystem;
mod threads;

pub mod control;

pub use flags::{Flags, OnExit, Rate};
pub use logging::TARGETS;
pub use probe::{PROBE_ARGUMENT, probe_host};
pub use readiness::Readiness;
pub use run::{check, lockdown, run};
pub use snapshot::Snapshot;
pub use subsystem::Subsystem;
