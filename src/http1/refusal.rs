//! Why a head is refused, and with which status.

/// A head that is not read further. The peer's fault, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Over the cap on bytes.
    HeadTooLarge,
    /// Over the cap on fields.
    TooManyFields,
    /// A CR that no LF follows.
    BareCr,
    /// An LF that no CR precedes.
    BareLf,
    /// NUL or another control character.
    ControlCharacter,
    /// The first line is no request line or status line.
    StartLine,
    /// A version other than HTTP/1.0 and HTTP/1.1.
    Version,
    /// A line that begins with whitespace: obs-fold, or whitespace before the first field.
    Folded,
    /// Whitespace between a field's name and its colon.
    SpaceBeforeColon,
    /// A line without a colon, or a name that is no token.
    FieldName,
    /// Content-Length that is no plain decimal number.
    ContentLength,
    /// More than one Content-Length, also when they agree.
    DuplicateContentLength,
    /// Transfer-Encoding that is not exactly `chunked`.
    TransferEncoding,
    /// Content-Length and Transfer-Encoding together.
    LengthAndEncoding,
    /// Transfer-Encoding in a message of HTTP/1.0, which knows none.
    EncodingInHttp10,
    /// Connection lists a field that says how the body is read.
    ConnectionOption,
    /// No Host in HTTP/1.1.
    HostMissing,
    /// More than one Host.
    DuplicateHost,
    /// A field in the trailer section that governs framing, routing or authentication.
    ForbiddenTrailer,
}

impl Refusal {
    /// The status for a client that sent it: 431, 505, else 400.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Refusal::HeadTooLarge | Refusal::TooManyFields => 431,
            Refusal::Version => 505,
            _ => 400,
        }
    }

    /// A short code for events.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Refusal::HeadTooLarge => "head_too_large",
            Refusal::TooManyFields => "too_many_fields",
            Refusal::BareCr => "bare_cr",
            Refusal::BareLf => "bare_lf",
            Refusal::ControlCharacter => "control_character",
            Refusal::StartLine => "bad_start_line",
            Refusal::Version => "bad_version",
            Refusal::Folded => "obs_fold",
            Refusal::SpaceBeforeColon => "space_before_colon",
            Refusal::FieldName => "bad_field_name",
            Refusal::ContentLength => "bad_content_length",
            Refusal::DuplicateContentLength => "duplicate_content_length",
            Refusal::TransferEncoding => "bad_transfer_encoding",
            Refusal::LengthAndEncoding => "content_length_and_transfer_encoding",
            Refusal::EncodingInHttp10 => "transfer_encoding_in_http_1_0",
            Refusal::ConnectionOption => "bad_connection_option",
            Refusal::HostMissing => "host_missing",
            Refusal::DuplicateHost => "duplicate_host",
            Refusal::ForbiddenTrailer => "forbidden_trailer",
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Refusal::HeadTooLarge => "the head is larger than accepted",
            Refusal::TooManyFields => "the head has more fields than accepted",
            Refusal::BareCr => "a CR without LF",
            Refusal::BareLf => "an LF without CR",
            Refusal::ControlCharacter => "a control character in the head",
            Refusal::StartLine => "the first line is malformed",
            Refusal::Version => "only HTTP/1.1 and HTTP/1.0 are spoken here",
            Refusal::Folded => "a line that begins with whitespace",
            Refusal::SpaceBeforeColon => "whitespace before a field's colon",
            Refusal::FieldName => "a field name that is no token",
            Refusal::ContentLength => "Content-Length is no plain number",
            Refusal::DuplicateContentLength => "more than one Content-Length",
            Refusal::TransferEncoding => "Transfer-Encoding is not exactly 'chunked'",
            Refusal::LengthAndEncoding => "Content-Length and Transfer-Encoding together",
            Refusal::EncodingInHttp10 => "Transfer-Encoding in HTTP/1.0",
            Refusal::ConnectionOption => "Connection lists a field that says how the body is read",
            Refusal::HostMissing => "no Host field",
            Refusal::DuplicateHost => "more than one Host field",
            Refusal::ForbiddenTrailer => "a trailer field that belongs in the head",
        })
    }
}

impl std::error::Error for Refusal {}
