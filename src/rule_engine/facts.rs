//! A question's facts as CEL values: the variable resolver of an evaluation.
//!
//! A field that the context does not fill is answered with "no such variable", which CEL turns into an error that
//! `||` and `&&` absorb, and is noted; so an evaluation that ends in an error knows whether it was for want of a
//! field. Values borrow from the context.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use cel_interpreter::common::types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString};
use cel_interpreter::common::value::{CowVal, Val};
use cel_interpreter::context::VariableResolver;
use serde_json::Value as Json;

use super::field::{ALL, Field, FieldSet};
use super::{Body, Context};

/// Nesting of `run.context` beyond this many levels is cut to null: an evaluation recurses over it.
const JSON_DEPTH: usize = 16;

/// The facts of one question; maps are built once, when a condition first asks for them.
pub(super) struct Facts<'a> {
    context: Context<'a>,
    /// `http.body`, as the rules that are asked may see it; `Some(None)` is null.
    body: Option<Option<&'a str>>,
    headers: OnceLock<CelMap<'a>>,
    run_context: OnceLock<CelMap<'a>>,
}

impl<'a> Facts<'a> {
    /// As rules without `match_body` see them: a body that is there is null.
    pub(super) fn new(context: &Context<'a>) -> Self {
        let body = match context.http.body {
            Body::Unknown => None,
            Body::Unread | Body::Read(_) => Some(None),
        };
        Facts { context: *context, body, headers: OnceLock::new(), run_context: OnceLock::new() }
    }

    /// As rules with `match_body` see them.
    pub(super) fn with_body(context: &Context<'a>) -> Self {
        let body = match context.http.body {
            Body::Unknown | Body::Unread => None,
            Body::Read(body) => Some(body),
        };
        Facts { body, ..Self::new(context) }
    }

    /// The fields that the context fills.
    pub(super) fn known(&self) -> FieldSet {
        let mut known = FieldSet::EMPTY;
        ALL.iter().filter(|field| self.has(**field)).for_each(|field| known.insert(*field));
        known
    }

    /// A text field of the context.
    pub(super) fn text(&self, field: Field) -> Option<&'a str> {
        let context = &self.context;
        match field {
            Field::AgentName => context.agent.name,
            Field::AgentContainer => context.agent.container,
            Field::NetworkHostname => context.network.hostname,
            Field::NetworkIp => context.network.ip,
            Field::NetworkProtocol => context.network.protocol,
            Field::HttpMethod => context.http.method,
            Field::HttpPath => context.http.path,
            Field::HttpHost => context.http.host,
            Field::HttpScheme => context.http.scheme,
            Field::DnsQuery => context.dns.query,
            Field::DnsRecordType => context.dns.record_type,
            Field::TlsSni => context.tls.sni,
            Field::TlsVersion => context.tls.version,
            Field::DockerImage => context.docker.image,
            Field::RunTool => context.run.tool,
            Field::RunCwd => context.run.cwd,
            Field::NetworkPort
            | Field::HttpHeaders
            | Field::HttpBodySize
            | Field::HttpBody
            | Field::TlsAlpn
            | Field::TlsEch
            | Field::DockerCommand
            | Field::DockerVolumes
            | Field::DockerEnvKeys
            | Field::DockerCapabilities
            | Field::RunArgs
            | Field::RunFlags
            | Field::RunContext => None,
        }
    }

    fn list(&self, field: Field) -> Option<&'a [&'a str]> {
        let context = &self.context;
        match field {
            Field::TlsAlpn => context.tls.alpn,
            Field::DockerCommand => context.docker.command,
            Field::DockerVolumes => context.docker.volumes,
            Field::DockerEnvKeys => context.docker.env_keys,
            Field::DockerCapabilities => context.docker.capabilities,
            Field::RunArgs => context.run.args,
            Field::RunFlags => context.run.flags,
            _ => None,
        }
    }

    /// Whether the context fills a field.
    pub(super) fn has(&self, field: Field) -> bool {
        let context = &self.context;
        match field {
            Field::NetworkPort => context.network.port.is_some(),
            Field::HttpHeaders => context.http.headers.is_some(),
            Field::HttpBodySize => context.http.body_size.is_some(),
            Field::HttpBody => self.body.is_some(),
            Field::TlsEch => context.tls.ech.is_some(),
            Field::RunContext => context.run.context.is_some(),
            _ => self.text(field).is_some() || self.list(field).is_some(),
        }
    }

    /// A field's value for people; `None` when it is unknown. Of headers, bodies and agents' own words only what
    /// they are: their contents are nobody's business but the asker's.
    pub(super) fn shown(&self, field: Field) -> Option<String> {
        let context = &self.context;
        if !self.has(field) {
            return None;
        }
        if let Some(text) = self.text(field) {
            return Some(super::quoted(text));
        }
        if let Some(items) = self.list(field) {
            return Some(format!("[{}]", items.iter().map(|item| super::quoted(item)).collect::<Vec<_>>().join(", ")));
        }
        Some(match field {
            Field::NetworkPort => context.network.port?.to_string(),
            Field::HttpBodySize => context.http.body_size?.to_string(),
            Field::TlsEch => context.tls.ech?.to_string(),
            Field::HttpHeaders => {
                let names: Vec<&str> = context.http.headers?.iter().map(|header| header.name).collect();
                format!("a map with {}", if names.is_empty() { "no header".to_owned() } else { names.join(", ") })
            }
            _ => "known".to_owned(),
        })
    }

    fn value<'b>(&'b self, field: Field) -> Option<CowVal<'b, 'b>> {
        let context = &self.context;
        if let Some(text) = self.text(field) {
            return Some(CowVal::owned(CelString::from(text)));
        }
        match field {
            Field::NetworkPort => context.network.port.map(|port| CowVal::owned(CelInt::from(i64::from(port)))),
            Field::HttpBodySize => {
                context.http.body_size.map(|size| CowVal::owned(CelInt::from(i64::try_from(size).unwrap_or(i64::MAX))))
            }
            Field::HttpBody => self.body.map(|body| match body {
                Some(body) => CowVal::owned(CelString::from(body)),
                None => CowVal::owned(CelNull),
            }),
            Field::TlsEch => context.tls.ech.map(|ech| CowVal::owned(CelBool::from(ech))),
            Field::HttpHeaders => {
                let headers = context.http.headers?;
                Some(CowVal::Borrowed(self.headers.get_or_init(|| header_map(headers))))
            }
            Field::RunContext => {
                let entries = context.run.context?;
                Some(CowVal::Borrowed(self.run_context.get_or_init(|| json_map(entries, JSON_DEPTH))))
            }
            _ => {
                let items = self.list(field)?;
                let items: Vec<Box<dyn Val + 'b>> =
                    items.iter().map(|item| Box::new(CelString::from(*item)) as Box<dyn Val + 'b>).collect();
                Some(CowVal::owned(CelList::from(items)))
            }
        }
    }
}

/// Several headers of one name are joined by `, ` (RFC 9110 5.3).
fn header_map<'a>(headers: &'a [super::Header<'a>]) -> CelMap<'a> {
    let mut joined: HashMap<&'a str, std::borrow::Cow<'a, str>> = HashMap::with_capacity(headers.len());
    for header in headers {
        joined
            .entry(header.name)
            .and_modify(|value| {
                let value = value.to_mut();
                value.push_str(", ");
                value.push_str(header.value);
            })
            .or_insert(std::borrow::Cow::Borrowed(header.value));
    }
    let entries: HashMap<CelMapKey<'a>, Box<dyn Val + 'a>> = joined
        .into_iter()
        .map(|(name, value)| {
            let value: CelString<'a> = match value {
                std::borrow::Cow::Borrowed(text) => CelString::from(text),
                std::borrow::Cow::Owned(text) => CelString::from(text),
            };
            (CelMapKey::from(name), Box::new(value) as Box<dyn Val + 'a>)
        })
        .collect();
    CelMap::from(entries)
}

fn json_map(entries: &serde_json::Map<String, Json>, depth: usize) -> CelMap<'_> {
    let entries: HashMap<CelMapKey<'_>, Box<dyn Val + '_>> =
        entries.iter().map(|(name, value)| (CelMapKey::from(name.as_str()), json_value(value, depth))).collect();
    CelMap::from(entries)
}

fn json_value(value: &Json, depth: usize) -> Box<dyn Val + '_> {
    let Some(inner) = depth.checked_sub(1) else { return Box::new(CelNull) };
    match value {
        Json::Null => Box::new(CelNull),
        Json::Bool(value) => Box::new(CelBool::from(*value)),
        Json::Number(number) => match number.as_i64() {
            Some(int) => Box::new(CelInt::from(int)),
            None => Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN))),
        },
        Json::String(text) => Box::new(CelString::from(text.as_str())),
        Json::Array(items) => {
            let items: Vec<Box<dyn Val + '_>> = items.iter().map(|item| json_value(item, inner)).collect();
            Box::new(CelList::from(items))
        }
        Json::Object(entries) => Box::new(json_map(entries, inner)),
    }
}

/// The resolver of one evaluation of one condition.
pub(super) struct Scope<'s, 'a> {
    facts: &'s Facts<'a>,
    /// What the condition's own `@N` names stand for.
    constants: &'s [Box<dyn Val>],
    /// Fields to treat as unknown although the context fills them.
    hidden: FieldSet,
    noted: AtomicU64,
}

impl<'s, 'a> Scope<'s, 'a> {
    pub(super) fn new(facts: &'s Facts<'a>, constants: &'s [Box<dyn Val>], hidden: FieldSet) -> Self {
        Scope { facts, constants, hidden, noted: AtomicU64::new(0) }
    }

    /// The unknown fields that were asked for so far.
    pub(super) fn noted(&self) -> FieldSet {
        FieldSet::from_bits(self.noted.load(Ordering::Relaxed))
    }

    /// The fields that have a value here.
    pub(super) fn known(&self) -> FieldSet {
        self.facts.known().without(self.hidden)
    }
}

impl VariableResolver for Scope<'_, '_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        if let Some(number) = variable.strip_prefix('@') {
            let number: usize = number.parse().ok()?;
            return self.constants.get(number).map(|constant| CowVal::Borrowed(constant.as_ref()));
        }
        let field = Field::of(variable)?;
        let value = if self.hidden.contains(field) { None } else { self.facts.value(field) };
        if value.is_none() {
            self.noted.fetch_or(FieldSet::of(&[field]).bits(), Ordering::Relaxed);
        }
        value
    }
}
