//! Every route of the operator API: statuses, envelope and exact JSON.

#![cfg(all(feature = "daemon", feature = "cli"))]

mod api_world;
mod owner;

use std::time::{Duration, Instant};

use api_world::{World, links, snapshot};
use mio::Poll;
use outcall::event_loop::{mailbox, reply_channel};
use outcall::host_api::{HostApi, HostApiCommand, HostApiConfig, StartError};
use serde_json::{Value, json};

#[test]
fn the_dashboards_files_bind_the_browser() {
    let world = World::new(true);
    for (path, kind) in [("/ui/", "text/html"), ("/ui/app.js", "text/javascript"), ("/ui/style.css", "text/css")] {
        let (status, head, _) = world.call("HEAD", path, "");
        assert_eq!(status, 200, "{path}");
        let policy = "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n";
        for field in
            [policy, &format!("Content-Type: {kind}; charset=utf-8"), "X-Content-Type-Options: nosniff", "no-referrer"]
        {
            assert!(head.contains(field), "{path}: {field} in {head}");
        }
    }
    for path in ["/ui", "/ui/nothing.js", "/ui/../api/v1/bridge", "/ui//app.js"] {
        assert_ne!(world.call("HEAD", path, "").0, 200, "{path}");
    }
    assert_eq!(world.failure("POST", "/ui/", "{}").0, 405);
    assert_eq!(world.failure("GET", "/ui/app.js?x=1", "").0, 400);
}

#[test]
fn bridge_routes() {
    let world = World::new(true);
    let up = json!({"name":"outcall0","up":true,"index":12,"nftables_active":true,"nftables":"active"});
    let down = json!({"name":"outcall0","up":false,"index":null,"nftables_active":false,"nftables":"inactive"});
    assert_eq!(world.data("GET", "/api/v1/bridge", ""), up);
    assert_eq!(world.data("POST", "/api/v1/bridge/down", ""), down);
    assert_eq!(world.data("POST", "/api/v1/bridge/down", "{}"), down);
    let (status, error) = world.failure("POST", "/api/v1/bridge/up", "");
    assert!(status == 500 && error.contains("CAP_NET_ADMIN"), "{error}");
}

#[test]
fn without_a_ca_its_routes_are_not_found() {
    let world = World::new(true);
    for (method, path) in [
        ("GET", "/api/v1/ca"),
        ("GET", "/api/v1/ca/bundle"),
        ("GET", "/api/v1/proxy/intercept"),
        ("POST", "/api/v1/proxy/intercept/cache/flush"),
    ] {
        let (status, error) = world.failure(method, path, "");
        assert!(status == 404 && error.contains("--ca-cert"), "{error}");
    }
    assert_eq!(world.failure("POST", "/api/v1/ca", "").0, 405);
}

#[test]
fn network_routes() {
    let world = World::new(true);
    let one = json!({"exists":true,"network_id":"abc","name":"outcall-x","subnet":"10.200.0.0/24","gateway":"10.200.0.1",
        "bridge":"outcall0","containers":[{"name":"writer-1","ipv4_address":"10.200.0.2"}]});
    assert_eq!(world.data("GET", "/api/v1/network?name=x", ""), one);
    assert_eq!(world.data("GET", "/api/v1/networks", "").as_array().map(Vec::len), Some(1));
    assert_eq!(world.data("GET", "/api/v1/network/config", ""), json!({"subnet_block":"10.200.0.0/16"}));
    let (status, _, made) = world.call("POST", "/api/v1/network/create", r#"{"name":"x"}"#);
    assert_eq!(status, 201);
    let expected =
        json!({"network_id":"abc","name":"outcall-x","subnet":"10.200.1.0/24","gateway":"10.200.1.1","created":true});
    assert_eq!(made["data"], expected);
    assert_eq!(world.data("POST", "/api/v1/network/create", r#"{"name":"old"}"#)["created"], false);
    let (status, error) = world.failure("POST", "/api/v1/network/create", r#"{"name":"taken"}"#);
    assert!(status == 409 && error.contains("overlaps"), "{error}");
    assert_eq!(world.data("POST", "/api/v1/network/destroy", ""), json!({"name":"outcall-default","destroyed":true}));
}

#[test]
fn explain_routes() {
    let world = World::new(false);
    let explained = world.data("POST", "/api/v1/explain", r#"{"target":"https://not.allowed.example/x"}"#);
    let steps = explained["steps"].as_array().unwrap();
    let layers: Vec<&str> = steps.iter().map(|step| step["layer"].as_str().unwrap()).collect();
    assert_eq!(layers, ["dns", "proxy", "kernel"]);
    for step in steps {
        let keys: Vec<&str> = step.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys.len(), 5, "{keys:?}");
        assert!(["layer", "near", "reason", "rule", "verdict"].iter().all(|key| keys.contains(key)));
    }
    assert_eq!((&explained["verdict"], &steps[0]["rule"]), (&json!("block"), &Value::Null));
    assert!(explained["suggestion"].as_str().unwrap().starts_with("version: \"1\"\n"));
    for (body, status, says) in [
        (r#"{"target":"ftp://a.example/"}"#, 400, "HOST:PORT"),
        (r#"{"target":"a.example","method":"GET"}"#, 400, "`method` is for URLs"),
        (r#"{"target":"a.example","container":"nobody"}"#, 404, "nobody"),
        (r#"{"target":"a.example","user":"x"}"#, 400, "unknown field"),
        ("{}", 400, "target"),
    ] {
        let (code, error) = world.failure("POST", "/api/v1/explain", body);
        assert!(code == status && error.contains(says), "{body}: {code} {error}");
    }
    assert_eq!(world.failure("GET", "/api/v1/explain", "").0, 405);
}

#[test]
fn container_routes() {
    let world = World::new(true);
    let one = json!({"container_id":"abc","name":"coder-1","image":"busybox","state":"running",
        "network":"outcall-default","created_at":"2026-11-24T00:00:00.000Z"});
    assert_eq!(world.data("GET", "/api/v1/containers", ""), json!([one]));
    let mut detail = one;
    detail["ip_address"] = json!("10.200.0.2");
    detail["mounts"] = json!([{"source":"/s","target":"/t","read_only":true}]);
    detail["env"] = json!(["A=<redacted>"]);
    assert_eq!(world.data("GET", "/api/v1/container?name=coder-1", ""), detail);
    assert_eq!(world.failure("GET", "/api/v1/container", "").0, 400);
    let whole = r#"{"image":"busybox","network":"x","name":"coder-1","user":"7:7","memory_limit":8388608,"cpu_shares":2,
        "env":{"A":"1"},"cmd":["sh"],"entrypoint":["e"],"working_dir":"/w","volumes":["/s:/t:ro"],
        "include_outcall_helper_mounts":false,"interactive":true,"tty":true}"#;
    let (status, _, made) = world.call("POST", "/api/v1/container/create", whole);
    assert_eq!((status, &made["data"]), (201, &json!({"container_id":"abc","name":"coder-1","created":true})));
    let (status, error) = world.failure("POST", "/api/v1/container/create", r#"{"image":"blocked"}"#);
    assert_eq!((status, error.as_str()), (403, "blocked by rule test"));
    for body in [r#"{}"#, r#"{"image":"a","privileged":true}"#, r#"{"image":"a","env":["hunter2"]}"#] {
        let (status, error) = world.failure("POST", "/api/v1/container/create", body);
        assert!(status == 400 && !error.contains("hunter2"), "{error}");
    }
    let post = |call: &str, body: &str| world.data("POST", &format!("/api/v1/container/{call}"), body);
    assert_eq!(post("stop", r#"{"name":"a","timeout":1}"#), json!({"name":"a","stopped":true}));
    assert_eq!(post("remove", r#"{"name":"a","force":true}"#), json!({"name":"a","removed":true}));
    assert_eq!(post("pull", r#"{"image":"i"}"#), json!({"image":"i","pulled":true}));
}

#[test]
fn dns_and_proxy_routes() {
    let world = World::new(true);
    let stats = json!({"entries":1,"max_entries":10000,"hits":2,"misses":3,"evictions":0});
    let entry =
        json!({"hostname":"example.com","record_type":"A","ttl_remaining_secs":60,"cached_at":"2026-11-24T00:00:00Z"});
    assert_eq!(world.data("GET", "/api/v1/dns/cache", ""), stats);
    assert_eq!(world.data("GET", "/api/v1/dns/cache?entries=true", ""), json!({"stats":stats,"entries":[entry]}));
    assert_eq!(world.failure("GET", "/api/v1/dns/cache?entries=maybe", "").0, 400);
    assert_eq!(world.data("POST", "/api/v1/dns/cache/flush", ""), json!({"entries_flushed":7}));
    assert_eq!(world.data("GET", "/api/v1/dns", "")["queries_blocked"], 2);
    assert_eq!(world.data("GET", "/api/v1/proxy", "")["proxy_url"], "http://10.200.0.1:8080");
    let without = World::new(false);
    assert_eq!(without.data("GET", "/api/v1/proxy", "")["running"], false);
}

#[test]
fn rule_routes() {
    let world = World::new(true);
    let first = json!({"id":"test","file":"a.yaml","action":"block","condition_preview":"agent.name == \"tester\"",
        "description":null,"priority":50,"hits":0,"errors":0,"last_hit":null});
    let listed = world.data("GET", "/api/v1/rules", "");
    assert_eq!((listed.as_array().map(Vec::len), &listed[0]), (Some(2), &first));
    let shown = world.data("GET", "/api/v1/rule/allow-example", "");
    assert_eq!((&shown["action"], &shown["egress"]["mode"]), (&json!("allow"), &json!("proxy")));
    assert!(shown["condition"].as_str().is_some_and(|text| text.contains("endsWith")), "{shown}");
    assert_eq!(world.data("GET", "/api/v1/rule/test", "")["id"], "test");
    assert_eq!(world.failure("GET", "/api/v1/rule/evaluate", "").0, 405);
    let (status, error) = world.failure("GET", "/api/v1/rule/allow%2Dx", "");
    assert!(status == 404 && error.contains("`allow-x`"), "{error}");
    let (status, error) = world.failure("POST", "/api/v1/rules/reload", "");
    assert!(status == 422 && error.contains("a.yaml:3") && error.contains("b.yaml:1"), "{error}");
    let tested = world.data("POST", "/api/v1/rule/test", r#"{"expression":"true","context":{}}"#);
    assert_eq!(tested, json!({"result":true,"error":null}));
    let tested = world.data("POST", "/api/v1/rule/test", r#"{"expression":"((","context":{"http":{"host":"a"}}}"#);
    assert_eq!(tested, json!({"result":null,"error":"syntax error"}));
}

#[test]
fn evaluate_decides_as_the_wire_does_and_counts_nothing() {
    let world = World::new(true);
    let ask = |context: &Value| world.data("POST", "/api/v1/rule/evaluate", &json!({ "context": context }).to_string());
    let allowed = json!({"decision":"allow","matched_rule":"allow-example","file":"a.yaml","logged":true});
    assert_eq!(ask(&json!({"dns":{"query":"Www.Example.com.","record_type":"A"}})), allowed);
    let default = json!({"decision":"block","matched_rule":null,"file":null,"logged":false});
    assert_eq!(ask(&json!({"dns":{"query":"notexample.com"}})), default);
    assert_eq!(ask(&json!({})), default);
    let agent = ask(&json!({"dns":{"query":"example.com"},"agent":{"name":"tester"}}));
    assert_eq!(agent["matched_rule"], "test");
    let (status, error) = world.failure("POST", "/api/v1/rule/evaluate", r#"{"context":{"dns":{"qury":"a"}}}"#);
    assert!(status == 400 && error.contains("dns.query"), "{error}");
    assert_eq!(world.failure("POST", "/api/v1/rule/evaluate", r#"{"context":[]}"#).0, 400);
    assert_eq!(world.data("GET", "/api/v1/rules", "")[1]["hits"], 0);
}

#[test]
fn malformed_requests_say_what_is_wrong() {
    let world = World::new(true);
    let (status, error) = world.failure("POST", "/api/v1/network/create", r#"{"nmae":"x"}"#);
    assert!(status == 400 && error.contains("`nmae`"), "{error}");
    assert_eq!(world.failure("POST", "/api/v1/network/create", "{").0, 400);
    assert_eq!(world.failure("POST", "/api/v1/network/create", "[]").0, 400);
    let (status, error) = world.failure("POST", "/api/v1/bridge/down", r#"{"force":true}"#);
    assert!(status == 400 && error.contains("`force`"), "{error}");
    let (status, error) = world.failure("GET", "/api/v1/bridge?verbose=1", "");
    assert!(status == 400 && error.contains("`verbose`"), "{error}");
    assert_eq!(world.failure("POST", "/api/v1/rule/test", "{}").0, 400);
    let (status, error) = world.failure("POST", "/api/v1/rule/test", &format!("{{\"a\":\"{}\"}}", "x".repeat(70_000)));
    assert!(status == 413 && error.contains("65536"), "{error}");
}

#[test]
fn unknown_resources_and_methods() {
    let world = World::new(true);
    for path in ["/", "/api/v1", "/api/v1/", "/api/v1/bridges", "/api/v1/bridge/", "/api/v2/bridge", "/api/v1/rule/"] {
        assert_eq!(world.failure("GET", path, "").0, 404, "{path}");
    }
    let (status, head, _) = world.call("POST", "/api/v1/bridge", "");
    assert!(status == 405 && head.contains("Allow: GET, HEAD\r\n"), "{head}");
    let (status, head, _) = world.call("GET", "/api/v1/rules/reload", "");
    assert!(status == 405 && head.contains("Allow: POST\r\n"), "{head}");
    let (status, head, answer) = world.call("HEAD", "/api/v1/bridge", "");
    assert!(status == 200 && head.contains("Content-Length: ") && answer.is_null(), "{head}");
}

#[test]
fn health_names_the_thread_that_does_not_answer() {
    let world = World::new(false);
    assert_eq!(
        world.data("GET", "/api/v1/health", ""),
        json!({"healthy":true,"subsystems":["outcalld","bridge","rule_engine","docker_manager","dns","events",
            "agent_api","host_api"]})
    );
    let stuck = World::new(true);
    let begun = Instant::now();
    let (status, error) = stuck.failure("GET", "/api/v1/health", "");
    assert_eq!((status, error.as_str()), (503, "no answer within 1 s from: proxy"));
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[test]
fn ready_lists_parts_and_warnings() {
    let world = World::new(true);
    world.readiness.set("bridge", Ok(()));
    world.readiness.warn("x", Some("container y is also on an unmanaged network".to_owned()));
    let ready = world.data("GET", "/api/v1/ready", "");
    assert_eq!(ready["ready"], true);
    assert_eq!(ready["parts"]["bridge"], json!({"ok":true}));
    assert_eq!(ready["warnings"], json!(["container y is also on an unmanaged network"]));
    world.readiness.set("docker", Err("connect: no such file".to_owned()));
    let (status, _, answer) = world.call("GET", "/api/v1/ready", "");
    assert_eq!((status, &answer["success"]), (503, &Value::Bool(false)));
    assert_eq!(answer["error"], "not ready: docker: connect: no such file");
    assert_eq!(answer["data"]["parts"]["docker"], json!({"ok":false,"reason":"connect: no such file"}));
}

#[test]
fn the_command_and_the_api_understand_each_other() {
    let world = World::new(true);
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_outcall"));
        let output = command.arg("--socket").arg(&world.socket).args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let done = |arguments: &[&str]| {
        let (code, stdout, stderr) = run(arguments);
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}: {stdout}");
        stdout
    };
    assert!(done(&["bridge", "status"]).starts_with("Bridge:    outcall0\n"));
    assert!(done(&["bridge", "down"]).contains("State:     down\n"));
    assert!(done(&["dns", "test", "WWW.example.com."]).contains("Decision:  allow\n"));
    assert!(done(&["dns", "test", "example.org"]).contains("Decision:  block\n"));
    assert!(done(&["dns", "status"]).contains("Listens on:  0.0.0.0:53\n"));
    assert!(done(&["dns", "cache", "--entries"]).contains("example.com  A"));
    assert!(done(&["dns", "flush"]).contains("7 answers"));
    assert!(done(&["proxy", "status"]).contains("http://10.200.0.1:8080"));
    assert!(done(&["network", "list"]).contains("outcall-default"));
    assert!(done(&["network", "status", "--name", "x"]).contains("writer-1"));
    assert!(done(&["network", "create", "--name", "x"]).contains("Created:  yes\n"));
    assert!(done(&["network", "destroy"]).contains("outcall-default"));
    assert!(done(&["container", "list"]).contains("coder-1"));
    assert!(done(&["container", "inspect", "coder-1"]).contains("<redacted>"));
    let create = ["container", "create", "--name", "coder-1", "-e", "PATH", "busybox", "sh", "-c", "--x"];
    assert!(done(&create).contains("coder-1"));
    assert!(done(&["rules", "list"]).contains("allow-example"));
    assert!(done(&["rules", "show", "allow-example"]).contains("Egress:"));
    assert!(done(&[]).contains("Rules:     2 rules, 1 to allow, 1 to block\n"));
    let listed: Value = serde_json::from_str(&done(&["--json", "rules", "list"])).unwrap();
    assert_eq!(listed, world.data("GET", "/api/v1/rules", ""));
    assert_eq!(run(&["rules", "show", "no-such"]).0, 1);
    let (code, _, stderr) = run(&["rules", "reload"]);
    assert!(code == 1 && stderr.lines().count() == 2, "{stderr}");
}

#[test]
fn a_new_snapshot_is_acknowledged() {
    let world = World::new(true);
    assert!(world.own.send(HostApiCommand::Snapshot(snapshot(7))).is_ok());
    assert_eq!(world.acknowledged.recv_timeout(Duration::from_secs(5)), Ok(7));
    let (reply, answer) = reply_channel();
    assert!(world.own.send(HostApiCommand::Ping(reply)).is_ok());
    assert_eq!(answer.recv_timeout(Duration::from_secs(5)), Ok(()));
}

#[test]
fn a_second_daemon_on_the_same_socket_does_not_start() {
    let world = World::new(true);
    let poll = Poll::new().unwrap();
    let (own, inbox) = mailbox(&poll, 4).unwrap();
    let mut stops = Vec::new();
    let (sender, _receiver) = crossbeam_channel::bounded(1);
    let links = links(false, own, &mut stops, sender);
    let config = HostApiConfig { socket: world.socket.clone(), subnet_block: String::new(), ca: None, proxy: None };
    let refusal = match HostApi::start(config, links, poll, inbox, snapshot(1)) {
        Err(error @ StartError::Socket(_)) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("two daemons on one socket"),
    };
    assert!(refusal.starts_with(&format!("another outcalld answers at {}", world.socket.display())), "{refusal}");
    stops.into_iter().for_each(|stop| stop());
    assert_eq!(world.data("GET", "/api/v1/bridge", "")["name"], "outcall0");
}

#[test]
fn rule_requests_are_listed_and_decided() {
    let world = World::new(true);
    let listed = world.data("GET", "/api/v1/requests/rules", "");
    assert_eq!(
        listed,
        json!([{"id":"rr-0123456789abcdef","container_id":"c".repeat(64),"container":"coder-1","rule_file":"submitted",
            "installs":"installs, all_agents false","lint":["rule a: look"],"status":"pending","submitted_at":"2026-11-24T00:00:00.000Z"}])
    );
    let listed = world.data("GET", "/api/v1/requests/rules?all_agents=true", "");
    assert_eq!(listed[0]["installs"], "installs, all_agents true");
    let one = "/api/v1/requests/rules/rr-0123456789abcdef";
    let approved = json!({"id":"rr-0123456789abcdef","rules_loaded":7});
    assert_eq!(world.data("POST", &format!("{one}/approve"), ""), approved);
    assert_eq!(world.data("POST", &format!("{one}/approve"), r#"{"all_agents":true}"#)["rules_loaded"], 8);
    let rejected = json!({"id":"rr-0123456789abcdef"});
    assert_eq!(world.data("POST", &format!("{one}/reject"), r#"{"reason":"too wide"}"#), rejected);
    for (method, path, body, expected) in [
        ("POST", "/requests/rules/rr-decided/approve", "{}", 409),
        ("POST", "/requests/rules/rr-decided/reject", "{}", 409),
        ("POST", "/requests/rules/rr-broken/approve", "{}", 422),
        ("POST", "/requests/rules/rr-other/approve", "{}", 404),
        ("POST", "/requests/rules/rr-other/approve", r#"{"all":true}"#, 400),
        ("POST", "/requests/rules/rr-other/reject", r#"{"reason":1}"#, 400),
        ("GET", "/requests/rules?all_agents=1", "", 400),
        ("GET", "/requests/rules/rr-other/approve", "", 405),
        ("POST", "/requests/rules", "{}", 405),
        ("GET", "/requests/rules/rr-other", "", 404),
        ("POST", "/requests/rules//approve", "{}", 404),
        ("POST", "/requests/rules/a/b/approve", "{}", 404),
    ] {
        let (status, error) = world.failure(method, &format!("/api/v1{path}"), body);
        assert_eq!(status, expected, "{method} {path}: {error}");
    }
}

#[test]
fn dynamic_rule_routes() {
    let world = World::new(true);
    assert_eq!(world.data("GET", "/api/v1/rules/active", ""), json!([]));
    assert_eq!(world.data("POST", "/api/v1/rules/flush", ""), json!({"removed":3}));
    let allow = |container: &str, more: &str| {
        let fixed = r#""src_ip":"10.200.0.2","destination":"9.9.9.9","protocol":"tcp","port":443"#;
        world.failure("POST", "/api/v1/rule/allow", &format!("{{\"container\":\"{container}\",{fixed}{more}}}"))
    };
    for (expected, container, more) in [
        (404, "nobody", ""),
        (409, "stopped", r#","expires_in_secs":86400"#),
        (422, "special", ""),
        (500, "full", ""),
        (400, "nobody", r#","more":1"#),
        (400, "nobody", r#","expires_in_secs":86401"#),
        (400, "nobody", r#","port":443"#),
    ] {
        let (status, error) = allow(container, more);
        assert!(status == expected && !error.is_empty(), "{container}{more}: {status} {error}");
    }
    for (method, path, body, expected) in [
        ("POST", "/rules/active", "{}", 405),
        ("GET", "/rules/flush", "", 405),
        ("POST", "/rules/flush", r#"{"container":"x"}"#, 400),
        ("POST", "/rule/allow", "", 400),
        ("PUT", "/rule/allow", "{}", 405),
    ] {
        let (status, error) = world.failure(method, &format!("/api/v1{path}"), body);
        assert_eq!(status, expected, "{method} {path}: {error}");
    }
}
