//! YAML as a plain tree, read within a budget. Where its parts are is found by `lines`.

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};

use super::lines::Lines;

/// Nodes of one file: 10,000 rules have some 100,000.
const NODES_MAX: usize = 1_000_000;
/// Levels: `rules` → rule → `egress` → `ports` → port is five.
const DEPTH_MAX: usize = 8;

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
    fn lines_in_flow_style_are_found() {
        let text = "\
version: '1'
definitions: {a: 'x',
  \"b\": 'y'}
rules: [
  {id: a, condition: \"http.host == 'a.com' && b: [{\",
   action: allow,
   egress: {mode: proxy,
            ports: [80]}},
  # {id: no}
  {id: b,
   'condition': 'true',
   action: block}, {id: c, condition: 'x', action: block}]
";
        let (_, lines) = parse(text).unwrap();
        assert_eq!((lines.definition("a"), lines.definition("b")), (Some(2), Some(3)));
        let at = |rule, key| lines.rule(rule, 3, Some(key)).unwrap();
        assert_eq!([at(0, "id"), at(0, "condition"), at(0, "action"), at(0, "mode"), at(0, "ports")], [5, 5, 6, 7, 8]);
        assert_eq!([at(1, "id"), at(1, "condition"), at(1, "action"), at(2, "condition")], [10, 11, 12, 12]);
        let mixed = Lines::of(
            "rules:\n  - {id: a,\n     action: block}\n  - id: b\n    egress: {mode: x,\n      ports: [1]}\n",
        )
        .unwrap();
        assert_eq!([mixed.rule(0, 2, Some("action")), mixed.rule(1, 2, Some("ports"))], [Some(3), Some(6)]);
        let whole = Lines::of("{version: '1',\n rules: [\n  {id: a,\n condition: x}\n]}").unwrap();
        assert_eq!((whole.top("rules"), whole.rule(0, 1, Some("condition"))), (Some(2), Some(4)));
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
