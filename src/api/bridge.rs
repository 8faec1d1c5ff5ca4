//! `/api/v1/bridge`

use serde::{Deserialize, Serialize};

/// The state of the default bridge and of the table, asked of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeStatus {
    /// Link name.
    pub name: String,
    /// Whether the link exists and is up.
    pub up: bool,
    /// Interface index; `null` when down.
    pub index: Option<u32>,
    /// Whether the kernel's table is the one planned.
    pub nftables_active: bool,
    /// `active` or `inactive`.
    pub nftables: String,
}
