//! The envelope around every answer.

use serde::Serialize;

use crate::api::{Envelope, to_json};
use crate::unix_http::Response;

const JSON: &str = "application/json";

/// 200 with data.
pub(super) fn ok<T: Serialize>(data: T) -> Response {
    data_with(200, data)
}

/// A success of another status.
pub(super) fn data_with<T: Serialize>(status: u16, data: T) -> Response {
    json(status, &Envelope::ok(data))
}

/// A failure.
pub(super) fn failed(status: u16, message: impl Into<String>) -> Response {
    json(status, &Envelope::failed(message.into()))
}

/// An envelope as it is.
pub(super) fn json<T: Serialize>(status: u16, envelope: &Envelope<T>) -> Response {
    match to_json(envelope) {
        Ok(body) => Response::whole(status, JSON, (body + "\n").into_bytes()),
        Err(error) => {
            // Our own types always serialise; a map with keys that are no strings would be our bug.
            tracing::error!(target: "host_api", "an answer could not be written as JSON: {error}");
            let body = br#"{"success":false,"error":"the answer could not be written as JSON"}"#;
            Response::whole(500, JSON, [body.as_slice(), b"\n"].concat())
        }
    }
}
