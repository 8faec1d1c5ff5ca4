//! The operator API: one thread that serves the operator socket.
//!
//! Owns: the socket, the route table, and who waits for which answer until when. Does not own: anything it reports; a
//! handler parses a request into a command for the owner of the state and formats the owner's answer. Rules are read
//! from the snapshot, so that what `rule/evaluate` says is what the wire does.
//!
//! | file | what it is |
//! |---|---|
//! | `ui` | the dashboard's files |
//! | `links` | what the thread is given, and the commands it takes |
//! | `api` | the route table and the waiting room |
//! | `call` | one request: query, body |
//! | `respond` | the envelope |
//! | `bridge` `container` `dns` `dynamic` `explain` `health` `network` `proxy` `requests` `rules` | one resource each |
//! | `events` | the events' readers |
//! | `metrics` `metrics_text` `metrics_server` | asking for the numbers, writing them, serving them over TCP |

mod api;
mod bridge;
mod ca;
mod call;
mod container;
mod dns;
mod dynamic;
mod events;
mod explain;
mod health;
mod links;
mod metrics;
mod metrics_server;
mod metrics_text;
mod network;
mod proxy;
mod requests;
mod respond;
mod rules;
mod ui;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use crate::daemon::control::ControlMessage;
use crate::daemon::{Snapshot, Subsystem};
use crate::event_loop::{Mailbox, SendError};
use crate::unix_http::{Caps, Limits, Server, SocketError, SocketFile, Tokens};

use api::Api;

pub use links::{HostApiCommand, HostApiConfig, HostApiLinks, Late};
pub use metrics::Part;
pub use metrics_server::{MetricsCommand, MetricsServer};

/// Mode of the operator socket: its owner and the group.
const SOCKET_MODE: u32 = 0o660;
/// The group whose members may operate the daemon, where it exists.
const SOCKET_GROUP: &str = "outcall";
/// Connections open at once: many more than operators and their scripts need, few enough for the descriptors.
const CONNECTIONS: usize = 1024;
/// Of these for one user, so that one user's stuck script leaves room for the others.
const CONNECTIONS_OF_ONE_USER: usize = 768;
/// How long requests under way may still take after `Stop`; less than the 5 s that the whole daemon has.
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// Pause before an acknowledgement that control's full mailbox refused is tried again.
const ACKNOWLEDGE_AGAIN: Duration = Duration::from_millis(50);
/// Events taken from one poll.
const EVENTS: usize = 256;

const TOKENS: Tokens = Tokens { listener: Token(0), first: 1 };

/// Why the operator API did not start.
#[derive(Debug)]
pub enum StartError {
    /// The socket.
    Socket(SocketError),
    /// The event loop would not take the socket.
    Register {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartError::Socket(error) => error.fmt(f),
            StartError::Register { path, source } => write!(f, "cannot serve {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::Socket(error) => std::error::Error::source(error),
            StartError::Register { source, .. } => Some(source),
        }
    }
}

/// The operator API, started and not yet run.
pub struct HostApi {
    poll: Poll,
    mailbox: Mailbox<HostApiCommand>,
    server: Server,
    api: Api,
    /// Removed from the disk when the thread ends.
    _file: SocketFile,
    /// A generation that control has yet to be told of.
    unacknowledged: Option<u64>,
}

impl HostApi {
    /// Makes the socket and listens; nothing is answered before [`HostApi::run`].
    ///
    /// `mailbox` is the one that `poll` is woken for, and `links.own` its address.
    ///
    /// # Errors
    /// [`StartError`]: also when another daemon answers on the socket.
    pub fn start(
        config: HostApiConfig,
        links: HostApiLinks,
        poll: Poll,
        mailbox: Mailbox<HostApiCommand>,
        snapshot: Arc<Snapshot>,
    ) -> Result<Self, StartError> {
        Self::start_on(None, config, links, poll, mailbox, snapshot)
    }

    /// The same, on a socket that the service manager made (`inherited`), if there is one: its mode and owner are the
    /// manager's.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_on(
        inherited: Option<UnixListener>,
        config: HostApiConfig,
        links: HostApiLinks,
        poll: Poll,
        mailbox: Mailbox<HostApiCommand>,
        snapshot: Arc<Snapshot>,
    ) -> Result<Self, StartError> {
        let (listener, file, warning) = match inherited {
            Some(listener) => SocketFile::adopt(&config.socket).map(|file| (listener, file, None)),
            None => SocketFile::listen(&config.socket, SOCKET_MODE, Some(SOCKET_GROUP)),
        }
        .map_err(StartError::Socket)?;
        if let Some(warning) = warning {
            tracing::warn!(target: "host_api", "{warning}");
            links.readiness.warn("host_api.group", Some(warning));
        }
        let caps = Caps { connections: CONNECTIONS, per_key: CONNECTIONS_OF_ONE_USER };
        let server = Server::new(listener, poll.registry(), TOKENS, Limits::default(), caps)
            .map_err(|source| StartError::Register { path: config.socket.clone(), source })?;
        tracing::info!(target: "host_api", socket = %config.socket.display(), "listening");
        let api = Api::new(config, links, snapshot);
        Ok(HostApi { poll, mailbox, server, api, _file: file, unacknowledged: None })
    }

    /// Serves until `Stop`.
    ///
    /// # Errors
    /// What epoll_wait(2) says, when it says something that cannot be waited out.
    pub fn run(mut self) -> std::io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut stop_at = None;
        loop {
            let now = Instant::now();
            if stop_at.is_some_and(|at| at <= now || self.server.open() == 0) {
                tracing::info!(target: "host_api", "stopped");
                return Ok(());
            }
            match self.poll.poll(&mut events, self.wait(now, stop_at)) {
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let now = Instant::now();
            for event in &events {
                if event.token() != crate::event_loop::MAILBOX {
                    self.server.event(event, &mut self.api, now);
                }
            }
            while let Some(command) = self.mailbox.take() {
                if self.obey(command, now) && stop_at.is_none() {
                    for ticket in self.api.readers.tickets() {
                        self.api.readers.remove(ticket);
                        self.server.finish(ticket, &mut self.api, now);
                    }
                    self.server.close(&mut self.api, now);
                    stop_at = Some(now + STOP_LIMIT);
                }
            }
            self.acknowledge();
            for (ticket, response) in self.api.overdue(now) {
                self.server.answer(ticket, &response, &mut self.api, now);
            }
            self.server.tick(&mut self.api, now);
        }
    }

    /// True for `Stop`.
    fn obey(&mut self, command: HostApiCommand, now: Instant) -> bool {
        match command {
            HostApiCommand::Snapshot(snapshot) => {
                self.unacknowledged = Some(snapshot.generation);
                self.api.set_snapshot(snapshot);
            }
            HostApiCommand::Answer(ticket, late) => {
                if self.api.settle(ticket) {
                    self.server.answer(ticket, &late.response(), &mut self.api, now);
                }
            }
            HostApiCommand::Events(batch) => {
                self.api.readers.begin(&batch);
                for ticket in self.api.readers.tickets() {
                    let mut next = 0;
                    while let Some(piece) = self.api.readers.piece(ticket, &batch, &mut next) {
                        let fed = self.server.feed(ticket, &piece.bytes, &mut self.api, now);
                        self.api.readers.fed(ticket, piece.events, fed);
                    }
                }
            }
            HostApiCommand::Part(ticket, part) => {
                if let Some(response) = metrics::took(&mut self.api, ticket, part) {
                    self.server.answer(ticket, &response, &mut self.api, now);
                }
            }
            HostApiCommand::Metrics(reply) => self.api.metrics(reply),
            HostApiCommand::Health { limit, reply } => health::begin(&mut self.api, limit, reply),
            HostApiCommand::Alive(ticket, subsystem) => {
                if let Some(response) = self.api.alive(ticket, subsystem) {
                    self.server.answer(ticket, &response, &mut self.api, now);
                }
            }
            HostApiCommand::Ping(reply) => reply.send(()),
            HostApiCommand::Stop => return true,
        }
        false
    }

    fn acknowledge(&mut self) {
        let Some(generation) = self.unacknowledged else {
            return;
        };
        let message = ControlMessage::Acknowledged { subsystem: Subsystem::HostApi, generation };
        match self.api.control().send(message) {
            // Control is gone only when the daemon ends.
            Ok(()) | Err(SendError::Closed(_)) => self.unacknowledged = None,
            Err(SendError::Full(_)) => {}
        }
    }

    fn wait(&self, now: Instant, stop_at: Option<Instant>) -> Option<Duration> {
        let until = |at: Instant| at.saturating_duration_since(now);
        let again = self.unacknowledged.map(|_| ACKNOWLEDGE_AGAIN);
        [self.server.wait(now), self.api.next_deadline().map(until), stop_at.map(until), again]
            .into_iter()
            .flatten()
            .min()
    }
}
