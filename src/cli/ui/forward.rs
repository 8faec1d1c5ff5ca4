//! One admitted request, to the operator socket and back.
//!
//! The daemon is asked in HTTP/1.0: its answer then has a length or ends with the connection, and an event stream
//! comes as plain bytes. Of the browser's fields nothing goes on but the type of the body.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cli::CliError;
use crate::cli::transport::UnixConnector;

use super::server::{Client, Request};

/// Largest head of the daemon's answer in bytes.
const HEAD_MAX: usize = 16 * 1024;
/// How long the daemon may take to answer: longer than its own deadlines, so that its own words arrive.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);
/// In a stream without events, an empty line so often keeps what is between here and the browser from giving up.
const HEARTBEAT_MS: u16 = 15_000;
/// Bytes moved at once.
const PIECE: usize = 16 * 1024;

/// What the browser is told of the daemon's answer, beside its length.
const PASSED: [&str; 8] = [
    "content-type",
    "content-security-policy",
    "x-content-type-options",
    "referrer-policy",
    "cross-origin-opener-policy",
    "cross-origin-resource-policy",
    "cache-control",
    "allow",
];

/// Says for answers of the API what the pages say of themselves.
const ADDED: [(&str, &str); 5] = [
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// The daemon's answer: its head, and what was read beyond it.
struct Answer {
    status: u16,
    fields: Vec<(String, String)>,
    length: Option<u64>,
    rest: Vec<u8>,
    stream: UnixStream,
}

/// Forwards `request` as `target` and answers it. `stream` says whether one more stream may begin, and gives its
/// place.
pub(super) fn forward<P>(
    request: &Request,
    target: &str,
    socket: &Path,
    client: &mut Client<'_>,
    stream: impl FnOnce() -> Option<P>,
) {
    let answer = match ask(socket, &request.head.method, target, &request.body) {
        Ok(answer) => answer,
        Err(error) => return refuse(client, 502, &error.to_string()),
    };
    let place = if answer.length.is_none() { stream() } else { None };
    if answer.length.is_none() && place.is_none() {
        return refuse(client, 503, "too many event streams through this bridge; close a window of the dashboard");
    }
    if pass(answer, client).is_err() {
        // Either side went away in the middle.
        client.cut();
    }
    drop(place);
}

/// Answers with the API's envelope.
pub(super) fn refuse(client: &mut Client<'_>, status: u16, message: &str) {
    let body = serde_json::json!({"success": false, "error": message}).to_string();
    answer(client, status, ("content-type", "application/json"), body.as_bytes());
}

/// Sends the browser to a path of this server.
pub(super) fn redirect(client: &mut Client<'_>, path: &str) {
    answer(client, 303, ("location", path), b"");
}

fn answer(client: &mut Client<'_>, status: u16, field: (&str, &str), body: &[u8]) {
    // A browser that went away has nobody to be told.
    let _ = client.head(status, [field].into_iter().chain(ADDED), body.len() as u64).and_then(|()| client.write(body));
}

fn ask(socket: &Path, method: &str, target: &str, body: &[u8]) -> Result<Answer, CliError> {
    let connector = UnixConnector { socket: socket.to_owned() };
    let mut stream = connector.open().map_err(|source| CliError::Connect { socket: socket.to_owned(), source })?;
    let path = target.split('?').next().unwrap_or(target);
    let talk = |source| CliError::Local { what: format!("{method} {path}"), source };
    let mut head = format!("{method} {target} HTTP/1.0\r\nHost: localhost\r\n");
    if method == "POST" {
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    stream.set_read_timeout(Some(ANSWER_LIMIT)).map_err(talk)?;
    stream.set_write_timeout(Some(ANSWER_LIMIT)).map_err(talk)?;
    stream.write_all(&[head.as_bytes(), body].concat()).map_err(talk)?;
    read_head(stream).map_err(talk)
}

fn read_head(mut stream: UnixStream) -> std::io::Result<Answer> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        let length = stream.read(&mut piece)?;
        if length == 0 || bytes.len() + length > HEAD_MAX {
            return Err(invalid("outcalld gave no answer that this outcall understands"));
        }
        bytes.extend_from_slice(&piece[..length]);
    };
    let rest = bytes.split_off(end + 4);
    let head = String::from_utf8(bytes).map_err(|_| invalid("the head of outcalld's answer is no text"))?;
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    let status = status.filter(|status| (200..600).contains(status));
    let status = status.ok_or_else(|| invalid("outcalld's answer has no status"))?;
    let fields: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = fields.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    Ok(Answer { status, fields, length, rest, stream })
}

fn invalid(message: &str) -> std::io::Error {
    std::io::Error::new(ErrorKind::InvalidData, message)
}

fn pass(answer: Answer, client: &mut Client<'_>) -> std::io::Result<()> {
    let passed = answer.fields.iter().filter(|(name, _)| PASSED.contains(&&**name));
    let added = ADDED.iter().filter(|(name, _)| answer.fields.iter().all(|(known, _)| known != name));
    let fields = passed.map(|(name, value)| (&**name, &**value)).chain(added.copied());
    match answer.length {
        Some(length) => {
            client.head(answer.status, fields, length)?;
            pass_whole(answer, length, client)
        }
        None => {
            client.open(answer.status, fields)?;
            pass_stream(answer, client)
        }
    }
}

fn pass_whole(mut answer: Answer, length: u64, client: &mut Client<'_>) -> std::io::Result<()> {
    let early = answer.rest.len().min(usize::try_from(length).unwrap_or(usize::MAX));
    client.write(&answer.rest[..early])?;
    let mut missing = length - early as u64;
    let mut piece = [0; PIECE];
    while missing > 0 {
        let wanted = usize::try_from(missing).unwrap_or(PIECE).min(PIECE);
        let read = answer.stream.read(&mut piece[..wanted])?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        client.write(&piece[..read])?;
        missing -= read as u64;
    }
    Ok(())
}

/// Each piece goes out as it comes, until either side ends.
fn pass_stream(mut answer: Answer, client: &mut Client<'_>) -> std::io::Result<()> {
    let mut at_line_start = true;
    if !answer.rest.is_empty() {
        at_line_start = answer.rest.ends_with(b"\n");
        client.piece(&answer.rest)?;
    }
    let mut piece = [0; PIECE];
    loop {
        let (daemon, browser) = ready(&answer.stream, client.stream)?;
        if browser {
            // Nothing is due from it: it has closed, or does not keep to one request after the other.
            return Err(ErrorKind::ConnectionAborted.into());
        }
        if !daemon {
            if at_line_start {
                client.piece(b"\n")?;
            }
            continue;
        }
        let length = answer.stream.read(&mut piece)?;
        if length == 0 {
            return client.end();
        }
        at_line_start = piece[..length].ends_with(b"\n");
        client.piece(&piece[..length])?;
    }
}

/// Waits for either; neither when the time for a heartbeat has come.
fn ready(daemon: &UnixStream, browser: &TcpStream) -> std::io::Result<(bool, bool)> {
    let mut sockets = [PollFd::new(daemon.as_fd(), PollFlags::POLLIN), PollFd::new(browser.as_fd(), PollFlags::POLLIN)];
    poll(&mut sockets, PollTimeout::from(HEARTBEAT_MS))?;
    let any = |socket: &PollFd<'_>| socket.revents().is_some_and(|events| !events.is_empty());
    Ok((any(&sockets[0]), any(&sockets[1])))
}
