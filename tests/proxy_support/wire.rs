//! Connections read message by message, with TLS or without.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;

use super::PATIENCE;

/// A raw connection, read message by message.
pub struct Wire {
    pub stream: TcpStream,
    buffer: Vec<u8>,
    /// TLS, once it is spoken.
    pub tls: Option<Box<rustls::Connection>>,
}

/// A response as the client saw it.
#[derive(Debug)]
pub struct Seen {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Wire { stream, buffer: Vec::new(), tls: None }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        match &mut self.tls {
            None => self.stream.write_all(bytes.as_ref()).unwrap(),
            Some(tls) => {
                let mut rest = bytes.as_ref();
                while !rest.is_empty() || tls.wants_write() {
                    let taken = tls.writer().write(rest).unwrap();
                    rest = &rest[taken..];
                    while tls.wants_write() {
                        tls.write_tls(&mut self.stream).unwrap();
                    }
                }
            }
        }
    }

    fn read(&mut self, piece: &mut [u8]) -> std::io::Result<usize> {
        match &mut self.tls {
            None => self.stream.read(piece),
            Some(tls) => loop {
                match tls.reader().read(piece) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    outcome => return outcome,
                }
                while tls.wants_write() {
                    tls.write_tls(&mut self.stream)?;
                }
                tls.read_tls(&mut self.stream)?;
                tls.process_new_packets().map_err(|error| std::io::Error::other(error.to_string()))?;
            },
        }
    }

    /// Speaks TLS from here on; the handshake is done when this is.
    pub fn secure(mut self, connection: impl Into<rustls::Connection>) -> std::io::Result<Wire> {
        let mut tls = Box::new(connection.into());
        while tls.is_handshaking() {
            tls.complete_io(&mut self.stream)?;
        }
        self.tls = Some(tls);
        Ok(self)
    }

    /// Whether the connection ends without the end of TLS.
    pub fn is_truncated(&mut self) -> bool {
        let mut piece = [0; 4096];
        loop {
            match self.read(&mut piece) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Says inside TLS that no more comes.
    pub fn close_tls(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = tls.complete_io(&mut self.stream);
        }
    }

    fn more(&mut self) -> usize {
        let mut piece = [0; 16 * 1024];
        let bytes = match self.read(&mut piece) {
            // Most peers do not take leave inside TLS; see `truncated` for the tests that care.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => 0,
            bytes => bytes.expect("bytes before the patience is over"),
        };
        self.buffer.extend_from_slice(&piece[..bytes]);
        bytes
    }

    /// A head, up to and with its empty line; empty at the end of the stream.
    pub fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.buffer.drain(..end + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            if self.more() == 0 {
                assert!(self.buffer.is_empty(), "half a head of {} bytes", self.buffer.len());
                return String::new();
            }
        }
    }

    pub fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            assert!(self.more() > 0, "the stream ended after {} of {length} bytes", self.buffer.len());
        }
        self.buffer.drain(..length).collect()
    }

    /// Bytes read beyond what was asked for; they are taken.
    pub fn take_buffered(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    pub fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return String::from_utf8(line[..end].to_vec()).unwrap();
            }
            assert!(self.more() > 0, "the stream ended within a line");
        }
    }

    /// Everything to the end of the stream, a reset counted as one.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut piece = [0; 16 * 1024];
        loop {
            match self.read(&mut piece) {
                Ok(0) => break,
                Ok(bytes) => self.buffer.extend_from_slice(&piece[..bytes]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                // The end of the connection without one of TLS: see `truncated`.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
                Err(error) => panic!("no end of the stream: {error}"),
            }
        }
        std::mem::take(&mut self.buffer)
    }

    /// A chunked body with its trailers.
    pub fn chunks(&mut self) -> (Vec<u8>, String) {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(&self.line(), 16).expect("a plain chunk size");
            if size == 0 {
                break;
            }
            body.extend(self.exactly(size));
            assert_eq!(self.line(), "");
        }
        let mut trailers = String::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                return (body, trailers);
            }
            trailers += &line;
            trailers += "\n";
        }
    }

    /// A response to a request with `method`.
    pub fn response_to(&mut self, method: &str) -> Seen {
        let head = self.head();
        let status = head.get(9..12).unwrap_or_else(|| panic!("no response: {head:?}")).parse().unwrap();
        let mut seen = Seen { status, head, body: Vec::new() };
        if method == "HEAD" || matches!(status, 100..=199 | 204 | 304) {
            return seen;
        }
        seen.body = match (seen.field("content-length"), seen.field("transfer-encoding")) {
            (Some(length), None) => {
                let length = length.parse().unwrap();
                self.exactly(length)
            }
            (None, Some("chunked")) => self.chunks().0,
            (None, None) => self.rest(),
            both => panic!("{both:?}"),
        };
        seen
    }

    pub fn response(&mut self) -> Seen {
        self.response_to("GET")
    }

    pub fn get(&mut self, url: &str) -> Seen {
        let host = url.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
        self.send(format!("GET {url} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        self.response()
    }

    pub fn connect(&mut self, authority: &str) -> Seen {
        self.send(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"));
        let head = self.head();
        let status = head.get(9..12).unwrap_or_else(|| panic!("no response: {head:?}")).parse().unwrap();
        let mut seen = Seen { status, head, body: Vec::new() };
        if status != 200 {
            let length = seen.field("content-length").unwrap().parse().unwrap();
            seen.body = self.exactly(length);
        }
        seen
    }

    /// Answers each request with its body, or with its target, and keeps the connection.
    pub fn serve_echo(&mut self, log: &Mutex<Vec<String>>) {
        loop {
            let head = self.head();
            if head.is_empty() {
                return;
            }
            let target = head.split(' ').nth(1).unwrap().to_owned();
            let seen = Seen { status: 0, head: head.clone(), body: Vec::new() };
            let mut body = target.into_bytes();
            if let Some(length) = seen.field("content-length") {
                body = self.exactly(length.parse().unwrap());
            } else if seen.field("transfer-encoding").is_some() {
                let (data, trailers) = self.chunks();
                body = [data, trailers.into_bytes()].concat();
            }
            log.lock().unwrap().push(head.clone());
            let headless = head.starts_with("HEAD ");
            self.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()));
            if !headless {
                self.send(body);
            }
        }
    }

    pub fn is_closed(&mut self) -> bool {
        self.rest().is_empty()
    }
}
