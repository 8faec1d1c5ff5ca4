//! `outcall ui` against raw bytes, with the daemon played by a thread: who passes, what is forwarded, how a stream
//! flows, and what a hostile client can and cannot do.

#![cfg(feature = "cli")]

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The heads that the daemon got, whole.
type Asked = Arc<Mutex<Vec<String>>>;

/// A daemon and a bridge to it.
struct World {
    directory: PathBuf,
    asked: Asked,
    /// The sending sides of event streams, as they begin.
    streams: mpsc::Receiver<UnixStream>,
    bridge: Child,
    port: u16,
    secret: String,
}

impl World {
    fn new() -> Self {
        World::with(&[])
    }

    fn with(wrapper: &[&str]) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("outcall-ui-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let socket = directory.join("host.sock");
        let (asked, streams) = daemon(&socket);
        let words = [wrapper, &[env!("CARGO_BIN_EXE_outcall")]].concat();
        let mut bridge = Command::new(words[0])
            .args(&words[1..])
            .arg("--socket")
            .arg(&socket)
            .args(["--json", "ui", "--no-open"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(bridge.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap();
        let port = u16::try_from(said["port"].as_u64().unwrap()).unwrap();
        let url = said["url"].as_str().unwrap();
        let secret = url.strip_prefix(&format!("http://127.0.0.1:{port}/")).unwrap().strip_suffix("/ui/").unwrap();
        assert_eq!(secret.len(), 64, "256 bits in hex digits: {url}");
        World { directory, asked, streams, port, secret: secret.to_owned(), bridge }
    }

    fn host(&self) -> String {
        format!("Host: 127.0.0.1:{}", self.port)
    }

    fn at(&self, path: &str) -> String {
        format!("/{}{path}", self.secret)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends bytes on a new connection and reads to its end.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // A server that has refused already may close before all is written.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// One request that closes; `fields` beside Connection.
    fn ask(&self, method: &str, target: &str, fields: &[&str], body: &str) -> String {
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        self.exchange(format!("{method} {target} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n{body}").as_bytes())
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.bridge.kill();
        let _ = self.bridge.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Plays the daemon: `/api/v1/events…` is a stream that the test feeds, all else is echoed.
fn daemon(socket: &std::path::Path) -> (Asked, mpsc::Receiver<UnixStream>) {
    let listener = UnixListener::bind(socket).unwrap();
    let asked = Asked::default();
    let (sender, streams) = mpsc::channel();
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let (log, sender) = (Arc::clone(&log), sender.clone());
            std::thread::spawn(move || answer(stream, &log, &sender));
        }
    });
    (asked, streams)
}

fn answer(mut stream: UnixStream, log: &Mutex<Vec<String>>, sender: &mpsc::Sender<UnixStream>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    log.lock().unwrap().push(head.clone());
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    if head.starts_with("GET /api/v1/events") {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n")
            .unwrap();
        let _ = sender.send(stream);
        return;
    }
    let data = serde_json::json!({"line": head.lines().next(), "body": String::from_utf8_lossy(&body)});
    let text = serde_json::json!({"success": true, "data": data}).to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nSet-Cookie: a=b\r\nX-Other: c\r\n";
    let _ =
        stream.write_all(format!("{head}Content-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len()).as_bytes());
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// Reads until `text` has come.
fn reads(stream: &mut TcpStream, text: &str) -> String {
    let mut got = Vec::new();
    let mut piece = [0; 4096];
    while !String::from_utf8_lossy(&got).contains(text) {
        let length = stream.read(&mut piece).unwrap();
        assert!(length > 0, "ended before {text:?}: {}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&piece[..length]);
    }
    String::from_utf8(got).unwrap()
}

/// The end of an echo.
const END: &str = "\"success\":true}";
/// The user and group that own nothing.
const NOBODY: u32 = 65534;
const JSON: &str = "Content-Type: application/json";

#[test]
fn with_the_secret_the_page_and_the_api_are_forwarded_without_the_browsers_fields() {
    let world = World::new();
    let host = world.host();
    let page = world.ask("GET", &world.at("/ui/"), &[&host, "Sec-Fetch-Site: none", "Cookie: x=y"], "");
    assert_eq!(status(&page), 200, "{page}");
    assert!(page.contains("GET /ui/ HTTP/1.0"), "{page}");
    let fields = [
        &*host,
        JSON,
        "Content-Length: 19",
        "Sec-Fetch-Site: same-origin",
        &format!("Origin: http://127.0.0.1:{}", world.port),
    ];
    let done = world.ask("POST", &world.at("/api/v1/requests/rules/rr-1/approve"), &fields, r#"{"all_agents":true}"#);
    assert_eq!(status(&done), 200, "{done}");
    assert!(done.contains(r#"{\"all_agents\":true}"#), "{done}");
    for answer in [&page, &done] {
        let lower = answer.to_lowercase();
        for field in [
            "content-security-policy: ",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
        ] {
            assert!(lower.contains(field), "{field} in {answer}");
        }
        for field in ["access-control", "set-cookie", "x-other", &world.secret] {
            assert!(!lower.contains(field), "{field} in {answer}");
        }
    }
    for head in world.asked() {
        for word in ["Cookie", "Origin", "Sec-Fetch", &world.secret] {
            assert!(!head.contains(word), "{word} in {head}");
        }
    }
}

#[test]
fn without_the_secret_nothing_reaches_the_daemon() {
    let world = World::new();
    let host = world.host();
    let wrong = format!("{}/ui/", "0".repeat(64));
    let cut = format!("{}/ui/", &world.secret[..63]);
    for path in ["", "ui/", "ui/app.js", "api/v1/bridge", "api/v1/events?follow=true", "open/", "open/x", &wrong, &cut]
    {
        let answer = world.ask("GET", &format!("/{path}"), &[&host], "");
        assert_eq!(status(&answer), 403, "{path}: {answer}");
        assert!(!answer.contains(&world.secret), "{answer}");
    }
    let query = world.ask("GET", &format!("/ui/?token={}", world.secret), &[&host], "");
    assert_eq!(status(&query), 403);
    let cookie = format!("Cookie: token={0}; outcall={0}", world.secret);
    assert_eq!(status(&world.ask("GET", "/ui/", &[&host, &cookie], "")), 403);
    assert_eq!(world.asked(), Vec::<String>::new());
}

#[test]
fn a_name_rebound_to_loopback_does_not_pass_even_with_the_secret() {
    let world = World::new();
    let page = world.at("/ui/");
    let port = world.port;
    assert_eq!(status(&world.ask("GET", &page, &[&format!("Host: localhost:{port}")], "")), 200);
    let other = port.wrapping_add(1).max(1);
    for host in [
        "evil.example".to_owned(),
        format!("evil.example:{port}"),
        "127.0.0.1".to_owned(),
        format!("127.0.0.1:{other}"),
        format!("[::1]:{port}"),
        format!("localhost.:{port}"),
        format!("127.1:{port}"),
        String::new(),
    ] {
        let answer = world.ask("GET", &page, &[&format!("Host: {host}")], "");
        assert!([400, 403].contains(&status(&answer)), "{host}: {answer}");
    }
    let twice = world.ask("GET", &page, &[&world.host(), "Host: evil.example"], "");
    assert_eq!(status(&twice), 400, "{twice}");
    assert_eq!(status(&world.ask("GET", &page, &[], "")), 400);
    let absolute = format!("http://127.0.0.1:{port}{page}");
    assert_eq!(status(&world.ask("GET", &absolute, &["Host: evil.example"], "")), 403);
    assert_eq!(world.asked().len(), 1);
}

#[test]
fn another_page_cannot_ask_or_do_anything_even_with_the_secret() {
    let world = World::new();
    let host = world.host();
    let down = world.at("/api/v1/bridge/down");
    let port = world.port;
    for origin in [
        "null",
        "http://evil.example",
        &format!("https://127.0.0.1:{port}"),
        &format!("http://localhost:{port}"),
        "http://127.0.0.1",
        &format!("http://127.0.0.1:{port}.evil.example"),
    ] {
        let fields = [&*host, JSON, "Content-Length: 2", &format!("Origin: {origin}")];
        assert_eq!(status(&world.ask("POST", &down, &fields, "{}")), 403, "{origin}");
    }
    for site in ["cross-site", "same-site", "none"] {
        let fields = [&*host, JSON, "Content-Length: 2", &format!("Sec-Fetch-Site: {site}")];
        assert_eq!(status(&world.ask("POST", &down, &fields, "{}")), 403, "{site}");
    }
    for site in ["cross-site", "same-site"] {
        assert_eq!(status(&world.ask("GET", &world.at("/ui/"), &[&host, &format!("Sec-Fetch-Site: {site}")], "")), 403);
    }
    // What a form or a script of another origin can send without asking first.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        let fields = [&*host, "Content-Length: 2", &format!("Content-Type: {kind}")];
        assert_eq!(status(&world.ask("POST", &down, &fields, "{}")), 403, "{kind}");
    }
    let preflight =
        world.ask("OPTIONS", &down, &[&host, "Origin: http://evil.example", "Access-Control-Request-Method: POST"], "");
    assert_eq!(status(&preflight), 403);
    assert!(!preflight.to_lowercase().contains("access-control"), "{preflight}");
    assert_eq!(world.asked(), Vec::<String>::new());
}

#[test]
fn methods_and_paths_are_limited() {
    let world = World::new();
    let host = world.host();
    for method in ["PUT", "DELETE", "PATCH", "HEAD", "TRACE", "BREW"] {
        assert_eq!(status(&world.ask(method, &world.at("/api/v1/bridge"), &[&host], "")), 403, "{method}");
    }
    for path in [
        "",
        "/",
        "/ui",
        "/metrics",
        "/v1/checkin",
        "/api/",
        "/api/v2/x",
        "/ui/../api/v1/bridge",
        "/ui/%2e%2E/x",
        "/ui//x",
        "/api/v1/../../x",
    ] {
        assert_eq!(status(&world.ask("GET", &world.at(path), &[&host], "")), 403, "{path}");
    }
    assert_eq!(world.asked(), Vec::<String>::new());
    let query = world.ask("GET", &world.at("/api/v1/dns/cache?entries=true"), &[&host], "");
    assert!(query.contains("GET /api/v1/dns/cache?entries=true HTTP/1.0"), "{query}");
}

#[test]
fn framing_that_can_be_read_two_ways_and_large_requests_are_refused() {
    let world = World::new();
    let host = world.host();
    let target = world.at("/api/v1/rule/test");
    for framing in [
        "Content-Length: 2\r\nContent-Length: 3",
        "Content-Length: 2\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
        "Content-Length: x",
    ] {
        let answer = world.ask("POST", &target, &[&host, JSON, framing], "{}");
        assert!([400, 501].contains(&status(&answer)), "{framing}: {answer}");
    }
    let large = "x".repeat(64 * 1024 + 1);
    let answer = world.ask("POST", &target, &[&host, JSON, &format!("Content-Length: {}", large.len())], &large);
    assert_eq!(status(&answer), 413, "{answer}");
    let long = world.ask("GET", &world.at("/ui/"), &[&host, &format!("X: {}", "y".repeat(9000))], "");
    assert_eq!(status(&long), 431, "{long}");
    assert_eq!(world.asked(), Vec::<String>::new());
    let chunked = world.ask("POST", &target, &[&host, JSON, "Transfer-Encoding: chunked"], "2\r\n{}\r\n0\r\n\r\n");
    assert!(chunked.contains(r#""body":"{}""#), "{chunked}");
}

#[test]
fn one_connection_carries_one_request_after_the_other() {
    let world = World::new();
    let mut stream = world.connect();
    for number in 0..5 {
        let path = world.at(&format!("/api/v1/rule/r{number}"));
        stream.write_all(format!("GET {path} HTTP/1.1\r\n{}\r\n\r\n", world.host()).as_bytes()).unwrap();
        let answer = reads(&mut stream, END);
        assert!(answer.contains(&format!("GET /api/v1/rule/r{number} ")), "{answer}");
    }
}

#[test]
fn six_kept_connections_of_a_browser_are_all_served() {
    let world = World::new();
    let mut streams: Vec<_> = (0..12).map(|_| world.connect()).collect();
    for turn in 0..3 {
        for stream in &mut streams {
            let path = world.at(&format!("/ui/{turn}"));
            stream.write_all(format!("GET {path} HTTP/1.1\r\n{}\r\n\r\n", world.host()).as_bytes()).unwrap();
        }
        for stream in &mut streams {
            reads(stream, END);
        }
    }
}

#[test]
fn events_arrive_one_by_one_and_a_browser_that_leaves_ends_its_stream() {
    let world = World::new();
    let mut browser = world.connect();
    let path = world.at("/api/v1/events?follow=true");
    browser.write_all(format!("GET {path} HTTP/1.1\r\n{}\r\n\r\n", world.host()).as_bytes()).unwrap();
    let head = reads(&mut browser, "\r\n\r\n").to_lowercase();
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    let mut daemon = world.streams.recv_timeout(Duration::from_secs(10)).unwrap();
    for number in 0..20 {
        // The next is sent only when the one before has come: nothing is held back.
        daemon.write_all(format!("{{\"seq\":{number}}}\n").as_bytes()).unwrap();
        reads(&mut browser, &format!("{{\"seq\":{number}}}\n"));
    }
    drop(browser);
    daemon.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(daemon.read(&mut [0; 1]).unwrap(), 0, "the stream from the daemon is closed at once");
}

#[test]
fn the_daemons_end_of_a_stream_is_the_browsers() {
    let world = World::new();
    let mut browser = world.connect();
    let path = world.at("/api/v1/events?follow=true");
    browser.write_all(format!("GET {path} HTTP/1.1\r\n{}\r\n\r\n", world.host()).as_bytes()).unwrap();
    let mut daemon = world.streams.recv_timeout(Duration::from_secs(10)).unwrap();
    daemon.write_all(b"{}\n").unwrap();
    drop(daemon);
    reads(&mut browser, "0\r\n\r\n");
}

#[test]
fn streams_are_capped_and_leave_room_for_the_rest() {
    let world = World::new();
    let path = world.at("/api/v1/events?follow=true");
    let request = format!("GET {path} HTTP/1.1\r\n{}\r\n\r\n", world.host());
    let mut kept = Vec::new();
    for _ in 0..8 {
        let mut stream = world.connect();
        stream.write_all(request.as_bytes()).unwrap();
        assert_eq!(status(&reads(&mut stream, "\r\n\r\n")), 200);
        kept.push((stream, world.streams.recv_timeout(Duration::from_secs(10)).unwrap()));
    }
    let mut ninth = world.connect();
    ninth.write_all(request.as_bytes()).unwrap();
    assert_eq!(status(&reads(&mut ninth, "\r\n\r\n")), 503);
    assert_eq!(status(&world.ask("GET", &world.at("/ui/"), &[&world.host()], "")), 200);
}

#[test]
fn idle_connections_are_capped_and_free_their_place_when_they_end() {
    let world = World::new();
    let kept: Vec<_> = (0..64).map(|_| world.connect()).collect();
    let ask = || status(&world.ask("GET", &world.at("/ui/"), &[&world.host()], ""));
    assert_eq!(ask(), 503);
    drop(kept);
    let deadline = Instant::now() + Duration::from_secs(10);
    while ask() != 200 {
        assert!(Instant::now() < deadline, "no place came free");
    }
}

#[test]
fn a_crowd_at_a_low_limit_of_descriptors_does_not_end_it() {
    // 128 is the least that it starts with.
    let world = World::with(&["prlimit", "--nofile=128:128"]);
    for _ in 0..4 {
        let crowd: Vec<_> = (0..150).map(|_| world.connect()).collect();
        drop(crowd);
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while status(&world.ask("GET", &world.at("/ui/"), &[&world.host()], "")) != 200 {
        assert!(Instant::now() < deadline, "it serves again");
    }
}

#[test]
fn a_daemon_that_is_away_is_said_and_found_again() {
    let world = World::new();
    let socket = world.directory.join("host.sock");
    std::fs::remove_file(&socket).unwrap();
    let ask = || world.ask("GET", &world.at("/api/v1/bridge"), &[&world.host()], "");
    let away = ask();
    assert_eq!(status(&away), 502, "{away}");
    assert!(away.contains("cannot connect to outcalld at"), "{away}");
    let _again = daemon(&socket);
    assert_eq!(status(&ask()), 200);
}

#[test]
fn a_signal_ends_it_with_success() {
    for signal in [nix::sys::signal::Signal::SIGINT, nix::sys::signal::Signal::SIGTERM] {
        let mut world = World::new();
        let kept = world.connect();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(world.bridge.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        assert_eq!(world.bridge.wait().unwrap().code(), Some(0));
        drop(kept);
    }
}

#[test]
fn a_link_that_is_followed_twice_ends_the_bridge_and_says_why() {
    let directory = std::env::temp_dir().join(format!("outcall-ui-link-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::set_permissions(&directory, Permissions::from_mode(0o777)).unwrap();
    // A browser that only leaves its command line; and a copy of the command, since the build may be root's alone.
    let (script, program) = (directory.join("script"), directory.join("outcall"));
    std::fs::write(&script, format!("#!/bin/sh\necho \"$1\" > {}/link\n", directory.display())).unwrap();
    install(&script, &directory.join("xdg-open"));
    install(env!("CARGO_BIN_EXE_outcall").as_ref(), &program);
    let mut command = Command::new(&program);
    command.arg("--socket").arg(directory.join("host.sock")).args(["--json", "ui"]).env("PATH", with_path(&directory));
    if nix::unistd::geteuid().is_root() {
        // Root starts no browser.
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut bridge = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(bridge.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    let link = loop {
        match std::fs::read_to_string(directory.join("link")) {
            Ok(link) if link.ends_with('\n') => break link.trim().to_owned(),
            _ => assert!(Instant::now() < until, "no browser was started"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let place = link.strip_prefix("http://").unwrap();
    let (host, path) = place.split_at(place.find('/').unwrap());
    let follow = || {
        let mut stream = TcpStream::connect(host).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        // The end of the process may cut the last answer.
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    let thief = follow();
    assert_eq!(status(&thief), 303, "{thief}");
    let browser = follow();
    assert!(browser.is_empty() || browser.contains("followed twice"), "{browser}");
    let output = bridge.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && words.contains("followed twice"), "{words}");
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Copies a program. Not by this process: what one of its threads has open for writing while another one forks cannot
/// be executed for a moment (ETXTBSY).
fn install(from: &std::path::Path, to: &std::path::Path) {
    assert!(Command::new("install").args(["-m", "755"]).arg(from).arg(to).status().unwrap().success());
}

/// `PATH` with `directory` first.
fn with_path(directory: &std::path::Path) -> String {
    format!("{}:{}", directory.display(), std::env::var("PATH").unwrap_or_default())
}

#[test]
fn a_port_that_is_taken_is_named() {
    let world = World::new();
    let output = Command::new(env!("CARGO_BIN_EXE_outcall"))
        .args(["ui", "--no-open", "--port", &world.port.to_string()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains(&format!("127.0.0.1:{}", world.port)) && words.contains("--port"), "{words}");
}

#[test]
fn it_listens_on_loopback_only() {
    let world = World::new();
    let hex = format!(":{:04X}", world.port);
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        let local = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
        for address in local.filter(|address| address.ends_with(&hex)) {
            assert_eq!(address, format!("0100007F{hex}"), "{table}");
        }
    }
}
