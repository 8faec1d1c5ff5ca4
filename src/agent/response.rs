//! The daemon's answers: HTTP/1.1 with a Content-Length, nothing else. Sans-I/O; RFC 9112.
//!
//! The other side of the socket is taken for a broken daemon at the first byte that is not what the daemon sends:
//! what cannot be read is no verdict.

/// Largest head in bytes; the daemon's is under 300.
const HEAD_MAX: usize = 8 * 1024;
/// Largest body in bytes; the daemon's is under 2 KiB.
const BODY_MAX: usize = 64 * 1024;

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// `Retry-After`, in seconds.
    pub retry_after_secs: Option<u64>,
    /// True when the daemon closes the connection after it.
    pub close: bool,
    /// The body.
    pub body: Vec<u8>,
}

/// How reading goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    More,
    /// An answer.
    Done(Response),
    /// Not an answer of the daemon.
    Broken(&'static str),
}

/// Reads one answer out of all bytes that have come since the request.
pub fn read(bytes: &[u8]) -> Progress {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if bytes.len() > HEAD_MAX { Progress::Broken("its head is too long") } else { Progress::More };
    };
    if end > HEAD_MAX {
        return Progress::Broken("its head is too long");
    }
    let Ok(head) = std::str::from_utf8(&bytes[..end]) else {
        return Progress::Broken("its head is not text");
    };
    let mut lines = head.split("\r\n");
    let Some(status) = lines.next().and_then(status) else {
        return Progress::Broken("it does not begin with an HTTP status");
    };
    let mut response = Response { status, retry_after_secs: None, close: false, body: Vec::new() };
    let mut length = None;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            return Progress::Broken("a header has no colon");
        };
        let value = value.trim_matches([' ', '\t']);
        if name.eq_ignore_ascii_case("content-length") {
            let Some(number) = decimal(value).filter(|_| length.is_none()) else {
                return Progress::Broken("its length cannot be read");
            };
            length = Some(number);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Progress::Broken("its length is not declared");
        } else if name.eq_ignore_ascii_case("retry-after") {
            response.retry_after_secs = decimal(value);
        } else if name.eq_ignore_ascii_case("connection") {
            response.close = value.eq_ignore_ascii_case("close");
        }
    }
    let Some(length) = length.and_then(|length| usize::try_from(length).ok()) else {
        return Progress::Broken("its length is not declared");
    };
    if length > BODY_MAX {
        return Progress::Broken("its body is too long");
    }
    let body = &bytes[end + 4..];
    if body.len() < length {
        return Progress::More;
    }
    if body.len() > length {
        return Progress::Broken("there is more than one answer");
    }
    response.body = body.to_vec();
    Progress::Done(response)
}

fn status(line: &str) -> Option<u16> {
    let rest = line.strip_prefix("HTTP/1.1 ")?;
    let (code, after) = rest.split_at_checked(3)?;
    let digits = code.bytes().all(|byte| byte.is_ascii_digit());
    (digits && (after.is_empty() || after.starts_with(' '))).then(|| code.parse().ok()).flatten()
}

fn decimal(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_whole_however_it_is_cut() {
        let wire = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\nRetry-After: 7\r\n\r\n{}";
        for cut in 0..wire.len() {
            assert_eq!(read(&wire[..cut]), Progress::More, "{cut}");
        }
        let Progress::Done(response) = read(wire) else { panic!() };
        assert_eq!((response.status, response.retry_after_secs), (429, Some(7)));
        assert_eq!((response.body.as_slice(), response.close), (&b"{}"[..], false));
    }

    #[test]
    fn whatever_is_not_a_daemons_answer_is_broken() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(HEAD_MAX));
        for wire in [
            "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxy",
            "HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 0\r\n\r\n",
            long.as_str(),
        ] {
            assert!(matches!(read(wire.as_bytes()), Progress::Broken(_)), "{wire:?}");
        }
    }
}
