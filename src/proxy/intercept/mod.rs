//! Interception: what is done to a connection once a rule asks to look inside.
//!
//! | file | what it is |
//! |---|---|
//! | `decode` | compressed bodies, for judging |

mod decode;

pub use decode::{DecodeError, decode};
