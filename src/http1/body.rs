//! Where a body ends. RFC 9112 6.

use std::ops::Range;

use super::{ChunkDecoder, ChunkError};

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// The chunked coding.
    Chunked,
    /// Until the connection closes (responses only).
    UntilClose,
}

/// What one look at the input gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// So many bytes of the input are done with, a span of data included.
    pub consumed: usize,
    /// What was in them.
    pub found: Found,
}

/// What the consumed bytes held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Framing only, or nothing: more input is needed.
    Nothing,
    /// Body bytes, at this place of the input.
    Data(Range<usize>),
    /// The end of the body.
    End,
}

/// Reads a body of any framing.
#[derive(Debug)]
pub enum BodyReader {
    /// So many bytes are missing.
    Length(u64),
    /// The chunked coding.
    Chunked(Box<ChunkDecoder>),
    /// Until the connection closes.
    UntilClose,
    /// The end was reported.
    Done,
}

impl BodyReader {
    /// A reader for a body framed so.
    #[must_use]
    pub fn new(framing: BodyFraming) -> Self {
        match framing {
            BodyFraming::None => BodyReader::Length(0),
            BodyFraming::Length(length) => BodyReader::Length(length),
            BodyFraming::Chunked => BodyReader::Chunked(Box::default()),
            BodyFraming::UntilClose => BodyReader::UntilClose,
        }
    }

    /// Looks at `input`: the bytes that follow those consumed so far. Call it again with what is left until
    /// [`Found::Nothing`] or [`Found::End`]; after the end the rest belongs to the next message.
    ///
    /// # Errors
    /// [`ChunkError`]; the connection cannot be used further.
    pub fn read(&mut self, input: &[u8]) -> Result<Progress, ChunkError> {
        match self {
            BodyReader::Length(0) | BodyReader::Done => {
                *self = BodyReader::Done;
                Ok(Progress { consumed: 0, found: Found::End })
            }
            BodyReader::Length(missing) => {
                let take = usize::try_from(*missing).unwrap_or(usize::MAX).min(input.len());
                *missing -= take as u64;
                Ok(data(take))
            }
            BodyReader::UntilClose => Ok(data(input.len())),
            BodyReader::Chunked(decoder) => {
                let progress = decoder.read(input)?;
                Ok(progress)
            }
        }
    }

    /// True when the peer's close ends the body rather than cutting it short.
    #[must_use]
    pub fn may_end_by_close(&self) -> bool {
        matches!(self, BodyReader::UntilClose | BodyReader::Done | BodyReader::Length(0))
    }
}

fn data(length: usize) -> Progress {
    let found = if length == 0 { Found::Nothing } else { Found::Data(0..length) };
    Progress { consumed: length, found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_counted_down_and_the_rest_is_left() {
        let mut body = BodyReader::new(BodyFraming::Length(5));
        assert_eq!(body.read(b"abc").unwrap(), Progress { consumed: 3, found: Found::Data(0..3) });
        assert_eq!(body.read(b"").unwrap(), Progress { consumed: 0, found: Found::Nothing });
        assert!(!body.may_end_by_close());
        assert_eq!(body.read(b"deGET").unwrap(), Progress { consumed: 2, found: Found::Data(0..2) });
        assert_eq!(body.read(b"GET").unwrap(), Progress { consumed: 0, found: Found::End });
        assert!(body.may_end_by_close());
    }

    #[test]
    fn no_body_ends_at_once() {
        assert_eq!(BodyReader::new(BodyFraming::None).read(b"x").unwrap(), Progress { consumed: 0, found: Found::End });
    }
}
