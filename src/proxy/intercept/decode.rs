//! `Content-Encoding` undone for judging: what rules see of a compressed body. Sans-I/O.
//!
//! Owns: gzip, deflate and br, two deep at most, with a cap on what comes out. Does not own: the bytes that go on, which
//! are the original ones. What two decoders could read two ways is refused: data behind the end of a stream, a stream
//! that ends early, checksums that do not fit.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::bufread::{DeflateDecoder, GzDecoder, ZlibDecoder};

/// Codings on top of each other that are undone. Nobody needs the second; more is an attack on the decoder.
const CODINGS_MAX: usize = 2;

/// How far a decoded body grows at once.
const CHUNK: usize = 16 * 1024;

/// Why a body cannot be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// A coding that is none of gzip, deflate, br and identity.
    Unknown,
    /// More codings than are undone.
    TooMany,
    /// The body is not what its coding says.
    Damaged(&'static str),
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DecodeError::Unknown => f.write_str("a content coding other than gzip, deflate, br and identity"),
            DecodeError::TooMany => write!(f, "more than {CODINGS_MAX} content codings"),
            DecodeError::Damaged(coding) => write!(f, "the body is no valid {coding}"),
        }
    }
}

impl std::error::Error for DecodeError {}

#[derive(Clone, Copy)]
enum Coding {
    Gzip,
    Deflate,
    Brotli,
}

/// The body that `bytes` are the `encoding` of (the value of `Content-Encoding`, RFC 9110 8.4; several fields joined
/// with commas). `None` when it, or what is between two codings, has more than `cap` bytes. No bytes are no body,
/// whatever their encoding.
///
/// # Errors
/// [`DecodeError`]: nothing may be judged by such a body.
pub fn decode(encoding: &str, bytes: &[u8], cap: usize) -> Result<Option<Vec<u8>>, DecodeError> {
    let codings = codings(encoding)?;
    if bytes.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let mut body: Option<Vec<u8>> = None;
    // The last one was put on last.
    for coding in codings.into_iter().rev().flatten() {
        let input = body.as_deref().unwrap_or(bytes);
        match undo(coding, input, cap)? {
            Some(decoded) => body = Some(decoded),
            None => return Ok(None),
        }
    }
    match body {
        Some(body) => Ok(Some(body)),
        None if bytes.len() > cap => Ok(None),
        None => Ok(Some(bytes.to_vec())),
    }
}

fn codings(encoding: &str) -> Result<[Option<Coding>; CODINGS_MAX], DecodeError> {
    let mut found = [None; CODINGS_MAX];
    let mut count = 0;
    for name in encoding.split(',').map(|name| name.trim_matches([' ', '\t'])) {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        let coding = if name.is_empty() || is("identity") {
            continue;
        } else if is("gzip") || is("x-gzip") {
            Coding::Gzip
        } else if is("deflate") {
            Coding::Deflate
        } else if is("br") {
            Coding::Brotli
        } else {
            return Err(DecodeError::Unknown);
        };
        *found.get_mut(count).ok_or(DecodeError::TooMany)? = Some(coding);
        count += 1;
    }
    Ok(found)
}

fn undo(coding: Coding, bytes: &[u8], cap: usize) -> Result<Option<Vec<u8>>, DecodeError> {
    match coding {
        Coding::Gzip => {
            let mut decoder = GzDecoder::new(bytes);
            read_all(&mut decoder, cap, |decoder| decoder.get_ref().is_empty()).ok_or(DecodeError::Damaged("gzip"))
        }
        // RFC 9110 means zlib by it; some senders leave zlib's two bytes and its checksum out.
        Coding::Deflate if has_zlib_header(bytes) => {
            let mut decoder = ZlibDecoder::new(bytes);
            read_all(&mut decoder, cap, |decoder| decoder.get_ref().is_empty()).ok_or(DecodeError::Damaged("deflate"))
        }
        Coding::Deflate => {
            let mut decoder = DeflateDecoder::new(bytes);
            read_all(&mut decoder, cap, |decoder| decoder.get_ref().is_empty()).ok_or(DecodeError::Damaged("deflate"))
        }
        // Hostile input in a large decoder: a panic in it must not end the proxy.
        Coding::Brotli => {
            catch_unwind(AssertUnwindSafe(|| brotli(bytes, cap))).unwrap_or(None).ok_or(DecodeError::Damaged("br"))
        }
    }
}

/// RFC 1950 2.2: the method is deflate, the check bits fit, no preset dictionary.
fn has_zlib_header(bytes: &[u8]) -> bool {
    match bytes {
        [method, flags, ..] => {
            method & 0x0f == 8
                && method >> 4 <= 7
                && flags & 0x20 == 0
                && (u16::from(*method) << 8 | u16::from(*flags)).is_multiple_of(31)
        }
        _ => false,
    }
}

/// What `decoder` gives: `Some(None)` over the cap, `None` when it fails or leaves input over.
fn read_all<R: Read>(decoder: &mut R, cap: usize, took_all: impl Fn(&R) -> bool) -> Option<Option<Vec<u8>>> {
    let mut body = Vec::new();
    // One more than may be there tells that there is more; a cap of everything needs none.
    let limit = (cap as u64).saturating_add(1);
    decoder.take(limit).read_to_end(&mut body).ok()?;
    if body.len() > cap {
        return Some(None);
    }
    took_all(decoder).then_some(Some(body))
}

/// As [`read_all`]. RFC 7932 without its later extension to windows of up to a gigabyte.
fn brotli(bytes: &[u8], cap: usize) -> Option<Option<Vec<u8>>> {
    let mut state =
        BrotliState::new_strict(StandardAlloc::default(), StandardAlloc::default(), StandardAlloc::default());
    let (mut left, mut offset, mut total) = (bytes.len(), 0, 0);
    let mut body = Vec::new();
    let mut written = 0;
    loop {
        body.resize(written + CHUNK, 0);
        let mut room = CHUNK;
        let result = BrotliDecompressStream(
            &mut left,
            &mut offset,
            bytes,
            &mut room,
            &mut written,
            &mut body,
            &mut total,
            &mut state,
        );
        if written > cap {
            return Some(None);
        }
        match result {
            BrotliResult::NeedsMoreOutput => {}
            BrotliResult::ResultSuccess if left == 0 => {
                body.truncate(written);
                return Some(Some(body));
            }
            BrotliResult::ResultSuccess | BrotliResult::NeedsMoreInput | BrotliResult::ResultFailure => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use proptest::prelude::*;

    use super::*;

    const CAP: usize = 64 * 1024;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn raw(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Brotli without compression (RFC 7932 9.2): uncompressed metablocks of at most 65536 bytes, and the last, empty.
    fn stored_brotli(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        // Window of 16 bits: one bit, 0. It stands before the first metablock's header, which is then shifted by it.
        let mut first = true;
        for chunk in bytes.chunks(65536) {
            let header = ((chunk.len() as u32 - 1) << 3) | 1 << 19;
            let (header, bits) = if first { (header << 1, 21) } else { (header, 20) };
            first = false;
            out.extend_from_slice(&header.to_le_bytes()[..usize::div_ceil(bits, 8)]);
            out.extend_from_slice(chunk);
        }
        // ISLAST, ISLASTEMPTY; before any metablock the window's bit comes first.
        out.push(if first { 0b110 } else { 0b11 });
        out
    }

    /// 200,000 times `a`, as the reference encoder writes it.
    const BROTLI_BOMB: [u8; 14] = [0x5b, 0x3f, 0x0d, 0x83, 0x5f, 0x22, 0x2c, 0x1e, 0x0b, 0x04, 0xf2, 0x09, 0x06, 0x00];

    fn decoded(encoding: &str, bytes: &[u8]) -> Vec<u8> {
        decode(encoding, bytes, CAP).unwrap().unwrap()
    }

    #[test]
    fn every_coding_gives_the_body_back() {
        let body = br#"{"model":"m","secret":"s"}"#;
        assert_eq!(decoded("", body), body);
        assert_eq!(decoded("identity", body), body);
        assert_eq!(decoded("GZIP", &gzip(body)), body);
        assert_eq!(decoded("x-gzip", &gzip(body)), body);
        assert_eq!(decoded("deflate", &zlib(body)), body);
        assert_eq!(decoded("deflate", &raw(body)), body);
        assert_eq!(decoded("br", &stored_brotli(body)), body);
        assert_eq!(decoded(" gzip ,\tidentity, br", &stored_brotli(&gzip(body))), body);
        assert_eq!(decoded("br", &stored_brotli(b"")), b"");
    }

    #[test]
    fn no_bytes_are_no_body() {
        for encoding in ["", "gzip", "deflate", "br"] {
            assert_eq!(decode(encoding, b"", 0), Ok(Some(Vec::new())));
        }
    }

    #[test]
    fn unknown_and_too_many_codings_are_refused() {
        for encoding in ["zstd", "compress", "gzip2", "gzip;q=1", "gzip br", "\u{fb}gzip"] {
            assert_eq!(decode(encoding, b"x", CAP), Err(DecodeError::Unknown), "{encoding}");
        }
        assert_eq!(decode("gzip, gzip, gzip", b"x", CAP), Err(DecodeError::TooMany));
        // An empty body does not make a coding known.
        assert_eq!(decode("zstd", b"", CAP), Err(DecodeError::Unknown));
    }

    #[test]
    fn a_bomb_stops_at_the_cap() {
        let zeros = vec![0; 50 * 1024 * 1024];
        let bomb = gzip(&zeros);
        assert!(bomb.len() < 60_000);
        for (encoding, bytes) in [("gzip", &bomb), ("gzip, gzip", &gzip(&bomb)), ("deflate", &zlib(&zeros))] {
            assert_eq!(decode(encoding, bytes, CAP), Ok(None), "{encoding}");
        }
        assert_eq!(decode("br", &BROTLI_BOMB, CAP), Ok(None));
        assert_eq!(decode("br", &BROTLI_BOMB, 200_000), Ok(Some(vec![b'a'; 200_000])));
        // The cap itself still fits, for each coding and for none.
        let full = vec![7; CAP];
        for (encoding, bytes) in
            [("", full.clone()), ("gzip", gzip(&full)), ("deflate", raw(&full)), ("br", stored_brotli(&full))]
        {
            assert_eq!(decode(encoding, &bytes, CAP), Ok(Some(full.clone())), "{encoding}");
            assert_eq!(decode(encoding, &bytes, CAP - 1), Ok(None), "{encoding}");
        }
    }

    #[test]
    fn what_two_decoders_could_read_two_ways_is_refused() {
        let body = b"body";
        let damaged = |encoding, bytes: &[u8]| matches!(decode(encoding, bytes, CAP), Err(DecodeError::Damaged(_)));
        for (encoding, bytes) in
            [("gzip", gzip(body)), ("deflate", zlib(body)), ("deflate", raw(body)), ("br", stored_brotli(body))]
        {
            let mut longer = bytes.clone();
            longer.extend_from_slice(b"more");
            assert!(damaged(encoding, &longer), "{encoding} with data behind it");
            for end in 1..bytes.len() {
                assert!(damaged(encoding, &bytes[..end]), "{encoding} cut at {end}");
            }
        }
        // A second gzip member: some read it, some do not.
        assert!(damaged("gzip", &[gzip(b"allowed"), gzip(b"hidden")].concat()));
        let mut checksum = gzip(body);
        let at = checksum.len() - 8;
        checksum[at] ^= 1;
        assert!(damaged("gzip", &checksum));
    }

    #[test]
    fn a_brotli_window_of_a_gigabyte_is_refused() {
        // `hello`, as the reference encoder writes it with BROTLI_PARAM_LARGE_WINDOW.
        let large = [0x11, 0x1e, 0x08, 0x00, 0x02, 0x68, 0x65, 0x6c, 0x6c, 0x6f, 0x03];
        assert_eq!(decode("br", &large, CAP), Err(DecodeError::Damaged("br")));
    }

    proptest! {
        #[test]
        fn anything_is_decoded_within_the_cap_or_refused(
            encoding in "(gzip|deflate|br|identity|x)(, ?(gzip|deflate|br))?",
            bytes in prop::collection::vec(any::<u8>(), 0..512),
            cap in 0usize..4096,
        ) {
            if let Ok(Some(body)) = decode(&encoding, &bytes, cap) {
                prop_assert!(body.len() <= cap);
            }
        }

        #[test]
        fn a_valid_stream_with_a_byte_changed_does_not_get_past_the_cap(
            body in prop::collection::vec(0u8..4, 1..2048),
            at in any::<prop::sample::Index>(),
            to in any::<u8>(),
        ) {
            for (encoding, bytes) in [
                ("gzip", gzip(&body)),
                ("deflate", zlib(&body)),
                ("deflate", raw(&body)),
                ("br", stored_brotli(&body)),
            ] {
                prop_assert_eq!(decode(encoding, &bytes, CAP), Ok(Some(body.clone())));
                let mut changed = bytes.clone();
                changed[at.index(bytes.len())] = to;
                if let Ok(Some(found)) = decode(encoding, &changed, CAP) {
                    prop_assert!(found.len() <= CAP);
                }
            }
        }
    }
}
