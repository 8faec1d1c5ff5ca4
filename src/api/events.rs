//! Decision events: a line of the decision log and of `/events`.

use serde::{Deserialize, Serialize};

/// One decision. Fields that do not apply are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// RFC 3339, UTC.
    pub ts: String,
    /// Grows by one with each event of this daemon's life.
    pub seq: u64,
    /// Shared by the events of one attempt; a number below 2^53, never used again by a later run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub flow: Option<u64>,
    /// `dns`, `proxy`, `intercept`, `direct_ip`, `kernel` or `agent_api`.
    pub layer: String,
    /// `allow` or `block`.
    pub verdict: String,
    /// The container's name at that moment; absent for an unknown peer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub container: Option<String>,
    /// Docker's id, 64 hex digits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub container_id: Option<String>,
    /// The container's name without its final `-digits`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub agent: Option<String>,
    /// Id of the rule that decided; absent: no rule did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rule: Option<String>,
    /// That rule's file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<String>,
    /// A reason code: `rule`, `default`, `private_address`, …
    pub reason: String,
    /// The name asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host: Option<String>,
    /// The address reached for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ip: Option<String>,
    /// The port reached for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// `tcp`, `udp`, `icmp`, `http`, `https`, …
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub protocol: Option<String>,
    /// The HTTP method.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub method: Option<String>,
    /// Never with its query.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<String>,
    /// Of a DNS question: mnemonic, or `TYPEn`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub record_type: Option<String>,
    /// Bytes from the container.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes_up: Option<u64>,
    /// Bytes to the container.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes_down: Option<u64>,
    /// Microseconds from the request to its end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub duration_us: Option<u64>,
}
