//! The one value that every enforcing thread judges by.
//!
//! Control alone makes snapshots. A reader takes a new one between two events of its loop, so that a request is
//! judged by one snapshot from start to end, and acknowledges its generation.

use std::sync::Arc;

use crate::docker_manager::Directory;
use crate::rule_engine::RuleSet;

/// Policy and identities, published together.
#[derive(Clone)]
pub struct Snapshot {
    /// Grows by one with each publication.
    pub generation: u64,
    /// The rules in force.
    pub rules: Arc<RuleSet>,
    /// Who is behind an address.
    pub directory: Arc<Directory>,
}
