//! `/network…`, `/networks`

use std::time::Duration;

use crate::api::{NetworkConfig, NetworkCreate, NetworkCreated, NetworkSelect};
use crate::daemon::Subsystem;
use crate::docker_manager::{DockerCommand, DockerFailure};
use crate::unix_http::{Answer, Response};

use super::api::Api;
use super::call::Call;
use super::respond::{data_with, failed, ok};

/// Docker answers within a second unless it is starting or under load.
const READ_LIMIT: Duration = Duration::from_secs(15);
/// Making or removing a network waits for Docker and for the bridge.
const CHANGE_LIMIT: Duration = Duration::from_secs(45);

pub(super) fn status(api: &mut Api, call: Call) -> Result<Answer, Response> {
    let [name] = call.query(["name"])?;
    let select = NetworkSelect { name };
    let owner = api.links.docker.clone();
    let command = |reply| DockerCommand::Network(select, reply);
    api.ask(call.ticket, (Subsystem::DockerManager, &owner), READ_LIMIT, command, |outcome| or_failure(outcome, ok))
}

pub(super) fn list(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let owner = api.links.docker.clone();
    api.ask(call.ticket, (Subsystem::DockerManager, &owner), READ_LIMIT, DockerCommand::Networks, |outcome| {
        or_failure(outcome, ok)
    })
}

pub(super) fn config(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    Ok(Answer::Now(ok(NetworkConfig { subnet_block: api.config.subnet_block.clone() })))
}

pub(super) fn create(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let wish: NetworkCreate = call.body()?;
    let owner = api.links.docker.clone();
    let command = |reply| DockerCommand::CreateNetwork(wish, reply);
    api.ask(call.ticket, (Subsystem::DockerManager, &owner), CHANGE_LIMIT, command, |outcome| {
        or_failure(outcome, |made: NetworkCreated| data_with(if made.created { 201 } else { 200 }, made))
    })
}

pub(super) fn destroy(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let select: NetworkSelect = call.body()?;
    let owner = api.links.docker.clone();
    let command = |reply| DockerCommand::DestroyNetwork(select, reply);
    api.ask(call.ticket, (Subsystem::DockerManager, &owner), CHANGE_LIMIT, command, |outcome| or_failure(outcome, ok))
}

pub(super) fn or_failure<T>(outcome: Result<T, DockerFailure>, format: impl FnOnce(T) -> Response) -> Response {
    match outcome {
        Ok(data) => format(data),
        Err(DockerFailure { status, message }) => failed(status, message),
    }
}
