//! What is done with containers that outcalld made, and with images. Others are not touched, whatever their names.

use super::super::DockerFailure;
use super::super::network_ops::failure;
use super::calls::{self, Inspected, Listed};
use super::wish::image_reference;
use super::{ContainerOps, LABEL_CREATED_AT, LABEL_NETWORK, refusal};
use crate::api::{
    ContainerDetail, ContainerMount, ContainerPull, ContainerPulled, ContainerRemove, ContainerRemoved, ContainerStop,
    ContainerStopped, ContainerSummary, REDACTED,
};

/// Seconds that a container gets to end unless told otherwise, and the most.
const GRACE_DEFAULT: u32 = 10;
const GRACE_MAX: u32 = 300;
/// Digits of an id that name a container, at least: as many as Docker shows.
const ID_DIGITS_MIN: usize = 12;

impl ContainerOps {
    /// Every container made here, the newest first.
    pub(super) fn list(&self) -> Result<Vec<ContainerSummary>, DockerFailure> {
        let mut found: Vec<ContainerSummary> =
            calls::managed(&self.client, None)?.into_iter().map(|listed| summary(&listed)).collect();
        found.sort_unstable_by(|a, b| (&b.created_at, &a.name).cmp(&(&a.created_at, &b.name)));
        Ok(found)
    }

    pub(super) fn inspect(&self, name: &str) -> Result<ContainerDetail, DockerFailure> {
        let listed = self.managed(name)?;
        let what = format!("container {name}");
        let found = calls::inspect(&self.client, &listed.id).map_err(|error| refusal(&error, "inspect", &what))?;
        Ok(detail(&listed, found))
    }

    pub(super) fn stop(&self, request: &ContainerStop) -> Result<ContainerStopped, DockerFailure> {
        let grace = request.timeout.unwrap_or(GRACE_DEFAULT);
        if grace > GRACE_MAX {
            return Err(failure(400, format!("timeout is {grace} s; 0 to {GRACE_MAX} are accepted")));
        }
        let listed = self.managed(&request.name)?;
        let name = name_of(&listed);
        let stopped = calls::stop(&self.client, &listed.id, grace)
            .map_err(|error| refusal(&error, "stop", &format!("container {name}")))?;
        tracing::info!(target: "docker_manager", container = name, id = listed.id, stopped, "container stopped");
        Ok(ContainerStopped { name, stopped })
    }

    pub(super) fn remove(&self, request: &ContainerRemove) -> Result<ContainerRemoved, DockerFailure> {
        let listed = self.managed(&request.name)?;
        let name = name_of(&listed);
        if listed.state == "running" && !request.force {
            return Err(failure(409, format!("container {name} runs: stop it first, or remove it with force")));
        }
        calls::remove(&self.client, &listed.id, request.force)
            .map_err(|error| refusal(&error, "remove", &format!("container {name}")))?;
        tracing::info!(target: "docker_manager", container = name, id = listed.id, "container removed");
        Ok(ContainerRemoved { name, removed: true })
    }

    pub(super) fn pull(&self, request: &ContainerPull) -> Result<ContainerPulled, DockerFailure> {
        image_reference(&request.image).map_err(|reason| failure(400, reason))?;
        let (name, tag) = name_and_tag(&request.image);
        let what = format!("image {}", request.image);
        calls::pull(&self.client, name, tag).map_err(|error| refusal(&error, "pull", &what))?;
        // A stream that ended early looks like one that ended well.
        calls::image(&self.client, &request.image).map_err(|error| match error.status() {
            Some(404) => failure(500, format!("Docker ended the pull of {what} and does not have it; look at its log")),
            _ => error.into(),
        })?;
        tracing::info!(target: "docker_manager", image = request.image, "image pulled");
        Ok(ContainerPulled { image: request.image.clone(), pulled: true })
    }

    /// The managed container of this name or id.
    fn managed(&self, name: &str) -> Result<Listed, DockerFailure> {
        let listed = calls::managed(&self.client, None)?;
        let id = |listed: &Listed| {
            name.len() >= ID_DIGITS_MIN && name.bytes().all(|b| b.is_ascii_hexdigit()) && listed.id.starts_with(name)
        };
        let by_name = listed.iter().position(|listed| name_of(listed) == name);
        let found = by_name.or_else(|| {
            let mut by_id = listed.iter().enumerate().filter(|(_, listed)| id(listed)).map(|(index, _)| index);
            by_id.next().filter(|_| by_id.next().is_none())
        });
        let shown: String = name.chars().take(128).collect();
        found.and_then(|index| listed.into_iter().nth(index)).ok_or_else(|| {
            failure(404, format!("no container {shown} that outcalld made; others are left to `docker`"))
        })
    }

    /// Removes what a create left half-made, by a crash of the Engine or of outcalld: containers of ours that never
    /// ran and that nobody is making now. `false`: not all could be looked at.
    pub(super) fn sweep(&self) -> bool {
        let listed = match calls::managed(&self.client, Some("created")) {
            Ok(listed) => listed,
            Err(error) => {
                tracing::debug!(target: "docker_manager", %error, "half-made containers cannot be looked for");
                return false;
            }
        };
        let mut done = true;
        for listed in listed.iter().filter(|listed| listed.labels.contains_key(LABEL_CREATED_AT)) {
            let name = name_of(listed);
            if self.making.holds(&name) {
                continue;
            }
            // Looked at again: it may have been started since it was listed.
            let removed = calls::inspect(&self.client, &listed.id).and_then(|found| {
                if found.state.status == "created" {
                    calls::remove(&self.client, &listed.id, false).map(|()| true)
                } else {
                    Ok(false)
                }
            });
            match removed {
                Ok(true) => {
                    tracing::warn!(target: "docker_manager", container = name, id = listed.id, "half-made container removed");
                }
                Ok(false) => {}
                Err(error) if error.status() == Some(404) => {}
                Err(error) => {
                    tracing::warn!(target: "docker_manager", container = name, %error, "cannot remove a half-made container yet");
                    done = false;
                }
            }
        }
        done
    }
}

fn name_of(listed: &Listed) -> String {
    let name = listed.names.first().map(|name| name.trim_start_matches('/'));
    name.unwrap_or_default().to_owned()
}

fn summary(listed: &Listed) -> ContainerSummary {
    let label = |name: &str| listed.labels.get(name).cloned();
    let seconds = std::time::Duration::from_secs(u64::try_from(listed.created).unwrap_or(0));
    let created_at =
        label(LABEL_CREATED_AT).unwrap_or_else(|| crate::events::rfc3339(std::time::SystemTime::UNIX_EPOCH + seconds));
    ContainerSummary {
        container_id: listed.id.clone(),
        name: name_of(listed),
        image: listed.image.clone(),
        state: listed.state.clone(),
        network: label(LABEL_NETWORK).unwrap_or_default(),
        created_at,
    }
}

fn detail(listed: &Listed, found: Inspected) -> ContainerDetail {
    let mut summary = summary(listed);
    summary.state = found.state.status;
    summary.image = found.config.image;
    let networks = found.network_settings.networks;
    let endpoint = networks.get(&summary.network).or_else(|| networks.values().next());
    ContainerDetail {
        ip_address: endpoint.map(|endpoint| endpoint.ip_address.clone()).filter(|address| !address.is_empty()),
        mounts: found
            .mounts
            .into_iter()
            .map(|mount| ContainerMount {
                source: if mount.name.is_empty() { mount.source } else { mount.name },
                target: mount.destination,
                read_only: !mount.rw,
            })
            .collect(),
        env: found.config.env.iter().map(|name| format!("{name}={REDACTED}")).collect(),
        summary,
    }
}

/// Name and tag (or digest) of a reference. Without a tag the Engine would pull every tag there is.
fn name_and_tag(reference: &str) -> (&str, &str) {
    if let Some((name, digest)) = reference.split_once('@') {
        return (name, digest);
    }
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (reference, "latest"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_without_a_tag_means_latest() {
        assert_eq!(name_and_tag("alpine"), ("alpine", "latest"));
        assert_eq!(name_and_tag("r.example:5000/a/b"), ("r.example:5000/a/b", "latest"));
        assert_eq!(name_and_tag("r.example:5000/a/b:t"), ("r.example:5000/a/b", "t"));
        assert_eq!(name_and_tag("a@sha256:00"), ("a", "sha256:00"));
    }

    #[test]
    fn what_is_shown_has_no_value_of_the_environment() {
        let listed = Listed { id: "ab".to_owned(), names: vec!["/x".to_owned()], ..Listed::default() };
        let text = r#"{"Id":"ab","State":{"Status":"running"},"Config":{"Image":"i","Env":["A=hunter2"]},
            "Mounts":[{"Type":"bind","Source":"/s","Destination":"/t","RW":false},
                {"Type":"volume","Name":"cache","Source":"/var/lib/docker/volumes/cache/_data","Destination":"/c","RW":true}],
            "NetworkSettings":{"Networks":{"outcall-default":{"IPAddress":"10.200.0.2"}}}}"#;
        let shown = detail(&listed, serde_json::from_str(text).unwrap());
        assert_eq!(shown.env, ["A=<redacted>"]);
        assert_eq!(shown.ip_address.as_deref(), Some("10.200.0.2"));
        assert_eq!((shown.mounts[0].read_only, shown.mounts[1].source.as_str()), (true, "cache"));
        assert_eq!(shown.summary.created_at, "1970-01-01T00:00:00.000Z");
    }
}
