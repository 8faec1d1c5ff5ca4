//! A compiled condition and its evaluation: true, not true, unknown, or an error.
//!
//! CEL itself evaluates. What is added here is the reading of its answer, and [`Condition::could`]: whether the
//! condition could become true if certain unknown fields were known.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use cel_interpreter::common::ast::{Expr, IdedExpr, operators};
use cel_interpreter::common::types::{BOOL_TYPE, CelBool, STRING_TYPE};
use cel_interpreter::common::value::{CowVal, Val};
use cel_interpreter::{Env, ExecutionError, Value};

use super::facts::{Facts, Scope};
use super::field::{ADDRESS, BODY, Field, FieldSet};
use super::pattern::{self, PATTERN_TYPE};

/// The functions and operators that conditions have: CEL's standard library without optional values, and
/// `matches` on patterns that were compiled at load.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut environment = Env::default().with_optional_support(false).with_stdlib();
    // Declared once, here, in an environment that has no `matches` (cel is built without its regex feature), so the
    // only error, a duplicate, cannot happen; if it did, `matches` would be undeclared and its conditions err.
    let declared = environment.add_member_overload(
        "matches",
        "string_matches_pattern",
        STRING_TYPE.to_owned(),
        vec![PATTERN_TYPE.to_owned()],
        pattern::matches,
    );
    debug_assert!(declared.is_ok());
    Arc::new(environment)
});

/// A condition that passed every check.
#[derive(Debug)]
pub(super) struct Condition {
    /// The checked expression: literals normalised, constant lists and patterns replaced by `@N`.
    pub(super) expression: IdedExpr,
    /// What `@N` stands for.
    pub(super) constants: Vec<Box<dyn Val>>,
    /// The fields it names.
    pub(super) fields: FieldSet,
    /// What the operator should hear about it (a literal that was put into normal form).
    pub(super) warnings: Vec<String>,
}

/// What an evaluation says.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Exactly `true`: the rule matches.
    True,
    /// Exactly `false`.
    False,
    /// Undecided for want of these fields.
    Unknown(FieldSet),
    /// The evaluation failed although everything it asked for was known.
    Failed(Fault),
}

/// Why an evaluation failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// CEL says so.
    Execution(ExecutionError),
    /// The answer is no bool but of this type.
    NotBool(String),
    /// The evaluator panicked: our bug or the library's.
    Panicked,
}

impl Fault {
    /// What kind of failure, without any value in it: fit for logs.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Fault::Execution(error) => match error {
                ExecutionError::NoSuchKey(_) => "a map has no such key",
                ExecutionError::IndexOutOfBounds(_) => "a list is shorter than the index",
                ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "a division by zero",
                ExecutionError::Overflow(..) => "a number overflows",
                ExecutionError::FunctionError { .. } => "a function refuses its argument",
                _ => "a value is of another type than the condition expects",
            },
            Fault::NotBool(_) => "the condition gives no bool",
            Fault::Panicked => "the evaluator panicked",
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Execution(error) => write!(f, "{}: {error}", self.kind()),
            Fault::NotBool(kind) => write!(f, "{}, but {kind}", self.kind()),
            Fault::Panicked => f.write_str(self.kind()),
        }
    }
}

/// Whether a part of a condition can become true, and whether it can become false.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Can {
    be_true: bool,
    be_false: bool,
}

impl Can {
    const BOTH: Can = Can { be_true: true, be_false: true };
    const NEITHER: Can = Can { be_true: false, be_false: false };

    fn only(value: bool) -> Can {
        Can { be_true: value, be_false: !value }
    }
}

impl Condition {
    /// Evaluates against `facts`, with `hidden` fields taken as unknown.
    pub(super) fn evaluate(&self, facts: &Facts<'_>, hidden: FieldSet) -> Outcome {
        self.evaluate_part(&self.expression, facts, hidden)
    }

    /// Evaluates one part of this condition, a bool, by itself.
    pub(super) fn evaluate_part(&self, part: &IdedExpr, facts: &Facts<'_>, hidden: FieldSet) -> Outcome {
        let scope = Scope::new(facts, &self.constants, hidden);
        match evaluate(part, &scope) {
            Ok(true) => Outcome::True,
            Ok(false) => Outcome::False,
            // CEL: an unknown outranks an error. Once it is known, the error, if it is still one, is counted.
            Err(fault) => {
                let noted = scope.noted();
                if noted.is_empty() { Outcome::Failed(fault) } else { Outcome::Unknown(noted) }
            }
        }
    }

    /// True when some values of the `open` fields could make this condition true, everything else staying as
    /// `facts` has it. Parts that read an open field count as independent of each other, so this errs towards
    /// "could" (`ip == A && ip == B`), never away from it.
    pub(super) fn could(&self, facts: &Facts<'_>, open: FieldSet) -> bool {
        if self.fields.and(open).is_empty() {
            return matches!(self.evaluate(facts, FieldSet::EMPTY), Outcome::True);
        }
        let walk = Walk { facts, constants: &self.constants, open };
        walk.part(&self.expression).be_true
    }

    /// True when the condition reads the body or its size.
    pub(super) fn reads_body(&self) -> bool {
        !self.fields.and(BODY).is_empty()
    }

    /// True when the condition reads the destination address.
    pub(super) fn reads_address(&self) -> bool {
        !self.fields.and(ADDRESS).is_empty()
    }
}

fn evaluate(expression: &IdedExpr, scope: &Scope<'_, '_>) -> Result<bool, Fault> {
    // The panic's message is on stderr by the hook; nothing here is left half changed by it: the scope is only read
    // afterwards, and its one mutable part is an atomic set.
    catch_unwind(AssertUnwindSafe(|| {
        let mut context = cel_interpreter::Context::with_env(Arc::clone(&ENVIRONMENT));
        context.set_variable_resolver(scope);
        match Value::resolve_val(expression, &context) {
            Ok(value) => as_bool(&value),
            Err(error) => Err(Fault::Execution(error)),
        }
    }))
    .unwrap_or(Err(Fault::Panicked))
}

fn as_bool(value: &CowVal<'_, '_>) -> Result<bool, Fault> {
    match value.downcast_ref::<CelBool>() {
        Some(value) if *value.get_type() == BOOL_TYPE => Ok(*value.inner()),
        _ => Err(Fault::NotBool(value.get_type().name().to_owned())),
    }
}

struct Walk<'w, 'a> {
    facts: &'w Facts<'a>,
    constants: &'w [Box<dyn Val>],
    open: FieldSet,
}

impl Walk<'_, '_> {
    fn part(&self, part: &IdedExpr) -> Can {
        let Expr::Call(call) = &part.expr else { return self.leaf(part) };
        match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::LOGICAL_AND, [left, right]) => {
                let (left, right) = (self.part(left), self.part(right));
                Can { be_true: left.be_true && right.be_true, be_false: left.be_false || right.be_false }
            }
            (operators::LOGICAL_OR, [left, right]) => {
                let (left, right) = (self.part(left), self.part(right));
                Can { be_true: left.be_true || right.be_true, be_false: left.be_false && right.be_false }
            }
            (operators::LOGICAL_NOT, [inner]) => {
                let inner = self.part(inner);
                Can { be_true: inner.be_false, be_false: inner.be_true }
            }
            (operators::CONDITIONAL, [test, yes, no]) => {
                let (test, yes, no) = (self.part(test), self.part(yes), self.part(no));
                Can {
                    be_true: (test.be_true && yes.be_true) || (test.be_false && no.be_true),
                    be_false: (test.be_true && yes.be_false) || (test.be_false && no.be_false),
                }
            }
            _ => self.leaf(part),
        }
    }

    /// A part without boolean structure of its own.
    fn leaf(&self, part: &IdedExpr) -> Can {
        let mut used = Used::default();
        used.visit(part);
        let scope = Scope::new(self.facts, self.constants, self.open);
        let missing = used.fields.without(scope.known());
        if missing.and(self.open).is_empty() {
            return evaluate(part, &scope).map_or(Can::NEITHER, Can::only);
        }
        // It reads an open field. If it also needs one that stays unknown, it stays unknown itself, unless
        // something inside may absorb that.
        if missing.without(self.open).is_empty() || used.absorbs { Can::BOTH } else { Can::NEITHER }
    }
}

/// The fields a part names, and whether anything in it can absorb an unknown.
#[derive(Default)]
pub(super) struct Used {
    pub(super) fields: FieldSet,
    absorbs: bool,
}

impl Used {
    pub(super) fn visit(&mut self, part: &IdedExpr) {
        match &part.expr {
            Expr::Call(call) => {
                let name = call.func_name.as_str();
                self.absorbs |= matches!(name, operators::LOGICAL_AND | operators::LOGICAL_OR | operators::CONDITIONAL);
                if let Some(target) = &call.target {
                    self.visit(target);
                }
                call.args.iter().for_each(|argument| self.visit(argument));
            }
            Expr::Comprehension(comprehension) => {
                self.absorbs = true;
                self.visit(&comprehension.iter_range);
                self.visit(&comprehension.loop_step);
            }
            Expr::Select(select) => {
                if let Expr::Ident(namespace) = &select.operand.expr
                    && let Some(field) = Field::of(&format!("{namespace}.{}", select.field))
                {
                    self.fields.insert(field);
                } else {
                    self.visit(&select.operand);
                }
            }
            Expr::List(list) => list.elements.iter().for_each(|element| self.visit(element)),
            Expr::Ident(_) | Expr::Literal(_) | Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => {}
        }
    }
}
