//! One socket of a session with what was read and not used, and what is to be written.
//!
//! Sockets are registered once, edge-triggered: a flag says that reading or writing may work, and is taken down
//! when the kernel says it does not. Buffers exist only while they hold something, so an idle leg has none.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

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
    /// Takes a socket into the poll.
    pub(super) fn new(mut stream: TcpStream, registry: &Registry, token: Token, ready: bool) -> io::Result<Self> {
        // Small writes must not wait for acknowledgements: requests and TLS records are small writes.
        stream.set_nodelay(true)?;
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
        })
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
        self.readable && !self.ended
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

    /// Our end.
    pub(super) fn local_address(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Whether nothing waits in either buffer.
    pub(super) fn is_quiet(&self) -> bool {
        self.input.is_empty() && self.pending() == 0
    }

    /// Reads once into `scratch`.
    pub(super) fn read(&mut self, scratch: &mut [u8]) -> io::Result<ReadOutcome> {
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

    /// Bytes not yet written.
    pub(super) fn pending(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Writes what is pending. True when nothing is left.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
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
