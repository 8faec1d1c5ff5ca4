//! The small HTTP server behind the daemon's Unix sockets: mio, peer credentials, caps and deadlines.
//!
//! Owns: the socket file, accepting, one request at a time for each connection, answers now or later, streams.
//! Does not own: head parsing and framing ([`crate::http1`]), routes, or any loop: the subsystem that serves a socket
//! has its own `mio::Poll` and hands events to [`Server`].
//!
//! | file | what it is |
//! |---|---|
//! | `message` | [`Request`], [`Response`], [`Ticket`] |
//! | `connection` | one connection, sans-I/O: bytes and `now` in, requests and bytes out |
//! | `server` | the shell: accept, read, write, deadlines |
//! | `socket` | [`SocketFile`]: made, replaced when stale, removed when still ours |
//! | `peer` | [`Peer`]: who connected, and from which container |
//! | `pidfd` | [`PidFd`]: a process that cannot be taken for another one |

mod connection;
mod message;
mod peer;
mod pidfd;
mod server;
mod socket;

pub use connection::Limits;
pub(crate) use message::reason;
pub use message::{Body, Request, Response, Ticket};
pub use peer::{Peer, PeerContainer, container_of_peer, own_container};
pub use pidfd::PidFd;
pub use server::{Admission, Answer, Caps, Fed, Handler, Server, Tokens};
pub use socket::{SocketError, SocketFile, another_answers};
