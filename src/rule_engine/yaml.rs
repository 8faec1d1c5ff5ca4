//! YAML as a plain tree, read within a budget, and the lines its rules are on.
//!
//! The library gives no positions for what it read, so [`Lines`] finds them in the text. It is a reading aid for
//! error messages and for refusing anchors; what a file means is decided by the library alone.

use std::collections::BTreeMap;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};

/// Nodes of one file: 10,000 rules have some 100,000.
const NODES_MAX: usize = 1_000_000;
/// Levels: `rules` → rule → `egress` → `ports` → port is five.
const DEPTH_MAX: usize = 8;
/// Flow brackets open at once, and block sequences begun on one line: the library's cost grows with the square of the
/// brackets.
const FLOW_MAX: usize = 8;

/// A YAML value. Keys keep their order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Int(i64),
    /// A number that is no `i64`.
    Number(String),
    Text(String),
    List(Vec<Node>),
    /// Key and value pairs; keys are texts, and unique.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Node::Null => "nothing",
            Node::Bool(_) => "a bool",
            Node::Int(_) | Node::Number(_) => "a number",
            Node::Text(_) => "text",
            Node::List(_) => "a list",
            Node::Map(_) => "a map",
        }
    }
}

/// Why a text is no YAML tree that we take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct YamlError {
    /// From 1, when it is known.
    pub(super) line: Option<usize>,
    /// In one line.
    pub(super) reason: String,
}

/// Reads `text`, and where its parts are.
///
/// # Errors
/// The first reason why it is not read.
pub(super) fn parse(text: &str) -> Result<(Node, Lines), YamlError> {
    let lines = Lines::of(text)?;
    Ok((tree(text)?, lines))
}

fn tree(text: &str) -> Result<Node, YamlError> {
    let mut left = NODES_MAX;
    let seed = Seed { left: &mut left, depth: 0 };
    seed.deserialize(serde_yaml::Deserializer::from_str(text)).map_err(|error| {
        let line = error.location().map(|location| location.line());
        let text = error.to_string();
        // The library appends " at line L column C" to some of its messages; the line is ours to say.
        let reason = text.split(" at line ").next().unwrap_or(&text).replace(['\n', '\r'], " ");
        YamlError { line, reason: format!("YAML: {reason}") }
    })
}

struct Seed<'b> {
    left: &'b mut usize,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        if self.depth > DEPTH_MAX {
            return Err(D::Error::custom(format_args!("nested more than {DEPTH_MAX} levels deep")));
        }
        *self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| D::Error::custom(format_args!("over {NODES_MAX} values in one file")))?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a plain value, a list or a map")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(i64::try_from(value).map_or_else(|_| Node::Number(value.to_string()), Node::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Seed { left: self.left, depth: self.depth + 1 })? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map: Vec<(String, Node)> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = entries.next_key_seed(Seed { left: self.left, depth: self.depth + 1 })? {
            let Node::Text(key) = key else {
                return Err(A::Error::custom(format_args!("a key is {}, not text", key.kind())));
            };
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format_args!("the key `{}` is there twice", short(&key))));
            }
            let value = entries.next_value_seed(Seed { left: self.left, depth: self.depth + 1 })?;
            map.push((key, value));
        }
        Ok(Node::Map(map))
    }
}

/// A text cut to what fits in a message.
pub(super) fn short(text: &str) -> String {
    const LONGEST: usize = 64;
    let mut cut: String = text.chars().take(LONGEST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().count() > LONGEST {
        cut.push('…');
    }
    cut
}

/// Where things are in a file that is written in block style. Lines count from 1.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lines {
    /// Top-level keys.
    top: BTreeMap<String, usize>,
    /// Keys under `definitions:`.
    definitions: BTreeMap<String, usize>,
    /// Items under `rules:`, each with its keys and those of its `egress:`.
    rules: Vec<(usize, BTreeMap<String, usize>)>,
}

impl Lines {
    /// Finds the lines of `text`.
    ///
    /// # Errors
    /// An anchor, an alias, or nesting that the parser must not be given.
    pub(super) fn of(text: &str) -> Result<Self, YamlError> {
        let mut lines = Lines::default();
        let mut scan = Scan::default();
        let mut section = Section { name: String::new(), indent: None };
        for (number, line) in text.lines().enumerate() {
            let number = number + 1;
            let fresh = scan.begins_fresh(line);
            if !scan.in_block_scalar() {
                scan.line(line).map_err(|reason| YamlError { line: Some(number), reason })?;
            }
            if fresh {
                lines.note(number, line, &mut section);
            }
        }
        Ok(lines)
    }

    /// The line of a top-level key.
    pub(super) fn top(&self, key: &str) -> Option<usize> {
        self.top.get(key).copied()
    }

    /// The line of a definition.
    pub(super) fn definition(&self, name: &str) -> Option<usize> {
        self.definitions.get(name).copied().or_else(|| self.top("definitions"))
    }

    /// The line of the rule at `position`, or of its `key`. `count` is how many rules the file really has: when the
    /// text was read otherwise (flow style), the line of `rules:` is all that is known.
    pub(super) fn rule(&self, position: usize, count: usize, key: Option<&str>) -> Option<usize> {
        if self.rules.len() != count {
            return self.top("rules");
        }
        let (line, keys) = self.rules.get(position)?;
        Some(key.and_then(|key| keys.get(key).copied()).unwrap_or(*line))
    }

    fn note(&mut self, number: usize, line: &str, section: &mut Section) {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if content.is_empty() || content.starts_with('#') {
            return;
        }
        let item = content == "-" || content.starts_with("- ");
        if indent == 0 && !item {
            if let Some(key) = key_of(content) {
                self.top.insert(key.to_owned(), number);
                *section = Section { name: key.to_owned(), indent: None };
            }
            return;
        }
        let first = *section.indent.get_or_insert(indent);
        match section.name.as_str() {
            "definitions" if indent == first => {
                if let Some(key) = key_of(content) {
                    self.definitions.insert(key.to_owned(), number);
                }
            }
            "rules" => {
                let content = if item && indent == first {
                    self.rules.push((number, BTreeMap::new()));
                    content[1..].trim_start()
                } else {
                    content
                };
                if let (Some((_, keys)), Some(key)) = (self.rules.last_mut(), key_of(content)) {
                    keys.entry(key.to_owned()).or_insert(number);
                }
            }
            _ => {}
        }
    }
}

/// The top-level key that the lines belong to, and the indent of its first line.
struct Section {
    name: String,
    indent: Option<usize>,
}

/// `key` of `key: …`, quotes removed.
fn key_of(content: &str) -> Option<&str> {
    let (key, rest) = content.split_once(':')?;
    if !(rest.is_empty() || rest.starts_with([' ', '\t'])) {
        return None;
    }
    let key = key.trim_end();
    let bare = key.strip_prefix('"').and_then(|key| key.strip_suffix('"'));
    let bare = bare.or_else(|| key.strip_prefix('\'').and_then(|key| key.strip_suffix('\'')));
    Some(bare.unwrap_or(key))
}

/// A rough tokenizer: enough to tell text from structure.
#[derive(Default)]
struct Scan {
    /// The quote that is open at the end of the line.
    quote: Option<char>,
    flow: usize,
    /// Inside a block scalar whose parent is indented this much.
    block: Option<usize>,
}

impl Scan {
    /// True when `line` can begin a key or an item: not inside a quoted text, a flow collection or a block scalar.
    fn begins_fresh(&mut self, line: &str) -> bool {
        if let Some(parent) = self.block {
            let content = line.trim_start();
            if !content.is_empty() && line.len() - content.len() <= parent {
                self.block = None;
            }
        }
        self.quote.is_none() && self.flow == 0 && self.block.is_none()
    }

    fn in_block_scalar(&self) -> bool {
        self.block.is_some()
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let mut at_start = self.quote.is_none();
        let mut parent = line.len() - line.trim_start().len();
        let mut items = 0usize;
        let mut characters = line.char_indices().peekable();
        let mut before = ' ';
        while let Some((at, c)) = characters.next() {
            let next = characters.peek().map(|(_, next)| *next);
            if let Some(quote) = self.quote {
                match c {
                    '\\' if quote == '"' => {
                        characters.next();
                    }
                    _ if c == quote && quote == '\'' && next == Some('\'') => {
                        characters.next();
                    }
                    _ if c == quote => self.quote = None,
                    _ => {}
                }
                before = c;
                continue;
            }
            let blank_next = next.is_none_or(|next| next == ' ' || next == '\t');
            match c {
                ' ' | '\t' => {}
                '#' if before == ' ' || before == '\t' => return Ok(()),
                '-' | '?' if at_start && blank_next => {
                    items += 1;
                    parent = at + 1 + line[at + 1..].len() - line[at + 1..].trim_start().len();
                    if items > FLOW_MAX {
                        return Err(format!("YAML: more than {FLOW_MAX} nested items on one line"));
                    }
                }
                ':' if blank_next => at_start = true,
                ',' if self.flow > 0 => at_start = true,
                '[' | '{' if at_start || self.flow > 0 => {
                    self.flow += 1;
                    at_start = true;
                    if self.flow > FLOW_MAX {
                        return Err(format!("YAML: brackets nested more than {FLOW_MAX} deep"));
                    }
                }
                ']' | '}' if self.flow > 0 => {
                    self.flow -= 1;
                    at_start = false;
                }
                '"' | '\'' if at_start => {
                    self.quote = Some(c);
                    at_start = false;
                }
                '&' | '*' if at_start && next.is_some_and(|n| n.is_alphanumeric() || matches!(n, '_' | '-')) => {
                    let what = if c == '&' { "anchors" } else { "aliases" };
                    return Err(format!("YAML: {what} (`{c}name`) are not accepted; write the value out or quote it"));
                }
                '|' | '>' if at_start && self.flow == 0 => {
                    self.block = Some(parent);
                    return Ok(());
                }
                '!' if at_start => {
                    // A tag: the value comes after it.
                    while characters.peek().is_some_and(|(_, next)| *next != ' ' && *next != '\t') {
                        characters.next();
                    }
                }
                _ => at_start = false,
            }
            before = c;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# comment
version: \"1\"
definitions:
  github: 'http.host == \"github.com\"'
  \"other\": x
rules:
  - id: a
    condition: |
      id: not a key
        - nor an item
    action: allow
  # - id: commented
  - action: block
    condition: \"two
      lines: of text\"
    egress:
      mode: proxy
    id: b
";

    #[test]
    fn lines_of_rules_and_their_keys_are_found() {
        let lines = Lines::of(FILE).unwrap();
        assert_eq!(lines.top("rules"), Some(6));
        assert_eq!(lines.definition("github"), Some(4));
        assert_eq!(lines.definition("other"), Some(5));
        assert_eq!(lines.rule(0, 2, None), Some(7));
        assert_eq!(lines.rule(0, 2, Some("id")), Some(7));
        assert_eq!(lines.rule(0, 2, Some("action")), Some(11));
        assert_eq!(lines.rule(1, 2, None), Some(13));
        assert_eq!(lines.rule(1, 2, Some("mode")), Some(17));
        assert_eq!(lines.rule(1, 2, Some("id")), Some(18));
        assert_eq!(lines.rule(1, 2, Some("absent")), Some(13));
        assert_eq!(lines.rule(0, 3, None), Some(6));
        assert!(parse(FILE).is_ok());
    }

    #[test]
    fn anchors_and_aliases_are_refused_and_cel_operators_are_not() {
        for bad in ["a: &x 1", "- *x", "a: [1, *x]", "a: {b: &y z}", "&a b: c", "a: !t &x y"] {
            let error = parse(bad).unwrap_err();
            assert!(error.reason.contains("not accepted"), "{bad}: {error:?}");
            assert_eq!(error.line, Some(1));
        }
        for good in ["a: x && y", "a: x\n  && y", "a: \"&x\"", "a: '*x'", "a: |\n  *x &y\n", "a: 2 * 3", "# &x"] {
            assert!(parse(good).is_ok(), "{good}: {:?}", parse(good));
        }
    }

    #[test]
    fn bombs_are_refused() {
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&"- ".repeat(100_000)).is_err());
        assert!(parse(&"{a: ".repeat(100_000)).is_err());
        let deep: String = (0..20).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
        assert!(parse(&deep).unwrap_err().reason.contains("levels deep"));
    }

    #[test]
    fn aliases_that_the_scanner_does_not_see_stay_within_the_budget() {
        let laughs: String = (1..30).fold("a0: &a0 [x, x]\n".to_owned(), |text, n| {
            let before = format!("*a{}", n - 1);
            format!("{text}a{n}: &a{n} [{}]\n", [before.as_str(); 10].join(", "))
        });
        assert!(tree(&laughs).is_err());
    }

    #[test]
    fn only_plain_yaml_is_read() {
        assert!(parse("a: 1\na: 2").unwrap_err().reason.contains("`a` is there twice"));
        assert!(parse("a: !thing 1").is_err());
        assert!(parse("1: a").is_err());
        assert!(parse("a: 1\n---\nb: 2").is_err());
        assert!(parse("a: [1, 2").is_err());
        assert_eq!(parse("").unwrap().0, Node::Null);
        let (tree, _) = parse("a: yes\nb: 0x10\nc: 1.5\nd: ~\ne: true").unwrap();
        let Node::Map(entries) = tree else { panic!() };
        let values: Vec<Node> = entries.into_iter().map(|(_, node)| node).collect();
        assert_eq!(values[0], Node::Text("yes".to_owned()));
        assert_eq!(values[1], Node::Int(16));
        assert_eq!(values[3], Node::Null);
        assert_eq!(values[4], Node::Bool(true));
    }
}
