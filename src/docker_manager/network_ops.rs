//! Making and removing managed networks: the steps, in order, each undone when a later one fails.
//!
//! Owns: the sequence "bridge first, then Docker's network" and its reverse, as blocking calls. They take seconds, so
//! the manager runs them on a thread of their own; the start runs them on its own. Does not own: names, subnets and
//! judgements (`network`), links (`bridge`).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::client::{Client, DockerError};
use super::{DockerFailure, Ipv4Net, ManagedNetwork, engine};
use crate::api;
use crate::bridge::BridgeCommand;
use crate::event_loop::{Address, reply_channel};
use crate::network::{self, Occupied, Verdict};

/// How long the bridge thread may take to make or remove a link: milliseconds, unless the kernel is very busy.
const BRIDGE_LIMIT: Duration = Duration::from_secs(5);
/// A read that is part of a change; it blocks nobody.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// What the operations need. Cheap to clone.
#[derive(Clone)]
pub(super) struct NetworkOps {
    pub(super) client: Client,
    pub(super) bridge: Address<BridgeCommand>,
    /// `--bridge`.
    pub(super) default_bridge: String,
    /// `--subnet-block`.
    pub(super) subnet_block: Ipv4Net,
}

impl From<&DockerError> for DockerFailure {
    fn from(error: &DockerError) -> Self {
        let status = match error {
            DockerError::Absent { .. }
            | DockerError::Denied { .. }
            | DockerError::Timeout { .. }
            | DockerError::TooOld { .. } => 503,
            DockerError::Refused { .. } | DockerError::Broken { .. } => 500,
        };
        DockerFailure { status, message: error.to_string() }
    }
}

impl From<DockerError> for DockerFailure {
    fn from(error: DockerError) -> Self {
        DockerFailure::from(&error)
    }
}

pub(super) fn failure(status: u16, message: impl Into<String>) -> DockerFailure {
    DockerFailure { status, message: message.into() }
}

impl NetworkOps {
    /// Finds or makes a network.
    pub(super) fn create(&self, request: &api::NetworkCreate) -> Result<api::NetworkCreated, DockerFailure> {
        let name = network::network_name(request.name.as_deref()).map_err(|reason| failure(400, reason))?;
        let wanted = wanted_addresses(request)?;
        let all = engine::networks(&self.client, READ_LIMIT)?;
        if let Some(found) = find(&all, &name, &self.default_bridge)? {
            return self.existing(found, wanted);
        }
        let occupied = occupied(&all);
        let (subnet, gateway) = match wanted {
            Some((subnet, gateway)) => {
                if let Some(taken) = network::overlapping(subnet, &occupied) {
                    let message = format!("subnet {subnet} overlaps {} of Docker network {}", taken.subnet, taken.by);
                    return Err(failure(409, message));
                }
                (subnet, gateway)
            }
            None => {
                let ours = |link: &str| link == self.default_bridge || link.starts_with("oc-");
                let routes = network::host_routes(ours);
                let subnet = network::allocate(self.subnet_block, &occupied, &routes)
                    .map_err(|full| failure(409, full.to_string()))?;
                (subnet, network::first_gateway(subnet))
            }
        };
        let bridge = network::bridge_of(&name, &self.default_bridge);
        let mut made = ManagedNetwork { name, id: String::new(), bridge, subnet, gateway };
        self.ensure_bridge(&made).map_err(|reason| failure(500, reason))?;
        match engine::create_network(&self.client, &new_network(&made)) {
            Ok(id) => made.id = id,
            Err(error) => {
                self.undo(&made, &error);
                return Err(refusal(&made, &error));
            }
        }
        tracing::info!(target: "network", name = made.name, %subnet, %gateway, bridge = made.bridge, "network made");
        Ok(created(made, true))
    }

    fn existing(
        &self,
        found: ManagedNetwork,
        wanted: Option<(Ipv4Net, Ipv4Addr)>,
    ) -> Result<api::NetworkCreated, DockerFailure> {
        if wanted.is_some_and(|wanted| wanted != (found.subnet, found.gateway)) {
            let message = format!(
                "network {} exists with subnet {} and gateway {}: destroy it first, or ask for those",
                found.name, found.subnet, found.gateway
            );
            return Err(failure(409, message));
        }
        self.ensure_bridge(&found).map_err(|reason| failure(500, reason))?;
        Ok(created(found, false))
    }

    /// Removes a network that no container is on.
    pub(super) fn destroy(&self, select: &api::NetworkSelect) -> Result<api::NetworkDestroyed, DockerFailure> {
        let name = network::network_name(select.name.as_deref()).map_err(|reason| failure(400, reason))?;
        let all = engine::networks(&self.client, READ_LIMIT)?;
        let Some(found) = find(&all, &name, &self.default_bridge)? else {
            return Err(failure(404, format!("no network {name}; `outcall network list` shows those there are")));
        };
        let attached = engine::network(&self.client, &found.id, READ_LIMIT)?.containers;
        if !attached.is_empty() {
            return Err(attached_failure(&name, attached.into_values().map(|container| container.name)));
        }
        match engine::remove_network(&self.client, &found.id) {
            Ok(()) => {}
            // Somebody else removed it between the two calls.
            Err(error) if error.status() == Some(404) => {}
            // Somebody attached a container between the two calls.
            Err(error) if matches!(error.status(), Some(403 | 409)) => {
                let attached = engine::network(&self.client, &found.id, READ_LIMIT)?.containers;
                return Err(attached_failure(&name, attached.into_values().map(|container| container.name)));
            }
            Err(error) => return Err(error.into()),
        }
        if found.bridge != self.default_bridge {
            self.remove_bridge(&found.bridge).map_err(|reason| {
                failure(500, format!("network {name} is gone from Docker, its bridge is not: {reason}"))
            })?;
        }
        tracing::info!(target: "network", name, "network destroyed");
        Ok(api::NetworkDestroyed { name, destroyed: true })
    }

    /// Has the bridge of `network` made or adopted, and waits for it.
    pub(super) fn ensure_bridge(&self, network: &ManagedNetwork) -> Result<(), String> {
        let (done, answer) = reply_channel();
        let command = BridgeCommand::EnsureNetwork {
            bridge: network.bridge.clone(),
            subnet: network.subnet,
            gateway: network.gateway,
            done,
        };
        self.ask(command, &answer, &network.bridge)
    }

    fn remove_bridge(&self, bridge: &str) -> Result<(), String> {
        let (done, answer) = reply_channel();
        self.ask(BridgeCommand::RemoveNetwork { bridge: bridge.to_owned(), done }, &answer, bridge)
    }

    fn ask(
        &self,
        command: BridgeCommand,
        answer: &crossbeam_channel::Receiver<Result<(), String>>,
        bridge: &str,
    ) -> Result<(), String> {
        let stuck = || format!("the bridge thread did not answer for {bridge} within {} s", BRIDGE_LIMIT.as_secs());
        self.bridge.send_within(command, BRIDGE_LIMIT).map_err(|_| stuck())?;
        answer.recv_timeout(BRIDGE_LIMIT).map_err(|_| stuck())?
    }

    /// Takes a bridge away again whose Docker network was refused. The default one stays: it is never removed.
    fn undo(&self, network: &ManagedNetwork, cause: &DockerError) {
        // After a timeout Docker may still make the network; a bridge that is then missing is made again when the
        // network is seen.
        if network.bridge != self.default_bridge
            && let Err(reason) = self.remove_bridge(&network.bridge)
        {
            tracing::warn!(target: "network", bridge = network.bridge, reason, %cause, "cannot remove the bridge of a refused network");
        }
    }
}

/// The managed network called `name`.
///
/// # Errors
/// 409 for a look-alike.
pub(super) fn find(
    all: &[engine::Network],
    name: &str,
    default_bridge: &str,
) -> Result<Option<ManagedNetwork>, DockerFailure> {
    let Some(found) = all.iter().find(|network| network.name == name) else { return Ok(None) };
    match network::judge(found, default_bridge) {
        Verdict::Managed(network) => Ok(Some(network)),
        Verdict::LookAlike(reason) => Err(failure(409, look_alike_message(name, &reason))),
        // A name of ours is never judged foreign; if it were, it would still not be ours to use.
        Verdict::Foreign => Err(failure(409, look_alike_message(name, "it is not managed by outcalld"))),
    }
}

pub(super) fn look_alike_message(name: &str, reason: &str) -> String {
    format!(
        "Docker network {name} is not one that outcalld can enforce: {reason}; remove it with `docker network rm {name}`"
    )
}

fn wanted_addresses(request: &api::NetworkCreate) -> Result<Option<(Ipv4Net, Ipv4Addr)>, DockerFailure> {
    let bad = |error: network::AddressError| failure(400, error.to_string());
    match (&request.subnet, &request.gateway) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(bad(network::AddressError::GatewayAlone)),
        (Some(subnet), gateway) => {
            let subnet = network::check_subnet(subnet).map_err(bad)?;
            let gateway = match gateway {
                Some(gateway) => network::check_gateway(gateway, subnet).map_err(bad)?,
                None => network::first_gateway(subnet),
            };
            Ok(Some((subnet, gateway)))
        }
    }
}

/// The IPv4 pools of every Docker network, whatever its driver.
fn occupied(all: &[engine::Network]) -> Vec<Occupied> {
    let mut occupied = Vec::new();
    for network in all {
        for pool in &network.ipam.config {
            // Docker accepts host bits in a subnet; the range is what counts.
            let subnet = match pool.subnet.parse::<Ipv4Net>() {
                Ok(subnet) | Err(super::Ipv4NetError::HostBits(subnet)) => subnet,
                Err(super::Ipv4NetError::Syntax) => continue,
            };
            occupied.push(Occupied { subnet, by: network.name.clone() });
        }
    }
    occupied
}

fn new_network(network: &ManagedNetwork) -> engine::NewNetwork {
    engine::NewNetwork {
        name: network.name.clone(),
        check_duplicate: true,
        driver: "bridge",
        enable_ipv6: false,
        ipam: engine::NewIpam {
            driver: "default",
            config: [engine::NewPool { subnet: network.subnet.to_string(), gateway: network.gateway.to_string() }],
        },
        options: BTreeMap::from([
            (network::BRIDGE_NAME_OPTION, network.bridge.clone()),
            (network::MASQUERADE_OPTION, "false".to_owned()),
        ]),
        labels: BTreeMap::from([(network::LABEL, network::LABEL_VALUE)]),
    }
}

fn created(network: ManagedNetwork, created: bool) -> api::NetworkCreated {
    api::NetworkCreated {
        network_id: network.id,
        name: network.name,
        subnet: network.subnet.to_string(),
        gateway: network.gateway.to_string(),
        created,
    }
}

/// Docker's refusals that are conflicts: a name or an address range taken since we looked (403 up to Engine 28).
fn refusal(network: &ManagedNetwork, error: &DockerError) -> DockerFailure {
    match error {
        DockerError::Refused { status: 403 | 409, message, .. } => {
            failure(409, format!("Docker refused network {} with {}: {message}", network.name, network.subnet))
        }
        other => other.into(),
    }
}

fn attached_failure(name: &str, containers: impl Iterator<Item = String>) -> DockerFailure {
    let mut names: Vec<String> = containers.collect();
    names.sort_unstable();
    let list = if names.is_empty() { "(none that Docker names)".to_owned() } else { names.join(", ") };
    failure(409, format!("network {name} has containers attached: {list}; stop or disconnect them first"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_checked_before_docker_is_asked() {
        let request = |subnet: Option<&str>, gateway: Option<&str>| api::NetworkCreate {
            name: None,
            subnet: subnet.map(str::to_owned),
            gateway: gateway.map(str::to_owned),
        };
        assert_eq!(wanted_addresses(&request(None, None)), Ok(None));
        let subnet: Ipv4Net = "10.9.0.0/24".parse().unwrap();
        let wanted = wanted_addresses(&request(Some("10.9.0.0/24"), None)).unwrap();
        assert_eq!(wanted, Some((subnet, Ipv4Addr::new(10, 9, 0, 1))));
        for (subnet, gateway) in [(None, Some("10.9.0.1")), (Some("10.9.0.0/24"), Some("10.9.1.1")), (Some("x"), None)]
        {
            assert_eq!(wanted_addresses(&request(subnet, gateway)).unwrap_err().status, 400);
        }
    }

    #[test]
    fn pools_of_all_drivers_count() {
        let all: Vec<engine::Network> = serde_json::from_str(
            r#"[{"Name":"a","Driver":"macvlan","IPAM":{"Config":[{"Subnet":"10.200.0.5/24"},{"Subnet":"fd00::/64"}]}},
                {"Name":"host","Driver":"host","IPAM":{"Config":null}}]"#,
        )
        .unwrap();
        let occupied = occupied(&all);
        assert_eq!(occupied.len(), 1);
        assert_eq!(occupied[0].subnet.to_string(), "10.200.0.0/24");
    }

    #[test]
    fn docker_s_overlap_is_a_conflict() {
        let subnet: Ipv4Net = "10.9.0.0/24".parse().unwrap();
        let gateway = network::first_gateway(subnet);
        let made =
            ManagedNetwork { name: "outcall-x".into(), id: String::new(), bridge: "oc-1".into(), subnet, gateway };
        let call = "POST /networks/create".to_owned();
        let overlap = DockerError::Refused { call, status: 403, message: "Pool overlaps with other one".to_owned() };
        assert_eq!(refusal(&made, &overlap).status, 409);
        let names = ["b", "a"].map(str::to_owned);
        assert!(attached_failure("outcall-x", names.into_iter()).message.contains("a, b"));
    }
}
