//! HTTP/1.1 heads and body framing, sans-I/O. RFC 9110, RFC 9112.
//!
//! Owns: where a message begins and ends, which of the readings that two parsers could have is refused, and how a
//! head is written for the next hop. Does not own: sockets, clocks, and what a request means. `httparse` splits a
//! head into its parts; this module first refuses, on the raw bytes, all that another parser might split elsewhere.
//!
//! | file | what it is |
//! |---|---|
//! | [`head`](self) | [`RequestHead`], [`ResponseHead`]: out of a buffer, complete or not |
//! | `scan` | the strict look at the raw bytes of a head or a trailer section |
//! | `fields` | header fields, tokens of `Connection` and the like |
//! | `target` | the four request targets, and authorities |
//! | `body` | [`BodyFraming`], [`BodyReader`]: where a body ends |
//! | `chunked` | the chunked coding |
//! | `write` | heads for the next hop, without what belongs to this one |

mod body;
mod chunked;
mod fields;
mod head;
mod refusal;
mod scan;
mod target;
mod write;

pub use body::{BodyFraming, BodyReader, Found, Progress};
pub use chunked::{CHUNK_EXTENSIONS_MAX, ChunkDecoder, ChunkError, TRAILERS_MAX, write_chunk, write_last_chunk};
pub use fields::Fields;
pub use head::{
    Parse, REQUEST_FIELDS_MAX, REQUEST_HEAD_MAX, RESPONSE_FIELDS_MAX, RESPONSE_HEAD_MAX, RequestHead, ResponseHead,
    Version,
};
pub use refusal::Refusal;
pub use target::{Authority, AuthorityError, Target, TargetError};
pub use write::{write_request, write_response};
