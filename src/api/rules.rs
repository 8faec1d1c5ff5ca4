//! `/api/v1/rules`, `/rule/…`

use serde::{Deserialize, Serialize};

/// One row of `GET /rules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the contract's own words
pub struct RuleSummary {
    pub id: String,
    pub file: String,
    pub action: String,
    /// The condition as written, cut to one line.
    pub condition_preview: String,
    pub description: Option<String>,
    pub priority: i64,
    pub hits: u64,
    pub errors: u64,
    /// RFC 3339, UTC; `null`: never.
    pub last_hit: Option<String>,
}

/// `GET /rule/ID`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the contract's own words
pub struct RuleDetail {
    pub id: String,
    pub file: String,
    /// Definitions expanded.
    pub condition: String,
    pub action: String,
    pub log: bool,
    pub description: Option<String>,
    pub priority: i64,
    pub egress: Option<EgressView>,
}

/// The `egress:` part of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the contract's own words
pub struct EgressView {
    pub mode: String,
    pub ports: Vec<u16>,
    pub allow_private_ips: bool,
    pub match_body: bool,
}

/// `POST /rules/reload`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the contract's own words
pub struct Reloaded {
    pub files_loaded: usize,
    pub rules_loaded: usize,
    pub warnings: Vec<String>,
}

/// `POST /rule/evaluate`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateRequest {
    /// Namespaces as rules see them; what is absent is unknown.
    pub context: serde_json::Map<String, serde_json::Value>,
}

/// The answer to [`EvaluateRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the contract's own words
pub struct Evaluated {
    /// `allow` or `block`.
    pub decision: String,
    pub matched_rule: Option<String>,
    pub file: Option<String>,
    pub logged: bool,
}

/// `POST /rule/test`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // the names are the contract's own words
pub struct RuleTest {
    pub expression: String,
    #[serde(default)]
    pub context: serde_json::Map<String, serde_json::Value>,
}

/// The answer to [`RuleTest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleTested {
    /// `true`, `false`, or `null` when the condition stays unknown or errs.
    pub result: Option<bool>,
    /// Why there is no result.
    pub error: Option<String>,
}
