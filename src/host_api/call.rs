//! One request, read: query parameters and JSON body. What is not understood is refused, never skipped.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::unix_http::{Request, Response, Ticket};

use super::respond::failed;

/// Longest query read, in parameters: no resource has more than a handful.
const PARAMETERS_MAX: usize = 16;

/// A request on its way through a handler.
pub(super) struct Call {
    pub(super) ticket: Ticket,
    pub(super) request: Request,
    /// The end of the path where the route has one, decoded (`/rule/ID`).
    pub(super) name: String,
}

/// The body of a request that takes none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

impl Call {
    /// The body as JSON; an empty one is `{}`. Unknown fields are refused by the types.
    pub(super) fn body<T: DeserializeOwned>(&self) -> Result<T, Response> {
        let body: &[u8] = if self.request.body.is_empty() { b"{}" } else { &self.request.body };
        // serde would take a list for a struct, field by field; the API takes objects only.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(failed(400, "the body of this request is no JSON object"));
        }
        serde_json::from_slice(body).map_err(|error| failed(400, format!("the body of this request is wrong: {error}")))
    }

    /// Refuses a body with anything in it.
    pub(super) fn no_body(&self) -> Result<(), Response> {
        self.body::<Nothing>().map(|_| ())
    }

    /// The values of the query parameters `known`, in their order; others, and doubles, are refused.
    pub(super) fn query<const N: usize>(&self, known: [&str; N]) -> Result<[Option<String>; N], Response> {
        parse_query(self.request.query.as_deref().unwrap_or(""), known).map_err(|error| failed(400, error))
    }
}

fn parse_query<const N: usize>(query: &str, known: [&str; N]) -> Result<[Option<String>; N], String> {
    let mut values = [const { None }; N];
    for (count, part) in query.split('&').filter(|part| !part.is_empty()).enumerate() {
        if count == PARAMETERS_MAX {
            return Err(format!("more than {PARAMETERS_MAX} query parameters"));
        }
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let name = decoded(name, true)?;
        let Some(place) = known.iter().position(|known| *known == name) else {
            let known = if N == 0 { "none is known here".to_owned() } else { format!("known: {}", known.join(", ")) };
            return Err(format!("unknown query parameter `{name}` ({known})"));
        };
        if values[place].replace(decoded(value, true)?).is_some() {
            return Err(format!("query parameter `{name}` is given twice"));
        }
    }
    Ok(values)
}

/// `true` or `false` of a query parameter; absent is `false`.
pub(super) fn flag(name: &str, value: Option<&str>) -> Result<bool, Response> {
    match value {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(failed(400, format!("query parameter `{name}` is true or false, not `{other}`"))),
    }
}

/// Percent-decoding (RFC 3986 2.1); in a query `+` is a space, as forms write it.
pub(super) fn decoded(text: &str, query: bool) -> Result<String, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
                match (digit(bytes.next()), digit(bytes.next())) {
                    // Two digits of 4 bits: at most 255.
                    (Some(high), Some(low)) => out.push((high * 16 + low) as u8),
                    _ => return Err("a `%` that no two hex digits follow".to_owned()),
                }
            }
            b'+' if query => out.push(b' '),
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).map_err(|_| "percent-encoding that is no UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_parameters_are_decoded() {
        assert_eq!(parse_query("name=a%2Db+c", ["name"]), Ok([Some("a-b c".to_owned())]));
        assert_eq!(parse_query("", ["name"]), Ok([None]));
        assert_eq!(parse_query("entries", ["entries"]), Ok([Some(String::new())]));
    }

    #[test]
    fn unknown_double_and_broken_parameters_are_named() {
        assert!(parse_query("nam=x", ["name"]).unwrap_err().contains("`nam`"));
        assert!(parse_query("x=1", []).unwrap_err().contains("none is known"));
        assert!(parse_query("name=a&name=b", ["name"]).unwrap_err().contains("twice"));
        assert!(parse_query("name=%2", ["name"]).is_err());
        assert!(parse_query("name=%ff", ["name"]).is_err());
        assert!(parse_query(&"name=x&".repeat(20), ["name"]).is_err());
    }

    #[test]
    fn flags_are_words() {
        assert_eq!(flag("entries", Some("true")), Ok(true));
        assert_eq!(flag("entries", None), Ok(false));
        assert_eq!(flag("entries", Some("1")).unwrap_err().status, 400);
    }
}
