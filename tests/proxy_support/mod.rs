//! A running proxy on the loopback, with a played DNS thread and played Docker.

// Each test file uses a part of this.
#![allow(dead_code, unused_imports)]

mod origin;
mod wire;

pub use origin::{Origin, client_hello};
pub use wire::{Seen, Wire};

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
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
