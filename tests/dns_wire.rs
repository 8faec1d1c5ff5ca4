//! The DNS filter on real sockets of the loopback, with upstreams that behave and upstreams that do not.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use outcall::bridge::BridgeCommand;
use outcall::daemon::{Readiness, Snapshot, Subsystem, control::ControlMessage};
use outcall::dns::{DnsCommand, DnsConfig, DnsLinks, DnsServer, ResolveError, StartError};
use outcall::docker_manager::{Directory, DockerCommand, ManagedNetwork};
use outcall::event_loop::{Address, Mailbox, Reply, mailbox, reply_channel};
use outcall::events::{Event, EventSink, Verdict};
use outcall::names::HostName;
use outcall::rule_engine::{Guard, LoadOptions, RuleSet, Source, load_sources};

const PATIENCE: Duration = Duration::from_secs(10);

/// A running filter and the far ends of its links.
struct Filter {
    address: SocketAddr,
    commands: Address<DnsCommand>,
    thread: Option<JoinHandle<Result<(), String>>>,
    control: Mailbox<ControlMessage>,
    events: crossbeam_channel::Receiver<Event>,
    readiness: Readiness,
    _docker: Mailbox<DockerCommand>,
    _bridge: Mailbox<BridgeCommand>,
    _polls: [mio::Poll; 3],
}

fn end<T>(capacity: usize) -> (mio::Poll, Address<T>, Mailbox<T>) {
    let poll = mio::Poll::new().unwrap();
    let (address, mailbox) = mailbox(&poll, capacity).unwrap();
    (poll, address, mailbox)
}

fn empty_snapshot(generation: u64) -> Arc<Snapshot> {
    Arc::new(Snapshot { generation, rules: rules(), directory: Arc::new(Directory::empty(Instant::now())) })
}

/// Allows every name under `ok.example`.
fn rules() -> Arc<RuleSet> {
    let text =
        "version: '1'\nrules:\n  - { id: ok, condition: 'dns.query.endsWith(\".ok.example\")', action: allow }\n";
    let options = LoadOptions { proxy: true, interception: false, guard: Guard::InProcess };
    load_sources(&[Source { name: "test.yaml".to_owned(), text: text.to_owned() }], &options, None).unwrap().set
}

fn loopback_config(upstreams: Vec<SocketAddr>) -> DnsConfig {
    let extra_peers = vec!["127.0.0.0/8".parse().unwrap()];
    DnsConfig { listen: "127.0.0.1".parse().unwrap(), port: 0, upstreams, extra_peers }
}

impl Filter {
    fn start(upstreams: Vec<SocketAddr>) -> Self {
        Self::with(loopback_config(upstreams), empty_snapshot(1)).unwrap()
    }

    fn with(config: DnsConfig, snapshot: Arc<Snapshot>) -> Result<Self, StartError> {
        let (control_poll, control, control_mail) = end(16);
        let (docker_poll, docker, docker_mail) = end(16);
        let (bridge_poll, bridge, bridge_mail) = end(16);
        let (poll, commands, mail) = end(64);
        let (sender, events) = crossbeam_channel::bounded(1024);
        let readiness = Readiness::default();
        let events_sink = EventSink::new(sender);
        let own = commands.clone();
        let links = DnsLinks { control, docker, bridge, own, events: events_sink, readiness: readiness.clone() };
        let server = DnsServer::start(config, links, poll, mail, snapshot)?;
        let address = server.local_addresses().first().copied().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        let thread = std::thread::Builder::new().name("dns".to_owned()).spawn(move || server.run()).unwrap();
        Ok(Filter {
            address,
            commands,
            thread: Some(thread),
            control: control_mail,
            events,
            readiness,
            _docker: docker_mail,
            _bridge: bridge_mail,
            _polls: [control_poll, docker_poll, bridge_poll],
        })
    }

    fn udp(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn ask(&self, name: &str) -> Message {
        let socket = self.udp();
        socket.send(&query(name, 77)).unwrap();
        receive(&socket)
    }

    fn command<T: Send + 'static>(&self, make: impl FnOnce(Reply<T>) -> DnsCommand) -> T {
        let (reply, answer) = reply_channel();
        self.commands.send(make(reply)).map_err(|_| "sent").unwrap();
        answer.recv_timeout(PATIENCE).unwrap()
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        let _ = self.commands.send(DnsCommand::Stop);
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            assert_eq!(ended.unwrap(), Ok(()));
        }
    }
}

fn query(name: &str, id: u16) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

fn receive(socket: &UdpSocket) -> Message {
    let mut buffer = [0; 4096];
    let count = socket.recv(&mut buffer).unwrap();
    Message::from_vec(&buffer[..count]).unwrap()
}

fn send_framed(stream: &mut TcpStream, bytes: &[u8]) {
    let mut framed = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).unwrap();
}

fn receive_framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// An upstream: what it says over UDP (any number of datagrams) and over TCP, and how often it was asked.
#[derive(Clone)]
struct Upstream {
    address: SocketAddr,
    over_udp: Arc<AtomicUsize>,
    over_tcp: Arc<AtomicUsize>,
}

impl Upstream {
    fn start(
        udp_answers: impl Fn(&Message) -> Vec<Vec<u8>> + Send + 'static,
        tcp_answer: impl Fn(&Message) -> Vec<u8> + Send + 'static,
    ) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
                break (udp, tcp);
            }
        };
        let upstream =
            Upstream { address: udp.local_addr().unwrap(), over_udp: Arc::default(), over_tcp: Arc::default() };
        let counted = Arc::clone(&upstream.over_udp);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((count, from)) = udp.recv_from(&mut buffer) {
                counted.fetch_add(1, Ordering::SeqCst);
                for datagram in udp_answers(&Message::from_vec(&buffer[..count]).unwrap()) {
                    udp.send_to(&datagram, from).unwrap();
                }
            }
        });
        let counted = Arc::clone(&upstream.over_tcp);
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                if let Ok(question) = receive_framed(&mut stream) {
                    counted.fetch_add(1, Ordering::SeqCst);
                    send_framed(&mut stream, &tcp_answer(&Message::from_vec(&question).unwrap()));
                }
            }
        });
        upstream
    }

    fn honest() -> Self {
        Self::start(|question| vec![one(question)], one)
    }

    fn silent() -> Self {
        Self::start(|_| Vec::new(), one)
    }

    fn asked(&self) -> (usize, usize) {
        (self.over_udp.load(Ordering::SeqCst), self.over_tcp.load(Ordering::SeqCst))
    }
}

/// An answer with the addresses given.
fn with(question: &Message, addresses: impl Iterator<Item = [u8; 4]>) -> Message {
    let mut message = Message::response(question.metadata.id, OpCode::Query);
    message.queries = question.queries.clone();
    let name = question.queries[0].name();
    message.answers.extend(addresses.map(|a| Record::from_rdata(name.clone(), 300, RData::A(A(a.into())))));
    message
}

fn one(question: &Message) -> Vec<u8> {
    with(question, [[93, 184, 216, 34]].into_iter()).to_vec().unwrap()
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    let address = |record: &Record| match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        _ => None,
    };
    message.answers.iter().filter_map(address).collect()
}

#[test]
fn allowed_and_blocked_names_over_udp_and_tcp() {
    let upstream = Upstream::honest();
    let filter = Filter::start(vec![upstream.address]);
    let found = filter.ask("WWW.ok.example.");
    assert_eq!((found.metadata.id, addresses(&found)), (77, vec!["93.184.216.34".parse().unwrap()]));
    assert_eq!(found.answers[0].name.to_ascii(), "WWW.ok.example.");
    let denied = filter.ask("www.other.example.");
    assert_eq!((denied.metadata.response_code, denied.metadata.authoritative), (ResponseCode::NXDomain, true));
    let mut stream = filter.tcp();
    for id in 0..100 {
        send_framed(&mut stream, &query(if id % 2 == 0 { "www.ok.example." } else { "no.example." }, id));
    }
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let answer = Message::from_vec(&receive_framed(&mut stream).unwrap()).unwrap();
        let found = answer.metadata.response_code == ResponseCode::NoError;
        assert_eq!(found, answer.metadata.id.is_multiple_of(2));
        seen.insert(answer.metadata.id);
    }
    assert_eq!(seen.len(), 100);
    assert_eq!(upstream.asked(), (1, 0), "one question for the one allowed name, none for the denied");
    let events: Vec<Event> = filter.events.try_iter().collect();
    assert_eq!(events.len(), 102);
    assert!(matches!(events[0].verdict, Verdict::Allow) && events[0].rule.as_ref().is_some_and(|r| &*r.id == "ok"));
    assert_eq!(events[1].host.as_deref(), Some("www.other.example"));
    let status = filter.command(DnsCommand::Status);
    assert_eq!((status.queries_total, status.queries_allowed, status.queries_blocked), (102, 51, 51));
    let cache = filter.command(DnsCommand::Cache);
    assert_eq!((cache.stats.entries, cache.entries[0].hostname.as_str()), (1, "www.ok.example"));
    assert_eq!(filter.command(DnsCommand::Flush), 1);
}

#[test]
fn each_question_has_its_own_id_and_port() {
    let (sender, ports) = std::sync::mpsc::channel();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let question = Message::from_vec(&buffer[..count]).unwrap();
            sender.send((from.port(), question.metadata.id)).unwrap();
            socket.send_to(&one(&question), from).unwrap();
        }
    });
    let filter = Filter::start(vec![address]);
    for n in 0..30 {
        assert_eq!(addresses(&filter.ask(&format!("n{n}.ok.example."))).len(), 1);
    }
    let seen: Vec<(u16, u16)> = ports.try_iter().collect();
    let distinct = |values: Vec<u16>| values.into_iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(distinct(seen.iter().map(|pair| pair.0).collect()) > 25, "{seen:?}");
    assert!(distinct(seen.iter().map(|pair| pair.1).collect()) > 25, "{seen:?}");
}

#[test]
fn an_upstream_that_lies_first_is_not_believed() {
    let poisoned = |question: &Message| with(question, [[6, 6, 6, 6]].into_iter());
    let upstream = Upstream::start(
        move |question| {
            let mut wrong_id = poisoned(question);
            wrong_id.metadata.id = wrong_id.metadata.id.wrapping_add(1);
            let mut wrong_question = poisoned(question);
            wrong_question.queries[0].set_name(Name::from_ascii("elsewhere.example.").unwrap());
            let mut cut = poisoned(question).to_vec().unwrap();
            cut.truncate(30);
            // A name that points at itself, and one that points forward.
            let mut looped = one(question)[..12].to_vec();
            looped.extend([0xc0, 12, 0, 1, 0, 1]);
            let mut forward = one(question)[..12].to_vec();
            forward.extend([0xc0, 0xff, 0, 1, 0, 1]);
            let lies = [wrong_id.to_vec().unwrap(), wrong_question.to_vec().unwrap(), cut, looped, forward];
            lies.into_iter().chain([one(question)]).collect()
        },
        one,
    );
    let filter = Filter::start(vec![upstream.address]);
    assert_eq!(addresses(&filter.ask("www.ok.example.")), ["93.184.216.34".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_late_answer_reaches_nobody() {
    let upstream = Upstream::start(
        |question| {
            // Sent after the filter has given this try up; the socket it goes to is closed by then.
            std::thread::sleep(Duration::from_millis(1500));
            vec![with(question, [[6, 6, 6, 6]].into_iter()).to_vec().unwrap()]
        },
        one,
    );
    let other = Upstream::honest();
    let filter = Filter::start(vec![upstream.address, other.address]);
    assert_eq!(addresses(&filter.ask("www.ok.example.")), ["93.184.216.34".parse::<IpAddr>().unwrap()]);
    assert_eq!(addresses(&filter.ask("www.ok.example.")), ["93.184.216.34".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_truncated_answer_is_asked_again_over_tcp() {
    let upstream = Upstream::start(
        |question| {
            let mut message = with(question, std::iter::empty());
            message.metadata.truncation = true;
            vec![message.to_vec().unwrap()]
        },
        |question| with(question, (0..200).map(|n| [93, 184, 216, n])).to_vec().unwrap(),
    );
    let filter = Filter::start(vec![upstream.address]);
    let cut = filter.ask("big.ok.example.");
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let mut stream = filter.tcp();
    send_framed(&mut stream, &query("big.ok.example.", 5));
    assert_eq!(Message::from_vec(&receive_framed(&mut stream).unwrap()).unwrap().answers.len(), 200);
    assert_eq!(upstream.asked(), (1, 1));
}

#[test]
fn thousands_of_records_and_endless_aliases_are_servfail() {
    let upstream = Upstream::start(
        |question| {
            let mut message = with(question, std::iter::empty());
            message.metadata.truncation = true;
            vec![message.to_vec().unwrap()]
        },
        |question| {
            let name = question.queries[0].name().to_ascii().to_ascii_lowercase();
            if name.starts_with("many") || name.starts_with("flood") {
                let count = if name.starts_with("many") { 900_u16 } else { 4000 };
                return with(question, (0..count).map(|n| [93, 184, n.to_be_bytes()[0], n.to_be_bytes()[1]]))
                    .to_vec()
                    .unwrap();
            }
            let mut message = with(question, std::iter::empty());
            let mut from = question.queries[0].name().clone();
            for n in 0..1000 {
                let to = Name::from_ascii(format!("n{n}.example.")).unwrap();
                message.answers.push(Record::from_rdata(from, 60, RData::CNAME(CNAME(to.clone()))));
                from = to;
            }
            message.to_vec().unwrap()
        },
    );
    let filter = Filter::start(vec![upstream.address]);
    for name in ["many.ok.example.", "flood.ok.example.", "chain.ok.example."] {
        assert_eq!(filter.ask(name).metadata.response_code, ResponseCode::ServFail, "{name}");
    }
}

#[test]
fn a_dead_and_a_silent_upstream_are_passed_over() {
    let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (silent, honest) = (Upstream::silent(), Upstream::honest());
    let filter = Filter::start(vec![gone, silent.address, honest.address]);
    assert_eq!(addresses(&filter.ask("www.ok.example.")).len(), 1);
    let begin = Instant::now();
    assert_eq!(addresses(&filter.ask("other.ok.example.")).len(), 1);
    assert!(begin.elapsed() < Duration::from_millis(600), "the silent one is out of favour");
    assert_eq!(silent.asked().0, 1);
}

#[test]
fn malformed_datagrams_are_dropped_and_malformed_streams_closed() {
    let filter = Filter::start(vec![Upstream::honest().address]);
    let socket = filter.udp();
    socket.send(b"nonsense").unwrap();
    socket.send(&[0xff; 1400]).unwrap();
    socket.send(&[0; 3000]).unwrap();
    socket.send(&query("after.example.", 9)).unwrap();
    assert_eq!(receive(&socket).metadata.id, 9, "the first answer is the one to the only question");
    for wire in [&[0, 4, 1, 2, 3, 4][..], &[0xff, 0xff, 0, 0]] {
        let mut stream = filter.tcp();
        stream.write_all(wire).unwrap();
        assert!(receive_framed(&mut stream).is_err());
    }
    // A byte at a time is slow, not malformed.
    let mut stream = filter.tcp();
    let mut framed = vec![0];
    let question = query("no.example.", 11);
    framed.push(u8::try_from(question.len()).unwrap());
    framed.extend(question);
    for byte in framed {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(Message::from_vec(&receive_framed(&mut stream).unwrap()).unwrap().metadata.id, 11);
}

#[test]
fn connections_of_one_peer_are_capped() {
    let filter = Filter::start(vec![Upstream::honest().address]);
    let mut streams: Vec<TcpStream> = (0..40).map(|_| filter.tcp()).collect();
    let mut served = 0;
    for stream in &mut streams {
        let question = query("no.example.", 1);
        let mut framed = u16::try_from(question.len()).unwrap().to_be_bytes().to_vec();
        framed.extend(question);
        // Writing to a connection that is closed already may fail; that is one that is not served.
        served += usize::from(stream.write_all(&framed).is_ok() && receive_framed(stream).is_ok());
    }
    assert_eq!(served, 8);
}

#[test]
fn strangers_are_refused() {
    let mut config = loopback_config(vec![Upstream::honest().address]);
    config.extra_peers = vec!["127.9.0.0/16".parse().unwrap()];
    let filter = Filter::with(config, empty_snapshot(1)).unwrap();
    assert_eq!(filter.ask("www.ok.example.").metadata.response_code, ResponseCode::Refused);
    let known = UdpSocket::bind("127.9.0.1:0").unwrap();
    known.set_read_timeout(Some(PATIENCE)).unwrap();
    known.connect(filter.address).unwrap();
    known.send(&query("www.ok.example.", 3)).unwrap();
    assert_eq!(addresses(&receive(&known)).len(), 1);
}

#[test]
fn a_wildcard_answers_from_the_address_that_was_asked() {
    for (listen, asked) in [("0.0.0.0", "127.0.0.7"), ("::", "127.0.0.8"), ("::", "::1")] {
        let mut config = loopback_config(vec![Upstream::honest().address]);
        config.listen = listen.parse().unwrap();
        config.extra_peers.push("::1/128".parse().unwrap());
        let filter = Filter::with(config, empty_snapshot(1)).unwrap();
        let asked: IpAddr = asked.parse().unwrap();
        let local = if asked.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        let socket = UdpSocket::bind(local).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(&query("www.ok.example.", 3), (asked, filter.address.port())).unwrap();
        let mut buffer = [0; 512];
        let (count, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, SocketAddr::new(asked, filter.address.port()), "{listen}");
        assert_eq!(addresses(&Message::from_vec(&buffer[..count]).unwrap()).len(), 1);
    }
}

#[test]
fn gateways_are_served_as_their_networks_come_and_go() {
    let mut config = loopback_config(vec![Upstream::honest().address]);
    config.listen = "0.0.0.0".parse().unwrap();
    config.extra_peers.clear();
    // A port that was free a moment ago: a gateway needs the same one for both transports.
    config.port = UdpSocket::bind("127.77.0.1:0").unwrap().local_addr().unwrap().port();
    let port = config.port;
    let filter = Filter::with(config, empty_snapshot(1)).unwrap();
    let network = |name: &str, subnet: &str, gateway: &str| {
        Arc::new(ManagedNetwork {
            name: name.to_owned(),
            id: String::new(),
            bridge: name.to_owned(),
            subnet: subnet.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
        })
    };
    let publish = |generation: u64, networks: Vec<Arc<ManagedNetwork>>| {
        let mut snapshot = (*empty_snapshot(generation)).clone();
        let mut directory = Directory::empty(Instant::now());
        directory.networks = networks;
        snapshot.directory = Arc::new(directory);
        filter.commands.send(DnsCommand::Snapshot(Arc::new(snapshot))).map_err(|_| "sent").unwrap();
        filter.command(DnsCommand::Ping);
    };
    // The second address is on no interface yet.
    let first = network("a", "127.77.0.0/24", "127.77.0.1");
    publish(2, vec![Arc::clone(&first), network("b", "192.0.2.0/24", "192.0.2.1")]);
    assert!(filter.readiness.parts().contains(&("dns", Ok(()))), "{:?}", filter.readiness.parts());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(&query("www.ok.example.", 4), ("127.77.0.1", port)).unwrap();
    let mut buffer = [0; 512];
    let (count, _) = socket.recv_from(&mut buffer).unwrap();
    let refused = Message::from_vec(&buffer[..count]).unwrap();
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    publish(3, Vec::new());
    let taken = UdpSocket::bind(("127.77.0.1", port)).expect("the gateway's socket went with its network");
    publish(4, vec![first]);
    let parts = filter.readiness.parts();
    let (_, state) = parts.iter().find(|(name, _)| *name == "dns").unwrap();
    let reason = state.as_ref().unwrap_err();
    assert!(reason.contains("127.77.0.1") && reason.contains("another program"), "{reason}");
    drop(taken);
    let deadline = Instant::now() + PATIENCE;
    while filter.readiness.parts().iter().any(|(_, state)| state.is_err()) {
        assert!(Instant::now() < deadline, "bound again when the address was free");
        std::thread::yield_now();
    }
    let generations: Vec<u64> = std::iter::from_fn(|| filter.control.take())
        .map(|message| match message {
            ControlMessage::Acknowledged { subsystem: Subsystem::Dns, generation } => generation,
            _ => panic!("only acknowledgements"),
        })
        .collect();
    assert_eq!(generations, [1, 2, 3, 4]);
}

#[test]
fn a_start_that_cannot_work_says_why() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = loopback_config(vec!["127.0.0.1:1".parse().unwrap()]);
    config.port = taken.local_addr().unwrap().port();
    let port = config.port;
    let error = Filter::with(config.clone(), empty_snapshot(1)).err().unwrap().to_string();
    assert!(error.contains(&format!("127.0.0.1:{port}/TCP")) && error.contains("--dns-port"), "{error}");
    config.upstreams = vec![SocketAddr::new("127.0.0.1".parse().unwrap(), port)];
    assert!(matches!(Filter::with(config.clone(), empty_snapshot(1)), Err(StartError::UpstreamIsSelf(_))));
    config.upstreams.clear();
    assert!(matches!(Filter::with(config, empty_snapshot(1)), Err(StartError::NoUpstream)));
}

#[test]
fn the_proxy_resolves_any_name_by_the_same_way() {
    let upstream = Upstream::honest();
    let filter = Filter::start(vec![upstream.address]);
    let resolve = |name: &str| {
        let name = HostName::parse(name).unwrap();
        filter.command(|reply| DnsCommand::Resolve(name, reply))
    };
    assert_eq!(resolve("anything.example"), Ok(vec!["93.184.216.34".parse().unwrap()]));
    assert_eq!(resolve("anything.example"), Ok(vec!["93.184.216.34".parse().unwrap()]));
    assert_eq!(upstream.asked().0, 1);
    assert_eq!(resolve("printer.local"), Err(ResolveError::NoSuchName));
}

#[test]
fn a_stop_lets_what_is_in_flight_finish() {
    let upstream = Upstream::start(
        |question| {
            // Long enough that the stop arrives first.
            std::thread::sleep(Duration::from_millis(300));
            vec![one(question)]
        },
        one,
    );
    let filter = Filter::start(vec![upstream.address]);
    let socket = filter.udp();
    socket.send(&query("www.ok.example.", 6)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while upstream.asked().0 == 0 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    drop(filter);
    assert_eq!(addresses(&receive(&socket)).len(), 1);
}
