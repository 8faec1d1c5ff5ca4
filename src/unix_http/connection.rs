//! One connection, sans-I/O: bytes and `now` in, requests and bytes out.
//!
//! One request at a time: the next head is looked at when the answer to the one before has left, so that answers keep
//! the order of requests and at most one answer is held in memory. What a client pipelines waits in its own socket.

use std::time::{Duration, Instant};

use crate::http1::{
    BodyFraming, BodyReader, Fields, Found, Parse, RequestHead, Target, Version, write_chunk, write_last_chunk,
};

use super::message::{Body, Response, reason};

/// Bytes of input held unread by the parser: a largest head and the beginning of a body.
const INPUT_MAX: usize = 16 * 1024;
/// Bytes of a stream that wait for a slow reader; what does not fit is lost to that reader alone.
const STREAM_BUFFER: usize = 256 * 1024;
/// How long the other side may take to read a last answer and close, while what it still sends is thrown away: closing
/// at once would reset the connection under the answer.
const LINGER: Duration = Duration::from_secs(2);

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Deadlines and sizes of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest body in bytes.
    pub body: usize,
    /// From connecting, or from the first byte of a later request, to the end of the head.
    pub head_time: Duration,
    /// From the end of the head to the end of the body.
    pub body_time: Duration,
    /// Between an answer and the next request.
    pub idle_time: Duration,
    /// Without a byte of the answer taken by the reader.
    pub stall_time: Duration,
}

impl Default for Limits {
    /// 64 KiB; a client on the same host needs milliseconds for what is given 5 s, 10 s, 30 s and 10 s here.
    fn default() -> Self {
        Limits {
            body: 64 * 1024,
            head_time: Duration::from_secs(5),
            body_time: Duration::from_secs(10),
            idle_time: Duration::from_secs(30),
            stall_time: Duration::from_secs(10),
        }
    }
}

/// What has to be answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A whole request.
    Request { method: Box<str>, path: Box<str>, query: Option<Box<str>>, fields: Fields, body: Vec<u8> },
    /// Something that is no request; the connection closes after the answer.
    Malformed { status: u16, message: String },
}

/// What the answer must know of its request.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    version: Version,
    keep_alive: bool,
    /// HEAD: no body goes out.
    head_only: bool,
}

#[derive(Debug)]
enum State {
    /// Waiting for a head.
    Head { until: Instant },
    /// Reading a body.
    Body {
        head: Box<RequestHead>,
        target: (Box<str>, Option<Box<str>>),
        reader: BodyReader,
        body: Vec<u8>,
        until: Instant,
    },
    /// The handler has the request.
    Handling(Exchange),
    /// The handler feeds the answer.
    Streaming { exchange: Exchange, close: bool },
    /// The answer is on its way; then the next head, or the end.
    Answered { close: bool },
    /// All is written and the writing side is to be shut; what comes is thrown away.
    Lingering { until: Instant, shut: bool },
    /// Over.
    Closed,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    state: State,
    limits: Limits,
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
    /// Since when output waits without a byte taken.
    stalled_since: Option<Instant>,
    ended: bool,
    /// No further request is taken after the current one.
    last: bool,
}

impl Connection {
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        Connection {
            state: State::Head { until: now + limits.head_time },
            limits,
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            stalled_since: None,
            ended: false,
            last: false,
        }
    }

    /// How many bytes may be read from the peer now.
    pub(super) fn room(&self) -> usize {
        match self.state {
            State::Closed => 0,
            State::Lingering { .. } => INPUT_MAX,
            _ if self.ended => 0,
            _ => INPUT_MAX - self.input.len(),
        }
    }

    /// Bytes came; at most [`Connection::room`].
    pub(super) fn receive(&mut self, bytes: &[u8], now: Instant) {
        match &mut self.state {
            State::Closed | State::Lingering { .. } => return,
            State::Head { until } if self.input.is_empty() => *until = now + self.limits.head_time,
            _ => {}
        }
        self.input.extend_from_slice(bytes);
    }

    /// The peer will send nothing more; it may still read.
    pub(super) fn end_of_input(&mut self) {
        self.ended = true;
        if matches!(self.state, State::Lingering { .. }) {
            self.state = State::Closed;
        }
    }

    /// The peer is gone in both directions.
    pub(super) fn hung_up(&mut self) {
        // A request that came before is still worth doing; its answer then finds nobody.
        if !matches!(self.state, State::Head { .. } | State::Body { .. }) {
            self.state = State::Closed;
        }
    }

    /// The socket failed: nothing can be said or heard any more.
    pub(super) fn abort(&mut self) {
        self.state = State::Closed;
    }

    /// The bytes of an answer to somebody who is not let in.
    pub(super) fn farewell(response: &Response, limits: Limits, now: Instant) -> Vec<u8> {
        let mut connection = Connection::new(limits, now);
        // The refusal itself is not needed, only the state in which an answer is due and the last one.
        let _ = connection.malformed(response.status, "");
        connection.answer(response, now);
        connection.output
    }

    /// Looks for what is to be done next.
    pub(super) fn advance(&mut self, now: Instant) -> Option<Step> {
        if let State::Answered { close } = self.state
            && self.output.is_empty()
        {
            self.after_answer(close, now);
        }
        if let State::Head { .. } = self.state {
            if self.last && self.input.is_empty() {
                self.state = State::Closed;
                return None;
            }
            if let Some(step) = self.read_head(now) {
                return Some(step);
            }
        }
        let step = self.read_body();
        let waiting = matches!(self.state, State::Head { .. } | State::Body { .. });
        if step.is_none() && waiting && self.ended {
            // A request cut short: nobody waits for an answer to it.
            self.state = State::Closed;
        }
        step
    }

    /// The handler's answer to the last [`Step`].
    pub(super) fn answer(&mut self, response: &Response, now: Instant) {
        let State::Handling(exchange) = self.state else {
            return;
        };
        let close = response.close || !exchange.keep_alive || self.last;
        self.write_head(response, exchange, close);
        match &response.body {
            Body::Stream if !exchange.head_only => {
                self.state = State::Streaming { exchange, close: close || exchange.version == Version::Http10 };
            }
            Body::Whole(body) if !exchange.head_only => {
                self.output.extend_from_slice(body);
                self.state = State::Answered { close };
            }
            Body::Stream | Body::Whole(_) => self.state = State::Answered { close },
        }
        self.stalled_since.get_or_insert(now);
    }

    /// More of a stream. `false` when the reader is too slow and it was left out.
    pub(super) fn feed(&mut self, bytes: &[u8], now: Instant) -> bool {
        let State::Streaming { exchange, .. } = self.state else {
            return false;
        };
        if self.output.len() - self.written + bytes.len() > STREAM_BUFFER {
            return false;
        }
        if exchange.version == Version::Http11 {
            write_chunk(&mut self.output, bytes);
        } else {
            self.output.extend_from_slice(bytes);
        }
        if !self.output.is_empty() {
            self.stalled_since.get_or_insert(now);
        }
        true
    }

    /// The end of a stream.
    pub(super) fn finish(&mut self, now: Instant) {
        if let State::Streaming { exchange, close } = self.state {
            if exchange.version == Version::Http11 {
                write_last_chunk(&mut self.output, b"");
                self.stalled_since.get_or_insert(now);
            }
            self.state = State::Answered { close };
        }
    }

    /// What is to be written.
    pub(super) fn output(&self) -> &[u8] {
        &self.output[self.written..]
    }

    /// So many bytes of [`Connection::output`] went out.
    pub(super) fn wrote(&mut self, count: usize, now: Instant) {
        self.written += count;
        if self.written < self.output.len() {
            self.stalled_since = Some(now);
            // The reader of a stream may be a little behind for ever: what it took is not kept. What is moved is never
            // more than what was written.
            if self.written >= self.output.len() - self.written {
                self.output.drain(..self.written);
                self.written = 0;
            }
            return;
        }
        self.written = 0;
        self.stalled_since = None;
        // A large answer must not keep its memory for the rest of an idle connection.
        self.output = Vec::new();
    }

    /// True once: the writing side is to be shut.
    pub(super) fn take_shutdown(&mut self) -> bool {
        match &mut self.state {
            State::Lingering { shut, .. } if !*shut => {
                *shut = true;
                true
            }
            _ => false,
        }
    }

    /// True when the connection is to be dropped.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// True while somebody else has the request: the handler, or whoever feeds its answer.
    pub(super) fn is_pending(&self) -> bool {
        matches!(self.state, State::Handling(_) | State::Streaming { .. })
    }

    /// Take no further request; what is under way is finished.
    pub(super) fn make_last(&mut self) {
        self.last = true;
    }

    /// When [`Connection::expire`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let state = match self.state {
            State::Head { until } | State::Body { until, .. } | State::Lingering { until, .. } => Some(until),
            State::Handling(_) | State::Streaming { .. } | State::Answered { .. } | State::Closed => None,
        };
        let stall = self.stall_deadline();
        state.into_iter().chain(stall).min()
    }

    /// A stream is not ended for its reader's pauses: it loses what comes meanwhile, and its buffer is bounded.
    fn stall_deadline(&self) -> Option<Instant> {
        let since = self.stalled_since.filter(|_| !matches!(self.state, State::Streaming { .. }))?;
        Some(since + self.limits.stall_time)
    }

    /// Acts on a deadline that has passed.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Step> {
        if self.stall_deadline().is_some_and(|at| at <= now) {
            self.state = State::Closed;
            return None;
        }
        match self.state {
            State::Head { until } if until <= now && self.input.is_empty() => self.state = State::Closed,
            State::Head { until } if until <= now => {
                return Some(self.malformed(408, "the request head did not arrive in time"));
            }
            State::Body { until, .. } if until <= now => {
                return Some(self.malformed(408, "the request body did not arrive in time"));
            }
            State::Lingering { until, .. } if until <= now => self.state = State::Closed,
            _ => {}
        }
        None
    }

    fn after_answer(&mut self, close: bool, now: Instant) {
        self.state = match (close, self.ended) {
            (true, true) => State::Closed,
            (true, false) => State::Lingering { until: now + LINGER, shut: false },
            (false, _) if self.input.is_empty() => State::Head { until: now + self.limits.idle_time },
            (false, _) => State::Head { until: now + self.limits.head_time },
        };
        if close {
            self.input = Vec::new();
        }
    }

    fn read_head(&mut self, now: Instant) -> Option<Step> {
        let (head, consumed) = match RequestHead::parse(&self.input) {
            Parse::Incomplete => return None,
            Parse::Refused(refusal) => {
                return Some(self.malformed(refusal.status(), &format!("not a request that is taken here: {refusal}")));
            }
            Parse::Parsed { head, consumed } => (head, consumed),
        };
        self.input.drain(..consumed);
        let target = match Target::parse(&head.method, &head.target) {
            Ok(Target::Origin(path) | Target::Absolute { path, .. }) => split_query(&path),
            Ok(Target::Asterisk) => ("*".into(), None),
            Ok(Target::Authority(_)) => return Some(self.malformed(400, "this is no proxy: no CONNECT here")),
            Err(error) => return Some(self.malformed(400, &error.to_string())),
        };
        if matches!(head.framing, BodyFraming::Length(length) if length > self.limits.body as u64) {
            return Some(self.too_large());
        }
        if head.fields.list("expect").any(|member| !member.eq_ignore_ascii_case(b"100-continue")) {
            return Some(self.malformed(417, "the only expectation met here is 100-continue"));
        }
        if head.expects_continue() && self.input.is_empty() {
            self.output.extend_from_slice(CONTINUE);
            self.stalled_since.get_or_insert(now);
        }
        let reader = BodyReader::new(head.framing);
        let until = now + self.limits.body_time;
        self.state = State::Body { head: Box::new(head), target, reader, body: Vec::new(), until };
        None
    }

    fn read_body(&mut self) -> Option<Step> {
        let State::Body { reader, body, .. } = &mut self.state else {
            return None;
        };
        let mut used = 0;
        let outcome = loop {
            let input = &self.input[used..];
            let progress = match reader.read(input) {
                Ok(progress) => progress,
                Err(error) => break Err((400, error.to_string())),
            };
            if let Found::Data(place) = &progress.found {
                if body.len() + place.len() > self.limits.body {
                    break Err((413, String::new()));
                }
                body.extend_from_slice(&input[place.clone()]);
            }
            used += progress.consumed;
            match progress.found {
                Found::End => break Ok(true),
                Found::Nothing => break Ok(false),
                Found::Data(_) => {}
            }
        };
        match outcome {
            Ok(complete) => {
                self.input.drain(..used);
                if complete { self.whole_request() } else { None }
            }
            Err((413, _)) => Some(self.too_large()),
            Err((status, message)) => Some(self.malformed(status, &message)),
        }
    }

    fn whole_request(&mut self) -> Option<Step> {
        let State::Body { head, target, body, .. } = std::mem::replace(&mut self.state, State::Closed) else {
            return None;
        };
        let exchange =
            Exchange { version: head.version, keep_alive: head.keep_alive(), head_only: &*head.method == "HEAD" };
        self.state = State::Handling(exchange);
        let RequestHead { method, fields, .. } = *head;
        Some(Step::Request { method, path: target.0, query: target.1, fields, body })
    }

    fn too_large(&mut self) -> Step {
        let message = format!("the body is larger than {} bytes", self.limits.body);
        self.malformed(413, &message)
    }

    /// The stream of bytes cannot be trusted further: one answer, then the end.
    fn malformed(&mut self, status: u16, message: &str) -> Step {
        self.input = Vec::new();
        self.state = State::Handling(Exchange { version: Version::Http11, keep_alive: false, head_only: false });
        Step::Malformed { status, message: message.to_owned() }
    }

    fn write_head(&mut self, response: &Response, exchange: Exchange, close: bool) {
        let mut head = format!("HTTP/1.1 {} {}\r\n", response.status, reason(response.status));
        head.push_str(&format!("Content-Type: {}\r\n", response.content_type));
        let mut close = close;
        match (&response.body, exchange.version) {
            (Body::Whole(body), _) => head.push_str(&format!("Content-Length: {}\r\n", body.len())),
            (Body::Stream, Version::Http11) => head.push_str("Transfer-Encoding: chunked\r\n"),
            (Body::Stream, Version::Http10) => close = true,
        }
        for (name, value) in &response.fields {
            // A value with a line feed would be a field of its own.
            if !value.chars().any(char::is_control) {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        if close {
            head.push_str("Connection: close\r\n");
        } else if exchange.version == Version::Http10 {
            head.push_str("Connection: keep-alive\r\n");
        }
        head.push_str("\r\n");
        self.output.extend_from_slice(head.as_bytes());
    }
}

fn split_query(path: &str) -> (Box<str>, Option<Box<str>>) {
    match path.split_once('?') {
        Some((path, query)) => (path.into(), Some(query.into())),
        None => (path.into(), None),
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
