//! `/api/v1/network`

use serde::{Deserialize, Serialize};

/// `POST /network/create`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkCreate {
    /// Suffix: the network is `outcall-NAME`; absent: `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// CIDR; absent: the first free /24 of the block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// Address of the bridge; absent: the first of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
}

/// The answer to [`NetworkCreate`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkCreated {
    /// Docker's id, 64 hex digits.
    pub network_id: String,
    /// Whole name, `outcall-…`.
    pub name: String,
    /// CIDR.
    pub subnet: String,
    /// The bridge's address: DNS and proxy of its containers.
    pub gateway: String,
    /// `false` when it existed.
    pub created: bool,
}

/// Which network: the suffix of its name; absent: `default`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSelect {
    /// Suffix, or the whole name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// `POST /network/destroy`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDestroyed {
    /// Whole name, `outcall-…`.
    pub name: String,
    /// Always `true`: an unknown network is an error.
    pub destroyed: bool,
}

/// One network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Whether Docker has it.
    pub exists: bool,
    /// Docker's id, 64 hex digits.
    pub network_id: Option<String>,
    /// Whole name, `outcall-…`.
    pub name: String,
    /// CIDR.
    pub subnet: Option<String>,
    /// The bridge's address: DNS and proxy of its containers.
    pub gateway: Option<String>,
    /// The link's name on the host.
    pub bridge: Option<String>,
    /// Those that run on it.
    pub containers: Vec<AttachedContainer>,
}

/// A container on a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedContainer {
    /// The container's name.
    pub name: String,
    /// Its address on this network.
    pub ipv4_address: String,
}

/// `GET /network/config`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// CIDR that each network's /24 comes from, as in `--subnet-block`.
    pub subnet_block: String,
}
