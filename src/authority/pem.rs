//! PEM (RFC 7468): blocks found in a text, and base64 decoded into memory of the caller's choice.
//!
//! The certificate and the roots are read by a library; this is for the key, of which no copy may stay behind.

/// One block of a PEM text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Block<'a> {
    /// What stands behind `BEGIN`.
    pub(super) label: &'a [u8],
    /// What stands between the two lines: base64, and headers where there are any.
    pub(super) body: &'a [u8],
}

/// The blocks of a text, in order, up to the first that does not end.
pub(super) fn blocks(text: &[u8]) -> impl Iterator<Item = Block<'_>> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    const DASHES: &[u8] = b"-----";
    const END: &[u8] = b"-----END ";
    let mut rest = text;
    std::iter::from_fn(move || {
        let begin = find(rest, BEGIN)? + BEGIN.len();
        let label_end = begin + find(&rest[begin..], DASHES)?;
        let label = &rest[begin..label_end];
        let body_begin = label_end + DASHES.len();
        let body_end = body_begin + find(&rest[body_begin..], END)?;
        let body = &rest[body_begin..body_end];
        rest = &rest[body_end + END.len()..];
        if !rest.starts_with(label) {
            return None;
        }
        Some(Block { label, body })
    })
}

/// Decodes base64 with line breaks into `out`; how many bytes, or `None` when it is none. `out` must hold three bytes
/// for every four of `text`.
pub(super) fn decode_base64(text: &[u8], out: &mut [u8]) -> Option<usize> {
    let (mut written, mut bits, mut held, mut padding) = (0, 0u32, 0u32, 0);
    for byte in text.iter().filter(|byte| !byte.is_ascii_whitespace()) {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                padding += 1;
                continue;
            }
            _ => return None,
        };
        if padding > 0 {
            return None;
        }
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            // The eight bits above those still held.
            *out.get_mut(written)? = (bits >> held & 0xff) as u8;
            written += 1;
        }
    }
    let whole = matches!((held, padding), (0, 0) | (2, 1) | (4, 2));
    (whole && bits & ((1 << held) - 1) == 0).then_some(written)
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &str) -> Option<Vec<u8>> {
        let mut out = vec![0; text.len()];
        decode_base64(text.as_bytes(), &mut out).map(|len| out[..len].to_vec())
    }

    #[test]
    fn the_vectors_of_rfc_4648() {
        let vectors = [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
            ("Zm9v\nYmFy\r\n", "foobar"),
        ];
        for (text, bytes) in vectors {
            assert_eq!(decoded(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(decoded("/+8="), Some(vec![0xff, 0xef]));
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for text in ["Z", "Zg", "Zg=", "Zg===", "Zh==", "Zm9v!", "Zg==Zg==", "Zm\u{e9}v"] {
            assert_eq!(decoded(text), None, "{text}");
        }
        assert_eq!(decode_base64(b"Zm9v", &mut [0; 2]), None, "no room");
    }

    #[test]
    fn blocks_are_found_behind_other_text() {
        let text = b"note\n-----BEGIN A B-----\nQQ==\n-----END A B-----\n-----BEGIN C-----\nQg==\n-----END C-----\n";
        let found: Vec<_> = blocks(text).map(|block| (block.label, block.body)).collect();
        assert_eq!(found, [(&b"A B"[..], &b"\nQQ==\n"[..]), (b"C", b"\nQg==\n")]);
        assert_eq!(blocks(b"-----BEGIN A-----\nQQ==\n-----END B-----\n").count(), 0);
        assert_eq!(blocks(b"-----BEGIN A-----\nQQ==\n").count(), 0);
        assert_eq!(blocks(b"-----BEGIN ").count(), 0);
    }
}
