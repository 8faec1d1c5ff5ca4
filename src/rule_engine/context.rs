//! What a layer knows when it asks. A field that is `None` is unknown, not empty.

/// The facts of one question. Every host name here is in normal form (`names::Host::to_text`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// `agent.*`: who asks; never from what the agent says.
    pub agent: Agent<'a>,
    /// `network.*`
    pub network: Network<'a>,
    /// `http.*`
    pub http: Http<'a>,
    /// `dns.*`
    pub dns: Dns<'a>,
    /// `tls.*`
    pub tls: Tls<'a>,
    /// `docker.*`
    pub docker: Docker<'a>,
    /// `run.*`
    pub run: Run<'a>,
}

/// `agent.*`
#[derive(Clone, Copy, Debug, Default)]
pub struct Agent<'a> {
    /// The container's name without a trailing `-digits`.
    pub name: Option<&'a str>,
    /// The exact name.
    pub container: Option<&'a str>,
}

/// `network.*`
#[derive(Clone, Copy, Debug, Default)]
pub struct Network<'a> {
    /// Host name or address text.
    pub hostname: Option<&'a str>,
    /// Destination address; unknown until a name is resolved.
    pub ip: Option<&'a str>,
    /// Destination port.
    pub port: Option<u16>,
    /// `tcp`, `udp`.
    pub protocol: Option<&'a str>,
}

/// A header: name in lower case, value as sent (bytes that are not UTF-8 replaced).
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// Lower-case name.
    pub name: &'a str,
    /// Value.
    pub value: &'a str,
}

/// `http.*`
#[derive(Clone, Copy, Debug, Default)]
pub struct Http<'a> {
    /// Method.
    pub method: Option<&'a str>,
    /// Path with query.
    pub path: Option<&'a str>,
    /// Host, never with a port.
    pub host: Option<&'a str>,
    /// `http` or `https`.
    pub scheme: Option<&'a str>,
    /// Headers in order; several of one name are joined by `, ` in the rule's map.
    pub headers: Option<&'a [Header<'a>]>,
    /// Size of the body in bytes as declared by Content-Length; unknown when chunked.
    pub body_size: Option<u64>,
    /// The body.
    pub body: Body<'a>,
}

/// What is known of a body. Only rules with `match_body: true` are shown one; to the others a body that is there is
/// `null`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Body<'a> {
    /// The layer has none: unknown to every rule.
    #[default]
    Unknown,
    /// It comes behind the head and was not read yet: unknown to the rules that may see it.
    Unread,
    /// It was read; `None` is CEL's `null`, one over the cap.
    Read(Option<&'a str>),
}

/// `dns.*`
#[derive(Clone, Copy, Debug, Default)]
pub struct Dns<'a> {
    /// The name, lower case, no trailing dot.
    pub query: Option<&'a str>,
    /// `A`, `AAAA`, `TXT`, …
    pub record_type: Option<&'a str>,
}

/// `tls.*`, from the ClientHello.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tls<'a> {
    /// Server name.
    pub sni: Option<&'a str>,
    /// Highest version offered: `1.2`, `1.3`.
    pub version: Option<&'a str>,
    /// Protocols offered.
    pub alpn: Option<&'a [&'a str]>,
    /// Whether encrypted client hello was offered.
    pub ech: Option<bool>,
}

/// `docker.*`, at container create.
#[derive(Clone, Copy, Debug, Default)]
pub struct Docker<'a> {
    /// Name of the image as asked for.
    pub image: Option<&'a str>,
    /// Words of the command line; empty: the image's own.
    pub command: Option<&'a [&'a str]>,
    /// `SOURCE:TARGET[:MODE]` as asked for.
    pub volumes: Option<&'a [&'a str]>,
    /// Names of environment variables, without values.
    pub env_keys: Option<&'a [&'a str]>,
    /// Linux capabilities it would have: always none.
    pub capabilities: Option<&'a [&'a str]>,
}

/// `run.*`, of the agent API.
#[derive(Clone, Copy, Debug, Default)]
pub struct Run<'a> {
    /// What is to run: a program, `file` or `network_call`.
    pub tool: Option<&'a str>,
    /// Its arguments.
    pub args: Option<&'a [&'a str]>,
    /// Its flags, as the agent sorted them.
    pub flags: Option<&'a [&'a str]>,
    /// Where it is to run.
    pub cwd: Option<&'a str>,
    /// The agent's metadata, with `action_type` and `target`.
    pub context: Option<&'a serde_json::Map<String, serde_json::Value>>,
}
