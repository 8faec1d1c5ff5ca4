//! A small world for the bridge: a network namespace as host, others as containers and as the internet.
//!
//! Everything lives in anonymous namespaces held by child processes, and goes away with them.

#![allow(dead_code)] // each test file uses its own part of the world

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{MsgFlags, SockaddrIn};
use outcall::bridge::{Bridge, BridgeCommand, BridgeConfig, Closer, Grant, StopMode};
use outcall::daemon::control::ControlMessage;
use outcall::daemon::{Readiness, Snapshot};
use outcall::docker_manager::{Directory, Endpoint, ManagedNetwork};
use outcall::event_loop::{Address, Mailbox, mailbox, reply_channel};
use outcall::events::{Event, EventSink};
use outcall::rule_engine::{Guard, LoadOptions, RuleSet, Source, load_sources};

/// A public-looking address of the internet.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
/// How long to wait for something to happen.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection attempt lasts before it counts as dropped.
pub const DROPPED: Duration = Duration::from_millis(250);

/// Moves this thread into a new namespace; `false` (and a word why) where that is not allowed.
pub fn enter() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root || unshare(CloneFlags::CLONE_NEWNET).is_err() {
        eprintln!("skipped: needs root and network namespaces of its own");
        return false;
    }
    run("ip link set lo up");
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    true
}

/// Runs a command; panics when it fails.
pub fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until `condition` holds; gives how long that took.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    start.elapsed()
}

/// A process that holds a network namespace.
pub struct Space(Child);

impl Space {
    pub fn new() -> Space {
        let child = Command::new("unshare")
            .args(["-n", "sleep", "600"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let space = Space(child);
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        until("a namespace of its own", || std::fs::read_link(space.path()).is_ok_and(|other| other != own));
        space.run("ip link set lo up");
        space
    }

    pub fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    pub fn run(&self, command: &str) -> String {
        run(&format!("nsenter -t {} -n sh -c '{command}'", self.0.id()))
    }

    /// Does something inside, on a thread of its own.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let file = std::fs::File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                act()
            });
            thread.join().unwrap()
        })
    }

    /// Whether a TCP connection can be made.
    pub fn connects(&self, address: Ipv4Addr, port: u16) -> bool {
        self.dial(address, port).is_some()
    }

    pub fn dial(&self, address: Ipv4Addr, port: u16) -> Option<TcpStream> {
        self.inside(|| TcpStream::connect_timeout(&SocketAddrV4::new(address, port).into(), DROPPED).ok())
    }

    pub fn listen(&self, address: Ipv4Addr, port: u16) -> TcpListener {
        self.inside(|| TcpListener::bind((address, port)).unwrap())
    }

    pub fn udp(&self, address: Ipv4Addr, port: u16) -> UdpSocket {
        let socket = self.inside(|| UdpSocket::bind((address, port)).unwrap());
        socket.set_read_timeout(Some(DROPPED)).unwrap();
        socket
    }

    /// Whether an echo request is answered.
    pub fn pings(&self, address: Ipv4Addr) -> bool {
        self.inside(|| {
            let socket = echo_socket();
            let start = Instant::now();
            if send_echo(&socket, address).is_err() {
                return false;
            }
            let mut packet = [0; 256];
            // A raw socket hears every ICMP message: the answer is type 0, from there.
            while start.elapsed() < DROPPED {
                let heard = nix::sys::socket::recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()).is_ok();
                if heard && packet[20] == 0 && packet[12..16] == address.octets() {
                    return true;
                }
            }
            false
        })
    }

    /// How many echo requests have arrived here.
    pub fn echo_requests(&self) -> u64 {
        // The first `Icmp:` line holds the names, the second the values.
        let table = self.run("cat /proc/net/snmp");
        let values = table.lines().filter(|line| line.starts_with("Icmp:")).nth(1).unwrap().to_owned();
        let names = table.lines().find(|line| line.starts_with("Icmp:")).unwrap().to_owned();
        let at = names.split_whitespace().position(|name| name == "InEchos").unwrap();
        values.split_whitespace().nth(at).unwrap().parse().unwrap()
    }
}

/// Echo requests to the internet without pause.
pub struct Flood {
    on: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Flood {
    pub fn start(from: &Space) -> Flood {
        let on = Arc::new(AtomicBool::new(true));
        let flooding = Arc::clone(&on);
        let socket = from.inside(echo_socket);
        let thread = std::thread::spawn(move || {
            let mut sent = 0;
            while flooding.load(Ordering::Relaxed) {
                sent += u64::from(send_echo(&socket, PUBLIC).is_ok());
            }
            sent
        });
        Flood { on, thread }
    }

    /// Ends it; gives how many were sent.
    pub fn stop(self) -> u64 {
        self.on.store(false, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// A raw ICMP socket of this thread's namespace.
pub fn echo_socket() -> OwnedFd {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};
    use nix::sys::time::{TimeVal, TimeValLike};
    let fd = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Icmp).unwrap();
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
    fd
}

/// Sends an echo request.
pub fn send_echo(socket: &OwnedFd, address: Ipv4Addr) -> nix::Result<usize> {
    // Type 8, code 0, checksum, id 1, sequence 1.
    let request = [8, 0, 0xf7, 0xfd, 0, 1, 0, 1];
    let to = SockaddrIn::from(SocketAddrV4::new(address, 0));
    nix::sys::socket::sendto(socket.as_raw_fd(), &request, &to, MsgFlags::empty())
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The internet: a default route to where every address answers that is put there.
pub fn internet() -> Space {
    let space = Space::new();
    run(&format!("ip link add up0 type veth peer name eth0 netns {}", space.pid()));
    run("ip addr add 198.18.0.1/24 dev up0; ip link set up0 up");
    space.run("ip addr add 198.18.0.2/24 dev eth0; ip link set eth0 up");
    space.run(&format!("ip addr add {PUBLIC}/32 dev lo; ip route add 10.200.0.0/16 via 198.18.0.1"));
    run("ip route add default via 198.18.0.2");
    space
}

/// A bridge thread with its mailboxes.
pub struct Daemon {
    pub commands: Address<BridgeCommand>,
    pub control: Mailbox<ControlMessage>,
    pub events: crossbeam_channel::Receiver<Event>,
    pub thread: Option<std::thread::JoinHandle<Result<(), String>>>,
    pub generation: u64,
    pub closer: Closer,
    pub rules: Arc<RuleSet>,
    /// Whether directories say that Docker has told of everybody.
    pub directory_read: bool,
    _control_poll: mio::Poll,
}

pub fn config() -> BridgeConfig {
    BridgeConfig { bridge: "outcall0".to_owned(), dns_port: 53, proxy_port: Some(8080) }
}

impl Daemon {
    pub fn start() -> Daemon {
        Self::start_with(config())
    }

    pub fn start_with(config: BridgeConfig) -> Daemon {
        let poll = mio::Poll::new().unwrap();
        let control_poll = mio::Poll::new().unwrap();
        let (commands, inbox) = mailbox(&poll, 64).unwrap();
        let (control_address, control) = mailbox(&control_poll, 1024).unwrap();
        let (sender, events) = crossbeam_channel::bounded(4096);
        let sink = EventSink::new(sender);
        let bridge = Bridge::start(config, control_address, sink, Readiness::default(), poll, inbox)
            .unwrap_or_else(|error| panic!("{error}"));
        let closer = bridge.closer();
        let thread = std::thread::spawn(|| bridge.run());
        Daemon {
            commands,
            control,
            events,
            thread: Some(thread),
            generation: 0,
            closer,
            rules: Arc::new(RuleSet::block_all()),
            directory_read: false,
            _control_poll: control_poll,
        }
    }

    pub fn ask<T: Send + 'static>(&self, command: impl FnOnce(outcall::event_loop::Reply<T>) -> BridgeCommand) -> T {
        let (reply, answer) = reply_channel();
        assert!(self.commands.send(command(reply)).is_ok());
        answer.recv_timeout(PATIENCE).unwrap()
    }

    pub fn ensure(&self, network: &ManagedNetwork) {
        let (bridge, subnet, gateway) = (network.bridge.clone(), network.subnet, network.gateway);
        self.ask(|done| BridgeCommand::EnsureNetwork { bridge, subnet, gateway, done }).unwrap();
    }

    /// Does something on the bridge's own thread, between two commands.
    pub fn inside(&self, act: impl FnOnce() + Send + 'static) {
        let (done, heard) = crossbeam_channel::bounded(1);
        let reply = outcall::event_loop::Reply::new(move |()| {
            act();
            done.send(()).unwrap();
        });
        assert!(self.commands.send(BridgeCommand::Ping(reply)).is_ok());
        heard.recv_timeout(PATIENCE).unwrap();
    }

    /// Opens what a DNS answer of [`PUBLIC`] would, see [`grant`].
    pub fn open(&self, endpoint: &Arc<Endpoint>, ttl: Duration) -> Result<(), String> {
        let opened = grant(&self.rules, endpoint, ttl);
        self.ask(|done| BridgeCommand::Grant(opened, done))
    }

    /// Publishes a directory and waits until it is in force.
    pub fn publish(&mut self, networks: &[&Arc<ManagedNetwork>], endpoints: &[&Arc<Endpoint>]) {
        let mut directory = Directory::empty(Instant::now());
        directory.read = self.directory_read;
        directory.networks = networks.iter().map(|network| Arc::clone(network)).collect();
        directory.endpoints = endpoints.iter().map(|endpoint| (endpoint.address, Arc::clone(endpoint))).collect();
        self.generation += 1;
        let generation = self.generation;
        let snapshot = Snapshot { generation, rules: Arc::clone(&self.rules), directory: Arc::new(directory) };
        assert!(self.commands.send(BridgeCommand::Snapshot(Arc::new(snapshot))).is_ok());
        until("the acknowledgement", || {
            std::iter::from_fn(|| self.control.take())
                .any(|message| matches!(message, ControlMessage::Acknowledged { generation: g, .. } if g == generation))
        });
    }

    pub fn healthy(&self) -> bool {
        self.ask(BridgeCommand::Status).nftables_active
    }

    pub fn stop(mut self, mode: StopMode) {
        assert!(self.commands.send(BridgeCommand::Stop(mode)).is_ok());
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A test may have left the mailbox full.
            let _ = self.commands.send_within(BridgeCommand::Stop(StopMode::Teardown), PATIENCE);
            let _ = thread.join();
        }
    }
}

pub fn network(name: &str, bridge: &str, third: u8) -> Arc<ManagedNetwork> {
    Arc::new(ManagedNetwork {
        name: name.to_owned(),
        id: "0".repeat(64),
        bridge: bridge.to_owned(),
        subnet: format!("10.200.{third}.0/24").parse().unwrap(),
        gateway: Ipv4Addr::new(10, 200, third, 1),
    })
}

/// A container on `network`, whose veth is called `veth`, as Docker would make it.
pub fn container(network: &Arc<ManagedNetwork>, last: u8, veth: &str) -> (Space, Arc<Endpoint>) {
    let space = Space::new();
    let [a, b, third, _] = network.gateway.octets();
    let address = Ipv4Addr::new(a, b, third, last);
    let mac = [2, 0x42, 10, 200, third, last];
    let mac_text = mac.map(|byte| format!("{byte:02x}")).join(":");
    run(&format!(
        "ip link add {veth} type veth peer name eth0 netns {} && ip link set {veth} master {} up",
        space.pid(),
        network.bridge
    ));
    space.run(&format!("ip link set eth0 address {mac_text} up; ip addr add {address}/24 dev eth0"));
    space.run(&format!("ip route add default via {}", network.gateway));
    let port = format!("bridge link show dev {veth}");
    until("the port to forward", || run(&port).contains("state forwarding"));
    let endpoint = Arc::new(Endpoint {
        container_id: format!("{third:032}{last:032}").into(),
        container: format!("agent-{last}").into(),
        agent: "agent".into(),
        network: Arc::clone(network),
        address,
        mac,
        sandbox_key: String::new(),
        pid: space.pid(),
    });
    (space, endpoint)
}

/// A daemon with the rules of this text, if any, and one container on its default network, whose veth is `vethA`.
pub fn daemon_with_container(text: &str) -> (Daemon, Arc<ManagedNetwork>, Space, Arc<Endpoint>) {
    let mut daemon = Daemon::start();
    if !text.is_empty() {
        daemon.rules = rules(text);
    }
    let default = network("outcall-default", "outcall0", 0);
    daemon.ensure(&default);
    let (space, endpoint) = container(&default, 2, "vethA");
    daemon.publish(&[&default], &[&endpoint]);
    (daemon, default, space, endpoint)
}

/// Rules from text.
pub fn rules(text: &str) -> Arc<RuleSet> {
    let options = LoadOptions { proxy: true, interception: false, guard: Guard::InProcess };
    let source = Source { name: "test.yaml".to_owned(), text: format!("version: '1'\nrules:\n{text}") };
    load_sources(&[source], &options, None).unwrap().set
}

/// The default network's gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
/// A rule under which [`grant`] holds.
pub const DIRECT: &str = "  - { id: direct, condition: 'dns.query == \"ok.example\"', action: allow, egress: { mode: direct_ip, ports: [443], allow_private_ips: true } }\n";

/// What a DNS answer of [`PUBLIC`] opens for port 443.
pub fn grant(rules: &RuleSet, endpoint: &Arc<Endpoint>, ttl: Duration) -> Grant {
    Grant {
        endpoint: Arc::clone(endpoint),
        name: "ok.example".into(),
        rule: Arc::clone(&rules.rules()[0]),
        addresses: vec![PUBLIC],
        ports: vec![443],
        ttl,
    }
}
