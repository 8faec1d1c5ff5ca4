//! The loop: poll, mailbox, accept, timers, snapshots, stop.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Poll};

use crate::api;
use crate::authority::LEAVES_MAX;
use crate::authority::Minted;
use crate::daemon::control::ControlMessage;
use crate::daemon::{Snapshot, Subsystem};
use crate::docker_manager::{DockerCommand, Peer};
use crate::event_loop::{MAILBOX, Mailbox};
use crate::events::Layer;

use super::admission::{Admission, Holder, REFUSALS_MAX};
use super::answer::Answer;
use super::deadlines::{Deadlines, Due};
use super::intercept::books::{self, Shared};
use super::intercept::{body, opening};
use super::leg::{Leg, READ_SIZE};
use super::listeners::Listeners;
use super::session::{Client, Core, Session, State, Turn};
use super::splice::Pipes;
use super::table::{SessionId, Side, Table, slot_of};
use super::{ProxyCommand, ProxyConfig, ProxyLinks, StartError, closing, descriptors, dial};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 256;

/// Connections accepted in one turn, before sessions get theirs.
const ACCEPTS_MAX: usize = 64;

/// How long accepting pauses when the kernel has no descriptor or memory for a connection: it would spin otherwise.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How soon an acknowledgement that control had no room for is sent again.
const ACKNOWLEDGE_RETRY: Duration = Duration::from_millis(10);

/// How often a stop looks for sessions that have become idle.
const STOP_TICK: Duration = Duration::from_millis(50);

/// How long a tunnel is silent before a stop takes it for idle.
const STOP_QUIET: Duration = Duration::from_millis(300);

/// The network whose gateway is shown as the proxy's URL.
const DEFAULT_NETWORK: &str = "outcall-default";

/// The proxy, started and not yet running.
pub struct Proxy {
    poll: Poll,
    mailbox: Mailbox<ProxyCommand>,
    core: Core,
    sessions: Table<Session>,
    admission: Admission,
    /// Sessions beyond the cap that are being told so.
    refusals: usize,
    deadlines: Deadlines,
    /// Sessions that have more to do than one turn allowed.
    unfinished: VecDeque<SessionId>,
    accept_after: Option<Instant>,
    stop_by: Option<Instant>,
    /// A generation that control has not taken the acknowledgement of: a reload waits for it.
    unacknowledged: Option<u64>,
    /// The warning in force that no container reaches the address given.
    unreachable: Option<String>,
}

impl Proxy {
    /// Makes room for descriptors and opens the listeners of `initial`. `poll` is the one that `mailbox` wakes.
    ///
    /// # Errors
    /// [`StartError`], for the first listener that could not be opened.
    pub fn start(
        config: ProxyConfig,
        links: ProxyLinks,
        poll: Poll,
        mailbox: Mailbox<ProxyCommand>,
        initial: Arc<Snapshot>,
    ) -> Result<Proxy, StartError> {
        descriptors::make_room(config.max_connections)?;
        let listen = |source| StartError::Listen { address: config.listen, source };
        let registry = poll.registry().try_clone().map_err(listen)?;
        let mut listeners = Listeners::new();
        if let Some(failure) = listeners.update(&config, &initial.directory, &registry).into_iter().next() {
            return Err(failure);
        }
        let admission = Admission::new(config.max_connections, config.max_per_container);
        let core = Core {
            config,
            links,
            snapshot: initial,
            registry,
            listeners,
            scratch: vec![0; READ_SIZE].into_boxed_slice(),
            pipes: Pipes::default(),
            now: Instant::now(),
            requests: 0,
            blocked: 0,
            stopping: false,
            intercept: Shared::default(),
        };
        core.links.readiness.set("proxy", Ok(()));
        let unacknowledged = Some(core.snapshot.generation);
        let mut proxy = Proxy {
            poll,
            mailbox,
            core,
            sessions: Table::new(),
            admission,
            refusals: 0,
            deadlines: Deadlines::default(),
            unfinished: VecDeque::new(),
            accept_after: None,
            stop_by: None,
            unacknowledged,
            unreachable: None,
        };
        proxy.report_reachability();
        Ok(proxy)
    }

    /// The addresses listened on.
    #[must_use]
    pub fn listen_addresses(&self) -> Vec<SocketAddr> {
        self.core.listeners.addresses()
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// When the kernel's poll fails.
    pub fn run(mut self) -> Result<(), String> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        loop {
            self.acknowledge();
            match self.poll.poll(&mut events, self.timeout()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("the proxy cannot wait for events: {error}")),
            }
            self.core.now = Instant::now();
            for event in &events {
                self.handle(event);
            }
            self.read_mailbox();
            for _ in 0..self.unfinished.len() {
                if let Some(id) = self.unfinished.pop_front() {
                    self.turn(id);
                }
            }
            self.expire();
            self.accept();
            if self.is_finished() {
                return Ok(());
            }
        }
    }

    /// How long nothing needs to be done: for ever when nobody is connected.
    fn timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let accept_now = self.accept_after.is_none() && self.core.listeners.any_ready();
        if !self.unfinished.is_empty() || accept_now {
            return Some(Duration::ZERO);
        }
        let tick = self.stop_by.map(|stop_by| stop_by.min(now + STOP_TICK));
        let retry = self.unacknowledged.map(|_| now + ACKNOWLEDGE_RETRY);
        let next = [self.deadlines.next(), self.accept_after, tick, retry].into_iter().flatten().min();
        // epoll counts in milliseconds; one more, so that it is over when it says so.
        next.map(|next| next.saturating_duration_since(now) + Duration::from_millis(1))
    }

    fn handle(&mut self, event: &mio::event::Event) {
        let token = event.token();
        if token == MAILBOX || self.core.listeners.note(token) {
            return;
        }
        let (slot, side) = slot_of(token);
        let Some(id) = self.sessions.id_at(slot) else { return };
        if let Some(session) = self.sessions.at(id) {
            session.note(side, event);
        }
        self.turn(id);
    }

    /// Gives a session its turn.
    fn turn(&mut self, id: SessionId) {
        self.with(id, Session::drive);
    }

    /// Works on a session and books the outcome.
    fn with(&mut self, id: SessionId, work: impl FnOnce(&mut Session, &mut Core) -> Turn) {
        let Some(mut session) = self.sessions.take(id) else { return };
        match work(&mut session, &mut self.core) {
            Turn::Ended => return self.release(session),
            Turn::Unfinished => self.unfinished.push_back(id),
            Turn::Waiting => {}
        }
        self.deadlines.arm(id, &mut session.due);
        self.sessions.restore(id, session);
    }

    fn release(&mut self, mut session: Session) {
        books::close(&session, &mut self.core);
        body::release(&mut session, &mut self.core);
        match &session.client.holder {
            Some(holder) => self.admission.leave(holder),
            None => self.refusals -= 1,
        }
        self.sessions.release(session.client.id);
        // Timers of ended sessions stay in the heap until their time; a flood of short connections must not pile up.
        if self.deadlines.len() > 4 * self.sessions.len() + 1024 {
            let sessions = &mut self.sessions;
            self.deadlines.retain(|id| sessions.at(id).is_some());
        }
    }

    fn expire(&mut self) {
        while let Some((entry, id)) = self.deadlines.pop(self.core.now) {
            let Some(session) = self.sessions.at(id) else { continue };
            if self.deadlines.is_due(entry, id, &mut session.due, self.core.now) {
                self.with(id, Session::expire);
            }
        }
    }

    fn accept(&mut self) {
        if self.accept_after.is_some_and(|after| after > self.core.now) {
            return;
        }
        self.accept_after = None;
        let mut accepted = Vec::new();
        for listener in self.core.listeners.iter_mut() {
            while listener.ready && accepted.len() < ACCEPTS_MAX {
                match listener.socket.accept() {
                    Ok(connection) => accepted.push(connection),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => listener.ready = false,
                    Err(error) if is_shortage(&error) => {
                        tracing::warn!(target: "proxy", %error, "cannot accept connections");
                        self.accept_after = Some(self.core.now + ACCEPT_PAUSE);
                        break;
                    }
                    // The connection died in the queue; the next one may be fine.
                    Err(error) => tracing::debug!(target: "proxy", %error, "cannot accept a connection"),
                }
            }
        }
        for (stream, address) in accepted {
            self.admit(stream, address.ip().to_canonical());
        }
    }

    /// Lets a connection in, holds it, or turns it away.
    fn admit(&mut self, stream: TcpStream, address: IpAddr) {
        let core = &mut self.core;
        let arrival = Instant::now();
        let peer = Peer::identify(&core.snapshot.directory, &core.config.extra_peers, address, arrival);
        let holder = Holder::of(&peer, address);
        let holder = self.admission.enter(&holder).then_some(holder);
        if holder.is_none() {
            if self.refusals >= REFUSALS_MAX {
                return;
            }
            self.refusals += 1;
        }
        let due = Due::new(arrival + core.config.times.head);
        let counted = holder.clone();
        let inserted = self.sessions.insert(|id| {
            let leg = Leg::accepted(stream, &core.registry, id.token(Side::Client))?;
            let flow = core.links.events.flows().begin();
            let client = Client { id, leg, address, arrival, peer, flow, holder, held: 0, layer: Layer::Proxy };
            let state = State::Head { begun: false };
            Ok::<_, io::Error>(Session { client, upstream: None, inside: None, state, due })
        });
        let id = match inserted {
            Ok(id) => id,
            Err(error) => {
                tracing::debug!(target: "proxy", %address, %error, "a connection broke at once");
                match &counted {
                    Some(holder) => self.admission.leave(holder),
                    None => self.refusals -= 1,
                }
                return;
            }
        };
        self.with(id, move |session, core| {
            if session.client.holder.is_none() {
                tracing::debug!(target: "proxy", %address, "over the connection cap");
                let next = closing::last_answer(session, core, &over_the_cap());
                return session.proceed(core, next);
            }
            welcome(session, core)
        });
    }

    fn read_mailbox(&mut self) {
        while let Some(command) = self.mailbox.take() {
            match command {
                ProxyCommand::Snapshot(snapshot) => self.take_snapshot(snapshot),
                ProxyCommand::Resolved { session, result } => self.with(session, |session, core| {
                    match std::mem::replace(&mut session.state, State::Failed) {
                        State::Resolving(request) => {
                            let next = dial::resolved(session, core, request, result);
                            session.proceed(core, next)
                        }
                        // An answer that came after its question was given up.
                        state => {
                            session.state = state;
                            Turn::Waiting
                        }
                    }
                }),
                ProxyCommand::Minted(minted) => self.take_leaf(minted),
                ProxyCommand::InterceptStatus(reply) => reply.send(self.intercept_status()),
                ProxyCommand::FlushLeaves(reply) => {
                    reply.send(self.core.config.interception.as_mut().map(|interception| interception.leaves.flush()));
                }
                ProxyCommand::Status(reply) => reply.send(self.status()),
                ProxyCommand::Ping(reply) => reply.send(()),
                ProxyCommand::Stop => self.stop(),
            }
        }
    }

    /// Goes on with the sessions that waited for a certificate.
    fn take_leaf(&mut self, minted: Minted) {
        let Some(interception) = &mut self.core.config.interception else { return };
        let (waiting, outcome) = interception.leaves.minted(minted, self.core.now);
        for id in waiting {
            let config = outcome.as_ref().ok().cloned();
            self.with(id, |session, core| match std::mem::replace(&mut session.state, State::Failed) {
                State::Minting(minting) => {
                    let next = opening::minted(session, core, *minting, config);
                    session.proceed(core, next)
                }
                // It gave up waiting.
                state => {
                    session.state = state;
                    Turn::Waiting
                }
            });
        }
    }

    fn take_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        let rules_changed = !Arc::ptr_eq(&self.core.snapshot.rules, &snapshot.rules);
        self.core.snapshot = snapshot;
        if !self.core.stopping {
            self.update_listeners();
        }
        for id in self.sessions.ids() {
            if matches!(self.sessions.at(id), Some(Session { state: State::Held, .. })) {
                self.recognise(id);
            } else {
                self.with(id, |session, core| session.review(core, rules_changed));
            }
        }
        self.unacknowledged = Some(self.core.snapshot.generation);
        self.report_reachability();
    }

    fn update_listeners(&mut self) {
        let core = &mut self.core;
        let failures = core.listeners.update(&core.config, &core.snapshot.directory, &core.registry);
        for failure in &failures {
            tracing::error!(target: "proxy", "{failure}");
        }
        let state = failures.first().map_or(Ok(()), |failure| Err(failure.to_string()));
        core.links.readiness.set("proxy", state);
    }

    /// Looks again who a held peer is.
    fn recognise(&mut self, id: SessionId) {
        let Some(session) = self.sessions.at(id) else { return };
        let (directory, client) = (&self.core.snapshot.directory, &mut session.client);
        let peer = Peer::identify(directory, &self.core.config.extra_peers, client.address, client.arrival);
        if matches!(peer, Peer::Unasked) {
            return;
        }
        if let Some(before) = client.holder.take() {
            self.admission.leave(&before);
        }
        let holder = Holder::of(&peer, client.address);
        let room = self.admission.enter(&holder);
        client.peer = peer;
        if room {
            client.holder = Some(holder);
        } else {
            self.refusals += 1;
        }
        self.with(id, |session, core| {
            if session.client.holder.is_none() {
                let next = closing::last_answer(session, core, &over_the_cap());
                return session.proceed(core, next);
            }
            session.due.set(core.now + core.config.times.head);
            session.state = State::Head { begun: false };
            welcome(session, core)
        });
    }

    fn acknowledge(&mut self) {
        let Some(generation) = self.unacknowledged else { return };
        let message = ControlMessage::Acknowledged { subsystem: Subsystem::Proxy, generation };
        if self.core.links.control.send(message).is_ok() {
            self.unacknowledged = None;
        }
    }

    /// Says it once when the address given is none that containers reach.
    fn report_reachability(&mut self) {
        let (listen, networks) = (self.core.config.listen, &self.core.snapshot.directory.networks);
        let reached =
            listen.ip().is_unspecified() || networks.iter().any(|network| IpAddr::V4(network.gateway) == listen.ip());
        let warning = (!reached).then(|| {
            format!(
                "--proxy-addr {listen} is the gateway of no managed network: no container reaches the proxy there; \
                 0.0.0.0:{} serves every managed gateway",
                listen.port()
            )
        });
        if warning == self.unreachable {
            return;
        }
        if let Some(warning) = &warning {
            tracing::warn!(target: "proxy", "{warning}");
        }
        self.core.links.readiness.warn("proxy-addr", warning.clone());
        self.unreachable = warning;
    }

    fn status(&self) -> api::ProxyStatus {
        let listen = self.core.config.listen;
        let networks = &self.core.snapshot.directory.networks;
        let network = networks.iter().find(|network| network.name == DEFAULT_NETWORK).or(networks.first());
        let host = match (listen.ip().is_unspecified(), network) {
            (true, network) => network.map(|network| IpAddr::V4(network.gateway)),
            (false, _) => Some(listen.ip()),
        };
        // No container can use the wildcard: without a network there is no URL.
        let proxy_url = host.map(|host| format!("http://{}", SocketAddr::new(host, listen.port())));
        api::ProxyStatus {
            running: !self.core.stopping,
            listen_address: listen.to_string(),
            proxy_url: proxy_url.unwrap_or_default(),
            active_connections: self.admission.count() as u64,
            total_requests: self.core.requests,
            total_blocked: self.core.blocked,
        }
    }

    fn intercept_status(&self) -> Option<api::InterceptStatus> {
        let interception = self.core.config.interception.as_ref()?;
        Some(api::InterceptStatus {
            ca_loaded: true,
            leaf_cache_size: interception.leaves.len() as u64,
            leaf_cache_max: LEAVES_MAX as u64,
            intercepted_total: interception.counters.intercepted,
            blocked_total: interception.counters.blocked,
        })
    }

    fn stop(&mut self) {
        if self.stop_by.is_none() {
            self.core.stopping = true;
            self.core.listeners.close();
            self.stop_by = Some(self.core.now + self.core.config.times.stop);
        }
    }

    /// While stopping: ends what is idle; true when nothing is left or the time is up.
    fn is_finished(&mut self) -> bool {
        let Some(stop_by) = self.stop_by else { return false };
        let now = self.core.now;
        let overdue = now >= stop_by;
        for id in self.sessions.ids() {
            self.with(id, |session, core| {
                let quiet = now.checked_sub(STOP_QUIET).unwrap_or(now);
                if overdue || session.is_idle(quiet) { session.end_tunnel(core, "stopped") } else { Turn::Waiting }
            });
        }
        self.sessions.len() == 0
    }
}

/// The first turn of a session that was let in.
fn welcome(session: &mut Session, core: &mut Core) -> Turn {
    match &session.client.peer {
        Peer::Unasked => {
            session.state = State::Held;
            session.due.set(core.now + core.config.times.identify);
            if let IpAddr::V4(address) = session.client.address
                && core.links.docker.send(DockerCommand::Identify(address)).is_err()
            {
                tracing::warn!(target: "proxy", %address, "Docker cannot be asked who this is");
            }
            Turn::Waiting
        }
        // The host itself may ask for the proxy's health, and for nothing else.
        Peer::Stranger if !session.client.address.is_loopback() => {
            let next = session.turn_away(core);
            session.proceed(core, next)
        }
        Peer::Stranger | Peer::Extra | Peer::Container(_) => session.drive(core),
    }
}

fn over_the_cap() -> Answer {
    Answer::failure(503, "too many connections")
}

/// No descriptor or memory for a connection: nothing that trying again at once would mend.
fn is_shortage(error: &io::Error) -> bool {
    let shortages = [nix::libc::EMFILE, nix::libc::ENFILE, nix::libc::ENOMEM, nix::libc::ENOBUFS];
    error.raw_os_error().is_some_and(|code| shortages.contains(&code))
}
