//! The few Engine calls that Outcall makes, and the parts of their JSON that it reads.
//!
//! Owns: paths, bodies, shapes. Fields that are not named here are ignored: the Engine adds some with each version.
//! Does not own: what is done with the answers. Versions and quirks: `vendor-docs/interfaces/docker.md`.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::client::{Client, DockerError};

/// A read that the manager's thread makes: short of the second within which that thread must answer a ping.
pub const READ_TIMEOUT: Duration = Duration::from_millis(700);
/// A look at a container that may be starting: the Engine holds its lock until it runs, so do not wait.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(25);
/// A change, made on a thread of its own: the Engine runs iptables for each.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(15);

/// One network, as listed or inspected; a list has no containers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Network {
    /// 64 hex digits.
    pub id: String,
    /// Not necessarily unique.
    pub name: String,
    /// `bridge`, `host`, `null`, `macvlan`, …
    pub driver: String,
    /// `local`, `swarm`, `global`.
    pub scope: String,
    /// Whether containers get IPv6 addresses.
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: bool,
    /// Whether the network has no way out of the host.
    pub internal: bool,
    /// Address pools.
    #[serde(rename = "IPAM")]
    pub ipam: Ipam,
    /// Driver options.
    #[serde(deserialize_with = "or_default")]
    pub options: HashMap<String, String>,
    /// Labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: HashMap<String, String>,
    /// Active endpoints by container id.
    #[serde(deserialize_with = "or_default")]
    pub containers: BTreeMap<String, NetworkContainer>,
}

/// The address pools of a network.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ipam {
    /// One entry a pool.
    #[serde(deserialize_with = "or_default")]
    pub config: Vec<Pool>,
}

/// One address pool.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Pool {
    /// CIDR, IPv4 or IPv6.
    pub subnet: String,
    /// Address of the bridge.
    pub gateway: String,
}

/// An active endpoint of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkContainer {
    /// The container's name, without a slash.
    pub name: String,
    /// `02:42:…`
    pub mac_address: String,
    /// With a prefix: `10.200.0.2/24`.
    #[serde(rename = "IPv4Address")]
    pub ipv4_address: String,
}

/// One container, inspected. The Engine answers only when a start that is under way has ended.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// With a leading slash.
    pub name: String,
    /// Whether and as which process it runs.
    pub state: ContainerState,
    /// What it was made with.
    pub host_config: HostConfig,
    /// Its networks.
    pub network_settings: NetworkSettings,
}

/// A container's process.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerState {
    /// Whether it runs.
    pub running: bool,
    /// Its init, 0 when it does not run.
    pub pid: i32,
}

/// What a container was made with.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    /// `--dns`.
    #[serde(deserialize_with = "or_default")]
    pub dns: Vec<String>,
}

/// A container's networks.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSettings {
    /// Path of its network namespace.
    pub sandbox_key: String,
    /// By network name.
    #[serde(deserialize_with = "or_default")]
    pub networks: BTreeMap<String, Attachment>,
}

/// A container's side of an endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Attachment {
    /// The network's id.
    #[serde(rename = "NetworkID")]
    pub network_id: String,
}

/// The body of `POST /networks/create`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NewNetwork {
    /// The name.
    pub name: String,
    /// Refuse a second network of that name (always so since API 1.44).
    pub check_duplicate: bool,
    /// The driver.
    pub driver: &'static str,
    /// IPv6 in containers.
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: bool,
    /// The one pool.
    #[serde(rename = "IPAM")]
    pub ipam: NewIpam,
    /// Driver options.
    pub options: BTreeMap<&'static str, String>,
    /// Labels.
    pub labels: BTreeMap<&'static str, &'static str>,
}

/// The address pool of a new network.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NewIpam {
    /// The IPAM driver.
    pub driver: &'static str,
    /// One pool.
    pub config: [NewPool; 1],
}

/// The pool itself.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NewPool {
    /// CIDR.
    pub subnet: String,
    /// Address of the bridge.
    pub gateway: String,
}

/// Every network of the Engine, without containers.
pub fn networks(client: &Client, limit: Duration) -> Result<Vec<Network>, DockerError> {
    client.get("/networks", limit)
}

/// One network with its active endpoints. Not delayed by containers that are starting.
pub fn network(client: &Client, id: &str, limit: Duration) -> Result<Network, DockerError> {
    client.get(&format!("/networks/{}", path_safe(id)), limit)
}

/// One container.
pub fn container(client: &Client, id: &str, limit: Duration) -> Result<Container, DockerError> {
    client.get(&format!("/containers/{}/json", path_safe(id)), limit)
}

/// Makes a network; its id.
pub fn create_network(client: &Client, new: &NewNetwork) -> Result<String, DockerError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Created {
        id: String,
    }
    let bytes = client.post("/networks/create", new, WRITE_TIMEOUT)?;
    let created: Created = serde_json::from_slice(&bytes)
        .map_err(|error| DockerError::Broken { call: "POST /networks/create".to_owned(), source: error.into() })?;
    Ok(created.id)
}

/// Removes a network; refused (403) while containers are on it.
pub fn remove_network(client: &Client, id: &str) -> Result<(), DockerError> {
    client.delete(&format!("/networks/{}", path_safe(id)), WRITE_TIMEOUT)
}

/// Takes a container off a network at once.
pub fn disconnect(client: &Client, network: &str, container: &str) -> Result<(), DockerError> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Disconnect<'a> {
        container: &'a str,
        force: bool,
    }
    let path = format!("/networks/{}/disconnect", path_safe(network));
    client.post(&path, &Disconnect { container, force: true }, WRITE_TIMEOUT).map(drop)
}

/// Freezes a container. One that has ended, or is frozen already, is no error.
pub fn pause(client: &Client, container: &str) -> Result<(), DockerError> {
    match client.post(&format!("/containers/{}/pause", path_safe(container)), &serde_json::json!({}), WRITE_TIMEOUT) {
        Err(error) if matches!(error.status(), Some(404 | 409)) => Ok(()),
        other => other.map(drop),
    }
}

/// Ids come from the Engine itself; one that is not plain would still not leave its place in the path.
pub(super) fn path_safe(id: &str) -> String {
    id.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')).collect()
}

/// The Engine writes `null` for an empty map or list.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_engine_20_10_is_read() {
        let network: Network = serde_json::from_str(
            r#"{"Name":"outcall-default","Id":"792b","Created":"2026-11-24T00:19:03.7Z","Scope":"local","Driver":"bridge",
            "EnableIPv6":false,"IPAM":{"Driver":"default","Options":null,"Config":[{"Subnet":"10.200.0.0/24","Gateway":"10.200.0.1"}]},
            "Internal":false,"Attachable":false,"Ingress":false,"ConfigFrom":{"Network":""},"ConfigOnly":false,
            "Containers":{"cdb9":{"Name":"w-1","EndpointID":"df46","MacAddress":"02:42:0a:c8:00:02","IPv4Address":"10.200.0.2/24","IPv6Address":""}},
            "Options":{"com.docker.network.bridge.name":"outcall0"},"Labels":{"managed-by":"outcalld"}}"#,
        )
        .unwrap();
        assert_eq!(network.ipam.config[0].gateway, "10.200.0.1");
        assert_eq!(network.containers["cdb9"].mac_address, "02:42:0a:c8:00:02");
        assert_eq!(network.labels["managed-by"], "outcalld");
    }

    #[test]
    fn null_maps_and_missing_fields_are_empty() {
        let host: Network = serde_json::from_str(
            r#"{"Name":"host","Id":"1","Driver":"host","IPAM":{"Driver":"default","Config":null},"Options":null,"Labels":null}"#,
        )
        .unwrap();
        assert!(host.ipam.config.is_empty() && host.containers.is_empty() && host.options.is_empty());
        let container: Container = serde_json::from_str(
            r#"{"Id":"1","Name":"/w","HostConfig":{"Dns":null},"NetworkSettings":{"Networks":null}}"#,
        )
        .unwrap();
        assert!(container.host_config.dns.is_empty() && container.network_settings.networks.is_empty());
        assert!(serde_json::from_str::<Network>(r#"{"Id":7}"#).is_err());
    }
}
