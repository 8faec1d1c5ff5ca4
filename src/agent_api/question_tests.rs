use serde_json::json;

use super::*;
use crate::agent_api::tests::endpoint;
use crate::rule_engine::{Guard, LoadOptions, Source, load_sources};

fn check(value: serde_json::Value) -> PermissionCheck {
    serde_json::from_value(value).unwrap()
}

/// The verdict of one allow rule.
fn allowed(condition: &str, question: serde_json::Value) -> bool {
    let text = format!("version: \"1\"\nrules:\n  - id: a\n    action: allow\n    condition: |-\n      {condition}\n");
    let options = LoadOptions { proxy: true, interception: false, guard: Guard::InProcess };
    let source = Source { name: "a.yaml".to_owned(), text };
    let rules = load_sources(&[source], &options, None).unwrap().set;
    let question = Question::read(check(question)).unwrap();
    question.ask(&endpoint("coder-1", 1, 100), &rules).verdict.allowed
}

#[test]
fn tools_are_seen_with_arguments_flags_and_directory() {
    let git = json!({"action_type": "tool_exec", "target": "git",
        "metadata": {"args_json": "[\"push\", \"--force\"]", "cwd": "/work", "ticket": 7}});
    for yes in [
        "run.tool == 'git' && 'push' in run.args && run.cwd == '/work'",
        "'--force' in run.flags",
        "run.context.action_type == 'tool_exec' && run.context.target == 'git'",
        "run.context.ticket == 7",
        "agent.name == 'coder' && agent.container == 'coder-1'",
    ] {
        assert!(allowed(yes, git.clone()), "{yes}");
    }
    for no in ["!('--force' in run.flags)", "http.host != 'x'", "network.hostname != 'x'", "dns.query != 'x'"] {
        assert!(!allowed(no, git.clone()), "{no}");
    }
}

#[test]
fn arguments_come_as_list_text_or_words_and_are_unknown_when_absent() {
    let with = |metadata| json!({"action_type": "shell_exec", "target": "bash", "metadata": metadata});
    for metadata in
        [json!({"args_json": ["a b", "c"]}), json!({"args_json": "[\"a b\",\"c\"]"}), json!({"args": ["a b", "c"]})]
    {
        assert!(allowed("run.args == ['a b', 'c']", with(metadata.clone())), "{metadata}");
    }
    assert!(allowed("run.args == ['a', 'b']", with(json!({"args": " a  b "}))));
    assert!(!allowed("!('x' in run.args)", json!({"action_type": "shell_exec", "target": "bash"})));
    assert!(!allowed("!('-x' in run.flags)", with(json!({"args": ["-x"], "flags": ["-y"]}))));
    for metadata in [
        json!({"args_json": "{}"}),
        json!({"args_json": "[1]"}),
        json!({"args_json": 1}),
        json!({"args": [1]}),
        json!({"cwd": 1}),
        json!({"flags": {}}),
        json!({"method": "G T"}),
        json!({"method": "CONNECT"}),
    ] {
        assert!(Question::read(check(with(metadata.clone()))).is_err(), "{metadata}");
    }
}

#[test]
fn urls_fill_network_and_http() {
    let url = |target: &str| json!({"action_type": "network_call", "target": target, "metadata": {"method": "POST"}});
    for (condition, target) in [
        (
            "http.host == 'example.com' && http.path == '/a?b=c' && http.scheme == 'https'",
            "https://Example.COM./a?b=c#d",
        ),
        ("http.method == 'POST' && network.port == 443 && network.hostname == 'example.com'", "https://example.com"),
        ("network.port == 8080 && run.tool == 'network_call'", "http://example.com:8080/"),
        ("network.ip == '1.2.3.4' && network.hostname == '1.2.3.4'", "1.2.3.4:5432"),
        ("network.ip == '::1'", "https://[::1]/"),
        ("network.hostname == 'db.example' && network.port == 5432", "db.example:5432"),
        ("network.hostname == 'example.com' && network.port == 22", "ssh://example.com"),
    ] {
        assert!(allowed(condition, url(target)), "{condition} {target}");
    }
    // A host alone says nothing about a port or about HTTP.
    assert!(!allowed("network.port != 1", url("example.com")));
    assert!(!allowed("http.host == 'example.com'", url("example.com")));
}

#[test]
fn targets_without_one_reading_are_denied_whatever_the_rules() {
    for target in [
        "https://good.example@evil.example/",
        "https://0x7f.1/",
        "https://2130706433/",
        "example.com/path",
        "http://a b/",
        "https://exa\u{200b}mple.com/",
        "https://a..b/",
        "https://",
        "http://a:99999/",
        "a:b:c",
    ] {
        let question = json!({"action_type": "network_call", "target": target});
        assert!(!allowed("true", question), "{target}");
    }
    for path in ["../x", "/work/../etc/passwd", ".."] {
        assert!(!allowed("true", json!({"action_type": "file_access", "target": path})), "{path}");
    }
    assert!(allowed(
        "run.tool == 'file' && run.args == ['/work/..x']",
        json!({"action_type": "file_access", "target": "/work/..x"})
    ));
}

#[test]
fn a_target_is_a_line_of_text() {
    for target in ["", "a\nb", "a\0b", &"x".repeat(TARGET_MAX + 1)] {
        let question = check(json!({"action_type": "tool_exec", "target": target}));
        assert!(Question::read(question).is_err(), "{target:?}");
    }
}

#[test]
fn reasons_name_the_rule_and_nothing_of_it() {
    let question = Question::read(check(json!({"action_type": "tool_exec", "target": "x"}))).unwrap();
    let answered = question.ask(&endpoint("c", 1, 1), &RuleSet::block_all());
    assert_eq!(
        (answered.verdict.reason.as_str(), answered.verdict.matched_rule),
        ("no rule allows it (agent_api)", None)
    );
    let slow = timed_out();
    assert!(!slow.verdict.allowed && slow.code == "evaluation_timeout");
}
