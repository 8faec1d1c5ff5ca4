//! The daemon: flags, start order, control and supervision.
//!
//! `run` reads top to bottom and is the only place that makes channels and starts threads.

mod flags;
mod logging;
mod publisher;
mod readiness;
mod snapshot;
mod subsystem;

pub mod control;

pub use flags::{Flags, OnExit, Rate};
pub use logging::TARGETS;
pub use readiness::Readiness;
pub use snapshot::Snapshot;
pub use subsystem::Subsystem;
