//! The Docker Engine asked over its Unix socket: one blocking call at a time, each with a deadline and a size cap.
//!
//! Owns: connection, API version, status codes, errors. Does not own: what is asked and what it means (`engine`).

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::transport::{NoNames, UnixConnector};

/// The oldest API spoken: 1.41, Engine 20.10.
const OLDEST_MINOR: u32 = 41;
/// The newest API asked for: 1.47, Engine 27 and 28; a newer Engine is asked in this dialect.
const NEWEST_MINOR: u32 = 47;
/// Bytes of an answer. A network with a full /16 of containers takes some 15 MB; an Engine that sends more is broken.
const ANSWER_CAP: u64 = 32 << 20;
/// Bytes of one line of a stream, and of all of them: half an hour of progress from many layers is some 20 MB.
const LINE_CAP: u64 = 1 << 20;
const STREAM_CAP: u64 = 256 << 20;
/// Characters of an Engine's own error message that are passed on.
const MESSAGE_CAP: usize = 400;
/// How long `/events` may take to send its head; the stream itself has no deadline.
const EVENTS_HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The Engine at one socket path. Cheap to clone; clones share connections and the agreed version.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    socket: Arc<Path>,
    /// The agreed minor version of API 1; 0 before the first answer to `_ping`.
    minor: Arc<AtomicU32>,
}

/// Why a call to the Engine failed.
#[derive(Debug)]
pub enum DockerError {
    /// Nobody listens at the socket.
    Absent {
        /// The socket's path.
        socket: PathBuf,
        /// What connect(2) said.
        source: io::Error,
    },
    /// The socket may not be opened by this process.
    Denied {
        /// The socket's path.
        socket: PathBuf,
        /// What connect(2) said.
        source: io::Error,
    },
    /// The Engine did not answer in time.
    Timeout {
        /// Method and path.
        call: String,
        /// The limit.
        limit: Duration,
    },
    /// The Engine answered with an error.
    Refused {
        /// Method and path.
        call: String,
        /// The HTTP status.
        status: u16,
        /// The Engine's own words, cut to one line.
        message: String,
    },
    /// The answer is not what the API promises, or too large, or the connection broke in the middle.
    Broken {
        /// Method and path.
        call: String,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The Engine speaks only older versions of the API.
    TooOld {
        /// What its `_ping` says.
        version: String,
    },
}

impl fmt::Display for DockerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DockerError::Absent { socket, source } => {
                write!(f, "no Docker Engine at {}: {source}; start Docker or set --docker-socket", socket.display())
            }
            DockerError::Denied { socket, source } => write!(
                f,
                "may not open {}: {source}; run outcalld as root or as a member of the group that owns the socket",
                socket.display()
            ),
            DockerError::Timeout { call, limit } => {
                write!(f, "Docker did not answer {call} within {} ms; look at the Engine's log", limit.as_millis())
            }
            DockerError::Refused { call, status, message } => {
                write!(f, "Docker answered {call} with {status}: {message}")
            }
            DockerError::Broken { call, source } => write!(f, "Docker's answer to {call} cannot be used: {source}"),
            DockerError::TooOld { version } => {
                write!(
                    f,
                    "the Engine's API version is {version}, the oldest supported is 1.{OLDEST_MINOR} (Engine 20.10)"
                )
            }
        }
    }
}

impl std::error::Error for DockerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            DockerError::Absent { source, .. } | DockerError::Denied { source, .. } => Some(source),
            DockerError::Broken { source, .. } => Some(&**source),
            _ => None,
        }
    }
}

impl DockerError {
    /// A refusal in the Engine's words, cut and on one line.
    pub(super) fn refused(call: &str, status: u16, message: &str) -> Self {
        DockerError::Refused { call: call.to_owned(), status, message: one_line(message) }
    }

    /// The HTTP status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            DockerError::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl Client {
    /// A client of the Engine at `socket`; nothing is asked yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        let config = ureq::Agent::config_builder()
            // ureq reads proxy variables of the environment by itself: the Engine is never behind one.
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(4)
            .user_agent(concat!("outcalld/", env!("CARGO_PKG_VERSION")))
            .build();
        Client {
            agent: ureq::Agent::with_parts(config, UnixConnector(socket.to_path_buf()), NoNames),
            socket: Arc::from(socket),
            minor: Arc::default(),
        }
    }

    /// GET of `path` (below `/v1.N`), parsed.
    ///
    /// # Errors
    /// Any [`DockerError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str, limit: Duration) -> Result<T, DockerError> {
        let call = format!("GET {path}");
        let bytes = self.exchange(&call, limit, |agent, prefix, left| {
            let request = agent.get(format!("{prefix}{path}"));
            request.config().timeout_global(Some(left)).build().call()
        })?;
        serde_json::from_slice(&bytes).map_err(|error| DockerError::Broken { call, source: error.into() })
    }

    /// POST of a JSON body to `path`; the raw answer.
    ///
    /// # Errors
    /// Any [`DockerError`].
    pub fn post(&self, path: &str, body: &impl Serialize, limit: Duration) -> Result<Vec<u8>, DockerError> {
        self.exchange(&format!("POST {path}"), limit, |agent, prefix, left| {
            let request = agent.post(format!("{prefix}{path}"));
            request.config().timeout_global(Some(left)).build().send_json(body)
        })
    }

    /// POST without a body, whose answer is a stream of lines that ends when the work does. `line` gets each.
    ///
    /// # Errors
    /// Any [`DockerError`]; [`DockerError::Broken`] for a line that `line` does not take.
    pub fn post_lines(
        &self,
        call: &str,
        path: &str,
        limit: Duration,
        mut line: impl FnMut(&[u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<(), DockerError> {
        let prefix = self.prefix(limit)?;
        let request = self.agent.post(format!("{prefix}{path}"));
        let request = request.config().timeout_global(Some(limit)).build();
        let mut answer = request.send_empty().map_err(|error| self.failed(call, limit, error))?;
        let status = answer.status().as_u16();
        if status != 200 {
            let body = answer.body_mut().with_config().limit(ANSWER_CAP).read_to_vec().unwrap_or_default();
            return Err(DockerError::refused(call, status, &message_of(&body)));
        }
        let broken = |source| DockerError::Broken { call: call.to_owned(), source };
        let mut reader = BufReader::new(answer.into_body().into_with_config().limit(STREAM_CAP).reader());
        let mut text = Vec::new();
        loop {
            text.clear();
            let read = reader.by_ref().take(LINE_CAP).read_until(b'\n', &mut text);
            match read.map_err(|error| self.failed(call, limit, error.into()))? {
                0 => return Ok(()),
                _ if text.last() != Some(&b'\n') => return Err(broken("a line was cut short or is too long".into())),
                _ if text.iter().all(u8::is_ascii_whitespace) => {}
                _ => line(&text).map_err(broken)?,
            }
        }
    }

    /// DELETE of `path`.
    ///
    /// # Errors
    /// Any [`DockerError`].
    pub fn delete(&self, path: &str, limit: Duration) -> Result<(), DockerError> {
        self.exchange(&format!("DELETE {path}"), limit, |agent, prefix, left| {
            let request = agent.delete(format!("{prefix}{path}"));
            request.config().timeout_global(Some(left)).build().call()
        })
        .map(drop)
    }

    /// The event stream behind `path`: a reader that blocks until the Engine says something.
    ///
    /// # Errors
    /// Any [`DockerError`].
    pub fn stream(&self, path: &str) -> Result<BufReader<impl io::Read + use<>>, DockerError> {
        let call = "GET /events";
        let prefix = self.prefix(EVENTS_HEAD_TIMEOUT)?;
        let request = self.agent.get(format!("{prefix}{path}"));
        let request = request.config().timeout_recv_response(Some(EVENTS_HEAD_TIMEOUT)).build();
        let mut answer = request.call().map_err(|error| self.failed(call, EVENTS_HEAD_TIMEOUT, error))?;
        let status = answer.status().as_u16();
        if status != 200 {
            let body = answer.body_mut().with_config().limit(ANSWER_CAP).read_to_vec().unwrap_or_default();
            return Err(DockerError::Refused { call: call.to_owned(), status, message: message_of(&body) });
        }
        Ok(BufReader::new(answer.into_body().into_with_config().limit(u64::MAX).reader()))
    }

    /// Breaks every call in progress and refuses new ones, for this client and its clones.
    pub fn shutdown(&self) {
        self.agent.clone().shutdown();
    }

    /// Forgets the agreed version: the Engine may have been replaced.
    pub fn forget_version(&self) {
        self.minor.store(0, Ordering::Relaxed);
    }

    fn prefix(&self, limit: Duration) -> Result<String, DockerError> {
        let mut minor = self.minor.load(Ordering::Relaxed);
        if minor == 0 {
            minor = self.negotiate(limit)?;
            self.minor.store(minor, Ordering::Relaxed);
        }
        Ok(format!("http://docker/v1.{minor}"))
    }

    fn negotiate(&self, limit: Duration) -> Result<u32, DockerError> {
        let call = "GET /_ping";
        let request = self.agent.get("http://docker/_ping").config().timeout_global(Some(limit)).build();
        let mut answer = request.call().map_err(|error| self.failed(call, limit, error))?;
        let body = answer.body_mut().with_config().limit(ANSWER_CAP).read_to_vec();
        let body = body.map_err(|error| self.failed(call, limit, error))?;
        let status = answer.status().as_u16();
        if status != 200 {
            return Err(DockerError::Refused { call: call.to_owned(), status, message: message_of(&body) });
        }
        let version = answer.headers().get("Api-Version").and_then(|value| value.to_str().ok()).unwrap_or_default();
        agreed_minor(version).ok_or_else(|| DockerError::TooOld { version: version.chars().take(32).collect() })
    }

    /// One call within `limit`, the agreement on a version included; `send` gets what is left of it.
    fn exchange(
        &self,
        call: &str,
        limit: Duration,
        send: impl FnOnce(&ureq::Agent, &str, Duration) -> Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Vec<u8>, DockerError> {
        let begun = Instant::now();
        let prefix = self.prefix(limit)?;
        let left = limit.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(DockerError::Timeout { call: call.to_owned(), limit });
        }
        let mut answer = send(&self.agent, &prefix, left).map_err(|error| self.failed(call, limit, error))?;
        let body = answer.body_mut().with_config().limit(ANSWER_CAP).read_to_vec();
        let body = body.map_err(|error| self.failed(call, limit, error))?;
        match answer.status().as_u16() {
            200..=299 => Ok(body),
            status => Err(DockerError::Refused { call: call.to_owned(), status, message: message_of(&body) }),
        }
    }

    fn failed(&self, call: &str, limit: Duration, error: ureq::Error) -> DockerError {
        match error {
            ureq::Error::Timeout(_) => DockerError::Timeout { call: call.to_owned(), limit },
            ureq::Error::Io(source) => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
                    DockerError::Absent { socket: self.socket.to_path_buf(), source }
                }
                io::ErrorKind::PermissionDenied => DockerError::Denied { socket: self.socket.to_path_buf(), source },
                _ => DockerError::Broken { call: call.to_owned(), source: source.into() },
            },
            other => DockerError::Broken { call: call.to_owned(), source: other.into() },
        }
    }
}

/// The minor version to speak with an Engine whose newest is `version`; `None` when it is too old or no version.
fn agreed_minor(version: &str) -> Option<u32> {
    let minor: u32 = version.strip_prefix("1.")?.parse().ok()?;
    (minor >= OLDEST_MINOR).then_some(minor.min(NEWEST_MINOR))
}

/// The Engine's `{"message": …}`, or the head of whatever it sent, on one line.
fn message_of(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Message {
        message: String,
    }
    let text = match serde_json::from_slice::<Message>(body) {
        Ok(parsed) => parsed.message,
        Err(_) => String::from_utf8_lossy(&body[..body.len().min(MESSAGE_CAP)]).into_owned(),
    };
    one_line(&text)
}

fn one_line(text: &str) -> String {
    let line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CAP).collect();
    if line.is_empty() { "(no message)".to_owned() } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_clamped_to_what_is_known() {
        assert_eq!(agreed_minor("1.41"), Some(41));
        assert_eq!(agreed_minor("1.45"), Some(45));
        assert_eq!(agreed_minor("1.52"), Some(NEWEST_MINOR));
        for bad in ["1.40", "", "2.0", "1.x", "1.-1"] {
            assert_eq!(agreed_minor(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_engine_s_words_stay_on_one_line() {
        assert_eq!(message_of(b"{\"message\":\"network x\\nnot found\"}\n"), "network x not found");
        assert_eq!(message_of(b"page not found\n"), "page not found");
        assert_eq!(message_of(b""), "(no message)");
        assert!(message_of(&[b'a'; 9000]).len() <= MESSAGE_CAP);
    }

    #[test]
    fn an_absent_socket_says_what_to_do() {
        let client = Client::new(Path::new("/nonexistent/docker.sock"));
        let error = client.get::<serde_json::Value>("/networks", Duration::from_millis(500)).unwrap_err();
        assert!(matches!(error, DockerError::Absent { .. }), "{error}");
        assert!(error.to_string().contains("--docker-socket"));
    }
}
