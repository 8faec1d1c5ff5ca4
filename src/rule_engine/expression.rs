//! From the text of a condition to a checked [`Condition`]: caps, parser, allowlist.
//!
//! The same function runs first in the guarded child and then here: what the child survived, on half the stack,
//! is parsed again for real.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cel_interpreter::Program;

use super::check;
use super::condition::Condition;

/// Bytes of a condition with its definitions expanded: room for a block list of a thousand hosts.
pub(super) const SOURCE_MAX: usize = 64 * 1024;
/// Nesting of brackets in the text. The parser recurses some ten frames for each.
const BRACKETS_MAX: usize = 32;
/// Operators in a row of equal rank make a tree as deep as the row is long, `||` and `&&` excepted (balanced).
/// Counted for the whole text, as a coarse bound on what the parser may recurse over.
const CHAINED_MAX: usize = 8 * 1024;

/// Parses and checks `source`.
///
/// # Errors
/// Every reason why it is refused, each in one line.
pub(super) fn compile(source: &str) -> Result<Condition, Vec<String>> {
    caps(source).map_err(|reason| vec![reason])?;
    // The parser's own panics are refusals of this text, nothing more: it keeps no state of ours.
    let parsed = catch_unwind(AssertUnwindSafe(|| match Program::compile(source) {
        Ok(program) => Ok(program.expression().clone()),
        Err(errors) => Err(errors.errors.iter().map(syntax_error).collect::<Vec<_>>()),
    }));
    match parsed {
        Ok(Ok(expression)) => check::check(expression),
        Ok(Err(mut reasons)) => {
            reasons.dedup();
            reasons.truncate(REASONS_MAX);
            Err(reasons)
        }
        Err(_) => Err(vec!["CEL: the parser cannot read this".to_owned()]),
    }
}

/// Syntax errors reported for one condition; one mistake often makes a dozen.
const REASONS_MAX: usize = 3;
/// Characters of a parser message that are passed on.
const MESSAGE_MAX: usize = 200;

/// One line, without the source beside it: the library's own Display panics on long lines.
fn syntax_error(error: &cel_interpreter::ParseError) -> String {
    let message: String = error.msg.replace(['\n', '\r'], " ").chars().take(MESSAGE_MAX).collect();
    match error.pos {
        (1, column) => format!("CEL: column {column}: {message}"),
        (line, column) => format!("CEL: line {line}, column {column} of the condition: {message}"),
    }
}

fn caps(source: &str) -> Result<(), String> {
    if source.trim().is_empty() {
        return Err("the condition is empty".to_owned());
    }
    if source.len() > SOURCE_MAX {
        return Err(format!(
            "the condition is {} bytes long with its definitions expanded; at most {SOURCE_MAX} are accepted",
            source.len()
        ));
    }
    if let Some(control) = source.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        return Err(format!("the condition has the control character {:?}", control));
    }
    // Brackets inside strings count as well: no condition needs so many, and the cap then depends on no tokenizer.
    let (mut open, mut chained) = (0usize, 0usize);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            b'+' | b'-' | b'*' | b'/' | b'%' | b'!' | b'?' | b'.' => chained += 1,
            _ => {}
        }
        if open > BRACKETS_MAX {
            return Err(format!("the condition nests brackets more than {BRACKETS_MAX} deep"));
        }
    }
    if chained > CHAINED_MAX {
        return Err(format!("the condition has over {CHAINED_MAX} operators; use lists and `in`"));
    }
    Ok(())
}
