//! Keys and certificates of TLS interception: the CA, the leaves it signs, the roots that upstreams are held to.
//!
//! Owns: the CA's key, from its file to its end; the leaf of each intercepted host; the TLS settings of both sides. Does
//! not own: sockets and sessions ([`crate::proxy`]), which rule asks for interception ([`crate::rule_engine`]). Nothing
//! of this exists without `--ca-cert` and `--ca-key`.
//!
//! | file | what it is |
//! |---|---|
//! | `load` | both files read and checked: [`Authority`] |
//! | `error` | why an authority does not load |
//! | `certificate` | what the CA's certificate says and allows |
//! | `key` | the CA's key: its file, its forms, its signatures |
//! | `pem` | PEM blocks, decoded without a copy left behind |
//! | `secret` | pages for key material, kept from core dumps and swap; no core dump at all |
//! | `mint` | one leaf: key, certificate, TLS settings |
//! | `bundle` | what containers trust, as a file |
//! | `leaves` | the proxy's cache of leaves; sans-I/O |
//! | `signer` | the thread `leaves`, which signs |
//! | `upstream` | system roots and extra ones; how upstreams are verified |

mod bundle;
mod certificate;
mod error;
mod key;
mod leaves;
mod load;
mod mint;
mod pem;
mod secret;
mod signer;
mod upstream;

use std::sync::Arc;

pub use bundle::Published;
pub use certificate::CaCertificate;
pub use error::AuthorityError;
pub use leaves::{LEAVES_MAX, Leaf, Leaves};
pub use load::Authority;
pub use mint::{MintError, Minted};
pub use signer::{LeavesCommand, Signer, leaves};
pub use upstream::{RootsError, SystemRoots, upstream_config};

/// What the proxy is given when a CA is loaded.
pub struct Interception {
    /// The certificates shown to clients.
    pub leaves: Leaves,
    /// How upstreams are verified.
    pub upstream: Arc<rustls::ClientConfig>,
    /// `--intercept-body-cap-bytes`: the largest body that rules see.
    pub body_cap: usize,
    /// What `GET /proxy/intercept` shows.
    pub counters: Counters,
}

/// Requests that were decrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Judged after decryption.
    pub intercepted: u64,
    /// Of these, blocked.
    pub blocked: u64,
}

impl std::fmt::Debug for Interception {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interception")
            .field("leaves", &self.leaves.len())
            .field("body_cap", &self.body_cap)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// The provider of all cryptography, for both sides.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The only protocol spoken inside interception, by ALPN (RFC 7301).
const ALPN: &[u8] = b"http/1.1";
