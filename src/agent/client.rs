//! The conversation with the daemon: check in, ask, within one deadline.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::Settings;
use super::response::{self, Progress, Response};
use crate::api::{AgentError, CheckIn, CheckedIn, PermissionCheck, PermissionVerdict};

/// Bytes asked for at once.
const READ: usize = 4096;

/// Why there is no verdict.
#[derive(Debug)]
pub enum AskError {
    /// The socket cannot be connected to.
    Connect(std::io::Error),
    /// The conversation broke off.
    Broken(std::io::Error),
    /// The daemon closed the connection before it answered.
    Closed,
    /// The deadline passed.
    TimedOut(Duration),
    /// What came is no answer of the daemon.
    NotAnAnswer(&'static str),
    /// The body is not the JSON that belongs there.
    NotTheJson(serde_json::Error),
    /// The daemon refuses to answer the question.
    Refused {
        /// HTTP status.
        status: u16,
        /// What the daemon says.
        error: String,
    },
    /// The question is too large to be sent.
    Question(serde_json::Error),
}

impl std::fmt::Display for AskError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AskError::Connect(error) => write!(f, "cannot connect ({error}); is outcalld running?"),
            AskError::Broken(error) => write!(f, "the connection broke ({error})"),
            AskError::Closed => f.write_str("it closed the connection without an answer"),
            AskError::TimedOut(limit) => write!(f, "no answer within {} s", limit.as_secs()),
            AskError::NotAnAnswer(why) => write!(f, "it answered something else: {why}"),
            AskError::NotTheJson(error) => write!(f, "it answered something else: {error}"),
            AskError::Refused { status, error } => write!(f, "it refused to answer ({status}): {error}"),
            AskError::Question(error) => write!(f, "the question cannot be written as JSON ({error})"),
        }
    }
}

impl std::error::Error for AskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AskError::Connect(error) | AskError::Broken(error) => Some(error),
            AskError::NotTheJson(error) | AskError::Question(error) => Some(error),
            _ => None,
        }
    }
}

/// A conversation that may go on while the command runs.
#[derive(Clone, Debug)]
pub struct Session {
    settings: Settings,
}

impl Session {
    /// Checks in again, over a connection of its own. The daemon keeps the same session for it.
    ///
    /// # Errors
    /// [`AskError`]
    pub fn check_in(&self) -> Result<(), AskError> {
        Conversation::begin(&self.settings)?.check_in().map(drop)
    }
}

/// Checks in and asks. A daemon that says "too often" is asked again when it said, if the deadline allows.
///
/// # Errors
/// [`AskError`]: there is no verdict.
pub fn ask(settings: &Settings, check: &PermissionCheck) -> Result<(PermissionVerdict, Session), AskError> {
    let mut conversation = Conversation::begin(settings)?;
    let token = conversation.check_in()?.session_token;
    // The token becomes a header: a byte that ends a header line must not come from there.
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(AskError::NotAnAnswer("its token is no token"));
    }
    let body = serde_json::to_vec(check).map_err(AskError::Question)?;
    loop {
        let answer = conversation.exchange("/v1/permissions/check", Some(&token), &body)?;
        if answer.status == 429
            && let Some(wait) = answer.retry_after_secs.map(Duration::from_secs)
            && Instant::now() + wait < conversation.deadline
        {
            std::thread::sleep(wait);
            continue;
        }
        let verdict = parsed(&answer)?;
        return Ok((verdict, Session { settings: settings.clone() }));
    }
}

struct Conversation {
    stream: UnixStream,
    path: std::path::PathBuf,
    deadline: Instant,
    limit: Duration,
    /// The daemon closes after the last answer: the next question needs a new connection.
    closing: bool,
}

impl Conversation {
    fn begin(settings: &Settings) -> Result<Self, AskError> {
        let deadline = Instant::now() + settings.timeout;
        let stream = connected(&settings.socket, settings.timeout).map_err(connect_error(settings.timeout))?;
        let path = settings.socket.clone();
        Ok(Conversation { stream, path, deadline, limit: settings.timeout, closing: false })
    }

    fn check_in(&mut self) -> Result<CheckedIn, AskError> {
        let body = serde_json::to_vec(&CheckIn {}).map_err(AskError::Question)?;
        let answer = self.exchange("/v1/checkin", None, &body)?;
        parsed(&answer)
    }

    fn exchange(&mut self, path: &str, token: Option<&str>, body: &[u8]) -> Result<Response, AskError> {
        if self.closing {
            let left = self.left()?;
            self.stream = connected(&self.path, left).map_err(connect_error(self.limit))?;
        }
        let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let length = body.len();
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nHost: outcall\r\n{authorization}Content-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n"
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.send(&request)?;
        let answer = self.receive()?;
        self.closing = answer.close;
        Ok(answer)
    }

    fn send(&mut self, request: &[u8]) -> Result<(), AskError> {
        let mut rest = request;
        while !rest.is_empty() {
            self.stream.set_write_timeout(Some(self.left()?)).map_err(AskError::Broken)?;
            match self.stream.write(rest) {
                Ok(0) => return Err(AskError::Closed),
                Ok(count) => rest = &rest[count..],
                Err(error) if is_wait(&error) => {}
                // The daemon may have refused a question that it did not read to the end: its answer says why.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(AskError::Broken(error)),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Response, AskError> {
        let mut bytes = Vec::new();
        let mut buffer = [0; READ];
        loop {
            self.stream.set_read_timeout(Some(self.left()?)).map_err(AskError::Broken)?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(AskError::Closed),
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(error) if is_wait(&error) => continue,
                Err(error) => return Err(AskError::Broken(error)),
            }
            match response::read(&bytes) {
                Progress::More => {}
                Progress::Done(answer) => return Ok(answer),
                Progress::Broken(why) => return Err(AskError::NotAnAnswer(why)),
            }
        }
    }

    /// What is left until the deadline, never zero: a zero timeout would mean none.
    fn left(&self) -> Result<Duration, AskError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(AskError::TimedOut(self.limit)) } else { Ok(left.max(Duration::from_millis(1))) }
    }
}

/// A call that a signal or its own timeout ended; the deadline decides whether to go on.
fn is_wait(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// connect(2) waits without end while the listener's queue is full, unless the socket has a send timeout (unix(7)).
fn connected(path: &Path, limit: Duration) -> Result<UnixStream, nix::Error> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let millis = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX).max(1);
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::milliseconds(millis))?;
    let address = UnixAddr::new(path)?;
    loop {
        match connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address) {
            Ok(()) => return Ok(UnixStream::from(socket)),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn connect_error(limit: Duration) -> impl Fn(nix::Error) -> AskError {
    move |error| match error {
        nix::Error::EAGAIN => AskError::TimedOut(limit),
        error => AskError::Connect(error.into()),
    }
}

fn parsed<T: serde::de::DeserializeOwned>(answer: &Response) -> Result<T, AskError> {
    if answer.status == 200 {
        return serde_json::from_slice(&answer.body).map_err(AskError::NotTheJson);
    }
    let error = serde_json::from_slice::<AgentError>(&answer.body).map(|body| super::printable(&body.error));
    Err(AskError::Refused { status: answer.status, error: error.unwrap_or_else(|_| "without a reason".to_owned()) })
}
