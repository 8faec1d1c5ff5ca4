//! What flows inside interception: bodies that rules look into, streams, and peers that do not play by the rules.

mod intercept_support;
mod proxy_support;

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use intercept_support::{Flaw, World, request, server_config};
use outcall::events::Verdict;
use proxy_support::{Origin, Running, Wire};

const GOOD: &[&str] = &[
    "good intercept_body http.host == 'ok.example' && http.body.contains('good') && http.body_size > 0",
    "unread intercept_body http.path == '/unread' && http.body == null",
    "get intercept http.host == 'ok.example' && http.method == 'GET' && http.body == null",
];

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn post(client: &mut Wire, path: &str, fields: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let head = format!("POST {path} HTTP/1.1\r\nHost: ok.example\r\n{fields}Content-Length: {}\r\n\r\n", body.len());
    client.send([head.as_bytes(), body].concat());
    let seen = client.response();
    (seen.status, seen.body)
}

fn bodies() -> (World, Running, Origin) {
    let world = World::new();
    let (proxy, origin) = (world.setup_with_cap(GOOD, 1000).start(), world.origin());
    (world, proxy, origin)
}

#[test]
fn a_body_is_judged_decoded_and_sent_as_it_came() {
    let (world, proxy, origin) = bodies();
    let mut client = world.client(&proxy, "ok.example", &origin);
    assert_eq!(post(&mut client, "/", "", b"a good one"), (200, b"a good one".to_vec()));
    assert_eq!(post(&mut client, "/", "", b"an evil one").0, 403);
    assert_eq!(post(&mut client, "/", "", b"\xffgood\xfe"), (200, b"\xffgood\xfe".to_vec()));
    let packed = gzip(b"good, but packed");
    assert_eq!(post(&mut client, "/", "Content-Encoding: gzip\r\n", &packed), (200, packed));
    assert_eq!(post(&mut client, "/", "Content-Encoding: gzip\r\n", &gzip(b"evil")).0, 403);
    client.send("POST / HTTP/1.1\r\nHost: ok.example\r\nTransfer-Encoding: chunked\r\n\r\n2\r\ngo\r\n");
    client.send("2\r\nod\r\n0\r\nX-Trailer: t\r\n\r\n");
    assert_eq!(client.response().body, b"goodX-Trailer: t\n");
    // A rule without `match_body` sees null, read or not.
    client.send(request("GET", "ok.example", "/get", "", "any"));
    assert_eq!(client.response().status, 200);
    assert_eq!(origin.seen().len(), 5);
}

#[test]
fn a_body_that_cannot_be_decoded_is_refused() {
    let (world, proxy, origin) = bodies();
    for (encoding, body) in [("gzip", b"good".to_vec()), ("zstd", b"good".to_vec()), ("br", vec![0xff; 9])] {
        let mut client = world.client(&proxy, "ok.example", &origin);
        let fields = format!("Content-Encoding: {encoding}\r\n");
        client.send(
            [
                format!("POST / HTTP/1.1\r\nHost: ok.example\r\n{fields}Content-Length: {}\r\n\r\n", body.len())
                    .into_bytes(),
                body,
            ]
            .concat(),
        );
        let seen = client.response();
        assert_eq!((seen.status, seen.field("x-outcall-failure-reason")), (502, Some("body_decode_failed")));
        assert_eq!(proxy.event_of(Verdict::Block), "body_decode_failed ok.example -");
    }
    assert!(origin.seen().is_empty());
}

#[test]
fn a_body_over_the_cap_is_null_and_streamed() {
    let (world, proxy, origin) = bodies();
    let long = b"good ".repeat(200_000);
    let mut client = world.client(&proxy, "ok.example", &origin);
    assert_eq!(post(&mut client, "/unread", "", &long), (200, long.clone()));
    let mut client = world.client(&proxy, "ok.example", &origin);
    assert_eq!(post(&mut client, "/", "", &long[..5000]).0, 403);
    // A bomb is over the cap, too.
    let bomb = gzip(&vec![b'g'; 200_000]);
    assert!(bomb.len() < 1000);
    let mut client = world.client(&proxy, "ok.example", &origin);
    assert_eq!(post(&mut client, "/", "Content-Encoding: gzip\r\n", &bomb).0, 403);
    assert_eq!(post(&mut client, "/unread", "Content-Encoding: gzip\r\n", &bomb), (200, bomb));
}

#[test]
fn the_proxy_asks_for_a_body_that_waits() {
    let (world, proxy, origin) = bodies();
    let mut client = world.client(&proxy, "ok.example", &origin);
    client.send("POST / HTTP/1.1\r\nHost: ok.example\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(origin.seen().is_empty());
    client.send("good");
    assert_eq!(client.response().body, b"good");
    assert!(!origin.seen()[0].to_lowercase().contains("expect"));
}

#[test]
fn a_large_transfer_passes_both_ways() {
    let world = World::new();
    let (proxy, origin) =
        (world.setup(&["r intercept http.host == 'ok.example' && http.method == 'POST'"]).start(), world.origin());
    let mut client = world.client(&proxy, "ok.example", &origin);
    let body: Vec<u8> = (0..8_000_000u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(post(&mut client, "/", "", &body), (200, body));
}

#[test]
fn a_websocket_passes_when_its_request_does() {
    let world = World::new();
    let rules = &["ws intercept http.host == 'ok.example' && http.path == '/ws'"];
    let proxy = world.setup(rules).start();
    let config = server_config(&world.theirs, Flaw::None, rustls::ALL_VERSIONS, None);
    let origin = world.origin_that(config, |mut wire, log| {
        log.lock().unwrap().push(wire.head());
        wire.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
        let frame = wire.exactly(5);
        wire.send(frame);
        assert_eq!(wire.exactly(3), b"end");
        wire.close_tls();
        let _ = wire.rest();
    });
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n";
    let mut client = world.client(&proxy, "ok.example", &origin);
    client.send(request("GET", "ok.example", "/other", upgrade, ""));
    assert_eq!(client.response().status, 403);
    client.send(request("GET", "ok.example", "/ws", upgrade, ""));
    assert!(client.head().starts_with("HTTP/1.1 101"));
    client.send("frame");
    assert_eq!(client.exactly(5), b"frame");
    client.send("end");
    assert!(client.is_closed());
}

#[test]
fn a_response_that_is_cut_never_looks_whole() {
    let world = World::new();
    let proxy = world.setup(&["r intercept http.host == 'ok.example' && http.method == 'GET'"]).start();
    for whole in [true, false] {
        let config = server_config(&world.theirs, Flaw::None, rustls::ALL_VERSIONS, None);
        let origin = world.origin_that(config, move |mut wire, _| {
            wire.head();
            wire.send("HTTP/1.1 200 OK\r\n\r\nuntil the end");
            if whole {
                wire.close_tls();
            }
            let _ = wire.stream.shutdown(std::net::Shutdown::Write);
            let _ = wire.rest();
        });
        let mut client = world.client(&proxy, "ok.example", &origin);
        client.send(request("GET", "ok.example", "/", "", ""));
        assert!(client.head().starts_with("HTTP/1.1 200"));
        assert_eq!(client.is_truncated(), !whole);
    }
}

#[test]
fn floods_inside_tls_end_the_connection() {
    let world = World::new();
    let rule = "r intercept http.host == 'ok.example' && http.method == 'GET'";
    let (proxy, origin) = (world.setup(&[rule]).start(), world.origin());
    let mut client = world.client(&proxy, "ok.example", &origin);
    // More than fit between two bytes of data; rustls itself counts those that ask for one in return.
    for _ in 0..6000 {
        let tls = client.tls.as_mut().unwrap();
        if tls.refresh_traffic_keys().is_err() {
            break;
        }
        // The proxy may have had enough already.
        if tls.write_tls(&mut client.stream).is_err() {
            break;
        }
    }
    client.tls = None;
    // An alert, or the reset that ate it; not a connection that goes on.
    let _ = client.rest();
    // The next client is served as ever.
    let mut client = world.client(&proxy, "ok.example", &origin);
    client.send(request("GET", "ok.example", "/still", "", ""));
    assert_eq!(client.response().text(), "/still");
    // A server that breaks TLS in the middle of an answer.
    let config = server_config(&world.theirs, Flaw::None, rustls::ALL_VERSIONS, None);
    let origin = world.origin_that(config, |mut wire, _| {
        wire.head();
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        let _ = wire.stream.write_all(&[0x17, 3, 3, 0, 32, 1, 2, 3].repeat(20));
        wire.tls = None;
        let _ = wire.rest();
    });
    let mut client = world.client(&proxy, "ok.example", &origin);
    client.send(request("GET", "ok.example", "/", "", ""));
    let head = client.head();
    // Told before the noise was read, or after it: never an answer that looks whole.
    if head.starts_with("HTTP/1.1 200") {
        // However the connection ends, it ends short of the length that was said.
        assert!(client.rest().len() < 100);
    } else {
        assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    }
}

#[test]
fn a_slow_client_stops_the_server() {
    let world = World::new();
    let proxy = world.setup(&["r intercept http.host == 'ok.example' && http.method == 'GET'"]).start();
    let config = server_config(&world.theirs, Flaw::None, rustls::ALL_VERSIONS, None);
    let (sent, count) = std::sync::mpsc::channel();
    let origin = world.origin_that(config, move |mut wire, _| {
        wire.head();
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        wire.stream.set_write_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
        let mut total = 0usize;
        let tls = wire.tls.as_mut().unwrap();
        'sending: loop {
            total += tls.writer().write(&[7; 16_384]).unwrap();
            while tls.wants_write() {
                if tls.write_tls(&mut wire.stream).is_err() {
                    break 'sending;
                }
            }
        }
        sent.send(total).unwrap();
    });
    let mut client = world.client(&proxy, "ok.example", &origin);
    client.send(request("GET", "ok.example", "/", "", ""));
    let total = count.recv_timeout(proxy_support::PATIENCE).unwrap();
    // The kernel's socket buffers, and next to nothing of ours.
    assert!(total < 64_000_000, "{total}");
}
