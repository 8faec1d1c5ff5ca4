//! What `explain` says against what a running DNS filter and a running proxy do: random rules, random requests.

mod intercept_support;
mod proxy_support;

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use intercept_support::{Flaw, World, shown};
use outcall::api::{ExplainRequest, ExplainStep, Explained};
use outcall::bridge::BridgeCommand;
use outcall::daemon::{Readiness, Snapshot, control::ControlMessage};
use outcall::dns::{DnsCommand, DnsConfig, DnsLinks, DnsServer};
use outcall::docker_manager::{Directory, DockerCommand};
use outcall::event_loop::{Address, Mailbox, mailbox, reply_channel};
use outcall::events::EventSink;
use outcall::explain::{ProxyWay, Question};
use outcall::proxy::Listening;
use outcall::rule_engine::RuleSet;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use proxy_support::{Origin, PATIENCE, Running, rules};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

/// The names that exist, and where: on the loopback, all of it private. Nobody listens at the second address.
fn address_of(name: &str) -> Option<Ipv4Addr> {
    match name {
        "ok.example" | "api.ok.example" => Some(Ipv4Addr::LOCALHOST),
        "bad.example" => Some(Ipv4Addr::new(127, 0, 0, 2)),
        _ => None,
    }
}

/// A DNS filter with an upstream that knows these names, and counts who asks.
struct Filter {
    address: SocketAddr,
    commands: Address<DnsCommand>,
    thread: Option<JoinHandle<Result<(), String>>>,
    control: Mailbox<ControlMessage>,
    generation: u64,
    stop: Arc<AtomicBool>,
    upstream: Option<JoinHandle<()>>,
    asked: Arc<std::sync::atomic::AtomicUsize>,
    _kept: (Mailbox<DockerCommand>, Mailbox<BridgeCommand>, Vec<mio::Poll>),
}

fn end<T>(polls: &mut Vec<mio::Poll>) -> (Address<T>, Mailbox<T>) {
    let poll = mio::Poll::new().unwrap();
    let ends = mailbox(&poll, 256).unwrap();
    polls.push(poll);
    ends
}

impl Filter {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let upstream_address = socket.local_addr().unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&asked));
        let upstream = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                count.fetch_add(1, Ordering::SeqCst);
                socket.send_to(&upstream_answer(&buffer[..length]), from).unwrap();
            }
        });
        let mut polls = Vec::new();
        let (control, control_mail) = end(&mut polls);
        let (docker, docker_mail) = end(&mut polls);
        let (bridge, bridge_mail) = end(&mut polls);
        let poll = mio::Poll::new().unwrap();
        let (own, mail) = mailbox(&poll, 64).unwrap();
        let (sender, _) = crossbeam_channel::bounded(16);
        let links = DnsLinks {
            control,
            docker,
            bridge,
            own: own.clone(),
            events: EventSink::new(sender),
            readiness: Readiness::default(),
        };
        let config = DnsConfig {
            listen: "127.0.0.1".parse().unwrap(),
            port: 0,
            upstreams: vec![upstream_address],
            extra_peers: vec!["127.0.0.0/8".parse().unwrap()],
        };
        let server = DnsServer::start(config, links, poll, mail, snapshot(1, Arc::new(RuleSet::block_all()))).unwrap();
        let address = server.local_addresses()[0];
        let thread = Some(std::thread::spawn(move || server.run()));
        Filter {
            address,
            commands: own,
            thread,
            control: control_mail,
            generation: 1,
            stop,
            upstream: Some(upstream),
            asked,
            _kept: (docker_mail, bridge_mail, polls),
        }
    }

    fn reload(&mut self, set: &Arc<RuleSet>) {
        self.generation += 1;
        let wanted = self.generation;
        assert!(self.commands.send(DnsCommand::Snapshot(snapshot(wanted, Arc::clone(set)))).is_ok());
        proxy_support::until("DNS works by the new rules", || {
            let mut reached = false;
            while let Some(message) = self.control.take() {
                reached |= matches!(message, ControlMessage::Acknowledged { generation, .. } if generation == wanted);
            }
            reached
        });
    }

    /// The code of the answer, and whether it holds an address.
    fn ask(&self, name: &str) -> (ResponseCode, bool) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut message = Message::new(77, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.queries.push(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), RecordType::A));
        socket.send(&message.to_vec().unwrap()).unwrap();
        let mut buffer = [0; 4096];
        let count = socket.recv(&mut buffer).unwrap();
        let answer = Message::from_vec(&buffer[..count]).unwrap();
        (answer.metadata.response_code, !answer.answers.is_empty())
    }

    /// As `POST /explain` does it: the daemon's own DNS thread, and only for what a rule would allow.
    fn explain(&self, set: &Arc<RuleSet>, target: &str, method: Option<&str>, proxy: SocketAddr) -> Explained {
        let request = ExplainRequest { target: target.to_owned(), method: method.map(str::to_owned), container: None };
        let way = ProxyWay::Present(Listening { address: proxy, extra_peers: true });
        let question = Question::read(&request, &snapshot(1, Arc::clone(set)), way).unwrap();
        let resolved = question.wants().map(|name| {
            let (reply, answer) = reply_channel();
            assert!(self.commands.send(DnsCommand::Resolve(name, reply)).is_ok());
            answer.recv_timeout(PATIENCE).unwrap()
        });
        question.answer(&resolved, &Ok(Vec::new()))
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.commands.send(DnsCommand::Stop);
        let ended = self.thread.take().map(JoinHandle::join);
        let _ = self.upstream.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(Ok(())))));
    }
}

fn snapshot(generation: u64, set: Arc<RuleSet>) -> Arc<Snapshot> {
    Arc::new(Snapshot { generation, rules: set, directory: Arc::new(Directory::empty(Instant::now())) })
}

fn upstream_answer(bytes: &[u8]) -> Vec<u8> {
    let asked = Message::from_vec(bytes).unwrap();
    let mut answer = Message::response(asked.metadata.id, OpCode::Query);
    answer.metadata.recursion_available = true;
    let question = asked.queries[0].clone();
    let name = question.name().to_ascii().to_ascii_lowercase();
    match address_of(name.trim_end_matches('.')) {
        Some(address) if question.query_type() == RecordType::A => {
            let address = RData::A(A(address));
            answer.answers.push(Record::from_rdata(question.name().clone(), 60, address));
        }
        Some(_) => {}
        None => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    answer.queries.push(question);
    answer.to_vec().unwrap()
}

/// An origin that answers a request, in the clear and inside TLS, and the certificate that it shows.
fn origin(world: &World) -> (Origin, CertificateDer<'static>) {
    let (certificate, key) = world.theirs.leaf(&["ok.example", "api.ok.example", "127.0.0.1"], Flaw::None);
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.clone()], key);
    let config = Arc::new(config.unwrap());
    let origin = Origin::with(move |mut wire, _| {
        let mut first = [0];
        if wire.stream.peek(&mut first).unwrap_or(0) == 0 {
            return;
        }
        if first[0] == 22 {
            let Ok(secured) = wire.secure(ServerConnection::new(Arc::clone(&config)).unwrap()) else { return };
            wire = secured;
        }
        if wire.head().is_empty() {
            return;
        }
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        // Unread bytes at a close would take the answer with them.
        let _ = wire.stream.read_to_end(&mut Vec::new());
    });
    (origin, certificate)
}

/// A client that sends a ClientHello as most do, and trusts whoever answers it.
fn trusting(world: &World) -> Arc<ClientConfig> {
    let mut roots = world.ours.roots();
    roots.add(world.theirs.certificate.clone()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = ["h2", "http/1.1"].map(|protocol| protocol.as_bytes().to_vec()).to_vec();
    Arc::new(config)
}

/// Whether policy let it through, whatever came of it then.
fn passed(status: u16, text: &str) -> bool {
    match status {
        400 | 403 => false,
        // No address at all is what an explanation calls blocked; a refused connection it cannot know.
        502 => !text.contains("its name"),
        _ => true,
    }
}

/// What the proxy did with a request.
struct Carried {
    /// Whether policy let it through.
    passed: bool,
    /// Whether it came as far as a ClientHello: a tunnel that found nobody at the address never does.
    said_hello: bool,
    /// Whether its tunnel was decrypted.
    decrypted: bool,
}

/// A client of the proxy, and what it needs to know of the other end.
struct Caller<'w> {
    proxy: &'w Running,
    tls: Arc<ClientConfig>,
    /// What the origin itself shows.
    certificate: CertificateDer<'static>,
}

impl Caller<'_> {
    /// What the proxy does with it.
    fn call(&self, target: &str, method: &str) -> Carried {
        let mut client = self.proxy.client();
        let clear = |passed| Carried { passed, said_hello: false, decrypted: false };
        if let Some(rest) = target.strip_prefix("http://") {
            let host = rest.split('/').next().unwrap();
            client.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            let seen = client.response_to(method);
            return clear(passed(seen.status, &seen.text()));
        }
        let Some((authority, path)) = target.strip_prefix("https://").map(|rest| rest.split_once('/').unwrap()) else {
            let seen = client.connect(target);
            return clear(passed(seen.status, &seen.text()));
        };
        let seen = client.connect(authority);
        if seen.status != 200 {
            return clear(passed(seen.status, &seen.text()));
        }
        let name = ServerName::try_from(authority.rsplit_once(':').unwrap().0.to_owned()).unwrap();
        let Ok(mut client) = client.secure(ClientConnection::new(Arc::clone(&self.tls), name).unwrap()) else {
            return Carried { passed: false, said_hello: true, decrypted: false };
        };
        client.send(format!("{method} /{path} HTTP/1.1\r\nHost: {authority}\r\n\r\n"));
        let seen = client.response_to(method);
        let decrypted = shown(&client) != self.certificate;
        Carried { passed: passed(seen.status, &seen.text()), said_hello: true, decrypted }
    }
}

/// Whether a refusal of DNS was of the addresses in the answer: then it was asked for.
fn of_address(reason: &str) -> bool {
    reason.contains("special-purpose") || reason.contains("blocked_address")
}

fn rule_line() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "http.host == 'ok.example'",
        "http.host.endsWith('.ok.example')",
        "http.host in ['ok.example', 'bad.example', '127.0.0.1']",
        "dns.query == 'ok.example'",
        "dns.query.endsWith('.example')",
        "dns.record_type == 'A'",
        "network.port == 9",
        "network.port != 9",
        "network.ip == '127.0.0.2'",
        "network.ip.startsWith('127.')",
        "network.hostname == 'bad.example'",
        "http.method == 'GET'",
        "http.method != 'POST'",
        "http.method == 'CONNECT'",
        "http.path.startsWith('/v1')",
        "http.scheme == 'https'",
        "agent.name == ''",
        "agent.name == 'worker'",
        "tls.sni == 'ok.example'",
        "tls.ech",
        "!tls.ech",
        "http.headers['host'] == 'ok.example'",
        "true",
    ]);
    let action = prop::sample::select(vec![
        "allow",
        "allow",
        "allow",
        "allow_public",
        "direct",
        "block",
        "block",
        "intercept",
        "intercept",
        "intercept",
        "intercept_public",
        "intercept_body",
    ]);
    let join = prop::sample::select(vec!["&&", "||"]);
    let plain =
        (action, part.clone(), join, part).prop_map(|(action, one, join, two)| format!("{action} {one} {join} {two}"));
    let body = Just(format!("intercept_body http.host == 'ok.example' && !{ON_BODY}('secret')"));
    prop_oneof![20 => plain, 1 => body]
}

/// What hangs on a body, which no explanation knows.
const ON_BODY: &str = "http.body.contains";

#[test]
fn explain_says_what_the_wire_does() {
    let world = World::new();
    let filter = std::cell::RefCell::new(Filter::start());
    let (origin, certificate) = origin(&world);
    let mut setup = world.setup(&[]);
    setup.names = ["ok.example", "api.ok.example", "bad.example"]
        .map(|name| (name, vec![IpAddr::V4(address_of(name).unwrap())]))
        .to_vec();
    let proxy = setup.start();
    let caller = Caller { proxy: &proxy, tls: trusting(&world), certificate };
    let port = origin.port;
    let targets: Vec<String> = ["ok.example", "api.ok.example", "bad.example", "no.example", "x.local", "127.0.0.1"]
        .iter()
        .flat_map(|host| {
            [
                format!("http://{host}:{port}/v1/x"),
                format!("http://{host}:{port}/"),
                format!("https://{host}:{port}/v1"),
                format!("https://{host}:{port}/"),
                format!("{host}:{port}"),
                format!("{host}:9"),
            ]
        })
        .chain(["http", "https"].map(|scheme| format!("{scheme}://ok.example:{port}/a/../b")))
        .chain([proxy.address.to_string()])
        .collect();
    let (allowed, blocked) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    // Requests inside decrypted tunnels that were refused and that passed.
    let inside = std::cell::Cell::new([0, 0]);
    let requests = prop::collection::vec(
        (prop::sample::select(targets), prop::sample::select(vec!["GET", "POST", "DELETE"])),
        1..5,
    );
    let mut runner = TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let run = (prop::collection::vec(rule_line(), 0..6), requests);
    let outcome = runner.run(&run, |(lines, requests)| {
        let lines: Vec<String> = lines.iter().enumerate().map(|(number, line)| format!("r{number} {line}")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let set = rules(&lines);
        filter.borrow_mut().reload(&set);
        let filter = filter.borrow();
        proxy.publish(|snapshot| snapshot.rules = Arc::clone(&set));
        for (target, method) in requests {
            let asked = filter.asked.load(Ordering::SeqCst);
            let given = target.contains("://").then_some(method);
            let explained = filter.explain(&set, &target, given, proxy.address);
            let what = format!("{lines:#?}\n{method} {target}\n{explained:#?}");
            let of = |layers: &[&str], hello: bool| {
                let steps = explained.steps.iter().filter(|step| layers.contains(&step.layer.as_str()));
                let after_hello =
                    |step: &&ExplainStep| step.layer == "intercept" || step.reason.starts_with("ClientHello");
                let steps = steps.filter(|step| hello || !after_hello(step));
                steps.map(|step| step.verdict == "allow").collect::<Vec<_>>()
            };
            if of(&["proxy"], true)[0] || of(&["dns"], true).contains(&true) || of_address(&explained.steps[0].reason) {
                allowed.set(allowed.get() + 1);
            } else {
                let now = filter.asked.load(Ordering::SeqCst);
                prop_assert_eq!(now, asked, "a denied name was resolved: {}", &what);
                blocked.set(blocked.get() + 1);
            }
            let carried = caller.call(&target, method);
            let layers = ["proxy", "resolution", "intercept"];
            // A CONNECT that would be decrypted is answered before anybody is dialled; when the hello lets another rule
            // take it as it is and nobody is there, it ends as if it were refused.
            let nobody_there = target.contains("bad.example") && carried.said_hello && !carried.decrypted;
            if carried.decrypted && lines.iter().any(|line| line.contains(ON_BODY)) {
                prop_assert!(of(&layers[..2], true).iter().all(|step| *step), "{}", &what);
            } else if !nobody_there {
                let by_proxy = of(&layers, carried.said_hello);
                prop_assert_eq!(by_proxy.iter().all(|step| *step), carried.passed, "{}", &what);
            }
            // A tunnel that was refused at its ClientHello is neither.
            prop_assert_eq!(!of(&["intercept"], carried.said_hello).is_empty(), carried.decrypted, "{}", &what);
            if carried.decrypted {
                let mut counts = inside.get();
                counts[usize::from(carried.passed)] += 1;
                inside.set(counts);
            }
            let host = target.split("://").last().unwrap().split(':').next().unwrap();
            if address_of(host).is_some() {
                let dns = &explained.steps[0];
                prop_assert_eq!(&dns.layer, "dns");
                let (code, answered) = filter.ask(host);
                prop_assert_eq!(dns.verdict == "allow", answered, "{:?} {}", code, &what);
                let stripped = dns.reason.contains("special-purpose");
                prop_assert_eq!(code == ResponseCode::ServFail, stripped, "{:?} {}", code, &what);
            }
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let (allowed, blocked) = (allowed.get(), blocked.get());
    assert!(allowed > 50 && blocked > 50, "too few of one kind: {allowed} allowed, {blocked} blocked");
    let inside = inside.get();
    assert!(inside.iter().all(|count| *count > 3), "too few requests in decrypted tunnels: {inside:?}");
}
