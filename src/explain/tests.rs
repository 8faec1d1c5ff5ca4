//! Explanations without a wire; that they say what the wire does is `tests/explain_wire.rs`.

use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::api::ExplainRequest;
use crate::docker_manager::{Directory, Endpoint, ManagedNetwork};
use crate::rule_engine::{Guard, LoadOptions, Source, load_sources};

fn load(texts: &[&str]) -> Arc<crate::rule_engine::RuleSet> {
    let options = LoadOptions { proxy: true, interception: true, guard: Guard::InProcess };
    let sources: Vec<Source> = texts
        .iter()
        .enumerate()
        .map(|(number, text)| Source { name: format!("{number}.yaml"), text: (*text).to_owned() })
        .collect();
    load_sources(&sources, &options, None).unwrap_or_else(|errors| panic!("{errors}\n{texts:?}")).set
}

/// `ACTION[/EGRESS] CONDITION` lines as a rule file.
fn rules(lines: &[&str]) -> String {
    let mut text = "version: \"1\"\nrules:\n".to_owned();
    for (number, line) in lines.iter().enumerate() {
        let (action, condition) = line.split_once(' ').unwrap();
        let (action, egress) = action.split_once('/').unwrap_or((action, ""));
        let egress = match egress {
            "private" => ", egress: {allow_private_ips: true}",
            "intercept" => ", egress: {mode: intercept}",
            "direct" => ", egress: {mode: direct_ip, ports: [443]}",
            _ => "",
        };
        let condition = serde_json::Value::from(condition);
        text += &format!("  - {{id: r{number}, action: {action}, condition: {condition}{egress}}}\n");
    }
    text
}

fn snapshot(set: Arc<crate::rule_engine::RuleSet>) -> Arc<Snapshot> {
    let mut directory = Directory::empty(Instant::now());
    let network = Arc::new(ManagedNetwork {
        name: "outcall-default".to_owned(),
        id: "n".repeat(64),
        bridge: "outcall0".to_owned(),
        subnet: "10.200.0.0/24".parse().unwrap(),
        gateway: "10.200.0.1".parse().unwrap(),
    });
    let address = "10.200.0.2".parse().unwrap();
    let endpoint = Endpoint {
        container_id: "c".repeat(64).into(),
        container: "worker-1".into(),
        agent: "worker".into(),
        network: Arc::clone(&network),
        address,
        mac: [2, 0, 0, 0, 0, 1],
        sandbox_key: String::new(),
        pid: 0,
    };
    directory.endpoints.insert(address, Arc::new(endpoint));
    directory.networks.push(network);
    Arc::new(Snapshot { generation: 1, rules: set, directory: Arc::new(directory) })
}

fn proxy() -> ProxyWay {
    ProxyWay::Present(Listening { address: "0.0.0.0:8080".parse().unwrap(), extra_peers: false })
}

fn question(snapshot: &Arc<Snapshot>, target: &str, method: Option<&str>, container: bool) -> Question {
    let request = ExplainRequest {
        target: target.to_owned(),
        method: method.map(str::to_owned),
        container: container.then(|| "worker-1".to_owned()),
    };
    Question::read(&request, snapshot, proxy()).unwrap_or_else(|error| panic!("{target}: {error:?}"))
}

/// The explanation, with names resolved to `address` if they would be at all.
fn explain(set: &Arc<crate::rule_engine::RuleSet>, target: &str, address: &str) -> api::Explained {
    let snapshot = snapshot(Arc::clone(set));
    let question = question(&snapshot, target, None, true);
    let resolved = question.wants().map(|_| Ok(vec![address.parse().unwrap()]));
    question.answer(&resolved, &Ok(Vec::new()))
}

fn short(explained: &api::Explained) -> Vec<String> {
    let steps = explained.steps.iter();
    steps.map(|step| format!("{} {} {}", step.layer, step.verdict, step.rule.as_deref().unwrap_or("-"))).collect()
}

#[test]
fn an_allowed_url_passes_every_layer() {
    let set = load(&[&rules(&["allow http.host == 'a.com' || dns.query == 'a.com'"])]);
    let explained = explain(&set, "https://a.com/x", "93.184.216.34");
    assert_eq!(
        short(&explained),
        ["dns allow r0", "proxy allow r0", "resolution allow r0", "proxy allow r0", "kernel block -"]
    );
    assert_eq!((&*explained.verdict, &explained.suggestion), ("allow", &None));
}

#[test]
fn the_request_inside_a_decrypted_tunnel_is_judged_too() {
    let set = load(&[&rules(&[
        "allow/intercept http.host == 'a.com' && http.path.startsWith('/v1')",
        "allow dns.query == 'a.com'",
    ])]);
    let seen = short(&explain(&set, "https://a.com/v1/x", "93.184.216.34"));
    assert_eq!(seen[1..5], ["proxy allow r0", "resolution allow r0", "proxy allow r0", "intercept allow r0"]);
    let explained = explain(&set, "https://a.com/v2", "93.184.216.34");
    assert_eq!((&*short(&explained)[4], &*explained.verdict), ("intercept block -", "block"));
    assert_eq!(short(&explain(&set, "https://a.com/v1", "10.0.0.1"))[4], "intercept block r0");
}

#[test]
fn a_denied_name_is_not_to_be_resolved() {
    let set = load(&[&rules(&["allow http.host == 'b.com'", "block network.ip == '1.2.3.4'"])]);
    let snapshot = snapshot(Arc::clone(&set));
    assert_eq!(question(&snapshot, "https://a.com/", None, true).wants(), None);
    assert!(question(&snapshot, "https://b.com/", None, true).wants().is_some());
    assert_eq!(question(&snapshot, "https://1.2.3.4/", None, true).wants(), None);
}

#[test]
fn the_rule_that_nearly_matched_is_named_with_what_failed() {
    let set = load(&[&rules(&["allow http.host == 'a.com' && network.port == 8443"])]);
    let explained = explain(&set, "https://a.com/", "93.184.216.34");
    assert_eq!(short(&explained), ["dns block -", "proxy block -", "kernel block -"]);
    let near = &explained.steps[1].near[0];
    assert_eq!((&*near.rule, &*near.failed[0].part, &*near.failed[0].is), ("r0", "network.port == 8443", "false"));
    assert_eq!(near.failed[0].values["network.port"].as_deref(), Some("443"));
    let at_dns = &explained.steps[0].near[0].failed[0];
    assert_eq!((&*at_dns.part, &*at_dns.is), ("http.host == \"a.com\"", "unknown"));
}

#[test]
fn a_private_address_is_named_as_the_reason() {
    let set = load(&[&rules(&["allow http.host == 'a.com'"])]);
    let explained = explain(&set, "http://a.com/x?y", "10.1.1.1");
    assert_eq!(short(&explained)[2], "resolution block r0");
    assert!(explained.steps[2].reason.contains("allow_private_ips"), "{explained:?}");
    assert_eq!(
        explained.suggestion.as_deref(),
        Some(
            "version: \"1\"\nrules:\n  - id: allow-a-com\n    condition: 'agent.name == \"worker\" && http.host == \
             \"a.com\" && network.port == 80 && http.method == \"GET\" && http.path == \"/x?y\"'\n    action: allow\n    \
             priority: 99\n    egress:\n      allow_private_ips: true\n"
        )
    );
}

#[test]
fn a_direct_flow_is_told_from_the_proxys() {
    let set = load(&[&rules(&["allow/direct dns.query == 'a.com'"])]);
    let explained = explain(&set, "a.com:443", "93.184.216.34");
    assert_eq!(short(&explained), ["dns allow r0", "proxy block -", "direct_ip allow r0"]);
    assert_eq!(explained.verdict, "allow");
    assert_eq!(short(&explain(&set, "a.com:22", "93.184.216.34"))[2], "direct_ip block r0");
    // A private address is stripped from the answer already.
    assert_eq!(short(&explain(&set, "a.com", "10.0.0.9")), ["dns block r0", "proxy block -", "kernel block -"]);
}

/// A flow of the container `id`, opened by hand or for `names`.
fn flow(id: &str, destination: &str, protocol: u8, port: u16, names: &[&str]) -> GrantedFlow {
    let snapshot = snapshot(load(&[&rules(&["allow true"])]));
    let mut endpoint = (**snapshot.directory.endpoints.values().next().unwrap()).clone();
    endpoint.container_id = id.repeat(64).into();
    GrantedFlow {
        endpoint: Arc::new(endpoint),
        destination: destination.parse().unwrap(),
        protocol,
        port,
        names: names.iter().map(|name| (*name).into()).collect(),
        inserted_at: std::time::SystemTime::UNIX_EPOCH,
        expires_in: std::time::Duration::from_millis(59_001),
        handle: 0,
        packets: 0,
        bytes: 0,
    }
}

#[test]
fn a_flow_that_is_open_leads_through_whatever_the_rules_say() {
    let snapshot = snapshot(load(&[&rules(&["block true"])]));
    let answer =
        |target: &str, flow: GrantedFlow| question(&snapshot, target, None, true).answer(&None, &Ok(vec![flow]));
    let explained = answer("9.9.9.9:853", flow("c", "9.9.9.9", 6, 853, &[]));
    assert_eq!((&*explained.verdict, &explained.suggestion), ("allow", &None));
    let step = explained.steps.last().unwrap();
    assert_eq!((&*step.layer, &*step.verdict), ("kernel", "allow"));
    assert_eq!(step.reason, "past the proxy: 9.9.9.9 port 853 is open now, opened by hand, new connections for 60 s");
    assert_eq!(explained.steps.iter().filter(|step| step.layer == "kernel").count(), 1);
    // Another container's, another port, another protocol, another address.
    for (id, destination, protocol, port) in
        [("d", "9.9.9.9", 6, 853), ("c", "9.9.9.9", 6, 443), ("c", "9.9.9.9", 17, 853), ("c", "9.9.9.8", 6, 853)]
    {
        let explained = answer("9.9.9.9:853", flow(id, destination, protocol, port, &[]));
        assert_eq!(explained.verdict, "block", "{id} {destination} {protocol} {port}");
    }
    // A name that nobody has resolved: the answer for it tells, an address that is open may or may not be its own.
    let explained = answer("a.com:443", flow("c", "9.9.9.9", 6, 443, &["a.com"]));
    assert!(explained.steps.last().unwrap().reason.contains("opened by the answer for a.com"), "{explained:?}");
    let explained = answer("a.com:443", flow("c", "9.9.9.9", 6, 443, &[]));
    assert_eq!(explained.verdict, "block");
    assert!(explained.notes.iter().any(|note| note.contains("on port 443: 9.9.9.9")), "{explained:?}");
    // What cannot be read is said.
    let explained = question(&snapshot, "9.9.9.9:853", None, true).answer(&None, &Err("no answer".to_owned()));
    assert!(explained.notes.iter().any(|note| note.contains("could not be read: no answer")), "{explained:?}");
}

#[test]
fn a_flow_that_is_open_is_told_beside_what_an_answer_would_open() {
    let snapshot = snapshot(load(&[&rules(&["allow/direct dns.query == 'a.com'"])]));
    let resolved = Some(Ok(vec!["93.184.216.34".parse().unwrap()]));
    let open = Ok(vec![flow("c", "93.184.216.34", 6, 443, &["a.com"])]);
    let explained = question(&snapshot, "a.com:443", None, true).answer(&resolved, &open);
    assert_eq!(short(&explained), ["dns allow r0", "proxy block -", "direct_ip allow r0", "kernel allow -"]);
}

#[test]
fn a_refusal_inside_a_decrypted_tunnel_is_mended_by_a_rule_for_that_request() {
    let set = load(&[&rules(&["allow/intercept http.host == 'a.com' && http.path.startsWith('/v1')"])]);
    let explained = explain(&set, "https://a.com/v2?x", "93.184.216.34");
    let suggested = explained.suggestion.unwrap();
    assert!(
        suggested.contains("network.port == 443 && http.method == \"GET\" && http.path == \"/v2?x\"'\n"),
        "{suggested}"
    );
    assert!(suggested.ends_with("    action: allow\n    egress:\n      mode: intercept\n"), "{suggested}");
}

#[test]
fn what_no_rule_can_allow_has_no_suggestion() {
    let set = load(&[&rules(&["allow http.host == 'b.com'"])]);
    for target in ["http://a.com/../x", "http://10.200.0.1:8080/", "http://0.0.0.0/", "http://b.local/"] {
        let explained = explain(&set, target, "0.0.0.0");
        assert_eq!(explained.verdict, "block", "{target}");
        // A name that no rule allows is not resolved, so that it cannot be known that it has no address.
        assert!(explained.suggestion.is_none() || target.contains("local"), "{target}: {explained:?}");
    }
}

#[test]
fn without_a_proxy_only_direct_flows_are_suggested() {
    let set = load(&[&rules(&["block dns.query == 'a.com'"])]);
    let snapshot = snapshot(set);
    let request = ExplainRequest { target: "a.com:22".to_owned(), method: None, container: None };
    let question = Question::read(&request, &snapshot, ProxyWay::Absent).unwrap();
    let explained = question.answer(&None, &Ok(Vec::new()));
    let text = explained.suggestion.unwrap();
    assert!(text.contains("mode: direct_ip\n      ports: [22]") && text.contains("priority: 99"), "{text}");
    assert!(explained.notes[0].contains("--extra-peers"));
}

#[test]
fn malformed_questions_are_told_from_unknown_containers() {
    let snapshot = snapshot(load(&[&rules(&["allow true"])]));
    let read = |target: &str, method: Option<&str>, container: Option<&str>| {
        let request = ExplainRequest {
            target: target.to_owned(),
            method: method.map(str::to_owned),
            container: container.map(str::to_owned),
        };
        Question::read(&request, &snapshot, proxy()).err()
    };
    assert!(matches!(read("http://a.com", Some("CONNECT"), None), Some(Unexplained::Malformed(_))));
    assert!(matches!(read("a.com:1", Some("GET"), None), Some(Unexplained::Malformed(_))));
    assert!(matches!(read("a b", None, None), Some(Unexplained::Malformed(_))));
    assert!(matches!(read("a.com", None, Some("worker")), Some(Unexplained::NoContainer(_))));
    assert_eq!(read("a.com", None, Some("worker-1")), None);
}

fn line() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "http.host == 'a.com'",
        "http.host.endsWith('.com')",
        "dns.query == 'a.com'",
        "network.port == 443",
        "network.port != 443",
        "http.method == 'GET'",
        "http.method != 'CONNECT'",
        "http.path.startsWith('/v1')",
        "network.ip.startsWith('10.')",
        "network.ip == '93.184.216.34'",
        "agent.name == 'worker'",
        "tls.version == '1.3'",
        "tls.ech",
        "http.host in ['a.com', '10.0.0.7']",
        "true",
    ]);
    let action = prop::sample::select(vec![
        "allow",
        "allow/private",
        "allow/direct",
        "allow/intercept",
        "allow/intercept",
        "block",
        "block",
    ]);
    let join = prop::sample::select(vec![" && ", " || "]);
    (action, part.clone(), join, part).prop_map(|(action, one, join, two)| format!("{action} {one}{join}{two}"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// A suggested rule loads beside the rules in force, and allows what was blocked; and one is found.
    #[test]
    fn a_suggested_rule_really_allows_it(
        lines in prop::collection::vec(line(), 0..6),
        target in prop::sample::select(vec![
            "https://a.com/v1/x", "http://a.com/v1?q='1'\"\\", "http://b.org:8080/", "a.com:22", "10.0.0.7:443",
            "http://93.184.216.34/", "b.org",
        ]),
        address in prop::sample::select(vec!["93.184.216.34", "10.0.0.7", "8.8.8.8"]),
        container: bool,
    ) {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let text = if lines.is_empty() { "version: \"1\"\nrules: []\n".to_owned() } else { rules(&lines) };
        let answer = |set: Arc<crate::rule_engine::RuleSet>| {
            let snapshot = snapshot(set);
            let question = question(&snapshot, target, None, container);
            let resolved = question.wants().map(|_| Ok(vec![address.parse().unwrap()]));
            (question.answer(&resolved, &Ok(Vec::new())), resolved.is_some())
        };
        let (explained, resolved) = answer(load(&[&text]));
        if explained.verdict == "block" {
            let suggested = explained.suggestion.clone();
            prop_assert!(suggested.is_some(), "{lines:?} {target} {explained:?}");
            let suggested = suggested.unwrap();
            // A tunnel that the rules have decrypted is opened for no more than the one request.
            let inside = explained.steps.iter().any(|step| step.layer == "intercept");
            prop_assert_eq!(inside, suggested.contains("mode: intercept"), "{:?} {}", lines, suggested);
            let own = load(&[&suggested]);
            prop_assert_eq!(own.rules().len(), 1);
            // Whatever the file is called.
            for texts in [[text.as_str(), &suggested], [&suggested, text.as_str()]] {
                let (after, now_resolved) = answer(load(&texts));
                let allowed = after.verdict == "allow" || (!resolved && now_resolved);
                prop_assert!(allowed, "{lines:?} {target} {address}\n{suggested}\n{after:#?}");
            }
        } else {
            prop_assert_eq!(explained.suggestion, None);
        }
    }
}
