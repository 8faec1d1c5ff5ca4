//! The chunked coding, read strictly and written plainly. RFC 9112 7.1.

use std::io::Write;

use super::scan::section_end;
use super::{Found, Progress, Refusal};

/// Bytes of chunk extensions in one body. Nobody uses them; they are dropped, and more is an attack on the counter.
pub const CHUNK_EXTENSIONS_MAX: usize = 4096;

/// Bytes of the trailer section.
pub const TRAILERS_MAX: usize = 4096;

/// Hex digits of a chunk size: 2^60 bytes are enough for everybody and fit in a u64.
const SIZE_DIGITS_MAX: u8 = 15;

/// Fields that govern framing, routing, authentication or payload processing and so never come late. RFC 9110 6.5.1.
const FORBIDDEN_TRAILERS: [&str; 22] = [
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "max-forwards",
    "range",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "www-authenticate",
    "forwarded",
    "http2-settings",
];

/// Why a chunked body is not read further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkError {
    /// No hex digit, or another byte than `;` or CR after them.
    Size,
    /// More digits than any real chunk has.
    SizeTooLarge,
    /// A control character or a bare LF in an extension.
    Extension,
    /// Over [`CHUNK_EXTENSIONS_MAX`].
    ExtensionsTooLarge,
    /// A CRLF was due.
    LineEnd,
    /// The trailer section is malformed.
    Trailers(Refusal),
    /// Over [`TRAILERS_MAX`].
    TrailersTooLarge,
}

impl std::fmt::Display for ChunkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ChunkError::Size => f.write_str("a chunk size that is no hex number"),
            ChunkError::SizeTooLarge => f.write_str("a chunk size with too many digits"),
            ChunkError::Extension => f.write_str("a malformed chunk extension"),
            ChunkError::ExtensionsTooLarge => f.write_str("too many bytes of chunk extensions"),
            ChunkError::LineEnd => f.write_str("a chunk that does not end in CRLF"),
            ChunkError::Trailers(_) => f.write_str("a malformed trailer section"),
            ChunkError::TrailersTooLarge => f.write_str("the trailer section is larger than accepted"),
        }
    }
}

impl std::error::Error for ChunkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ChunkError::Trailers(refusal) => Some(refusal),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    Size { digits: u8, size: u64 },
    Extension { size: u64 },
    SizeLf { size: u64 },
    Data { missing: u64 },
    DataCr,
    DataLf,
    Trailers,
    Done,
    Failed(ChunkError),
}

/// Reads a chunked body as it comes, a byte at a time if need be. Once it has failed it stays failed.
#[derive(Debug)]
pub struct ChunkDecoder {
    state: State,
    extensions: usize,
    trailers: Vec<u8>,
}

impl Default for ChunkDecoder {
    fn default() -> Self {
        ChunkDecoder { state: State::Size { digits: 0, size: 0 }, extensions: 0, trailers: Vec::new() }
    }
}

impl ChunkDecoder {
    /// See [`super::BodyReader::read`].
    ///
    /// # Errors
    /// [`ChunkError`], for good.
    pub fn read(&mut self, input: &[u8]) -> Result<Progress, ChunkError> {
        let mut at = 0;
        loop {
            match self.state {
                State::Done => return Ok(Progress { consumed: at, found: Found::End }),
                State::Failed(error) => return Err(error),
                State::Data { missing } if at < input.len() => {
                    let take = usize::try_from(missing).unwrap_or(usize::MAX).min(input.len() - at);
                    let missing = missing - take as u64;
                    self.state = if missing == 0 { State::DataCr } else { State::Data { missing } };
                    return Ok(Progress { consumed: at + take, found: Found::Data(at..at + take) });
                }
                State::Trailers if at < input.len() => at += self.read_trailers(&input[at..])?,
                _ => {
                    let Some(byte) = input.get(at) else {
                        return Ok(Progress { consumed: at, found: Found::Nothing });
                    };
                    self.state = self.after(*byte)?;
                    at += 1;
                }
            }
        }
    }

    /// The trailer section, lines with their CRLF and without the empty one. Complete after the end was reported.
    #[must_use]
    pub fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    fn fail<T>(&mut self, error: ChunkError) -> Result<T, ChunkError> {
        self.state = State::Failed(error);
        Err(error)
    }

    fn after(&mut self, byte: u8) -> Result<State, ChunkError> {
        match (self.state, byte) {
            (State::Size { digits, size }, _) if byte.is_ascii_hexdigit() => {
                if digits == SIZE_DIGITS_MAX {
                    return self.fail(ChunkError::SizeTooLarge);
                }
                // 15 digits of 4 bits: never more than 60 bits.
                let digit = (byte as char).to_digit(16).map_or(0, u64::from);
                Ok(State::Size { digits: digits + 1, size: size << 4 | digit })
            }
            (State::Size { digits: 1.., size }, b'\r') => Ok(State::SizeLf { size }),
            (State::Size { digits: 1.., size }, b';') => Ok(State::Extension { size }),
            (State::Size { .. }, _) => self.fail(ChunkError::Size),
            (State::Extension { size }, b'\r') => Ok(State::SizeLf { size }),
            (State::Extension { .. }, 0..=8 | 10..=0x1f | 0x7f) => self.fail(ChunkError::Extension),
            (State::Extension { size }, _) => {
                self.extensions += 1;
                if self.extensions > CHUNK_EXTENSIONS_MAX {
                    return self.fail(ChunkError::ExtensionsTooLarge);
                }
                Ok(State::Extension { size })
            }
            (State::SizeLf { size: 0 }, b'\n') => Ok(State::Trailers),
            (State::SizeLf { size }, b'\n') => Ok(State::Data { missing: size }),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size { digits: 0, size: 0 }),
            _ => self.fail(ChunkError::LineEnd),
        }
    }

    /// Takes trailer bytes up to the end of a line, so that nothing of the next message is taken.
    fn read_trailers(&mut self, input: &[u8]) -> Result<usize, ChunkError> {
        let take = input.iter().position(|byte| *byte == b'\n').map_or(input.len(), |lf| lf + 1);
        if self.trailers.len() + take > TRAILERS_MAX {
            return self.fail(ChunkError::TrailersTooLarge);
        }
        self.trailers.extend_from_slice(&input[..take]);
        match section_end(&self.trailers, false) {
            Err(refusal) => self.fail(ChunkError::Trailers(refusal)),
            Ok(None) => Ok(take),
            Ok(Some(end)) => {
                self.trailers.truncate(end - 2);
                if has_forbidden(&self.trailers) {
                    return self.fail(ChunkError::Trailers(Refusal::ForbiddenTrailer));
                }
                self.state = State::Done;
                Ok(take)
            }
        }
    }
}

fn has_forbidden(trailers: &[u8]) -> bool {
    let names = trailers.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b':').next());
    names.into_iter().any(|name| {
        let name = name.to_ascii_lowercase();
        name.starts_with(b"proxy-") || FORBIDDEN_TRAILERS.iter().any(|forbidden| forbidden.as_bytes() == name)
    })
}

/// Appends `data` as one chunk; nothing for no data, since an empty chunk would end the body.
pub fn write_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    // Writing into a Vec never fails.
    let _ = write!(out, "{:x}\r\n", data.len());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Appends the last chunk and `trailers` (lines with their CRLF, as [`ChunkDecoder::trailers`] gives them).
pub fn write_last_chunk(out: &mut Vec<u8>, trailers: &[u8]) {
    out.extend_from_slice(b"0\r\n");
    out.extend_from_slice(trailers);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Body, trailers and what is left, fed in pieces of `step` bytes.
    fn decode(input: &[u8], step: usize) -> Result<(Vec<u8>, Vec<u8>, usize), ChunkError> {
        let mut decoder = ChunkDecoder::default();
        let (mut body, mut done) = (Vec::new(), 0);
        let mut visible = 0;
        loop {
            let piece = &input[done..visible];
            let progress = decoder.read(piece)?;
            if let Found::Data(place) = &progress.found {
                body.extend_from_slice(&piece[place.clone()]);
            }
            done += progress.consumed;
            match progress.found {
                Found::End => return Ok((body, decoder.trailers().to_vec(), input.len() - done)),
                Found::Nothing if visible == input.len() => panic!("incomplete: {input:?}"),
                Found::Nothing => visible = (visible + step).min(input.len()),
                Found::Data(_) => {}
            }
        }
    }

    #[test]
    fn chunks_are_joined_however_they_arrive() {
        let wire = b"4\r\nWiki\r\n6;a=b\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\nX-Sum: 1\r\n\r\nGET /";
        for step in 1..wire.len() {
            let (body, trailers, left) = decode(wire, step).unwrap();
            assert_eq!(body, b"Wikipedia in \r\n\r\nchunks.", "{step}");
            assert_eq!(trailers, b"X-Sum: 1\r\n");
            assert_eq!(left, 5);
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        let cases: &[(&[u8], ChunkError)] = &[
            (b"\r\n", ChunkError::Size),
            (b" 5\r\n", ChunkError::Size),
            (b"5 \r\n", ChunkError::Size),
            (b"+5\r\n", ChunkError::Size),
            (b"0x5\r\n", ChunkError::Size),
            (b"-1\r\n", ChunkError::Size),
            (b"5\n", ChunkError::Size),
            (b"ffffffffffffffff\r\n", ChunkError::SizeTooLarge),
            (b"0000000000000000\r\n", ChunkError::SizeTooLarge),
            (b"5;a\nb\r\n", ChunkError::Extension),
            (b"5;a\0\r\n", ChunkError::Extension),
            (b"5\rx", ChunkError::LineEnd),
            (b"2\r\nabc\r\n", ChunkError::LineEnd),
            (b"2\r\nab\n", ChunkError::LineEnd),
            (b"0\r\nContent-Length: 5\r\n\r\n", ChunkError::Trailers(Refusal::ForbiddenTrailer)),
            (b"0\r\nProxy-X: 5\r\n\r\n", ChunkError::Trailers(Refusal::ForbiddenTrailer)),
            (b"0\r\nGET / HTTP/1.1\r\n\r\n", ChunkError::Trailers(Refusal::FieldName)),
            (b"0\r\n\n", ChunkError::Trailers(Refusal::BareLf)),
        ];
        for (wire, expected) in cases {
            for step in [1, wire.len()] {
                assert_eq!(decode(wire, step).unwrap_err(), *expected, "{:?}", String::from_utf8_lossy(wire));
            }
        }
    }

    #[test]
    fn extensions_and_trailers_are_capped() {
        let mut wire = b"5;".to_vec();
        wire.extend(std::iter::repeat_n(b'x', CHUNK_EXTENSIONS_MAX + 1));
        assert_eq!(decode(&wire, 100).unwrap_err(), ChunkError::ExtensionsTooLarge);
        let mut wire = b"0\r\n".to_vec();
        wire.extend(b"A: b\r\n".repeat(TRAILERS_MAX / 6 + 1));
        assert_eq!(decode(&wire, 100).unwrap_err(), ChunkError::TrailersTooLarge);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut wire = Vec::new();
        write_chunk(&mut wire, b"");
        write_chunk(&mut wire, &[7; 300]);
        write_last_chunk(&mut wire, b"A: b\r\n");
        assert_eq!(decode(&wire, 7).unwrap(), (vec![7; 300], b"A: b\r\n".to_vec(), 0));
    }
}
