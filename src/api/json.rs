//! JSON that a terminal may show as it comes: what agents wrote is in it, and operators ask with curl.

use serde::Serialize;

/// Whether a terminal would obey `c` instead of showing it: control characters, and those that turn the direction of the
/// text around them (Unicode TR 9), so that it reads as something else.
#[must_use]
pub fn drives_terminal(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `value` as JSON on one line, with every such character written as an escape: for any reader it is the same text.
///
/// # Errors
/// As [`serde_json::to_string`].
pub fn to_json<T: Serialize>(value: &T) -> serde_json::Result<String> {
    let json = serde_json::to_string(value)?;
    if !json.contains(drives_terminal) {
        return Ok(json);
    }
    // Outside of strings JSON has none of them, and none is above U+FFFF.
    let escaped = |c: char| if drives_terminal(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    Ok(json.chars().map(escaped).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_in_json_drives_a_terminal_and_none_is_changed() {
        let text = "a\u{1b}[2J\u{9b}31m\u{7f}\u{202e}b\u{2066}c\n\u{e4}\u{1f600}\"\\";
        let json = to_json(&[text]).unwrap();
        assert_eq!(json, "[\"a\\u001b[2J\\u009b31m\\u007f\\u202eb\\u2066c\\n\u{e4}\u{1f600}\\\"\\\\\"]");
        assert_eq!(serde_json::from_str::<[String; 1]>(&json).unwrap(), [text]);
    }
}
