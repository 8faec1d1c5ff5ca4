//! The answers of the agent API: bare JSON, errors as `{"error":…}`. The one place where HTTP statuses are chosen.

use std::time::Duration;

use serde::Serialize;

use crate::api::AgentError;
use crate::state::RequestFailure;
use crate::unix_http::Response;

use super::window::retry_after_secs;

const JSON: &str = "application/json";
/// When a container's share of pending requests, or everybody's, is used up: only the operator can help.
const OPERATOR_TAKES: Duration = Duration::from_secs(60);

pub(super) fn json<T: Serialize>(status: u16, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(mut body) => {
            body.push(b'\n');
            Response::whole(status, JSON, body)
        }
        Err(error) => {
            // Our own types always serialise.
            tracing::error!(target: "agent_api", "an answer could not be written as JSON: {error}");
            Response::whole(500, JSON, b"{\"error\":\"the answer could not be written as JSON\"}\n".to_vec())
        }
    }
}

pub(super) fn failed(status: u16, error: impl Into<String>) -> Response {
    json(status, &AgentError { error: error.into() })
}

pub(super) fn unauthorized() -> Response {
    failed(401, "the session token is missing or not this container's; POST /v1/checkin gives it")
        .with("WWW-Authenticate", "Bearer")
}

pub(super) fn too_often(wait: Duration, error: impl Into<String>) -> Response {
    failed(429, error).with("Retry-After", retry_after_secs(wait).to_string())
}

pub(super) fn request_failed(failure: RequestFailure) -> Response {
    match failure {
        RequestFailure::Unknown(error) => failed(404, error),
        RequestFailure::Conflict(error) => failed(409, error),
        RequestFailure::Invalid(error) => failed(422, error),
        RequestFailure::TooMany(error) => too_often(OPERATOR_TAKES, error),
        // Paths and errors of the host are the operator's to read, in the log.
        RequestFailure::Failed(error) => {
            tracing::error!(target: "agent_api", "a rule request could not be kept: {error}");
            failed(500, "the daemon could not keep the rule request; its operator finds the reason in its log")
        }
    }
}
