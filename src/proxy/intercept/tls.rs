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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sides() -> (TlsSide, TlsSide, rcgen::CertifiedKey<rcgen::KeyPair>) {
        let own = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder().with_no_client_auth();
        let server = server.with_single_cert(vec![own.cert.der().clone()], key).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(own.cert.der().clone()).unwrap();
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from("a.example").unwrap();
        (TlsSide::server(server.into()).unwrap(), TlsSide::client(client.into(), name).unwrap(), own)
    }

    fn records(side: &mut TlsSide) -> Vec<u8> {
        let mut out = Vec::new();
        while side.wants_write() {
            side.send(&mut out).unwrap();
        }
        out
    }

    /// Both sides after a handshake.
    fn connected() -> (TlsSide, TlsSide) {
        let (mut server, mut client, _) = sides();
        for _ in 0..4 {
            server.feed(&records(&mut client)).unwrap();
            client.feed(&records(&mut server)).unwrap();
        }
        assert!(!server.is_handshaking() && !client.is_handshaking());
        (server, client)
    }

    #[test]
    fn what_there_is_no_room_for_waits() {
        let (mut server, mut client) = connected();
        let data: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let mut wire = Vec::new();
        let mut sent = 0;
        while sent < data.len() {
            let taken = client.write(&data[sent..]).unwrap();
            assert!(taken > 0 && taken <= AHEAD_MAX);
            sent += taken;
            wire.extend(records(&mut client));
        }
        client.close();
        wire.extend(records(&mut client));
        server.feed(&wire).unwrap();
        assert!(server.has_waiting());
        let (mut seen, mut out) = (Vec::new(), [0; 1000]);
        loop {
            match server.read(&mut out).unwrap() {
                Plain::Bytes(bytes) => seen.extend_from_slice(&out[..bytes]),
                Plain::Nothing => server.retry().unwrap(),
                Plain::Ended => break,
            }
        }
        assert_eq!(seen, data);
    }

    #[test]
    fn records_without_data_do_not_go_on_for_ever() {
        let (mut server, mut client, _) = sides();
        server.feed(&records(&mut client)).unwrap();
        client.feed(&records(&mut server)).unwrap();
        // Change-cipher-spec records are counted by rustls; a hello in tiny pieces is by us.
        let mut fed = 0;
        let piece = [22, 3, 3, 0, 1, 1];
        while fed < 4 * BARREN_MAX && client.feed(&piece).is_ok() {
            fed += piece.len();
        }
        assert!(fed <= BARREN_MAX);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever a peer sends, in whatever pieces: an answer or an error, and nothing is held without end.
        #[test]
        fn any_bytes_are_an_error_or_nothing(
            bytes in prop::collection::vec(any::<u8>(), 0..3000),
            kind in prop::sample::select(vec![20u8, 21, 22, 23, 24, 128]),
            framed in any::<bool>(),
            after in any::<bool>(),
            size in 1..400usize,
        ) {
            let (mut server, mut client) = if after { connected() } else { let (s, c, _) = sides(); (s, c) };
            let mut wire = bytes.clone();
            if framed {
                wire = bytes.chunks(300).flat_map(|part| {
                    [&[kind, 3, 3], &(part.len() as u16).to_be_bytes()[..], part].concat()
                }).collect();
            }
            for side in [&mut server, &mut client] {
                let mut out = [0; 64];
                for piece in wire.chunks(size) {
                    if side.feed(piece).is_err() {
                        break;
                    }
                    prop_assert!(!matches!(side.read(&mut out), Ok(Plain::Bytes(_))), "noise is no data");
                    if side.has_waiting() && side.retry().is_err() {
                        break;
                    }
                }
            }
        }
    }
}
