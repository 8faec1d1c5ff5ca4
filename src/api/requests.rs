//! `/api/v1/requests/rules`: what agents ask of the operator.

use serde::{Deserialize, Serialize};

/// One row of `GET /requests/rules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingRuleRequest {
    /// `rr-…`
    pub id: String,
    /// 64 hex digits.
    pub container_id: String,
    /// The container's name when it asked.
    pub container: String,
    /// The text as the agent wrote it: show it as text, never as anything else.
    pub rule_file: String,
    /// The exact bytes that an approval writes.
    pub installs: String,
    /// What in it does not do what it seems to, as `rules check` says it; left out where it was not looked into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lint: Option<Vec<String>>,
    /// `pending`
    pub status: String,
    /// RFC 3339, UTC.
    pub submitted_at: String,
}

/// `POST /requests/rules/ID/approve`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleRequestApprove {
    /// Not limited to the container that asked.
    #[serde(default)]
    pub all_agents: bool,
}

/// The answer to [`RuleRequestApprove`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleRequestApproved {
    /// The request.
    pub id: String,
    /// How many rules are in force now.
    pub rules_loaded: usize,
}

/// `POST /requests/rules/ID/reject`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleRequestReject {
    /// For the agent to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The answer to [`RuleRequestReject`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleRequestRejected {
    /// The request.
    pub id: String,
}
