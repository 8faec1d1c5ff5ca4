//! The Engine's calls about containers and images, and the parts of their JSON that are read.
//!
//! Owns: paths, shapes, limits. Does not own: what is made of the answers.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::client::{Client, DockerError};
use super::super::engine::{WRITE_TIMEOUT, or_default, path_safe};

/// A read that is part of a command; it blocks nobody.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(5);
/// A start: the Engine sets up namespaces, cgroups and the network.
const START_LIMIT: Duration = Duration::from_secs(30);
/// A removal may wait for a process that ends slowly.
const REMOVE_LIMIT: Duration = Duration::from_secs(30);
/// What the Engine may take beyond the grace that a stop gives.
const STOP_MARGIN: Duration = Duration::from_secs(15);
/// Of a whole pull: large images over slow lines.
pub(in super::super) const PULL_LIMIT: Duration = Duration::from_secs(1800);

/// `GET /info`, as far as it is read.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Info {
    pub(super) docker_root_dir: String,
}

/// An image of the host.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Image {
    pub(super) id: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) repo_tags: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) repo_digests: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) config: ImageConfig,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ImageConfig {
    #[serde(deserialize_with = "or_default")]
    pub(super) cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) exposed_ports: BTreeMap<String, Value>,
}

/// A volume of Docker's.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct DockerVolume {
    pub(super) driver: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) options: BTreeMap<String, String>,
}

/// One container of a list.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Listed {
    pub(super) id: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) names: Vec<String>,
    pub(super) image: String,
    pub(super) state: String,
    /// Seconds since 1970.
    pub(super) created: i64,
    #[serde(deserialize_with = "or_default")]
    pub(super) labels: BTreeMap<String, String>,
}

/// One container, inspected.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Inspected {
    pub(super) id: String,
    pub(super) name: String,
    /// The image's id.
    pub(super) image: String,
    pub(super) created: String,
    pub(super) state: InspectedState,
    pub(super) config: InspectedConfig,
    #[serde(deserialize_with = "or_default")]
    pub(super) mounts: Vec<MountPoint>,
    pub(super) network_settings: InspectedNetworks,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct InspectedState {
    pub(super) status: String,
    pub(super) running: bool,
    pub(super) pid: i32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct InspectedConfig {
    pub(super) image: String,
    #[serde(deserialize_with = "names_of")]
    pub(super) env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct MountPoint {
    pub(super) name: String,
    pub(super) source: String,
    pub(super) destination: String,
    #[serde(rename = "RW")]
    pub(super) rw: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct InspectedNetworks {
    #[serde(deserialize_with = "or_default")]
    pub(super) networks: BTreeMap<String, InspectedEndpoint>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct InspectedEndpoint {
    #[serde(rename = "IPAddress")]
    pub(super) ip_address: String,
}

/// What the Engine says to a create.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Made {
    pub(super) id: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) warnings: Vec<String>,
}

/// Names of `NAME=value`, without the values: not even the memory of this process keeps them longer than it must.
fn names_of<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let variables: Option<Vec<String>> = Option::deserialize(deserializer)
        // The error would quote what it does not like.
        .map_err(|_| serde::de::Error::custom("the environment is not a list of texts"))?;
    Ok(variables
        .unwrap_or_default()
        .into_iter()
        .map(|variable| variable.split_once('=').map(|(name, _)| name.to_owned()).unwrap_or(variable))
        .collect())
}

pub(super) fn info(client: &Client) -> Result<Info, DockerError> {
    client.get("/info", READ_LIMIT)
}

/// `reference` has been checked (`wish::image_reference`).
pub(super) fn image(client: &Client, reference: &str) -> Result<Image, DockerError> {
    client.get(&format!("/images/{reference}/json"), READ_LIMIT)
}

/// `None`: there is no such volume.
pub(super) fn volume(client: &Client, name: &str) -> Result<Option<DockerVolume>, DockerError> {
    match client.get(&format!("/volumes/{name}"), READ_LIMIT) {
        Err(error) if error.status() == Some(404) => Ok(None),
        other => other.map(Some),
    }
}

/// Makes a container; `name` has been checked. It does not run yet.
pub(super) fn create(client: &Client, name: &str, body: &impl Serialize) -> Result<Made, DockerError> {
    let path = format!("/containers/create?name={name}");
    let bytes = client.post(&path, body, WRITE_TIMEOUT)?;
    let broken = |source: Box<dyn std::error::Error + Send + Sync>| DockerError::Broken {
        call: "POST /containers/create".to_owned(),
        source,
    };
    let made: Made = serde_json::from_slice(&bytes).map_err(|error| broken(error.into()))?;
    if made.id.is_empty() { Err(broken("it has no id".into())) } else { Ok(made) }
}

pub(super) fn start(client: &Client, id: &str) -> Result<(), DockerError> {
    client.post(&format!("/containers/{}/start", path_safe(id)), &serde_json::json!({}), START_LIMIT).map(drop)
}

/// Stops a container; `false`: it did not run.
pub(super) fn stop(client: &Client, id: &str, grace: u32) -> Result<bool, DockerError> {
    let path = format!("/containers/{}/stop?t={grace}", path_safe(id));
    let limit = Duration::from_secs(u64::from(grace)) + STOP_MARGIN;
    match client.post(&path, &serde_json::json!({}), limit) {
        Err(error) if error.status() == Some(304) => Ok(false),
        other => other.map(|_| true),
    }
}

/// Removes a container with its anonymous volumes.
pub(super) fn remove(client: &Client, id: &str, force: bool) -> Result<(), DockerError> {
    client.delete(&format!("/containers/{}?v=true&force={force}", path_safe(id)), REMOVE_LIMIT)
}

/// `id` may be a name.
pub(super) fn inspect(client: &Client, id: &str) -> Result<Inspected, DockerError> {
    client.get(&format!("/containers/{id}/json"), READ_LIMIT)
}

/// Every container that outcalld made, running or not; `status`: only those in that state.
pub(super) fn managed(client: &Client, status: Option<&str>) -> Result<Vec<Listed>, DockerError> {
    let status = status.map(|status| format!("%2C%22status%22%3A%5B%22{status}%22%5D")).unwrap_or_default();
    // {"label":["managed-by=outcalld"],"status":["created"]}
    let filters = format!("%7B%22label%22%3A%5B%22managed-by%3Doutcalld%22%5D{status}%7D");
    client.get(&format!("/containers/json?all=true&filters={filters}"), READ_LIMIT)
}

/// One line of a pull.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Progress {
    error: Option<String>,
}

/// Pulls `name` (with its registry) at `tag` (or digest), and reads what the Engine says until it is done.
pub(super) fn pull(client: &Client, name: &str, tag: &str) -> Result<(), DockerError> {
    const CALL: &str = "POST /images/create";
    let encoded = |text: &str| text.replace('+', "%2B");
    let path = format!("/images/create?fromImage={}&tag={}", encoded(name), encoded(tag));
    let mut refused = None;
    client.post_lines(CALL, &path, PULL_LIMIT, |line| {
        let progress: Progress = serde_json::from_slice(line)?;
        if let Some(message) = progress.error {
            refused = Some(message);
        }
        Ok(())
    })?;
    match refused {
        // The Engine says 200 before it asks the registry; its own status for this is 404 or 500.
        Some(message) => Err(DockerError::refused(CALL, pull_status(&message), &message)),
        None => Ok(()),
    }
}

fn pull_status(message: &str) -> u16 {
    let lower = message.to_ascii_lowercase();
    let absent = ["not found", "manifest unknown", "access denied", "does not exist"];
    if absent.iter().any(|words| lower.contains(words)) { 404 } else { 500 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inspection_keeps_no_value_of_the_environment() {
        let text = r#"{"Id":"ab","Name":"/x","Config":{"Env":["A=hunter2","B"],"Labels":null},"Mounts":null,
            "NetworkSettings":{"Networks":{"outcall-default":{"IPAddress":"10.200.0.2"}}}}"#;
        let container: Inspected = serde_json::from_str(text).unwrap();
        assert_eq!(container.config.env, ["A", "B"]);
        assert!(!format!("{container:?}").contains("hunter2"));
        let error = serde_json::from_str::<Inspected>(r#"{"Config":{"Env":"A=hunter2"}}"#).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn a_list_of_engine_20_10_is_read() {
        let text = r#"[{"Id":"ab","Names":["/x"],"Image":"lab/busybox","State":"exited","Created":1,"Labels":{"a":"b"},"Ports":[]}]"#;
        let listed: Vec<Listed> = serde_json::from_str(text).unwrap();
        assert_eq!((listed[0].names[0].as_str(), listed[0].state.as_str()), ("/x", "exited"));
    }
}
