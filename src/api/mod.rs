//! The JSON vocabulary of the operator API and the agent API, shared by daemon and clients. Imports nothing of the crate.
//!
//! Field names are those of vendor-docs/operator-api.md and vendor-docs/agent-api.md. Requests refuse unknown fields.

mod agent;
mod bridge;
mod ca;
mod container;
mod dns;
mod doctor;
mod events;
mod explain;
mod health;
mod json;
mod network;
mod proxy;
mod requests;
mod rules;

pub use agent::{
    ActionType, AgentError, CheckIn, CheckedIn, PermissionCheck, PermissionVerdict, RuleRequestState, RuleSubmission,
};
pub use bridge::BridgeStatus;
pub use ca::{CaBundle, CaStatus};
pub use container::{
    ContainerCreate, ContainerCreated, ContainerDetail, ContainerMount, ContainerPull, ContainerPulled,
    ContainerRemove, ContainerRemoved, ContainerStop, ContainerStopped, ContainerSummary, Environment, MemoryLimit,
    REDACTED, Words,
};
pub use dns::{DnsCache, DnsCacheEntry, DnsCacheStats, DnsFlushed, DnsStatus};
pub use doctor::{
    DoctorVerdict, Finding, ForeignHook, HostProbe, ProbedCa, ProbedFeature, ProbedRules, ProbedSettings,
};
pub use events::EventRecord;
pub use explain::{ExplainFailed, ExplainNear, ExplainRequest, ExplainStep, Explained};
pub use health::{Health, PartState, Ready};
pub use json::{drives_terminal, to_json};
pub use network::{
    AttachedContainer, NetworkConfig, NetworkCreate, NetworkCreated, NetworkDestroyed, NetworkSelect, NetworkStatus,
};
pub use proxy::{InterceptStatus, LeavesFlushed, ProxyStatus};
pub use requests::{
    PendingRuleRequest, RuleRequestApprove, RuleRequestApproved, RuleRequestReject, RuleRequestRejected,
};
pub use rules::{
    ActiveRule, EgressView, EvaluateRequest, Evaluated, Reloaded, RuleAllow, RuleDetail, RuleFinding, RuleSummary,
    RuleTest, RuleTested, RulesChecked, RulesFlushed,
};

use serde::{Deserialize, Serialize};

/// Every answer of the operator API.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// Whether `data` holds an answer.
    pub success: bool,
    /// The answer.
    #[serde(skip_serializing_if = "Option::is_none", default = "Option::default")]
    pub data: Option<T>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

impl<T> Envelope<T> {
    /// A success.
    pub fn ok(data: T) -> Self {
        Envelope { success: true, data: Some(data), error: None }
    }
}

impl Envelope<()> {
    /// A failure.
    #[must_use]
    pub fn failed(error: String) -> Self {
        Envelope { success: false, data: None, error: Some(error) }
    }
}
