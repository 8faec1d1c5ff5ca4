//! `/api/v1/rules`, `/rule/…`

use serde::{Deserialize, Serialize};

/// One row of `GET /rules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleSummary {
    /// The rule's id.
    pub id: String,
    /// The file's name in the rules directory.
    pub file: String,
    /// `allow` or `block`.
    pub action: String,
    /// The condition as written, cut to one line.
    pub condition_preview: String,
    /// As written.
    pub description: Option<String>,
    /// Lower runs first.
    pub priority: i64,
    /// How often it decided since it was loaded.
    pub hits: u64,
    /// How often its condition erred, which is no match.
    pub errors: u64,
    /// RFC 3339, UTC; `null`: never.
    pub last_hit: Option<String>,
}

/// `GET /rule/ID`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleDetail {
    /// The rule's id.
    pub id: String,
    /// The file's name in the rules directory.
    pub file: String,
    /// Definitions expanded.
    pub condition: String,
    /// `allow` or `block`.
    pub action: String,
    /// Whether its decisions are logged too.
    pub log: bool,
    /// As written.
    pub description: Option<String>,
    /// Lower runs first.
    pub priority: i64,
    /// As in force, defaults filled in; `null` for a block rule.
    pub egress: Option<EgressView>,
}

/// The `egress:` part of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressView {
    /// `proxy`, `direct_ip` or `intercept`.
    pub mode: String,
    /// TCP ports that `direct_ip` opens.
    pub ports: Vec<u16>,
    /// Whether special-purpose addresses may be reached.
    pub allow_private_ips: bool,
    /// Whether `http.body` is filled.
    pub match_body: bool,
}

/// `POST /rules/reload`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Rule files read.
    pub files_loaded: usize,
    /// Rules in force.
    pub rules_loaded: usize,
    /// What to look at, one line each.
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
pub struct Evaluated {
    /// `allow` or `block`.
    pub decision: String,
    /// The rule that decided; `null`: none, hence `block`.
    pub matched_rule: Option<String>,
    /// That rule's file.
    pub file: Option<String>,
    /// Whether the rule asks for its decisions to be logged.
    pub logged: bool,
}

/// `POST /rule/test`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleTest {
    /// A condition as in a rule file, without definitions.
    pub expression: String,
    /// Namespaces as rules see them; what is absent is unknown.
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
pub struct ActiveRule {
    /// The container's name.
    pub container: String,
    /// IPv4 address.
    pub destination: String,
    /// Port of the destination.
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
    /// From the container, with IP headers.
    pub bytes: u64,
}

/// `POST /rules/flush`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesFlushed {
    /// How many flows were ended.
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
