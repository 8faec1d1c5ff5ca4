//! One socket of a session with what was read and not used, and what is to be written.
//!
//! Sockets are registered once, edge-triggered: a flag says that reading or writing may work, and is taken down
//! when the kernel says it does not. Buffers exist only while they hold something, so an idle leg has none.
//!
//! A leg may speak TLS: input and output are then what is inside, and all who use it need not know.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::intercept::tls::{Plain, TlsSide};
use super::splice::Pipe;

/// Bytes of one read, and so of what a leg holds for its peer: small, for thousands of stalled peers.
pub(super) const READ_SIZE: usize = 16 * 1024;

/// A socket.
pub(super) struct Leg {
    stream: TcpStream,
    readable: bool,
    writable: bool,
    /// The peer has said that it sends no more; what it sent may still wait in the kernel.
    peer_closed: bool,
    /// The end of what the peer sent was read.
    ended: bool,
    /// We have said that we send no more.
    shut: bool,
    /// Read and not yet used.
    pub(super) input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    tls: Option<Box<Secured>>,
}

/// TLS of a leg, with what went through it.
struct Secured {
    side: TlsSide,
    /// Bytes of data, not of records.
    read: u64,
    written: u64,
    /// The socket is to be shut down once the last record is sent.
    shut_after: bool,
}

/// Why a handshake failed.
#[derive(Debug)]
pub(super) enum HandshakeError {
    /// The peer went away.
    Closed,
    /// The peer, or what it showed, was refused; or the peer refused us.
    Tls(rustls::Error),
}

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    Blocked,
    /// Nothing any more.
    Ended,
}

impl Leg {
    /// Takes a client's socket into the poll.
    pub(super) fn accepted(stream: TcpStream, registry: &Registry, token: Token) -> io::Result<Self> {
        Self::new(stream, registry, token, true)
    }

    /// Begins a connection to `address`.
    pub(super) fn connect(address: SocketAddr, registry: &Registry, token: Token) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Self::new(stream, registry, token, false)
    }

    /// Small writes must not wait for acknowledgements: requests and TLS records are small writes. So both kinds of
    /// sockets come with TCP_NODELAY set.
    fn new(mut stream: TcpStream, registry: &Registry, token: Token, ready: bool) -> io::Result<Self> {
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Leg {
            stream,
            readable: ready,
            writable: ready,
            peer_closed: false,
            ended: false,
            shut: false,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            tls: None,
        })
    }

    /// Speaks TLS from here on. What was read and not used is the peer's first records.
    pub(super) fn secure(&mut self, side: TlsSide) -> Result<(), HandshakeError> {
        let records = std::mem::take(&mut self.input);
        let mut secured = Box::new(Secured { side, read: 0, written: 0, shut_after: false });
        let fed = secured.side.feed(&records);
        self.tls = Some(secured);
        fed.map_err(|error| self.refuse(error))
    }

    /// Whether it speaks TLS.
    pub(super) fn is_secured(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether the peer agreed on TLS 1.3.
    pub(super) fn is_tls13(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.side.is_tls13())
    }

    /// Whether the server has sent a session ticket: its handshake is done.
    pub(super) fn has_ticket(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.side.has_ticket())
    }

    /// Bytes of data that came and went inside TLS.
    pub(super) fn counts(&self) -> (u64, u64) {
        self.tls.as_ref().map_or((0, 0), |tls| (tls.read, tls.written))
    }

    /// Goes on with the handshake. True when it is done.
    pub(super) fn shake_hands(&mut self, scratch: &mut [u8]) -> Result<bool, HandshakeError> {
        loop {
            if self.flush().is_err() {
                return Err(HandshakeError::Closed);
            }
            let Some(tls) = &mut self.tls else { return Ok(true) };
            if !tls.side.is_handshaking() {
                return Ok(true);
            }
            match self.read_records(scratch) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(error) => {
                    let tls = super::intercept::tls::tls_error(&error).cloned();
                    return Err(tls.map_or(HandshakeError::Closed, HandshakeError::Tls));
                }
            }
        }
    }

    /// Tells the peer why TLS ends, and speaks none any more: the session only lingers until the peer has heard it.
    fn refuse(&mut self, error: rustls::Error) -> HandshakeError {
        // Without the alert the peer sees a close: it fails either way.
        let _ = self.flush_records();
        HandshakeError::Tls(error)
    }

    /// Gives TLS up after a failure, so that what the peer still sends can be drained.
    pub(super) fn give_up_tls(&mut self) {
        self.tls = None;
        self.output = Vec::new();
        self.sent = 0;
    }

    /// Notes what the poll says. False when the connection is broken in both directions.
    pub(super) fn note(&mut self, event: &mio::event::Event) -> bool {
        self.readable |= event.is_readable() || event.is_read_closed();
        self.writable |= event.is_writable();
        self.peer_closed |= event.is_read_closed();
        !event.is_error()
    }

    /// Whether the poll has said that writing may work: for a socket that connects, that it is done.
    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Whether a read may give something.
    pub(super) fn is_readable(&self) -> bool {
        (self.readable || self.tls.is_some()) && !self.ended
    }

    /// Whether the handshake is done.
    pub(super) fn is_connected(&self) -> bool {
        self.stream.peer_addr().is_ok()
    }

    /// Takes the flag down until the poll says it again.
    pub(super) fn not_yet_writable(&mut self) {
        self.writable = false;
    }

    /// What went wrong on the socket, once.
    pub(super) fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.stream.take_error()
    }

    /// Whether nothing waits in either buffer.
    pub(super) fn is_quiet(&self) -> bool {
        self.input.is_empty() && self.pending() == 0
    }

    /// Reads once into `scratch`.
    pub(super) fn read(&mut self, scratch: &mut [u8]) -> io::Result<ReadOutcome> {
        if self.tls.is_some() { self.read_inside(scratch) } else { self.read_socket(scratch) }
    }

    /// Reads records until there is data in them. The row of records without data is bounded by [`TlsSide`].
    fn read_inside(&mut self, scratch: &mut [u8]) -> io::Result<ReadOutcome> {
        loop {
            let Some(tls) = self.tls.as_mut().filter(|_| !self.ended) else { return Ok(ReadOutcome::Ended) };
            match tls.side.read(scratch)? {
                Plain::Bytes(bytes) => {
                    tls.read += bytes as u64;
                    return Ok(ReadOutcome::Bytes(bytes));
                }
                Plain::Ended => self.ended = true,
                Plain::Nothing => {
                    if self.read_records(scratch)? == 0 {
                        return Ok(ReadOutcome::Blocked);
                    }
                }
            }
        }
    }

    /// Reads records once, from what waits or else from the socket. 0: nothing now. An end of the socket before the
    /// peer has said so inside TLS is an error: somebody may have cut what it sent.
    fn read_records(&mut self, scratch: &mut [u8]) -> io::Result<usize> {
        let waiting = self.tls.as_ref().is_some_and(|tls| tls.side.has_waiting());
        let bytes = if waiting {
            0
        } else {
            match self.read_socket(scratch)? {
                ReadOutcome::Bytes(bytes) => bytes,
                ReadOutcome::Blocked => return Ok(0),
                ReadOutcome::Ended => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        };
        let Some(tls) = &mut self.tls else { return Ok(0) };
        let fed = if waiting { tls.side.retry() } else { tls.side.feed(&scratch[..bytes]) };
        match fed {
            Ok(()) => Ok(bytes.max(1)),
            Err(error) => {
                self.refuse(error.clone());
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
        }
    }

    fn read_socket(&mut self, scratch: &mut [u8]) -> io::Result<ReadOutcome> {
        loop {
            if self.ended {
                return Ok(ReadOutcome::Ended);
            }
            if !self.readable {
                return Ok(ReadOutcome::Blocked);
            }
            match self.stream.read(scratch) {
                Ok(0) => self.ended = true,
                Ok(bytes) => {
                    // A short read empties the socket; only a close that was told already gives no further event.
                    self.readable = bytes == scratch.len() || self.peer_closed;
                    return Ok(ReadOutcome::Bytes(bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Moves what the socket has into `pipe`, which is empty.
    pub(super) fn fill_pipe(&mut self, pipe: &mut Pipe) -> io::Result<ReadOutcome> {
        if self.ended {
            return Ok(ReadOutcome::Ended);
        }
        if !self.readable {
            return Ok(ReadOutcome::Blocked);
        }
        match pipe.fill(&self.stream) {
            Ok(0) => {
                self.ended = true;
                Ok(ReadOutcome::Ended)
            }
            // However little it is, the socket may have more: a pipe is full by its pages, not its bytes.
            Ok(bytes) => Ok(ReadOutcome::Bytes(bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(ReadOutcome::Blocked)
            }
            Err(error) => Err(error),
        }
    }

    /// Moves what is in `pipe` to the socket, after what is pending. True when nothing is left in it.
    pub(super) fn drain_pipe(&mut self, pipe: &mut Pipe) -> io::Result<bool> {
        if !self.flush()? {
            return Ok(false);
        }
        while self.writable && !pipe.is_empty() {
            match pipe.drain(&self.stream) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) => return Err(error),
            }
        }
        Ok(pipe.is_empty())
    }

    /// Reads once and appends to the input.
    pub(super) fn fill(&mut self, scratch: &mut [u8]) -> io::Result<ReadOutcome> {
        let outcome = self.read(scratch)?;
        if let ReadOutcome::Bytes(bytes) = outcome {
            self.input.extend_from_slice(&scratch[..bytes]);
        }
        Ok(outcome)
    }

    /// Drops the first `bytes` of the input.
    pub(super) fn consume(&mut self, bytes: usize) {
        if bytes >= self.input.len() {
            self.input = Vec::new();
        } else {
            self.input.drain(..bytes);
        }
    }

    /// The output to append to.
    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Bytes not yet written; some at least when records are.
    pub(super) fn pending(&self) -> usize {
        let records = self.tls.as_ref().is_some_and(|tls| tls.side.wants_write());
        self.output.len() - self.sent + usize::from(records)
    }

    /// Writes what is pending. True when nothing is left.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        if self.tls.is_some() { self.flush_inside() } else { self.flush_socket() }
    }

    fn flush_inside(&mut self) -> io::Result<bool> {
        loop {
            if !self.flush_records()? {
                return Ok(false);
            }
            let Some(tls) = &mut self.tls else { return Ok(true) };
            if self.sent == self.output.len() {
                break;
            }
            let bytes = tls.side.write(&self.output[self.sent..])?;
            if bytes == 0 {
                return Ok(false);
            }
            self.sent += bytes;
            tls.written += bytes as u64;
        }
        if !self.output.is_empty() {
            self.output = Vec::new();
            self.sent = 0;
        }
        if let Some(tls) = self.tls.as_mut().filter(|tls| tls.shut_after) {
            tls.shut_after = false;
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(true)
    }

    /// Writes the records that wait. True when none is left.
    fn flush_records(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(true) };
        while tls.side.wants_write() {
            if !self.writable {
                return Ok(false);
            }
            match tls.side.send(&mut self.stream) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn flush_socket(&mut self) -> io::Result<bool> {
        while self.sent < self.output.len() {
            if !self.writable {
                return Ok(false);
            }
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.sent += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if !self.output.is_empty() {
            self.output = Vec::new();
            self.sent = 0;
        }
        Ok(true)
    }

    /// Writes `bytes`, after what is pending; what the socket does not take waits in the output.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.tls.is_some() {
            self.output.extend_from_slice(bytes);
            return self.flush().map(|_| ());
        }
        let mut rest = bytes;
        if self.flush()? {
            while self.writable && !rest.is_empty() {
                match self.stream.write(rest) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => rest = &rest[written..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        self.output.extend_from_slice(rest);
        Ok(())
    }

    /// Tells the peer that no more comes; once.
    pub(super) fn shut_down(&mut self) {
        if !self.shut {
            self.shut = true;
            if let Some(tls) = &mut self.tls {
                tls.side.close();
                tls.shut_after = true;
                // A failure is one of the socket, which reading tells.
                let _ = self.flush();
                return;
            }
            // It fails only when the peer has gone already, which reading tells.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Makes the close of the socket a reset.
    pub(super) fn abort(&self) {
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        // Without it the close is a plain one: the peer then takes what it has for all.
        let _ = nix::sys::socket::setsockopt(&self.stream, nix::sys::socket::sockopt::Linger, &linger);
    }

    /// Whether we have said that no more comes.
    pub(super) fn is_shut(&self) -> bool {
        self.shut
    }

    /// Releases what spare room the buffers have.
    pub(super) fn shrink(&mut self) {
        self.input.shrink_to_fit();
    }
}
