//! A checked expression as text again: definitions expanded, literals in normal form, one spelling for all.
//!
//! What explanations and lints quote. Not what conditions are compiled from: that is the operator's own text.

use cel_interpreter::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, operators};
use cel_interpreter::common::types::{CelBool, CelDouble, CelInt, CelList, CelString};
use cel_interpreter::common::value::Val;

use super::literal::as_constant;
use super::pattern::Pattern;

/// Characters of a quoted part; a block list of a thousand hosts is named, not repeated.
const TEXT_MAX: usize = 400;

/// How tight an operator binds: CEL's grammar.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Binds {
    Conditional,
    Or,
    And,
    Relation,
    Sum,
    Product,
    Unary,
    Member,
}

/// `part` as CEL, cut to what fits in a message.
pub(super) fn text(part: &IdedExpr, constants: &[Box<dyn Val>]) -> String {
    let whole = whole(part, constants);
    match whole.char_indices().nth(TEXT_MAX) {
        Some((cut, _)) => format!("{}…", &whole[..cut]),
        None => whole,
    }
}

/// `part` as CEL, in full.
pub(super) fn whole(part: &IdedExpr, constants: &[Box<dyn Val>]) -> String {
    let mut out = String::new();
    Writer { constants, out: &mut out }.part(part, Binds::Conditional);
    out
}

/// A text as a CEL string literal.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

struct Writer<'w> {
    constants: &'w [Box<dyn Val>],
    out: &'w mut String,
}

impl Writer<'_> {
    /// Writes `part` where something that binds at least as tight as `least` must stand.
    fn part(&mut self, part: &IdedExpr, least: Binds) {
        let binds = binds(part);
        if binds < least {
            self.out.push('(');
            self.bare(part);
            self.out.push(')');
        } else {
            self.bare(part);
        }
    }

    fn bare(&mut self, part: &IdedExpr) {
        match &part.expr {
            Expr::Literal(literal) => self.literal(literal),
            Expr::Ident(name) => match as_constant(part).and_then(|number| self.constants.get(number)) {
                Some(constant) => self.constant(constant.as_ref()),
                None => self.out.push_str(name),
            },
            Expr::Select(select) => {
                if select.test {
                    self.out.push_str("has(");
                }
                self.part(&select.operand, Binds::Member);
                self.out.push('.');
                self.out.push_str(&select.field);
                if select.test {
                    self.out.push(')');
                }
            }
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(comprehension) => {
                // As the checker lets through: exists() begins with false, all() with true.
                let all = matches!(&comprehension.accu_init.expr,
                    Expr::Literal(LiteralValue::Boolean(start)) if *start.inner());
                self.part(&comprehension.iter_range, Binds::Member);
                self.out.push_str(if all { ".all(" } else { ".exists(" });
                self.out.push_str(&comprehension.iter_var);
                self.out.push_str(", ");
                if let Expr::Call(step) = &comprehension.loop_step.expr
                    && let [_, body] = step.args.as_slice()
                {
                    self.part(body, Binds::Conditional);
                }
                self.out.push(')');
            }
            Expr::List(list) => {
                self.out.push('[');
                self.arguments(&list.elements);
                self.out.push(']');
            }
            // The checker refuses these.
            Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => self.out.push('…'),
        }
    }

    fn call(&mut self, call: &CallExpr) {
        let name = call.func_name.as_str();
        match (&call.target, call.args.as_slice()) {
            (Some(target), arguments) => {
                self.part(target, Binds::Member);
                self.out.push('.');
                self.out.push_str(name);
                self.out.push('(');
                self.arguments(arguments);
                self.out.push(')');
            }
            (None, [test, yes, no]) if name == operators::CONDITIONAL => {
                self.part(test, Binds::Or);
                self.out.push_str(" ? ");
                self.part(yes, Binds::Or);
                self.out.push_str(" : ");
                self.part(no, Binds::Conditional);
            }
            (None, [container, index]) if name == operators::INDEX => {
                self.part(container, Binds::Member);
                self.out.push('[');
                self.part(index, Binds::Conditional);
                self.out.push(']');
            }
            (None, [left, right]) if infix(name).is_some() => {
                let (spelling, binds) = infix(name).unwrap_or(("?", Binds::Member));
                // `&&` and `||` are associative, and the parser balances them: no brackets for its shape.
                let right_least = match binds {
                    Binds::Or | Binds::And => binds,
                    Binds::Relation => Binds::Sum,
                    Binds::Sum => Binds::Product,
                    _ => Binds::Unary,
                };
                let left_least = if binds == Binds::Relation { Binds::Sum } else { binds };
                self.part(left, left_least);
                self.out.push_str(&format!(" {spelling} "));
                self.part(right, right_least);
            }
            (None, [inner]) if matches!(name, operators::LOGICAL_NOT | operators::NEGATE) => {
                self.out.push(if name == operators::NEGATE { '-' } else { '!' });
                self.part(inner, Binds::Member);
            }
            (None, arguments) => {
                self.out.push_str(name);
                self.out.push('(');
                self.arguments(arguments);
                self.out.push(')');
            }
        }
    }

    fn arguments(&mut self, arguments: &[IdedExpr]) {
        for (number, argument) in arguments.iter().enumerate() {
            if number > 0 {
                self.out.push_str(", ");
            }
            self.part(argument, Binds::Conditional);
        }
    }

    fn literal(&mut self, literal: &LiteralValue) {
        match literal {
            LiteralValue::Boolean(value) => self.out.push_str(if *value.inner() { "true" } else { "false" }),
            LiteralValue::Int(value) => self.out.push_str(&value.inner().to_string()),
            LiteralValue::Double(value) => self.out.push_str(&format!("{:?}", value.inner())),
            LiteralValue::String(value) => self.out.push_str(&quoted(value.inner())),
            LiteralValue::Null => self.out.push_str("null"),
            // The checker refuses these.
            LiteralValue::Bytes(_) | LiteralValue::UInt(_) => self.out.push('…'),
        }
    }

    fn constant(&mut self, value: &dyn Val) {
        if let Some(text) = value.downcast_ref::<CelString>() {
            self.out.push_str(&quoted(text.inner()));
        } else if let Some(number) = value.downcast_ref::<CelInt>() {
            self.out.push_str(&number.inner().to_string());
        } else if let Some(number) = value.downcast_ref::<CelDouble>() {
            self.out.push_str(&format!("{:?}", number.inner()));
        } else if let Some(value) = value.downcast_ref::<CelBool>() {
            self.out.push_str(if *value.inner() { "true" } else { "false" });
        } else if let Some(pattern) = value.downcast_ref::<Pattern>() {
            self.out.push_str(&quoted(pattern.source()));
        } else if let Some(list) = value.downcast_ref::<CelList>() {
            self.out.push('[');
            for (number, item) in list.iter().enumerate() {
                if number > 0 {
                    self.out.push_str(", ");
                }
                self.constant(item.as_ref());
            }
            self.out.push(']');
        } else {
            self.out.push_str("null");
        }
    }
}

fn binds(part: &IdedExpr) -> Binds {
    let Expr::Call(call) = &part.expr else { return Binds::Member };
    if call.target.is_some() {
        return Binds::Member;
    }
    match call.func_name.as_str() {
        operators::CONDITIONAL => Binds::Conditional,
        operators::LOGICAL_NOT | operators::NEGATE => Binds::Unary,
        name => infix(name).map_or(Binds::Member, |(_, binds)| binds),
    }
}

fn infix(name: &str) -> Option<(&'static str, Binds)> {
    Some(match name {
        operators::LOGICAL_OR => ("||", Binds::Or),
        operators::LOGICAL_AND => ("&&", Binds::And),
        operators::EQUALS => ("==", Binds::Relation),
        operators::NOT_EQUALS => ("!=", Binds::Relation),
        operators::LESS => ("<", Binds::Relation),
        operators::LESS_EQUALS => ("<=", Binds::Relation),
        operators::GREATER => (">", Binds::Relation),
        operators::GREATER_EQUALS => (">=", Binds::Relation),
        operators::IN => ("in", Binds::Relation),
        operators::ADD => ("+", Binds::Sum),
        operators::SUBSTRACT => ("-", Binds::Sum),
        operators::MULTIPLY => ("*", Binds::Product),
        operators::DIVIDE => ("/", Binds::Product),
        operators::MODULO => ("%", Binds::Product),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule_engine::expression::compile;

    #[test]
    fn what_is_written_means_the_same_again() {
        for source in [
            r#"http.host == "a.com" && (http.method == "GET" || http.method == "HEAD") && !(network.port == 22)"#,
            r#"http.host in ["a.com", "b.com"] ? true : network.port in [80, 443]"#,
            r#"run.args.exists(a, a.startsWith("--")) && run.args.all(a, size(a) > 1 + 2 * 3)"#,
            r#"http.headers["x"] == "a\"b\\" && has(http.headers.y) && http.path.matches("^/v[0-9]+\\.x")"#,
            r#"(1 - (2 - 3)) * -network.port == 7 % 2 && ("h2" in tls.alpn) == true"#,
            r#"http.body == null && run.context.a["b"].c == 1.5 && tls.alpn[0] == "h2""#,
            r#"(http.host == "a.com") == (http.method == "GET")"#,
        ] {
            let condition = compile(source).unwrap();
            let written = whole(&condition.expression, &condition.constants);
            let again = compile(&written).unwrap_or_else(|reasons| panic!("{written}: {reasons:?}"));
            assert_eq!(whole(&again.expression, &again.constants), written);
            assert_eq!(again.constants.len(), condition.constants.len());
        }
        let condition = compile("a == 'b'".replace('a', "http.host").as_str()).unwrap();
        assert_eq!(text(&condition.expression, &condition.constants), "http.host == \"b\"");
    }
}
