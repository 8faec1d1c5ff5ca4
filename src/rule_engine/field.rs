//! The names a condition may use: every field with its type, and sets of fields.
//!
//! Owns the vocabulary of vendor-docs/rules.md. Does not own the values: those are `context` and `facts`.

/// The type of a field, as the checker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FieldType {
    Text,
    Int,
    Bool,
    /// `http.body`: text, or null when it was not read.
    TextOrNull,
    TextList,
    TextMap,
    /// `run.context`: a map of anything.
    AnyMap,
}

macro_rules! fields {
    ($($variant:ident $name:literal $kind:ident,)*) => {
        /// A field of a question.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Field { $($variant,)* }

        /// All fields, in the order of their bits in a [`FieldSet`].
        pub(super) const ALL: &[Field] = &[$(Field::$variant,)*];

        impl Field {
            /// The name that conditions use.
            pub(super) fn name(self) -> &'static str {
                match self { $(Field::$variant => $name,)* }
            }

            /// The field of that name.
            pub(super) fn of(name: &str) -> Option<Field> {
                match name { $($name => Some(Field::$variant),)* _ => None }
            }

            pub(super) fn kind(self) -> FieldType {
                match self { $(Field::$variant => FieldType::$kind,)* }
            }
        }
    };
}

fields! {
    AgentName "agent.name" Text,
    AgentContainer "agent.container" Text,
    NetworkHostname "network.hostname" Text,
    NetworkIp "network.ip" Text,
    NetworkPort "network.port" Int,
    NetworkProtocol "network.protocol" Text,
    HttpMethod "http.method" Text,
    HttpPath "http.path" Text,
    HttpHost "http.host" Text,
    HttpScheme "http.scheme" Text,
    HttpHeaders "http.headers" TextMap,
    HttpBodySize "http.body_size" Int,
    HttpBody "http.body" TextOrNull,
    DnsQuery "dns.query" Text,
    DnsRecordType "dns.record_type" Text,
    TlsSni "tls.sni" Text,
    TlsVersion "tls.version" Text,
    TlsAlpn "tls.alpn" TextList,
    TlsEch "tls.ech" Bool,
    DockerImage "docker.image" Text,
    DockerCommand "docker.command" TextList,
    DockerVolumes "docker.volumes" TextList,
    DockerEnvKeys "docker.env_keys" TextList,
    DockerCapabilities "docker.capabilities" TextList,
    RunTool "run.tool" Text,
    RunArgs "run.args" TextList,
    RunFlags "run.flags" TextList,
    RunCwd "run.cwd" Text,
    RunContext "run.context" AnyMap,
}

/// The parts before the dot.
pub(super) const NAMESPACES: &[&str] = &["agent", "network", "http", "dns", "tls", "docker", "run"];

/// True for fields that hold a host name in normal form.
pub(super) fn is_host(field: Field) -> bool {
    matches!(field, Field::HttpHost | Field::NetworkHostname | Field::DnsQuery | Field::TlsSni)
}

/// A set of fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FieldSet(u64);

impl FieldSet {
    pub(super) const EMPTY: FieldSet = FieldSet(0);

    pub(super) const fn of(fields: &[Field]) -> Self {
        let mut bits = 0;
        let mut next = 0;
        while next < fields.len() {
            bits |= 1 << fields[next] as u64;
            next += 1;
        }
        FieldSet(bits)
    }

    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        FieldSet(bits)
    }

    pub(super) fn insert(&mut self, field: Field) {
        self.0 |= 1 << field as u64;
    }

    pub(super) fn contains(self, field: Field) -> bool {
        self.0 & (1 << field as u64) != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn and(self, other: FieldSet) -> Self {
        FieldSet(self.0 & other.0)
    }

    pub(super) fn or(self, other: FieldSet) -> Self {
        FieldSet(self.0 | other.0)
    }

    pub(super) fn without(self, other: FieldSet) -> Self {
        FieldSet(self.0 & !other.0)
    }

    /// The names, in table order.
    pub(super) fn names(self) -> Vec<&'static str> {
        ALL.iter().filter(|field| self.contains(**field)).map(|field| field.name()).collect()
    }
}

/// What decryption fills in: the values of a CONNECT stand for none of these.
pub(super) const INNER: FieldSet = FieldSet::of(&[
    Field::HttpMethod,
    Field::HttpPath,
    Field::HttpScheme,
    Field::HttpHeaders,
    Field::HttpBodySize,
    Field::HttpBody,
]);

/// What a ClientHello fills in, the name in it apart: a rule on `tls.sni` alone would open every CONNECT.
pub(super) const HELLO: FieldSet = FieldSet::of(&[Field::TlsVersion, Field::TlsAlpn, Field::TlsEch]);

/// What is known of a body once it is read; its size before that, unless it comes in chunks.
pub(super) const BODY: FieldSet = FieldSet::of(&[Field::HttpBody, Field::HttpBodySize]);

/// The address of a destination, unknown until its name is resolved.
pub(super) const ADDRESS: FieldSet = FieldSet::of(&[Field::NetworkIp]);

/// The candidate nearest to `wrong`, if it is near enough to be what was meant: at most a third of its letters
/// differ, and never more than three.
pub(super) fn nearest<'n>(wrong: &str, candidates: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let allowed = (wrong.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| (distance(wrong, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The full name of the field nearest to `wrong` (`ip.dst`, `network.ipp`): by spelling, else by a shared part.
pub(super) fn nearest_field(wrong: &str) -> Option<&'static str> {
    // `network.host`, `http.head`: the beginning of a name.
    if let Some(field) = ALL.iter().find(|field| wrong.contains('.') && field.name().starts_with(wrong)) {
        return Some(field.name());
    }
    if let Some(name) = nearest(wrong, ALL.iter().map(|field| field.name())) {
        return Some(name);
    }
    let (namespace, part) = wrong.split_once('.').unwrap_or((wrong, wrong));
    let of_part = |part: &str| {
        ALL.iter().map(|field| field.name()).find(|name| name.split_once('.').is_some_and(|(_, own)| own == part))
    };
    let of_namespace = |name: &str| {
        let inside = ALL.iter().map(|field| field.name()).filter(|full| full.starts_with(&format!("{name}.")));
        inside.min_by_key(|full| distance(&full[name.len() + 1..], part))
    };
    // `ip.dst`: the field `ip` exists elsewhere. `host.name`: the part does. `http.hst`: its namespace does.
    of_part(part)
        .or_else(|| of_part(namespace))
        .or_else(|| NAMESPACES.contains(&namespace).then(|| of_namespace(namespace)).flatten())
        .or_else(|| nearest(namespace, NAMESPACES.iter().copied()).and_then(of_namespace))
}

/// Levenshtein distance in characters; texts over 64 characters count as far from everything.
fn distance(left: &str, right: &str) -> usize {
    const LONGEST: usize = 64;
    if left.chars().count() > LONGEST || right.chars().count() > LONGEST {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=right.chars().count()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.chars().enumerate() {
            let substituted = diagonal + usize::from(l != r);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[row.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_found_by_its_name_and_lies_in_a_namespace() {
        for field in ALL {
            assert_eq!(Field::of(field.name()), Some(*field));
            let (namespace, _) = field.name().split_once('.').unwrap();
            assert!(NAMESPACES.contains(&namespace));
        }
        assert!(ALL.len() <= 64);
    }

    #[test]
    fn wrong_names_get_the_nearest_real_one() {
        assert_eq!(nearest_field("ip.dst"), Some("network.ip"));
        assert_eq!(nearest_field("http.hots"), Some("http.host"));
        assert_eq!(nearest_field("https.host"), Some("http.host"));
        assert_eq!(nearest_field("network.host"), Some("network.hostname"));
        assert_eq!(nearest_field("dns.name"), Some("agent.name"));
        assert_eq!(nearest_field("dns.qname"), Some("dns.query"));
        assert_eq!(nearest_field("zzzzzz.qqqqqq"), None);
    }
}
