//! HTTP/1.1 heads and body framing, sans-I/O. RFC 9110, RFC 9112.
