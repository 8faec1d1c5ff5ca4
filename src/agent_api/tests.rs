//! Worlds for the tests of this room.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use crate::docker_manager::{Directory, Endpoint, ManagedNetwork, agent_name};

/// A container with this name, address and first process.
pub(super) fn endpoint(name: &str, number: u8, pid: i32) -> Arc<Endpoint> {
    let network = Arc::new(ManagedNetwork {
        name: "outcall-default".to_owned(),
        id: "f".repeat(64),
        bridge: "outcall0".to_owned(),
        subnet: "10.200.0.0/24".parse().unwrap(),
        gateway: Ipv4Addr::new(10, 200, 0, 1),
    });
    Arc::new(Endpoint {
        container_id: format!("{number:02x}").repeat(32).into(),
        container: name.into(),
        agent: agent_name(name).into(),
        network,
        address: Ipv4Addr::new(10, 200, 0, number),
        mac: [2, 66, 10, 200, 0, number],
        sandbox_key: String::new(),
        pid,
    })
}

/// A directory of these, read now.
pub(super) fn directory(endpoints: &[&Arc<Endpoint>]) -> Directory {
    let endpoints: HashMap<_, _> = endpoints.iter().map(|endpoint| (endpoint.address, Arc::clone(endpoint))).collect();
    Directory { endpoints, ..Directory::empty(Instant::now()) }
}
