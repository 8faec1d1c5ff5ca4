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
#[allow(missing_docs)] // the names are the documents' own words
pub struct NetworkCreated {
    pub network_id: String,
    pub name: String,
    pub subnet: String,
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
#[allow(missing_docs)] // the names are the documents' own words
pub struct NetworkDestroyed {
    pub name: String,
    pub destroyed: bool,
}

/// One network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the documents' own words
pub struct NetworkStatus {
    pub exists: bool,
    pub network_id: Option<String>,
    pub name: String,
    pub subnet: Option<String>,
    pub gateway: Option<String>,
    pub bridge: Option<String>,
    pub containers: Vec<AttachedContainer>,
}

/// A container on a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the documents' own words
pub struct AttachedContainer {
    pub name: String,
    pub ipv4_address: String,
}

/// `GET /network/config`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the documents' own words
pub struct NetworkConfig {
    pub subnet_block: String,
}
