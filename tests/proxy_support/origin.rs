//! Origins that do as they are told, and the first bytes of a TLS client.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::Wire;

/// An origin: what it does with each connection, and all requests that it read.
pub struct Origin {
    pub port: u16,
    pub connections: Arc<AtomicUsize>,
    pub heads: Arc<Mutex<Vec<String>>>,
}

impl Origin {
    /// An origin that runs `serve` for each connection, on a thread of its own.
    pub fn with(serve: impl Fn(Wire, &Mutex<Vec<String>>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (count, log, serve) = (Arc::clone(&connections), Arc::clone(&heads), Arc::new(serve));
        // Ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                let (log, serve) = (Arc::clone(&log), Arc::clone(&serve));
                std::thread::spawn(move || serve(Wire::new(stream.unwrap()), &log));
            }
        });
        Origin { port, connections, heads }
    }

    /// An origin that answers each request with its target, and keeps the connection.
    pub fn echo() -> Self {
        Origin::with(|mut wire, log| wire.serve_echo(log))
    }

    /// An origin that sends `response` to whatever request, and then closes.
    pub fn canned(response: &'static [u8]) -> Self {
        Origin::with(move |mut wire, log| {
            let head = wire.head();
            log.lock().unwrap().push(head);
            let _ = wire.stream.write_all(response);
            let _ = wire.stream.shutdown(std::net::Shutdown::Write);
            let _ = wire.stream.read(&mut [0; 64]);
        })
    }

    pub fn url(&self, host: &str, path: &str) -> String {
        format!("http://{host}:{}{path}", self.port)
    }

    pub fn seen(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A ClientHello with this server name, in one record.
pub fn client_hello(sni: Option<&str>) -> Vec<u8> {
    let vector = |body: &[u8]| [&(body.len() as u16).to_be_bytes(), body].concat();
    let mut extensions = Vec::new();
    if let Some(name) = sni {
        let list = vector(&[&[0], &vector(name.as_bytes())[..]].concat());
        extensions = [&[0, 0][..], &vector(&list)].concat();
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(vector(&extensions));
    let length = (body.len() as u32).to_be_bytes();
    let message = [&[1], &length[1..], &body[..]].concat();
    [&[22, 3, 1], &vector(&message)[..]].concat()
}
