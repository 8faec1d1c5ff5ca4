//! The agents' API: one thread that serves the agents' socket.
//!
//! Owns: who asks (by the kernel's word alone), session tokens, rate limits, permission checks. Does not own: rules
//! and containers (the snapshot's), rule requests ([`crate::state`]), HTTP ([`crate::unix_http`]). Nothing else is
//! served here: no rule text, no operator API, no other container's data.
//!
//! The loop never blocks: a check is a decision of some microseconds (CEL's caps are the rule engine's), rule requests
//! and questions to Docker are other threads' work and come back as messages, and connections take turns.
//!
//! | file | what it is |
//! |---|---|
//! | `identity` | from a socket to a container id |
//! | `identities` | from a container id to an endpoint of the directory |
//! | `sessions`, `window` | tokens and rate limits |
//! | `question` | a permission check as the rules see it |
//! | `desk`, `respond` | routes, and who waits for what; statuses |
//! | `socket` | where the socket lives |
//! | `links` | what the thread is given, and the commands it takes |

mod desk;
mod identities;
mod identity;
mod links;
mod question;
mod respond;
mod sessions;
mod socket;
mod window;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use crate::daemon::control::ControlMessage;
use crate::daemon::{Snapshot, Subsystem};
use crate::event_loop::{Mailbox, SendError};
use crate::unix_http::{Caps, Limits, Response, Server, SocketError, Ticket, Tokens};

use desk::Desk;
use identity::Identifier;

pub use links::{AgentApiCommand, AgentApiConfig, AgentApiLinks};
pub use socket::{AgentSocket, socket_directory, socket_path};

/// Connections open at once, of all containers.
const CONNECTIONS: usize = 4096;
/// Of these for one container: what it holds open takes nothing from the others.
const CONNECTIONS_OF_ONE_CONTAINER: usize = 512;
/// How long requests under way may still take after `Stop`; less than the 5 s that the whole daemon has.
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// Pause before an acknowledgement that control's full mailbox refused is tried again.
const ACKNOWLEDGE_AGAIN: Duration = Duration::from_millis(50);
/// Events taken from one poll.
const EVENTS: usize = 256;

const TOKENS: Tokens = Tokens { listener: Token(0), first: 1 };

/// Said at the start, and by `/ready`, where no agent can be told from another.
const PIDS_HIDDEN: &str = "agents are not served: outcalld runs in a pid namespace that does not show the containers' \
                           processes; run it on the host, or its container with --pid=host";

/// Why the agent API did not start.
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
    /// The daemon's own cgroup cannot be read, so nobody's can.
    Cgroup(std::io::Error),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartError::Socket(error) => error.fmt(f),
            StartError::Register { path, source } => write!(f, "cannot serve {}: {source}", path.display()),
            StartError::Cgroup(source) => write!(f, "cannot read /proc/self/cgroup: {source}; is /proc mounted?"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::Socket(error) => std::error::Error::source(error),
            StartError::Register { source, .. } | StartError::Cgroup(source) => Some(source),
        }
    }
}

/// The agent API, started and not yet run.
pub struct AgentApi {
    poll: Poll,
    mailbox: Mailbox<AgentApiCommand>,
    server: Server,
    desk: Desk,
    /// Removed from the disk when the thread ends.
    _socket: AgentSocket,
    /// A generation that control has yet to be told of.
    unacknowledged: Option<u64>,
}

impl AgentApi {
    /// Makes the socket and listens; nothing is answered before [`AgentApi::run`].
    ///
    /// `mailbox` is the one that `poll` is woken for, and `links.own` its address.
    ///
    /// # Errors
    /// [`StartError`]: also when another daemon answers on the socket.
    pub fn start(
        config: AgentApiConfig,
        links: AgentApiLinks,
        poll: Poll,
        mailbox: Mailbox<AgentApiCommand>,
        initial: Arc<Snapshot>,
    ) -> Result<Self, StartError> {
        Self::start_on(None, config, links, poll, mailbox, initial)
    }

    /// The same, on a socket that the service manager made (`inherited`), if there is one.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_on(
        inherited: Option<UnixListener>,
        config: AgentApiConfig,
        links: AgentApiLinks,
        poll: Poll,
        mailbox: Mailbox<AgentApiCommand>,
        initial: Arc<Snapshot>,
    ) -> Result<Self, StartError> {
        let identifier = Identifier::new().map_err(StartError::Cgroup)?;
        let (listener, socket) = match inherited {
            Some(listener) => (listener, AgentSocket::adopt(&config.socket).map_err(StartError::Socket)?),
            None => AgentSocket::listen(&config.socket).map_err(StartError::Socket)?,
        };
        let caps = Caps { connections: CONNECTIONS, per_key: CONNECTIONS_OF_ONE_CONTAINER };
        let server = Server::new(listener, poll.registry(), TOKENS, Limits::default(), caps)
            .map_err(|source| StartError::Register { path: config.socket.clone(), source })?;
        if identity::containers_are_visible(&config.docker_socket) == Some(false) {
            tracing::warn!(target: "agent_api", "{PIDS_HIDDEN}");
            links.readiness.warn("agent_api.pids", Some(PIDS_HIDDEN.to_owned()));
        }
        tracing::info!(target: "agent_api", socket = %config.socket.display(), "listening");
        let desk = Desk::new(config, links, identifier, initial);
        Ok(AgentApi { poll, mailbox, server, desk, _socket: socket, unacknowledged: None })
    }

    /// Serves until `Stop`.
    ///
    /// # Errors
    /// When the loop cannot wait for events.
    pub fn run(mut self) -> Result<(), String> {
        let mut events = Events::with_capacity(EVENTS);
        let mut stop_at = None;
        loop {
            let now = Instant::now();
            if self.server.open() == 0 {
                self.desk.nobody_is_connected();
            }
            if stop_at.is_some_and(|at| at <= now || self.server.open() == 0) {
                tracing::info!(target: "agent_api", "stopped");
                return Ok(());
            }
            match self.poll.poll(&mut events, self.wait(now, stop_at)) {
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => {
                    return Err(format!("cannot wait for events: {error}"));
                }
                _ => {}
            }
            let now = Instant::now();
            // Messages first: a request is judged by the newest snapshot that is here.
            while let Some(command) = self.mailbox.take() {
                if self.obey(command, now) && stop_at.is_none() {
                    self.server.close(&mut self.desk, now);
                    stop_at = Some(now + STOP_LIMIT);
                }
            }
            self.acknowledge();
            for event in &events {
                if event.token() != crate::event_loop::MAILBOX {
                    self.server.event(event, &mut self.desk, now);
                }
            }
            let overdue = self.desk.overdue(now);
            self.answer(overdue, now);
            self.server.tick(&mut self.desk, now);
        }
    }

    /// True for `Stop`.
    fn obey(&mut self, command: AgentApiCommand, now: Instant) -> bool {
        match command {
            AgentApiCommand::Snapshot(snapshot) => {
                self.unacknowledged = Some(snapshot.generation);
                let answers = self.desk.take(snapshot, now);
                self.answer(answers, now);
            }
            AgentApiCommand::Request { ticket, container_id, submitted, answer } => {
                let response = self.desk.request_answered(ticket, &container_id, submitted, answer);
                self.answer(response.into_iter().map(|response| (ticket, response)), now);
            }
            AgentApiCommand::Ping(reply) => reply.send(()),
            AgentApiCommand::Stop => return true,
        }
        false
    }

    fn answer(&mut self, answers: impl IntoIterator<Item = (Ticket, Response)>, now: Instant) {
        for (ticket, response) in answers {
            self.server.answer(ticket, &response, &mut self.desk, now);
        }
    }

    fn acknowledge(&mut self) {
        let Some(generation) = self.unacknowledged else {
            return;
        };
        let message = ControlMessage::Acknowledged { subsystem: Subsystem::AgentApi, generation };
        match self.desk.links.control.send(message) {
            // Control is gone only when the daemon ends.
            Ok(()) | Err(SendError::Closed(_)) => self.unacknowledged = None,
            Err(SendError::Full(_)) => {}
        }
    }

    fn wait(&self, now: Instant, stop_at: Option<Instant>) -> Option<Duration> {
        let until = |at: Instant| at.saturating_duration_since(now);
        let again = self.unacknowledged.map(|_| ACKNOWLEDGE_AGAIN);
        [self.server.wait(now), self.desk.next_deadline().map(until), stop_at.map(until), again]
            .into_iter()
            .flatten()
            .min()
    }
}

#[cfg(test)]
mod tests;
