//! `GET /api/v1/events` from the events thread to readers on the socket: filters, streams, and readers that stall.

#![cfg(feature = "daemon")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
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
use outcall::host_api::{HostApi, HostApiCommand, HostApiConfig, HostApiLinks};
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
        let mut stream = UnixStream::connect(self.directory.join("host.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // HTTP/1.0: the stream is its body, ended by the close.
        stream.write_all(format!("GET /api/v1/events{path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
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
