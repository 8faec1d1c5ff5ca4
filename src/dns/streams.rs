//! DNS over TCP (RFC 7766): messages behind a length of two bytes, several at a time, on connections that end when
//! nothing comes of them.
//!
//! Owns: framing and buffers, of clients and towards upstream. Does not own: sockets' registration, and the messages.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;

/// A connection must bring a whole message, or take a whole answer, in this time. RFC 7766 6.2.3 speaks of a few
/// seconds; an answer may take [`super::lookup::LOOKUP`] and more.
pub(super) const PROGRESS: Duration = Duration::from_secs(10);
/// Questions without an answer on one connection; reading stops there.
const PIPELINE: usize = 32;
/// The longest question taken, in bytes, as over UDP.
const QUESTION_MAX: usize = 1500;
/// Unsent answers of one connection; past it the client does not read, in bytes.
const UNSENT_MAX: usize = 256 << 10;
/// Bytes read of one connection before others have their turn.
const TURN: usize = 32 << 10;

/// Bytes in, messages out.
#[derive(Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    taken: usize,
}

impl Frames {
    /// Adds what was read.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message of at most `limit` bytes.
    ///
    /// # Errors
    /// `()`, when the length announced is over the limit.
    pub(super) fn next(&mut self, limit: usize) -> Result<Option<&[u8]>, ()> {
        let rest = &self.bytes[self.taken..];
        let Some(length) = rest.first_chunk::<2>().map(|bytes| usize::from(u16::from_be_bytes(*bytes))) else {
            return Ok(None);
        };
        if length > limit {
            return Err(());
        }
        if rest.len() < 2 + length {
            return Ok(None);
        }
        let start = self.taken + 2;
        self.taken = start + length;
        Ok(Some(&self.bytes[start..self.taken]))
    }
}

/// Messages out, as far as the peer takes them.
#[derive(Default)]
pub(super) struct Unsent {
    bytes: Vec<u8>,
    sent: usize,
}

impl Unsent {
    /// Adds a message; one over 65535 bytes cannot be framed and is left out.
    pub(super) fn push(&mut self, message: &[u8]) {
        let Ok(length) = u16::try_from(message.len()) else { return };
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(message);
    }

    /// True when all is sent.
    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Writes until all is sent or the socket is full.
    pub(super) fn flush(&mut self, stream: &mut impl Write) -> io::Result<()> {
        while !self.is_empty() {
            match stream.write(&self.bytes[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.forget_sent();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }

    /// A client that is always a little behind must not have all that it ever took kept. What is moved is never more
    /// than what was sent, however small the pieces.
    fn forget_sent(&mut self) {
        if self.sent >= self.len() {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}

/// A client's connection.
pub(super) struct Session {
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    frames: Frames,
    unsent: Unsent,
    unanswered: usize,
    ended: bool,
    /// When it is closed for want of progress.
    pub(super) deadline: Instant,
}

/// What a session wants after reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Nothing more to read now.
    Drained,
    /// There may be more, but it is others' turn.
    Again,
    /// It is to be closed.
    Closed,
}

impl Session {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, now: Instant) -> Self {
        Session {
            stream,
            peer,
            frames: Frames::default(),
            unsent: Unsent::default(),
            unanswered: 0,
            ended: false,
            deadline: now + PROGRESS,
        }
    }

    /// Reads, and gives each whole message to `message`, which says false when it is malformed.
    pub(super) fn read(&mut self, buffer: &mut [u8], now: Instant, mut message: impl FnMut(&[u8]) -> bool) -> Reading {
        let mut turn = 0;
        loop {
            while self.unanswered < PIPELINE {
                match self.frames.next(QUESTION_MAX) {
                    Ok(Some(bytes)) => {
                        self.unanswered += 1;
                        self.deadline = now + PROGRESS;
                        if !message(bytes) {
                            return Reading::Closed;
                        }
                    }
                    Ok(None) => break,
                    Err(()) => return Reading::Closed,
                }
            }
            if self.ended {
                // It may have sent its questions and closed its side: it still gets its answers.
                let done = self.unanswered == 0 && self.unsent.is_empty();
                return if done { Reading::Closed } else { Reading::Drained };
            }
            if self.unanswered >= PIPELINE {
                return Reading::Drained;
            }
            if turn >= TURN {
                return Reading::Again;
            }
            match self.stream.read(buffer) {
                Ok(0) => self.ended = true,
                Ok(count) => {
                    turn += count;
                    self.frames.extend(&buffer[..count]);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Reading::Drained,
                Err(_) => return Reading::Closed,
            }
        }
    }

    /// Adds an answer and sends what goes. True when reading, which a full pipeline had stopped, is to go on.
    ///
    /// # Errors
    /// The connection is to be closed.
    pub(super) fn answer(&mut self, bytes: &[u8], now: Instant) -> io::Result<bool> {
        let was_full = self.unanswered >= PIPELINE;
        self.unanswered = self.unanswered.saturating_sub(1);
        self.unsent.push(bytes);
        self.flush(now)?;
        if self.unsent.len() > UNSENT_MAX {
            return Err(ErrorKind::WriteZero.into());
        }
        Ok(was_full || self.ended)
    }

    /// Sends what goes.
    ///
    /// # Errors
    /// The connection is to be closed.
    pub(super) fn flush(&mut self, now: Instant) -> io::Result<()> {
        if !self.unsent.is_empty() {
            self.unsent.flush(&mut self.stream)?;
            if self.unsent.is_empty() {
                self.deadline = now + PROGRESS;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_out_of_any_pieces() {
        let wire = [0, 3, 1, 2, 3, 0, 0, 0, 1, 9];
        let mut frames = Frames::default();
        let mut seen: Vec<Vec<u8>> = Vec::new();
        for byte in wire {
            frames.extend(&[byte]);
            while let Some(message) = frames.next(100).unwrap() {
                seen.push(message.to_vec());
            }
        }
        assert_eq!(seen, [vec![1, 2, 3], vec![], vec![9]]);
        frames.extend(&[0, 101]);
        assert_eq!(frames.next(100), Err(()));
    }

    /// A socket that takes so many bytes and is full then.
    struct Taking {
        room: usize,
        taken: Vec<u8>,
    }

    impl Write for Taking {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room);
            self.room -= count;
            self.taken.extend_from_slice(&bytes[..count]);
            if count == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(count) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_client_that_is_always_behind_has_no_more_kept_than_twice_what_waits() {
        let mut unsent = Unsent::default();
        let mut stream = Taking { room: 0, taken: Vec::new() };
        let mut wire = Vec::new();
        unsent.push(&[0; 500]);
        wire.extend([&[1, 244][..], &[0; 500]].concat());
        for round in 1..=200 {
            unsent.push(&[round; 1000]);
            wire.extend([&[3, 232][..], &[round; 1000]].concat());
            stream.room = 1002;
            unsent.flush(&mut stream).unwrap();
            assert_eq!(unsent.len(), 502);
            assert!(unsent.bytes.len() <= 2 * 502, "{} bytes are kept", unsent.bytes.len());
        }
        stream.room = 502;
        unsent.flush(&mut stream).unwrap();
        assert!(unsent.is_empty() && stream.taken == wire);
    }
}
