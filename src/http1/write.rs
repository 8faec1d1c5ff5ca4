//! Heads for the next hop: end-to-end fields as sent, everything that belongs to one hop made anew. RFC 9110 7.6.1.

use super::{BodyFraming, Fields, RequestHead, ResponseHead};

/// Fields of one hop, whatever `Connection` says. Names that begin with `proxy-` are too.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "keep-alive", "te", "transfer-encoding", "content-length", "upgrade", "http2-settings"];

/// Appends the head of `request` for an origin server: `target` in origin form, `host` as its Host field.
/// `websocket` asks for the upgrade again, which is stripped otherwise.
pub fn write_request(out: &mut Vec<u8>, request: &RequestHead, target: &str, host: &str, websocket: bool) {
    line(out, &[request.method.as_bytes(), b" ", target.as_bytes(), b" HTTP/1.1"]);
    line(out, &[b"Host: ", host.as_bytes()]);
    end_to_end(out, &request.fields, &["host"]);
    framing_field(out, request.framing);
    if websocket {
        line(out, &[b"Connection: Upgrade"]);
        line(out, &[b"Upgrade: websocket"]);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the head of `response` for a client, its body framed as `framing`; an answer without a body keeps the
/// length that it declares. `connection` is the value of the Connection field, if any.
pub fn write_response(out: &mut Vec<u8>, response: &ResponseHead, framing: BodyFraming, connection: Option<&str>) {
    line(out, &[b"HTTP/1.1 ", response.status.to_string().as_bytes(), b" ", response.reason.as_bytes()]);
    end_to_end(out, &response.fields, &[]);
    match framing {
        // 1xx and 204 declare nothing: RFC 9110 8.6.
        BodyFraming::None if !matches!(response.status, 100..=199 | 204) => {
            if let Some(length) = response.declared_length() {
                framing_field(out, BodyFraming::Length(length));
            }
        }
        framing => framing_field(out, framing),
    }
    if response.status == 101 {
        line(out, &[b"Upgrade: websocket"]);
    }
    if let Some(connection) = connection {
        line(out, &[b"Connection: ", connection.as_bytes()]);
    }
    out.extend_from_slice(b"\r\n");
}

fn framing_field(out: &mut Vec<u8>, framing: BodyFraming) {
    match framing {
        BodyFraming::Length(length) => line(out, &[b"Content-Length: ", length.to_string().as_bytes()]),
        BodyFraming::Chunked => line(out, &[b"Transfer-Encoding: chunked"]),
        BodyFraming::None | BodyFraming::UntilClose => {}
    }
}

fn end_to_end(out: &mut Vec<u8>, fields: &Fields, also_skip: &[&str]) {
    for (name, value) in fields.iter() {
        let listed = |names: &[&str]| names.iter().any(|skipped| name.eq_ignore_ascii_case(skipped));
        let proxy = name.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("proxy-"));
        if !(proxy || listed(&HOP_BY_HOP) || listed(also_skip) || fields.drops(name)) {
            line(out, &[name.as_bytes(), b": ", value]);
        }
    }
}

fn line(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::super::Parse;
    use super::*;

    fn forwarded(wire: &str, websocket: bool) -> String {
        let Parse::Parsed { head, .. } = RequestHead::parse(wire.as_bytes()) else { panic!("{wire}") };
        let mut out = Vec::new();
        write_request(&mut out, &head, "/x", "a.example", websocket);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_belongs_to_one_hop_is_stripped() {
        let wire = "POST http://A.example/x HTTP/1.1\r\nHost: A.example\r\nAccept: */*\r\nConnection: close, X-Hop\r\n\
                    X-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Authorization: Basic abc\r\nProxy-Connection: keep-alive\r\n\
                    TE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nTransfer-Encoding: Chunked\r\n\r\n";
        assert_eq!(
            forwarded(wire, false),
            "POST /x HTTP/1.1\r\nHost: a.example\r\nAccept: */*\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
    }

    #[test]
    fn a_connection_field_cannot_strip_framing_or_host() {
        let wire =
            "POST / HTTP/1.1\r\nHost: a.example\r\nConnection: Host, Content-Length\r\nContent-Length: 4\r\n\r\n";
        assert_eq!(forwarded(wire, false), "POST /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\n\r\n");
    }

    #[test]
    fn a_websocket_upgrade_is_asked_again() {
        let wire =
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n";
        assert_eq!(
            forwarded(wire, true),
            "GET /x HTTP/1.1\r\nHost: a.example\r\nSec-WebSocket-Key: k\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        );
    }

    #[test]
    fn responses_keep_the_length_that_head_answers_declare() {
        let write = |wire: &str, method: &str| {
            let Parse::Parsed { head, .. } = ResponseHead::parse(wire.as_bytes()) else { panic!("{wire}") };
            let mut out = Vec::new();
            write_response(&mut out, &head, head.framing(method), None);
            String::from_utf8(out).unwrap()
        };
        let wire = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";
        assert_eq!(write(wire, "HEAD"), "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(write("HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", "GET"), "HTTP/1.1 204 No\r\n\r\n");
    }
}
