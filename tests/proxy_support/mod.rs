//! A running proxy on the loopback, with a played DNS thread, played Docker and origins that do as they are told.

// Each test file uses a part of this.
#![allow(dead_code)]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outcall::api::ProxyStatus;
use outcall::authority::Interception;
use outcall::daemon::{Readiness, Snapshot, control::ControlMessage};
use outcall::dns::{DnsCommand, ResolveError};
use outcall::docker_manager::{Directory, DockerCommand, Endpoint, ManagedNetwork};
use outcall::event_loop::{Address, Mailbox, mailbox, reply_channel};
use outcall::events::{Event, EventSink, Verdict};
use outcall::proxy::{Proxy, ProxyCommand, ProxyConfig, ProxyLinks, Times};
use outcall::rule_engine::{Guard, LoadOptions, RuleSet, Source, load_sources};

/// Nothing on a loopback takes this long.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A rule set of `ID ACTION CONDITION` lines; `allow` may reach private addresses, `allow_public` may not, and
/// `direct` is `direct_ip` on port 9 only.
pub fn rules(lines: &[&str]) -> Arc<RuleSet> {
    let mut text = "version: \"1\"\nrules:\n".to_owned();
    for line in lines {
        let mut parts = line.splitn(3, ' ');
        let (id, action) = (parts.next().unwrap(), parts.next().unwrap());
        let condition = serde_json::Value::from(parts.next().unwrap());
        let (action, egress) = match action {
            "allow" => ("allow", "    egress:\n      allow_private_ips: true\n"),
            "allow_public" => ("allow", ""),
            "intercept" => ("allow", "    egress:\n      mode: intercept\n      allow_private_ips: true\n"),
            "intercept_public" => ("allow", "    egress:\n      mode: intercept\n"),
            "intercept_body" => {
                ("allow", "    egress:\n      mode: intercept\n      match_body: true\n      allow_private_ips: true\n")
            }
            "direct" => {
                ("allow", "    egress:\n      mode: direct_ip\n      ports: [9]\n      allow_private_ips: true\n")
            }
            other => (other, ""),
        };
        text += &format!("  - id: {id}\n    action: {action}\n    condition: {condition}\n{egress}");
    }
    if lines.is_empty() {
        return Arc::new(RuleSet::block_all());
    }
    let options = LoadOptions { proxy: true, interception: true, guard: Guard::InProcess };
    let sources = [Source { name: "t.yaml".to_owned(), text }];
    load_sources(&sources, &options, None).unwrap_or_else(|errors| panic!("{errors}")).set
}

/// Waits until `condition` holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How the proxy is set up.
pub struct Setup {
    pub rules: Arc<RuleSet>,
    /// Names and their addresses; every other name does not exist.
    pub names: Vec<(&'static str, Vec<IpAddr>)>,
    pub directory: Directory,
    pub extra_peers: bool,
    pub max_connections: usize,
    pub max_per_container: usize,
    pub times: Times,
    /// Makes what interception needs, given the proxy's mailbox.
    pub interception: Option<Box<dyn FnOnce(Address<ProxyCommand>) -> Interception>>,
}

impl Setup {
    pub fn new(lines: &[&str]) -> Self {
        let loopback = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        Setup {
            rules: rules(lines),
            names: vec![
                ("ok.example", loopback.clone()),
                ("other.example", loopback.clone()),
                ("bad.example", loopback),
            ],
            directory: Directory::empty(Instant::now()),
            extra_peers: true,
            max_connections: 64,
            max_per_container: 64,
            times: Times::default(),
            interception: None,
        }
    }

    pub fn start(self) -> Running {
        Running::start(self)
    }
}

/// A running proxy.
pub struct Running {
    pub address: SocketAddr,
    pub commands: Address<ProxyCommand>,
    pub lookups: Arc<Mutex<Vec<String>>>,
    pub identified: Arc<AtomicUsize>,
    events: crossbeam_channel::Receiver<Event>,
    acknowledged: Arc<AtomicU64>,
    generation: AtomicU64,
    current: Mutex<Snapshot>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    proxy: Option<JoinHandle<Result<(), String>>>,
}

fn thread_name(address: SocketAddr) -> String {
    format!("proxy-{}", address.port())
}

/// A played subsystem: a poll, its mailbox and what it does with a message.
fn play<T: Send + 'static>(
    stop: &Arc<AtomicBool>,
    mut act: impl FnMut(T) + Send + 'static,
) -> (Address<T>, JoinHandle<()>) {
    let mut poll = mio::Poll::new().unwrap();
    let (address, mail): (Address<T>, Mailbox<T>) = mailbox(&poll, 256).unwrap();
    let stop = Arc::clone(stop);
    let thread = std::thread::spawn(move || {
        let mut events = mio::Events::with_capacity(8);
        while !stop.load(Ordering::Relaxed) {
            poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
            while let Some(message) = mail.take() {
                act(message);
            }
        }
    });
    (address, thread)
}

impl Running {
    fn start(setup: Setup) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let heard = Arc::clone(&acknowledged);
        let (control, control_thread) = play(&stop, move |message| {
            if let ControlMessage::Acknowledged { generation, .. } = message {
                heard.store(generation, Ordering::SeqCst);
            }
        });
        let identified = Arc::new(AtomicUsize::new(0));
        let asked = Arc::clone(&identified);
        let (docker, docker_thread) = play(&stop, move |message| {
            if let DockerCommand::Identify(_) = message {
                asked.fetch_add(1, Ordering::SeqCst);
            }
        });
        let lookups = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&lookups);
        let names: HashMap<&str, Vec<IpAddr>> = setup.names.into_iter().collect();
        let (dns, dns_thread) = play(&stop, move |message| {
            if let DnsCommand::Resolve(name, reply) = message {
                log.lock().unwrap().push(name.as_str().to_owned());
                reply.send(names.get(name.as_str()).cloned().ok_or(ResolveError::NoSuchName));
            }
        });
        let (sender, events) = crossbeam_channel::bounded(4096);
        let poll = mio::Poll::new().unwrap();
        let (own, mail) = mailbox(&poll, 256).unwrap();
        let snapshot = Snapshot { generation: 1, rules: setup.rules, directory: Arc::new(setup.directory) };
        let config = ProxyConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            extra_peers: if setup.extra_peers { vec!["127.0.0.0/24".parse().unwrap()] } else { Vec::new() },
            max_connections: setup.max_connections,
            max_per_container: setup.max_per_container,
            times: setup.times,
            interception: setup.interception.map(|make| make(own.clone())),
        };
        let links = ProxyLinks {
            control,
            docker,
            dns,
            events: EventSink::new(sender),
            readiness: Readiness::default(),
            own: own.clone(),
        };
        let proxy = Proxy::start(config, links, poll, mail, Arc::new(snapshot.clone())).unwrap();
        let address = proxy.listen_addresses()[0];
        let proxy = std::thread::Builder::new().name(thread_name(address)).spawn(move || proxy.run()).unwrap();
        Running {
            address,
            commands: own,
            lookups,
            identified,
            events,
            acknowledged,
            generation: AtomicU64::new(1),
            current: Mutex::new(snapshot),
            stop,
            threads: vec![control_thread, docker_thread, dns_thread],
            proxy: Some(proxy),
        }
    }

    /// Publishes what `change` makes of the snapshot, and waits until the proxy works by it.
    pub fn publish(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut current = self.current.lock().unwrap();
        change(&mut current);
        let generation = self.generation.fetch_add(1, Ordering::SeqCst) + 1;
        current.generation = generation;
        assert!(self.commands.send(ProxyCommand::Snapshot(Arc::new(current.clone()))).is_ok());
        until("the snapshot is acknowledged", || self.acknowledged.load(Ordering::SeqCst) >= generation);
    }

    pub fn reload(&self, lines: &[&str]) {
        self.publish(|snapshot| snapshot.rules = rules(lines));
    }

    pub fn client(&self) -> Wire {
        Wire::new(TcpStream::connect(self.address).unwrap())
    }

    /// A client with another loopback address.
    pub fn client_from(&self, source: &str) -> Wire {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
        use std::os::fd::AsRawFd;
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source.parse().unwrap(), 0))).unwrap();
        connect(fd.as_raw_fd(), &SockaddrStorage::from(self.address)).unwrap();
        Wire::new(TcpStream::from(fd))
    }

    pub fn status(&self) -> ProxyStatus {
        let (reply, answer) = reply_channel();
        assert!(self.commands.send(ProxyCommand::Status(reply)).is_ok());
        answer.recv_timeout(PATIENCE).unwrap()
    }

    /// The next event.
    pub fn event(&self) -> Event {
        self.events.recv_timeout(PATIENCE).expect("an event")
    }

    /// The next event of this verdict, in short: `reason host rule`.
    pub fn event_of(&self, verdict: Verdict) -> String {
        loop {
            let event = self.event();
            if event.verdict == verdict {
                let rule = event.rule.map_or("-".into(), |rule| rule.id.clone());
                return format!("{} {} {rule}", event.reason, event.host.as_deref().unwrap_or("-"));
            }
        }
    }

    /// How often the proxy's thread has gone to sleep so far.
    pub fn wake_ups(&self) -> u64 {
        for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            if read("comm").trim() == thread_name(self.address) {
                let status = read("status");
                let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
                return line.split_whitespace().nth(1).unwrap().parse().unwrap();
            }
        }
        panic!("no thread of the proxy");
    }

    pub fn lookups(&self) -> Vec<String> {
        self.lookups.lock().unwrap().clone()
    }

    /// Stops it; how long that took.
    pub fn stop(&mut self) -> Duration {
        let begun = Instant::now();
        let _ = self.commands.send(ProxyCommand::Stop);
        if let Some(proxy) = self.proxy.take() {
            assert_eq!(proxy.join().expect("the proxy did not panic"), Ok(()));
        }
        begun.elapsed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.commands.send(ProxyCommand::Stop);
        if let Some(proxy) = self.proxy.take() {
            let outcome = proxy.join();
            assert!(std::thread::panicking() || outcome.is_ok(), "the proxy panicked");
        }
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A directory with one managed network, 127.1.0.0/24, and these containers on it.
pub fn directory(containers: &[(&str, &str, &str)]) -> Directory {
    let network = Arc::new(ManagedNetwork {
        name: "outcall-default".to_owned(),
        id: "n".repeat(64),
        bridge: "outcall0".to_owned(),
        subnet: "127.1.0.0/24".parse().unwrap(),
        gateway: "127.1.0.1".parse().unwrap(),
    });
    let mut directory = Directory::empty(Instant::now());
    for (id, name, address) in containers {
        let address: Ipv4Addr = address.parse().unwrap();
        let endpoint = Endpoint {
            container_id: (*id).into(),
            container: (*name).into(),
            agent: outcall::docker_manager::agent_name(name).into(),
            network: Arc::clone(&network),
            address,
            mac: [2, 0, 0, 0, 0, 1],
            sandbox_key: String::new(),
            pid: 0,
        };
        directory.endpoints.insert(address, Arc::new(endpoint));
    }
    directory.networks.push(network);
    directory
}

/// A raw connection, read message by message.
pub struct Wire {
    pub stream: TcpStream,
    buffer: Vec<u8>,
    /// TLS, once it is spoken.
    pub tls: Option<Box<rustls::Connection>>,
}

/// A response as the client saw it.
#[derive(Debug)]
pub struct Seen {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Wire { stream, buffer: Vec::new(), tls: None }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        match &mut self.tls {
            None => self.stream.write_all(bytes.as_ref()).unwrap(),
            Some(tls) => {
                let mut rest = bytes.as_ref();
                while !rest.is_empty() || tls.wants_write() {
                    let taken = tls.writer().write(rest).unwrap();
                    rest = &rest[taken..];
                    while tls.wants_write() {
                        tls.write_tls(&mut self.stream).unwrap();
                    }
                }
            }
        }
    }

    fn read(&mut self, piece: &mut [u8]) -> std::io::Result<usize> {
        match &mut self.tls {
            None => self.stream.read(piece),
            Some(tls) => loop {
                match tls.reader().read(piece) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    outcome => return outcome,
                }
                while tls.wants_write() {
                    tls.write_tls(&mut self.stream)?;
                }
                tls.read_tls(&mut self.stream)?;
                tls.process_new_packets().map_err(|error| std::io::Error::other(error.to_string()))?;
            },
        }
    }

    /// Speaks TLS from here on; the handshake is done when this is.
    pub fn secure(mut self, connection: impl Into<rustls::Connection>) -> std::io::Result<Wire> {
        let mut tls = Box::new(connection.into());
        while tls.is_handshaking() {
            tls.complete_io(&mut self.stream)?;
        }
        self.tls = Some(tls);
        Ok(self)
    }

    /// Whether the connection ends without the end of TLS.
    pub fn is_truncated(&mut self) -> bool {
        let mut piece = [0; 4096];
        loop {
            match self.read(&mut piece) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Says inside TLS that no more comes.
    pub fn close_tls(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = tls.complete_io(&mut self.stream);
        }
    }

    fn more(&mut self) -> usize {
        let mut piece = [0; 16 * 1024];
        let bytes = match self.read(&mut piece) {
            // Most peers do not take leave inside TLS; see `truncated` for the tests that care.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => 0,
            bytes => bytes.expect("bytes before the patience is over"),
        };
        self.buffer.extend_from_slice(&piece[..bytes]);
        bytes
    }

    /// A head, up to and with its empty line; empty at the end of the stream.
    pub fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.buffer.drain(..end + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            if self.more() == 0 {
                assert!(self.buffer.is_empty(), "half a head of {} bytes", self.buffer.len());
                return String::new();
            }
        }
    }

    pub fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            assert!(self.more() > 0, "the stream ended after {} of {length} bytes", self.buffer.len());
        }
        self.buffer.drain(..length).collect()
    }

    /// Bytes read beyond what was asked for; they are taken.
    pub fn take_buffered(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    pub fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return String::from_utf8(line[..end].to_vec()).unwrap();
            }
            assert!(self.more() > 0, "the stream ended within a line");
        }
    }

    /// Everything to the end of the stream, a reset counted as one.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut piece = [0; 16 * 1024];
        loop {
            match self.read(&mut piece) {
                Ok(0) => break,
                Ok(bytes) => self.buffer.extend_from_slice(&piece[..bytes]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                // The end of the connection without one of TLS: see `truncated`.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
                Err(error) => panic!("no end of the stream: {error}"),
            }
        }
        std::mem::take(&mut self.buffer)
    }

    /// A chunked body with its trailers.
    pub fn chunks(&mut self) -> (Vec<u8>, String) {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(&self.line(), 16).expect("a plain chunk size");
            if size == 0 {
                break;
            }
            body.extend(self.exactly(size));
            assert_eq!(self.line(), "");
        }
        let mut trailers = String::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                return (body, trailers);
            }
            trailers += &line;
            trailers += "\n";
        }
    }

    /// A response to a request with `method`.
    pub fn response_to(&mut self, method: &str) -> Seen {
        let head = self.head();
        let status = head.get(9..12).unwrap_or_else(|| panic!("no response: {head:?}")).parse().unwrap();
        let mut seen = Seen { status, head, body: Vec::new() };
        if method == "HEAD" || matches!(status, 100..=199 | 204 | 304) {
            return seen;
        }
        seen.body = match (seen.field("content-length"), seen.field("transfer-encoding")) {
            (Some(length), None) => {
                let length = length.parse().unwrap();
                self.exactly(length)
            }
            (None, Some("chunked")) => self.chunks().0,
            (None, None) => self.rest(),
            both => panic!("{both:?}"),
        };
        seen
    }

    pub fn response(&mut self) -> Seen {
        self.response_to("GET")
    }

    pub fn get(&mut self, url: &str) -> Seen {
        let host = url.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
        self.send(format!("GET {url} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        self.response()
    }

    pub fn connect(&mut self, authority: &str) -> Seen {
        self.send(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"));
        let head = self.head();
        let status = head.get(9..12).unwrap_or_else(|| panic!("no response: {head:?}")).parse().unwrap();
        let mut seen = Seen { status, head, body: Vec::new() };
        if status != 200 {
            let length = seen.field("content-length").unwrap().parse().unwrap();
            seen.body = self.exactly(length);
        }
        seen
    }

    /// Answers each request with its body, or with its target, and keeps the connection.
    pub fn serve_echo(&mut self, log: &Mutex<Vec<String>>) {
        loop {
            let head = self.head();
            if head.is_empty() {
                return;
            }
            let target = head.split(' ').nth(1).unwrap().to_owned();
            let seen = Seen { status: 0, head: head.clone(), body: Vec::new() };
            let mut body = target.into_bytes();
            if let Some(length) = seen.field("content-length") {
                body = self.exactly(length.parse().unwrap());
            } else if seen.field("transfer-encoding").is_some() {
                let (data, trailers) = self.chunks();
                body = [data, trailers.into_bytes()].concat();
            }
            log.lock().unwrap().push(head.clone());
            let headless = head.starts_with("HEAD ");
            self.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()));
            if !headless {
                self.send(body);
            }
        }
    }

    pub fn is_closed(&mut self) -> bool {
        self.rest().is_empty()
    }
}

/// An origin: what it does with each connection, and all requests that it read.
pub struct Origin {
    pub port: u16,
    pub connections: Arc<AtomicUsize>,
    pub heads: Arc<Mutex<Vec<String>>>,
}

impl Origin {
    /// An origin that runs `serve` for each connection, on a thread of its own.
    pub fn with(serve: impl Fn(Wire, &Mutex<Vec<String>>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (count, log, serve) = (Arc::clone(&connections), Arc::clone(&heads), Arc::new(serve));
        // Ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                let (log, serve) = (Arc::clone(&log), Arc::clone(&serve));
                std::thread::spawn(move || serve(Wire::new(stream.unwrap()), &log));
            }
        });
        Origin { port, connections, heads }
    }

    /// An origin that answers each request with its target, and keeps the connection.
    pub fn echo() -> Self {
        Origin::with(|mut wire, log| wire.serve_echo(log))
    }

    /// An origin that sends `response` to whatever request, and then closes.
    pub fn canned(response: &'static [u8]) -> Self {
        Origin::with(move |mut wire, log| {
            let head = wire.head();
            log.lock().unwrap().push(head);
            let _ = wire.stream.write_all(response);
            let _ = wire.stream.shutdown(std::net::Shutdown::Write);
            let _ = wire.stream.read(&mut [0; 64]);
        })
    }

    pub fn url(&self, host: &str, path: &str) -> String {
        format!("http://{host}:{}{path}", self.port)
    }

    pub fn seen(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A ClientHello with this server name, in one record.
pub fn client_hello(sni: Option<&str>) -> Vec<u8> {
    let vector = |body: &[u8]| [&(body.len() as u16).to_be_bytes(), body].concat();
    let mut extensions = Vec::new();
    if let Some(name) = sni {
        let list = vector(&[&[0], &vector(name.as_bytes())[..]].concat());
        extensions = [&[0, 0][..], &vector(&list)].concat();
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(vector(&extensions));
    let length = (body.len() as u32).to_be_bytes();
    let message = [&[1], &length[1..], &body[..]].concat();
    [&[22, 3, 1], &vector(&message)[..]].concat()
}
