//! What the flags mean to each subsystem.

use super::Flags;
use crate::agent_api::AgentApiConfig;
use crate::bridge::BridgeConfig;
use crate::proxy::{ProxyConfig, Times};
use crate::rule_engine::{Guard, Interception, LoadOptions};

pub(super) fn bridge_config(flags: &Flags) -> BridgeConfig {
    BridgeConfig {
        bridge: flags.bridge.clone(),
        dns_port: flags.dns_port,
        proxy_port: (!flags.no_proxy).then(|| flags.proxy_addr.port()),
    }
}

pub(super) fn proxy_config(flags: &Flags) -> ProxyConfig {
    ProxyConfig {
        listen: flags.proxy_addr,
        extra_peers: flags.extra_peers.clone(),
        // At most a million each, by the flags' own ranges.
        max_connections: flags.proxy_max_connections as usize,
        max_per_container: flags.proxy_max_per_container as usize,
        times: Times::default(),
    }
}

pub(super) fn load_options(flags: &Flags) -> LoadOptions {
    LoadOptions { proxy: !flags.no_proxy, interception: Interception::Absent, guard: Guard::own() }
}

pub(super) fn agent_config(flags: &Flags) -> AgentApiConfig {
    AgentApiConfig {
        socket: flags.agent_socket_host_path.clone(),
        docker_socket: flags.docker_socket.clone(),
        evaluation_limit: std::time::Duration::from_secs(flags.agent_timeout_secs),
        checks: flags.agent_perm_rate,
        submissions: flags.agent_rule_rate,
    }
}
