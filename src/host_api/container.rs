//! `/container…`, `/containers`

use std::sync::Arc;
use std::time::Duration;

use crate::api::{ContainerCreate, ContainerCreated, ContainerPull, ContainerRemove, ContainerStop};
use crate::daemon::Subsystem;
use crate::docker_manager::{ContainerCommand, DockerCommand, DockerFailure};
use crate::event_loop::Reply;
use crate::unix_http::{Answer, Response};

use super::api::Api;
use super::call::Call;
use super::network::or_failure;
use super::respond::{data_with, failed, ok};

/// Docker answers within a second unless it is starting or under load.
const READ_LIMIT: Duration = Duration::from_secs(15);
/// Making one: some reads, a create, a start, and its removal when that fails; commands before it may wait too.
const CREATE_LIMIT: Duration = Duration::from_secs(120);
/// Stopping: the longest grace, and what Docker takes beyond.
const STOP_LIMIT: Duration = Duration::from_secs(330);
/// Removing may wait for a process that ends slowly.
const REMOVE_LIMIT: Duration = Duration::from_secs(60);
/// Pulling: Docker's own limit in the manager, and the wait for a place.
const PULL_LIMIT: Duration = Duration::from_secs(3600);

pub(super) fn create(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let wish: ContainerCreate = call.body()?;
    // Judged by the rules in force now, to its end.
    let rules = Arc::clone(&api.snapshot.rules);
    ask(
        api,
        &call,
        CREATE_LIMIT,
        |reply| ContainerCommand::Create(Box::new(wish), rules, reply),
        |made: ContainerCreated| data_with(201, made),
    )
}

pub(super) fn stop(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let request: ContainerStop = call.body()?;
    ask(api, &call, STOP_LIMIT, |reply| ContainerCommand::Stop(request, reply), ok)
}

pub(super) fn remove(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let request: ContainerRemove = call.body()?;
    ask(api, &call, REMOVE_LIMIT, |reply| ContainerCommand::Remove(request, reply), ok)
}

pub(super) fn pull(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let request: ContainerPull = call.body()?;
    ask(api, &call, PULL_LIMIT, |reply| ContainerCommand::Pull(request, reply), ok)
}

pub(super) fn list(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    ask(api, &call, READ_LIMIT, ContainerCommand::List, ok)
}

pub(super) fn inspect(api: &mut Api, call: Call) -> Result<Answer, Response> {
    let [name] = call.query(["name"])?;
    let name = name.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| failed(400, "which container? give its name or id: /container?name=NAME"))?;
    ask(api, &call, READ_LIMIT, |reply| ContainerCommand::Inspect(name, reply), ok)
}

fn ask<T: Send + 'static>(
    api: &mut Api,
    call: &Call,
    limit: Duration,
    command: impl FnOnce(Reply<Result<T, DockerFailure>>) -> ContainerCommand,
    format: impl FnOnce(T) -> Response + Send + 'static,
) -> Result<Answer, Response> {
    let owner = api.links.docker.clone();
    let command = |reply| DockerCommand::Container(command(reply));
    api.ask(call.ticket, (Subsystem::DockerManager, &owner), limit, command, |outcome| or_failure(outcome, format))
}
