//! The shape of a rule file: from a YAML tree to rules whose every field was checked but the condition.

use std::collections::BTreeMap;

use super::field::nearest;
use super::lines::Lines;
use super::model::{Action, Egress, EgressMode};
use super::yaml::{Node, short};
use super::{definitions, yaml};

/// Definitions in one file: more are a program.
const DEFINITIONS_MAX: usize = 1_000;
/// Bytes of a description.
const DESCRIPTION_MAX: usize = 4 * 1024;
/// Bytes of a rule id.
const ID_MAX: usize = 128;
/// Ports of one rule: each answer opens them all.
const PORTS_MAX: usize = 64;
/// The ports of `direct_ip` without `ports`.
const PORTS_DEFAULT: [u16; 2] = [80, 443];

const FILE_FIELDS: &[&str] = &["version", "definitions", "rules"];
const RULE_FIELDS: &[&str] = &["id", "description", "condition", "action", "priority", "log", "egress"];
const EGRESS_FIELDS: &[&str] = &["mode", "ports", "allow_private_ips", "match_body"];

/// The priority of a rule that gives none.
const PRIORITY_DEFAULT: i64 = 100;

/// A rule of a file, its condition not looked at yet.
#[derive(Debug)]
pub(super) struct FileRule {
    pub(super) line: Option<usize>,
    pub(super) condition_line: Option<usize>,
    pub(super) id: String,
    pub(super) description: Option<String>,
    pub(super) condition: String,
    pub(super) action: Action,
    pub(super) priority: i64,
    pub(super) log: bool,
    pub(super) egress: Option<Egress>,
    /// Where `egress:` is, if it is there.
    pub(super) explicit_egress: Option<usize>,
    /// Whether `mode:` is written down.
    pub(super) explicit_mode: bool,
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct RuleFile {
    pub(super) definitions: Vec<(String, String, Option<usize>)>,
    pub(super) rules: Vec<FileRule>,
    pub(super) problems: Vec<Problem>,
}

/// Something wrong at a place of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) line: Option<usize>,
    pub(super) rule: Option<String>,
    pub(super) reason: String,
}

impl RuleFile {
    /// Reads the text of a file. What is wrong is in `problems`. A rule with a problem is kept as far as it can be read,
    /// so that all that is wrong with it is found at once: a file with problems must not be used.
    pub(super) fn parse(text: &str) -> Self {
        let mut file = RuleFile::default();
        let (tree, lines) = match yaml::parse(text) {
            Ok(read) => read,
            Err(error) => {
                file.problems.push(Problem { line: error.line, rule: None, reason: error.reason });
                return file;
            }
        };
        match tree {
            Node::Map(entries) => file.read(entries, &lines),
            Node::Null => file.problem(Some(1), None, "`version: \"1\"` is missing: the file is empty".to_owned()),
            other => file.problem(Some(1), None, format!("the file is {}, not a map", other.kind())),
        }
        file
    }

    fn problem(&mut self, line: Option<usize>, rule: Option<&str>, reason: String) {
        self.problems.push(Problem { line, rule: rule.map(str::to_owned), reason });
    }

    fn read(&mut self, entries: Vec<(String, Node)>, lines: &Lines) {
        let mut version = None;
        let mut rules = None;
        for (key, value) in entries {
            let line = lines.top(&key);
            match key.as_str() {
                "version" => version = Some((line, value)),
                "definitions" => self.read_definitions(value, line, lines),
                "rules" => rules = Some((line, value)),
                _ => self.problem(line, None, unknown_field(&key, FILE_FIELDS)),
            }
        }
        match version {
            None => self.problem(Some(1), None, "`version: \"1\"` is missing".to_owned()),
            Some((_, Node::Text(text))) if text == "1" => {}
            Some((_, Node::Int(1))) => {}
            Some((line, other)) => {
                let found = match &other {
                    Node::Text(text) => format!("\"{}\"", short(text)),
                    Node::Int(number) => number.to_string(),
                    Node::Number(number) => short(number),
                    other => other.kind().to_owned(),
                };
                self.problem(line, None, format!("`version` is {found}; this daemon reads \"1\""));
            }
        }
        match rules {
            None | Some((_, Node::Null)) => {}
            Some((_, Node::List(items))) => {
                let count = items.len();
                for (position, item) in items.into_iter().enumerate() {
                    let at = At { lines, position, count };
                    self.read_rule(item, &at);
                }
            }
            Some((line, other)) => self.problem(line, None, format!("`rules` is {}, not a list", other.kind())),
        }
    }

    fn read_definitions(&mut self, value: Node, line: Option<usize>, lines: &Lines) {
        let entries = match value {
            Node::Null => return,
            Node::Map(entries) => entries,
            other => return self.problem(line, None, format!("`definitions` is {}, not a map", other.kind())),
        };
        if entries.len() > DEFINITIONS_MAX {
            return self.problem(line, None, format!("over {DEFINITIONS_MAX} definitions in one file"));
        }
        for (name, value) in entries {
            let line = lines.definition(&name);
            if !definitions::is_name(&name) {
                let reason = format!("the definition `{}` has no name of letters, digits and `_`", short(&name));
                self.problem(line, None, reason);
                continue;
            }
            match value {
                Node::Text(text) if !text.trim().is_empty() => self.definitions.push((name, text, line)),
                other => {
                    let kind = if matches!(other, Node::Text(_)) { "empty" } else { other.kind() };
                    self.problem(line, None, format!("the definition `{name}` is {kind}; it must be a CEL text"));
                }
            }
        }
    }

    fn read_rule(&mut self, item: Node, at: &At<'_>) {
        let Node::Map(entries) = item else {
            return self.problem(at.line(None), None, format!("a rule is {}, not a map", item.kind()));
        };
        let mut fields: BTreeMap<String, Node> = BTreeMap::new();
        let mut unknown = Vec::new();
        for (key, value) in entries {
            if RULE_FIELDS.contains(&key.as_str()) {
                fields.insert(key, value);
            } else {
                unknown.push(key);
            }
        }
        let id = match fields.remove("id") {
            Some(Node::Text(id)) if is_id(&id) => Some(id),
            Some(Node::Text(id)) => {
                let reason = format!(
                    "the id \"{}\" is not 1 to {ID_MAX} of A-Z a-z 0-9 _ . - beginning with a letter or digit",
                    short(&id)
                );
                self.problem(at.line(Some("id")), None, reason);
                None
            }
            Some(other) => {
                let reason = format!("`id` is {}, not text; write it in quotes", other.kind());
                self.problem(at.line(Some("id")), None, reason);
                None
            }
            None => {
                self.problem(at.line(None), None, "`id` is missing".to_owned());
                None
            }
        };
        let rule = id.as_deref();
        for key in unknown {
            self.problem(at.line(Some(&key)), rule, unknown_field(&key, RULE_FIELDS));
        }
        let description = match fields.remove("description") {
            None | Some(Node::Null) => None,
            Some(Node::Text(text)) if text.len() <= DESCRIPTION_MAX => Some(text),
            Some(Node::Text(_)) => {
                let reason = format!("`description` is over {DESCRIPTION_MAX} bytes");
                self.problem(at.line(Some("description")), rule, reason);
                None
            }
            Some(other) => {
                let reason = format!("`description` is {}, not text", other.kind());
                self.problem(at.line(Some("description")), rule, reason);
                None
            }
        };
        let condition = match fields.remove("condition") {
            Some(Node::Text(text)) => Some(text),
            Some(other) => {
                let reason = format!("`condition` is {}, not a CEL text; write it in quotes", other.kind());
                self.problem(at.line(Some("condition")), rule, reason);
                None
            }
            None => {
                self.problem(at.line(None), rule, "`condition` is missing".to_owned());
                None
            }
        };
        let action = self.action(fields.remove("action"), at, rule);
        let priority = match fields.remove("priority") {
            None => PRIORITY_DEFAULT,
            Some(Node::Int(priority)) => priority,
            Some(other) => {
                let reason = format!("`priority` is {}, not a whole number", other.kind());
                self.problem(at.line(Some("priority")), rule, reason);
                PRIORITY_DEFAULT
            }
        };
        let log = self.bool(fields.remove("log"), "log", at, rule);
        let egress_value = fields.remove("egress").filter(|value| !matches!(value, Node::Null));
        let explicit_egress = egress_value.as_ref().map(|_| at.line(Some("egress")).unwrap_or(1));
        let mut explicit_mode = false;
        let egress = match (&action, egress_value) {
            (Some(Action::Block), Some(_)) => {
                let reason = "`egress` is for allow rules; this one blocks".to_owned();
                self.problem(at.line(Some("egress")), rule, reason);
                None
            }
            (Some(Action::Block), None) => None,
            (_, value) => Some(self.egress(value, at, rule, &mut explicit_mode)),
        };
        // Each `None` reported a problem; without an action the rest of the rule is still worth checking.
        if let (Some(id), Some(condition)) = (id, condition) {
            let action = action.unwrap_or(Action::Block);
            self.rules.push(FileRule {
                line: at.line(None),
                condition_line: at.line(Some("condition")),
                id,
                description,
                condition,
                action,
                priority,
                log,
                egress,
                explicit_egress,
                explicit_mode,
            });
        }
    }

    fn action(&mut self, value: Option<Node>, at: &At<'_>, rule: Option<&str>) -> Option<Action> {
        let reason = match value {
            Some(Node::Text(text)) => match text.as_str() {
                "allow" => return Some(Action::Allow),
                "block" => return Some(Action::Block),
                "enrich" => "the action `enrich` is reserved; use allow or block".to_owned(),
                other => match nearest(other, ["allow", "block"]) {
                    Some(near) => format!("unknown action `{}`; did you mean `{near}`?", short(other)),
                    None => format!("unknown action `{}`; there are allow and block", short(other)),
                },
            },
            Some(other) => format!("`action` is {}, not allow or block", other.kind()),
            None => "`action` is missing".to_owned(),
        };
        self.problem(at.line(Some("action")), rule, reason);
        None
    }

    fn bool(&mut self, value: Option<Node>, name: &str, at: &At<'_>, rule: Option<&str>) -> bool {
        match value {
            None => false,
            Some(Node::Bool(value)) => value,
            Some(other) => {
                let reason = format!("`{name}` is {}; it is true or false", other.kind());
                self.problem(at.line(Some(name)), rule, reason);
                false
            }
        }
    }

    fn egress(&mut self, value: Option<Node>, at: &At<'_>, rule: Option<&str>, explicit_mode: &mut bool) -> Egress {
        let mut egress =
            Egress { mode: EgressMode::Proxy, ports: Vec::new(), allow_private_ips: false, match_body: false };
        let mut fields: BTreeMap<String, Node> = match value {
            None => return egress,
            Some(Node::Map(entries)) => entries.into_iter().collect(),
            Some(other) => {
                self.problem(at.line(Some("egress")), rule, format!("`egress` is {}, not a map", other.kind()));
                return egress;
            }
        };
        *explicit_mode = fields.contains_key("mode");
        match fields.remove("mode") {
            None => {}
            Some(Node::Text(text)) => match text.as_str() {
                "proxy" => {}
                "direct_ip" => egress.mode = EgressMode::DirectIp,
                "intercept" => egress.mode = EgressMode::Intercept,
                other => {
                    let modes = ["proxy", "direct_ip", "intercept"];
                    let hint = nearest(other, modes).map_or_else(
                        || format!("there are {}", modes.join(", ")),
                        |near| format!("did you mean `{near}`?"),
                    );
                    self.problem(at.line(Some("mode")), rule, format!("unknown mode `{}`; {hint}", short(other)));
                }
            },
            Some(other) => {
                let reason = format!("`mode` is {}; it is proxy, direct_ip or intercept", other.kind());
                self.problem(at.line(Some("mode")), rule, reason);
            }
        }
        if let Some(value) = fields.remove("ports") {
            match ports(&value) {
                Ok(_) if egress.mode != EgressMode::DirectIp => {
                    let reason = "`ports` is for `mode: direct_ip`; use `network.port` in the condition".to_owned();
                    self.problem(at.line(Some("ports")), rule, reason);
                }
                Ok(ports) => egress.ports = ports,
                Err(reason) => self.problem(at.line(Some("ports")), rule, reason),
            }
        } else if egress.mode == EgressMode::DirectIp {
            egress.ports = PORTS_DEFAULT.to_vec();
        }
        egress.allow_private_ips = self.bool(fields.remove("allow_private_ips"), "allow_private_ips", at, rule);
        let match_body_given = fields.contains_key("match_body");
        egress.match_body = self.bool(fields.remove("match_body"), "match_body", at, rule);
        if match_body_given && egress.mode != EgressMode::Intercept {
            let reason = "`match_body` is for `mode: intercept`".to_owned();
            self.problem(at.line(Some("match_body")), rule, reason);
        }
        for key in fields.keys() {
            self.problem(at.line(Some(key)), rule, unknown_field(key, EGRESS_FIELDS));
        }
        egress
    }
}

/// Where a rule is.
struct At<'l> {
    lines: &'l Lines,
    position: usize,
    count: usize,
}

impl At<'_> {
    fn line(&self, key: Option<&str>) -> Option<usize> {
        self.lines.rule(self.position, self.count, key)
    }
}

fn unknown_field(key: &str, known: &[&str]) -> String {
    match nearest(key, known.iter().copied()) {
        Some(near) => format!("unknown field `{}`; did you mean `{near}`?", short(key)),
        None => format!("unknown field `{}`; there are {}", short(key), known.join(", ")),
    }
}

/// `[A-Za-z0-9][A-Za-z0-9_.-]{0,127}`
pub(super) fn is_id(text: &str) -> bool {
    text.len() <= ID_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn ports(value: &Node) -> Result<Vec<u16>, String> {
    let Node::List(items) = value else { return Err(format!("`ports` is {}, not a list", value.kind())) };
    if items.is_empty() || items.len() > PORTS_MAX {
        return Err(format!("`ports` has {} entries; 1 to {PORTS_MAX} are accepted", items.len()));
    }
    let mut ports = Vec::with_capacity(items.len());
    for item in items {
        let port = match item {
            Node::Int(number) => u16::try_from(*number).ok().filter(|port| *port != 0),
            _ => None,
        };
        let Some(port) = port else { return Err("`ports` has an entry that is no port (1 to 65535)".to_owned()) };
        if ports.contains(&port) {
            return Err(format!("`ports` has {port} twice"));
        }
        ports.push(port);
    }
    Ok(ports)
}
