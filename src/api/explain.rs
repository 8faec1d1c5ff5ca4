//! `POST /api/v1/explain`

use serde::{Deserialize, Serialize};

/// What to explain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// An `http` or `https` URL, a name, an address, or one of the two with a port.
    pub target: String,
    /// Method of the request; default `GET`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Exact name of the container that asks; without it: a peer of `--extra-peers`, whose `agent.name` is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// The answer to [`ExplainRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// In the order in which a packet meets them.
    pub steps: Vec<ExplainStep>,
    /// `allow` when some way leads through, else `block`.
    pub verdict: String,
    /// The smallest rule that would allow it, as a rule file; absent when it is allowed, or when no rule could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
    /// What was taken for granted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What one layer says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainStep {
    /// `dns`, `proxy`, `resolution`, `intercept`, `direct_ip` or `kernel`.
    pub layer: String,
    /// `allow` or `block`.
    pub verdict: String,
    /// The rule that decided; `null` is the default.
    pub rule: Option<String>,
    /// What was judged and why it was judged so.
    pub reason: String,
    /// Rules before the deciding one that nearly matched, the closest first.
    pub near: Vec<ExplainNear>,
}

/// A rule that nearly matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainNear {
    /// Its id.
    pub rule: String,
    /// Its file.
    pub file: String,
    /// `allow` or `block`.
    pub action: String,
    /// What of its condition did not hold.
    pub failed: Vec<ExplainFailed>,
}

/// A part of a condition that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainFailed {
    /// As CEL, definitions expanded.
    pub part: String,
    /// `false`, `unknown` (the layer does not know a field) or `error`.
    pub is: String,
    /// The fields that it reads, with their values as CEL; `null`: unknown here.
    pub values: std::collections::BTreeMap<String, Option<String>>,
}
