//! The allowlist: walks a parsed expression, types it, and puts what is constant into its final form.
//!
//! Refused is everything that is not named here: other functions, map and message literals, comprehensions but
//! `exists` and `all` over a list, nested ones, bytes and unsigned numbers. A comparison that can never hold, or
//! never fail, because its sides are of different types is refused too: a rule must mean something.
//!
//! Rewritten are: literals compared with a host name (into normal form), header names (lower case), lists of
//! literals and patterns of `matches` (into constants that are built once).

use cel_interpreter::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators};
use cel_interpreter::common::types::{CelBool, CelDouble, CelInt, CelList, CelNull, CelString};
use cel_interpreter::common::value::Val;

use super::condition::Condition;
use super::field::{self, Field, FieldSet, FieldType};
use super::literal;
use super::pattern::Pattern;

/// Depth of an expression's tree. Evaluation recurses over it on threads with 2 MiB of stack, and takes up to 35 KiB a
/// level in a debug build. Chains of `||` and `&&` are balanced by the parser: a thousand terms are ten levels.
pub(super) const DEPTH_MAX: usize = 32;

/// The type of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    Int,
    Double,
    Text,
    Null,
    TextOrNull,
    /// A list; what is in it, if that is one thing.
    List(Element),
    TextMap,
    AnyMap,
    /// Out of `run.context`: anything.
    Any,
    /// An error was reported for this part already.
    Wrong,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    Bool,
    Int,
    Double,
    Text,
    Any,
}

impl Element {
    fn kind(self) -> Kind {
        match self {
            Element::Bool => Kind::Bool,
            Element::Int => Kind::Int,
            Element::Double => Kind::Double,
            Element::Text => Kind::Text,
            Element::Any => Kind::Any,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Bool => "a bool",
            Kind::Int => "an int",
            Kind::Double => "a double",
            Kind::Text => "a string",
            Kind::Null => "null",
            Kind::TextOrNull => "a string or null",
            Kind::List(_) => "a list",
            Kind::TextMap | Kind::AnyMap => "a map",
            Kind::Any | Kind::Wrong => "a value",
        })
    }
}

/// Checks `expression` and makes it a condition.
///
/// # Errors
/// Every reason why it is refused.
pub(super) fn check(expression: IdedExpr) -> Result<Condition, Vec<String>> {
    let mut expression = expression;
    let mut checker = Checker::default();
    let kind = checker.part(&mut expression, 0);
    if !matches!(kind, Kind::Bool | Kind::Any | Kind::Wrong) {
        checker.refuse(format!("the condition is {kind}, not a bool"));
    }
    if !checker.refusals.is_empty() {
        checker.refusals.dedup();
        return Err(checker.refusals);
    }
    Ok(Condition { expression, constants: checker.constants, fields: checker.fields, warnings: checker.warnings })
}

#[derive(Default)]
struct Checker {
    refusals: Vec<String>,
    warnings: Vec<String>,
    constants: Vec<Box<dyn Val>>,
    fields: FieldSet,
    /// The variable of the comprehension we are in.
    variable: Option<(String, Kind)>,
}

impl Checker {
    fn refuse(&mut self, reason: String) -> Kind {
        self.refusals.push(reason);
        Kind::Wrong
    }

    fn part(&mut self, part: &mut IdedExpr, depth: usize) -> Kind {
        if depth >= DEPTH_MAX {
            return self.refuse(format!("the expression is nested more than {DEPTH_MAX} levels deep"));
        }
        match &mut part.expr {
            Expr::Literal(value) => match value {
                LiteralValue::Boolean(_) => Kind::Bool,
                LiteralValue::Int(_) => Kind::Int,
                LiteralValue::Double(_) => Kind::Double,
                LiteralValue::String(_) => Kind::Text,
                LiteralValue::Null => Kind::Null,
                LiteralValue::Bytes(_) => self.refuse("bytes literals are not supported".to_owned()),
                LiteralValue::UInt(_) => self.refuse("unsigned literals are not supported".to_owned()),
            },
            Expr::Ident(name) => {
                let name = name.clone();
                self.name(&name)
            }
            Expr::Select(select) => self.select(select, depth),
            Expr::Call(_) => self.call(part, depth),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, depth),
            Expr::List(_) => self.list(part),
            Expr::Map(_) => self.refuse("map literals are not supported".to_owned()),
            Expr::Struct(_) => self.refuse("message literals are not supported".to_owned()),
            Expr::Unspecified => self.refuse("the expression has an empty part".to_owned()),
        }
    }

    fn name(&mut self, name: &str) -> Kind {
        if let Some((variable, kind)) = &self.variable
            && variable == name
        {
            return *kind;
        }
        if field::NAMESPACES.contains(&name) {
            return self.refuse(format!("`{name}` is a namespace; name one of its fields"));
        }
        self.refuse(unknown_name(name))
    }

    fn select(&mut self, select: &mut SelectExpr, depth: usize) -> Kind {
        if let Expr::Ident(root) = &select.operand.expr
            && self.variable.as_ref().is_none_or(|(variable, _)| variable != root)
        {
            let name = format!("{root}.{}", select.field);
            if select.test {
                return self.refuse(format!(
                    "has({name}) cannot tell whether `{name}` is known; has() is for keys of http.headers and run.context"
                ));
            }
            return self.field(&name);
        }
        match self.part(&mut select.operand, depth + 1) {
            Kind::TextMap => {
                if let Some(lower) = literal::header_name(&select.field, &mut self.warnings) {
                    select.field = lower;
                }
                if select.test { Kind::Bool } else { Kind::Text }
            }
            Kind::AnyMap | Kind::Any => {
                if select.test {
                    Kind::Bool
                } else {
                    Kind::Any
                }
            }
            Kind::Wrong => Kind::Wrong,
            kind => self.refuse(format!("`.{}` is selected from {kind}, which has no fields", select.field)),
        }
    }

    fn field(&mut self, name: &str) -> Kind {
        let Some(field) = Field::of(name) else { return self.refuse(unknown_name(name)) };
        self.fields.insert(field);
        match field.kind() {
            FieldType::Text => Kind::Text,
            FieldType::Int => Kind::Int,
            FieldType::Bool => Kind::Bool,
            FieldType::TextOrNull => Kind::TextOrNull,
            FieldType::TextList => Kind::List(Element::Text),
            FieldType::TextMap => Kind::TextMap,
            FieldType::AnyMap => Kind::AnyMap,
        }
    }

    fn call(&mut self, part: &mut IdedExpr, depth: usize) -> Kind {
        let Expr::Call(call) = &mut part.expr else { return Kind::Wrong };
        if call.target.is_some() {
            return self.method(call, depth);
        }
        let name = call.func_name.clone();
        let mut kinds = Vec::with_capacity(call.args.len());
        for argument in &mut call.args {
            kinds.push(self.part(argument, depth + 1));
        }
        if kinds.contains(&Kind::Wrong) {
            return Kind::Wrong;
        }
        match (name.as_str(), kinds.as_slice()) {
            (operators::LOGICAL_AND | operators::LOGICAL_OR, [left, right]) => {
                self.need_bool(&name, *left);
                self.need_bool(&name, *right);
                Kind::Bool
            }
            (operators::LOGICAL_NOT, [inner]) => {
                self.need_bool(&name, *inner);
                Kind::Bool
            }
            (operators::CONDITIONAL, [test, yes, no]) => {
                self.need_bool("?:", *test);
                if yes == no { *yes } else { Kind::Any }
            }
            (operators::EQUALS | operators::NOT_EQUALS, [left, right]) => {
                if !comparable(*left, *right) {
                    return self.refuse(format!(
                        "{left} is compared with {right} by `{}`: they never are equal",
                        spelling(&name)
                    ));
                }
                let [first, second] = call.args.as_mut_slice() else { return Kind::Wrong };
                let normalised = literal::normalise_pair(first, second, &mut self.warnings);
                self.note(normalised);
                Kind::Bool
            }
            (
                operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS,
                [left, right],
            ) => {
                if !ordered(*left, *right) {
                    return self.refuse(format!("{left} and {right} have no order for `{}`", spelling(&name)));
                }
                Kind::Bool
            }
            (operators::IN, [needle, haystack]) => self.membership(call, *needle, *haystack),
            (operators::INDEX, [container, index]) => self.index(call, *container, *index),
            (operators::ADD, [Kind::Text, Kind::Text]) => Kind::Text,
            (
                operators::ADD | operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO,
                [left, right],
            ) => match (left, right) {
                (Kind::Int, Kind::Int) => Kind::Int,
                (Kind::Double, Kind::Double) if name != operators::MODULO => Kind::Double,
                (Kind::Any, Kind::Any | Kind::Int | Kind::Double) | (Kind::Int | Kind::Double, Kind::Any) => Kind::Any,
                (Kind::Any | Kind::Text, Kind::Any | Kind::Text) if name == operators::ADD => Kind::Text,
                _ => self.refuse(format!("`{}` does not work on {left} and {right}", spelling(&name))),
            },
            (operators::NEGATE, [inner @ (Kind::Int | Kind::Double | Kind::Any)]) => *inner,
            ("size", [argument]) => self.size(*argument),
            ("int", [Kind::Int | Kind::Double | Kind::Text | Kind::TextOrNull | Kind::Any]) => Kind::Int,
            ("string", [Kind::Int | Kind::Double | Kind::Bool | Kind::Text | Kind::TextOrNull | Kind::Any]) => {
                Kind::Text
            }
            _ => self.refuse_call(&name, kinds.len()),
        }
    }

    fn method(&mut self, call: &mut CallExpr, depth: usize) -> Kind {
        let name = call.func_name.clone();
        let Some(target) = &mut call.target else { return Kind::Wrong };
        let on = self.part(target, depth + 1);
        let mut kinds = Vec::with_capacity(call.args.len());
        for argument in &mut call.args {
            kinds.push(self.part(argument, depth + 1));
        }
        if on == Kind::Wrong || kinds.contains(&Kind::Wrong) {
            return Kind::Wrong;
        }
        match (name.as_str(), kinds.as_slice()) {
            ("size", []) => self.size(on),
            ("startsWith" | "endsWith" | "contains" | "matches", [argument]) => {
                if !matches!(on, Kind::Text | Kind::TextOrNull | Kind::Any) {
                    return self.refuse(format!("{name}() is called on {on}; it works on strings"));
                }
                if !matches!(argument, Kind::Text | Kind::TextOrNull | Kind::Any) {
                    return self.refuse(format!("{name}() is given {argument}; it takes a string"));
                }
                let Some(argument) = call.args.first_mut() else { return Kind::Wrong };
                if name == "matches" {
                    return self.pattern(argument);
                }
                let whole = name == "endsWith";
                let normalised = literal::normalise_part(target, argument, whole, &mut self.warnings);
                self.note(normalised);
                Kind::Bool
            }
            _ => self.refuse_call(&name, kinds.len()),
        }
    }

    fn note(&mut self, normalised: Result<(), String>) {
        if let Err(reason) = normalised {
            self.refuse(reason);
        }
    }

    fn need_bool(&mut self, operator: &str, kind: Kind) {
        if !matches!(kind, Kind::Bool | Kind::Any | Kind::Wrong) {
            self.refuse(format!("`{}` is given {kind}; it needs bools", spelling(operator)));
        }
    }

    fn size(&mut self, of: Kind) -> Kind {
        match of {
            Kind::Text | Kind::TextOrNull | Kind::List(_) | Kind::TextMap | Kind::AnyMap | Kind::Any => Kind::Int,
            kind => self.refuse(format!("size() is given {kind}; it takes strings, lists and maps")),
        }
    }

    fn membership(&mut self, call: &mut CallExpr, needle: Kind, haystack: Kind) -> Kind {
        let [left, right] = call.args.as_mut_slice() else { return Kind::Wrong };
        match haystack {
            Kind::List(element) if comparable(needle, element.kind()) => {
                let normalised = literal::normalise_list(left, right, &mut self.constants, &mut self.warnings);
                self.note(normalised);
                Kind::Bool
            }
            Kind::List(element) => self.refuse(format!("{needle} is never in a list of {}s", bare(element.kind()))),
            Kind::TextMap if matches!(needle, Kind::Text | Kind::Any) => {
                literal::lower_header_key(left, &mut self.warnings);
                Kind::Bool
            }
            Kind::AnyMap if matches!(needle, Kind::Text | Kind::Any) => Kind::Bool,
            Kind::Any => Kind::Bool,
            _ => self.refuse(format!("`in` does not work on {needle} and {haystack}")),
        }
    }

    fn index(&mut self, call: &mut CallExpr, container: Kind, index: Kind) -> Kind {
        let [_, key] = call.args.as_mut_slice() else { return Kind::Wrong };
        match (container, index) {
            (Kind::TextMap, Kind::Text | Kind::Any) => {
                literal::lower_header_key(key, &mut self.warnings);
                Kind::Text
            }
            (Kind::List(element), Kind::Int | Kind::Any) => element.kind(),
            (Kind::AnyMap, Kind::Text | Kind::Any) | (Kind::Any, Kind::Text | Kind::Int | Kind::Any) => Kind::Any,
            _ => self.refuse(format!("{container} cannot be indexed with {index}")),
        }
    }

    fn pattern(&mut self, argument: &mut IdedExpr) -> Kind {
        let Expr::Literal(LiteralValue::String(source)) = &argument.expr else {
            return self.refuse("matches() takes a literal pattern only: it is compiled once, at load".to_owned());
        };
        match Pattern::compile(source.inner()) {
            Ok(pattern) => {
                argument.expr = self.constant(Box::new(pattern));
                Kind::Bool
            }
            Err(reason) => self.refuse(reason),
        }
    }

    /// A list of literals of one kind becomes a constant.
    fn list(&mut self, part: &mut IdedExpr) -> Kind {
        let Expr::List(list) = &part.expr else { return Kind::Wrong };
        let mut values: Vec<Box<dyn Val>> = Vec::with_capacity(list.elements.len());
        let mut element = None;
        for item in &list.elements {
            let Expr::Literal(literal) = &item.expr else {
                return self.refuse("lists may hold literals only".to_owned());
            };
            let (kind, value): (Element, Box<dyn Val>) = match literal {
                LiteralValue::String(text) => {
                    (Element::Text, Box::new(CelString::from(text.inner().to_owned())) as Box<dyn Val>)
                }
                LiteralValue::Int(int) => (Element::Int, Box::new(CelInt::from(*int.inner()))),
                LiteralValue::Double(double) => (Element::Double, Box::new(CelDouble::from(*double.inner()))),
                LiteralValue::Boolean(value) => (Element::Bool, Box::new(CelBool::from(*value.inner()))),
                LiteralValue::Null => (Element::Any, Box::new(CelNull)),
                LiteralValue::Bytes(_) | LiteralValue::UInt(_) => {
                    return self.refuse("lists may hold strings, ints, doubles, bools and null only".to_owned());
                }
            };
            if element.is_some_and(|known| known != kind) {
                return self.refuse("the literals of a list are of different types".to_owned());
            }
            element = Some(kind);
            values.push(value);
        }
        part.expr = self.constant(Box::new(CelList::from(values)));
        Kind::List(element.unwrap_or(Element::Any))
    }

    fn constant(&mut self, value: Box<dyn Val>) -> Expr {
        self.constants.push(value);
        Expr::Ident(format!("@{}", self.constants.len() - 1))
    }

    /// `list.exists(x, …)` and `list.all(x, …)`, as the parser expands them; nothing else.
    fn comprehension(&mut self, comprehension: &mut ComprehensionExpr, depth: usize) -> Kind {
        const ONLY: &str = "of the comprehensions only exists(x, …) and all(x, …) over a list are supported";
        if self.variable.is_some() {
            return self.refuse("comprehensions cannot be nested".to_owned());
        }
        let accumulator = comprehension.accu_var.clone();
        let is_accumulator = |part: &IdedExpr| matches!(&part.expr, Expr::Ident(name) if *name == accumulator);
        let Expr::Literal(LiteralValue::Boolean(start)) = &comprehension.accu_init.expr else {
            return self.refuse(ONLY.to_owned());
        };
        let operator = if *start.inner() { operators::LOGICAL_AND } else { operators::LOGICAL_OR };
        if !is_accumulator(&comprehension.result) || comprehension.iter_var2.is_some() {
            return self.refuse(ONLY.to_owned());
        }
        let variable = comprehension.iter_var.clone();
        if field::NAMESPACES.contains(&variable.as_str()) || variable == accumulator {
            return self.refuse(format!("`{variable}` cannot be the variable of a comprehension: it has a meaning"));
        }
        let range = self.part(&mut comprehension.iter_range, depth + 1);
        let Expr::Call(step) = &mut comprehension.loop_step.expr else { return self.refuse(ONLY.to_owned()) };
        let [first, body] = step.args.as_mut_slice() else { return self.refuse(ONLY.to_owned()) };
        if step.func_name != operator || step.target.is_some() || !is_accumulator(first) {
            return self.refuse(ONLY.to_owned());
        }
        let element = match range {
            Kind::List(element) => element.kind(),
            Kind::Any => Kind::Any,
            Kind::Wrong => return Kind::Wrong,
            kind => return self.refuse(format!("exists() and all() go over lists, not {kind}")),
        };
        self.variable = Some((variable, element));
        // The step's own node lies between.
        let body = self.part(body, depth + 2);
        self.variable = None;
        self.need_bool("exists() or all()", body);
        Kind::Bool
    }

    fn refuse_call(&mut self, name: &str, arguments: usize) -> Kind {
        const KNOWN: &[&str] =
            &["startsWith", "endsWith", "contains", "matches", "size", "int", "string", "exists", "all", "has"];
        if KNOWN.contains(&name) {
            return self.refuse(format!("{name}() cannot be used this way, with {arguments} argument(s)"));
        }
        if spelling(name) != name {
            return self.refuse(format!("`{}` cannot be used this way", spelling(name)));
        }
        match field::nearest(name, KNOWN.iter().copied()) {
            Some(near) => self.refuse(format!("there is no function {name}(); did you mean {near}()?")),
            None => self.refuse(format!("there is no function {name}(); there are {}", KNOWN.join(", "))),
        }
    }
}

fn unknown_name(name: &str) -> String {
    match field::nearest_field(name) {
        Some(near) => format!("there is no field `{name}`; did you mean `{near}`?"),
        None => format!("there is no field `{name}`"),
    }
}

fn comparable(left: Kind, right: Kind) -> bool {
    use Kind::{Any, Double, Int, Null, Text, TextOrNull, Wrong};
    match (left, right) {
        (Any | Wrong, _) | (_, Any | Wrong) => true,
        (Text | Null, TextOrNull) | (TextOrNull, Text | Null) => true,
        (Int, Double) | (Double, Int) => true,
        (Kind::List(left), Kind::List(right)) => {
            left == right || matches!(left, Element::Any) || matches!(right, Element::Any)
        }
        (left, right) => left == right,
    }
}

fn ordered(left: Kind, right: Kind) -> bool {
    let orderable = |kind| matches!(kind, Kind::Int | Kind::Double | Kind::Text | Kind::TextOrNull | Kind::Any);
    orderable(left) && orderable(right) && comparable(left, right)
}

fn bare(kind: Kind) -> &'static str {
    match kind {
        Kind::Bool => "bool",
        Kind::Int => "int",
        Kind::Double => "double",
        Kind::Text => "string",
        _ => "value",
    }
}

/// An operator as users write it; other names stay.
fn spelling(name: &str) -> &str {
    match name {
        operators::LOGICAL_AND => "&&",
        operators::LOGICAL_OR => "||",
        operators::LOGICAL_NOT => "!",
        operators::CONDITIONAL => "?:",
        operators::EQUALS => "==",
        operators::NOT_EQUALS => "!=",
        operators::LESS => "<",
        operators::LESS_EQUALS => "<=",
        operators::GREATER => ">",
        operators::GREATER_EQUALS => ">=",
        operators::IN => "in",
        operators::INDEX => "[]",
        operators::ADD => "+",
        operators::SUBSTRACT | operators::NEGATE => "-",
        operators::MULTIPLY => "*",
        operators::DIVIDE => "/",
        operators::MODULO => "%",
        other => other,
    }
}
