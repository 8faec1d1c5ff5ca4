//! What the flags mean to each subsystem.

use std::path::PathBuf;
use std::sync::Arc;

use super::Flags;
use crate::agent_api::{AgentApiConfig, socket_directory};
use crate::authority;
use crate::bridge::BridgeConfig;
use crate::docker_manager::{DockerConfig, HostFiles};
use crate::proxy::{ProxyConfig, Times};
use crate::rule_engine::{Guard, LoadOptions};

pub(super) fn bridge_config(flags: &Flags) -> BridgeConfig {
    BridgeConfig {
        bridge: flags.bridge.clone(),
        dns_port: flags.dns_port,
        proxy_port: (!flags.no_proxy).then(|| flags.proxy_addr.port()),
    }
}

pub(super) fn proxy_config(flags: &Flags, interception: Option<authority::Interception>) -> ProxyConfig {
    ProxyConfig {
        listen: flags.proxy_addr,
        extra_peers: flags.extra_peers.clone(),
        // At most a million each, by the flags' own ranges.
        max_connections: flags.proxy_max_connections as usize,
        max_per_container: flags.proxy_max_per_container as usize,
        interception,
        times: Times::default(),
    }
}

/// `ca_bundle`: the file of system roots and our CA that containers trust, where the daemon has a CA.
pub(super) fn docker_config(flags: &Flags, ca_bundle: Option<PathBuf>) -> DockerConfig {
    let agent_directory = socket_directory(&flags.agent_socket_host_path);
    let own = [&flags.state_dir, &flags.rules_dir, &agent_directory];
    let protected = own.into_iter().chain(flags.ca_key.as_ref()).cloned().collect();
    DockerConfig {
        socket: flags.docker_socket.clone(),
        bridge: flags.bridge.clone(),
        subnet_block: flags.subnet_block,
        files: HostFiles::default(),
        operator_socket: flags.socket.clone(),
        protected,
        agent_directory,
        shim: flags.shim_host_path.clone(),
        proxy: (!flags.no_proxy).then_some(flags.proxy_addr),
        ca_bundle,
    }
}

/// What a loaded CA brings to the proxy.
pub(super) fn interception_config(
    flags: &Flags,
    leaves: authority::Leaves,
    upstream: Arc<rustls::ClientConfig>,
) -> authority::Interception {
    // At most 16 MiB, by the flag's own range.
    let body_cap = flags.intercept_body_cap_bytes as usize;
    authority::Interception { leaves, upstream, body_cap, counters: authority::Counters::default() }
}

/// `ca` tells whether one is loaded.
pub(super) fn load_options(flags: &Flags, ca: bool) -> LoadOptions {
    LoadOptions { proxy: !flags.no_proxy, interception: ca, guard: Guard::own() }
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
