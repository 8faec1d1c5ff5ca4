//! Loading rule files: order, errors and warnings.
#![cfg(feature = "daemon")]

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use outcall::rule_engine::{Context, Dns, Guard, LoadOptions, Loaded, RuleSet, Source, check, load, load_sources};

fn options() -> LoadOptions {
    LoadOptions { proxy: true, interception: false, guard: Guard::InProcess }
}

fn source(name: &str, text: &str) -> Source {
    Source { name: name.to_owned(), text: text.to_owned() }
}

fn rules(text: &str) -> Source {
    source("a.yaml", &format!("version: \"1\"\nrules:\n{text}"))
}

fn errors(source: Source) -> Vec<String> {
    load_sources(&[source], &options(), None).err().map(|errors| errors.lines()).unwrap_or_default()
}

fn loaded(sources: &[Source], options: &LoadOptions) -> Loaded {
    load_sources(sources, options, None).unwrap_or_else(|errors| panic!("{errors}"))
}

fn ids(set: &RuleSet) -> Vec<&str> {
    set.rules().iter().map(|rule| rule.id.as_ref()).collect()
}

/// A directory of its own, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("outcall-rules-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.0.join(name), text).unwrap();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn rules_run_by_priority_then_file_then_position() {
    let one = "version: \"1\"\nrules:\n  - {id: b1, action: block, condition: 'true'}\n  - {id: b2, action: block, condition: 'true'}\n";
    let two = "version: \"1\"\nrules:\n  - {id: a1, action: block, condition: 'true', priority: 200}\n  - {id: a2, action: block, condition: 'true', priority: -1}\n  - {id: a3, action: block, condition: 'true'}\n";
    let loaded = loaded(&[source("20-b.yaml", one), source("10-a.yml", two)], &options());
    assert_eq!(ids(&loaded.set), ["a2", "a3", "b1", "b2", "a1"]);
    assert_eq!(loaded.files, 2);
    assert_eq!(loaded.set.rules()[3].order, 3);
}

#[test]
fn the_contracts_example_loads() {
    let text = r#"
version: "1"
definitions:
  github: 'http.host == "github.com" || http.host.endsWith(".github.com")'
rules:
  - id: allow-github
    description: text
    condition: '$github'
    action: allow
    priority: 100
    log: true
    egress:
      mode: direct_ip
      ports: [443]
      allow_private_ips: false
"#;
    let loaded = loaded(&[source("a.yaml", text)], &options());
    let detail = loaded.set.detail("allow-github").unwrap();
    assert_eq!(detail.condition, r#"(http.host == "github.com" || http.host.endsWith(".github.com"))"#);
    assert_eq!(detail.egress.unwrap().ports, [443]);
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let summary = &loaded.set.summaries()[0];
    assert_eq!((summary.condition_preview.as_str(), summary.last_hit.as_deref()), ("$github", None));
}

#[test]
fn every_error_of_every_file_is_reported_with_its_place() {
    let one = "\
version: \"1\"
definitions:
  loop: '$pool'
  pool: '$loop'
rules:
  - id: a
    condition: 'ip.dst == \"x\"'
    action: allow
  - id: a
    condition: 'true'
    action: enrich
  - id: b
    condition: '$loop'
    action: alow
    colour: red
  - condition: 'http.host =='
    action: block
    egress: {mode: proxy}
  - id: c
    condition: 'http.host =='
    action: block
  - id: c
    condition: '$lop'
    action: block
  - id: d
    condition: 'true'
    action: allow
    egress:
      mode: intercept
      match_body: true
";
    let two = "version: \"2\"\nrulez: []\n";
    let errors = load_sources(&[source("1.yaml", one), source("2.yaml", two)], &options(), None).err().unwrap();
    let lines = errors.lines();
    let expected = [
        "1.yaml:7: rule a: there is no field `ip.dst`; did you mean `network.ip`?",
        "1.yaml:9: rule a: the id is taken already, at 1.yaml:6",
        "1.yaml:11: rule a: the action `enrich` is reserved; use allow or block",
        "1.yaml:13: rule b: the definitions are circular: $loop → $pool → $loop",
        "1.yaml:14: rule b: unknown action `alow`; did you mean `allow`?",
        "1.yaml:15: rule b: unknown field `colour`; there are id, description, condition, action, priority, log, egress",
        "1.yaml:16: `id` is missing",
        "1.yaml:18: `egress` is for allow rules; this one blocks",
        "1.yaml:20: rule c: CEL: column 13: mismatched input the end",
        "1.yaml:23: rule c: `$lop` is not defined in this file; did you mean `$loop`?",
        "1.yaml:28: rule d: `mode: intercept` needs a CA: start outcalld with --ca-cert and --ca-key",
        "2.yaml:1: `version` is \"2\"; this daemon reads \"1\"",
        "2.yaml:2: unknown field `rulez`; did you mean `rules`?",
    ];
    for expected in expected {
        assert!(lines.iter().any(|line| line == expected), "missing: {expected}\n{errors}");
    }
    assert_eq!(lines.len(), expected.len(), "{errors}");
}

#[test]
fn a_duplicate_id_names_the_first_place() {
    let first = "version: \"1\"\nrules:\n  - {id: x, action: block, condition: 'true'}\n";
    let errors = load_sources(&[source("a.yaml", first), source("b.yaml", first)], &options(), None).err().unwrap();
    assert_eq!(
        errors.to_string(),
        "b.yaml: rule x: the id is taken already, at a.yaml:3".replace("b.yaml:", "b.yaml:3:")
    );
}

#[test]
fn fields_of_the_wrong_shape_are_refused() {
    for (rule, reason) in [
        ("  - {id: 5, action: block, condition: 'true'}", "`id` is a number, not text; write it in quotes"),
        ("  - {id: -a, action: block, condition: 'true'}", "the id \"-a\" is not 1 to 128"),
        ("  - {id: ../a, action: block, condition: 'true'}", "the id \"../a\" is not 1 to 128"),
        ("  - {id: a, action: block, condition: true}", "`condition` is a bool, not a CEL text; write it in quotes"),
        ("  - {id: a, action: block}", "`condition` is missing"),
        ("  - {id: a, condition: 'true'}", "`action` is missing"),
        ("  - {id: a, action: block, condition: 'true', priority: high}", "`priority` is text, not a whole number"),
        ("  - {id: a, action: block, condition: 'true', log: yes}", "`log` is text; it is true or false"),
        ("  - {id: a, action: allow, condition: 'true', egress: {mode: direct}}", "unknown mode `direct`"),
        ("  - {id: a, action: allow, condition: 'true', egress: {ports: [443]}}", "`ports` is for `mode: direct_ip`"),
        (
            "  - {id: a, action: allow, condition: 'true', egress: {mode: direct_ip, ports: []}}",
            "`ports` has 0 entries",
        ),
        ("  - {id: a, action: allow, condition: 'true', egress: {mode: direct_ip, ports: [0]}}", "no port"),
        ("  - {id: a, action: allow, condition: 'true', egress: {mode: direct_ip, ports: [80, 80]}}", "80 twice"),
        ("  - {id: a, action: allow, condition: 'true', egress: {match_body: true}}", "`match_body` is for"),
        ("  - {id: a, action: allow, condition: 'true', egress: {modes: proxy}}", "did you mean `mode`?"),
        ("  - [a]", "a rule is a list, not a map"),
        ("  - {id: a, id: b, action: block, condition: 'true'}", "the key `id` is there twice"),
        ("  - {id: a, action: block, condition: ''}", "the condition is empty"),
    ] {
        let errors = errors(rules(&format!("{rule}\n")));
        assert!(errors.iter().any(|error| error.contains(reason)), "{rule}: {errors:?}");
    }
    for (text, reason) in [
        ("", "`version: \"1\"` is missing"),
        ("rules: []\n", "`version: \"1\"` is missing"),
        ("version: 1.5\nrules: []\n", "`version` is 1.5"),
        ("version: \"1\"\nrules: {}\n", "`rules` is a map, not a list"),
        ("version: \"1\"\ndefinitions: {a-b: x}\n", "has no name of letters"),
        ("version: \"1\"\ndefinitions: {a: }\n", "the definition `a` is nothing"),
        ("- a\n", "the file is a list, not a map"),
        ("version: \"1\"\nrules:\n\t- id: a\n", "YAML: "),
    ] {
        let errors = errors(source("a.yaml", text));
        assert!(errors.iter().any(|error| error.contains(reason)), "{text}: {errors:?}");
    }
    assert!(errors(source("a.yaml", "version: 1\nrules: []\n")).is_empty());
}

#[test]
fn what_cannot_be_enforced_does_not_load() {
    let intercept = rules("  - {id: a, action: allow, condition: 'true', egress: {mode: intercept}}\n");
    let proxy = rules("  - {id: a, action: allow, condition: 'true', egress: {mode: proxy}}\n");
    let silent = rules("  - {id: a, action: allow, condition: 'true'}\n");
    let direct = rules("  - {id: a, action: allow, condition: 'true', egress: {mode: direct_ip}}\n");
    let fails = |source: &Source, options: &LoadOptions| {
        load_sources(std::slice::from_ref(source), options, None).err().map(|errors| errors.to_string())
    };
    let no_ca = LoadOptions { interception: false, ..options() };
    assert!(fails(&intercept, &no_ca).unwrap().contains("--ca-cert and --ca-key"));
    let ready = LoadOptions { interception: true, ..options() };
    assert_eq!(fails(&intercept, &ready), None);
    let no_proxy = LoadOptions { proxy: false, ..ready };
    assert!(fails(&proxy, &no_proxy).unwrap().contains("--no-proxy"));
    assert!(fails(&intercept, &no_proxy).unwrap().contains("--no-proxy"));
    assert_eq!(fails(&direct, &no_proxy), None);
    let loaded = loaded(&[silent], &no_proxy);
    assert_eq!(
        loaded.warnings,
        ["a.yaml:3: rule a: there is no proxy (--no-proxy): only the DNS part of this rule works"]
    );
}

#[test]
fn a_block_rule_that_cannot_see_into_a_tunnel_is_warned_about() {
    let case = |block: &str, allow: &str| {
        let text = format!(
            "  - {{id: deny, action: block, condition: {block:?}}}\n  - {{id: pass, action: allow, condition: {allow:?}}}\n"
        );
        loaded(&[rules(&text)], &options()).warnings
    };
    for (block, allow) in [
        ("http.method == 'POST'", "true"),
        ("http.host == 'a.com' && http.path.startsWith('/x')", "http.host.endsWith('.com')"),
        ("http.headers['x'] == 'y'", "http.host == 'a.com'"),
    ] {
        let warnings = case(block, allow);
        assert!(warnings.len() == 1 && warnings[0].contains("rule deny"), "{block}: {warnings:?}");
        assert!(warnings[0].contains("the later rule pass"), "{warnings:?}");
    }
    for (block, allow) in [
        ("http.method == 'CONNECT'", "true"),
        ("http.method != 'GET'", "true"),
        ("http.host == 'a.com'", "true"),
        ("http.host == 'a.com' && http.method == 'POST'", "http.host == 'b.com'"),
        ("http.host.endsWith('.a.com') && http.method == 'POST'", "http.host.endsWith('.b.com')"),
    ] {
        assert_eq!(case(block, allow), Vec::<String>::new(), "{block}");
    }
    let before = "  - {id: pass, action: allow, condition: 'true'}\n  - {id: deny, action: block, condition: 'http.method == \"POST\"'}\n";
    assert!(loaded(&[rules(before)], &options()).warnings.is_empty());
}

#[test]
fn unused_definitions_and_odd_literals_are_warned_about() {
    let text = "version: \"1\"\ndefinitions:\n  a: 'true'\n  b: '$c'\n  c: 'true'\nrules:\n  - id: x\n    action: block\n    condition: '$a && http.host == \"A.com\"'\n";
    let warnings = loaded(&[source("a.yaml", text)], &options()).warnings;
    assert_eq!(
        warnings,
        [
            "a.yaml:4: the definition `b` is used by no rule",
            "a.yaml:5: the definition `c` is used by no rule",
            "a.yaml:9: rule x: \"A.com\" is read as \"a.com\": that is the one form `http.host` has",
        ]
    );
}

#[test]
fn a_directory_is_read_by_name_and_what_is_no_rule_file_is_left_out() {
    let directory = Directory::new("names");
    let rule = |id: &str| format!("version: \"1\"\nrules:\n  - {{id: {id}, action: block, condition: 'true'}}\n");
    directory.write("b.yaml", rule("b"));
    directory.write("a.yml", rule("a"));
    directory.write("README.md", "not yaml: [");
    directory.write(".hidden.yaml", "not yaml: [");
    directory.write("c.yaml~", "not yaml: [");
    let loaded = load(&directory.0, &options(), None).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(ids(&loaded.set), ["a", "b"]);
    std::os::unix::fs::symlink(directory.0.join("b.yaml"), directory.0.join("d.yaml")).unwrap();
    let errors = load(&directory.0, &options(), None).err().unwrap();
    assert!(errors.to_string().starts_with("d.yaml:3: rule b: the id is taken already, at b.yaml:3"), "{errors}");
    let errors = load(&directory.0.join("b.yaml"), &options(), None).err().unwrap();
    assert!(errors.to_string().ends_with("b.yaml: it is a file; give the directory that holds it"), "{errors}");
}

#[test]
fn files_that_are_no_text_or_no_files_are_refused() {
    let directory = Directory::new("odd");
    directory.write("a.yaml", b"version: \"1\"\n# \xff\n");
    fs::create_dir(directory.0.join("b.yaml")).unwrap();
    nix::unistd::mkfifo(&directory.0.join("c.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::File::create(directory.0.join("d.yaml")).unwrap().set_len(9 * 1024 * 1024).unwrap();
    let errors = load(&directory.0, &options(), None).err().unwrap();
    assert_eq!(
        errors.lines(),
        [
            "a.yaml:2: is no UTF-8 here",
            "b.yaml: is no regular file",
            "c.yaml: is no regular file",
            "d.yaml: is over 8388608 bytes",
        ]
    );
}

#[test]
fn an_absent_or_empty_directory_blocks_everything_with_a_warning() {
    let directory = Directory::new("empty");
    for path in [directory.0.clone(), directory.0.join("absent")] {
        let loaded = load(&path, &options(), None).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!((loaded.files, loaded.set.rules().len(), loaded.warnings.len()), (0, 0, 1));
        assert!(loaded.warnings[0].contains("everything is blocked"));
    }
    let file = directory.0.join("file");
    fs::write(&file, "").unwrap();
    assert!(load(&file, &options(), None).is_err());
}

#[test]
fn counters_survive_a_reload_of_an_unchanged_rule_only() {
    let text = |extra: &str, second: &str| {
        rules(&format!(
            "{extra}  - {{id: a, action: block, condition: 'dns.query == \"a.com\"'}}\n  - {{id: b, action: block, condition: '{second}'}}\n"
        ))
    };
    let first = loaded(&[text("", "true")], &options());
    let ask = |set: &RuleSet, query: &str| {
        let dns = Dns { query: Some(query), ..Dns::default() };
        set.decide(&Context { dns, ..Context::default() })
    };
    let _ = ask(&first.set, "a.com");
    let _ = ask(&first.set, "b.com");
    let moved = text("  - {id: z, action: block, condition: 'false'}\n", "1 == 1");
    let second = load_sources(&[moved], &options(), Some(&first.set)).unwrap_or_else(|errors| panic!("{errors}"));
    let hits = |id: &str| second.set.rule(id).unwrap().hits.load(Ordering::Relaxed);
    assert_eq!((hits("a"), hits("b"), hits("z")), (1, 0, 0));
    assert!(second.set.rule("a").unwrap().last_hit_ms.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_check_reports_what_a_start_would_say() {
    let directory = Directory::new("check");
    directory.write(
        "a.yaml",
        "version: \"1\"\ndefinitions:\n  x: 'true'\nrules:\n  - {id: a, action: allow, condition: 'true'}\n",
    );
    let checked = check(&directory.0, &options());
    assert!(checked.valid);
    let report = checked.report.join("\n");
    assert!(report.contains("warning: a.yaml:3: ") && report.contains("ok: 1 rules (1 allow, 0 block)"), "{report}");
    assert_eq!((checked.findings[0].line, checked.findings[0].level.as_str()), (Some(3), "warning"));
    directory.write("b.yaml", "version: \"1\"\nrules:\n  - {id: a, action: allow, condition: 'true'}\n");
    let checked = check(&directory.0, &options());
    assert!(!checked.valid && checked.report[0].starts_with("error: b.yaml:3: rule a: "), "{checked:?}");
    assert_eq!(checked.findings[0].rule.as_deref(), Some("a"));
}
