//! The proxy on real sockets of the loopback: plain requests, refusals, kept-alive connections, who is asking.

mod proxy_support;

use std::net::IpAddr;
use std::time::Duration;

use outcall::events::Verdict;
use outcall::proxy::Times;
use proxy_support::{Origin, Running, Setup, Wire, client_hello, directory, until};

const OK: &[&str] = &["ok allow http.host == 'ok.example'"];

fn running(lines: &[&str]) -> Running {
    Setup::new(lines).start()
}

#[test]
fn an_allowed_request_reaches_the_origin_without_what_belongs_to_the_hop() {
    let (proxy, origin) = (running(OK), Origin::echo());
    let mut client = proxy.client();
    let url = origin.url("OK.example.", "/a/b?c=d");
    let host = url[7..].split('/').next().unwrap();
    client.send(format!(
        "GET {url} HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Basic c2VjcmV0\r\nConnection: X-Hop\r\nX-Hop: 1\r\nAccept: */*\r\n\r\n"
    ));
    let seen = client.response();
    assert_eq!((seen.status, seen.text()), (200, "/a/b?c=d".to_owned()));
    let expected = format!("GET /a/b?c=d HTTP/1.1\r\nHost: ok.example:{}\r\nAccept: */*\r\n\r\n", origin.port);
    assert_eq!(origin.seen(), [expected]);
    let event = proxy.event();
    assert_eq!((event.verdict, event.reason, event.path.as_deref()), (Verdict::Allow, "rule", Some("/a/b")));
    assert_eq!(event.destination.unwrap().port(), origin.port);
}

#[test]
fn a_denied_request_is_told_why_and_asks_no_resolver() {
    let (proxy, origin) = (running(&["no-bad block http.host == 'bad.example'", OK[0]]), Origin::echo());
    let mut client = proxy.client();
    let seen = client.get(&origin.url("unknown.example", "/secret?token=x"));
    assert_eq!(seen.status, 403);
    assert_eq!(seen.field("X-Outcall-Block-Reason"), Some("default"));
    assert_eq!(seen.field("Content-Type"), Some("text/plain"));
    assert!(seen.text().starts_with("Blocked by outcall: ") && !seen.text().contains("secret"), "{}", seen.text());
    let seen = client.get(&origin.url("bad.example", "/"));
    assert_eq!((seen.status, seen.field("X-Outcall-Block-Reason")), (403, Some("no-bad")));
    let seen = client.connect("bad.example:443");
    assert_eq!((seen.status, seen.field("X-Outcall-Block-Reason")), (403, Some("no-bad")));
    assert!(proxy.lookups().is_empty() && origin.connections() == 0);
    assert_eq!(proxy.event_of(Verdict::Block), "default unknown.example -");
    assert_eq!(proxy.event_of(Verdict::Block), "rule bad.example no-bad");
    assert_eq!(proxy.status().total_blocked, 3);
}

#[test]
fn a_refusal_is_json_for_who_asks_for_it() {
    let proxy = running(&["no-bad block http.host == 'bad.example' && http.path != '/x'", OK[0]]);
    let mut client = proxy.client();
    let ask = |host: &str, accept: &str| {
        format!("GET http://{host}/secret HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\n\r\n")
    };
    for (host, rule, reason) in
        [("bad.example", "no-bad", "proxy: rule no-bad"), ("unknown.example", "default", "proxy: no rule allows it")]
    {
        client.send(ask(host, "text/html, application/json;q=0.5"));
        let seen = client.response();
        assert_eq!((seen.status, seen.field("Content-Type")), (403, Some("application/json")));
        assert_eq!(seen.field("X-Outcall-Block-Reason"), Some(rule));
        let body: serde_json::Value = serde_json::from_str(&seen.text()).unwrap();
        let expected = serde_json::json!({"error":"blocked by outcall","host":host,"reason":reason,"rule":rule});
        assert_eq!(body, expected);
        client.send(ask(host, "*/*"));
        let seen = client.response();
        assert_eq!((seen.status, seen.field("Content-Type")), (403, Some("text/plain")));
        assert!(seen.text().starts_with("Blocked by outcall: "));
    }
}

#[test]
fn every_second_request_of_a_kept_connection_is_denied() {
    let (proxy, origin) =
        (running(&["get allow http.host == 'ok.example' && http.path.startsWith('/ok')"]), Origin::echo());
    let mut client = proxy.client();
    for number in 0..100 {
        let path = if number % 2 == 0 { format!("/ok/{number}") } else { format!("/no/{number}") };
        let seen = client.get(&origin.url("ok.example", &path));
        assert_eq!(seen.status, if number % 2 == 0 { 200 } else { 403 }, "{path}");
    }
    assert_eq!(origin.seen().len(), 50);
    assert!(origin.seen().iter().all(|head| head.starts_with("GET /ok/")));
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_reload_takes_effect_for_the_next_request() {
    let (proxy, origin) = (running(OK), Origin::echo());
    let mut client = proxy.client();
    assert_eq!(client.get(&origin.url("ok.example", "/")).status, 200);
    proxy.reload(&["none block true"]);
    assert_eq!(client.get(&origin.url("ok.example", "/")).field("X-Outcall-Block-Reason"), Some("none"));
    proxy.reload(OK);
    assert_eq!(client.get(&origin.url("ok.example", "/")).status, 200);
}

/// A server whose queue is full lets a handshake wait: the rules change meanwhile, and are acknowledged.
#[test]
fn a_request_whose_rule_went_while_it_was_dialled_is_not_sent() {
    use nix::sys::socket::{Backlog, listen};
    use std::io::Read;
    let proxy = running(OK);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let filler = std::net::TcpStream::connect(address).unwrap();
    let mut client = proxy.client();
    let host = format!("ok.example:{}", address.port());
    client.send(format!("GET http://{host}/secret HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    assert_eq!(proxy.event_of(Verdict::Allow), "rule ok.example ok");
    proxy.reload(&["none block true"]);
    // Room: the kernel's next attempt, about a second later, succeeds.
    drop((filler, listener.accept().unwrap()));
    assert_eq!(client.response().field("X-Outcall-Block-Reason"), Some("none"));
    let mut sent = Vec::new();
    let _ = listener.accept().unwrap().0.read_to_end(&mut sent);
    assert!(sent.is_empty(), "{}", String::from_utf8_lossy(&sent));
}

#[test]
fn bodies_pass_in_both_framings() {
    let (proxy, origin) = (running(OK), Origin::echo());
    let mut client = proxy.client();
    let (url, host) = (origin.url("ok.example", "/"), format!("ok.example:{}", origin.port));
    client.send(format!("POST {url} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello"));
    assert_eq!(client.response().text(), "hello");
    client.send(format!(
        "POST {url} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n02\r\nde\r\n0\r\nX-Sum: 7\r\n\r\n"
    ));
    assert_eq!(client.response().text(), "abcdeX-Sum: 7\n");
    client.send(format!("HEAD {url} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    let seen = client.response_to("HEAD");
    assert_eq!(seen.field("content-length"), Some("1"));
    assert_eq!(client.get(&url).text(), "/");
    // A body is never sent on a connection that the server may have closed.
    assert_eq!(origin.connections(), 2);
}

#[test]
fn pipelined_requests_are_answered_in_order_and_each_is_judged() {
    let (proxy, origin) = (running(&["get allow http.host == 'ok.example' && http.path != '/no'"]), Origin::echo());
    let mut client = proxy.client();
    let host = format!("ok.example:{}", origin.port);
    let request = |path: &str| format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    client.send(["/1", "/no", "/2", "/no", "/3"].map(request).concat());
    let answers: Vec<_> = (0..5).map(|_| client.response()).map(|seen| (seen.status, seen.text())).collect();
    assert_eq!(answers.iter().map(|(status, _)| *status).collect::<Vec<_>>(), [200, 403, 200, 403, 200]);
    assert_eq!((&*answers[0].1, &*answers[2].1, &*answers[4].1), ("/1", "/2", "/3"));
    // Behind a body, too.
    client.send(format!(
        "POST http://{host}/p HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\n\r\nabc{}",
        request("/no")
    ));
    assert_eq!((client.response().text(), client.response().status), ("abc".to_owned(), 403));
}

#[test]
fn a_denied_body_does_not_become_a_request() {
    let (proxy, origin) = (running(OK), Origin::echo());
    let mut client = proxy.client();
    let host = format!("ok.example:{}", origin.port);
    let inner = format!("GET http://{host}/smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n");
    client.send(format!(
        "POST http://bad.example/ HTTP/1.1\r\nHost: bad.example\r\nContent-Length: {}\r\n\r\n{inner}",
        inner.len()
    ));
    assert_eq!(client.response().status, 403);
    assert_eq!(client.get(&origin.url("ok.example", "/next")).text(), "/next");
    assert_eq!(origin.seen().len(), 1);
    // A large one ends the connection, after the answer was read.
    let mut client = proxy.client();
    client.send("POST http://bad.example/ HTTP/1.1\r\nHost: bad.example\r\nContent-Length: 4000000\r\n\r\n");
    client.send(vec![b'x'; 2_000_000]);
    let seen = client.response();
    assert_eq!((seen.status, seen.field("connection")), (403, Some("close")));
    assert!(client.is_closed());
}

#[test]
fn expect_100_continue_is_the_servers_to_answer() {
    let origin = Origin::with(|mut wire, _| {
        assert!(wire.head().contains("Expect: 100-continue\r\n"));
        wire.send("HTTP/1.1 100 Continue\r\n\r\n");
        let body = wire.exactly(3);
        wire.send([b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", &body[..]].concat());
        wire.head();
    });
    let proxy = running(OK);
    let mut client = proxy.client();
    let head = |url: &str, host: &str| {
        format!("PUT {url} HTTP/1.1\r\nHost: {host}\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    };
    client.send(head(&origin.url("ok.example", "/"), &format!("ok.example:{}", origin.port)));
    assert_eq!(client.response().status, 100);
    client.send("abc");
    assert_eq!(client.response().text(), "abc");
    client.send(head("http://bad.example/", "bad.example"));
    let seen = client.response();
    assert_eq!((seen.status, seen.field("connection")), (403, Some("close")));
}

#[test]
fn http_1_0_clients_get_no_chunks() {
    let origin = Origin::canned(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    let proxy = running(OK);
    let mut client = proxy.client();
    client.send(format!("GET {} HTTP/1.0\r\n\r\n", origin.url("ok.example", "/")));
    let seen = client.response();
    assert_eq!((seen.status, seen.text()), (200, "abc".to_owned()));
    assert_eq!(seen.field("transfer-encoding"), None);
    assert!(origin.seen()[0].starts_with("GET / HTTP/1.1\r\nHost: ok.example:"));
}

#[test]
fn addresses_are_vetted_after_names() {
    let origin = Origin::echo();
    let mut setup = Setup::new(&[
        "public allow_public http.host == 'public.example'",
        "inner allow http.host == 'inner.example' && network.ip == '127.0.0.1'",
        "literal allow_public http.host == '127.0.0.1'",
        "zero allow http.host == '0.0.0.0' || http.host == 'zero.example'",
        "mixed allow http.host == 'mixed.example' && network.ip != '127.0.0.9'",
    ]);
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    setup.names = vec![
        ("public.example", vec![address("127.0.0.1"), address("169.254.169.254")]),
        ("inner.example", vec![address("127.0.0.1")]),
        ("zero.example", vec![address("0.0.0.0")]),
        ("mixed.example", vec![address("127.0.0.9"), address("127.0.0.1")]),
    ];
    let proxy = setup.start();
    let mut client = proxy.client();
    let mut status = |host: &str| client.get(&origin.url(host, "/")).status;
    assert_eq!(status("public.example"), 403);
    assert_eq!(proxy.event_of(Verdict::Block), "private_address public.example public");
    assert_eq!(status("127.0.0.1"), 403);
    assert_eq!(status("zero.example"), 403);
    assert_eq!(status("0.0.0.0"), 403);
    assert_eq!(origin.connections(), 0);
    assert_eq!(status("inner.example"), 200);
    assert_eq!(status("mixed.example"), 200);
    // Odd notations have no normal form.
    for odd in ["2130706433", "0x7f.1", "127.1", "0177.0.0.1"] {
        let mut client = proxy.client();
        assert_eq!(client.get(&origin.url(odd, "/")).status, 400, "{odd}");
    }
}

#[test]
fn the_proxy_does_not_call_itself() {
    let proxy = running(&["all allow true"]);
    let port = proxy.address.port();
    for host in ["127.0.0.1", "ok.example", "[::ffff:127.0.0.1]"] {
        let mut client = proxy.client();
        assert_eq!(client.get(&format!("http://{host}:{port}/")).status, 403, "{host}");
        let mut client = proxy.client();
        assert_eq!(client.connect(&format!("{host}:{port}")).status, 403, "{host}");
    }
}

#[test]
fn direct_ip_rules_hold_on_their_ports_only() {
    let (proxy, origin) = (running(&["direct direct http.host == 'ok.example'"]), Origin::echo());
    let mut client = proxy.client();
    assert_eq!(client.get(&origin.url("ok.example", "/")).status, 403);
    assert_eq!(proxy.event_of(Verdict::Block), "port_not_in_rule ok.example direct");
    assert!(proxy.lookups().is_empty());
    // Port 9 is the rule's, and nobody listens there.
    assert_eq!(client.get("http://ok.example:9/").status, 502);
}

#[test]
fn failures_have_their_status() {
    let proxy = running(&["all allow true"]);
    let mut client = proxy.client();
    assert_eq!(client.get("http://nowhere.example/").status, 502);
    assert_eq!(client.get("http://ok.example:1/").status, 502);
    assert_eq!(client.connect("ok.example:1").status, 502);
    // The connection lives on: these were answers.
    assert_eq!(client.get("http://nowhere.example/").status, 502);
}

#[test]
fn health_is_for_everybody_served_and_for_the_host() {
    let mut setup = Setup::new(&[]);
    setup.extra_peers = false;
    let proxy = setup.start();
    let mut client = proxy.client();
    client.send("GET /outcall-health HTTP/1.1\r\nHost: x\r\n\r\n");
    let seen = client.response();
    assert_eq!((seen.status, seen.text()), (200, "{\"status\":\"ok\"}".to_owned()));
    let seen = client.get("http://ok.example/");
    assert_eq!((seen.status, seen.field("X-Outcall-Block-Reason")), (403, Some("default")));
    assert_eq!(proxy.event().reason, "unknown_peer");
    let proxy = running(&[]);
    let mut client = proxy.client();
    assert_eq!(client.get(&format!("http://{}/outcall-health", proxy.address)).status, 200);
}

#[test]
fn containers_are_judged_by_their_names() {
    let origin = Origin::echo();
    let mut setup = Setup::new(&["writer allow agent.name == 'writer' && http.host == 'ok.example'"]);
    setup.directory = directory(&[("w", "writer-1", "127.1.0.5"), ("r", "reader", "127.1.0.6")]);
    let proxy = setup.start();
    let url = origin.url("ok.example", "/");
    let mut writer = proxy.client_from("127.1.0.5");
    assert_eq!(writer.get(&url).status, 200);
    let event = proxy.event();
    assert_eq!(event.endpoint.unwrap().container.as_ref(), "writer-1");
    assert_eq!(proxy.client_from("127.1.0.6").get(&url).status, 403);
    assert_eq!(proxy.client().get(&url).status, 403);
    // The address goes to another container: the connection ends, and is the other's from then on.
    proxy.publish(|snapshot| snapshot.directory = directory(&[("x", "reader-2", "127.1.0.5")]).into());
    assert!(writer.is_closed());
    assert_eq!(proxy.client_from("127.1.0.5").get(&url).status, 403);
}

#[test]
fn an_unknown_container_is_held_until_docker_has_said_who_it_is() {
    let origin = Origin::echo();
    let mut setup = Setup::new(OK);
    setup.directory = directory(&[]);
    let proxy = setup.start();
    let mut client = proxy.client_from("127.1.0.7");
    let host = format!("ok.example:{}", origin.port);
    client.send(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    until("Docker is asked", || proxy.identified.load(std::sync::atomic::Ordering::SeqCst) == 1);
    proxy.publish(|snapshot| snapshot.directory = directory(&[("c", "late", "127.1.0.7")]).into());
    assert_eq!(client.response().status, 200);
    // One that Docker does not know is turned away: when it says so, or after a second.
    let mut stranger = proxy.client_from("127.1.0.8");
    until("Docker is asked again", || proxy.identified.load(std::sync::atomic::Ordering::SeqCst) == 2);
    proxy.publish(|snapshot| snapshot.directory = directory(&[("c", "late", "127.1.0.7")]).into());
    // (A stranger of the loopback may ask for the proxy's health, so it is heard first.)
    assert_eq!(stranger.get("http://ok.example/").status, 403);
    let mut silent = proxy.client_from("127.1.0.9");
    assert_eq!(silent.response().status, 403);
}

#[test]
fn connections_are_capped_for_each_and_for_all() {
    let mut setup = Setup::new(OK);
    (setup.max_connections, setup.max_per_container) = (3, 2);
    setup.directory = directory(&[("a", "a", "127.1.0.5")]);
    let proxy = setup.start();
    let first = [proxy.client_from("127.1.0.5"), proxy.client_from("127.1.0.5")];
    until("both are in", || proxy.status().active_connections == 2);
    assert_eq!(proxy.client_from("127.1.0.5").response().status, 503);
    let _third = proxy.client();
    until("all are in", || proxy.status().active_connections == 3);
    assert_eq!(proxy.client().response().status, 503);
    first[0].stream.shutdown(std::net::Shutdown::Both).unwrap();
    until("one has left", || proxy.status().active_connections == 2);
    assert_eq!(proxy.client_from("127.1.0.5").get("http://bad.example/").status, 403);
}

#[test]
fn slow_heads_and_idle_connections_end() {
    let mut setup = Setup::new(OK);
    let short = Duration::from_millis(200);
    setup.times = Times { head: short, keep_alive: short, hello: short, ..Times::default() };
    let origin = Origin::echo();
    let proxy = setup.start();
    let mut slow = proxy.client();
    slow.send("GET http://ok.ex");
    assert_eq!(slow.response().status, 408);
    assert!(proxy.client().is_closed());
    let mut tunnel = proxy.client();
    assert_eq!(tunnel.connect(&format!("ok.example:{}", origin.port)).status, 200);
    tunnel.send(&client_hello(Some("ok.example"))[..20]);
    assert!(tunnel.is_closed());
    assert_eq!(proxy.event_of(Verdict::Block), "hello_timeout ok.example -");
    until("all are gone", || proxy.status().active_connections == 0);
}

#[test]
fn a_websocket_passes_when_it_is_allowed_and_no_other_upgrade_does() {
    let origin = Origin::with(|mut wire, log| {
        let head = wire.head();
        log.lock().unwrap().push(head.clone());
        if !head.contains("Upgrade: websocket\r\n") {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain");
            return;
        }
        wire.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nhi");
        loop {
            let byte = wire.exactly(1);
            wire.send(&byte);
        }
    });
    let proxy = running(OK);
    let upgrade = |client: &mut Wire, to: &str| {
        let host = format!("ok.example:{}", origin.port);
        client.send(format!(
            "GET http://{host}/chat HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {to}\r\nHTTP2-Settings: AA\r\nSec-WebSocket-Key: k\r\n\r\n"
        ));
        client.response()
    };
    let mut client = proxy.client();
    let seen = upgrade(&mut client, "websocket");
    assert_eq!(
        (seen.status, seen.field("upgrade"), seen.field("connection")),
        (101, Some("websocket"), Some("Upgrade"))
    );
    assert_eq!(client.exactly(2), b"hi");
    for byte in b"echo" {
        client.send([*byte]);
        assert_eq!(client.exactly(1), [*byte]);
    }
    let mut other = proxy.client();
    assert_eq!(upgrade(&mut other, "h2c").text(), "plain");
    assert!(!origin.seen()[1].to_lowercase().contains("h2"), "{:?}", origin.seen()[1]);
    // New rules end it.
    proxy.reload(&["none block true"]);
    assert!(client.is_closed());
}

#[test]
fn a_stop_waits_for_work_but_not_for_idlers() {
    let origin = Origin::with(|mut wire, _| {
        wire.head();
        std::thread::sleep(Duration::from_millis(400));
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone");
        wire.head();
    });
    let mut proxy = running(OK);
    let mut idle = proxy.client();
    assert_eq!(idle.get("http://bad.example/").status, 403);
    let mut busy = proxy.client();
    let host = format!("ok.example:{}", origin.port);
    busy.send(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    until("it is at the origin", || origin.connections() == 1);
    let took = proxy.stop();
    assert_eq!(busy.response().text(), "done");
    assert!(idle.is_closed());
    assert!(took < Duration::from_secs(3), "{took:?}");
}
