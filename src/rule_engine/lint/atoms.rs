//! Conditions as alternatives of atoms, and what can be proved of them without evaluating.
//!
//! Everything here errs towards "not proved": an atom that is not understood is equal to nothing but its own text.

use std::collections::BTreeSet;

use cel_interpreter::common::ast::{Expr, IdedExpr, LiteralValue, operators};
use cel_interpreter::common::types::{CelInt, CelList, CelString};

use super::super::condition::Condition;
use super::super::field::Field;
use super::super::literal::{as_constant, as_field, as_text};
use super::super::unparse;

/// Alternatives of one condition; one with more is not looked into.
const ALTERNATIVES_MAX: usize = 256;
/// Atoms of one alternative, for the same reason.
const ATOMS_MAX: usize = 64;

/// A part without `&&` and `||`, and what it says where that is understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Atom {
    /// As CEL.
    pub(super) text: String,
    pub(super) says: Says,
}

/// What an atom says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// The field is one of these.
    Among(Field, BTreeSet<String>),
    /// The field is none of these.
    NotAmong(Field, BTreeSet<String>),
    /// It ends, begins, is found inside.
    EndsWith(Field, String),
    StartsWith(Field, String),
    Contains(Field, String),
    /// The number is in this range, both ends included.
    Within(Field, i64, i64),
    /// Always so, or never.
    Constant(bool),
    /// Something else; `Some` is the text of what it negates.
    Other(Option<String>),
}

impl Says {
    /// The field, where it is about one.
    pub(super) fn field(&self) -> Option<Field> {
        match self {
            Says::Among(field, _)
            | Says::NotAmong(field, _)
            | Says::EndsWith(field, _)
            | Says::StartsWith(field, _)
            | Says::Contains(field, _)
            | Says::Within(field, ..) => Some(*field),
            Says::Constant(_) | Says::Other(_) => None,
        }
    }
}

/// One way in which a condition can hold: all of these.
pub(super) type Alternative = Vec<Atom>;

/// The alternatives of `condition`; `None` when there are too many.
pub(super) fn alternatives(condition: &Condition) -> Option<Vec<Alternative>> {
    alternatives_of(&condition.expression, condition)
}

/// The alternatives of a part of `condition`.
pub(super) fn alternatives_of(part: &IdedExpr, condition: &Condition) -> Option<Vec<Alternative>> {
    if let Expr::Call(call) = &part.expr
        && call.target.is_none()
        && let [left, right] = call.args.as_slice()
    {
        if call.func_name == operators::LOGICAL_OR {
            let mut all = alternatives_of(left, condition)?;
            all.extend(alternatives_of(right, condition)?);
            return (all.len() <= ALTERNATIVES_MAX).then_some(all);
        }
        if call.func_name == operators::LOGICAL_AND {
            let (left, right) = (alternatives_of(left, condition)?, alternatives_of(right, condition)?);
            if left.len() * right.len() > ALTERNATIVES_MAX {
                return None;
            }
            let mut all = Vec::with_capacity(left.len() * right.len());
            for one in &left {
                for other in &right {
                    if one.len() + other.len() > ATOMS_MAX {
                        return None;
                    }
                    all.push(one.iter().chain(other).cloned().collect());
                }
            }
            return Some(all);
        }
    }
    Some(vec![vec![atom(part, condition)]])
}

/// One part, understood as far as it goes.
fn atom(part: &IdedExpr, condition: &Condition) -> Atom {
    Atom { text: unparse::whole(part, &condition.constants), says: says(part, condition) }
}

fn says(part: &IdedExpr, condition: &Condition) -> Says {
    let negated = |inner: &IdedExpr| Says::Other(Some(unparse::whole(inner, &condition.constants)));
    match &part.expr {
        Expr::Literal(LiteralValue::Boolean(value)) => Says::Constant(*value.inner()),
        Expr::Call(call) => match (call.func_name.as_str(), &call.target, call.args.as_slice()) {
            (operators::LOGICAL_NOT, None, [inner]) => match says(inner, condition) {
                Says::Among(field, texts) => Says::NotAmong(field, texts),
                Says::NotAmong(field, texts) => Says::Among(field, texts),
                Says::Constant(value) => Says::Constant(!value),
                _ => negated(inner),
            },
            (operators::EQUALS, None, [left, right]) => equality(left, right),
            (operators::NOT_EQUALS, None, [left, right]) => match equality(left, right) {
                Says::Among(field, texts) => Says::NotAmong(field, texts),
                _ => Says::Other(None),
            },
            (operators::IN, None, [needle, haystack]) => membership(needle, haystack, condition),
            (
                operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS,
                None,
                [left, right],
            ) => range(&call.func_name, left, right),
            ("endsWith", Some(target), [argument]) => on_text(target, argument, Says::EndsWith),
            ("startsWith", Some(target), [argument]) => on_text(target, argument, Says::StartsWith),
            ("contains", Some(target), [argument]) => on_text(target, argument, Says::Contains),
            _ => Says::Other(None),
        },
        _ => Says::Other(None),
    }
}

fn on_text(target: &IdedExpr, argument: &IdedExpr, make: fn(Field, String) -> Says) -> Says {
    match (as_field(target), as_text(argument)) {
        (Some(field), Some(text)) => make(field, text.to_owned()),
        _ => Says::Other(None),
    }
}

fn as_int(part: &IdedExpr) -> Option<i64> {
    match &part.expr {
        Expr::Literal(LiteralValue::Int(value)) => Some(*value.inner()),
        _ => None,
    }
}

fn equality(left: &IdedExpr, right: &IdedExpr) -> Says {
    let (field, literal) = match (as_field(left), as_field(right)) {
        (Some(field), None) => (field, right),
        (None, Some(field)) => (field, left),
        _ => return Says::Other(None),
    };
    if let Some(text) = as_text(literal) {
        return Says::Among(field, BTreeSet::from([text.to_owned()]));
    }
    match as_int(literal) {
        Some(number) => Says::Within(field, number, number),
        None => Says::Other(None),
    }
}

fn membership(needle: &IdedExpr, haystack: &IdedExpr, condition: &Condition) -> Says {
    let list = as_constant(haystack)
        .and_then(|number| condition.constants.get(number))
        .and_then(|constant| constant.downcast_ref::<CelList>());
    let (Some(field), Some(list)) = (as_field(needle), list) else { return Says::Other(None) };
    let texts: Option<BTreeSet<String>> =
        list.iter().map(|item| item.downcast_ref::<CelString>().map(|text| text.inner().to_owned())).collect();
    if let Some(texts) = texts {
        return Says::Among(field, texts);
    }
    let numbers: Option<Vec<i64>> =
        list.iter().map(|item| item.downcast_ref::<CelInt>().map(|number| *number.inner())).collect();
    match numbers.as_deref() {
        Some([only]) => Says::Within(field, *only, *only),
        _ => Says::Other(None),
    }
}

fn range(operator: &str, left: &IdedExpr, right: &IdedExpr) -> Says {
    let (field, number, turned) = match (as_field(left), as_int(right), as_int(left), as_field(right)) {
        (Some(field), Some(number), _, _) => (field, number, false),
        (_, _, Some(number), Some(field)) => (field, number, true),
        _ => return Says::Other(None),
    };
    let below = matches!(operator, operators::LESS | operators::LESS_EQUALS) != turned;
    let strict = matches!(operator, operators::LESS | operators::GREATER);
    if below {
        Says::Within(field, i64::MIN, number.saturating_sub(i64::from(strict)))
    } else {
        Says::Within(field, number.saturating_add(i64::from(strict)), i64::MAX)
    }
}

/// Two of an alternative's atoms (or one) that cannot hold together.
pub(super) fn contradiction(alternative: &[Atom]) -> Option<(&Atom, Option<&Atom>)> {
    for (number, one) in alternative.iter().enumerate() {
        match &one.says {
            Says::Constant(false) => return Some((one, None)),
            Says::Among(_, texts) if texts.is_empty() => return Some((one, None)),
            Says::Within(_, low, high) if low > high => return Some((one, None)),
            _ => {}
        }
        if let Some(other) = alternative[number + 1..].iter().find(|other| excludes(one, other)) {
            return Some((one, Some(other)));
        }
    }
    None
}

fn excludes(one: &Atom, other: &Atom) -> bool {
    use Says::{Among, Contains, EndsWith, NotAmong, Other, StartsWith, Within};
    let negates = |atom: &Atom, text: &str| matches!(&atom.says, Other(Some(inner)) if inner == text);
    if negates(one, &other.text) || negates(other, &one.text) {
        return true;
    }
    if one.says.field().is_none() || one.says.field() != other.says.field() {
        return false;
    }
    match (&one.says, &other.says) {
        (Among(_, left), Among(_, right)) => left.is_disjoint(right),
        (Among(_, texts), NotAmong(_, not)) | (NotAmong(_, not), Among(_, texts)) => texts.is_subset(not),
        (Among(_, texts), EndsWith(_, end)) | (EndsWith(_, end), Among(_, texts)) => {
            !texts.iter().any(|text| text.ends_with(end))
        }
        (Among(_, texts), StartsWith(_, start)) | (StartsWith(_, start), Among(_, texts)) => {
            !texts.iter().any(|text| text.starts_with(start))
        }
        (Among(_, texts), Contains(_, part)) | (Contains(_, part), Among(_, texts)) => {
            !texts.iter().any(|text| text.contains(part))
        }
        (EndsWith(_, left), EndsWith(_, right)) => !(left.ends_with(right) || right.ends_with(left)),
        (StartsWith(_, left), StartsWith(_, right)) => !(left.starts_with(right) || right.starts_with(left)),
        (Within(_, low, high), Within(_, other_low, other_high)) => low.max(other_low) > high.min(other_high),
        _ => false,
    }
}

/// True when each alternative of `narrow` is proved to be inside some alternative of `wide`.
pub(super) fn implies(narrow: &[Alternative], wide: &[Alternative]) -> bool {
    !narrow.is_empty()
        && narrow.iter().all(|narrow| {
            wide.iter().any(|wide| wide.iter().all(|wide| narrow.iter().any(|narrow| atom_implies(narrow, wide))))
        })
}

/// A part that holds has its fields known, so that what follows from it holds too, and not only if it is known.
fn atom_implies(narrow: &Atom, wide: &Atom) -> bool {
    use Says::{Among, Constant, Contains, EndsWith, NotAmong, StartsWith, Within};
    if wide.says == Constant(true) || narrow.text == wide.text {
        return true;
    }
    if narrow.says.field().is_none() || narrow.says.field() != wide.says.field() {
        return false;
    }
    match (&narrow.says, &wide.says) {
        (Among(_, texts), Among(_, all)) => texts.is_subset(all),
        (Among(_, texts), NotAmong(_, not)) => texts.is_disjoint(not),
        (Among(_, texts), EndsWith(_, end)) => texts.iter().all(|text| text.ends_with(end)),
        (Among(_, texts), StartsWith(_, start)) => texts.iter().all(|text| text.starts_with(start)),
        (Among(_, texts), Contains(_, part)) => texts.iter().all(|text| text.contains(part)),
        (EndsWith(_, long), EndsWith(_, short)) => long.ends_with(short),
        (StartsWith(_, long), StartsWith(_, short)) => long.starts_with(short),
        (EndsWith(_, long) | StartsWith(_, long) | Contains(_, long), Contains(_, short)) => long.contains(short),
        (EndsWith(_, end), NotAmong(_, not)) => !not.iter().any(|text| text.ends_with(end)),
        (NotAmong(_, more), NotAmong(_, fewer)) => fewer.is_subset(more),
        (Within(_, low, high), Within(_, least, most)) => least <= low && high <= most,
        _ => false,
    }
}
