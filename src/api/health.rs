//! `/api/v1/health`, `/ready`

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `GET /health`: every subsystem thread answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Always true: an unhealthy daemon answers 503 with an error that names the threads.
    pub healthy: bool,
    /// The threads that were asked, by name.
    pub subsystems: Vec<String>,
}

/// `GET /ready`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// True when every part is.
    pub ready: bool,
    /// Each start step, and Docker, by name.
    pub parts: BTreeMap<String, PartState>,
    /// What an operator should look at, though nothing stopped.
    pub warnings: Vec<String>,
}

/// One part of [`Ready`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartState {
    /// Whether it works.
    pub ok: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}
