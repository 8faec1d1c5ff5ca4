//! Managed networks as values: their names, their bridges, their subnets, and what makes a Docker network one.
//!
//! Owns: every decision about names and addresses, without I/O (`host_routes` reads one file of /proc).
//! Does not own: asking Docker (`docker_manager`), making links (`bridge`).

mod allocation;
mod judge;
mod names;
mod request;
mod routes;

pub use allocation::{AllocationError, Occupied, allocate, overlapping};
pub use judge::{BRIDGE_NAME_OPTION, LABEL, LABEL_VALUE, MASQUERADE_OPTION, Verdict, judge};
pub use names::{DEFAULT_NETWORK, bridge_mac, bridge_of, network_name};
pub use request::{AddressError, check_gateway, check_subnet, first_gateway, is_rfc1918};
pub use routes::host_routes;
