//! The lines that the rules of a file and their keys are on.
//!
//! The library gives no positions for what it read, so they are found in the text. This is a reading aid for error
//! messages and for refusing anchors; what a file means is decided by the library alone.

use std::collections::BTreeMap;

use super::yaml::YamlError;

/// Flow brackets open at once, and block sequences begun on one line: the library's cost grows with the square of the
/// brackets.
const FLOW_MAX: usize = 8;

/// Where things are in a file. Lines count from 1.
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
        let mut flow = Flow::default();
        for (number, line) in text.lines().enumerate() {
            let number = number + 1;
            let fresh = scan.begins_fresh(line);
            if fresh {
                lines.note(number, line, &mut section);
            }
            if !scan.in_block_scalar() {
                let signs = scan.line(line).map_err(|reason| YamlError { line: Some(number), reason })?;
                for sign in signs {
                    flow.take(sign, number, &mut lines, &section);
                }
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
    /// text was read otherwise, the line of `rules:` is all that is known.
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
        // What a bracket begins is read by `Flow`.
        if content.is_empty() || content.starts_with(['#', '{', '[']) {
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

/// Something of a flow collection, in the order of the text.
enum Sign<'l> {
    /// `[` or `{`.
    Open(char),
    /// A key, its quotes still around it.
    Key(&'l str),
    /// `]` or `}`.
    Close,
}

/// The flow collections that are open, and what is in them.
#[derive(Default)]
struct Flow {
    open: Vec<Frame>,
}

struct Frame {
    bracket: char,
    /// The key whose value is read.
    key: String,
    holds: Holds,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// The file's own map.
    File,
    Definitions,
    /// The list of rules.
    Rules,
    /// A rule, or what is inside one.
    Rule,
    Other,
}

impl Flow {
    fn take(&mut self, sign: Sign<'_>, number: usize, lines: &mut Lines, section: &Section) {
        match sign {
            Sign::Open(bracket) => {
                let (inside, key) = match self.open.last() {
                    Some(frame) => (frame.holds, frame.key.as_str()),
                    None => (Holds::File, section.name.as_str()),
                };
                let holds = match (inside, key, bracket) {
                    (Holds::File, "", '{') if self.open.is_empty() => Holds::File,
                    (Holds::File, "definitions", '{') => Holds::Definitions,
                    // In block style a bracket inside `rules:` is of a rule, which is known already.
                    (Holds::File, "rules", '[') if lines.rules.is_empty() => Holds::Rules,
                    (Holds::File, "rules", _) => Holds::Rule,
                    (Holds::Rules, _, '{') => {
                        lines.rules.push((number, BTreeMap::new()));
                        Holds::Rule
                    }
                    (Holds::Rule, ..) => Holds::Rule,
                    _ => Holds::Other,
                };
                self.open.push(Frame { bracket, key: String::new(), holds });
            }
            Sign::Key(key) => {
                let Some(frame) = self.open.last_mut().filter(|frame| frame.bracket == '{') else { return };
                unquoted(key).clone_into(&mut frame.key);
                let key = frame.key.clone();
                match frame.holds {
                    Holds::File => drop(lines.top.insert(key, number)),
                    Holds::Definitions => drop(lines.definitions.insert(key, number)),
                    Holds::Rule => {
                        if let Some((_, keys)) = lines.rules.last_mut() {
                            keys.entry(key).or_insert(number);
                        }
                    }
                    Holds::Rules | Holds::Other => {}
                }
            }
            Sign::Close => drop(self.open.pop()),
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
    Some(unquoted(key))
}

fn unquoted(key: &str) -> &str {
    let key = key.trim();
    let bare = key.strip_prefix('"').and_then(|key| key.strip_suffix('"'));
    bare.or_else(|| key.strip_prefix('\'').and_then(|key| key.strip_suffix('\''))).unwrap_or(key)
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

    /// Reads a line; gives what is in it of flow collections.
    fn line<'l>(&mut self, line: &'l str) -> Result<Vec<Sign<'l>>, String> {
        let mut signs = Vec::new();
        // Where the text began that is a key if a colon ends it.
        let mut begun = Some(0);
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
                '#' if before == ' ' || before == '\t' => return Ok(signs),
                '-' | '?' if at_start && blank_next => {
                    items += 1;
                    parent = at + 1 + line[at + 1..].len() - line[at + 1..].trim_start().len();
                    if items > FLOW_MAX {
                        return Err(format!("YAML: more than {FLOW_MAX} nested items on one line"));
                    }
                }
                // A quoted key may touch its colon, and that its value.
                ':' if blank_next || (self.flow > 0 && matches!(before, '"' | '\'')) => {
                    if let Some(key) = begun.take().filter(|_| self.flow > 0).and_then(|begun| line.get(begun..at)) {
                        signs.push(Sign::Key(key));
                    }
                    at_start = true;
                }
                ',' if self.flow > 0 => {
                    begun = Some(at + 1);
                    at_start = true;
                }
                '[' | '{' if at_start || self.flow > 0 => {
                    self.flow += 1;
                    at_start = true;
                    begun = Some(at + 1);
                    signs.push(Sign::Open(c));
                    if self.flow > FLOW_MAX {
                        return Err(format!("YAML: brackets nested more than {FLOW_MAX} deep"));
                    }
                }
                ']' | '}' if self.flow > 0 => {
                    self.flow -= 1;
                    at_start = false;
                    signs.push(Sign::Close);
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
                    return Ok(signs);
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
        Ok(signs)
    }
}
