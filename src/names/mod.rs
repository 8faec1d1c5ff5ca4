//! The one normal form of host names, and the registries of special-purpose addresses.
//!
//! Made once, before any rule sees a name. What has no normal form is refused, never repaired.

mod host;
mod special;

pub use host::{Host, HostError, HostName};
pub use special::{SpecialPurpose, special_purpose};
