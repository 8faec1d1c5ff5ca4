//! Sockets towards upstream: a fresh one for each try, so that its port is as random as the kernel makes it.
//!
//! Owns: one try's socket. Does not own: which try is next (`lookup`).

use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use mio::net::{TcpStream, UdpSocket};

use super::message::Transport;
use super::streams::{Frames, Unsent};

/// The longest datagram taken, in bytes: more than we offered (1232), since some servers do not keep to it.
const DATAGRAM_MAX: usize = 4096;
/// The longest message taken over TCP, in bytes. The largest honest answers have some thousands; a message of 64 KiB
/// can be made of pointers to pointers, so that reading its names would hold the loop up for tenths of a second.
const MESSAGE_MAX: usize = 16 << 10;

/// The socket of one try.
pub(super) enum Asking {
    Udp { socket: UdpSocket, upstream: SocketAddr },
    Tcp { stream: TcpStream, unsent: Unsent, frames: Frames },
}

impl Asking {
    /// Opens a socket that will send `message` to `upstream`, and registers it under `token`.
    pub(super) fn open(
        upstream: SocketAddr,
        transport: Transport,
        message: &[u8],
        registry: &mio::Registry,
        token: mio::Token,
    ) -> io::Result<Self> {
        match transport {
            Transport::Udp => {
                let any = match upstream {
                    SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                    SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
                };
                let mut socket = UdpSocket::bind(any)?;
                // Connected: the kernel drops what does not come from there, and says when nobody is there.
                socket.connect(upstream)?;
                registry.register(&mut socket, token, mio::Interest::READABLE)?;
                // The buffer of a fresh socket has room: whatever fails here fails for good.
                socket.send(message)?;
                Ok(Asking::Udp { socket, upstream })
            }
            Transport::Tcp => {
                let mut stream = TcpStream::connect(upstream)?;
                // One message, no reason to wait for another; where it cannot be set it costs 40 ms at most.
                let _ = stream.set_nodelay(true);
                registry.register(&mut stream, token, mio::Interest::READABLE | mio::Interest::WRITABLE)?;
                let mut unsent = Unsent::default();
                unsent.push(message);
                Ok(Asking::Tcp { stream, unsent, frames: Frames::default() })
            }
        }
    }

    /// The next message, if one is there.
    ///
    /// # Errors
    /// This socket is of no more use.
    pub(super) fn next(&mut self, buffer: &mut [u8]) -> io::Result<Option<Vec<u8>>> {
        match self {
            Asking::Udp { socket, upstream } => loop {
                let room = buffer.len().min(DATAGRAM_MAX);
                match socket.recv_from(&mut buffer[..room]) {
                    // Before `connect` anybody could have put something into the queue.
                    Ok((_, from)) if from != *upstream => {}
                    Ok((count, _)) => return Ok(Some(buffer[..count].to_vec())),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                    Err(error) => return Err(error),
                }
            },
            Asking::Tcp { stream, unsent, frames } => {
                if let Some(error) = stream.take_error()? {
                    return Err(error);
                }
                match unsent.flush(stream) {
                    Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(None),
                    other => other?,
                }
                loop {
                    match frames.next(MESSAGE_MAX) {
                        Ok(Some(message)) => return Ok(Some(message.to_vec())),
                        Ok(None) => {}
                        Err(()) => return Err(io::Error::new(ErrorKind::InvalidData, "the answer is too long")),
                    }
                    match stream.read(buffer) {
                        Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                        Ok(count) => frames.extend(&buffer[..count]),
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                            return Ok(None);
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }
}
