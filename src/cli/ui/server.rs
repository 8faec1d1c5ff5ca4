//! A small HTTP/1.1 server on loopback: one thread a connection, with caps and deadlines.
//!
//! Owns: accepting, one request after the other, the framing of what goes back. Does not own: head parsing and body
//! framing ([`crate::http1`], which refuses what two parsers could read two ways), and who may pass.

use std::io::{ErrorKind, Read as _, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::http1::{BodyReader, Found, Parse, RequestHead, Version};

/// Connections at once: a browser opens six for a page.
pub(super) const CONNECTIONS: usize = 32;
/// Largest body of a request in bytes; the daemon takes no more.
const BODY_MAX: usize = 64 * 1024;
/// From the first byte of a request (or from connecting) to the end of its head and body; loopback takes milliseconds.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// Between an answer and the next request.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// A browser that takes no byte for so long is gone.
const STALL: Duration = Duration::from_secs(30);
/// After a last answer: how long the other side may take to read it, while what it still sends is thrown away.
const LINGER: Duration = Duration::from_secs(1);
/// Pause after accept(2) failed, for want of descriptors mostly. The port stays open and is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes read at once.
const PIECE: usize = 16 * 1024;
/// Stack of a connection's thread: a few pieces and a head.
const STACK: usize = 256 * 1024;

/// A whole request.
pub(super) struct Request {
    pub(super) head: RequestHead,
    pub(super) body: Vec<u8>,
}

/// Where its answer goes.
pub(super) struct Client<'c> {
    pub(super) stream: &'c TcpStream,
    version: Version,
    keep: bool,
}

/// Accepts until the process ends; each request goes to `serve`.
pub(super) fn run(listener: &TcpListener, serve: impl Fn(&Request, &mut Client<'_>) + Send + Sync + 'static) {
    let open = Arc::new(AtomicUsize::new(0));
    let serve = Arc::new(serve);
    loop {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(ACCEPT_PAUSE);
            continue;
        };
        let place = Place::take(&open);
        if place.number > CONNECTIONS {
            // Best effort, without waiting: one too many may not even read it.
            let _ = stream.set_nonblocking(true);
            let _ = Client { stream: &stream, version: Version::Http11, keep: false }.text(503, "too many connections");
            continue;
        }
        let serve = Arc::clone(&serve);
        // Without a thread the connection is closed: the closure, and with it the socket, is dropped.
        let _ = std::thread::Builder::new().name("ui_connection".to_owned()).stack_size(STACK).spawn(move || {
            let _place = place;
            let _ = converse(&stream, &*serve);
        });
    }
}

/// One of the connections, as long as it lives.
struct Place {
    open: Arc<AtomicUsize>,
    number: usize,
}

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Self {
        Place { number: open.fetch_add(1, Ordering::Relaxed) + 1, open: Arc::clone(open) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why no request came.
enum Stop {
    /// The other side has ended, or said nothing in time.
    Gone,
    /// It is told why.
    Told(u16, String),
}

impl From<std::io::Error> for Stop {
    fn from(_: std::io::Error) -> Self {
        Stop::Gone
    }
}

fn converse(stream: &TcpStream, serve: &impl Fn(&Request, &mut Client<'_>)) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(STALL))?;
    let mut buffer = Vec::new();
    let mut patience = REQUEST_TIME;
    loop {
        match request(stream, &mut buffer, patience) {
            Ok(request) => {
                let keep = request.head.keep_alive();
                let mut client = Client { stream, version: request.head.version, keep };
                serve(&request, &mut client);
                if !client.keep {
                    break;
                }
            }
            Err(Stop::Gone) => return Ok(()),
            Err(Stop::Told(status, message)) => {
                Client { stream, version: Version::Http11, keep: false }.text(status, &message)?;
                break;
            }
        }
        patience = IDLE_TIME;
    }
    linger(stream)
}

/// Reads one request; `patience` is for its first byte. What follows it stays in `buffer`.
fn request(stream: &TcpStream, buffer: &mut Vec<u8>, patience: Duration) -> Result<Request, Stop> {
    let mut until = Instant::now() + if buffer.is_empty() { patience } else { REQUEST_TIME };
    let head = loop {
        match RequestHead::parse(buffer) {
            Parse::Parsed { head, consumed } => {
                buffer.drain(..consumed);
                break head;
            }
            Parse::Refused(refusal) => {
                return Err(Stop::Told(refusal.status(), format!("not a request that is taken here: {refusal}")));
            }
            Parse::Incomplete => {
                let first = buffer.is_empty();
                more(stream, buffer, until)?;
                if first {
                    until = Instant::now() + REQUEST_TIME;
                }
            }
        }
    };
    if head.expects_continue() {
        let mut writer = stream;
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut reader = BodyReader::new(head.framing);
    let mut body = Vec::new();
    loop {
        let progress = reader.read(buffer).map_err(|error| Stop::Told(400, error.to_string()))?;
        if let Found::Data(place) = &progress.found {
            if body.len() + place.len() > BODY_MAX {
                return Err(Stop::Told(413, format!("the body is larger than {BODY_MAX} bytes")));
            }
            body.extend_from_slice(&buffer[place.clone()]);
        }
        buffer.drain(..progress.consumed);
        match progress.found {
            Found::End => return Ok(Request { head, body }),
            Found::Data(_) => {}
            Found::Nothing => more(stream, buffer, until)?,
        }
    }
}

/// Reads once, until `until` at most.
fn more(mut stream: &TcpStream, buffer: &mut Vec<u8>, until: Instant) -> Result<(), Stop> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Stop::Gone);
    }
    stream.set_read_timeout(Some(left))?;
    let mut piece = [0; PIECE];
    match stream.read(&mut piece) {
        Ok(0) => Err(Stop::Gone),
        Ok(length) => {
            buffer.extend_from_slice(&piece[..length]);
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
        Err(_) => Err(Stop::Gone),
    }
}

/// Closing at once would reset the connection under the last answer.
fn linger(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    let until = Instant::now() + LINGER;
    let mut piece = [0; PIECE];
    while let left = until.saturating_duration_since(Instant::now())
        && !left.is_zero()
    {
        stream.set_read_timeout(Some(left))?;
        if stream.read(&mut piece)? == 0 {
            break;
        }
    }
    Ok(())
}

impl Client<'_> {
    /// The head of an answer of known length.
    pub(super) fn head<'f>(
        &mut self,
        status: u16,
        fields: impl Iterator<Item = (&'f str, &'f str)>,
        length: u64,
    ) -> std::io::Result<()> {
        let head = self.words(status, fields, Some(length));
        self.write(head.as_bytes())
    }

    /// The head of an answer that goes on until [`Client::end`].
    pub(super) fn open<'f>(
        &mut self,
        status: u16,
        fields: impl Iterator<Item = (&'f str, &'f str)>,
    ) -> std::io::Result<()> {
        // Without chunks only the end of the connection can tell the end.
        self.keep &= self.version == Version::Http11;
        let head = self.words(status, fields, None);
        self.write(head.as_bytes())
    }

    fn words<'f>(&self, status: u16, fields: impl Iterator<Item = (&'f str, &'f str)>, length: Option<u64>) -> String {
        let mut head = format!("HTTP/1.1 {status} \r\n");
        for (name, value) in fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match (length, self.version) {
            (Some(length), _) => head.push_str(&format!("content-length: {length}\r\n")),
            (None, Version::Http11) => head.push_str("transfer-encoding: chunked\r\n"),
            (None, Version::Http10) => {}
        }
        head.push_str(match (self.keep, self.version) {
            (false, _) => "connection: close\r\n\r\n",
            (true, Version::Http10) => "connection: keep-alive\r\n\r\n",
            (true, Version::Http11) => "\r\n",
        });
        head
    }

    /// Bytes of an answer of known length. After a failure nothing more can be said on this connection.
    pub(super) fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let mut writer = self.stream;
        writer.write_all(bytes).inspect_err(|_| self.keep = false)
    }

    /// A piece of an open answer, sent at once.
    pub(super) fn piece(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.version == Version::Http10 {
            return self.write(bytes);
        }
        let mut chunk = Vec::with_capacity(bytes.len() + 16);
        crate::http1::write_chunk(&mut chunk, bytes);
        self.write(&chunk)
    }

    /// The end of an open answer.
    pub(super) fn end(&mut self) -> std::io::Result<()> {
        if self.version == Version::Http10 { Ok(()) } else { self.write(b"0\r\n\r\n") }
    }

    /// The answer was cut short: what is missing must not be taken for the next one.
    pub(super) fn cut(&mut self) {
        self.keep = false;
    }

    /// A short text.
    fn text(&mut self, status: u16, message: &str) -> std::io::Result<()> {
        let fields = [("content-type", "text/plain"), ("x-content-type-options", "nosniff")];
        self.head(status, fields.into_iter(), message.len() as u64 + 1)?;
        self.write(format!("{message}\n").as_bytes())
    }
}
