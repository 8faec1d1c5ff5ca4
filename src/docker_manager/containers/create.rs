//! Making a container: the steps, in order, and its removal when one of them fails.
//!
//! Owns: the sequence check, judge, make, start, look again. Does not own: each of those (`wish`, `binds`, `helpers`,
//! `body`, the rules), nor what a crash leaves ([`ContainerOps::sweep`]).

use std::net::{IpAddr, Ipv4Addr};
use std::time::SystemTime;

use super::super::client::DockerError;
use super::super::network_ops::{failure, find};
use super::super::{DockerFailure, ManagedNetwork, agent_name, engine};
use super::binds::{Bind, Protected};
use super::body::{Surroundings, body};
use super::calls::{self, Image, Inspected, READ_LIMIT};
use super::contained::{apart_from_engine, looks_contained};
use super::helpers::{certificates, helpers};
use super::mounts::Mounts;
use super::wish::{Source, Wish};
use super::{AGENT_DIRECTORY_TARGET, CA_TARGET, ContainerOps, LABEL_CREATED_AT, SHIM_TARGET, refusal};
use crate::api::{ContainerCreate, ContainerCreated};
use crate::events::rfc3339;
use crate::rule_engine::{Action, Agent, Context, Docker, RuleSet};

/// Names of one image that rules are asked about; an image that has more is refused, since a rule may block the last.
const IMAGE_NAMES_MAX: usize = 1024;
/// Exposed ports that are named.
const PORTS_NAMED_MAX: usize = 64;
/// Beginning of a name that outcalld chooses; 8 hex digits follow.
const NAME_PREFIX: &str = "outcall-";
/// Attempts to find a name that no container has.
const FRESH_NAMES: usize = 3;

/// A container that was asked for and is not there.
pub(super) struct NotCreated {
    pub(super) failure: DockerFailure,
    /// Something of it may be left: Docker could not be asked.
    pub(super) left_over: bool,
}

impl From<DockerFailure> for NotCreated {
    fn from(failure: DockerFailure) -> Self {
        NotCreated { failure, left_over: false }
    }
}

impl ContainerOps {
    /// Makes and starts a container.
    pub(super) fn create(&self, request: ContainerCreate, rules: &RuleSet) -> Result<ContainerCreated, NotCreated> {
        let named = request.name.is_some();
        let mut wish = Wish::check(request, fresh_name()?, self.ca_bundle.is_some())?;
        // Before Docker is asked anything: what the host's own files say.
        let protected = Protected::look(&self.own)?;
        let mut binds = Vec::new();
        for volume in &wish.volumes {
            binds.extend(protected.judge(volume)?);
        }
        let asked_for = binds.len();
        let contained = looks_contained() && apart_from_engine(&self.client).map_err(DockerFailure::from)?;
        if let Some(bind) = binds.first().filter(|_| contained) {
            let message = format!(
                "outcalld runs in a container and cannot check {} on the host: run it on the host to use binds",
                bind.source.display()
            );
            return Err(failure(400, message).into());
        }
        let with_helpers = wish.helpers.unwrap_or(!contained);
        if with_helpers {
            binds.extend(helpers(&self.agent_directory, &self.shim)?);
        }
        let mut notes = Vec::new();
        let mut trusts_ca = false;
        if let Some(bundle) = &self.ca_bundle {
            if contained && !with_helpers {
                notes.push(
                    "outcalld runs in a container: its CA is not mounted, intercepted hosts will not be trusted"
                        .to_owned(),
                );
            } else {
                binds.push(certificates(bundle)?);
                trusts_ca = true;
            }
        }
        let network = self.network(&wish.network)?;
        let image = self.image(&wish.image)?;
        self.check_volumes(&wish)?;
        judge(rules, &wish, &image, &binds[..asked_for])?;
        notes.extend(closed_ports(&image));

        let created_at = rfc3339(SystemTime::now());
        let proxy = self.proxy.map(|listen| (proxy_address(listen.ip(), network.gateway), listen.port()));
        let around = Surroundings { network: &network, proxy, binds: &binds, trusts_ca, created_at: &created_at };
        for attempt in 1..=FRESH_NAMES {
            let _making = self.making.hold(&wish.name);
            match calls::create(&self.client, &wish.name, &body(&wish, &around)) {
                Ok(made) => {
                    notes
                        .extend(made.warnings.iter().take(IMAGE_NAMES_MAX).map(|warning| format!("Docker: {warning}")));
                    self.finish(&made.id, &wish, &image, &binds[..asked_for], &protected)
                        .map_err(|cause| self.undo(&made.id, cause))?;
                    tracing::info!(target: "docker_manager", container = wish.name, id = made.id, image = wish.image, "container made");
                    return Ok(ContainerCreated { container_id: made.id, name: wish.name, created: true, notes });
                }
                // A name of our own that is taken: chance.
                Err(error) if error.status() == Some(409) && !named && attempt < FRESH_NAMES => {
                    wish.name = fresh_name()?
                }
                Err(error) => return Err(self.not_made(&wish.name, &created_at, &error)),
            }
        }
        Err(failure(500, "no free name was found").into())
    }

    /// From made to running.
    fn finish(
        &self,
        id: &str,
        wish: &Wish,
        image: &Image,
        asked_for: &[Bind],
        protected: &Protected,
    ) -> Result<(), DockerFailure> {
        let what = || format!("container {}", wish.name);
        let made = calls::inspect(&self.client, id).map_err(|error| refusal(&error, "inspect", &what()))?;
        if made.image != image.id {
            return Err(failure(409, format!("image {} was replaced while it was judged: try again", wish.image)));
        }
        calls::start(&self.client, id).map_err(|error| refusal(&error, "start", &what()))?;
        if asked_for.is_empty() {
            return Ok(());
        }
        let running = calls::inspect(&self.client, id).map_err(|error| refusal(&error, "inspect", &what()))?;
        swapped(&running, protected).map_or(Ok(()), |reason| Err(failure(409, reason)))
    }

    /// Removes a container that must not stay.
    fn undo(&self, id: &str, cause: DockerFailure) -> NotCreated {
        let left_over = match calls::remove(&self.client, id, true) {
            Ok(()) => false,
            Err(error) if error.status() == Some(404) => false,
            Err(error) => {
                tracing::warn!(target: "docker_manager", id, %error, "cannot remove a half-made container yet");
                true
            }
        };
        NotCreated { failure: cause, left_over }
    }

    /// The create itself failed. Unless the Engine said no, it may have made the container all the same.
    fn not_made(&self, name: &str, created_at: &str, error: &DockerError) -> NotCreated {
        let failure = refusal(error, "make", &format!("container {name}"));
        if error.status().is_some_and(|status| status < 500) {
            return NotCreated { failure, left_over: false };
        }
        match calls::inspect(&self.client, name) {
            Ok(found) if found.config.labels.get(LABEL_CREATED_AT).is_some_and(|at| at == created_at) => {
                self.undo(&found.id, failure)
            }
            Ok(_) => NotCreated { failure, left_over: false },
            // It may still come.
            Err(_) => NotCreated { failure, left_over: true },
        }
    }

    fn network(&self, name: &str) -> Result<ManagedNetwork, DockerFailure> {
        let all = engine::networks(&self.client, READ_LIMIT)?;
        find(&all, name, &self.default_bridge)?.ok_or_else(|| {
            let suffix = name.strip_prefix("outcall-").unwrap_or(name);
            failure(404, format!("no network {name}; make it with `outcall network create --name {suffix}`"))
        })
    }

    fn image(&self, reference: &str) -> Result<Image, DockerFailure> {
        calls::image(&self.client, reference).map_err(|error| match error.status() {
            Some(404) => failure(
                404,
                format!("image {reference} is not on this host; `outcall container pull {reference}` fetches it"),
            ),
            _ => error.into(),
        })
    }

    /// A volume of Docker's own directory is harmless; one with options can be any directory of the host.
    fn check_volumes(&self, wish: &Wish) -> Result<(), DockerFailure> {
        for volume in &wish.volumes {
            let Source::Named(name) = &volume.source else { continue };
            let Some(found) = calls::volume(&self.client, name)? else { continue };
            if found.driver != "local" || !found.options.is_empty() {
                let message = format!(
                    "volume {name} has the driver {:?} and {} options: what it leads to cannot be checked",
                    found.driver,
                    found.options.len()
                );
                return Err(failure(400, message));
            }
        }
        Ok(())
    }
}

/// Why a container that runs must not, by its own mount table: a source was swapped after it was checked.
fn swapped(running: &Inspected, protected: &Protected) -> Option<String> {
    // It ended already, and its mounts with it.
    if !running.state.running || running.state.pid <= 0 {
        return None;
    }
    let mounts = match Mounts::of(&running.state.pid.to_string()) {
        Ok(mounts) => mounts,
        Err(error) if has_ended(&error) => return None,
        Err(error) => {
            return Some(format!(
                "its mounts cannot be looked at ({error}), so its volumes cannot be checked: removed again"
            ));
        }
    };
    let name = protected.reaches(&mounts, &[AGENT_DIRECTORY_TARGET, SHIM_TARGET, CA_TARGET])?;
    Some(format!("a volume's source was replaced while it was mounted and led to {}: removed again", name.display()))
}

/// Whether a mount table cannot be read because its process has just ended: it is gone, or a zombie, which has none
/// (proc_pid_mountinfo(5) leaves out the EINVAL). Anything else, such as no descriptor for it, leaves the mounts unseen.
fn has_ended(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EINVAL))
}

/// Asks the rules; only one that blocks and matches says no.
fn judge(rules: &RuleSet, wish: &Wish, image: &Image, binds: &[Bind]) -> Result<(), DockerFailure> {
    let entrypoint = wish.entrypoint.as_ref().unwrap_or(&image.config.entrypoint);
    // As the Engine has it: another entrypoint takes the image's arguments away.
    let arguments = wish.cmd.as_ref().or(wish.entrypoint.is_none().then_some(&image.config.cmd));
    let command: Vec<&str> = entrypoint.iter().chain(arguments.into_iter().flatten()).map(String::as_str).collect();
    let volumes = volume_texts(wish, binds);
    let volumes: Vec<&str> = volumes.iter().map(String::as_str).collect();
    let env_keys: Vec<&str> = wish.env.0.iter().map(|(name, _)| name.as_str()).collect();
    let others = image.repo_tags.len() + image.repo_digests.len();
    if others > IMAGE_NAMES_MAX {
        let message = format!(
            "image {} has {others} tags and digests, of which rules can judge {IMAGE_NAMES_MAX}: remove some with `docker rmi`",
            wish.image
        );
        return Err(failure(403, message));
    }
    let others = image.repo_tags.iter().chain(&image.repo_digests).map(String::as_str);
    let names = std::iter::once(wish.image.as_str()).chain(others).chain(std::iter::once(image.id.as_str()));
    for name in names {
        let docker = Docker {
            image: Some(name),
            command: Some(&command),
            volumes: Some(&volumes),
            env_keys: Some(&env_keys),
            capabilities: Some(&[]),
        };
        let agent = Agent { name: Some(agent_name(&wish.name)), container: Some(&wish.name) };
        let context = Context { agent, docker, ..Context::default() };
        let decision = rules.peek(&context);
        let Some(rule) = decision.rule.as_ref().filter(|_| decision.action == Action::Block) else { continue };
        rules.record(&context, &decision);
        tracing::info!(target: "docker_manager", container = wish.name, rule = %rule.id, "container blocked by a rule");
        return Err(failure(403, format!("container {} is blocked by rule {} ({})", wish.name, rule.id, rule.file)));
    }
    Ok(())
}

/// `SOURCE:TARGET:ro|rw`, resolved; a source that was given by another path is there by that one too.
fn volume_texts(wish: &Wish, binds: &[Bind]) -> Vec<String> {
    let text = |source: &str, target: &str, read_only: bool| {
        format!("{source}:{target}:{}", if read_only { "ro" } else { "rw" })
    };
    let mut texts: Vec<String> =
        binds.iter().map(|bind| text(&bind.source.to_string_lossy(), &bind.target, bind.read_only)).collect();
    for volume in &wish.volumes {
        let given = match &volume.source {
            Source::Path(path) => text(&path.to_string_lossy(), &volume.target, volume.read_only),
            Source::Named(name) => text(name, &volume.target, volume.read_only),
        };
        if !texts.contains(&given) {
            texts.push(given);
        }
    }
    texts
}

fn closed_ports(image: &Image) -> Option<String> {
    let ports: Vec<&str> = image.config.exposed_ports.keys().take(PORTS_NAMED_MAX).map(String::as_str).collect();
    (!ports.is_empty())
        .then(|| format!("ports stay closed: the image exposes {}, and nothing outside reaches it", ports.join(", ")))
}

/// Where a container finds the proxy.
fn proxy_address(listen: IpAddr, gateway: Ipv4Addr) -> Ipv4Addr {
    match listen {
        IpAddr::V4(address) if !address.is_unspecified() => address,
        _ => gateway,
    }
}

fn fresh_name() -> Result<String, DockerFailure> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| failure(500, format!("the kernel gives no random bytes: {error}")))?;
    Ok(format!("{}{:08x}", NAME_PREFIX, u32::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule_engine::{Guard, LoadOptions, Source as RuleSource, load_sources};

    #[test]
    fn every_name_of_an_image_is_judged_or_it_is_refused() {
        let text = "version: '1'\nrules:\n- {id: no, condition: 'docker.image == \"other:last\"', action: block}\n";
        let source = RuleSource { name: "t.yaml".to_owned(), text: text.to_owned() };
        let options = LoadOptions { proxy: true, interception: false, guard: Guard::InProcess };
        let rules = load_sources(&[source], &options, None).unwrap().set;
        let request = ContainerCreate { image: "lab/busybox".to_owned(), ..ContainerCreate::default() };
        let wish = Wish::check(request, "coder".to_owned(), false).unwrap();
        let judged = |count: usize, last: &str| {
            let mut image =
                Image { repo_tags: (1..count).map(|n| format!("lab/busybox:{n}")).collect(), ..Image::default() };
            image.repo_digests = vec![last.to_owned()];
            judge(&rules, &wish, &image, &[]).map_err(|failure| (failure.status, failure.message))
        };
        assert_eq!(judged(IMAGE_NAMES_MAX, "other:first"), Ok(()));
        assert_eq!(judged(IMAGE_NAMES_MAX, "other:last").unwrap_err().0, 403);
        let (status, message) = judged(IMAGE_NAMES_MAX + 1, "other:first").unwrap_err();
        assert!(status == 403 && message.contains("1025 tags and digests"), "{message}");
    }

    #[test]
    fn only_an_ended_process_excuses_mounts_that_were_not_looked_at() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id().to_string();
        let table = || Mounts::of(&pid);
        while table().is_ok() {
            std::thread::yield_now();
        }
        assert!(has_ended(&table().unwrap_err()), "a zombie: {:?}", table());
        child.wait().unwrap();
        assert!(has_ended(&table().unwrap_err()), "gone: {:?}", table());
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EACCES, libc::EIO] {
            assert!(!has_ended(&std::io::Error::from_raw_os_error(errno)), "{errno}");
        }
        assert!(!has_ended(&std::io::Error::new(std::io::ErrorKind::InvalidData, "not understood")));
    }
}
