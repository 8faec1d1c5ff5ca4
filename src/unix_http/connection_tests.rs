//! The connection core, fed with bytes and a made-up clock.

use super::*;

const T0: Duration = Duration::ZERO;

struct World {
    start: Instant,
    connection: Connection,
}

impl World {
    fn new() -> Self {
        let start = Instant::now();
        World { start, connection: Connection::new(Limits::default(), start) }
    }

    fn at(&self, after: Duration) -> Instant {
        self.start + after
    }

    /// Sends bytes and gives what is to be answered.
    fn send(&mut self, bytes: &[u8]) -> Option<Step> {
        let now = self.at(T0);
        for piece in bytes.chunks(1024) {
            assert!(self.connection.room() >= piece.len());
            self.connection.receive(piece, now);
            if let Some(step) = self.connection.advance(now) {
                return Some(step);
            }
        }
        None
    }

    /// Answers with `body` and gives what went out.
    fn answer(&mut self, body: &str) -> String {
        let now = self.at(T0);
        self.connection.answer(&Response::whole(200, "text/plain", body.as_bytes().to_vec()), now);
        self.written()
    }

    fn written(&mut self) -> String {
        let text = String::from_utf8(self.connection.output().to_vec()).unwrap();
        self.connection.wrote(text.len(), self.at(T0));
        text
    }

    fn next(&mut self) -> Option<Step> {
        let now = self.at(T0);
        self.connection.advance(now)
    }
}

fn path_of(step: Option<Step>) -> String {
    match step {
        Some(Step::Request { path, .. }) => path.into(),
        other => panic!("no request: {other:?}"),
    }
}

fn status_of(step: Option<Step>) -> u16 {
    match step {
        Some(Step::Malformed { status, .. }) => status,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_request_is_given_when_its_body_is_whole() {
    let mut world = World::new();
    assert_eq!(world.send(b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab"), None);
    let Some(Step::Request { method, path, query, body, .. }) = world.send(b"cd") else { panic!() };
    assert_eq!((&*method, &*path, query.as_deref(), &body[..]), ("POST", "/a", Some("b=c"), &b"abcd"[..]));
}

#[test]
fn pipelined_requests_wait_for_the_answer_before_them() {
    let mut world = World::new();
    assert_eq!(path_of(world.send(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n")), "/1");
    assert_eq!(world.next(), None);
    world.connection.answer(&Response::whole(200, "text/plain", b"one".to_vec()), world.start);
    assert_eq!(world.next(), None, "the first answer has not left yet");
    assert!(world.written().ends_with("one"));
    assert_eq!(path_of(world.next()), "/2");
    assert!(world.answer("two").ends_with("two"));
    assert_eq!(world.next(), None);
    assert!(!world.connection.is_closed());
}

#[test]
fn chunked_bodies_are_joined() {
    let mut world = World::new();
    let step =
        world.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    assert!(matches!(step, Some(Step::Request { body, .. }) if body == b"abcde"));
}

#[test]
fn bodies_over_the_cap_are_refused_however_they_are_framed() {
    let mut world = World::new();
    assert_eq!(status_of(world.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n")), 413);
    let mut world = World::new();
    assert_eq!(world.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n20000\r\n"), None);
    assert_eq!(status_of(world.send(&vec![b'x'; 66_000])), 413);
    assert!(world.answer("no").contains("Connection: close"));
    assert_eq!(world.next(), None);
    assert!(world.connection.take_shutdown());
    assert!(!world.connection.take_shutdown());
    world.connection.end_of_input();
    assert!(world.connection.is_closed());
}

#[test]
fn a_client_that_waits_is_told_to_go_on() {
    let mut world = World::new();
    assert_eq!(world.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"), None);
    assert_eq!(world.written(), "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(matches!(world.send(b"ok"), Some(Step::Request { .. })));
    let mut world = World::new();
    let head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\nExpect: 100-continue\r\n\r\n";
    assert_eq!(status_of(world.send(head)), 413);
    let mut world = World::new();
    assert_eq!(status_of(world.send(b"GET / HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n")), 417);
}

#[test]
fn http_1_0_closes_unless_asked_not_to() {
    let mut world = World::new();
    assert_eq!(path_of(world.send(b"GET /a HTTP/1.0\r\n\r\n")), "/a");
    assert!(world.answer("x").contains("\r\nConnection: close\r\n"));
    assert_eq!(world.next(), None);
    assert!(world.connection.take_shutdown());
    let mut world = World::new();
    assert_eq!(path_of(world.send(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")), "/a");
    assert!(world.answer("x").contains("\r\nConnection: keep-alive\r\n"));
    assert_eq!(world.next(), None);
    assert_eq!(path_of(world.send(b"GET /b HTTP/1.0\r\n\r\n")), "/b");
}

#[test]
fn head_gets_the_length_and_no_body() {
    let mut world = World::new();
    assert_eq!(path_of(world.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")), "/");
    let answer = world.answer("12345");
    assert!(answer.contains("Content-Length: 5\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn malformed_heads_are_answered_once_and_nothing_after_them_is_read() {
    let mut world = World::new();
    let two = b"GET / HTTP/1.1\r\nHost : x\r\n\r\nGET /hidden HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(status_of(world.send(two)), 400);
    assert!(world.answer("no").contains("Connection: close"));
    assert_eq!(world.next(), None);
    assert_eq!(world.send(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n"), None);
    assert_eq!(status_of(World::new().send(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n")), 400);
    let long = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 9000]].concat();
    assert_eq!(status_of(World::new().send(&long)), 431);
}

#[test]
fn deadlines_of_head_body_idle_and_reader() {
    let seconds = Duration::from_secs;
    let mut silent = World::new();
    assert_eq!(silent.connection.deadline(), Some(silent.at(seconds(5))));
    assert_eq!(silent.connection.expire(silent.at(seconds(5))), None);
    assert!(silent.connection.is_closed());

    let mut half = World::new();
    half.send(b"GET / HT");
    assert_eq!(half.connection.expire(half.at(seconds(4))), None);
    assert_eq!(status_of(half.connection.expire(half.at(seconds(5)))), 408);

    let mut body = World::new();
    body.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab");
    assert_eq!(body.connection.deadline(), Some(body.at(seconds(10))));
    assert_eq!(status_of(body.connection.expire(body.at(seconds(10)))), 408);

    let mut idle = World::new();
    idle.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(idle.connection.deadline(), None, "a handler keeps its own time");
    idle.answer("x");
    idle.next();
    assert_eq!(idle.connection.deadline(), Some(idle.at(seconds(30))));

    let mut slow = World::new();
    slow.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    slow.connection.answer(&Response::whole(200, "text/plain", vec![b'x'; 1000]), slow.start);
    slow.connection.wrote(10, slow.at(seconds(3)));
    assert_eq!(slow.connection.deadline(), Some(slow.at(seconds(13))));
    slow.connection.expire(slow.at(seconds(13)));
    assert!(slow.connection.is_closed());
}

#[test]
fn a_stream_is_fed_until_it_is_finished_and_a_slow_reader_loses_pieces() {
    let mut world = World::new();
    world.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n");
    let now = world.at(T0);
    world.connection.answer(&Response::stream("application/x-ndjson"), now);
    assert!(world.written().contains("Transfer-Encoding: chunked"));
    assert_eq!(world.connection.deadline(), None, "a quiet stream is no stalled one");
    assert!(world.connection.feed(b"{}\n", now));
    assert_eq!(world.written(), "3\r\n{}\n\r\n");
    let piece = vec![b'x'; 100 * 1024];
    assert!(world.connection.feed(&piece, now) && world.connection.feed(&piece, now));
    assert!(!world.connection.feed(&piece, now));
    world.written();
    world.connection.finish(now);
    assert_eq!(world.written(), "0\r\n\r\n");
    assert_eq!(world.next(), None);
    assert_eq!(path_of(world.send(b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n")), "/next");
}

#[test]
fn a_reader_that_is_always_behind_has_no_more_kept_than_twice_what_waits() {
    let mut world = World::new();
    world.send(b"GET /events HTTP/1.0\r\nHost: x\r\n\r\n");
    let now = world.at(T0);
    world.connection.answer(&Response::stream("application/x-ndjson"), now);
    world.written();
    assert!(world.connection.feed(&[0; 500], now));
    let mut taken = Vec::new();
    for round in 1..=200 {
        assert!(world.connection.feed(&[round; 1000], now));
        taken.extend_from_slice(&world.connection.output()[..1000]);
        world.connection.wrote(1000, now);
        assert_eq!(world.connection.output().len(), 500);
        assert!(world.connection.output.len() <= 2 * 500, "{} bytes are kept", world.connection.output.len());
    }
    taken.extend_from_slice(world.connection.output());
    let fed: Vec<u8> = [0; 500].into_iter().chain((1..=200).flat_map(|round| [round; 1000])).collect();
    assert!(taken == fed);
}

#[test]
fn a_half_closed_client_still_gets_its_answers() {
    let mut world = World::new();
    assert_eq!(path_of(world.send(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n")), "/1");
    world.connection.end_of_input();
    world.answer("one");
    assert_eq!(path_of(world.next()), "/2");
    world.answer("two");
    assert_eq!(world.next(), None);
    assert!(world.connection.is_closed());
}

#[test]
fn a_field_value_cannot_start_a_field_of_its_own() {
    let mut world = World::new();
    world.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let response = Response::whole(200, "text/plain", Vec::new()).with("Allow", "GET\r\nX-Evil: 1");
    world.connection.answer(&response, world.start);
    assert!(!world.written().contains("Evil"));
}

/// Every step of `wire` fed in pieces that end at `cuts`, each answered at once.
fn steps(wire: &[u8], cuts: &[usize]) -> Vec<Step> {
    let mut world = World::new();
    let now = world.at(T0);
    let mut found = Vec::new();
    let mut begin = 0;
    for end in cuts.iter().copied().chain([wire.len()]) {
        let mut piece = &wire[begin..end.max(begin)];
        begin = end.max(begin);
        loop {
            let take = piece.len().min(world.connection.room());
            world.connection.receive(&piece[..take], now);
            piece = &piece[take..];
            while let Some(step) = world.connection.advance(now) {
                found.push(step);
                world.connection.answer(&Response::whole(200, "text/plain", Vec::new()), now);
                world.connection.wrote(world.connection.output().len(), now);
            }
            world.connection.wrote(world.connection.output().len(), now);
            if piece.is_empty() || world.connection.room() == 0 {
                break;
            }
        }
    }
    found
}

proptest::proptest! {
    #[test]
    fn how_bytes_arrive_makes_no_difference(mut cuts in proptest::collection::vec(0_usize..230, 0..12)) {
        let wire: &[u8] = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n\
            PUT /b?q HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello\
            GET /c HTTP/1.1\r\nHost: x\r\n\r\nGET /d HTTP/1.1\r\nHost : x\r\n\r\n";
        cuts.sort_unstable();
        cuts.retain(|cut| *cut <= wire.len());
        let whole = steps(wire, &[]);
        proptest::prop_assert_eq!(whole.len(), 4);
        proptest::prop_assert_eq!(steps(wire, &cuts), whole);
    }

    #[test]
    fn noise_is_answered_or_waited_for(wire in proptest::collection::vec(proptest::num::u8::ANY, 0..2000), cut in 0_usize..2000) {
        let cut = cut.min(wire.len());
        // Nothing but refusals can come of it: no request begins with a byte that is no token.
        let found = steps(&[b"\x00".as_slice(), &wire].concat(), &[cut]);
        let refused = found.iter().all(|step| matches!(step, Step::Malformed { .. }));
        proptest::prop_assert!(refused);
        proptest::prop_assert!(found.len() <= 1);
    }
}
