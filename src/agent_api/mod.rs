//! The agents' API on its own Unix socket: who asks, what they may, which rules they want.

pub mod identity;
mod pidfd;
