//! CONNECT: what is said first inside decides, and nothing passes before.

mod proxy_support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use outcall::events::Verdict;
use proxy_support::{Origin, Running, Setup, Wire, client_hello, directory, until};

const OK: &[&str] = &["ok allow http.host == 'ok.example'"];

/// An origin that logs and echoes whatever it gets.
fn echo() -> Origin {
    use std::io::{Read, Write};
    Origin::with(|mut wire, log| {
        let mut piece = [0; 4096];
        while let Ok(bytes @ 1..) = wire.stream.read(&mut piece) {
            log.lock().unwrap().push(format!("{} bytes", bytes));
            if wire.stream.write_all(&piece[..bytes]).is_err() {
                return;
            }
        }
    })
}

fn tunnel(proxy: &Running, host: &str, origin: &Origin) -> Wire {
    let mut client = proxy.client();
    let seen = client.connect(&format!("{host}:{}", origin.port));
    assert_eq!(seen.status, 200, "{}", seen.text());
    client
}

#[test]
fn a_tunnel_with_an_allowed_name_is_copied_both_ways() {
    let (proxy, origin) = (Setup::new(OK).start(), echo());
    let mut last = None;
    for sni in [Some("ok.example"), Some("OK.Example"), None] {
        let mut client = tunnel(&proxy, "ok.example", &origin);
        let hello = client_hello(sni);
        client.send(&hello);
        assert_eq!(client.exactly(hello.len()), hello);
        client.send([0; 100_000]);
        assert_eq!(client.exactly(100_000), [0; 100_000]);
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(client.is_closed());
        let allowed = proxy.event();
        assert_eq!(
            (allowed.verdict, allowed.reason, allowed.method.as_deref()),
            (Verdict::Allow, "rule", Some("CONNECT"))
        );
        let end = proxy.event();
        let bytes = hello.len() as u64 + 100_000;
        assert_eq!((end.reason, end.bytes_up, end.bytes_down), ("closed", Some(bytes), Some(bytes)));
        assert_eq!(allowed.flow, end.flow);
        assert!(allowed.flow > last, "each tunnel has a flow of its own");
        last = allowed.flow;
    }
}

/// Bulk moves through pipes in the kernel: it must arrive whole and in order, also while the reader stalls.
#[test]
fn bulk_passes_unchanged_both_ways_at_once() {
    const SIZE: usize = 24 << 20;
    let (proxy, origin) = (Setup::new(OK).start(), echo());
    let mut client = tunnel(&proxy, "ok.example", &origin);
    let hello = client_hello(Some("ok.example"));
    client.send(&hello);
    assert_eq!(client.exactly(hello.len()), hello);
    // A pattern whose period is prime to every buffer's size: a piece that is lost or swapped shows.
    let sent: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8).collect();
    let mut writer = client.stream.try_clone().unwrap();
    let pattern = sent.clone();
    let up = std::thread::spawn(move || {
        use std::io::Write;
        writer.write_all(&pattern).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let got = client.rest();
    up.join().unwrap();
    assert!(got == sent, "{} of {SIZE} bytes came back, or not the same", got.len());
    assert_eq!(proxy.event().reason, "rule");
    let (end, bytes) = (proxy.event(), (SIZE + hello.len()) as u64);
    assert_eq!((end.reason, end.bytes_up, end.bytes_down), ("closed", Some(bytes), Some(bytes)));
}

#[test]
fn a_hello_may_come_a_byte_at_a_time() {
    let (proxy, origin) = (Setup::new(OK).start(), echo());
    let mut client = tunnel(&proxy, "ok.example", &origin);
    let hello = client_hello(Some("ok.example"));
    for byte in &hello {
        client.send([*byte]);
    }
    assert_eq!(client.exactly(hello.len()), hello);
}

#[test]
fn a_server_name_is_judged_like_a_host() {
    let both = &[
        "ok allow http.host == 'ok.example'",
        "other allow http.host == 'other.example' && tls.sni == 'other.example'",
    ];
    let (proxy, origin) = (Setup::new(both).start(), echo());
    let mut client = tunnel(&proxy, "ok.example", &origin);
    client.send(client_hello(Some("bad.example")));
    assert!(client.is_closed());
    assert!(origin.seen().is_empty(), "nothing was passed on");
    assert_eq!(proxy.event_of(Verdict::Block), "default bad.example -");
    let mut client = tunnel(&proxy, "ok.example", &origin);
    let hello = client_hello(Some("other.example"));
    client.send(&hello);
    assert_eq!(client.exactly(hello.len()), hello);
    // A rule on the server name opens no CONNECT by itself: it is not known then.
    assert_eq!(proxy.client().connect(&format!("other.example:{}", origin.port)).status, 403);
}

#[test]
fn rules_on_the_hello_hold() {
    let rules = &["no-nameless block tls.version == '1.2'", "ok allow http.host == 'ok.example'"];
    let (proxy, origin) = (Setup::new(rules).start(), echo());
    let mut client = tunnel(&proxy, "ok.example", &origin);
    client.send(client_hello(Some("ok.example")));
    assert!(client.is_closed() && origin.seen().is_empty());
    assert_eq!(proxy.event_of(Verdict::Block), "rule ok.example no-nameless");
}

#[test]
fn what_is_neither_tls_nor_http_is_closed() {
    let (proxy, origin) = (Setup::new(OK).start(), echo());
    let odd: [&[u8]; 6] = [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00\x00\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\nHost: ok.example\n\n",
        b"\x80\x2e\x01\x03\x01",
        b"EHLO there\r\n",
    ];
    for first in odd {
        let mut client = tunnel(&proxy, "ok.example", &origin);
        client.send(first);
        assert!(client.is_closed());
        assert_eq!(proxy.event_of(Verdict::Block), "not_tls ok.example -");
    }
    let mut client = tunnel(&proxy, "ok.example", &origin);
    client.send(client_hello(Some("a..b")));
    assert!(client.is_closed());
    assert_eq!(proxy.event_of(Verdict::Block), "bad_sni ok.example -");
    assert!(origin.seen().is_empty());
}

#[test]
fn plain_http_inside_is_judged_request_by_request() {
    let rules = &[
        "no-secrets block http.path.startsWith('/secret')",
        "ok allow http.host == 'ok.example'",
        "other allow http.host == 'other.example'",
    ];
    let (proxy, origin) = (Setup::new(rules).start(), Origin::echo());
    let mut client = tunnel(&proxy, "ok.example", &origin);
    let get = |client: &mut Wire, path: &str, host: &str| {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        client.response()
    };
    let host = format!("ok.example:{}", origin.port);
    assert_eq!(get(&mut client, "/1", &host).text(), "/1");
    assert_eq!(get(&mut client, "/secret", &host).field("X-Outcall-Block-Reason"), Some("no-secrets"));
    assert_eq!(get(&mut client, "/2", &host).text(), "/2");
    assert_eq!(origin.connections(), 1);
    // Another authority, though allowed by itself, is not this tunnel's.
    assert_eq!(get(&mut client, "/", &format!("other.example:{}", origin.port)).status, 400);
    assert!(client.is_closed());
    let mut client = tunnel(&proxy, "ok.example", &origin);
    assert_eq!(get(&mut client, "/outcall-health", &host).text(), "/outcall-health", "it is the origin's path here");
    client.send(format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    assert_eq!(client.response().status, 400);
}

#[test]
fn connect_after_requests_on_one_connection_is_judged() {
    let (proxy, origin) = (Setup::new(OK).start(), Origin::echo());
    let mut client = proxy.client();
    assert_eq!(client.get(&origin.url("ok.example", "/")).status, 200);
    assert_eq!(client.connect(&format!("bad.example:{}", origin.port)).status, 403);
    assert_eq!(client.connect(&format!("ok.example:{}", origin.port)).status, 200);
}

#[test]
fn new_rules_close_the_tunnels_they_refuse_and_no_others() {
    let both = &["ok allow http.host == 'ok.example'", "other allow http.host == 'other.example'"];
    let (proxy, origin) = (Setup::new(both).start(), echo());
    let hello = |name| client_hello(Some(name));
    let open = |host: &str, sni: &'static str| {
        let mut client = tunnel(&proxy, host, &origin);
        client.send(hello(sni));
        client.exactly(hello(sni).len());
        client
    };
    let mut kept = open("ok.example", "ok.example");
    let mut by_host = open("other.example", "other.example");
    let mut by_name = open("ok.example", "other.example");
    let mut waiting = tunnel(&proxy, "other.example", &origin);
    proxy.reload(OK);
    assert!(by_host.is_closed() && by_name.is_closed() && waiting.is_closed());
    kept.send("x");
    assert_eq!(kept.exactly(1), b"x");
    assert_eq!(proxy.event_of(Verdict::Block), "default other.example -");
}

#[test]
fn a_containers_end_ends_its_tunnels() {
    let origin = echo();
    let mut setup = Setup::new(OK);
    setup.directory = directory(&[("a", "a", "127.1.0.5")]);
    let proxy = setup.start();
    let mut client = proxy.client_from("127.1.0.5");
    assert_eq!(client.connect(&format!("ok.example:{}", origin.port)).status, 200);
    client.send(client_hello(None));
    client.exactly(client_hello(None).len());
    proxy.publish(|snapshot| snapshot.directory = directory(&[]).into());
    assert!(client.is_closed());
}

#[test]
fn connects_that_have_two_readings_are_refused() {
    let (proxy, origin) = (Setup::new(OK).start(), echo());
    let port = origin.port;
    for head in [
        format!("CONNECT ok.example:{port} HTTP/1.1\r\nHost: bad.example:{port}\r\n\r\n"),
        format!("CONNECT ok.example:{port} HTTP/1.1\r\nHost: ok.example:{port}\r\nContent-Length: 5\r\n\r\nhello"),
        format!("CONNECT user@ok.example:{port} HTTP/1.1\r\nHost: ok.example:{port}\r\n\r\n"),
        "CONNECT ok.example HTTP/1.1\r\nHost: ok.example\r\n\r\n".to_owned(),
        format!("CONNECT ok.example:{port}/ HTTP/1.1\r\nHost: ok.example:{port}\r\n\r\n"),
        format!("CONNECT http://ok.example:{port} HTTP/1.1\r\nHost: ok.example:{port}\r\n\r\n"),
        "CONNECT ok.example:0 HTTP/1.1\r\nHost: ok.example\r\n\r\n".to_owned(),
    ] {
        let mut client = proxy.client();
        client.send(&head);
        assert_eq!(client.response().status, 400, "{head}");
        assert!(client.is_closed());
    }
    assert_eq!(origin.connections.load(Ordering::SeqCst), 0);
}

#[test]
fn a_silent_tunnel_ends_and_a_busy_one_does_not() {
    let mut setup = Setup::new(OK);
    setup.times.tunnel_idle = Duration::from_millis(400);
    let (proxy, origin) = (setup.start(), echo());
    let mut client = tunnel(&proxy, "ok.example", &origin);
    client.send(client_hello(None));
    client.exactly(client_hello(None).len());
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(100));
        client.send("x");
        client.exactly(1);
    }
    assert!(client.is_closed());
    assert_eq!(proxy.event_of(Verdict::Allow), "rule ok.example ok");
    assert_eq!(proxy.event_of(Verdict::Allow), "idle ok.example -");
    until("it is gone", || proxy.status().active_connections == 0);
}

#[test]
fn one_direction_may_end_before_the_other() {
    // The origin answers only when it has read everything.
    let origin = Origin::with(|mut wire, _| {
        let all = wire.rest();
        wire.send(format!("{}", all.len()));
    });
    let proxy = Setup::new(OK).start();
    let mut client = tunnel(&proxy, "ok.example", &origin);
    let hello = client_hello(None);
    client.send(&hello);
    client.send(vec![1; 50_000]);
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.rest(), (hello.len() + 50_000).to_string().into_bytes());
}
