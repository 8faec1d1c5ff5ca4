//! Regular expressions of `matches`: compiled once, at load, within limits.
//!
//! A pattern is always a literal of the rule. CEL would compile it again at each evaluation, without a limit.

use std::any::Any;

use cel_interpreter::ExecutionError;
use cel_interpreter::common::types::{CelBool, CelString, Type};
use cel_interpreter::common::value::{CowVal, StaticVal, Val};

/// Bytes of a pattern's source: a longer one is a list in disguise.
const SOURCE_MAX: usize = 1024;
/// Bytes of a compiled pattern. The library's own default of 10 MiB costs a quarter of a second to fill.
const PROGRAM_MAX: usize = 256 * 1024;
/// Bytes of a pattern's lazily built automaton, for each thread that uses it.
const AUTOMATON_MAX: usize = 512 * 1024;
/// Nesting of a pattern's groups.
const NESTING_MAX: u32 = 32;

/// The CEL type of a compiled pattern; no expression can name it.
pub(super) static PATTERN_TYPE: Type = Type::new_unspecified_type("outcall.pattern");

/// A compiled pattern as a CEL value.
#[derive(Clone, Debug)]
pub(super) struct Pattern(regex::Regex);

impl Pattern {
    /// Compiles `source` (RE2 syntax, as CEL wants it).
    ///
    /// # Errors
    /// Why it does not compile, in one line.
    pub(super) fn compile(source: &str) -> Result<Self, String> {
        if source.len() > SOURCE_MAX {
            return Err(format!("the pattern is {} bytes long; at most {SOURCE_MAX} are accepted", source.len()));
        }
        regex::RegexBuilder::new(source)
            .size_limit(PROGRAM_MAX)
            .dfa_size_limit(AUTOMATON_MAX)
            .nest_limit(NESTING_MAX)
            .build()
            .map(Pattern)
            .map_err(|error| match error {
                regex::Error::CompiledTooBig(limit) => {
                    format!("the pattern is over {limit} bytes when compiled; use fewer or smaller repetitions")
                }
                error => {
                    let text = error.to_string();
                    let reason = text.lines().last().unwrap_or("it is invalid");
                    format!("the pattern does not compile: {}", reason.trim_start_matches("error: "))
                }
            })
    }
}

impl Pattern {
    /// What it was compiled from.
    pub(super) fn source(&self) -> &str {
        self.0.as_str()
    }
}

impl Val for Pattern {
    fn get_type(&self) -> &Type {
        <Self as Val>::cel_type()
    }

    fn cel_type() -> &'static Type {
        &PATTERN_TYPE
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Pattern {}

/// `text.matches(pattern)`: whether the pattern is found anywhere in the text.
pub(super) fn matches<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [text, pattern] = arguments.as_slice() else {
        return Err(ExecutionError::InvalidArgumentCount { expected: 2, actual: arguments.len() });
    };
    match (text.downcast_ref::<CelString>(), pattern.downcast_ref::<Pattern>()) {
        (Some(text), Some(pattern)) => Ok(CowVal::owned(CelBool::from(pattern.0.is_match(text.inner())))),
        _ => Err(ExecutionError::function_error("matches", "needs a string and a pattern")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_limits() {
        assert!(Pattern::compile(r"^/v[0-9]+/").is_ok());
        assert!(Pattern::compile("(").unwrap_err().contains("does not compile"));
        assert!(Pattern::compile(&"a".repeat(2000)).unwrap_err().contains("bytes long"));
        assert!(Pattern::compile(r"((a{100}){100}){100}").unwrap_err().contains("compiled"));
        assert!(Pattern::compile(&format!("{}a{}", "(".repeat(64), ")".repeat(64))).is_err());
    }
}
