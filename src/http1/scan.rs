//! The strict look at raw bytes: lines end in CRLF and nothing else, no control characters, no folds, field names
//! are tokens that touch their colon. RFC 9112 2.2, 5.1, 5.2; RFC 9110 5.5.

use super::Refusal;

/// Where the empty line of a section ends (one past its LF); `None` when it is not there yet. What is there
/// already is checked, so that a bad line is refused before the rest arrives.
///
/// `start_line`: whether the first line is a request or status line rather than a field.
pub(super) fn section_end(bytes: &[u8], start_line: bool) -> Result<Option<usize>, Refusal> {
    let mut start = 0;
    let mut first = start_line;
    while let Some(length) = bytes[start..].iter().position(|byte| *byte == b'\n') {
        let line = &bytes[start..start + length];
        let Some(line) = line.strip_suffix(b"\r") else {
            return Err(Refusal::BareLf);
        };
        if line.is_empty() {
            return if first { Err(Refusal::StartLine) } else { Ok(Some(start + length + 1)) };
        }
        check_text(line)?;
        if !first {
            check_field_line(line)?;
        }
        first = false;
        start += length + 1;
    }
    let rest = &bytes[start..];
    check_text(rest.strip_suffix(b"\r").unwrap_or(rest))?;
    if !first && matches!(rest.first(), Some(b' ' | b'\t')) {
        return Err(Refusal::Folded);
    }
    Ok(None)
}

fn check_text(line: &[u8]) -> Result<(), Refusal> {
    match line.iter().find(|byte| (**byte < 0x20 && **byte != b'\t') || **byte == 0x7f) {
        None => Ok(()),
        Some(b'\r') => Err(Refusal::BareCr),
        Some(_) => Err(Refusal::ControlCharacter),
    }
}

fn check_field_line(line: &[u8]) -> Result<(), Refusal> {
    if matches!(line[0], b' ' | b'\t') {
        return Err(Refusal::Folded);
    }
    let colon = line.iter().position(|byte| *byte == b':').ok_or(Refusal::FieldName)?;
    let name = &line[..colon];
    if name.is_empty() {
        return Err(Refusal::FieldName);
    }
    if name.ends_with(b" ") || name.ends_with(b"\t") {
        return Err(Refusal::SpaceBeforeColon);
    }
    if name.iter().all(|byte| is_token_byte(*byte)) { Ok(()) } else { Err(Refusal::FieldName) }
}

/// RFC 9110 5.6.2 `tchar`.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// `value` without spaces and tabs around it.
pub(super) fn trim(value: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    &value[start..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_ends_at_its_empty_line() {
        assert_eq!(section_end(b"A: b\r\n\r\nrest", false), Ok(Some(8)));
        assert_eq!(section_end(b"\r\n", false), Ok(Some(2)));
        assert_eq!(section_end(b"GET / HTTP/1.1\r\nA: b\r\n\r", true), Ok(None));
        assert_eq!(section_end(b"", true), Ok(None));
    }

    #[test]
    fn bad_lines_are_refused_before_the_section_is_complete() {
        assert_eq!(section_end(b"A: b\n", false), Err(Refusal::BareLf));
        assert_eq!(section_end(b"A: b\rc", false), Err(Refusal::BareCr));
        assert_eq!(section_end(b"A: b\r\r\n", false), Err(Refusal::BareCr));
        assert_eq!(section_end(b"A: \0", false), Err(Refusal::ControlCharacter));
        assert_eq!(section_end(b"A: b\r\n c", false), Err(Refusal::Folded));
        assert_eq!(section_end(b"GET / HTTP/1.1\r\n A: b\r\n", true), Err(Refusal::Folded));
        assert_eq!(section_end(b"A : b\r\n", false), Err(Refusal::SpaceBeforeColon));
        assert_eq!(section_end(b"A\t: b\r\n", false), Err(Refusal::SpaceBeforeColon));
        assert_eq!(section_end(b": b\r\n", false), Err(Refusal::FieldName));
        assert_eq!(section_end(b"A b: c\r\n", false), Err(Refusal::FieldName));
        assert_eq!(section_end(b"nothing\r\n", false), Err(Refusal::FieldName));
        assert_eq!(section_end(b"\r\n", true), Err(Refusal::StartLine));
    }
}
