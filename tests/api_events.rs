//! `GET /api/v1/events` from the events thread to readers on the socket: filters, streams, and readers that stall; and
//! `GET /metrics`, on the socket and over TCP.

#![cfg(feature = "daemon")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use mio::Poll;
use outcall::daemon::{Readiness, Snapshot};
use outcall::docker_manager::Directory;
use outcall::event_loop::{Address, Mailbox, mailbox};
use outcall::events::{DecisionLog, Event, EventLog, EventSink, EventsCommand, Layer, Verdict};
use outcall::host_api::{HostApi, HostApiCommand, HostApiConfig, HostApiLinks, MetricsCommand, MetricsServer};
use outcall::rule_engine::RuleSet;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

/// The operator API and the events thread; the other owners take commands and answer none.
struct World {
    directory: PathBuf,
    sink: EventSink,
    to_events: Sender<EventsCommand>,
    own: Address<HostApiCommand>,
    threads: Vec<JoinHandle<()>>,
    _silent: Vec<Box<dyn std::any::Any>>,
}

/// A mailbox that nobody reads.
fn silent<T: Send + 'static>(kept: &mut Vec<Box<dyn std::any::Any>>) -> Address<T> {
    let poll = Poll::new().unwrap();
    let (address, inbox): (Address<T>, Mailbox<T>) = mailbox(&poll, 64).unwrap();
    kept.push(Box::new((poll, inbox)));
    address
}

impl World {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("outcall-api-events-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let poll = Poll::new().unwrap();
        let (own, inbox) = mailbox(&poll, 256).unwrap();
        let (mut log, sink, to_events) = EventLog::new(DecisionLog::new(&directory, 1 << 20, 1));
        let publish = own.clone();
        let live = log.publish_to(Box::new(move |batch| publish.send(HostApiCommand::Events(batch)).is_ok()));
        let mut kept = Vec::new();
        let links = HostApiLinks {
            control: silent(&mut kept),
            bridge: silent(&mut kept),
            docker: silent(&mut kept),
            dns: silent(&mut kept),
            proxy: None,
            leaves: None,
            rule_engine: silent(&mut kept),
            requests: silent(&mut kept),
            dynamic_rules: silent(&mut kept),
            agent_api: silent(&mut kept),
            events: to_events.clone(),
            live,
            readiness: Readiness::default(),
            own: own.clone(),
        };
        let socket = directory.join("host.sock");
        let config = HostApiConfig { socket, subnet_block: "10.200.0.0/16".to_owned(), ca: None, proxy: None };
        let snapshot = Snapshot {
            generation: 1,
            rules: Arc::new(RuleSet::block_all()),
            directory: Arc::new(Directory::empty(Instant::now())),
        };
        let api = HostApi::start(config, links, poll, inbox, Arc::new(snapshot)).unwrap();
        let threads =
            vec![std::thread::spawn(move || log.run().unwrap()), std::thread::spawn(move || api.run().unwrap())];
        World { directory, sink, to_events, own, threads, _silent: kept }
    }

    fn get(&self, path: &str) -> BufReader<UnixStream> {
        self.ask(&format!("/api/v1/events{path}"))
    }

    fn ask(&self, target: &str) -> BufReader<UnixStream> {
        let mut stream = UnixStream::connect(self.directory.join("host.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // HTTP/1.0: the stream is its body, ended by the close.
        stream.write_all(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        BufReader::new(stream)
    }

    /// A stream whose head has come: from now on it misses nothing.
    fn follow(&self, filters: &str) -> BufReader<UnixStream> {
        let mut reader = self.get(&format!("?follow=true{filters}"));
        assert_eq!(status(&mut reader), 200);
        reader
    }

    fn record(&self, verdict: Verdict, host: &str) {
        let event = Event { host: Some(host.into()), ..Event::new(Layer::Proxy, verdict, "default") };
        self.sink.record(event);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.own.send(HostApiCommand::Stop);
        let _ = self.to_events.send(EventsCommand::Stop);
        let ended: Vec<bool> = self.threads.drain(..).map(|thread| thread.join().is_ok()).collect();
        let _ = std::fs::remove_dir_all(&self.directory);
        assert!(std::thread::panicking() || ended == [true, true]);
    }
}

/// Reads the head.
fn status(reader: &mut BufReader<UnixStream>) -> u16 {
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0);
    }
    first.split(' ').nth(1).unwrap().parse().unwrap()
}

fn next(reader: &mut BufReader<UnixStream>) -> Value {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

fn hosts(reader: &mut BufReader<UnixStream>) -> Vec<String> {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let host = |line: &str| serde_json::from_str::<Value>(line).unwrap()["host"].as_str().unwrap().to_owned();
    text.lines().map(host).collect()
}

#[test]
fn many_readers_follow_each_with_its_own_filter() {
    let world = World::new();
    let mut all: Vec<_> = (0..20).map(|_| world.follow("")).collect();
    let mut blocked = world.follow("&verdict=block");
    let mut nobody = world.follow("&container=nobody");
    world.record(Verdict::Allow, "one.example");
    world.record(Verdict::Block, "two.example");
    for reader in &mut all {
        assert_eq!(next(reader)["host"], "one.example");
        let second = next(reader);
        assert_eq!(
            (&second["host"], &second["seq"], &second["verdict"]),
            (&"two.example".into(), &2.into(), &"block".into())
        );
    }
    assert_eq!(next(&mut blocked)["host"], "two.example");
    let mut last = world.get("");
    assert_eq!(status(&mut last), 200);
    assert_eq!(hosts(&mut last), ["one.example", "two.example"]);
    let mut last = world.get("?verdict=allow&follow=false");
    assert_eq!(status(&mut last), 200);
    assert_eq!(hosts(&mut last), ["one.example"]);
    drop(world);
    // A stop ends the streams in order, whether they have seen something or not.
    assert_eq!(hosts(&mut nobody), Vec::<String>::new());
}

#[test]
fn wrong_filters_are_refused_and_readers_are_capped() {
    let world = World::new();
    for query in ["?verdict=deny", "?follow=yes", "?container=", "?since=1", "?verdict=block&verdict=allow"] {
        assert_eq!(status(&mut world.get(query)), 400, "{query}");
    }
    let mut held: Vec<_> = (0..64).map(|_| world.follow("")).collect();
    assert_eq!(status(&mut world.get("?follow=true")), 503);
    held.pop();
    let deadline = Instant::now() + PATIENCE;
    while status(&mut world.get("?follow=true")) != 200 {
        assert!(Instant::now() < deadline, "the place of a reader that left is not free");
    }
}

#[test]
fn a_stalled_reader_loses_events_and_is_told_how_many() {
    const EVENTS: u64 = 6000;
    let world = World::new();
    let mut stalled = world.follow("");
    let mut good = world.follow("");
    for number in 0..EVENTS {
        world.record(Verdict::Block, &format!("{number}.{}.example", "x".repeat(60)));
        // One after the other, so that the events thread's own channel loses none.
        assert_eq!(next(&mut good)["seq"], number + 1);
    }
    // The reader begins to read again: room first, then what comes next, with the count of what was lost before it.
    let mut room = [0; 64 * 1024];
    stalled.get_mut().read_exact(&mut room).unwrap();
    let mut held = room.to_vec();
    let (mut seen, mut lost, mut ended) = (0, 0, false);
    let mut count = |line: &[u8]| {
        let line: Value = serde_json::from_slice(line).unwrap();
        match line.get("lost") {
            Some(number) => lost += number.as_u64().unwrap(),
            None if line["host"] == "end.example" => ended = true,
            None => seen += 1,
        }
        ended
    };
    let deadline = Instant::now() + PATIENCE;
    let mut piece = [0; 64 * 1024];
    stalled.get_mut().set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    'reading: loop {
        while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = held.drain(..=end).collect();
            if count(&line) {
                break 'reading;
            }
        }
        assert!(Instant::now() < deadline, "the end does not come");
        match stalled.get_mut().read(&mut piece) {
            Ok(0) => panic!("the stream of a stalled reader ended"),
            Ok(bytes) => held.extend_from_slice(&piece[..bytes]),
            // All that was buffered is read: one more event, which has room now.
            Err(_) => world.record(Verdict::Allow, "end.example"),
        }
    }
    assert!(lost > 0, "nothing was lost: the test does not stall the reader");
    assert_eq!(seen + lost, EVENTS);
    assert_eq!(world.sink.lost(), 0);
}

/// One sample: name, labels in order, value.
type Sample = (String, Vec<(String, String)>, f64);

/// Reads text format 0.0.4 as strictly as `promtool check metrics`: each family once, with help and type before its
/// samples and nothing in between; no sample twice; counters named `_total`; histograms cumulative up to `+Inf`.
fn samples(text: &str) -> Vec<Sample> {
    let mut families: Vec<(String, String)> = Vec::new();
    let mut all: Vec<Sample> = Vec::new();
    let mut help = None;
    assert!(text.ends_with('\n'), "the last line has no end");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').unwrap();
            assert!(!words.is_empty() && families.iter().all(|(known, _)| known != name), "{line}");
            help = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(help.take().as_deref(), Some(name));
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            families.push((name.to_owned(), kind.to_owned()));
        } else {
            let (name, labels, value) = sample(line);
            let (family, kind) = families.last().unwrap();
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.iter().any(|suffix| name == format!("{family}{suffix}")), "{line} in {family}");
            assert!(all.iter().all(|(n, l, _)| (n, l) != (&name, &labels)), "twice: {line}");
            assert!(kind == "gauge" || value >= 0.0, "{line}");
            all.push((name, labels, value));
        }
    }
    for (name, labels, count) in all.iter().filter(|(name, ..)| name.ends_with("_count")) {
        let family = name.strip_suffix("_count").unwrap();
        let buckets: Vec<_> = all
            .iter()
            .filter(|(name, others, _)| *name == format!("{family}_bucket") && others.starts_with(labels))
            .collect();
        let bound = |sample: &Sample| match &*sample.1.last().unwrap().1 {
            "+Inf" => f64::INFINITY,
            number => number.parse().unwrap(),
        };
        assert!(buckets.windows(2).all(|two| bound(two[0]) < bound(two[1]) && two[0].2 <= two[1].2), "{name}");
        assert!(buckets.last().is_some_and(|last| bound(last).is_infinite() && last.2 == *count), "{name}");
    }
    all
}

fn sample(line: &str) -> Sample {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let (head, value) = line.rsplit_once(' ').unwrap();
    let (name, mut rest) = match head.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
        None => (head, ""),
    };
    assert!(is_name(name), "{line}");
    let mut labels = Vec::new();
    while !rest.is_empty() {
        let (label, quoted) = rest.split_once("=\"").unwrap();
        assert!(is_name(label), "{line}");
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        let end = loop {
            match characters.next().unwrap() {
                (at, '"') => break at,
                (_, '\\') => match characters.next().unwrap().1 {
                    'n' => value.push('\n'),
                    escaped @ ('"' | '\\') => value.push(escaped),
                    other => panic!("\\{other} in {line}"),
                },
                (_, plain) => value.push(plain),
            }
        };
        labels.push((label.to_owned(), value));
        rest = &quoted[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    (name.to_owned(), labels, value.parse().unwrap())
}

fn value(samples: &[Sample], name: &str, wanted: &[(&str, &str)]) -> Option<f64> {
    let has = |labels: &[(String, String)]| {
        wanted.iter().all(|(label, value)| labels.iter().any(|(l, v)| (&**l, &**v) == (*label, *value)))
    };
    samples.iter().find(|(n, labels, _)| n == name && has(labels)).map(|(.., value)| *value)
}

#[test]
fn metrics_are_strict_prometheus_text_and_count_every_decision() {
    let world = World::new();
    let follower = world.follow("");
    world.record(Verdict::Block, "one.example");
    world.sink.record(Event { duration_us: Some(700), ..Event::new(Layer::Dns, Verdict::Allow, "rule") });
    world.sink.record(Event {
        bytes_up: Some(10),
        bytes_down: Some(20),
        ..Event::new(Layer::Proxy, Verdict::Allow, "closed")
    });
    let mut reader = world.ask("/metrics");
    assert_eq!(status(&mut reader), 200);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let samples = samples(&text);
    let value = |name: &str, labels: &[(&str, &str)]| value(&samples, name, labels);
    let blocked = [("layer", "proxy"), ("verdict", "block"), ("rule", "")];
    assert_eq!(value("outcall_decisions_total", &blocked), Some(1.0));
    assert_eq!(value("outcall_decisions_total", &[("layer", "proxy"), ("verdict", "allow")]), None, "a tunnel's end");
    let bucket = |le: &str| value("outcall_decision_duration_seconds_bucket", &[("layer", "dns"), ("le", le)]);
    assert_eq!((bucket("0.0005"), bucket("0.001"), bucket("+Inf")), (Some(0.0), Some(1.0), Some(1.0)));
    assert_eq!(value("outcall_decision_duration_seconds_sum", &[("layer", "dns")]), Some(0.0007));
    assert_eq!(value("outcall_tunnel_bytes_total", &[("direction", "down")]), Some(20.0));
    assert_eq!(value("outcall_events_total", &[]), Some(3.0));
    assert_eq!(value("outcall_event_readers", &[]), Some(1.0));
    assert!(value("process_resident_memory_bytes", &[]).unwrap() > 1e6);
    // These owners never answer here: left out, and told so.
    assert_eq!(value("outcall_subsystem_up", &[("subsystem", "dns")]), Some(0.0));
    assert_eq!(value("outcall_subsystem_up", &[("subsystem", "events")]), Some(1.0));
    assert_eq!(value("outcall_grants", &[]), None);
    drop(follower);
}

#[test]
fn metrics_over_tcp_are_one_get_with_a_deadline_and_no_containers_business() {
    let world = World::new();
    let parts = || {
        let poll = Poll::new().unwrap();
        let (own, inbox) = mailbox(&poll, 16).unwrap();
        (own.clone(), (poll, own, inbox))
    };
    let block = "10.200.0.0/16".parse().unwrap();
    let refused = MetricsServer::start("10.200.0.1:0".parse().unwrap(), block, world.own.clone(), parts().1);
    assert!(refused.err().unwrap().to_string().contains("the containers' networks"));
    let (own, parts) = parts();
    let server = MetricsServer::start("127.0.0.1:0".parse().unwrap(), block, world.own.clone(), parts).unwrap();
    let address = server.address().unwrap();
    let thread = std::thread::spawn(move || server.run().unwrap());
    let ask = |request: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let text = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(value(&samples(body), "outcall_build_info", &[]).is_some());
    for (request, status) in [
        ("POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("GET /api/v1/bridge/down HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("GET /metrics\r\n\r\n", 400),
        (&format!("GET /metrics HTTP/1.1\r\nx: {}", "a".repeat(9000)), 431),
    ] {
        assert!(ask(request).starts_with(&format!("HTTP/1.1 {status} ")), "{request:.40}");
    }
    // Silent ones fill the places and are closed at once beyond them; the daemon lives.
    let held: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
    drop(held);
    let deadline = Instant::now() + PATIENCE;
    let served = || {
        TcpStream::connect(address).is_ok_and(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut first = [0; 12];
            let asked = stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n");
            asked.and_then(|()| stream.read_exact(&mut first)).is_ok() && first == *b"HTTP/1.1 200"
        })
    };
    while !served() {
        assert!(Instant::now() < deadline, "the places of those that left are not free");
    }
    assert!(own.send(MetricsCommand::Stop).is_ok());
    thread.join().unwrap();
}
