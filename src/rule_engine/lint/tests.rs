//! Each remark with what it is about, and silence where nothing is wrong.

use crate::rule_engine::{Guard, LoadOptions, Source, load_sources};

/// `ACTION[/MODE] CONDITION` lines as r0, r1, …
fn file(lines: &[&str]) -> String {
    let mut text = "version: \"1\"\nrules:\n".to_owned();
    for (number, line) in lines.iter().enumerate() {
        let (action, condition) = line.split_once(' ').unwrap();
        let (action, mode) = action
            .split_once('/')
            .map_or((action, String::new()), |(action, mode)| (action, format!("    egress: {{mode: {mode}}}\n")));
        let condition = serde_json::Value::from(condition);
        text += &format!("  - id: r{number}\n    action: {action}\n    condition: {condition}\n{mode}");
    }
    text
}

fn said(text: &str) -> Vec<String> {
    let options = LoadOptions { proxy: true, interception: true, guard: Guard::InProcess };
    let sources = [Source { name: "t.yaml".to_owned(), text: text.to_owned() }];
    let loaded = load_sources(&sources, &options, None).unwrap_or_else(|errors| panic!("{errors}"));
    loaded.remarks().iter().map(ToString::to_string).collect()
}

fn about(lines: &[&str]) -> Vec<String> {
    said(&file(lines))
}

#[test]
fn a_suffix_without_its_dot_is_remarked_with_the_right_form() {
    assert_eq!(
        about(&["allow http.host.endsWith('x.com')"]),
        ["t.yaml:5: rule r0: `http.host.endsWith(\"x.com\")` also matches \"notx.com\"; write \
          `(http.host == \"x.com\" || http.host.endsWith(\".x.com\"))`"]
    );
    assert_eq!(about(&["allow http.host.endsWith('.x.com')", "allow dns.query.endsWith('-eu.x.com')"]), [""; 0]);
    assert_eq!(about(&["allow agent.name.endsWith('x') || http.path.endsWith('x.com')"]), [""; 0]);
}

#[test]
fn contradictions_are_proved() {
    for condition in [
        "http.host == 'a.com' && http.host == 'b.com'",
        "http.host in ['a.com', 'b.com'] && http.host.endsWith('.c.com')",
        "http.host == 'a.com' && http.host != 'a.com'",
        "http.host.endsWith('.a.com') && http.host.endsWith('.b.com')",
        "network.port == 443 && network.port == 80",
        "network.port > 500 && network.port < 500",
        "tls.ech && !tls.ech",
        "http.path.startsWith('/a') && http.path.startsWith('/b')",
        "false",
        "network.port == 70000",
        "network.port > 65535",
        "network.port == 0",
        "http.scheme == 'HTTPS'",
        "network.protocol == 'TCP'",
        "dns.record_type == 'a'",
        "tls.version == 'TLSv1.3'",
        "network.ip == '10.0.0.0/8'",
        "network.ip == 'a.com'",
        "network.ip == '::ffff:1.2.3.4'",
        "http.path == 'v1'",
        "http.path.startsWith('v1/')",
        "(http.host == 'a.com' || http.host == 'b.com') && http.host == 'c.com'",
    ] {
        let said = about(&[&format!("allow {condition}")]);
        assert!(!said.is_empty() && said.iter().all(|line| line.contains("can never hold")), "{condition}: {said:?}");
        assert!(said.iter().all(|line| line.starts_with("t.yaml:5: rule r0: the condition")), "{said:?}");
    }
    let part =
        about(&["allow http.host == 'a.com' || (http.host == 'b.com' && http.method == 'GET' && network.port < 1)"]);
    assert!(part.len() == 1 && part[0].contains("a part of the condition"), "{part:?}");
}

#[test]
fn what_misleads_is_remarked() {
    for (condition, instead) in [
        ("http.method == 'get'", "http.method == \"GET\""),
        ("agent.name == 'worker-1'", "agent.container == \"worker-1\""),
        ("http.host.endsWith('a.com:443')", "network.port == 443"),
    ] {
        let said = about(&[&format!("allow {condition}")]);
        assert!(said.len() == 1 && said[0].contains(&format!("write `{instead}`")), "{condition}: {said:?}");
    }
}

#[test]
fn shadowed_rules_are_proved() {
    for (lines, says) in [
        (["allow http.host == 'a.com'", "allow http.host == 'a.com'"], "remove the rule"),
        (
            ["allow http.host.endsWith('.a.com')", "block http.host == 'x.a.com' && http.method == 'PUT'"],
            "`priority: 99`",
        ),
        (["block true", "allow http.host == 'a.com'"], "matches everything"),
        (
            ["allow http.host in ['a.com', 'b.com']", "block http.host == 'b.com' || http.host == 'a.com'"],
            "narrower condition of r0",
        ),
        (
            ["block network.port != 443", "allow network.port < 100 && http.host == 'a.com' && network.port != 443"],
            "r0",
        ),
        (["block network.port > 1000", "allow network.port == 8443"], "r0"),
        (["allow/direct_ip dns.query == 'a.com'", "allow dns.query == 'a.com'"], "`priority: 99`"),
    ] {
        let said = about(&lines);
        assert!(said.len() == 1 && said[0].contains("rule r1: the rule never decides"), "{lines:?}: {said:?}");
        assert!(said[0].contains(says), "{said:?}");
    }
}

#[test]
fn what_may_decide_is_left_alone() {
    for lines in [
        ["block http.host == 'a.com' && http.method == 'PUT'", "allow http.host == 'a.com'"],
        ["allow http.host == 'a.com'", "allow http.host == 'a.com' || dns.query == 'a.com'"],
        ["allow http.host.endsWith('.a.com')", "allow http.host == 'a.com'"],
        ["allow agent.name == 'w'", "allow agent.container == 'w'"],
        // It is what has the tunnel decrypted.
        [
            "block http.host == 'a.com' && http.method == 'PUT'",
            "allow/intercept http.host == 'a.com' && http.method == 'PUT'",
        ],
        ["allow http.host == 'a.com' ? true : false", "block http.host == 'a.com'"],
        ["block network.ip == '1.2.3.4'", "allow http.host == 'a.com'"],
        ["allow run.args.exists(a, a == 'x')", "block run.args.all(a, a == 'x')"],
        ["allow http.path.startsWith('/v1')", "allow http.path.startsWith('/v2') && http.method in ['GET', 'HEAD']"],
    ] {
        assert_eq!(about(&lines), [""; 0], "{lines:?}");
    }
}

#[test]
fn ten_thousand_rules_are_looked_at_in_time() {
    let lines: Vec<String> =
        (0..10_000).map(|n| format!("allow http.host == 'h{n}.com' && network.port == 443")).collect();
    let mut lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    lines.push("block http.host == 'h77.com' && network.port == 443");
    let said = about(&lines);
    assert!(said.len() == 1 && said[0].contains("r77"), "{said:?}");
}
