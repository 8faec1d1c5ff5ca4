//! `/api/v1/rules`, `/rule/…`

use serde::{Deserialize, Serialize};

/// One row of `GET /rules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the documents' own words
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
#[allow(missing_docs)] // the names are the documents' own words
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
#[allow(missing_docs)] // the names are the documents' own words
pub struct EgressView {
    pub mode: String,
    pub ports: Vec<u16>,
    pub allow_private_ips: bool,
    pub match_body: bool,
}

/// `POST /rules/reload`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the documents' own words
pub struct Reloaded {
    pub files_loaded: usize,
    pub rules_loaded: usize,
    pub warnings: Vec<String>,
}

/// Something that is wrong with rule files, or not as it seems.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleFinding {
    /// `error`: it does not load; `warning`: said at each load; `lint`: said by a check.
    pub level: String,
    /// The file's name; `null` when it is about the directory.
    pub file: Option<String>,
    /// From 1.
    pub line: Option<usize>,
    /// The rule's id.
    pub rule: Option<String>,
    /// What is wrong.
    pub what: String,
    /// What to write instead, where `what` does not say.
    pub instead: Option<String>,
}

impl std::fmt::Display for RuleFinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}")?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            f.write_str(": ")?;
        }
        if let Some(rule) = &self.rule {
            write!(f, "rule {rule}: ")?;
        }
        f.write_str(&self.what)?;
        match &self.instead {
            Some(instead) => write!(f, "; write {instead}"),
            None => Ok(()),
        }
    }
}

/// `outcall rules check --json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesChecked {
    /// Whether they load.
    pub valid: bool,
    /// What was found, errors first.
    pub findings: Vec<RuleFinding>,
    /// The same for people, one line each.
    pub report: Vec<String>,
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
#[allow(missing_docs)] // the names are the documents' own words
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
#[allow(missing_docs)] // the names are the documents' own words
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

/// One row of `GET /rules/active`: a flow that may leave directly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the documents' own words
pub struct ActiveRule {
    pub container: String,
    pub destination: String,
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Of the nftables set that holds it: its elements have no handles of their own.
    pub nft_handle: u64,
    /// RFC 3339, UTC.
    pub inserted_at: String,
    /// New flows may begin until then; those that run go on.
    pub expires_in_secs: u64,
    /// From the container.
    pub packets: u64,
    pub bytes: u64,
}

/// `POST /rules/flush`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the documents' own words
pub struct RulesFlushed {
    pub removed: usize,
}

/// `POST /rule/allow`; the answer is an [`ActiveRule`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleAllow {
    /// Name or id.
    pub container: String,
    /// The container's own address.
    pub src_ip: String,
    /// An ordinary IPv4 address.
    pub destination: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// 1 to 65535.
    pub port: u16,
    /// 1 to 86400; 3600 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_secs: Option<u64>,
}
