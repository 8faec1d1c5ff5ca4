//! Interception: a CONNECT that is answered with a certificate of our own, so that each request inside is judged.
//!
//! Owns: when TLS is ended here, the two handshakes, and the bodies that rules look into. Does not own: the
//! certificates ([`crate::authority`]), the judgement (`judge`), or HTTP: once a leg speaks TLS, the steps of plain
//! HTTP go on over it. An HTTP/2 session would take the place of those steps, between the handshake and the judgement
//! of each request.
//!
//! | file | what it is |
//! |---|---|
//! | `tls` | TLS on one leg: rustls and its buffers |
//! | `opening` | the leaf, the client's handshake |
//! | `upstream` | the server's handshake |
//! | `body` | bodies read before they are judged |
//! | `decode` | compressed bodies, for judging |
//! | `books` | what is kept of a decrypted session, and its events |

pub(super) mod body;
pub(super) mod books;
mod decode;
pub(super) mod opening;
pub(super) mod tls;
pub(super) mod upstream;

pub use decode::{DecodeError, decode};

/// Why interception failed: `X-Outcall-Failure-Reason`, and the reasons of events.
pub(super) mod reason {
    pub(in crate::proxy) const CERT_GEN_FAILED: &str = "cert_gen_failed";
    pub(in crate::proxy) const UPSTREAM_HANDSHAKE_FAILED: &str = "upstream_handshake_failed";
    pub(in crate::proxy) const ALPN_MISMATCH: &str = "alpn_mismatch";
    pub(in crate::proxy) const BODY_DECODE_FAILED: &str = "body_decode_failed";
    pub(in crate::proxy) const CLIENT_HANDSHAKE_FAILED: &str = "client_handshake_failed";
}
