//! `/bridge`, `/bridge/up`, `/bridge/down`

use std::time::Duration;

use crate::api::BridgeStatus;
use crate::bridge::BridgeCommand;
use crate::daemon::Subsystem;
use crate::event_loop::Reply;
use crate::unix_http::{Answer, Response};

use super::api::Api;
use super::call::Call;
use super::respond::{failed, ok};

/// Reading the kernel back takes milliseconds.
const STATUS_LIMIT: Duration = Duration::from_secs(5);
/// Up and down touch every bridge and veth of the host.
const CHANGE_LIMIT: Duration = Duration::from_secs(20);

pub(super) fn status(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let owner = api.links.bridge.clone();
    api.ask(call.ticket, (Subsystem::Bridge, &owner), STATUS_LIMIT, BridgeCommand::Status, ok)
}

pub(super) fn up(api: &mut Api, call: Call) -> Result<Answer, Response> {
    change(api, &call, BridgeCommand::Up)
}

pub(super) fn down(api: &mut Api, call: Call) -> Result<Answer, Response> {
    change(api, &call, BridgeCommand::Down)
}

fn change(
    api: &mut Api,
    call: &Call,
    command: fn(Reply<Result<BridgeStatus, String>>) -> BridgeCommand,
) -> Result<Answer, Response> {
    call.query([])?;
    call.no_body()?;
    let owner = api.links.bridge.clone();
    api.ask(call.ticket, (Subsystem::Bridge, &owner), CHANGE_LIMIT, command, |outcome| match outcome {
        Ok(status) => ok(status),
        Err(message) => failed(500, message),
    })
}
