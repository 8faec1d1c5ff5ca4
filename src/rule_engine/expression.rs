//! From the text of a condition to a checked [`Condition`]: caps, parser, allowlist.
//!
//! The same function runs first in the guarded child and then here: what the child survived, on half the stack,
//! is parsed again for real.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cel_interpreter::Program;

use super::check;
use super::condition::Condition;
use super::definitions::code_bytes;

/// Bytes of a condition with its definitions expanded: room for a block list of a thousand hosts.
pub(super) const SOURCE_MAX: usize = 64 * 1024;
/// Nesting of brackets in the text. The parser takes up to 150 KiB of stack for each in a debug build.
const BRACKETS_MAX: usize = 32;
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
const REASONS_MAX: usize = 2;
/// Characters of a parser message that are passed on.
const MESSAGE_MAX: usize = 120;

/// One line, without the source beside it: the library's own Display panics on long lines.
fn syntax_error(error: &cel_interpreter::ParseError) -> String {
    if error.msg.contains("Recursion limit") {
        return "CEL: the condition is nested too deep".to_owned();
    }
    // `Syntax error: mismatched input '<EOF>' expecting {…}`: the set is long and helps nobody.
    let message = error.msg.strip_prefix("Syntax error: ").unwrap_or(&error.msg);
    let message = message.split(" expecting ").next().unwrap_or(message).replace("'<EOF>'", "the end");
    let mut message: String = message.replace(['\n', '\r'], " ").chars().take(MESSAGE_MAX).collect();
    // What other languages and YAML itself teach.
    for (sign, meant) in [('=', "=="), ('&', "&&"), ('|', "||")] {
        if message.starts_with(&format!("token recognition error at: '{sign}")) {
            message.push_str(&format!("; did you mean `{meant}`?"));
        }
    }
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
        return Err(format!("the condition has the control character {control:?}"));
    }
    brackets(source)
}

/// Brackets close in the order in which they open, and not too deep. The parser would recurse for each, and what it
/// says about one that is missing helps nobody.
fn brackets(source: &str) -> Result<(), String> {
    let mut open = Vec::new();
    for (at, byte) in code_bytes(source) {
        let expected = match byte {
            b'(' => b')',
            b'[' => b']',
            b'{' => b'}',
            b')' | b']' | b'}' => {
                if open.pop() != Some(byte) {
                    let column = source[..at].chars().count() + 1;
                    return Err(format!("CEL: column {column}: `{}` closes nothing", char::from(byte)));
                }
                continue;
            }
            _ => continue,
        };
        open.push(expected);
        if open.len() > BRACKETS_MAX {
            return Err(format!("the condition nests brackets more than {BRACKETS_MAX} deep"));
        }
    }
    match open.pop() {
        Some(missing) => Err(format!("CEL: a `{}` is missing", char::from(missing))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons(source: &str) -> Vec<String> {
        compile(source).err().unwrap_or_default()
    }

    #[test]
    fn brackets_are_balanced_before_the_parser_sees_them() {
        assert!(brackets("a(b[c{}]) ").is_ok());
        assert!(brackets(r#"a == "((" && b == r'\' && c('[')  // ("#).is_ok());
        assert_eq!(brackets("a)").unwrap_err(), "CEL: column 2: `)` closes nothing");
        assert_eq!(brackets("(a]").unwrap_err(), "CEL: column 3: `]` closes nothing");
        assert_eq!(brackets("f(\"(\"").unwrap_err(), "CEL: a `)` is missing");
        assert!(brackets(&"(".repeat(33)).unwrap_err().contains("deep"));
    }

    #[test]
    fn syntax_errors_are_one_line_with_a_place() {
        assert_eq!(reasons("http.host =="), ["CEL: column 13: mismatched input the end"]);
        for (source, meant) in [("http.host = 'a'", "=="), ("true & true", "&&"), ("true | true", "||")] {
            assert!(reasons(source)[0].ends_with(&format!("; did you mean `{meant}`?")), "{:?}", reasons(source));
        }
        assert!(reasons("true &&\n&& true")[0].starts_with("CEL: line 2, column 1 of the condition: "));
    }

    #[test]
    fn a_block_list_of_a_thousand_hosts_compiles() {
        let terms: Vec<String> = (0..1_000).map(|n| format!("http.host == 'host{n}.example.com'")).collect();
        assert!(compile(&terms.join(" || ")).is_ok());
        let list: Vec<String> = (0..2_000).map(|n| format!("'host{n}.example.com'")).collect();
        assert!(compile(&format!("http.host in [{}]", list.join(","))).is_ok());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (source, reason) in [
            ("http.host", "the condition is a string, not a bool"),
            ("1", "the condition is an int, not a bool"),
            ("http.host && true", "`&&` is given a string; it needs bools"),
            ("!http.host", "`!` is given a string; it needs bools"),
            ("network.port == '443'", "an int is compared with a string by `==`: they never are equal"),
            ("http.host != 5", "a string is compared with an int by `!=`: they never are equal"),
            ("network.port in ['443']", "an int is never in a list of strings"),
            ("network.port > 'a'", "an int and a string have no order for `>`"),
            ("ip.dst == 'x'", "there is no field `ip.dst`; did you mean `network.ip`?"),
            ("http.hots == 'x'", "there is no field `http.hots`; did you mean `http.host`?"),
            ("http == 'x'", "`http` is a namespace; name one of its fields"),
            ("host == 'x'", "there is no field `host`; did you mean `http.host`?"),
            (".http.host == 'x'", "there is no field `.http.host`; did you mean `http.host`?"),
            ("http.host.name == 'x'", "`.name` is selected from a string, which has no fields"),
            ("http.host.startswith('x')", "there is no function startswith(); did you mean startsWith()?"),
            ("http.host.startsWith(1)", "startsWith() is given an int; it takes a string"),
            (
                "has(http.host)",
                "has(http.host) cannot tell whether `http.host` is known; has() is for keys of http.headers and run.context",
            ),
            ("http.host.matches('(')", "the pattern does not compile: unclosed group"),
            ("http.host.matches(agent.name)", "matches() takes a literal pattern only: it is compiled once, at load"),
            (
                "run.args.map(x, x) == []",
                "of the comprehensions only exists(x, …) and all(x, …) over a list are supported",
            ),
            ("run.args.exists(x, run.flags.exists(y, x == y))", "comprehensions cannot be nested"),
            ("http.headers.exists(x, x == 'a')", "exists() and all() go over lists, not a map"),
            (
                "run.args.exists(http, http == 'a')",
                "`http` cannot be the variable of a comprehension: it has a meaning",
            ),
            ("[http.host] == ['a']", "lists may hold literals only"),
            ("http.host in ['a', 1]", "the literals of a list are of different types"),
            (
                "http.host == 'http://a.com'",
                "`http.host` is never \"http://a.com\": the host name has the byte 0x3a; write names in ASCII (A-labels)",
            ),
            (
                "http.host == '*.a.com'",
                "`http.host` is never \"*.a.com\": the host name has the byte 0x2a; write names in ASCII (A-labels); use `http.host.endsWith(\".a.com\")`",
            ),
            (
                "dns.query.endsWith('bücher.de')",
                "no `dns.query` contains 'ü', as \"bücher.de\" does; names are in ASCII (xn--… for others)",
            ),
            ("type(http.host) == string", "there is no field `string`"),
            ("duration('1s') == duration('1s')", "there is no function duration()"),
        ] {
            let reasons = reasons(source);
            assert!(reasons.iter().any(|own| own.starts_with(reason)), "{source}: {reasons:?}");
        }
    }

    #[test]
    fn what_is_meant_compiles() {
        for source in [
            "run.args.exists(a, a.startsWith('--')) && run.flags.all(f, f != '-x')",
            "http.headers['user-agent'].contains('curl') || 'x-a' in http.headers || has(http.headers.host)",
            "http.headers.accept == '*/*' && size(http.headers) > 1",
            "http.body == null || http.body.contains('x')",
            "run.context.target == 'x' && run.context.n > 3 && run.context.list.exists(x, x.y == 1)",
            "network.port in [80, 443] && network.port + 1 < 1000 * 2",
            "(http.host == 'a.com' ? 1 : 2) == 1",
            "tls.ech && !tls.ech && tls.alpn[0] == 'h2' && 'h2' in tls.alpn",
            "string(network.port) == '443' && int('4') == 4 && -network.port < 0",
            "http.host == agent.name + '.internal'",
            "http.host == '' || http.host == '1.2.3.4' || http.host == '::1'",
            "true",
        ] {
            assert_eq!(reasons(source), Vec::<String>::new(), "{source}");
        }
    }

    #[test]
    fn literals_beside_names_are_normalised_with_a_warning() {
        for (source, warnings) in [
            ("http.host == 'GitHub.com.'", 1),
            ("'GitHub.com' != dns.query", 1),
            ("dns.query in ['a.com', 'B.com', 'c.com.']", 2),
            ("tls.sni.endsWith('.GitHub.com.')", 1),
            ("http.headers['X-A'] == 'B' && 'X-B' in http.headers && http.headers.Accept == 'c'", 3),
            ("http.host == '0:0::1'", 1),
            ("agent.name == 'Writer' && http.path == '/A'", 0),
        ] {
            let condition = compile(source).unwrap_or_else(|reasons| panic!("{source}: {reasons:?}"));
            assert_eq!(condition.warnings.len(), warnings, "{source}: {:?}", condition.warnings);
        }
    }
}
