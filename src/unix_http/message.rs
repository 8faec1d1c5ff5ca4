//! Requests as handlers see them, responses as handlers give them.

use crate::http1::Fields;

use super::Peer;

/// A whole request.
#[derive(Clone, Debug)]
pub struct Request {
    /// As sent; methods are case-sensitive.
    pub method: Box<str>,
    /// The path as sent, without the query.
    pub path: Box<str>,
    /// What follows the `?`, as sent.
    pub query: Option<Box<str>>,
    /// The header fields.
    pub fields: Fields,
    /// The body, unchunked.
    pub body: Vec<u8>,
    /// Who sent it.
    pub peer: Peer,
    /// The key under which the peer was admitted.
    pub key: u64,
}

/// The place where a later answer belongs. An answer to a connection that is gone goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    pub(super) slot: usize,
    pub(super) serial: u64,
}

impl Ticket {
    /// A ticket of no server, for tests of handlers.
    #[must_use]
    pub fn detached(serial: u64) -> Self {
        Ticket { slot: usize::MAX, serial }
    }
}

/// What follows the head of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// These bytes.
    Whole(Vec<u8>),
    /// What [`super::Server::feed`] brings, until [`super::Server::finish`].
    Stream,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Value of Content-Type.
    pub content_type: &'static str,
    /// Further fields. Values must be free of control characters; those that are not are left out.
    pub fields: Vec<(&'static str, String)>,
    /// The body.
    pub body: Body,
    /// Whether the connection closes after it.
    pub close: bool,
}

impl Response {
    /// An answer with these bytes.
    #[must_use]
    pub fn whole(status: u16, content_type: &'static str, body: Vec<u8>) -> Self {
        Response { status, content_type, fields: Vec::new(), body: Body::Whole(body), close: false }
    }

    /// An answer that stays open and is fed.
    #[must_use]
    pub fn stream(content_type: &'static str) -> Self {
        Response { status: 200, content_type, fields: Vec::new(), body: Body::Stream, close: false }
    }

    /// The last answer of its connection.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// With one more field.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }
}

/// The reason phrase of the statuses that the daemon uses (RFC 9110 15).
pub(crate) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        // The phrase may be empty (RFC 9112 4).
        _ => "",
    }
}
