//! Literals that no field ever has, and suffixes that match more than they seem to.

use std::net::IpAddr;

use super::super::field::{Field, is_host};
use super::super::unparse::quoted;
use super::Remark;
use super::atoms::{Atom, Says};

/// The methods of RFC 9110 and RFC 5789.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"];
/// The highest TCP port.
const PORT_MAX: i64 = 65_535;

/// A part that can never hold, whatever stands beside it.
pub(super) fn never(atom: &Atom) -> Option<Remark> {
    match &atom.says {
        Says::Within(Field::NetworkPort, low, high) if *low > PORT_MAX || *high < 1 => {
            Some(("no port is outside 1 to 65535".to_owned(), "a port from 1 to 65535".to_owned()))
        }
        // One that can hold among those that cannot is enough.
        Says::Among(field, texts) => {
            let mut remarks = texts.iter().map(|text| never_is(*field, text));
            remarks.next().flatten().filter(|_| remarks.all(|remark| remark.is_some()))
        }
        Says::StartsWith(Field::HttpPath, text) if !(text.is_empty() || text.starts_with(['/', '*'])) => {
            Some(("`http.path` begins with `/`".to_owned(), format!("`http.path.startsWith({})`", rooted(text))))
        }
        _ => None,
    }
}

/// Why `field` is never `text`.
fn never_is(field: Field, text: &str) -> Option<Remark> {
    let name = field.name();
    let instead = |better: &str| format!("`{name} == {}`", quoted(better));
    match field {
        Field::HttpScheme if !matches!(text, "http" | "https") => {
            let bare = text.trim_end_matches("://").to_ascii_lowercase();
            let better = if matches!(&*bare, "http" | "https") { bare } else { "https".to_owned() };
            Some((format!("`{name}` is \"http\" or \"https\""), instead(&better)))
        }
        Field::NetworkProtocol if text.chars().any(|c| c.is_ascii_uppercase()) => {
            Some((format!("`{name}` is in lower case"), instead(&text.to_ascii_lowercase())))
        }
        Field::DnsRecordType if text.chars().any(|c| c.is_ascii_lowercase()) => {
            Some((format!("`{name}` is in upper case"), instead(&text.to_ascii_uppercase())))
        }
        Field::TlsVersion if !matches!(text, "1.0" | "1.1" | "1.2" | "1.3") => {
            let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
            let better = if matches!(digits, "1.0" | "1.1" | "1.2" | "1.3") { digits } else { "1.3" };
            Some((format!("`{name}` is a version such as \"1.3\""), instead(better)))
        }
        Field::HttpPath if !(text.starts_with('/') || text == "*") => {
            Some((format!("`{name}` begins with `/`"), format!("`{name} == {}`", rooted(text))))
        }
        Field::NetworkIp => match text.parse::<IpAddr>() {
            Ok(address) if address.to_canonical().to_string() == text => None,
            Ok(address) => {
                Some((format!("`{name}` has one form of an address"), instead(&address.to_canonical().to_string())))
            }
            Err(_) if text.contains('/') => Some((
                format!("`{name}` is one address, not a network"),
                format!("`{name}.startsWith({})` or the like", quoted("10.")),
            )),
            Err(_) => Some((format!("`{name}` is an IP address"), "`http.host` or `dns.query` for a name".to_owned())),
        },
        _ => None,
    }
}

/// A part that says something else than it seems to.
pub(super) fn misleading(atom: &Atom) -> Option<Remark> {
    match &atom.says {
        Says::EndsWith(field, text) if is_host(*field) && looks_like_a_port(text) => Some((
            format!("`{}` never ends with a port", field.name()),
            format!("`network.port == {}`", text.rsplit(':').next().unwrap_or(text)),
        )),
        // A suffix that begins with a hyphen goes on with a label on purpose.
        Says::EndsWith(field, text) if is_host(*field) && !text.is_empty() && !text.starts_with(['.', '-', ':']) => {
            let name = field.name();
            let dotted = quoted(&format!(".{text}"));
            Some((
                format!("`{}` also matches \"not{text}\"", atom.text),
                format!("`({name} == {} || {name}.endsWith({dotted}))`", quoted(text)),
            ))
        }
        Says::Among(Field::HttpMethod, texts) => texts.iter().find_map(|text| {
            let upper = text.to_ascii_uppercase();
            (upper != *text && METHODS.contains(&&*upper)).then(|| {
                let what = format!("methods are case-sensitive: clients send {}, not {}", quoted(&upper), quoted(text));
                (what, format!("`http.method == {}`", quoted(&upper)))
            })
        }),
        Says::Among(Field::AgentName, texts) => texts.iter().find(|text| ends_in_number(text)).map(|text| {
            let what = format!(
                "`agent.name` is the container's name without a trailing `-digits`: this means {text}-1, not {text}"
            );
            (what, format!("`agent.container == {}`", quoted(text)))
        }),
        _ => None,
    }
}

fn rooted(text: &str) -> String {
    quoted(&format!("/{text}"))
}

/// `a.com:443`, or the port of a web server alone; an IPv6 address may end like that, but no rule means it so.
fn looks_like_a_port(text: &str) -> bool {
    let Some((before, port)) = text.rsplit_once(':') else { return false };
    let is_port = !port.is_empty() && port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    is_port && (before.contains('.') || (before.is_empty() && matches!(port, "80" | "443" | "8080" | "8443")))
}

/// `worker-1`
fn ends_in_number(text: &str) -> bool {
    text.rsplit_once('-').is_some_and(|(before, digits)| {
        !before.is_empty() && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}
