//! What every subsystem loop is made of: a mailbox that wakes its mio poll, and one-shot replies.
//!
//! Owns: the pairing of a bounded channel with a `mio::Waker`. Does not own: the loops themselves; each
//! subsystem runs its own `mio::Poll`.

mod mailbox;
mod reply;

pub use mailbox::{Address, Mailbox, SendError, mailbox};
pub use reply::{Reply, reply_channel};

/// The token under which every subsystem registers its mailbox's waker.
pub const MAILBOX: mio::Token = mio::Token(usize::MAX);
