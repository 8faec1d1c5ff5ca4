//! TLS ClientHello: server name, protocols, versions, encrypted hello. Sans-I/O. RFC 8446 4.1.2, 5.1; RFC 6066 3;
//! RFC 7301 3.1; RFC 9849.
//!
//! The hello is read as a server would: reassembled from records, of whatever size they are cut. What is malformed
//! or said twice is refused, since a server might read it otherwise.

use crate::names::Host;

/// Bytes of a ClientHello. Post-quantum key shares make 1.8 KiB common; nobody needs more than this.
pub const CLIENT_HELLO_MAX: usize = 64 * 1024;

/// Bytes on the wire that a hello may be spread over: record headers added to [`CLIENT_HELLO_MAX`], though not for
/// records of a few bytes each.
pub const HELLO_WIRE_MAX: usize = 80 * 1024;

/// Records of a hello. It is looked at anew with every read, record by record. Clients send one or a few; the smallest
/// records that can be agreed on (512 bytes, RFC 6066 4) still carry 32 KiB in so many.
const HELLO_RECORDS_MAX: usize = 64;

/// Bytes of one plaintext record. RFC 8446 5.1.
const RECORD_MAX: usize = 16 * 1024;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const EXTENSION_SUPPORTED_VERSIONS: u16 = 43;

/// What a ClientHello says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The server name, in normal form.
    pub sni: Option<Host>,
    /// The highest version offered: `1.3`, `1.2`, `1.1`, `1.0`; `None` for one we do not know.
    pub version: Option<&'static str>,
    /// The protocols offered, bytes that are not UTF-8 replaced.
    pub alpn: Vec<Box<str>>,
    /// Whether an encrypted hello is inside (or a greased one: they look alike).
    pub ech: bool,
}

/// What a buffer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloRead {
    /// The beginning of a hello.
    Incomplete,
    /// A hello.
    Hello(ClientHello),
    /// The first byte is no TLS handshake record's.
    NotTls,
    /// No hello, whatever follows.
    Refused(HelloError),
}

/// Why a hello is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// A record that is no handshake record, is empty, or is longer than records are.
    Record,
    /// Another handshake message than a ClientHello, or one behind it in its record.
    Message,
    /// Over the caps.
    TooLarge,
    /// A length that does not fit.
    Malformed,
    /// An extension that is there twice.
    Duplicate,
    /// A server name without normal form, or not exactly one.
    ServerName,
}

impl HelloError {
    /// A short code for events.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            HelloError::ServerName => "bad_sni",
            HelloError::TooLarge => "hello_too_large",
            HelloError::Record | HelloError::Message | HelloError::Malformed | HelloError::Duplicate => "bad_hello",
        }
    }
}

/// Reads the ClientHello at the beginning of `wire`.
#[must_use]
pub fn read_client_hello(wire: &[u8]) -> HelloRead {
    match wire.first() {
        None => HelloRead::Incomplete,
        Some(&HANDSHAKE) => match assemble(wire) {
            Ok(None) if wire.len() >= HELLO_WIRE_MAX => HelloRead::Refused(HelloError::TooLarge),
            Ok(None) => HelloRead::Incomplete,
            Ok(Some(message)) => match parse(&message) {
                Ok(hello) => HelloRead::Hello(hello),
                Err(error) => HelloRead::Refused(error),
            },
            Err(error) => HelloRead::Refused(error),
        },
        Some(_) => HelloRead::NotTls,
    }
}

/// The body of the ClientHello, once all its records are there. Until then nothing is copied but its first bytes: it may
/// come a byte at a time.
fn assemble(wire: &[u8]) -> Result<Option<Vec<u8>>, HelloError> {
    let mut pieces: Vec<&[u8]> = Vec::new();
    let mut start: Vec<u8> = Vec::with_capacity(4);
    let mut message_length = 0;
    let mut rest = wire;
    loop {
        if pieces.len() == HELLO_RECORDS_MAX {
            return Err(HelloError::TooLarge);
        }
        if rest.first().is_some_and(|kind| *kind != HANDSHAKE) || rest.get(1).is_some_and(|major| *major != 3) {
            return Err(HelloError::Record);
        }
        let Some(header) = rest.get(..5) else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > RECORD_MAX {
            return Err(HelloError::Record);
        }
        let end = 5 + length;
        let piece = &rest[5..end.min(rest.len())];
        pieces.push(piece);
        start.extend(piece.iter().take(4 - start.len()));
        message_length += piece.len();
        if start.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(HelloError::Message);
        }
        if let Some([_, high, middle, low]) = start.first_chunk() {
            let needed = 4 + u32::from_be_bytes([0, *high, *middle, *low]) as usize;
            if needed > CLIENT_HELLO_MAX {
                return Err(HelloError::TooLarge);
            }
            if message_length > needed {
                return Err(HelloError::Message);
            }
            if message_length == needed && rest.len() >= end {
                let mut message = pieces.concat();
                message.drain(..4);
                return Ok(Some(message));
            }
        }
        if rest.len() < end {
            return Ok(None);
        }
        rest = &rest[end..];
    }
}

/// Reads length-prefixed vectors. RFC 8446 3.4.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, HelloError> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, HelloError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    fn end(&self) -> Result<(), HelloError> {
        if self.0.is_empty() { Ok(()) } else { Err(HelloError::Malformed) }
    }
}

fn parse(message: &[u8]) -> Result<ClientHello, HelloError> {
    let mut reader = Reader(message);
    let legacy_version = reader.u16()?;
    reader.take(32)?;
    if reader.vector8()?.len() > 32 {
        return Err(HelloError::Malformed);
    }
    let suites = reader.vector16()?;
    if suites.is_empty() || suites.len() % 2 != 0 || reader.vector8()?.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut hello = ClientHello { sni: None, version: version_name(legacy_version), alpn: Vec::new(), ech: false };
    if reader.0.is_empty() {
        return Ok(hello);
    }
    let mut extensions = Reader(reader.vector16()?);
    reader.end()?;
    let mut seen = Vec::new();
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let body = extensions.vector16()?;
        seen.push(kind);
        match kind {
            EXTENSION_SERVER_NAME => hello.sni = Some(server_name(body)?),
            EXTENSION_ALPN => hello.alpn = protocols(body)?,
            EXTENSION_SUPPORTED_VERSIONS => hello.version = highest_version(body)?,
            // 0xfe0d is the final code point; the others are those of its drafts and of ESNI.
            0xfe08..=0xfe0d | 0xffce => hello.ech = true,
            _ => {}
        }
    }
    seen.sort_unstable();
    if seen.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(HelloError::Duplicate);
    }
    Ok(hello)
}

/// Exactly one name of type `host_name`. RFC 6066 3.
fn server_name(body: &[u8]) -> Result<Host, HelloError> {
    let mut outer = Reader(body);
    let mut list = Reader(outer.vector16()?);
    outer.end()?;
    let kind = list.u8()?;
    let name = list.vector16()?;
    if kind != 0 || !list.0.is_empty() || name.starts_with(b"[") {
        return Err(HelloError::ServerName);
    }
    let name = std::str::from_utf8(name).map_err(|_| HelloError::ServerName)?;
    Host::parse(name).map_err(|_| HelloError::ServerName)
}

fn protocols(body: &[u8]) -> Result<Vec<Box<str>>, HelloError> {
    let mut outer = Reader(body);
    let mut list = Reader(outer.vector16()?);
    outer.end()?;
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let protocol = list.vector8()?;
        if protocol.is_empty() {
            return Err(HelloError::Malformed);
        }
        protocols.push(String::from_utf8_lossy(protocol).into());
    }
    Ok(protocols)
}

fn highest_version(body: &[u8]) -> Result<Option<&'static str>, HelloError> {
    let mut outer = Reader(body);
    let list = outer.vector8()?;
    outer.end()?;
    if list.is_empty() || list.len() % 2 != 0 {
        return Err(HelloError::Malformed);
    }
    let versions = list.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    // Greased values (RFC 8701) are none that we know.
    Ok(versions.filter(|version| version_name(*version).is_some()).max().and_then(version_name))
}

fn version_name(version: u16) -> Option<&'static str> {
    match version {
        0x0304 => Some("1.3"),
        0x0303 => Some("1.2"),
        0x0302 => Some("1.1"),
        0x0301 => Some("1.0"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector16(body: &[u8]) -> Vec<u8> {
        [&(body.len() as u16).to_be_bytes(), body].concat()
    }

    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [kind.to_be_bytes().to_vec(), vector16(body)].concat()
    }

    fn sni(name: &[u8]) -> Vec<u8> {
        extension(0, &vector16(&[&[0], &vector16(name)[..]].concat()))
    }

    fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0]);
        body.extend([0, 2, 0x13, 0x01]);
        body.extend([1, 0]);
        body.extend(vector16(&extensions.concat()));
        let length = (body.len() as u32).to_be_bytes();
        [&[1], &length[1..], &body[..]].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [&[22, 3, 1], &vector16(part)[..]].concat()).collect()
    }

    fn read(extensions: &[Vec<u8>]) -> HelloRead {
        read_client_hello(&records(&message(extensions), RECORD_MAX))
    }

    #[test]
    fn a_hello_is_read_in_whatever_pieces_it_comes() {
        let extensions = [
            extension(21, &vec![0; 3000]),
            sni(b"WWW.Example.com"),
            extension(16, &vector16(b"\x02h2\x08http/1.1")),
            extension(43, b"\x06\x7a\x7a\x03\x04\x03\x03"),
            extension(0xfe0d, &[0; 40]),
        ];
        let expected = ClientHello {
            sni: Some(Host::parse("www.example.com").unwrap()),
            version: Some("1.3"),
            alpn: vec!["h2".into(), "http/1.1".into()],
            ech: true,
        };
        for size in [60, 100, 3000, RECORD_MAX] {
            let wire = records(&message(&extensions), size);
            for end in (0..wire.len()).step_by(7) {
                assert_eq!(read_client_hello(&wire[..end]), HelloRead::Incomplete, "{size} {end}");
            }
            assert_eq!(read_client_hello(&wire), HelloRead::Hello(expected.clone()), "{size}");
            let with_early_data = [&wire[..], &[23, 3, 3, 0, 1, 0]].concat();
            assert_eq!(read_client_hello(&with_early_data), HelloRead::Hello(expected.clone()));
        }
    }

    #[test]
    fn a_hello_may_name_nobody() {
        let HelloRead::Hello(hello) = read(&[]) else { panic!() };
        assert_eq!((hello.sni, hello.version, hello.ech), (None, Some("1.2"), false));
    }

    #[test]
    fn odd_hellos_are_refused() {
        let refused = |extensions: &[Vec<u8>]| match read(extensions) {
            HelloRead::Refused(error) => Some(error),
            _ => None,
        };
        assert_eq!(refused(&[sni(b"a.example"), sni(b"b.example")]), Some(HelloError::Duplicate));
        for name in [&b"a..b"[..], b"", b"a\0.example", b"0x7f.1", b"\xff", b"[::1]", b"a b"] {
            assert_eq!(refused(&[sni(name)]), Some(HelloError::ServerName), "{name:?}");
        }
        let two_names = [&[0][..], &vector16(b"a.example"), &[0], &vector16(b"b.example")].concat();
        assert_eq!(refused(&[extension(0, &vector16(&two_names))]), Some(HelloError::ServerName));
        assert_eq!(refused(&[extension(16, &[0, 9, 1])]), Some(HelloError::Malformed));
        assert_eq!(refused(&[extension(43, &[3, 3, 4, 3])]), Some(HelloError::Malformed));
        assert_eq!(read_client_hello(b"\x16\x03\x01\x00\x00"), HelloRead::Refused(HelloError::Record));
        assert_eq!(read_client_hello(b"\x16\x03\x01\x00\x01\x02"), HelloRead::Refused(HelloError::Message));
        assert_eq!(read_client_hello(b"\x16\x02"), HelloRead::Refused(HelloError::Record));
        assert_eq!(read_client_hello(b"\x16\x03\x01\x00\x04\x01\x01\0\0"), HelloRead::Refused(HelloError::TooLarge));
        assert_eq!(read_client_hello(b"SSH-2.0-x\r\n"), HelloRead::NotTls);
        let mut truncated = message(&[sni(b"a.example")]);
        let length = truncated.len();
        truncated.truncate(length - 1);
        truncated[3] -= 1;
        assert_eq!(read_client_hello(&records(&truncated, 999)), HelloRead::Refused(HelloError::Malformed));
    }

    #[test]
    fn a_hello_in_tiny_records_is_given_up_early() {
        let message = message(&[extension(21, &[0; 3000])]);
        // Type and length in records of a byte each.
        let wire = records(&message, 1);
        assert_eq!(read_client_hello(&wire[..6 * HELLO_RECORDS_MAX - 1]), HelloRead::Incomplete);
        assert_eq!(read_client_hello(&wire[..6 * HELLO_RECORDS_MAX]), HelloRead::Refused(HelloError::TooLarge));
        let size = message.len().div_ceil(HELLO_RECORDS_MAX);
        assert!(matches!(read_client_hello(&records(&message, size)), HelloRead::Hello(_)));
    }

    #[test]
    fn tiny_records_do_not_go_on_for_ever() {
        let wire = [&[22, 3, 1, 0, 4, 1, 0, 0xff, 0xf0][..], &records(&vec![0; HELLO_WIRE_MAX / 6], 1)].concat();
        assert_eq!(read_client_hello(&wire), HelloRead::Refused(HelloError::TooLarge));
    }
}
