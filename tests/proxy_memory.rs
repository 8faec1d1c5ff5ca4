//! What the proxy holds under large bodies, stalled readers and idle tunnels. The figures are of the whole process, so
//! the tests of this file run one after the other.

mod proxy_support;

use std::io::{Read, Write};
use std::sync::Mutex;
use std::time::Duration;

use proxy_support::{Origin, Setup, client_hello, until};

const OK: &[&str] = &["ok allow http.host == 'ok.example'"];

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Resident memory of this process in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn memory_stays_flat_whatever_passes_or_stalls() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    const LENGTH: usize = 100_000_000;
    let sink = Origin::with(|mut wire, _| {
        wire.head();
        let mut left = LENGTH - wire.take_buffered().len();
        let mut piece = vec![0; 64 * 1024];
        while left > 0 {
            left -= wire.stream.read(&mut piece).unwrap();
        }
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone");
        wire.head();
    });
    let source = Origin::with(|mut wire, _| {
        wire.head();
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let chunk = [format!("{:x}\r\n", 50_000).into_bytes(), vec![7; 50_000], b"\r\n".to_vec()].concat();
        for _ in 0..LENGTH / 50_000 {
            if wire.stream.write_all(&chunk).is_err() {
                return;
            }
        }
        let _ = wire.stream.write_all(b"0\r\n\r\n");
        wire.head();
    });
    let proxy = Setup::new(OK).start();
    let host = |origin: &Origin| format!("ok.example:{}", origin.port);
    let before = resident_kib();
    let mut client = proxy.client();
    let to = host(&sink);
    client.send(format!("POST http://{to}/ HTTP/1.1\r\nHost: {to}\r\nContent-Length: {LENGTH}\r\n\r\n"));
    let piece = vec![1; 50_000];
    for _ in 0..LENGTH / piece.len() {
        client.send(&piece);
    }
    assert_eq!(client.response().text(), "done");
    let from = host(&source);
    client.send(format!("GET http://{from}/ HTTP/1.1\r\nHost: {from}\r\n\r\n"));
    let mut length = 0;
    assert!(client.head().contains("Transfer-Encoding: chunked\r\n"));
    loop {
        let size = usize::from_str_radix(&client.line(), 16).unwrap();
        if size == 0 {
            break;
        }
        length += client.exactly(size).len();
        client.exactly(2);
    }
    assert_eq!(length, LENGTH);
    // Thirty readers that do not read: each holds what the kernel and one buffer take.
    let stalled: Vec<_> = (0..30)
        .map(|_| {
            let mut client = proxy.client();
            client.send(format!("GET http://{from}/ HTTP/1.1\r\nHost: {from}\r\n\r\n"));
            client
        })
        .collect();
    until("all are served", || source.connections() == 31);
    std::thread::sleep(Duration::from_millis(300));
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB more than before");
    drop(stalled);
    until("all are gone", || proxy.status().active_connections == 1);
}

#[test]
fn an_idle_tunnel_costs_less_than_four_kibibytes() {
    const TUNNELS: usize = 500;
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // Connections are kept and nothing else: threads would count.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut kept = Vec::with_capacity(TUNNELS + 50);
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut hello = [0; 200];
            let length = stream.read(&mut hello).unwrap();
            stream.write_all(&hello[..length]).unwrap();
            kept.push(stream);
        }
    });
    let mut setup = Setup::new(OK);
    (setup.max_connections, setup.max_per_container) = (2 * TUNNELS, 2 * TUNNELS);
    let proxy = setup.start();
    let hello = client_hello(Some("ok.example"));
    let open = || {
        let mut client = proxy.client();
        assert_eq!(client.connect(&format!("ok.example:{port}")).status, 200);
        client.send(&hello);
        assert_eq!(client.exactly(hello.len()), hello);
        client.stream
    };
    // The first ones pay for what is made once.
    let warm: Vec<_> = (0..50).map(|_| open()).collect();
    let before = resident_kib();
    let tunnels: Vec<_> = (0..TUNNELS).map(|_| open()).collect();
    let each = resident_kib().saturating_sub(before) * 1024 / TUNNELS as u64;
    println!("{each} bytes for an idle tunnel, the test's own part included");
    assert!(each < 4096, "{each} bytes");
    drop((warm, tunnels));
}
