//! Decision events: a line of the decision log and of `/events`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// One decision. Fields that do not apply are left out. Whoever writes it lends its texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord<'a> {
    /// RFC 3339, UTC.
    pub ts: Cow<'a, str>,
    /// Grows by one with each event of this daemon's life.
    pub seq: u64,
    /// Shared by the events of one attempt; a number below 2^53, never used again by a later run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub flow: Option<u64>,
    /// `dns`, `proxy`, `intercept`, `direct_ip`, `kernel` or `agent_api`.
    pub layer: Cow<'a, str>,
    /// `allow` or `block`.
    pub verdict: Cow<'a, str>,
    /// The container's name at that moment; absent for an unknown peer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub container: Option<Cow<'a, str>>,
    /// Docker's id, 64 hex digits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub container_id: Option<Cow<'a, str>>,
    /// The container's name without its final `-digits`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub agent: Option<Cow<'a, str>>,
    /// Id of the rule that decided; absent: no rule did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rule: Option<Cow<'a, str>>,
    /// That rule's file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<Cow<'a, str>>,
    /// A reason code: `rule`, `default`, `private_address`, …
    pub reason: Cow<'a, str>,
    /// The name asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host: Option<Cow<'a, str>>,
    /// The address reached for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ip: Option<Cow<'a, str>>,
    /// The port reached for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// `tcp`, `udp`, `icmp`, `http`, `https`, …
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub protocol: Option<Cow<'a, str>>,
    /// The HTTP method.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub method: Option<Cow<'a, str>>,
    /// Never with its query.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<Cow<'a, str>>,
    /// Of a DNS question: mnemonic, or `TYPEn`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub record_type: Option<Cow<'a, str>>,
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
