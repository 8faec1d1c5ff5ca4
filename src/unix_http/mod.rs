//! The small HTTP server behind the daemon's Unix sockets: mio, `httparse`, peer credentials, caps and deadlines.
