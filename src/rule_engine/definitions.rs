//! `definitions:` of a file, and `$name` in conditions.
//!
//! `$name` becomes the parenthesised definition, recursively, outside string literals only. Comments are dropped on
//! the way, so that none can swallow the closing parenthesis.

use std::collections::{BTreeMap, BTreeSet};

use super::expression::SOURCE_MAX;
use super::field::nearest;

/// How many definitions deep a chain may go: expansion recurses over it.
const CHAIN_MAX: usize = 32;

/// The definitions of one file.
#[derive(Default)]
pub(super) struct Definitions {
    sources: BTreeMap<String, String>,
    /// Expanded so far, so that a name used twice is expanded once.
    expanded: BTreeMap<String, String>,
    used: BTreeSet<String>,
}

impl Definitions {
    /// Definitions by name.
    pub(super) fn new(sources: BTreeMap<String, String>) -> Self {
        Definitions { sources, ..Definitions::default() }
    }

    /// Expands a rule's condition.
    ///
    /// # Errors
    /// An undefined or circular name, with the chain that leads to it, or a text beyond the cap.
    pub(super) fn expand(&mut self, condition: &str) -> Result<String, String> {
        self.text(condition, &mut Vec::new())
    }

    /// Expands the definition itself, to find its errors although no rule uses it. Does not count as a use.
    pub(super) fn check(&mut self, name: &str) -> Result<(), String> {
        let used = self.used.clone();
        let checked = self.name(name, &mut Vec::new()).map(|_| ());
        self.used = used;
        checked
    }

    /// Names that no rule uses, directly or through another definition.
    pub(super) fn unused(&self) -> impl Iterator<Item = &str> {
        self.sources.keys().filter(|name| !self.used.contains(*name)).map(String::as_str)
    }

    fn text(&mut self, text: &str, chain: &mut Vec<String>) -> Result<String, String> {
        let mut out = String::with_capacity(text.len());
        for piece in pieces(text) {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Comment => out.push(' '),
                Piece::Name(name) => {
                    let expanded = self.name(name, chain)?;
                    out.push('(');
                    out.push_str(&expanded);
                    out.push(')');
                }
                Piece::Dollar => return Err(format!("a `$` without a name{}", via(chain))),
            }
            if out.len() > SOURCE_MAX {
                return Err(format!("the condition is over {SOURCE_MAX} bytes with its definitions expanded"));
            }
        }
        Ok(out)
    }

    fn name(&mut self, name: &str, chain: &mut Vec<String>) -> Result<String, String> {
        if chain.iter().any(|above| above == name) {
            chain.push(name.to_owned());
            let text = chain.iter().map(|name| format!("${name}")).collect::<Vec<_>>().join(" → ");
            return Err(format!("the definitions are circular: {text}"));
        }
        if chain.len() >= CHAIN_MAX {
            return Err(format!("the definitions refer to each other more than {CHAIN_MAX} deep{}", via(chain)));
        }
        let Some(source) = self.sources.get(name).cloned() else {
            let hint = nearest(name, self.sources.keys().map(String::as_str));
            let hint = hint.map_or_else(String::new, |near| format!("; did you mean `${near}`?"));
            return Err(format!("`${name}` is not defined in this file{}{hint}", via(chain)));
        };
        self.used.insert(name.to_owned());
        if let Some(known) = self.expanded.get(name).cloned() {
            self.mark(name);
            return Ok(known);
        }
        chain.push(name.to_owned());
        let expanded = self.text(&source, chain)?;
        chain.pop();
        self.expanded.insert(name.to_owned(), expanded.clone());
        Ok(expanded)
    }

    /// Marks what an already expanded definition uses; `check` may have expanded it without marking.
    fn mark(&mut self, name: &str) {
        let mut open = vec![name.to_owned()];
        let mut seen = BTreeSet::new();
        while let Some(name) = open.pop() {
            let Some(source) = self.sources.get(&name) else { continue };
            if !seen.insert(name) {
                continue;
            }
            for piece in pieces(source) {
                if let Piece::Name(inner) = piece {
                    self.used.insert(inner.to_owned());
                    open.push(inner.to_owned());
                }
            }
        }
    }
}

fn via(chain: &[String]) -> String {
    if chain.is_empty() {
        return String::new();
    }
    format!(" (used by {})", chain.iter().map(|name| format!("${name}")).collect::<Vec<_>>().join(" → "))
}

/// True for a name that `$` can refer to.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && text.bytes().all(is_name_byte)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

#[derive(Debug, PartialEq, Eq)]
enum Piece<'t> {
    /// As it is, string literals included.
    Text(&'t str),
    /// `$name`
    Name(&'t str),
    /// `// …` up to the end of the line.
    Comment,
    /// A `$` with no name behind it.
    Dollar,
}

fn pieces(text: &str) -> Vec<Piece<'_>> {
    let bytes = text.as_bytes();
    let mut pieces = Vec::new();
    let (mut at, mut start) = (0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' | b'\'' => at = literal_end(text, at),
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                pieces.push(Piece::Text(&text[start..at]));
                pieces.push(Piece::Comment);
                at = text[at..].find('\n').map_or(bytes.len(), |newline| at + newline);
                start = at;
            }
            b'$' => {
                pieces.push(Piece::Text(&text[start..at]));
                let length = bytes[at + 1..].iter().take_while(|byte| is_name_byte(**byte)).count();
                let name = &text[at + 1..at + 1 + length];
                pieces.push(if is_name(name) { Piece::Name(name) } else { Piece::Dollar });
                at += 1 + length;
                start = at;
            }
            _ => at += 1,
        }
    }
    pieces.push(Piece::Text(&text[start..]));
    pieces
}

/// The bytes of a condition outside its string literals and comments, with their places.
pub(super) fn code_bytes(text: &str) -> impl Iterator<Item = (usize, u8)> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let byte = *bytes.get(at)?;
            match byte {
                b'"' | b'\'' => at = literal_end(text, at),
                b'/' if bytes.get(at + 1) == Some(&b'/') => {
                    at = text[at..].find('\n').map_or(bytes.len(), |newline| at + newline);
                }
                _ => {
                    at += 1;
                    return Some((at - 1, byte));
                }
            }
        }
    })
}

/// Where the string literal whose opening quote is at `open` ends; the end of the text if it does not.
fn literal_end(text: &str, open: usize) -> usize {
    let bytes = text.as_bytes();
    let quote = bytes[open];
    // CEL: the prefixes r, b and both in either order, in either case, not as the end of a longer name.
    let prefix = bytes[..open].iter().rev().take_while(|byte| is_name_byte(**byte)).count();
    let raw = prefix <= 2 && bytes[open - prefix..open].iter().any(|byte| matches!(byte, b'r' | b'R'));
    let fence = if bytes[open..].starts_with(&[quote; 3]) { 3 } else { 1 };
    let mut at = open + fence;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if !raw => at += 2,
            byte if byte == quote && bytes[at..].iter().take_while(|b| **b == quote).count() >= fence => {
                return at + fence;
            }
            // A line end closes no literal, but CEL refuses it there: what follows is code either way.
            b'\n' if fence == 1 => return at,
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definitions(pairs: &[(&str, &str)]) -> Definitions {
        Definitions::new(pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect())
    }

    #[test]
    fn names_are_expanded_recursively_and_parenthesised() {
        let mut known = definitions(&[("a", "$b || c"), ("b", "x")]);
        assert_eq!(known.expand("!$a && $b").unwrap(), "!((x) || c) && (x)");
        assert_eq!(known.unused().count(), 0);
    }

    #[test]
    fn string_literals_are_left_alone() {
        let mut known = definitions(&[("a", "x")]);
        for same in [
            r#"h == "$a""#,
            r"h == '$a'",
            r#"h == "\"$a""#,
            r#"h == """ " $a """"#,
            r#"h.matches(r"^a\")"#,
            r#"h == '''it's $a'''"#,
        ] {
            assert_eq!(known.expand(same).unwrap(), same);
        }
        // The backslash of a raw literal escapes nothing, so the literal is over before `$a`.
        assert_eq!(known.expand(r#"h.matches(r"\") && $a"#).unwrap(), r#"h.matches(r"\") && (x)"#);
        // `r` at the end of a longer name is no prefix.
        assert_eq!(known.expand(r#"xyzr"\"$a" "#).unwrap(), r#"xyzr"\"$a" "#);
        assert_eq!(known.expand(r#""\\" + $a"#).unwrap(), r#""\\" + (x)"#);
    }

    #[test]
    fn comments_are_dropped_so_that_none_swallows_the_parenthesis() {
        let mut known = definitions(&[("a", "x // the $b")]);
        assert_eq!(known.expand("$a && y // $c").unwrap(), "(x  ) && y  ");
    }

    #[test]
    fn undefined_and_circular_names_are_named_with_their_chain() {
        let mut known = definitions(&[("github", "$githup"), ("a", "$b"), ("b", "$c"), ("c", "$a")]);
        let undefined = known.expand("$github").unwrap_err();
        assert_eq!(undefined, "`$githup` is not defined in this file (used by $github); did you mean `$github`?");
        assert_eq!(known.expand("$a").unwrap_err(), "the definitions are circular: $a → $b → $c → $a");
        assert!(known.expand("$ a").unwrap_err().contains("without a name"));
    }

    #[test]
    fn a_bomb_of_doublings_stops_at_the_cap() {
        let pairs: Vec<(String, String)> =
            (0..30).map(|n| (format!("d{n}"), format!("$d{} || $d{}", n + 1, n + 1))).collect();
        let mut sources: BTreeMap<String, String> = pairs.into_iter().collect();
        sources.insert("d30".to_owned(), "http.host == 'x'".to_owned());
        assert!(Definitions::new(sources).expand("$d0").unwrap_err().contains("bytes"));
    }

    #[test]
    fn checking_a_definition_is_no_use_of_it() {
        let mut known = definitions(&[("a", "$b"), ("b", "x")]);
        known.check("a").unwrap();
        assert_eq!(known.unused().collect::<Vec<_>>(), ["a", "b"]);
        known.expand("$a").unwrap();
        assert_eq!(known.unused().count(), 0);
    }
}
