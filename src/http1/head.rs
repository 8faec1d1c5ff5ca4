//! Heads of requests and responses, with their framing checked.

use super::scan::section_end;
use super::{BodyFraming, Fields, Refusal};

/// Bytes of a request head, 431 over it: what common servers take, and so what clients keep to.
pub const REQUEST_HEAD_MAX: usize = 8 * 1024;

/// Fields of a request. Browsers send about 20.
pub const REQUEST_FIELDS_MAX: usize = 100;

/// Bytes of a response head: policies and cookies of large sites exceed 8 KiB.
pub const RESPONSE_HEAD_MAX: usize = 32 * 1024;

/// Fields of a response.
pub const RESPONSE_FIELDS_MAX: usize = 200;

/// Members of a Connection field. Each is compared with each field when a head is written, so many would cost much.
const CONNECTION_OPTIONS_MAX: usize = 32;

/// The two versions that this module speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// What a buffer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parse<T> {
    /// The beginning of a head; read more. What is there is well-formed and below the cap.
    Incomplete,
    /// A head.
    Parsed {
        /// The head.
        head: T,
        /// How many bytes of the buffer it took.
        consumed: usize,
    },
    /// No head, whatever follows.
    Refused(Refusal),
}

/// A request head whose framing has one reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// As sent; methods are case-sensitive.
    pub method: Box<str>,
    /// The request target as sent; see [`super::Target::parse`].
    pub target: Box<str>,
    /// Its version.
    pub version: Version,
    /// Its fields.
    pub fields: Fields,
    /// Where the body ends; never [`BodyFraming::UntilClose`].
    pub framing: BodyFraming,
}

/// A response head whose framing fields do not contradict each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// 100 to 599.
    pub status: u16,
    /// The reason phrase, possibly empty.
    pub reason: Box<str>,
    /// Its version.
    pub version: Version,
    /// Its fields.
    pub fields: Fields,
    /// What the fields say of the body, before status and request method have their word.
    declared: BodyFraming,
}

impl RequestHead {
    /// Reads a request head from the beginning of `buffer`. One empty line before it is skipped (RFC 9112 2.2).
    #[must_use]
    pub fn parse(buffer: &[u8]) -> Parse<RequestHead> {
        finish(Self::read(buffer), buffer, REQUEST_HEAD_MAX)
    }

    fn read(buffer: &[u8]) -> Result<Option<(RequestHead, usize)>, Refusal> {
        let skipped = if buffer.starts_with(b"\r\n") { 2 } else { 0 };
        let text = &buffer[skipped..];
        if skipped == 0 && text == b"\r" {
            return Ok(None);
        }
        let Some(end) = section_end(text, true)? else {
            return Ok(None);
        };
        // Method, target and version, with one space between each two: nobody reads that otherwise.
        if text.iter().take_while(|byte| **byte != b'\r').filter(|byte| **byte == b' ').count() != 2 {
            return Err(Refusal::StartLine);
        }
        let mut fields = [httparse::EMPTY_HEADER; REQUEST_FIELDS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        let complete = request.parse(&text[..end]).map_err(refusal_of)?;
        let (true, Some(method), Some(target), Some(version)) =
            (complete == httparse::Status::Complete(end), request.method, request.path, request.version)
        else {
            return Err(Refusal::StartLine);
        };
        let version = version_of(version)?;
        let (method, target) = (method.into(), target.into());
        let fields = collect(request.headers);
        match fields.all("host").count() {
            0 if version == Version::Http11 => return Err(Refusal::HostMissing),
            0 | 1 => {}
            _ => return Err(Refusal::DuplicateHost),
        }
        let framing = declared_framing(&fields, version)?.unwrap_or(BodyFraming::None);
        if fields.list("connection").any(says_how_to_read) {
            return Err(Refusal::ConnectionOption);
        }
        Ok(Some((RequestHead { method, target, version, fields, framing }, skipped + end)))
    }

    /// Whether the client wants the connection to live on. RFC 9112 9.3; `Proxy-Connection` is not heeded.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        keep_alive(self.version, &self.fields)
    }

    /// Whether the client waits for `100 Continue` before its body. RFC 9110 10.1.1.
    #[must_use]
    pub fn expects_continue(&self) -> bool {
        self.version == Version::Http11
            && !matches!(self.framing, BodyFraming::None | BodyFraming::Length(0))
            && self.fields.lists("expect", "100-continue")
    }

    /// Whether this asks for a WebSocket. RFC 6455 4.1. No other upgrade is recognised: h2c would be a way around
    /// the judgement of each request.
    #[must_use]
    pub fn upgrades_to_websocket(&self) -> bool {
        self.version == Version::Http11
            && &*self.method == "GET"
            && matches!(self.framing, BodyFraming::None | BodyFraming::Length(0))
            && self.fields.lists("connection", "upgrade")
            && self.fields.list("upgrade").count() == 1
            && self.fields.lists("upgrade", "websocket")
    }
}

impl ResponseHead {
    /// Reads a response head from the beginning of `buffer`.
    #[must_use]
    pub fn parse(buffer: &[u8]) -> Parse<ResponseHead> {
        finish(Self::read(buffer), buffer, RESPONSE_HEAD_MAX)
    }

    fn read(buffer: &[u8]) -> Result<Option<(ResponseHead, usize)>, Refusal> {
        let Some(end) = section_end(buffer, true)? else {
            return Ok(None);
        };
        let mut fields = [httparse::EMPTY_HEADER; RESPONSE_FIELDS_MAX];
        let mut response = httparse::Response::new(&mut fields);
        let complete = response.parse(&buffer[..end]).map_err(refusal_of)?;
        let (true, Some(version), Some(status @ 100..=599)) =
            (complete == httparse::Status::Complete(end), response.version, response.code)
        else {
            return Err(Refusal::StartLine);
        };
        let version = version_of(version)?;
        let reason = response.reason.unwrap_or("").into();
        let fields = collect(response.headers);
        let declared = declared_framing(&fields, version)?.unwrap_or(BodyFraming::UntilClose);
        Ok(Some((ResponseHead { status, reason, version, fields, declared }, end)))
    }

    /// Where the body of this answer to a request with `method` ends. RFC 9112 6.3. CONNECT is not asked of
    /// servers here, and 101 ends HTTP: both have no body.
    #[must_use]
    pub fn framing(&self, method: &str) -> BodyFraming {
        if method == "HEAD" || matches!(self.status, 100..=199 | 204 | 304) { BodyFraming::None } else { self.declared }
    }

    /// The length that the fields declare, body or not (an answer to HEAD, a 304).
    #[must_use]
    pub fn declared_length(&self) -> Option<u64> {
        match self.declared {
            BodyFraming::Length(length) => Some(length),
            _ => None,
        }
    }

    /// Whether the server keeps the connection open. RFC 9112 9.3.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        let ends_by_itself = self.declared != BodyFraming::UntilClose || matches!(self.status, 100..=199 | 204 | 304);
        ends_by_itself && keep_alive(self.version, &self.fields)
    }
}

fn finish<T>(read: Result<Option<(T, usize)>, Refusal>, buffer: &[u8], cap: usize) -> Parse<T> {
    match read {
        Ok(Some((_, consumed))) if consumed > cap => Parse::Refused(Refusal::HeadTooLarge),
        Ok(Some((head, consumed))) => Parse::Parsed { head, consumed },
        Ok(None) if buffer.len() >= cap => Parse::Refused(Refusal::HeadTooLarge),
        Ok(None) => Parse::Incomplete,
        Err(refusal) => Parse::Refused(refusal),
    }
}

fn refusal_of(error: httparse::Error) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => Refusal::TooManyFields,
        httparse::Error::Version => Refusal::Version,
        httparse::Error::HeaderName => Refusal::FieldName,
        httparse::Error::HeaderValue => Refusal::ControlCharacter,
        httparse::Error::Token | httparse::Error::NewLine | httparse::Error::Status => Refusal::StartLine,
    }
}

fn version_of(minor: u8) -> Result<Version, Refusal> {
    match minor {
        0 => Ok(Version::Http10),
        1 => Ok(Version::Http11),
        _ => Err(Refusal::Version),
    }
}

fn collect(headers: &[httparse::Header<'_>]) -> Fields {
    let mut fields = Fields::default();
    for header in headers {
        fields.push(header.name, header.value);
    }
    fields
}

/// What Content-Length and Transfer-Encoding say together; `None` when neither is there.
fn declared_framing(fields: &Fields, version: Version) -> Result<Option<BodyFraming>, Refusal> {
    if fields.list("connection").nth(CONNECTION_OPTIONS_MAX).is_some() {
        return Err(Refusal::TooManyFields);
    }
    let mut lengths = fields.all("content-length");
    let mut encodings = fields.all("transfer-encoding");
    match (lengths.next(), encodings.next()) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(Refusal::LengthAndEncoding),
        (Some(_), None) if lengths.next().is_some() => Err(Refusal::DuplicateContentLength),
        (Some(length), None) => parse_length(length).map(|length| Some(BodyFraming::Length(length))),
        (None, Some(_)) if version == Version::Http10 => Err(Refusal::EncodingInHttp10),
        (None, Some(_)) if encodings.next().is_some() => Err(Refusal::TransferEncoding),
        (None, Some(encoding)) if encoding.eq_ignore_ascii_case(b"chunked") => Ok(Some(BodyFraming::Chunked)),
        (None, Some(_)) => Err(Refusal::TransferEncoding),
    }
}

/// Whether `option` names a field that says what the body is, such as Content-Encoding: dropped on the way it leaves a
/// body that is read here in one way and behind in another. Content-Length is made anew, not dropped.
fn says_how_to_read(option: &[u8]) -> bool {
    let content = option.get(..8).is_some_and(|start| start.eq_ignore_ascii_case(b"content-"));
    content && !option.eq_ignore_ascii_case(b"content-length")
}

/// A plain decimal number that fits in an i64, without sign, list or leading zero.
fn parse_length(text: &[u8]) -> Result<u64, Refusal> {
    if text.contains(&b',') {
        return Err(Refusal::DuplicateContentLength);
    }
    let plain = matches!(text, [b'0'] | [b'1'..=b'9', ..]) && text.iter().all(u8::is_ascii_digit);
    let length = std::str::from_utf8(text).ok().filter(|_| plain).and_then(|digits| digits.parse::<i64>().ok());
    length.and_then(|length| u64::try_from(length).ok()).ok_or(Refusal::ContentLength)
}

fn keep_alive(version: Version, fields: &Fields) -> bool {
    match version {
        Version::Http11 => !fields.lists("connection", "close"),
        Version::Http10 => fields.lists("connection", "keep-alive") && !fields.lists("connection", "close"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(head: &str) -> Option<Refusal> {
        match RequestHead::parse(head.as_bytes()) {
            Parse::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    fn parsed(head: &str) -> RequestHead {
        match RequestHead::parse(head.as_bytes()) {
            Parse::Parsed { head, .. } => head,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_head_is_read_when_it_is_complete() {
        let wire = b"\r\nPOST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
        for end in 0..wire.len() - 3 {
            assert_eq!(RequestHead::parse(&wire[..end]), Parse::Incomplete, "{end}");
        }
        let Parse::Parsed { head, consumed } = RequestHead::parse(wire) else { panic!() };
        assert_eq!((&*head.method, &*head.target, head.framing), ("POST", "http://a/", BodyFraming::Length(3)));
        assert_eq!(consumed, wire.len() - 3);
        assert!(head.keep_alive());
    }

    #[test]
    fn framing_with_two_readings_is_refused() {
        let with = |lines: &str| refused(&format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
        assert_eq!(with("Content-Length: 1\r\nContent-Length: 1\r\n"), Some(Refusal::DuplicateContentLength));
        assert_eq!(with("Content-Length: 1, 1\r\n"), Some(Refusal::DuplicateContentLength));
        assert_eq!(with("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), Some(Refusal::LengthAndEncoding));
        for odd in ["+1", "-1", "0x1", "1 1", "", "01", "1.0", "9223372036854775808", "99999999999999999999"] {
            assert_eq!(with(&format!("Content-Length: {odd}\r\n")), Some(Refusal::ContentLength), "{odd}");
        }
        for odd in ["gzip, chunked", "chunked, chunked", "identity", "chunked;a", "xchunked", "", "\"chunked\""] {
            assert_eq!(with(&format!("Transfer-Encoding: {odd}\r\n")), Some(Refusal::TransferEncoding), "{odd}");
        }
        assert_eq!(
            with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
            Some(Refusal::TransferEncoding)
        );
        assert_eq!(refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Some(Refusal::EncodingInHttp10));
        assert_eq!(with("Host: a\r\n"), Some(Refusal::DuplicateHost));
        assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), Some(Refusal::HostMissing));
    }

    #[test]
    fn a_connection_field_may_not_strip_what_says_how_the_body_is_read() {
        let with = |options: &str| refused(&format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: {options}\r\n\r\n"));
        for odd in ["Content-Encoding", "close, content-type", "CONTENT-RANGE"] {
            assert_eq!(with(odd), Some(Refusal::ConnectionOption), "{odd}");
        }
        assert_eq!(with("close, Content-Length, Host, X-Content-Type"), None);
    }

    #[test]
    fn start_lines_are_strict() {
        assert_eq!(refused("GET  / HTTP/1.1\r\n\r\n"), Some(Refusal::StartLine));
        assert_eq!(refused("GET / HTTP/1.1 \r\n\r\n"), Some(Refusal::StartLine));
        assert_eq!(refused("GET /\r\n\r\n"), Some(Refusal::StartLine));
        assert_eq!(refused("PRI * HTTP/2.0\r\n\r\n"), Some(Refusal::Version));
        assert_eq!(refused("GET / HTTP/1.2\r\n\r\n"), Some(Refusal::Version));
        assert_eq!(refused("G{T / HTTP/1.1\r\n\r\n"), Some(Refusal::StartLine));
    }

    #[test]
    fn heads_are_capped() {
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(REQUEST_HEAD_MAX));
        assert_eq!(refused(&long), Some(Refusal::HeadTooLarge));
        assert_eq!(refused(&format!("{long}\r\n\r\n")), Some(Refusal::HeadTooLarge));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(REQUEST_FIELDS_MAX));
        assert_eq!(refused(&many), Some(Refusal::TooManyFields));
    }

    #[test]
    fn what_a_request_asks_of_its_connection() {
        assert!(!parsed("GET / HTTP/1.0\r\n\r\n").keep_alive());
        assert!(parsed("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keep_alive());
        assert!(!parsed("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n").keep_alive());
        let upgrade = |to: &str| {
            parsed(&format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {to}\r\n\r\n"))
                .upgrades_to_websocket()
        };
        assert!(upgrade("WebSocket") && !upgrade("h2c") && !upgrade("websocket, h2c"));
    }

    #[test]
    fn responses_end_as_status_and_method_say() {
        let framing = |wire: &str, method: &str| match ResponseHead::parse(wire.as_bytes()) {
            Parse::Parsed { head, .. } => Ok((head.framing(method), head.keep_alive())),
            Parse::Refused(refusal) => Err(refusal),
            Parse::Incomplete => panic!("{wire}"),
        };
        assert_eq!(framing("HTTP/1.1 200 OK\r\n\r\n", "GET"), Ok((BodyFraming::UntilClose, false)));
        assert_eq!(framing("HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n", "GET"), Ok((BodyFraming::Length(5), true)));
        assert_eq!(framing("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD"), Ok((BodyFraming::None, true)));
        assert_eq!(framing("HTTP/1.1 204 No\r\n\r\n", "GET"), Ok((BodyFraming::None, true)));
        assert_eq!(framing("HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", "GET"), Ok((BodyFraming::None, true)));
        assert_eq!(framing("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", "GET"), Ok((BodyFraming::Length(5), false)));
        assert_eq!(
            framing("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "GET"),
            Err(Refusal::DuplicateContentLength)
        );
        assert_eq!(
            framing("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "GET"),
            Err(Refusal::TransferEncoding)
        );
        assert_eq!(framing("HTTP/1.1 999 OK\r\n\r\n", "GET"), Err(Refusal::StartLine));
        assert_eq!(framing("HTTP/2 200\r\n\r\n", "GET"), Err(Refusal::Version));
    }
}
