//! Hostile clients and hostile servers.

mod proxy_support;

use std::io::{Read, Write};
use std::time::Duration;

use proxy_support::{Origin, Running, Setup, until};

const OK: &[&str] = &["ok allow http.host == 'ok.example'"];

fn get(proxy: &Running, origin: &Origin) -> (u16, Vec<u8>) {
    let mut client = proxy.client();
    let host = format!("ok.example:{}", origin.port);
    client.send(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    let head = client.head();
    let status = head.get(9..12).map_or(0, |status| status.parse().unwrap());
    (status, client.rest_until_quiet())
}

impl proxy_support::Wire {
    /// The rest, for answers after which the connection may stay open.
    fn rest_until_quiet(&mut self) -> Vec<u8> {
        self.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut all = self.take_buffered();
        let mut piece = [0; 4096];
        while let Ok(bytes @ 1..) = self.stream.read(&mut piece) {
            all.extend_from_slice(&piece[..bytes]);
        }
        all
    }
}

#[test]
fn every_case_of_the_smuggling_corpus_is_refused_or_read_one_way() {
    let (proxy, origin) = (Setup::new(OK).start(), Origin::echo());
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/http");
    let mut cases = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        // The name begins with the status that is due; `PORT` stands for the origin's.
        let Ok(expected) = name[..3].parse::<u16>() else { continue };
        let text = std::fs::read_to_string(&path).unwrap();
        let wire = unescape(&text.replace("PORT", &origin.port.to_string()));
        let mut client = proxy.client();
        client.send(&wire);
        let seen = client.response();
        assert_eq!(seen.status, expected, "{name}: {}", seen.text());
        if expected != 200 {
            assert!(client.is_closed(), "{name}");
        }
        cases += 1;
    }
    assert!(cases >= 30, "{cases} cases");
    for head in origin.seen() {
        assert!(!head.contains("smuggled"), "{head}");
    }
}

/// Corpus files are one line of text with `\r`, `\n`, `\t`, `\0`, `\xNN` and `\\` escaped; line ends do not count.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.chars().filter(|c| *c != '\n');
    while let Some(c) = rest.next() {
        if c != '\\' {
            bytes.extend(c.to_string().bytes());
            continue;
        }
        bytes.push(match rest.next() {
            Some('r') => b'\r',
            Some('n') => b'\n',
            Some('t') => b'\t',
            Some('0') => 0,
            Some('x') => {
                let digits: String = rest.by_ref().take(2).collect();
                u8::from_str_radix(&digits, 16).unwrap()
            }
            Some('\\') => b'\\',
            other => panic!("unknown escape {other:?}"),
        });
    }
    bytes
}

#[test]
fn malformed_responses_are_a_502() {
    let proxy = Setup::new(OK).start();
    let responses: [&'static [u8]; 14] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 1\n\na",
        b"HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"\x16\x03\x01\x00\x05hello",
        b"",
    ];
    for response in responses {
        let origin = Origin::canned(response);
        assert_eq!(get(&proxy, &origin).0, 502, "{:?}", String::from_utf8_lossy(response));
    }
}

#[test]
fn a_response_that_is_cut_short_does_not_look_whole() {
    let proxy = Setup::new(OK).start();
    let cut = Origin::canned(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
    assert_eq!(get(&proxy, &cut), (200, b"abc".to_vec()));
    let cut = Origin::canned(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    assert_eq!(get(&proxy, &cut), (200, b"3\r\nabc\r\n".to_vec()));
    let bad = Origin::canned(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nx\r\n0\r\n\r\n");
    let (status, body) = get(&proxy, &bad);
    assert!(status == 200 && !body.ends_with(b"0\r\n\r\n"), "{body:?}");
}

#[test]
fn bytes_behind_a_response_are_nobodys() {
    let behind = Origin::canned(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled",
    );
    let proxy = Setup::new(OK).start();
    assert_eq!(get(&proxy, &behind), (200, b"ok".to_vec()));
    let head = Origin::canned(b"HTTP/1.1 204 No Content\r\nContent-Length: 8\r\n\r\nsmuggled");
    assert_eq!(get(&proxy, &head), (204, Vec::new()));
}

#[test]
fn endless_heads_and_interim_responses_end() {
    let proxy = Setup::new(OK).start();
    let endless = |start: &'static [u8], again: &'static [u8]| {
        Origin::with(move |mut wire, _| {
            wire.head();
            let _ = wire.stream.write_all(start);
            while wire.stream.write_all(again).is_ok() {}
        })
    };
    assert_eq!(get(&proxy, &endless(b"HTTP/1.1 200 OK\r\n", b"X-A: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\n")).0, 502);
    assert_eq!(get(&proxy, &endless(b"HTTP/1.1 200 ", b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")).0, 502);
    let interim = endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n");
    let mut client = proxy.client();
    let host = format!("ok.example:{}", interim.port);
    client.send(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    let mut seen = 0;
    loop {
        match client.response().status {
            102 => seen += 1,
            status => break assert_eq!(status, 502),
        }
    }
    assert!(seen <= 16, "{seen}");
    drop(client);
    let trailers = endless(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"X-A: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\n",
    );
    assert_eq!(get(&proxy, &trailers).0, 200);
    until("all are gone", || proxy.status().active_connections == 0);
}

#[test]
fn a_server_that_answers_early_and_resets_is_still_heard() {
    let origin = Origin::with(|mut wire, _| {
        wire.head();
        wire.send("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig");
        std::thread::sleep(Duration::from_millis(50));
    });
    let proxy = Setup::new(OK).start();
    let mut client = proxy.client();
    let host = format!("ok.example:{}", origin.port);
    client.send(format!("POST http://{host}/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100000000\r\n\r\n"));
    client.send(vec![0; 1000]);
    let seen = client.response();
    assert_eq!((seen.status, seen.text(), seen.field("connection")), (413, "big".to_owned(), Some("close")));
}

#[test]
fn idle_connections_cost_no_processor_time() {
    let proxy = Setup::new(OK).start();
    let clients: Vec<_> = (0..50).map(|_| proxy.client()).collect();
    until("all are in", || proxy.status().active_connections == 50);
    // The loop answers before it sleeps again.
    let mut before = proxy.wake_ups();
    until("the loop to sleep", || {
        std::thread::sleep(Duration::from_millis(100));
        let now = proxy.wake_ups();
        std::mem::replace(&mut before, now) == now
    });
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(proxy.wake_ups(), before, "the loop woke up with nothing to do");
    drop(clients);
    until("all are gone", || proxy.status().active_connections == 0);
    assert!(proxy.wake_ups() > before);
}
