//! Hostile and broken rule sources against the real guarded child.
#![cfg(feature = "daemon")]

use std::time::{Duration, Instant};

use outcall::api::RuleTest;
use outcall::rule_engine::{Guard, LoadOptions, Source, load_sources, test_expression};
use proptest::prelude::*;

fn guard() -> Guard {
    Guard::Exec(env!("CARGO_BIN_EXE_outcalld").into())
}

fn options() -> LoadOptions {
    LoadOptions { proxy: true, interception: false, guard: guard() }
}

fn source(name: &str, text: impl Into<String>) -> Source {
    Source { name: name.to_owned(), text: text.into() }
}

/// A file of allow rules r0, r1, … with these conditions.
fn file(conditions: &[String]) -> Source {
    let mut text = "version: \"1\"\nrules:\n".to_owned();
    for (number, condition) in conditions.iter().enumerate() {
        let condition = serde_json::Value::from(condition.as_str());
        text += &format!("  - id: r{number}\n    action: allow\n    condition: {condition}\n");
    }
    source("a.yaml", text)
}

fn errors(sources: &[Source]) -> Vec<String> {
    load_sources(sources, &options(), None).err().map(|errors| errors.lines()).unwrap_or_default()
}

/// Pieces that random conditions are made of.
const TOKENS: &[&str] = &[
    "http.host",
    "http.headers",
    "network.port",
    "run.args",
    "run.context",
    "dns.query",
    "true",
    "null",
    "1",
    "-1",
    "1.5",
    "'a'",
    "\"",
    "'",
    "r'\\'",
    "'''",
    "b'a'",
    "1u",
    "==",
    "!=",
    "&&",
    "||",
    "!",
    "?",
    ":",
    "+",
    "-",
    "*",
    "/",
    "%",
    "<",
    "in",
    ".",
    ",",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ".exists(",
    ".all(",
    ".map(",
    "has(",
    "size(",
    ".matches(",
    ".endsWith('.x')",
    "x",
    "@0",
    "@result",
    "$a",
    "//",
    "\n",
    "\u{200b}",
    "\\",
    "`",
    "..",
    ".?",
    "[?",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn noise_is_refused_or_loads_but_breaks_nothing(
        noise in prop::collection::vec(prop::collection::vec(prop::sample::select(TOKENS), 1..40), 64)
    ) {
        let conditions: Vec<String> = noise.iter().map(|tokens| tokens.concat()).collect();
        let errors = errors(&[file(&conditions)]);
        prop_assert!(!errors.iter().any(|error| error.contains("the rule checker")), "{:?}", errors);
    }
}

/// What crashes, hangs or fills the parsers of others; each must be refused, quickly, and by its own name.
fn bombs() -> Vec<String> {
    let nested_macros = (0..7).fold("true".to_owned(), |inner, n| format!("[1,2,3,4,5,6,7,8,9,10].all(x{n}, {inner})"));
    vec![
        "(".repeat(100_000),
        "(".repeat(60_000),
        "(".repeat(31),
        format!("{}1{}", "(".repeat(400), ")".repeat(400)),
        vec!["1"; 10_000].join("+") + " == 1",
        vec!["1"; 4_000].join("+") + " == 1",
        format!("run.context{} == 1", ".a".repeat(10_000)),
        format!("run.context{} == 1", ".a".repeat(4_000)),
        format!("dns.query{} == 'a'", ".size()".repeat(4_000)),
        format!("{}1", "string(".repeat(28)),
        "string(".repeat(28),
        format!("{} true", "true ? true :".repeat(2_000)),
        format!("dns.query == {}", "[".repeat(20)),
        format!("{}1", "true ? ".repeat(2_000)),
        nested_macros,
        "dns.query.matches('((a{1,100}){1,100}){1,100}')".to_owned(),
        "dns.query.matches(agent.name)".to_owned(),
        "[0].map(x, [x, x]).size() == 1".to_owned(),
        "\u{0}".to_owned(),
        "".to_owned(),
        "http.host ==".to_owned(),
        ".".to_owned(),
        "\"".to_owned(),
        "r'".to_owned(),
        "'''".to_owned(),
        "b'\\xff' == b'\\xff'".to_owned(),
        "{'a': 1}.a == 1".to_owned(),
        "dns.?query == 'a'".to_owned(),
        "\u{202e}dns.query == 'a'".to_owned(),
        "{}".repeat(2_000),
        "?:".repeat(3_000),
        "a.b.c(".repeat(20),
        "<>=!&|".repeat(2_000),
    ]
}

#[test]
fn every_bomb_is_refused_and_named_and_the_rest_is_still_checked() {
    let mut conditions = vec!["dns.query == 'good.com'".to_owned()];
    conditions.extend(bombs());
    conditions.push("ip.dst == 'x'".to_owned());
    let began = Instant::now();
    let errors = errors(&[file(&conditions)]);
    for (number, condition) in conditions.iter().enumerate().skip(1) {
        let start: String = condition.chars().take(40).collect();
        let named = errors.iter().any(|error| error.contains(&format!("rule r{number}: ")));
        assert!(named, "r{number} ({start}) is not refused:\n{}", errors.join("\n"));
    }
    assert!(!errors.iter().any(|error| error.contains("rule r0: ")));
    assert!(!errors.iter().any(|error| error.contains("not checked")), "{}", errors.join("\n"));
    assert!(errors.iter().any(|error| error.contains("`network.ip`")));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[test]
fn each_bomb_alone_is_refused_when_tested() {
    for bomb in bombs() {
        let request = RuleTest { expression: bomb.clone(), context: serde_json::Map::new() };
        let tested = test_expression(&request, &guard());
        assert!(tested.result.is_none() && tested.error.is_some(), "{:.40}: {tested:?}", bomb);
        assert!(tested.error.is_some_and(|error| error.len() < 2_000));
    }
}

#[test]
fn double_negation_is_no_negation() {
    let request = RuleTest { expression: "!!(1 == 1)".to_owned(), context: serde_json::Map::new() };
    assert_eq!(test_expression(&request, &guard()).result, Some(true));
}

#[test]
fn yaml_bombs_are_refused_by_file() {
    let laughs: String = (1..30).fold("a0: &a0 [x, x]\n".to_owned(), |text, n| {
        let before = format!("*a{}", n - 1);
        format!("{text}a{n}: &a{n} [{}]\n", [before.as_str(); 10].join(", "))
    });
    // The scanner for anchors takes the rest of the file for a quoted text; the tree's budget must hold.
    let hidden = format!("x: y\n 'z\n{}", laughs.replace("a0: &a0", "? 'k'\n: '\na0: &a0"));
    for (what, text) in [
        ("aliases", laughs),
        ("hidden aliases", hidden),
        ("brackets", "[".repeat(2_000_000)),
        ("hidden brackets", format!("a: \"{}", "\"[".repeat(1_000_000))),
        ("braces", "{".repeat(1_000_000)),
        ("items", "- ".repeat(1_000_000)),
        ("keys", "? ".repeat(1_000_000)),
        ("tags", "!a ".repeat(100_000)),
        ("quotes", "\"".repeat(1_000_001)),
        ("deep indents", (0..2_000).map(|n| format!("{}a:\n", " ".repeat(n))).collect()),
        ("directives", "%YAML 1.1\n".repeat(10_000)),
        ("control", "version: \"1\"\u{7}\n".to_owned()),
        ("documents", "---\n".repeat(1_000)),
    ] {
        let began = Instant::now();
        let errors = errors(&[source("bomb.yaml", text), source("good.yaml", "version: \"1\"\nrules: []\n")]);
        assert!(!errors.is_empty() && errors.iter().all(|error| error.starts_with("bomb.yaml")), "{what}: {errors:?}");
        assert!(began.elapsed() < Duration::from_secs(10), "{what}: {:?}", began.elapsed());
    }
}

#[test]
fn a_guard_that_cannot_start_lets_nothing_load() {
    for path in ["/nonexistent/outcalld", "/bin/true", "/bin/cat"] {
        let options = LoadOptions { guard: Guard::Exec(path.into()), ..options() };
        let errors = load_sources(&[file(&["true".to_owned()])], &options, None).err().unwrap();
        assert!(errors.to_string().contains("the rule checker"), "{path}: {errors}");
    }
}

#[test]
fn ten_thousand_rules_load() {
    let conditions: Vec<String> = (0..10_000)
        .map(|n| format!("http.host == \"h{n}.example.com\" || http.host.endsWith(\".h{n}.example.com\")"))
        .collect();
    let loaded = load_sources(&[file(&conditions)], &options(), None).unwrap();
    assert_eq!(loaded.set.rules().len(), 10_000);
    // Unchanged conditions are not compiled again.
    let again = load_sources(&[file(&conditions)], &options(), Some(&loaded.set)).unwrap();
    assert!(std::sync::Arc::ptr_eq(&again.set.rules()[7], &loaded.set.rules()[7]));
}
