//! The DNS thread: one mio loop around [`Core`], its sockets and its mailbox.
//!
//! Owns: every descriptor and the clock of the room. Does not own: any decision. With nothing in flight it sleeps
//! without a timeout.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use crate::bridge::BridgeCommand;
use crate::daemon::{Snapshot, Subsystem, control::ControlMessage};
use crate::docker_manager::DockerCommand;
use crate::event_loop::{MAILBOX, Mailbox, Reply};

use super::asking::Asking;
use super::config::{DnsConfig, DnsLinks, StartError, check_upstreams, reachability};
use super::core::{Action, Client, Core, LOOKUPS_CLIENTS, LOOKUPS_PROXY};
use super::datagrams::{self, Batch, Outgoing};
use super::listeners::{self, Pair};
use super::message::Transport;
use super::streams::{Reading, Session};
use super::{DnsCommand, status};

/// Connections of clients in all.
const SESSIONS_MAX: usize = 512;
/// Connections of one peer: a resolver library opens one or two.
const SESSIONS_PER_PEER: usize = 8;
/// Receives in a row on one socket before others have their turn.
const ROUNDS: usize = 4;
/// Connections accepted in a row before others have their turn: half of what waits in a full backlog.
const ACCEPTS: usize = 64;
/// How long accepting pauses when the kernel has no descriptor or memory for a connection: it would spin otherwise.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long in-flight questions get when told to stop.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// How soon a gateway that could not be bound is tried again.
const REBIND: Duration = Duration::from_secs(2);
/// How soon an acknowledgement is sent again that control had no room for.
const ACKNOWLEDGE_AGAIN: Duration = Duration::from_millis(50);
/// Events of one poll.
const EVENTS: usize = 256;
/// The buffer of everything that is read from streams and upstreams, in bytes.
const BUFFER: usize = 16 << 10;

/// What a token is for is in its low bits; the rest of it is never used twice, so that a late event of a closed
/// socket finds nothing.
const KINDS: usize = 4;
const UDP: usize = 0;
const TCP: usize = 1;
const SESSION: usize = 2;
const ASKING: usize = 3;

/// Descriptors that this thread may have open at once, beside two for each managed network: what the limit of the
/// process must fit.
pub const DESCRIPTORS_MAX: usize = SESSIONS_MAX + LOOKUPS_CLIENTS + LOOKUPS_PROXY + 8;

struct Served {
    pair: Pair,
    udp: usize,
    tcp: usize,
}

/// The DNS filter, bound and ready to [`DnsServer::run`].
pub struct DnsServer {
    poll: Poll,
    mailbox: Mailbox<DnsCommand>,
    config: DnsConfig,
    links: DnsLinks,
    core: Core,
    served: Vec<Served>,
    sessions: HashMap<usize, Session>,
    asking: HashMap<usize, (u64, Asking)>,
    asking_of: HashMap<u64, usize>,
    next_token: usize,
    batch: Batch,
    /// Answers that leave together, by the UDP socket with this token.
    outgoing: (usize, Vec<Outgoing>),
    buffer: Box<[u8]>,
    /// Sockets that were left unread so that others had their turn.
    unread: Vec<usize>,
    /// When accepting goes on after a failure: no event tells of what waits already.
    accept_at: Option<Instant>,
    /// Whether the last accept failed; that is said once.
    accept_failing: bool,
    unacknowledged: Option<u64>,
    rebind_at: Option<Instant>,
    /// What was last said about addresses that cannot be bound or reached; said again only when it changes.
    unbound: Option<String>,
    unreachable: Option<String>,
    stop_by: Option<Instant>,
}

impl DnsServer {
    /// Binds what `initial` asks for. `poll` is the one that `mailbox` wakes.
    ///
    /// # Errors
    /// [`StartError`], with nothing left open.
    pub fn start(
        config: DnsConfig,
        links: DnsLinks,
        poll: Poll,
        mailbox: Mailbox<DnsCommand>,
        initial: Arc<Snapshot>,
    ) -> Result<Self, StartError> {
        check_upstreams(&config, &initial.directory)?;
        let wanted = listeners::wanted(config.listen, !config.extra_peers.is_empty(), &initial.directory);
        let core = Core::new(initial, config.extra_peers.clone(), config.upstreams.clone(), links.events.clone());
        let mut server = DnsServer {
            poll,
            mailbox,
            config,
            links,
            core,
            served: Vec::new(),
            sessions: HashMap::new(),
            asking: HashMap::new(),
            asking_of: HashMap::new(),
            next_token: 0,
            batch: Batch::new(),
            outgoing: (0, Vec::new()),
            buffer: vec![0; BUFFER].into_boxed_slice(),
            unread: Vec::new(),
            accept_at: None,
            accept_failing: false,
            unacknowledged: None,
            rebind_at: None,
            unbound: None,
            unreachable: None,
            stop_by: None,
        };
        for address in wanted {
            let pair = Pair::bind(address, server.config.port).map_err(StartError::Bind)?;
            server.serve(pair).map_err(StartError::Poll)?;
        }
        server.links.readiness.set("dns", Ok(()));
        server.report_reachability();
        Ok(server)
    }

    /// The addresses that are served now, for UDP and TCP alike.
    #[must_use]
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.served.iter().map(|served| served.pair.address).collect()
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// What made the loop impossible.
    pub fn run(mut self) -> Result<(), String> {
        let mut events = Events::with_capacity(EVENTS);
        self.unacknowledged = Some(self.core.snapshot().generation);
        self.acknowledge();
        loop {
            let timeout = self.timeout(Instant::now());
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("epoll_wait of the DNS loop: {error}")),
            }
            let now = Instant::now();
            for token in std::mem::take(&mut self.unread) {
                self.ready(token, now);
            }
            for event in &events {
                match event.token() {
                    MAILBOX => self.take_mail(now),
                    Token(token) => self.ready(token, now),
                }
                self.perform(now);
            }
            self.due(now);
            self.perform(now);
            if self.stop_by.is_some_and(|by| now >= by || self.core.is_idle()) {
                let open = if self.core.is_idle() { "nothing" } else { "questions" };
                tracing::info!(target: "dns", left_open = open, "DNS filter stopped");
                return Ok(());
            }
        }
    }

    fn timeout(&self, now: Instant) -> Option<Duration> {
        if !self.unread.is_empty() {
            return Some(Duration::ZERO);
        }
        let sessions = self.sessions.values().map(|session| session.deadline).min();
        let acknowledge = self.unacknowledged.map(|_| now + ACKNOWLEDGE_AGAIN);
        let due = [self.core.deadline(), sessions, acknowledge, self.accept_at, self.rebind_at, self.stop_by];
        due.into_iter().flatten().min().map(|at| at.saturating_duration_since(now))
    }

    fn due(&mut self, now: Instant) {
        self.core.tick(now);
        let late: Vec<usize> =
            self.sessions.iter().filter(|(_, session)| session.deadline <= now).map(|(token, _)| *token).collect();
        for token in late {
            self.close_session(token);
        }
        if self.unacknowledged.is_some() {
            self.acknowledge();
        }
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept_at = None;
            let listeners: Vec<usize> = self.served.iter().map(|served| served.tcp).collect();
            for token in listeners {
                self.accept(token, now);
            }
        }
        if self.rebind_at.is_some_and(|at| at <= now) {
            self.serve_wanted(now);
        }
    }

    fn take_mail(&mut self, now: Instant) {
        while let Some(command) = self.mailbox.take() {
            match command {
                DnsCommand::Snapshot(snapshot) => {
                    let generation = snapshot.generation;
                    self.core.adopt(snapshot, now);
                    self.serve_wanted(now);
                    self.report_reachability();
                    self.unacknowledged = Some(generation);
                    self.acknowledge();
                }
                DnsCommand::Resolve(name, reply) if self.stop_by.is_none() => self.core.resolve(name, reply, now),
                DnsCommand::Resolve(_, reply) => reply.send(Err(super::ResolveError::Failed)),
                DnsCommand::Granted { ticket, outcome } => {
                    if let Err(reason) = &outcome {
                        tracing::warn!(target: "dns", %reason, "the bridge opened no direct flow; answered SERVFAIL");
                    }
                    self.core.granted(ticket, outcome.is_ok());
                }
                DnsCommand::Status(reply) => reply.send(status::status(&self.config, &self.core)),
                DnsCommand::Cache(reply) => reply.send(status::cache(&self.core.cache, now)),
                DnsCommand::Metrics(reply) => reply.send(super::DnsMetrics {
                    status: status::status(&self.config, &self.core),
                    cache: status::cache_stats(&self.core.cache),
                }),
                DnsCommand::Flush(reply) => reply.send(self.core.cache.flush()),
                DnsCommand::Ping(reply) => reply.send(()),
                DnsCommand::Stop => {
                    self.stop_by = Some(now + STOP_WITHIN);
                    self.links.readiness.set("dns", Err("stopping".to_owned()));
                    self.unserve(|_| false);
                }
            }
            self.perform(now);
        }
    }

    fn ready(&mut self, token: usize, now: Instant) {
        match token % KINDS {
            UDP => self.receive(token, now),
            TCP => self.accept(token, now),
            SESSION => self.read_session(token, now),
            _ => self.read_upstream(token, now),
        }
    }

    fn receive(&mut self, token: usize, now: Instant) {
        for _ in 0..ROUNDS {
            let Some(served) = self.served.iter().find(|served| served.udp == token) else { return };
            let count = match self.batch.receive(served.pair.udp.as_fd()) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(target: "dns", address = %served.pair.address, %error, "cannot receive");
                    return;
                }
            };
            for index in 0..count {
                let Some(datagram) = self.batch.datagram(index) else { continue };
                let client =
                    Client { peer: datagram.from, transport: Transport::Udp, socket: token, local: datagram.local };
                self.core.received(client, datagram.bytes, now);
            }
            self.perform(now);
            if count < datagrams::COUNT {
                return;
            }
        }
        self.again(token);
    }

    /// Gives a socket another turn; one, even where an event asks for it too.
    fn again(&mut self, token: usize) {
        if !self.unread.contains(&token) {
            self.unread.push(token);
        }
    }

    fn accept(&mut self, token: usize, now: Instant) {
        if self.stop_by.is_some() || self.accept_at.is_some() {
            return;
        }
        for _ in 0..ACCEPTS {
            let Some(served) = self.served.iter().find(|served| served.tcp == token) else { return };
            let (mut stream, peer) = match served.pair.tcp.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {
                    continue;
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.accept_failing, true) {
                        tracing::warn!(target: "dns", address = %served.pair.address, %error, "cannot accept");
                    }
                    self.accept_at = Some(now + ACCEPT_PAUSE);
                    return;
                }
            };
            self.accept_failing = false;
            let of_peer = self.sessions.values().filter(|session| session.peer.ip() == peer.ip()).count();
            if self.sessions.len() >= SESSIONS_MAX || of_peer >= SESSIONS_PER_PEER {
                tracing::debug!(target: "dns", %peer, "connection over the limit, closed");
                continue;
            }
            // Answers are whole messages: without this the second of a pipeline waits 40 ms for an ACK.
            let _ = stream.set_nodelay(true);
            let token = self.token(SESSION);
            let interest = Interest::READABLE | Interest::WRITABLE;
            if self.poll.registry().register(&mut stream, Token(token), interest).is_ok() {
                self.sessions.insert(token, Session::new(stream, peer, now));
            }
        }
        self.again(token);
    }

    fn read_session(&mut self, token: usize, now: Instant) {
        let Some(session) = self.sessions.get_mut(&token) else { return };
        if session.flush(now).is_err() {
            return self.close_session(token);
        }
        let client = Client { peer: session.peer, transport: Transport::Tcp, socket: token, local: None };
        let core = &mut self.core;
        match session.read(&mut self.buffer, now, |bytes| core.received(client, bytes, now)) {
            Reading::Drained => {}
            Reading::Again => self.again(token),
            Reading::Closed => self.close_session(token),
        }
    }

    fn close_session(&mut self, token: usize) {
        if let Some(mut session) = self.sessions.remove(&token) {
            // Dropping the stream ends the registration too.
            let _ = self.poll.registry().deregister(&mut session.stream);
        }
    }

    fn read_upstream(&mut self, token: usize, now: Instant) {
        // Each message may replace the socket, and with it the token.
        while let Some((lookup, asking)) = self.asking.get_mut(&token) {
            let lookup = *lookup;
            match asking.next(&mut self.buffer) {
                Ok(None) => return,
                Ok(Some(message)) => self.core.answered(lookup, &message, now),
                Err(error) => {
                    tracing::debug!(target: "dns", %error, "upstream unreachable");
                    self.core.broken(lookup, now);
                }
            }
            self.perform(now);
        }
    }

    fn perform(&mut self, now: Instant) {
        loop {
            let actions = self.core.actions();
            if actions.is_empty() {
                return self.send_outgoing();
            }
            for action in actions {
                match action {
                    Action::Reply { client, bytes } => self.reply(client, bytes, now),
                    Action::Close { lookup } => self.stop_asking(lookup),
                    Action::Ask { lookup, upstream, transport, message } => {
                        self.stop_asking(lookup);
                        let token = self.token(ASKING);
                        match Asking::open(upstream, transport, &message, self.poll.registry(), Token(token)) {
                            Ok(asking) => {
                                self.asking.insert(token, (lookup, asking));
                                self.asking_of.insert(lookup, token);
                            }
                            Err(error) => {
                                tracing::debug!(target: "dns", %upstream, %error, "cannot ask upstream");
                                self.core.broken(lookup, now);
                            }
                        }
                    }
                    Action::Identify(address) => {
                        if self.links.docker.send(DockerCommand::Identify(address)).is_err() {
                            tracing::warn!(target: "dns", %address, "cannot have an unknown peer identified");
                        }
                    }
                    Action::Grant { ticket, grant } => {
                        let own = self.links.own.clone();
                        let reply = Reply::new(move |outcome| {
                            // A full mailbox loses the answer; the question then ends by its own deadline.
                            let _ = own.send(DnsCommand::Granted { ticket, outcome });
                        });
                        if self.links.bridge.send(BridgeCommand::Grant(grant, reply)).is_err() {
                            tracing::warn!(target: "dns", "the bridge takes no grants; answered SERVFAIL");
                            self.core.granted(ticket, false);
                        }
                    }
                }
            }
        }
    }

    fn reply(&mut self, client: Client, bytes: Vec<u8>, now: Instant) {
        match client.transport {
            Transport::Udp => {
                if self.outgoing.0 != client.socket {
                    self.send_outgoing();
                    self.outgoing.0 = client.socket;
                }
                self.outgoing.1.push(Outgoing { bytes, to: client.peer, local: client.local });
            }
            Transport::Tcp => {
                let Some(session) = self.sessions.get_mut(&client.socket) else { return };
                match session.answer(&bytes, now) {
                    Ok(true) => self.again(client.socket),
                    Ok(false) => {}
                    Err(_) => self.close_session(client.socket),
                }
            }
        }
    }

    fn send_outgoing(&mut self) {
        let (socket, answers) = &mut self.outgoing;
        if answers.is_empty() {
            return;
        }
        if let Some(served) = self.served.iter().find(|served| served.udp == *socket) {
            datagrams::send(served.pair.udp.as_fd(), answers, |answer, error| {
                // As with any datagram that is lost, the client asks again.
                tracing::debug!(target: "dns", peer = %answer.to, %error, "cannot answer");
            });
        }
        answers.clear();
    }

    fn stop_asking(&mut self, lookup: u64) {
        if let Some(token) = self.asking_of.remove(&lookup) {
            self.asking.remove(&token);
        }
    }

    /// Makes the sockets agree with the snapshot: gateways come and go with their networks.
    fn serve_wanted(&mut self, now: Instant) {
        if self.stop_by.is_some() {
            return;
        }
        let directory = Arc::clone(&self.core.snapshot().directory);
        let wanted = listeners::wanted(self.config.listen, !self.config.extra_peers.is_empty(), &directory);
        self.unserve(|address| wanted.contains(&address.ip()));
        let mut failed = Vec::new();
        for address in wanted {
            if self.served.iter().any(|served| served.pair.address.ip() == address) {
                continue;
            }
            let bound = Pair::bind(address, self.config.port).map_err(|error| error.to_string());
            if let Err(error) = bound.and_then(|pair| self.serve(pair).map_err(|error| error.to_string())) {
                failed.push(error);
            }
        }
        let failed = (!failed.is_empty()).then(|| failed.join("; "));
        self.rebind_at = failed.as_ref().map(|_| now + REBIND);
        if failed != self.unbound {
            if let Some(failed) = &failed {
                tracing::error!(target: "dns", "a network has no DNS: {failed}");
            }
            self.links.readiness.set("dns", failed.clone().map_or(Ok(()), Err));
            self.unbound = failed;
        }
    }

    fn serve(&mut self, mut pair: Pair) -> io::Result<()> {
        let (udp, tcp) = (self.token(UDP), self.token(TCP));
        self.poll.registry().register(&mut pair.udp, Token(udp), Interest::READABLE)?;
        self.poll.registry().register(&mut pair.tcp, Token(tcp), Interest::READABLE)?;
        tracing::info!(target: "dns", address = %pair.address, "serving DNS");
        self.served.push(Served { pair, udp, tcp });
        Ok(())
    }

    fn unserve(&mut self, keep: impl Fn(SocketAddr) -> bool) {
        let stopping = self.stop_by.is_some();
        for served in &mut self.served {
            if stopping {
                // Nothing more is taken in; the UDP socket stays open, since answers in flight leave by it.
                let _ = self.poll.registry().deregister(&mut served.pair.udp);
                let _ = self.poll.registry().deregister(&mut served.pair.tcp);
            }
        }
        if !stopping {
            self.served.retain(|served| keep(served.pair.address));
        }
    }

    fn report_reachability(&mut self) {
        let warning = reachability(&self.config, &self.core.snapshot().directory);
        if warning == self.unreachable {
            return;
        }
        if let Some(warning) = &warning {
            tracing::warn!(target: "dns", "{warning}");
        }
        self.links.readiness.warn("dns-listen", warning.clone());
        self.unreachable = warning;
    }

    fn acknowledge(&mut self) {
        let Some(generation) = self.unacknowledged else { return };
        let message = ControlMessage::Acknowledged { subsystem: Subsystem::Dns, generation };
        if self.links.control.send(message).is_ok() {
            self.unacknowledged = None;
        }
    }

    fn token(&mut self, kind: usize) -> usize {
        self.next_token += KINDS;
        self.next_token + kind
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
