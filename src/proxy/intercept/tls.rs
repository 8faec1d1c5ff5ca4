//! TLS on one leg: rustls between the socket's bytes and what HTTP reads and writes.
//!
//! Owns: the buffers between the two and their bounds. Does not own: the socket, or why TLS is spoken at all. rustls
//! itself refuses renegotiation and counts key updates, warnings and change-cipher-spec records of a peer.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

/// Bytes of records without data that are read between two bytes of data: a handshake of the largest certificate
/// chain (64 KiB) fits, session tickets and key updates do, and an endless row of empty records does not.
const BARREN_MAX: usize = 128 * 1024;

/// Plaintext that is encrypted ahead of the socket: two records, so that the next one is ready when one is sent.
const AHEAD_MAX: usize = 32 * 1024;

/// TLS between a socket and a session.
pub(in crate::proxy) struct TlsSide {
    connection: Connection,
    /// Records that rustls had no room for, because what it decrypted before was not taken yet.
    waiting: Vec<u8>,
    /// Bytes of records since the last data.
    barren: usize,
}

/// What a look for decrypted data gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Plain {
    /// So many bytes.
    Bytes(usize),
    /// More records are needed first.
    Nothing,
    /// The peer has said that it sends no more.
    Ended,
}

impl TlsSide {
    /// The side of the server, towards a client.
    pub(in crate::proxy) fn server(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        ServerConnection::new(config).map(|connection| Self::new(connection.into()))
    }

    /// The side of the client, towards the server called `name`.
    pub(in crate::proxy) fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        ClientConnection::new(config, name).map(|connection| Self::new(connection.into()))
    }

    fn new(mut connection: Connection) -> Self {
        connection.set_buffer_limit(Some(AHEAD_MAX));
        TlsSide { connection, waiting: Vec::new(), barren: 0 }
    }

    /// Whether the handshake is still going on.
    pub(in crate::proxy) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether the version agreed on is TLS 1.3.
    pub(in crate::proxy) fn is_tls13(&self) -> bool {
        self.connection.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3)
    }

    /// Whether a TLS 1.3 server has sent a session ticket, which it does once it is content with the client.
    pub(in crate::proxy) fn has_ticket(&self) -> bool {
        matches!(&self.connection, Connection::Client(client) if client.tls13_tickets_received() > 0)
    }

    /// Takes bytes of the socket, when none wait. What there is no room for waits; see [`TlsSide::retry`].
    ///
    /// # Errors
    /// When the peer breaks TLS, or sends records without end and without data.
    pub(in crate::proxy) fn feed(&mut self, records: &[u8]) -> Result<(), rustls::Error> {
        let taken = self.push(records)?;
        self.waiting.extend_from_slice(&records[taken..]);
        Ok(())
    }

    /// Takes what waits, as far as there is room, once the data before it was taken.
    ///
    /// # Errors
    /// As [`TlsSide::feed`].
    pub(in crate::proxy) fn retry(&mut self) -> Result<(), rustls::Error> {
        let waiting = std::mem::take(&mut self.waiting);
        let taken = self.push(&waiting)?;
        if taken == 0 && !waiting.is_empty() {
            return Err(rustls::Error::General("records that there is no room for".into()));
        }
        if taken < waiting.len() {
            self.waiting = waiting[taken..].to_vec();
        }
        Ok(())
    }

    /// Whether records wait that were read already.
    pub(in crate::proxy) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn push(&mut self, records: &[u8]) -> Result<usize, rustls::Error> {
        let mut rest = records;
        while !rest.is_empty() {
            let before = rest.len();
            match self.connection.read_tls(&mut rest) {
                // Behind the end of the peer's data nothing counts.
                Ok(0) => return Ok(records.len()),
                Ok(_) => {}
                // No room: what is decrypted must be taken first.
                Err(_) => break,
            }
            let state = self.connection.process_new_packets()?;
            if state.plaintext_bytes_to_read() == 0 {
                self.barren += before - rest.len();
                if self.barren > BARREN_MAX {
                    return Err(rustls::Error::General("records without data and without end".into()));
                }
            }
        }
        Ok(records.len() - rest.len())
    }

    /// Copies decrypted data to `out`.
    pub(in crate::proxy) fn read(&mut self, out: &mut [u8]) -> io::Result<Plain> {
        match self.connection.reader().read(out) {
            Ok(0) if out.is_empty() => Ok(Plain::Nothing),
            Ok(0) => Ok(Plain::Ended),
            Ok(bytes) => {
                self.barren = 0;
                Ok(Plain::Bytes(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Plain::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Encrypts as much of `data` as there is room for; nothing while the handshake goes on.
    pub(in crate::proxy) fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.is_handshaking() { Ok(0) } else { self.connection.writer().write(data) }
    }

    /// Whether records wait for the socket.
    pub(in crate::proxy) fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Writes records to the socket.
    pub(in crate::proxy) fn send(&mut self, socket: &mut dyn Write) -> io::Result<usize> {
        self.connection.write_tls(socket)
    }

    /// Says that no more comes.
    pub(in crate::proxy) fn close(&mut self) {
        self.connection.send_close_notify();
    }
}

/// The rustls error inside an I/O error, if that is what it is.
pub(in crate::proxy) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}
