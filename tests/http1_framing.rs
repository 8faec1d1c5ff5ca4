//! Properties of HTTP/1 framing: however bytes arrive they are read alike, what is written is read back, and nothing
//! panics.

use outcall::http1::{
    BodyFraming, BodyReader, ChunkDecoder, ChunkError, Found, Parse, RequestHead, ResponseHead, write_chunk,
    write_last_chunk, write_request,
};
use proptest::prelude::*;

/// A body, its trailers, and how much was left behind it.
type Decoded = (Vec<u8>, Vec<u8>, usize);

/// What `input` holds, if it is complete, fed in pieces as long as `steps` says, over and over.
fn decode(input: &[u8], steps: &[usize]) -> Result<Option<Decoded>, ChunkError> {
    let mut decoder = ChunkDecoder::default();
    let mut body = Vec::new();
    let (mut done, mut visible, mut step) = (0, 0, 0);
    loop {
        let piece = &input[done..visible];
        let progress = decoder.read(piece)?;
        assert!(progress.consumed <= piece.len());
        done += progress.consumed;
        match progress.found {
            Found::Data(place) => body.extend_from_slice(&piece[place]),
            Found::End => return Ok(Some((body, decoder.trailers().to_vec(), input.len() - done))),
            Found::Nothing if visible == input.len() => return Ok(None),
            Found::Nothing => {
                visible = (visible + steps[step % steps.len()]).min(input.len());
                step += 1;
            }
        }
    }
}

fn head_like() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just(b"GET http://a.example/ HTTP/1.1\r\n".to_vec()),
        Just(b"POST / HTTP/1.0\r\n".to_vec()),
        Just(b"HTTP/1.1 200 OK\r\n".to_vec()),
        Just(b"Host: a.example\r\n".to_vec()),
        Just(b"Content-Length: 5\r\n".to_vec()),
        Just(b"Content-Length: 6\r\n".to_vec()),
        Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
        Just(b"Transfer-Encoding : chunked\r\n".to_vec()),
        Just(b" folded\r\n".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\r".to_vec()),
        Just(b"\r\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..6),
    ];
    proptest::collection::vec(part, 0..10).prop_map(|parts| parts.concat())
}

fn chunk_like() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just(b"3\r\nabc\r\n".to_vec()),
        Just(b"0\r\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"A: b\r\n".to_vec()),
        Just(b"1;x=\"y\"\r\nz\r\n".to_vec()),
        Just(b"00000\r\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..4),
    ];
    proptest::collection::vec(part, 0..10).prop_map(|parts| parts.concat())
}

proptest! {
    // No file of failures: a seed that fails is printed.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chunks_are_read_back_however_they_are_cut(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8),
        behind in proptest::collection::vec(any::<u8>(), 0..20),
        steps in proptest::collection::vec(1usize..50, 1..5),
    ) {
        let mut wire = Vec::new();
        for piece in &pieces {
            write_chunk(&mut wire, piece);
        }
        write_last_chunk(&mut wire, b"X-Sum: 1\r\n");
        wire.extend_from_slice(&behind);
        let (body, trailers, left) = decode(&wire, &steps).unwrap().unwrap();
        prop_assert_eq!(body, pieces.concat());
        prop_assert_eq!(trailers, b"X-Sum: 1\r\n");
        prop_assert_eq!(left, behind.len());
    }

    #[test]
    fn a_chunked_body_has_one_reading_whatever_the_cuts(wire in chunk_like(), steps in proptest::collection::vec(1usize..9, 1..5)) {
        prop_assert_eq!(decode(&wire, &[usize::MAX / 2]), decode(&wire, &steps));
    }

    #[test]
    fn a_head_that_is_refused_stays_refused_and_one_that_is_read_ends_where_it_ended(wire in head_like()) {
        let whole = RequestHead::parse(&wire);
        for end in 0..wire.len() {
            match RequestHead::parse(&wire[..end]) {
                Parse::Incomplete => {}
                // More bytes do not mend it.
                Parse::Refused(_) => prop_assert!(matches!(whole, Parse::Refused(_)), "{:?} at {}", whole, end),
                // Nor do they change it.
                parsed @ Parse::Parsed { .. } => prop_assert_eq!(&parsed, &whole),
            }
        }
        let _ = ResponseHead::parse(&wire);
    }

    #[test]
    fn what_is_forwarded_is_read_alike(wire in head_like()) {
        let Parse::Parsed { head, .. } = RequestHead::parse(&wire) else { return Ok(()) };
        let mut out = Vec::new();
        write_request(&mut out, &head, "/x", "a.example", false);
        let Parse::Parsed { head: again, consumed } = RequestHead::parse(&out) else {
            return Err(TestCaseError::fail(format!("{:?}", String::from_utf8_lossy(&out))));
        };
        prop_assert_eq!(consumed, out.len());
        prop_assert_eq!(again.framing, head.framing);
        prop_assert_eq!(again.method, head.method);
    }

    #[test]
    fn a_length_takes_exactly_its_bytes(length in 0u64..500, input in proptest::collection::vec(any::<u8>(), 0..800)) {
        let mut reader = BodyReader::new(BodyFraming::Length(length));
        let mut at = 0;
        let ended = loop {
            let progress = reader.read(&input[at..]).unwrap();
            at += progress.consumed;
            match progress.found {
                Found::Data(_) => {}
                Found::Nothing => break false,
                Found::End => break true,
            }
        };
        prop_assert_eq!(ended, input.len() as u64 >= length);
        prop_assert_eq!(at as u64, length.min(input.len() as u64));
    }
}
