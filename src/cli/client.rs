//! One call to the operator API: request, envelope, answer.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Method, Request};

use super::CliError;
use super::transport::{ConnectFailure, NoResolver, UnixConnector};
use crate::api::Envelope;

/// How long one call may take: longer than every deadline of the daemon itself, so that its own words arrive.
const CALL_LIMIT: Duration = Duration::from_secs(90);
/// Largest answer taken, in bytes: the rules of a very large host are a few MiB.
const ANSWER_LIMIT: u64 = 64 * 1024 * 1024;

/// The daemon's API.
pub(super) struct Client {
    agent: ureq::Agent,
    socket: std::path::PathBuf,
    limit: Duration,
}

/// An answer with its status; `data` may be there in a failure too (`/ready`).
pub(super) struct Answer<T> {
    pub(super) status: u16,
    pub(super) envelope: Envelope<T>,
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        let config = ureq::config::Config::builder()
            .http_status_as_error(false)
            .proxy(None)
            .user_agent(concat!("outcall/", env!("CARGO_PKG_VERSION")))
            .max_idle_connections(0)
            .build();
        let connector = UnixConnector { socket: socket.to_owned() };
        Client {
            agent: ureq::Agent::with_parts(config, connector, NoResolver),
            socket: socket.to_owned(),
            limit: CALL_LIMIT,
        }
    }

    /// `GET path`, its data.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.data(&Method::GET, path, Vec::new())
    }

    /// `POST path` with a JSON body, its data.
    pub(super) fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, CliError> {
        let body =
            serde_json::to_vec(body).map_err(|source| CliError::Answer { call: format!("POST {path}"), source })?;
        self.data(&Method::POST, path, body)
    }

    /// `POST path` with a JSON body that may take `limit`, its data.
    pub(super) fn post_within<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        limit: Duration,
    ) -> Result<T, CliError> {
        let patient = Client { limit, agent: self.agent.clone(), socket: self.socket.clone() };
        patient.post(path, body)
    }

    /// `POST path` without a body, its data.
    pub(super) fn post_empty<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.data(&Method::POST, path, Vec::new())
    }

    /// `GET path` with whatever the envelope holds, success or not.
    pub(super) fn get_any<T: DeserializeOwned>(&self, path: &str) -> Result<Answer<T>, CliError> {
        self.call(&Method::GET, path, Vec::new())
    }

    /// `GET path` of an API without envelope and without prefix: Docker's.
    pub(super) fn plain<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        let (status, bytes) = self.bytes(&Method::GET, path, Vec::new())?;
        if status != 200 {
            return Err(CliError::Refused { status, message: format!("GET {path}: status {status}") });
        }
        serde_json::from_slice(&bytes).map_err(|source| CliError::Answer { call: format!("GET {path}"), source })
    }

    /// `GET path`, an answer of lines. It may last for ever: only connecting has a limit.
    pub(super) fn lines(&self, path: &str) -> Result<impl BufRead, CliError> {
        let call = format!("GET {path}");
        let talk = |source: ureq::Error| self.failure(&call, source);
        let request = Request::get(format!("http://localhost/api/v1{path}")).body(());
        let request = request.map_err(|error| talk(ureq::Error::Http(error)))?;
        let request = self.agent.configure_request(request).timeout_global(None).build();
        let mut response = self.agent.run(request).map_err(talk)?;
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(BufReader::new(response.into_body().into_reader()));
        }
        let bytes = response.body_mut().with_config().limit(ANSWER_LIMIT).read_to_vec().map_err(talk)?;
        let envelope: Result<Envelope<serde_json::Value>, _> = serde_json::from_slice(&bytes);
        let message = envelope.ok().and_then(|envelope| envelope.error);
        Err(CliError::Refused { status, message: message.unwrap_or_else(|| format!("{call}: status {status}")) })
    }

    /// What broke [`Client::lines`] later on.
    pub(super) fn broken(&self, path: &str, error: std::io::Error) -> CliError {
        self.failure(&format!("GET {path}"), ureq::Error::Io(error))
    }

    fn data<T: DeserializeOwned>(&self, method: &Method, path: &str, body: Vec<u8>) -> Result<T, CliError> {
        let Answer { status, envelope } = self.call::<T>(method, path, body)?;
        match envelope {
            Envelope { success: true, data: Some(data), .. } => Ok(data),
            Envelope { error: Some(message), .. } => Err(CliError::Refused { status, message }),
            Envelope { .. } => {
                Err(CliError::Refused { status, message: format!("{method} {path}: status {status} without a word") })
            }
        }
    }

    fn call<T: DeserializeOwned>(&self, method: &Method, path: &str, body: Vec<u8>) -> Result<Answer<T>, CliError> {
        let (status, bytes) = self.bytes(method, &format!("/api/v1{path}"), body)?;
        let call = format!("{method} {path}");
        let envelope = serde_json::from_slice(&bytes).map_err(|source| CliError::Answer { call, source })?;
        Ok(Answer { status, envelope })
    }

    /// One request; status and body of the answer.
    fn bytes(&self, method: &Method, path: &str, body: Vec<u8>) -> Result<(u16, Vec<u8>), CliError> {
        let call = format!("{method} {}", path.strip_prefix("/api/v1").unwrap_or(path));
        let talk = |source: ureq::Error| self.failure(&call, source);
        let mut request = Request::builder().method(method).uri(format!("http://localhost{path}"));
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(body).map_err(|error| talk(ureq::Error::Http(error)))?;
        let request = self.agent.configure_request(request).timeout_global(Some(self.limit)).build();
        let mut response = self.agent.run(request).map_err(talk)?;
        let status = response.status().as_u16();
        let bytes = response.body_mut().with_config().limit(ANSWER_LIMIT).read_to_vec().map_err(talk)?;
        Ok((status, bytes))
    }

    fn failure(&self, call: &str, error: ureq::Error) -> CliError {
        match error {
            ureq::Error::Other(cause) => match cause.downcast::<ConnectFailure>() {
                Ok(failure) => CliError::Connect { socket: self.socket.clone(), source: failure.0 },
                Err(cause) => CliError::Talk { call: call.to_owned(), source: Box::new(ureq::Error::Other(cause)) },
            },
            error => CliError::Talk { call: call.to_owned(), source: Box::new(error) },
        }
    }
}

/// The process that made the socket at `path` listen; 0 when it is not visible from here.
pub(super) fn peer_pid(path: &Path) -> Option<i32> {
    let stream = UnixConnector { socket: path.to_owned() }.open().ok()?;
    nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials).ok().map(|peer| peer.pid())
}

/// Percent-encodes one path segment or query value (RFC 3986 2.3: unreserved characters stay).
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_slash_stays_one_segment() {
        assert_eq!(encoded("allow-github.v2_x"), "allow-github.v2_x");
        assert_eq!(encoded("a/b?c d"), "a%2Fb%3Fc%20d");
    }
}
