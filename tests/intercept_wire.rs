//! Interception on the wire: which requests pass, which handshakes fail, and what the server sees of it.

mod intercept_support;
mod proxy_support;

use std::sync::Arc;
use std::time::Duration;

use intercept_support::{Ca, Flaw, World, client_config, request, server_config, shown};
use outcall::events::{Layer, Verdict};
use proxy_support::Running;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

/// The example of the documents.
const MESSAGES: &str =
    "messages intercept http.host == 'ok.example' && http.method == 'POST' && http.path.startsWith('/v1/messages')";

fn block_reasons(proxy: &Running, count: usize) -> Vec<String> {
    (0..count).map(|_| proxy.event_of(Verdict::Block)).collect()
}

#[test]
fn the_example_rule_allows_its_post_and_blocks_the_rest_of_the_host() {
    let world = World::new();
    let (proxy, origin) = (world.setup(&[MESSAGES]).start(), world.origin());
    let mut client = world.client(&proxy, "ok.example", &origin);
    client.send(request("GET", "ok.example", "/v1/messages?q=1", "", ""));
    let seen = client.response();
    assert_eq!((seen.status, seen.field("x-outcall-block-reason")), (403, Some("default")), "{}", seen.text());
    assert_eq!(origin.connections(), 0, "a refused request dials nothing");
    client.send(request("POST", "ok.example", "/v1/messages?q=1", "X-Api-Key: k\r\n", "hello"));
    let seen = client.response();
    assert_eq!((seen.status, seen.text().as_str()), (200, "hello"));
    client.send(request("POST", "ok.example", "/v1/other", "", "hello"));
    assert_eq!(client.response().status, 403);
    client.send(request("POST", "ok.example", "/v1/messages/2", "", "again"));
    assert_eq!(client.response().text(), "again");
    let heads = origin.seen();
    assert_eq!(heads.len(), 2);
    assert!(heads[0].starts_with("POST /v1/messages?q=1 HTTP/1.1\r\n") && heads[0].contains("X-Api-Key: k\r\n"));
    assert!(heads[0].contains(&format!("Host: ok.example:{}\r\n", origin.port)), "{}", heads[0]);
    drop(client);
    let events: Vec<_> = (0..6).map(|_| proxy.event()).collect();
    assert!(events.iter().all(|event| event.layer == Layer::Intercept), "{events:?}");
    let short: Vec<_> = events
        .iter()
        .map(|event| {
            let rule = event.rule.as_ref().map_or("-".into(), |rule| rule.id.clone());
            format!("{} {rule} {} {}", event.reason, event.method.as_deref().unwrap(), event.path.as_deref().unwrap())
        })
        .collect();
    assert_eq!(
        short,
        [
            "intercepted messages CONNECT /",
            "default - GET /v1/messages",
            "rule messages POST /v1/messages",
            "default - POST /v1/other",
            "rule messages POST /v1/messages/2",
            "closed - CONNECT /",
        ]
    );
    assert_eq!(events[2].bytes_up, Some(5));
    assert!(events[5].bytes_up.unwrap() > 200 && events[5].bytes_down.unwrap() > 200);
}

#[test]
fn a_tunnel_beside_it_is_untouched() {
    let world = World::new();
    let rules = &[MESSAGES, "tunnel allow http.host == 'other.example'"];
    let (proxy, origin) = (world.setup(rules).start(), world.origin());
    let theirs = client_config(&world.theirs, &["http/1.1"]);
    let mut client = world.try_client(&proxy, "other.example", "other.example", &origin, theirs.clone()).unwrap();
    client.send(request("GET", "other.example", "/", "", ""));
    assert_eq!(client.response().status, 200);
    let straight = proxy_support::Wire::new(std::net::TcpStream::connect(("127.0.0.1", origin.port)).unwrap());
    let name = ServerName::try_from("other.example").unwrap();
    let straight = straight.secure(ClientConnection::new(theirs.into(), name).unwrap()).unwrap();
    assert_eq!(shown(&client), shown(&straight));
    let decrypted = world.client(&proxy, "ok.example", &origin);
    assert_ne!(shown(&decrypted), shown(&straight));
}

#[test]
fn an_outright_match_decrypts_too_and_the_plain_request_needs_no_decryption() {
    let world = World::new();
    let (proxy, origin) = (world.setup(&["all intercept http.host == 'ok.example'"]).start(), world.origin());
    let mut client = world.client(&proxy, "ok.example", &origin);
    client.send(request("PUT", "ok.example", "/x", "", "abc"));
    assert_eq!(client.response().text(), "abc");
    let plain = proxy_support::Origin::echo();
    assert_eq!(proxy.client().get(&plain.url("ok.example", "/plain")).text(), "/plain");
}

#[test]
fn each_request_is_judged_by_the_newest_rules() {
    let world = World::new();
    let get = "r intercept http.host == 'ok.example' && http.method == 'GET'";
    let post = "r intercept http.host == 'ok.example' && http.method == 'POST'";
    let (proxy, origin) = (world.setup(&[get]).start(), world.origin());
    let mut client = world.client(&proxy, "ok.example", &origin);
    client.send(request("GET", "ok.example", "/1", "", ""));
    assert_eq!(client.response().status, 200);
    proxy.reload(&[post]);
    client.send(request("GET", "ok.example", "/2", "", ""));
    assert_eq!(client.response().status, 403);
    client.send(request("POST", "ok.example", "/3", "", "x"));
    assert_eq!(client.response().status, 200);
    // What nothing decrypts any more ends, be it allowed as a tunnel or not at all.
    for rules in [&["r allow http.host == 'ok.example'"][..], &[]] {
        proxy.reload(&[post]);
        let mut client = world.client(&proxy, "ok.example", &origin);
        client.send(request("POST", "ok.example", "/3", "", "x"));
        assert_eq!(client.response().status, 200);
        proxy.reload(rules);
        assert!(client.is_closed());
    }
    assert_eq!(origin.seen().len(), 4);
}

#[test]
fn rules_that_come_during_the_clients_handshake_are_those_that_judge() {
    let world = World::new();
    let get = "r intercept http.host == 'ok.example' && http.method == 'GET'";
    let post = "r intercept http.host == 'ok.example' && http.method == 'POST'";
    let (proxy, origin) = (world.setup(&[get]).start(), world.origin());
    // Nothing of the hello is sent by then, half of it, or all and the server's flight is read.
    for halves in 0..=2 {
        let begin = || {
            proxy.reload(&[get]);
            let mut client = proxy.client();
            assert_eq!(client.connect(&format!("ok.example:{}", origin.port)).status, 200);
            let name = ServerName::try_from("ok.example").unwrap();
            let config = Arc::new(client_config(&world.ours, &["http/1.1"]));
            let mut tls = ClientConnection::new(config, name).unwrap();
            let mut hello = Vec::new();
            tls.write_tls(&mut hello).unwrap();
            let rest = hello.split_off(hello.len() * halves / 2);
            client.send(hello);
            while rest.is_empty() && tls.is_handshaking() {
                tls.read_tls(&mut client.stream).unwrap();
                tls.process_new_packets().unwrap();
            }
            (client, tls, rest)
        };
        let (mut client, tls, rest) = begin();
        proxy.reload(&[post]);
        client.send(rest);
        let mut client = client.secure(tls).unwrap();
        client.send(request("GET", "ok.example", "/get", "", ""));
        assert_eq!(client.response().status, 403, "{halves}");
        client.send(request("POST", "ok.example", "/post", "", "x"));
        assert_eq!(client.response().status, 200, "{halves}");
        let (mut client, ..) = begin();
        proxy.reload(&[]);
        assert!(client.is_closed(), "{halves}");
    }
    assert!(origin.seen().len() == 3 && origin.seen().iter().all(|head| head.starts_with("POST /post ")));
}

#[test]
fn a_tunnel_ends_when_it_is_to_be_decrypted_now() {
    let world = World::new();
    let (proxy, origin) = (world.setup(&["r allow http.host == 'ok.example'"]).start(), world.origin());
    let theirs = client_config(&world.theirs, &["http/1.1"]);
    let mut client = world.try_client(&proxy, "ok.example", "ok.example", &origin, theirs).unwrap();
    proxy.reload(&["r intercept http.host == 'ok.example' && http.method == 'GET'"]);
    assert!(client.is_closed());
}

#[test]
fn an_exchange_under_way_ends_with_its_permission() {
    let world = World::new();
    let get = "r intercept http.host == 'ok.example' && http.path == '/slow'";
    let proxy = world.setup(&[get, "s intercept http.host == 'ok.example' && http.path == '/x'"]).start();
    let config = server_config(&world.theirs, Flaw::None, rustls::ALL_VERSIONS, None);
    let origin = world.origin_that(config, |mut wire, log| {
        log.lock().unwrap().push(wire.head());
        wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        wire.send("5\r\nfirst\r\n");
        let _ = wire.rest();
    });
    let mut client = world.client(&proxy, "ok.example", &origin);
    client.send(request("GET", "ok.example", "/slow", "", ""));
    assert!(client.head().starts_with("HTTP/1.1 200"));
    // Server-sent events are not held back.
    assert_eq!((client.line().as_str(), client.exactly(5)), ("5", b"first".to_vec()));
    proxy.reload(&["s intercept http.host == 'ok.example' && http.path == '/x'"]);
    assert!(client.is_truncated());
}

#[test]
fn a_server_that_is_not_proven_gets_nothing() {
    let world = World::new();
    let proxy = world.setup(&["r intercept http.host == 'ok.example' && http.method == 'POST'"]).start();
    for (flaw, text) in [
        (Flaw::Expired, "xpired"),
        (Flaw::OtherName, "not valid for"),
        (Flaw::SelfSigned, "UnknownIssuer"),
        (Flaw::UnknownCa, "UnknownIssuer"),
    ] {
        let origin = world.origin_with(server_config(&world.theirs, flaw, rustls::ALL_VERSIONS, None));
        let mut client = world.client(&proxy, "ok.example", &origin);
        client.send(request("POST", "ok.example", "/secret", "", "secret"));
        let seen = client.response();
        assert_eq!((seen.status, seen.field("x-outcall-failure-reason")), (502, Some("upstream_handshake_failed")));
        assert!(seen.text().contains(text), "{flaw:?}: {}", seen.text());
        assert!(origin.seen().is_empty());
        assert_eq!(block_reasons(&proxy, 1), ["upstream_handshake_failed ok.example -"]);
    }
    // No TLS at all, or the end of it.
    for reply in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b""] {
        let origin = proxy_support::Origin::with(move |mut wire, _| {
            let _ = wire.stream.set_read_timeout(Some(Duration::from_secs(1)));
            let _ = std::io::Read::read(&mut wire.stream, &mut [0; 4096]);
            let _ = std::io::Write::write_all(&mut wire.stream, reply);
        });
        let mut client = world.client(&proxy, "ok.example", &origin);
        client.send(request("POST", "ok.example", "/secret", "", "secret"));
        let seen = client.response();
        assert_eq!((seen.status, seen.field("x-outcall-failure-reason")), (502, Some("upstream_handshake_failed")));
    }
}

#[test]
fn a_server_that_wants_a_client_certificate_gets_nothing() {
    let world = World::new();
    let proxy = world.setup(&["r intercept http.host == 'ok.example' && http.method == 'POST'"]).start();
    for versions in [&[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
        let origin = world.origin_with(server_config(&world.theirs, Flaw::None, versions, Some(true)));
        let mut client = world.client(&proxy, "ok.example", &origin);
        client.send(request("POST", "ok.example", "/secret", "", "secret"));
        let seen = client.response();
        assert_eq!(
            (seen.status, seen.field("x-outcall-failure-reason")),
            (502, Some("upstream_handshake_failed")),
            "{versions:?}: {}",
            seen.text()
        );
        assert!(origin.seen().is_empty());
        // One that asks and goes without is served.
        let origin = world.origin_with(server_config(&world.theirs, Flaw::None, versions, Some(false)));
        let mut client = world.client(&proxy, "ok.example", &origin);
        client.send(request("POST", "ok.example", "/open", "", "open"));
        assert_eq!(client.response().text(), "open");
    }
}

#[test]
fn only_http_1_1_is_spoken_inside() {
    let world = World::new();
    let proxy = world.setup(&["r intercept http.host == 'ok.example' && http.method == 'GET'"]).start();
    let origin = world.origin();
    let h2 = client_config(&world.ours, &["h2"]);
    let error = world.try_client(&proxy, "ok.example", "ok.example", &origin, h2).err().unwrap();
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    assert_eq!(block_reasons(&proxy, 1), ["alpn_mismatch ok.example -"]);
    let both = client_config(&world.ours, &["h2", "http/1.1"]);
    let client = world.try_client(&proxy, "ok.example", "ok.example", &origin, both).unwrap();
    assert_eq!(client.tls.as_ref().unwrap().alpn_protocol(), Some(&b"http/1.1"[..]));
    let mut config = server_config(&world.theirs, Flaw::None, rustls::ALL_VERSIONS, None);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let origin = world.origin_with(config);
    let mut client = world.client(&proxy, "ok.example", &origin);
    client.send(request("GET", "ok.example", "/", "", ""));
    let seen = client.response();
    assert_eq!((seen.status, seen.field("x-outcall-failure-reason")), (502, Some("alpn_mismatch")));
}

#[test]
fn a_client_that_does_not_trust_us_is_told_apart() {
    let world = World::new();
    let (proxy, origin) = (world.setup(&[MESSAGES]).start(), world.origin());
    for versions in [&[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
        let config = rustls::ClientConfig::builder_with_protocol_versions(versions)
            .with_root_certificates(world.theirs.roots())
            .with_no_client_auth();
        assert!(world.try_client(&proxy, "ok.example", "ok.example", &origin, config).is_err());
        assert_eq!(block_reasons(&proxy, 1), ["client_handshake_failed ok.example -"]);
    }
    // One that looks at the certificate by itself leaves after the handshake.
    let mut client = world.client(&proxy, "ok.example", &origin);
    client.close_tls();
    drop(client);
    assert_eq!(block_reasons(&proxy, 1), ["client_handshake_failed ok.example -"]);
    assert_eq!(origin.connections(), 0);
}

#[test]
fn what_is_no_tls_of_today_is_closed() {
    let world = World::new();
    let (proxy, origin) = (world.setup(&[MESSAGES]).start(), world.origin());
    let connect = || {
        let mut client = proxy.client();
        assert_eq!(client.connect(&format!("ok.example:{}", origin.port)).status, 200);
        client
    };
    // A hello of TLS 1.0, well-formed.
    let mut hello = proxy_support::client_hello(Some("ok.example"));
    hello[10] = 1;
    let mut client = connect();
    client.send(&hello);
    let alert = client.rest();
    assert_eq!(alert.first(), Some(&21), "an alert, then the end: {alert:?}");
    assert_eq!(block_reasons(&proxy, 1), ["client_handshake_failed ok.example -"]);
    let mut client = connect();
    client.send(b"\x80\x00garbage");
    assert!(client.is_closed());
    assert_eq!(block_reasons(&proxy, 1), ["not_tls ok.example -"]);
    // Garbage in the place of the client's second flight.
    let mut client = connect();
    client.send(proxy_support::client_hello(Some("ok.example")));
    client.send([0x17; 64]);
    let _ = client.rest();
    assert_eq!(block_reasons(&proxy, 1), ["client_handshake_failed ok.example -"]);
    assert_eq!(origin.connections(), 0);
}

#[test]
fn fronting_is_closed() {
    let world = World::new();
    let rules = &["ok intercept http.host == 'ok.example'", "other intercept http.host == 'other.example'"];
    let (proxy, origin) = (world.setup(rules).start(), world.origin());
    let port = origin.port;
    for (target, host) in [
        ("/".to_owned(), "other.example".to_owned()),
        ("/".to_owned(), "ok.example.".to_owned() + "evil"),
        ("/".to_owned(), format!("ok.example:{}", port - 1)),
        (format!("https://other.example:{port}/"), format!("other.example:{port}")),
        (format!("http://ok.example:{port}/"), "ok.example".to_owned()),
    ] {
        let mut client = world.client(&proxy, "ok.example", &origin);
        client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.response().status, 421, "{target} {host}");
        assert_eq!(block_reasons(&proxy, 1), ["host_mismatch ok.example -"]);
    }
    assert_eq!(origin.connections(), 0);
    for (target, host) in [
        ("/a".to_owned(), format!("OK.example:{port}")),
        (format!("https://ok.example:{port}/a"), format!("ok.example:{port}")),
    ] {
        let mut client = world.client(&proxy, "ok.example", &origin);
        client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.response().text(), "/a");
    }
    // Two requests in one, to get past the first one's judgement.
    let mut client = world.client(&proxy, "ok.example", &origin);
    client.send(
        b"POST /a HTTP/1.1\r\nHost: ok.example\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    );
    assert_eq!(client.response().status, 400);
}

#[test]
fn the_server_name_is_where_the_bytes_go() {
    let world = World::new();
    let rules = &[
        "ok intercept http.host == 'ok.example' && http.path == '/ok'",
        "other intercept http.host == 'other.example' && tls.sni == 'other.example' && http.path == '/other'",
    ];
    let (proxy, origin) = (world.setup(rules).start(), world.origin());
    let mine = || client_config(&world.ours, &[]);
    let mut client = world.try_client(&proxy, "ok.example", "other.example", &origin, mine()).unwrap();
    client.send(request("GET", "other.example", "/other", "", ""));
    assert_eq!(client.response().text(), "/other");
    assert!(origin.seen()[0].contains("Host: other.example:"));
    client.send(request("GET", "other.example", "/ok", "", ""));
    assert_eq!(client.response().status, 403);
    assert!(proxy.lookups().contains(&"other.example".to_owned()), "it was resolved by itself");
    // A name that is not allowed is closed before a certificate is shown.
    assert!(world.try_client(&proxy, "ok.example", "bad.example", &origin, mine()).is_err());
    // Without a server name the CONNECT's host counts.
    let rules = &["ip intercept network.hostname == '127.0.0.1' && http.path == '/ip'"];
    proxy.reload(rules);
    let mut client = world.try_client(&proxy, "127.0.0.1", "127.0.0.1", &origin, mine()).unwrap();
    client.send(request("GET", "127.0.0.1", "/ip", "", ""));
    assert_eq!(client.response().text(), "/ip");
}

#[test]
fn tls_facts_hold_for_requests_and_may_spare_the_decryption() {
    let world = World::new();
    let rules = &[
        "pass allow http.host == 'ok.example' && 'spare' in tls.alpn",
        "old block http.scheme == 'https' && tls.version == '1.2' && http.method == 'GET'",
        "get intercept http.host == 'ok.example' && http.method == 'GET' && tls.ech == false",
    ];
    let (proxy, origin) = (world.setup(rules).start(), world.origin());
    let mut client = world.client(&proxy, "ok.example", &origin);
    client.send(request("GET", "ok.example", "/", "", ""));
    assert_eq!(client.response().status, 200);
    let config = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
        .with_root_certificates(world.ours.roots())
        .with_no_client_auth();
    let mut client = world.try_client(&proxy, "ok.example", "ok.example", &origin, config).unwrap();
    client.send(request("GET", "ok.example", "/", "", ""));
    let seen = client.response();
    assert_eq!((seen.status, seen.field("x-outcall-block-reason")), (403, Some("old")));
    // A rule that the hello alone lets match needs no decryption: the tunnel is dialled then.
    let spared = client_config(&world.theirs, &["spare"]);
    let mut client = world.try_client(&proxy, "ok.example", "ok.example", &origin, spared).unwrap();
    client.send(request("PUT", "ok.example", "/untouched", "", "x"));
    assert_eq!(client.response().text(), "x");
    proxy.reload(&["get intercept http.host == 'ok.example' && http.method == 'GET'"]);
    assert!(client.is_closed());
}

#[test]
fn a_certificate_that_cannot_be_made_is_said_in_the_answer_to_connect() {
    let ours = Ca::constrained("ours", Some("ok.example")).into();
    let world = World { ours, ..World::new() };
    let proxy = world.setup(&["r intercept http.method == 'GET'"]).start();
    let seen = proxy.client().connect("other.example:443");
    assert_eq!((seen.status, seen.field("x-outcall-failure-reason")), (502, Some("cert_gen_failed")));
    assert_eq!(block_reasons(&proxy, 1), ["cert_gen_failed other.example -"]);
    assert_eq!(proxy.client().connect("ok.example:443").status, 200);
}

#[test]
fn without_a_ca_such_a_rule_refuses() {
    let proxy = proxy_support::Setup::new(&[MESSAGES]).start();
    let seen = proxy.client().connect("ok.example:443");
    assert_eq!(seen.status, 403);
    assert!(seen.text().contains("intercept_unavailable"), "{}", seen.text());
}
