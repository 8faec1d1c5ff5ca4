//! Literals that stand beside a host name or a header name, put into the form that the other side has.
//!
//! A literal that can never hold as it is written is either put right, with a warning, or refused: left alone, it
//! would make an allow rule dead and, worse, a block rule blind.

use cel_interpreter::common::ast::{Expr, IdedExpr, LiteralValue};
use cel_interpreter::common::types::{CelList, CelString};
use cel_interpreter::common::value::Val;

use crate::names::Host;

use super::field::{self, Field, is_host};

/// The field that `part` is, if it is nothing but a field.
pub(super) fn as_field(part: &IdedExpr) -> Option<Field> {
    let Expr::Select(select) = &part.expr else { return None };
    let Expr::Ident(namespace) = &select.operand.expr else { return None };
    if select.test || !field::NAMESPACES.contains(&namespace.as_str()) {
        return None;
    }
    Field::of(&format!("{namespace}.{}", select.field))
}

/// The text of a string literal.
pub(super) fn as_text(part: &IdedExpr) -> Option<&str> {
    match &part.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

/// The number of a constant, `@N`.
pub(super) fn as_constant(part: &IdedExpr) -> Option<usize> {
    match &part.expr {
        Expr::Ident(name) => name.strip_prefix('@')?.parse().ok(),
        _ => None,
    }
}

fn set_text(part: &mut IdedExpr, text: String) {
    part.expr = Expr::Literal(LiteralValue::String(CelString::from(text)));
}

/// `host == "literal"`, either way round.
pub(super) fn normalise_pair(
    left: &mut IdedExpr,
    right: &mut IdedExpr,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let (field, literal) = match (as_field(left), as_field(right)) {
        (Some(field), None) if is_host(field) => (field, right),
        (None, Some(field)) if is_host(field) => (field, left),
        _ => return Ok(()),
    };
    let Some(text) = as_text(literal) else { return Ok(()) };
    if let Some(normal) = whole_host(field, text, warnings)? {
        set_text(literal, normal);
    }
    Ok(())
}

/// `host in ["literal", …]`: the list is a constant already.
pub(super) fn normalise_list(
    needle: &IdedExpr,
    haystack: &IdedExpr,
    constants: &mut [Box<dyn Val>],
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let Some(field) = as_field(needle).filter(|field| is_host(*field)) else { return Ok(()) };
    let Some(constant) = as_constant(haystack).and_then(|number| constants.get_mut(number)) else { return Ok(()) };
    let Some(list) = constant.downcast_ref::<CelList>() else { return Ok(()) };
    let mut items: Vec<Box<dyn Val>> = Vec::with_capacity(list.len());
    for item in list.iter() {
        let Some(text) = item.downcast_ref::<CelString>() else { return Ok(()) };
        let normal = whole_host(field, text.inner(), warnings)?;
        items.push(Box::new(CelString::from(normal.unwrap_or_else(|| text.inner().to_owned()))));
    }
    *constant = Box::new(CelList::from(items));
    Ok(())
}

/// `host.endsWith("literal")` (`at_end`), `startsWith`, `contains`.
pub(super) fn normalise_part(
    target: &IdedExpr,
    argument: &mut IdedExpr,
    at_end: bool,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let Some(field) = as_field(target).filter(|field| is_host(*field)) else { return Ok(()) };
    let Some(text) = as_text(argument) else { return Ok(()) };
    let name = field.name();
    // Colons are in IPv6 addresses, which hosts may be.
    if let Some(odd) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':'))) {
        return Err(format!("no `{name}` contains {odd:?}, as \"{text}\" does; names are in ASCII (xn--… for others)"));
    }
    let mut normal = text.to_ascii_lowercase();
    if at_end && normal.len() > 1 {
        let kept = normal.strip_suffix('.').unwrap_or(&normal).len();
        normal.truncate(kept);
    }
    if normal != text {
        warnings.push(format!("\"{text}\" is read as \"{normal}\": `{name}` is lower case without a trailing dot"));
        set_text(argument, normal);
    }
    Ok(())
}

/// `None` when `text` is in normal form already.
fn whole_host(field: Field, text: &str, warnings: &mut Vec<String>) -> Result<Option<String>, String> {
    let name = field.name();
    if text.is_empty() {
        return Ok(None);
    }
    let normal = match text.parse::<std::net::IpAddr>() {
        Ok(address) => address.to_canonical().to_string(),
        Err(_) => match Host::parse(text) {
            Ok(host) => host.to_text(),
            Err(error) => {
                let hint = if text.starts_with("*.") {
                    format!("; use `{name}.endsWith(\"{}\")`", text.trim_start_matches('*'))
                } else if text.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())) {
                    "; the port is in `network.port`".to_owned()
                } else {
                    String::new()
                };
                return Err(format!("`{name}` is never \"{text}\": {error}{hint}"));
            }
        },
    };
    if normal == text {
        return Ok(None);
    }
    warnings.push(format!("\"{text}\" is read as \"{normal}\": that is the one form `{name}` has"));
    Ok(Some(normal))
}

/// A header name in lower case, if it is not.
pub(super) fn header_name(name: &str, warnings: &mut Vec<String>) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    if lower == name {
        return None;
    }
    warnings.push(format!("the header \"{name}\" is read as \"{lower}\": header names are in lower case"));
    Some(lower)
}

/// The key of `http.headers["Name"]` or `"Name" in http.headers`, if it is a literal.
pub(super) fn lower_header_key(key: &mut IdedExpr, warnings: &mut Vec<String>) {
    if let Some(lower) = as_text(key).and_then(|text| header_name(text, warnings)) {
        set_text(key, lower);
    }
}
