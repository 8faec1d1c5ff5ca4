//! HTTPS load through a proxy, for `integration/bench intercept`: blocking sockets and rustls, a thread a connection.
//!
//! `tls_load PROXY ROOTS HOST MODE CONNECTIONS SECONDS`, where PROXY is IP:PORT, ROOTS a PEM file to trust, and MODE
//!
//! * `alive`: each connection asks again and again;
//! * `new`: each request has a connection of its own, tunnel and handshakes included;
//! * `hosts`: as `new`, and each to a host that nobody named before (`hN-HOST`);
//! * `hold`: CONNECTIONS connections, one request each, kept open until standard input ends.
//!
//! Prints one JSON object: requests, failures, seconds, and the times of a request in microseconds.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A proxy that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest head or body taken.
const ANSWER_MAX: u64 = 64 * 1024;

struct Load {
    proxy: String,
    host: String,
    config: Arc<ClientConfig>,
    hosts: AtomicU64,
}

struct Connection(BufReader<StreamOwned<ClientConnection, TcpStream>>);

impl Load {
    fn fresh_host(&self) -> String {
        format!("h{}-{}", self.hosts.fetch_add(1, Ordering::Relaxed), self.host)
    }

    fn connect(&self, host: &str) -> Result<Connection, Failure> {
        let mut socket = TcpStream::connect(&self.proxy)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n").as_bytes())?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte)?;
            head.push(byte[0]);
            if head.len() as u64 > ANSWER_MAX {
                return Err("an endless answer to CONNECT".into());
            }
        }
        if head.get(8..12) != Some(b" 200") {
            return Err(String::from_utf8_lossy(&head).into_owned().into());
        }
        let tls = ClientConnection::new(Arc::clone(&self.config), host.to_owned().try_into()?)?;
        Ok(Connection(BufReader::new(StreamOwned::new(tls, socket))))
    }
}

impl Connection {
    /// One request, and the whole of its answer.
    fn ask(&mut self, host: &str) -> Result<(), Failure> {
        let request = format!("GET /small HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let stream = self.0.get_mut();
        stream.write_all(request.as_bytes())?;
        stream.flush()?;
        let (mut length, mut first, mut read) = (None, true, 0);
        loop {
            let mut line = String::new();
            read += (&mut self.0).take(ANSWER_MAX).read_line(&mut line)? as u64;
            let line = line.trim_end();
            if first && !line.starts_with("HTTP/1.1 200") || read > ANSWER_MAX {
                return Err(line.to_owned().into());
            }
            first = false;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().ok();
            }
        }
        let mut body = vec![0; length.filter(|length| *length <= ANSWER_MAX as usize).ok_or("no usable length")?];
        self.0.read_exact(&mut body)?;
        Ok(())
    }
}

/// What one thread did: the time of each request, and the first failure with their number.
#[derive(Default)]
struct Done {
    micros: Vec<u64>,
    failures: u64,
    first: Option<String>,
}

fn work(load: &Load, mode: &str, until: Instant) -> Done {
    let mut done = Done::default();
    let mut kept: Option<Connection> = None;
    while Instant::now() < until {
        let begun = Instant::now();
        let outcome = match mode {
            "alive" => match kept.take() {
                Some(connection) => Ok(connection),
                None => load.connect(&load.host),
            }
            .and_then(|mut connection| connection.ask(&load.host).map(|()| kept = Some(connection))),
            "hosts" => {
                let host = load.fresh_host();
                load.connect(&host).and_then(|mut connection| connection.ask(&host))
            }
            _ => load.connect(&load.host).and_then(|mut connection| connection.ask(&load.host)),
        };
        match outcome {
            Ok(()) => done.micros.push(begun.elapsed().as_micros() as u64),
            Err(error) => {
                done.failures += 1;
                done.first.get_or_insert(error.to_string());
            }
        }
    }
    done
}

fn hold(load: &Load, connections: usize) -> Result<(), Failure> {
    let mut held = Vec::new();
    for _ in 0..connections {
        let mut connection = load.connect(&load.host)?;
        connection.ask(&load.host)?;
        held.push(connection);
    }
    println!("held {}", held.len());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn roots(path: &str) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path)? {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [proxy, pem, host, mode, connections, seconds] = arguments.as_slice() else {
        return Err("tls_load PROXY ROOTS HOST alive|new|hosts|hold CONNECTIONS SECONDS".into());
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(pem)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Each handshake is a full one, whatever the proxy would allow.
    config.resumption = rustls::client::Resumption::disabled();
    let hosts = AtomicU64::new(0);
    let load = Load { proxy: proxy.clone(), host: host.clone(), config: Arc::new(config), hosts };
    let connections: usize = connections.parse()?;
    if mode == "hold" {
        return hold(&load, connections);
    }
    let begun = Instant::now();
    let until = begun + Duration::from_secs(seconds.parse()?);
    let done: Vec<Done> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(|| work(&load, mode, until))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let seconds = begun.elapsed().as_secs_f64();
    let failures: u64 = done.iter().map(|done| done.failures).sum();
    let first = done.iter().find_map(|done| done.first.clone());
    let mut micros: Vec<u64> = done.into_iter().flat_map(|done| done.micros).collect();
    micros.sort_unstable();
    let at = |share: f64| micros.get((micros.len() as f64 * share) as usize).or(micros.last());
    let figures = serde_json::json!({
        "requests": micros.len(), "failures": failures, "seconds": seconds, "p50_us": at(0.5), "p99_us": at(0.99),
        "first_failure": first,
    });
    println!("{figures}");
    Ok(())
}
