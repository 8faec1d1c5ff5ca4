//! `--metrics-addr`: the metrics over TCP, for a Prometheus that cannot use the operator socket. Read-only, one
//! request a connection, on a thread of its own that nobody waits for.
//!
//! Owns: the listener and its few connections. Does not own: the text, asked of the operator API's thread. Containers
//! do not reach it: the kernel's table drops what a bridge sends to the host, and peers in the subnet block are not
//! served besides.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::docker_manager::Ipv4Net;
use crate::event_loop::{Address, MAILBOX, Mailbox, Reply};
use crate::http1::{Parse, RequestHead};

use super::links::HostApiCommand;
use super::metrics::TEXT;

/// Connections at once: some Prometheus servers, and a look by hand.
const CONNECTIONS_MAX: usize = 16;
/// From connecting to the last byte taken; a scrape needs milliseconds.
const TIME: Duration = Duration::from_secs(10);
/// Bytes of a request: it has a head and nothing else.
const REQUEST_MAX: usize = 8 * 1024;
/// Pause when accept(2) finds no descriptor; the backlog gives no new event.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

const LISTENER: Token = Token(0);

/// What the metrics thread is told.
pub enum MetricsCommand {
    /// The text for the connection of this number.
    Text(u64, Vec<u8>),
    /// Finish.
    Stop,
}

enum State {
    Reading(Vec<u8>),
    /// The operator API's thread is asked.
    Asked,
    Writing(Vec<u8>, usize),
    /// All is written and the writing side shut: closing at once could reset the answer away.
    Lingering,
}

struct Connection {
    number: u64,
    stream: TcpStream,
    state: State,
    until: Instant,
}

/// The listener, bound and not yet served.
pub struct MetricsServer {
    poll: Poll,
    mailbox: Mailbox<MetricsCommand>,
    listener: TcpListener,
    own: Address<MetricsCommand>,
    host_api: Address<HostApiCommand>,
    managed: Ipv4Net,
    connections: Vec<Option<Connection>>,
    next: u64,
    accept_at: Option<Instant>,
}

impl MetricsServer {
    /// Binds `address`. `managed` is the block of the containers' addresses: never served, never bound.
    ///
    /// # Errors
    /// Why the address cannot be used.
    pub fn start(
        address: SocketAddr,
        managed: Ipv4Net,
        host_api: Address<HostApiCommand>,
        (poll, own, mailbox): (Poll, Address<MetricsCommand>, Mailbox<MetricsCommand>),
    ) -> Result<Self, Box<dyn std::error::Error>> {
        if is_managed(managed, address.ip()) {
            return Err(format!(
                "--metrics-addr {address} is an address of the containers' networks ({managed}); give one of another network"
            )
            .into());
        }
        let refused = |error: std::io::Error| format!("cannot listen on --metrics-addr {address}: {error}");
        let mut listener = TcpListener::bind(address).map_err(refused)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        tracing::info!(target: "host_api", %address, "metrics over TCP");
        let connections = (0..CONNECTIONS_MAX).map(|_| None).collect();
        Ok(MetricsServer { poll, mailbox, listener, own, host_api, managed, connections, next: 0, accept_at: None })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What getsockname(2) says.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// When the kernel's poll fails.
    pub fn run(mut self) -> Result<(), String> {
        let mut events = Events::with_capacity(CONNECTIONS_MAX + 2);
        loop {
            let now = Instant::now();
            let next = self.connections.iter().flatten().map(|connection| connection.until).chain(self.accept_at).min();
            let limit = next.map(|at| at.saturating_duration_since(now) + Duration::from_millis(1));
            match self.poll.poll(&mut events, limit) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("the metrics thread cannot wait for events: {error}")),
            }
            let now = Instant::now();
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(now),
                    MAILBOX => {}
                    Token(slot) => self.drive(slot - 1),
                }
            }
            if self.accept_at.is_some_and(|at| at <= now) {
                self.accept(now);
            }
            while let Some(command) = self.mailbox.take() {
                match command {
                    MetricsCommand::Text(number, text) => self.answer(number, text),
                    MetricsCommand::Stop => return Ok(()),
                }
            }
            for place in &mut self.connections {
                if place.as_ref().is_some_and(|connection| connection.until <= now) {
                    *place = None;
                }
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        self.accept_at = None;
        loop {
            let (mut stream, peer) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => continue,
                Err(_) => {
                    self.accept_at = Some(now + ACCEPT_PAUSE);
                    return;
                }
            };
            // One too many, or a container: closed without a word.
            let Some(slot) = self.connections.iter().position(Option::is_none) else { continue };
            if is_managed(self.managed, peer.ip()) {
                continue;
            }
            let interest = Interest::READABLE | Interest::WRITABLE;
            if self.poll.registry().register(&mut stream, Token(slot + 1), interest).is_err() {
                continue;
            }
            self.next += 1;
            let state = State::Reading(Vec::new());
            self.connections[slot] = Some(Connection { number: self.next, stream, state, until: now + TIME });
            self.drive(slot);
        }
    }

    /// Lets a connection do what it can.
    fn drive(&mut self, slot: usize) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        match connection.step() {
            Step::Wait => {}
            Step::Ended => self.connections[slot] = None,
            Step::Scrape => {
                let (own, number) = (self.own.clone(), connection.number);
                let reply = Reply::new(move |text| {
                    // Lost when this thread is behind: the connection ends by its deadline.
                    let _ = own.send(MetricsCommand::Text(number, text));
                });
                connection.state = State::Asked;
                if self.host_api.send(HostApiCommand::Metrics(reply)).is_err() {
                    connection.state = State::Writing(response(503, "busy, try again\n".into()), 0);
                    self.drive(slot);
                }
            }
        }
    }

    fn answer(&mut self, number: u64, text: Vec<u8>) {
        let waits = |place: &Option<Connection>| place.as_ref().is_some_and(|connection| connection.number == number);
        let Some(slot) = self.connections.iter().position(waits) else { return };
        if let Some(connection) = &mut self.connections[slot] {
            connection.state = State::Writing(response(200, text), 0);
        }
        self.drive(slot);
    }
}

enum Step {
    Wait,
    Scrape,
    Ended,
}

impl Connection {
    fn step(&mut self) -> Step {
        loop {
            match &mut self.state {
                State::Reading(input) => {
                    let mut piece = [0; 1024];
                    match self.stream.read(&mut piece) {
                        Ok(0) => return Step::Ended,
                        Ok(bytes) => input.extend_from_slice(&piece[..bytes]),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return Step::Wait,
                        Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                        Err(_) => return Step::Ended,
                    }
                    match judge(input) {
                        None if input.len() <= REQUEST_MAX => {}
                        None => self.state = State::Writing(response(431, "the request is too large\n".into()), 0),
                        Some(Ok(())) => return Step::Scrape,
                        Some(Err((status, text))) => {
                            self.state = State::Writing(response(status, text.as_bytes().to_vec()), 0);
                        }
                    }
                }
                State::Asked => return Step::Wait,
                State::Writing(output, written) => {
                    while *written < output.len() {
                        match self.stream.write(&output[*written..]) {
                            Ok(bytes) => *written += bytes,
                            Err(error) if error.kind() == ErrorKind::WouldBlock => return Step::Wait,
                            Err(error) if error.kind() == ErrorKind::Interrupted => {}
                            Err(_) => return Step::Ended,
                        }
                    }
                    if self.stream.shutdown(std::net::Shutdown::Write).is_err() {
                        return Step::Ended;
                    }
                    self.state = State::Lingering;
                }
                State::Lingering => {
                    let mut rest = [0; 1024];
                    match self.stream.read(&mut rest) {
                        Ok(1..) => {}
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return Step::Wait,
                        Ok(0) | Err(_) => return Step::Ended,
                    }
                }
            }
        }
    }
}

/// What a request deserves; `None` while its head is not whole.
fn judge(input: &[u8]) -> Option<Result<(), (u16, &'static str)>> {
    Some(match RequestHead::parse(input) {
        Parse::Incomplete => return None,
        Parse::Refused(refusal) => Err((refusal.status(), "not a request that is taken here\n")),
        Parse::Parsed { head, .. } if &*head.target != "/metrics" => Err((404, "only /metrics is here\n")),
        Parse::Parsed { head, .. } if &*head.method != "GET" => Err((405, "only GET is allowed here\n")),
        Parse::Parsed { .. } => Ok(()),
    })
}

fn response(status: u16, body: Vec<u8>) -> Vec<u8> {
    let reason = crate::unix_http::reason(status);
    let kind = if status == 200 { TEXT } else { "text/plain; charset=utf-8" };
    let allow = if status == 405 { "Allow: GET\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

fn is_managed(managed: Ipv4Net, address: IpAddr) -> bool {
    matches!(address.to_canonical(), IpAddr::V4(address) if managed.contains(address))
}
