//! The shell around the connections: accepts, reads, writes, keeps deadlines and caps.
//!
//! Edge-triggered: what could not be done at once is remembered as readiness and done when the connection lets it.
//! A turn of one connection is bounded, so that a busy one does not keep the others waiting.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};

use super::connection::{Connection, Limits, Step};
use super::message::{Request, Response, Ticket};
use super::peer::Peer;

/// Steps (a read, an answer) of one connection before the others have their turn.
const TURN: usize = 16;
/// Connections accepted before those that are open have their turn.
const ACCEPT_TURN: usize = 64;
/// Pause after accept(2) failed for want of descriptors or memory: the backlog gives no new event.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes read at once.
const READ_SIZE: usize = 16 * 1024;
/// How long a connection that was turned away is kept: one that is closed while its client still writes gives the
/// client an error in place of the words.
const TURNED_AWAY_FOR: Duration = Duration::from_secs(1);
/// How many are kept so, beyond the caps.
const TURNED_AWAY_MAX: usize = 64;

/// What serves the requests.
pub trait Handler {
    /// Somebody connected. The peer is asked once, not for each request; `socket` is for asking the kernel more.
    fn admit(&mut self, peer: &Peer, socket: BorrowedFd<'_>) -> Admission;
    /// A request came.
    fn request(&mut self, request: Request, ticket: Ticket) -> Answer;
    /// The words for what never became a request (malformed, too slow, too large, one connection too many).
    fn refusal(&mut self, status: u16, message: &str) -> Response;
    /// A connection closed: its last ticket is void, whether it was answered or not.
    fn gone(&mut self, ticket: Ticket) {
        let _ = ticket;
    }
    /// accept(2) began to fail (descriptors or memory ran out); it is tried again until it works.
    fn accept_failed(&mut self, error: &std::io::Error);
}

/// Whether a peer is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Served; connections with an equal key share a cap.
    Serve {
        /// The uid, or a number for the container.
        key: u64,
    },
    /// Each request is answered with this.
    Refuse {
        /// HTTP status.
        status: u16,
        /// Why.
        message: String,
    },
}

/// A handler's answer.
#[derive(Debug)]
pub enum Answer {
    /// Here it is.
    Now(Response),
    /// It comes with [`Server::answer`].
    Later,
}

/// What became of a piece of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fed {
    /// On its way.
    Taken,
    /// The reader is too slow: this piece is lost to it.
    Full,
    /// The connection is gone.
    Gone,
}

/// How many connections may be open.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Overall.
    pub connections: usize,
    /// For each key of [`Admission::Serve`]; refused peers share one of their own.
    pub per_key: usize,
}

/// The tokens that the server uses in its owner's poll: `listener`, and `first` upwards, one for each connection.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    /// The listening socket.
    pub listener: Token,
    /// The first connection.
    pub first: usize,
}

struct Session {
    stream: UnixStream,
    connection: Connection,
    peer: Peer,
    /// `None`: refused, with the words.
    key: Option<u64>,
    refusal: Option<(u16, String)>,
    serial: u64,
    readable: bool,
    writable: bool,
}

/// A listening socket with its connections.
pub struct Server {
    listener: Option<UnixListener>,
    registry: Registry,
    tokens: Tokens,
    limits: Limits,
    caps: Caps,
    sessions: Vec<Option<Session>>,
    free: Vec<usize>,
    open: usize,
    /// Open connections by key; `None` counts the refused.
    keys: HashMap<Option<u64>, usize>,
    /// Connections whose turn was cut short.
    again: VecDeque<usize>,
    /// Connections that were told that they are too many, and until when they are kept.
    turned_away: VecDeque<(UnixStream, Instant)>,
    accept_at: Option<Instant>,
    accept_failing: bool,
    serial: u64,
}

impl Server {
    /// Serves `listener` from the poll that `registry` belongs to.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub fn new(
        listener: std::os::unix::net::UnixListener,
        registry: &Registry,
        tokens: Tokens,
        limits: Limits,
        caps: Caps,
    ) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut listener = UnixListener::from_std(listener);
        let registry = registry.try_clone()?;
        registry.register(&mut listener, tokens.listener, Interest::READABLE)?;
        Ok(Server {
            listener: Some(listener),
            registry,
            tokens,
            limits,
            caps,
            sessions: Vec::new(),
            free: Vec::new(),
            open: 0,
            keys: HashMap::new(),
            again: VecDeque::new(),
            turned_away: VecDeque::new(),
            accept_at: None,
            accept_failing: false,
            serial: 0,
        })
    }

    /// Takes an event of the poll; one that belongs to somebody else is left alone.
    pub fn event(&mut self, event: &Event, handler: &mut dyn Handler, now: Instant) {
        if event.token() == self.tokens.listener {
            self.accept(handler, now);
            return;
        }
        let Some(slot) = event.token().0.checked_sub(self.tokens.first) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        session.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        session.writable |= event.is_writable();
        if event.is_error() || (event.is_read_closed() && event.is_write_closed()) {
            session.connection.hung_up();
        }
        self.drive(slot, handler, now);
    }

    /// Acts on what time brought: deadlines, turns that were cut short, a paused accept. Call it after each poll.
    pub fn tick(&mut self, handler: &mut dyn Handler, now: Instant) {
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept_at = None;
            self.accept(handler, now);
        }
        while self.turned_away.front().is_some_and(|(_, until)| *until <= now) {
            self.turned_away.pop_front();
        }
        for _ in 0..self.again.len() {
            if let Some(slot) = self.again.pop_front() {
                self.drive(slot, handler, now);
            }
        }
        for slot in 0..self.sessions.len() {
            let Some(session) = &mut self.sessions[slot] else {
                continue;
            };
            if session.connection.deadline().is_some_and(|at| at <= now) {
                if let Some(step) = session.connection.expire(now) {
                    self.serve(slot, step, handler, now);
                }
                self.drive(slot, handler, now);
            }
        }
    }

    /// How long the poll may wait; `None`: until something happens.
    #[must_use]
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        if !self.again.is_empty() {
            return Some(Duration::ZERO);
        }
        let deadlines = self.sessions.iter().flatten().filter_map(|session| session.connection.deadline());
        let turned_away = self.turned_away.front().map(|(_, until)| *until);
        deadlines.chain(self.accept_at).chain(turned_away).min().map(|at| at.saturating_duration_since(now))
    }

    /// The answer to a request that got [`Answer::Later`]. One that nobody waits for any more is dropped.
    pub fn answer(&mut self, ticket: Ticket, response: &Response, handler: &mut dyn Handler, now: Instant) {
        if let Some(session) = self.of(ticket) {
            session.connection.answer(response, now);
            self.drive(ticket.slot, handler, now);
        }
    }

    /// More of a stream.
    pub fn feed(&mut self, ticket: Ticket, bytes: &[u8], handler: &mut dyn Handler, now: Instant) -> Fed {
        let Some(session) = self.of(ticket) else {
            return Fed::Gone;
        };
        if !session.connection.feed(bytes, now) {
            return Fed::Full;
        }
        self.drive(ticket.slot, handler, now);
        Fed::Taken
    }

    /// The end of a stream.
    pub fn finish(&mut self, ticket: Ticket, handler: &mut dyn Handler, now: Instant) {
        if let Some(session) = self.of(ticket) {
            session.connection.finish(now);
            self.drive(ticket.slot, handler, now);
        }
    }

    /// Accepts nobody any more and closes what is idle; what is under way may finish.
    pub fn close(&mut self, handler: &mut dyn Handler, now: Instant) {
        if let Some(mut listener) = self.listener.take() {
            // It is dropped next, which takes it out of the poll as well.
            let _ = self.registry.deregister(&mut listener);
        }
        self.accept_at = None;
        for slot in 0..self.sessions.len() {
            if let Some(session) = &mut self.sessions[slot] {
                session.connection.make_last();
                self.drive(slot, handler, now);
            }
        }
    }

    /// How many connections are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open
    }

    fn of(&mut self, ticket: Ticket) -> Option<&mut Session> {
        let session = self.sessions.get_mut(ticket.slot)?.as_mut()?;
        (session.serial == ticket.serial && session.connection.is_pending()).then_some(session)
    }

    fn accept(&mut self, handler: &mut dyn Handler, now: Instant) {
        for _ in 0..ACCEPT_TURN {
            let Some(listener) = &self.listener else {
                return;
            };
            match listener.accept() {
                Ok((stream, _)) => {
                    self.accept_failing = false;
                    self.admit(stream, handler, now);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.accept_failing, true) {
                        handler.accept_failed(&error);
                    }
                    self.accept_at = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.accept_at = Some(now);
    }

    fn admit(&mut self, mut stream: UnixStream, handler: &mut dyn Handler, now: Instant) {
        let admission = match Peer::of(&stream) {
            Ok(peer) => (peer, handler.admit(&peer, stream.as_fd())),
            // Whoever cannot be told is not served.
            Err(_) => return,
        };
        let (peer, key, refusal) = match admission {
            (peer, Admission::Serve { key }) => (peer, Some(key), None),
            (peer, Admission::Refuse { status, message }) => (peer, None, Some((status, message))),
        };
        let of_key = self.keys.get(&key).copied().unwrap_or(0);
        if self.open >= self.caps.connections || of_key >= self.caps.per_key {
            let mut words = handler.refusal(503, "too many connections are open; close some or try again");
            words.close = true;
            self.turn_away(stream, &words, now);
            return;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.sessions.push(None);
            self.sessions.len() - 1
        });
        let token = Token(self.tokens.first + slot);
        if self.registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE).is_err() {
            self.free.push(slot);
            return;
        }
        *self.keys.entry(key).or_insert(0) += 1;
        self.open += 1;
        let connection = Connection::new(self.limits, now);
        self.sessions[slot] =
            Some(Session { stream, connection, peer, key, refusal, serial: 0, readable: true, writable: true });
        self.drive(slot, handler, now);
    }

    /// One try at saying why; nothing that comes after is read.
    fn turn_away(&mut self, mut stream: UnixStream, words: &Response, now: Instant) {
        if stream.write(&Connection::farewell(words, self.limits, now)).is_ok() {
            let _ = stream.shutdown(Shutdown::Write);
            if self.turned_away.len() >= TURNED_AWAY_MAX {
                self.turned_away.pop_front();
            }
            self.turned_away.push_back((stream, now + TURNED_AWAY_FOR));
        }
    }

    /// Lets one connection do what it can, for a turn.
    fn drive(&mut self, slot: usize, handler: &mut dyn Handler, now: Instant) {
        for _ in 0..TURN {
            let Some(session) = self.sessions.get_mut(slot).and_then(Option::as_mut) else {
                return;
            };
            let wrote = session.write(now);
            let step = session.connection.advance(now);
            if session.connection.take_shutdown() {
                // Fails only when the peer is gone, which the next read tells too.
                let _ = session.stream.shutdown(Shutdown::Write);
            }
            if session.connection.is_closed() {
                self.remove(slot, handler);
                return;
            }
            if let Some(step) = step {
                self.serve(slot, step, handler, now);
                continue;
            }
            // `advance` may have something to say itself: 100 Continue.
            let wrote = session.write(now) || wrote;
            if !wrote && !session.read(now) {
                return;
            }
        }
        self.again.push_back(slot);
    }

    fn serve(&mut self, slot: usize, step: Step, handler: &mut dyn Handler, now: Instant) {
        self.serial += 1;
        let serial = self.serial;
        let Some(session) = self.sessions.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        session.serial = serial;
        let answer = match (step, &session.refusal) {
            (_, Some((status, message))) => {
                let mut words = handler.refusal(*status, message);
                words.close = true;
                Answer::Now(words)
            }
            (Step::Malformed { status, message }, None) => Answer::Now(handler.refusal(status, &message)),
            (Step::Request { method, path, query, fields, body }, None) => {
                // Who is not refused was admitted under a key.
                let key = session.key.unwrap_or_default();
                let request = Request { method, path, query, fields, body, peer: session.peer, key };
                handler.request(request, Ticket { slot, serial })
            }
        };
        if let Answer::Now(response) = answer {
            session.connection.answer(&response, now);
        }
    }

    fn remove(&mut self, slot: usize, handler: &mut dyn Handler) {
        let Some(mut session) = self.sessions[slot].take() else {
            return;
        };
        // Dropping the stream takes it out of the poll as well.
        let _ = self.registry.deregister(&mut session.stream);
        self.open -= 1;
        if let Some(count) = self.keys.get_mut(&session.key) {
            *count -= 1;
            if *count == 0 {
                self.keys.remove(&session.key);
            }
        }
        self.free.push(slot);
        if session.serial > 0 {
            handler.gone(Ticket { slot, serial: session.serial });
        }
    }
}

impl Session {
    /// Writes what it can; true when something went out.
    fn write(&mut self, now: Instant) -> bool {
        let mut wrote = false;
        while self.writable && !self.connection.output().is_empty() {
            match self.stream.write(self.connection.output()) {
                Ok(count) => {
                    self.connection.wrote(count, now);
                    wrote = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.connection.abort();
                    return false;
                }
            }
        }
        wrote
    }

    /// Reads once, as much as the connection has room for; true when that changed something.
    fn read(&mut self, now: Instant) -> bool {
        let room = self.connection.room().min(READ_SIZE);
        if !self.readable || room == 0 {
            return false;
        }
        let mut buffer = [0; READ_SIZE];
        match self.stream.read(&mut buffer[..room]) {
            Ok(0) => {
                self.readable = false;
                self.connection.end_of_input();
            }
            Ok(count) => self.connection.receive(&buffer[..count], now),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                return false;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => {
                self.readable = false;
                self.connection.abort();
            }
        }
        true
    }
}
