//! The Unix-socket server against raw bytes: what a broken, slow or hostile client can and cannot do to the others.

#![cfg(feature = "daemon")]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use outcall::event_loop::{Address, MAILBOX, Mailbox, mailbox};
use outcall::unix_http::{
    Admission, Answer, Caps, Fed, Handler, Limits, Peer, Request, Response, Server, SocketFile, Ticket, Tokens,
};

/// A body that no socket buffer holds.
const BIG: usize = 4 * 1024 * 1024;

enum Message {
    Stop,
}

/// Echoes bodies; some paths answer late, long, or as a stream.
#[derive(Default)]
struct Echo {
    later: Vec<(Ticket, Instant)>,
    streams: Vec<Ticket>,
    refuse: bool,
}

impl Handler for Echo {
    fn admit(&mut self, peer: &Peer, _socket: std::os::fd::BorrowedFd<'_>) -> Admission {
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        if self.refuse {
            return Admission::Refuse { status: 403, message: "not you".to_owned() };
        }
        Admission::Serve { key: u64::from(peer.uid) }
    }

    fn request(&mut self, request: Request, ticket: Ticket) -> Answer {
        match &*request.path {
            "/later" => {
                self.later.push((ticket, Instant::now() + Duration::from_millis(100)));
                Answer::Later
            }
            "/big" => Answer::Now(Response::whole(200, "text/plain", vec![b'x'; BIG])),
            "/stream" => {
                self.streams.push(ticket);
                Answer::Now(Response::stream("text/plain"))
            }
            _ => {
                let body = [request.path.as_bytes(), b" ", &request.body].concat();
                Answer::Now(Response::whole(200, "text/plain", body))
            }
        }
    }

    fn refusal(&mut self, status: u16, message: &str) -> Response {
        Response::whole(status, "text/plain", message.as_bytes().to_vec())
    }

    fn accept_failed(&mut self, error: &std::io::Error) {
        panic!("accept: {error}");
    }
}

/// A server on a socket of its own.
struct World {
    directory: PathBuf,
    socket: PathBuf,
    own: Address<Message>,
    thread: Option<JoinHandle<()>>,
}

impl World {
    fn new() -> Self {
        World::with(Limits::default(), Caps { connections: 1024, per_key: 1024 }, Echo::default())
    }

    fn with(limits: Limits, caps: Caps, handler: Echo) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("outcall-api-server-{}-{number}", std::process::id()));
        let socket = directory.join("test.sock");
        let (listener, file, _) = SocketFile::listen(&socket, 0o600, None).unwrap();
        let poll = Poll::new().unwrap();
        let (own, mailbox) = mailbox(&poll, 4).unwrap();
        let tokens = Tokens { listener: Token(0), first: 1 };
        let server = Server::new(listener, poll.registry(), tokens, limits, caps).unwrap();
        let thread = std::thread::spawn(move || {
            let _file = file;
            serve(poll, &mailbox, server, handler);
        });
        World { directory, socket, own, thread: Some(thread) }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends bytes, closes the writing side and reads to the end.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        rest(&mut stream)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.own.send(Message::Stop);
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        let _ = std::fs::remove_dir_all(&self.directory);
        assert!(ended || std::thread::panicking(), "the server's thread panicked");
    }
}

fn serve(mut poll: Poll, mailbox: &Mailbox<Message>, mut server: Server, mut handler: Echo) {
    let mut events = Events::with_capacity(64);
    loop {
        let now = Instant::now();
        let due = handler.later.iter().map(|(_, at)| at.saturating_duration_since(now)).min();
        let stream = (!handler.streams.is_empty()).then_some(Duration::from_millis(5));
        let wait = [server.wait(now), due, stream].into_iter().flatten().min();
        poll.poll(&mut events, wait).unwrap();
        let now = Instant::now();
        for event in &events {
            if event.token() != MAILBOX {
                server.event(event, &mut handler, now);
            }
        }
        if let Some(Message::Stop) = mailbox.take() {
            return;
        }
        let due: Vec<Ticket> = handler.later.iter().filter(|(_, at)| *at <= now).map(|(ticket, _)| *ticket).collect();
        handler.later.retain(|(_, at)| *at > now);
        for ticket in due {
            server.answer(ticket, &Response::whole(200, "text/plain", b"late".to_vec()), &mut handler, now);
        }
        for ticket in std::mem::take(&mut handler.streams) {
            match server.feed(ticket, b"tick\n", &mut handler, now) {
                Fed::Taken | Fed::Full => handler.streams.push(ticket),
                Fed::Gone => {}
            }
        }
        server.tick(&mut handler, now);
    }
}

fn rest(stream: &mut UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Reads until `end` was seen.
fn until(stream: &mut UnixStream, end: &str) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if text.contains(end) {
            return text.into_owned();
        }
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "closed after: {text}");
        bytes.extend_from_slice(&buffer[..count]);
    }
}

/// One request on a connection of its own, and how long it took.
fn probe(world: &World) -> Duration {
    let begun = Instant::now();
    let answer = world.exchange(b"GET /probe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("/probe "), "{answer}");
    begun.elapsed()
}

#[test]
fn answers_come_in_the_order_of_pipelined_requests() {
    let world = World::new();
    let mut stream = world.connect();
    let piped = "GET /later HTTP/1.1\r\nHost: x\r\n\r\nPOST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc\
                 GET /later HTTP/1.1\r\nHost: x\r\n\r\nGET /d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(piped.as_bytes()).unwrap();
    let answers = rest(&mut stream);
    let places: Vec<usize> = ["late", "/b abc", "/d "]
        .iter()
        .map(|body| answers.find(body).unwrap_or_else(|| panic!("{answers}")))
        .collect();
    assert!(places.is_sorted(), "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 4);
    assert_eq!(answers.matches("late").count(), 2);
}

#[test]
fn a_thousand_pipelined_requests_are_all_answered() {
    let world = World::new();
    let mut stream = world.connect();
    let mut sender = stream.try_clone().unwrap();
    let thread = std::thread::spawn(move || {
        for _ in 0..1000 {
            sender.write_all(b"GET /n HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        }
        sender.shutdown(Shutdown::Write).unwrap();
    });
    assert_eq!(rest(&mut stream).matches("HTTP/1.1 200 OK").count(), 1000);
    thread.join().unwrap();
}

#[test]
fn http_1_0_chunked_and_expect() {
    let world = World::new();
    let old = world.exchange(b"GET /old HTTP/1.0\r\n\r\n");
    assert!(old.contains("Connection: close\r\n") && old.ends_with("/old "), "{old}");

    let chunked =
        b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
    assert!(world.exchange(chunked).ends_with("/c abcde"));

    let mut stream = world.connect();
    stream.write_all(b"POST /e HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n").unwrap();
    assert_eq!(until(&mut stream, "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"ok").unwrap();
    assert!(until(&mut stream, "/e ok").starts_with("HTTP/1.1 200 OK"));
}

#[test]
fn a_client_that_waits_for_100_continue_is_not_left_waiting_on_a_quiet_connection() {
    let world = World::new();
    let mut stream = world.connect();
    for round in 0..20 {
        stream.write_all(b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        until(&mut stream, "/first ");
        // By the time this is answered, every event of the connection has been taken: only its own input wakes it.
        probe(&world);
        stream.write_all(b"POST /e HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n").unwrap();
        let begun = Instant::now();
        assert_eq!(until(&mut stream, "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n", "round {round}");
        assert!(begun.elapsed() < Duration::from_secs(2), "round {round}");
        stream.write_all(b"ok").unwrap();
        until(&mut stream, "/e ok");
    }
}

#[test]
fn a_body_one_byte_at_a_time_arrives() {
    let world = World::new();
    let mut stream = world.connect();
    for byte in b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello" {
        stream.write_all(&[*byte]).unwrap();
    }
    assert!(rest(&mut stream).ends_with("/slow hello"));
}

#[test]
fn what_is_too_large_or_malformed_is_told_so_and_closed() {
    let world = World::new();
    let status = |bytes: &[u8]| world.exchange(bytes).split(' ').nth(1).map(str::to_owned).unwrap_or_default();
    let head = [b"GET / HTTP/1.1\r\nHost: x\r\nX: ".to_vec(), vec![b'x'; 9000], b"\r\n\r\n".to_vec()].concat();
    assert_eq!(status(&head), "431");
    let body = [b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n".to_vec(), vec![b'x'; 70_000]].concat();
    assert_eq!(status(&body), "413");
    assert_eq!(status(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx"), "400");
    assert_eq!(
        status(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx"),
        "400"
    );
    assert_eq!(status(b"GET / HTTP/1.1\r\n\r\n"), "400");
    assert_eq!(status(b"GET / HTTP/2.0\r\nHost: x\r\n\r\n"), "505");
    assert_eq!(status(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 tls?\r\n\r\n"), "400");
}

#[test]
fn five_hundred_half_open_connections_do_not_delay_the_next_one() {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, limit.1.min(8192), limit.1).unwrap();
    let limits = Limits { head_time: Duration::from_secs(1), ..Limits::default() };
    let world = World::with(limits, Caps { connections: 1024, per_key: 1024 }, Echo::default());
    let mut half: Vec<UnixStream> = (0..500)
        .map(|number| {
            let mut stream = world.connect();
            if number % 2 == 0 {
                stream.write_all(b"POST /half HTTP/1.1\r\nHost: ").unwrap();
            }
            stream
        })
        .collect();
    for _ in 0..10 {
        let took = probe(&world);
        assert!(took < Duration::from_millis(500), "{took:?}");
    }
    // A silent connection is closed, a half-sent head is told why.
    for (number, stream) in half.iter_mut().enumerate() {
        let last = rest(stream);
        if number % 2 == 0 { assert!(last.starts_with("HTTP/1.1 408 "), "{last}") } else { assert_eq!(last, "") }
    }
}

#[test]
fn a_reader_that_stops_delays_nobody_and_is_dropped() {
    let limits = Limits { stall_time: Duration::from_millis(300), ..Limits::default() };
    let world = World::with(limits, Caps { connections: 16, per_key: 16 }, Echo::default());
    let mut stuck: Vec<UnixStream> = (0..8)
        .map(|_| {
            let mut stream = world.connect();
            stream.write_all(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            stream
        })
        .collect();
    for _ in 0..10 {
        let took = probe(&world);
        assert!(took < Duration::from_millis(500), "{took:?}");
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    let dropped = |stream: &mut UnixStream| {
        // Unread data stays readable; the write side tells that the other end is gone.
        stream.write_all(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n").is_err()
    };
    while !stuck.iter_mut().all(dropped) {
        assert!(Instant::now() < deadline, "stalled readers are kept");
        std::thread::yield_now();
    }
}

#[test]
fn a_patient_reader_gets_a_long_answer_whole() {
    let world = World::new();
    let answer = world.exchange(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(answer.split_once("\r\n\r\n").unwrap().1.len(), BIG);
}

#[test]
fn caps_turn_away_one_peer_with_a_word_and_heal() {
    let world = World::with(Limits::default(), Caps { connections: 64, per_key: 4 }, Echo::default());
    let held: Vec<UnixStream> = (0..4).map(|_| world.connect()).collect();
    let mut fifth = world.connect();
    let refusal = until(&mut fifth, "too many connections");
    assert!(refusal.starts_with("HTTP/1.1 503 "), "{refusal}");
    // Not closed yet: a client that writes before it reads gets the words, not an error.
    let mut sixth = world.connect();
    until(&mut world.connect(), "too many connections");
    sixth.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    until(&mut sixth, "too many connections");
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut stream = world.connect();
        // Turned away, the connection may end at any point of this.
        let sent = stream.write_all(b"GET /again HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let mut answer = Vec::new();
        if sent.and_then(|()| stream.read_to_end(&mut answer)).is_ok() && answer.ends_with(b"/again ") {
            return;
        }
        assert!(Instant::now() < deadline, "the cap did not heal");
    }
}

#[test]
fn a_stream_stays_open_and_its_end_is_noticed() {
    let world = World::new();
    let mut stream = world.connect();
    stream.write_all(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let beginning = until(&mut stream, "5\r\ntick\n\r\n5\r\ntick\n\r\n");
    assert!(beginning.contains("Transfer-Encoding: chunked"), "{beginning}");
    drop(stream);
    // A reader that never reads loses pieces; the others see nothing of it.
    let mut lazy = world.connect();
    lazy.write_all(b"GET /stream HTTP/1.0\r\n\r\n").unwrap();
    assert!(probe(&world) < Duration::from_millis(500));
    assert!(until(&mut lazy, "tick\ntick\n").contains("Connection: close"));
}

#[test]
fn a_refused_peer_is_answered_and_closed() {
    let world =
        World::with(Limits::default(), Caps { connections: 16, per_key: 16 }, Echo { refuse: true, ..Echo::default() });
    let mut stream = world.connect();
    stream.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let answer = rest(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden") && answer.ends_with("not you"), "{answer}");
}

#[test]
fn a_client_that_leaves_takes_nothing_with_it() {
    let world = World::new();
    for _ in 0..100 {
        let mut stream = world.connect();
        stream.write_all(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        drop(stream);
    }
    assert!(probe(&world) < Duration::from_secs(1));
}
