//! The JSON vocabulary of the agent API, shared by the daemon and the shim.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `POST /v1/checkin`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckIn {}

/// The answer to [`CheckIn`]: a session, the same one until the container ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedIn {
    /// 64 hex digits.
    pub container_id: String,
    /// For `Authorization: Bearer`; worth nothing to another container.
    pub session_token: String,
    /// The fields of a [`PermissionCheck`].
    pub context_keys: Vec<String>,
}

/// What an agent is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionType {
    /// Run a program.
    ToolExec,
    /// Reach an address, a host or a URL.
    NetworkCall,
    /// Read or write a file.
    FileAccess,
    /// Run a shell command.
    ShellExec,
}

impl ActionType {
    /// The word that the documents use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ActionType::ToolExec => "tool_exec",
            ActionType::NetworkCall => "network_call",
            ActionType::FileAccess => "file_access",
            ActionType::ShellExec => "shell_exec",
        }
    }
}

/// `POST /v1/permissions/check`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PermissionCheck {
    /// What kind of action.
    pub action_type: ActionType,
    /// The program, the URL or host, or the path.
    pub target: String,
    /// Details: `args_json` or `args`, `flags`, `cwd`, `method`, and whatever rules want to see in `run.context`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// The verdict; status 200 for a denial too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermissionVerdict {
    /// Yes or no.
    pub allowed: bool,
    /// The rule that decided; `null`: none, which is a denial.
    pub matched_rule: Option<String>,
    /// One short line for people.
    pub reason: String,
}

/// `POST /v1/requests/rules`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSubmission {
    /// A rule file, as YAML text.
    pub rule_file: String,
}

/// The state of a submission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleRequestState {
    /// `rr-…`
    pub id: String,
    /// `pending`, `approved`, `rejected` or `expired`.
    pub status: String,
    /// Why it was rejected, if anybody said so.
    pub reason: Option<String>,
}

/// Any refusal of the agent API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentError {
    /// What was wrong and what to do.
    pub error: String,
}
