//! Every route of the operator API against owners played by test threads: statuses, envelope and exact JSON.

#![cfg(all(feature = "daemon", feature = "cli"))]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Events, Poll};
use outcall::agent_api::AgentApiCommand;
use outcall::api;
use outcall::bridge::{BridgeCommand, OperatorRefusal};
use outcall::daemon::control::ControlMessage;
use outcall::daemon::{Readiness, Snapshot, Subsystem};
use outcall::dns::DnsCommand;
use outcall::docker_manager::{ContainerCommand, Directory, DockerCommand, DockerFailure};
use outcall::event_loop::{Address, mailbox, reply_channel};
use outcall::events::EventsCommand;
use outcall::host_api::{HostApi, HostApiCommand, HostApiConfig, HostApiLinks, StartError};
use outcall::proxy::ProxyCommand;
use outcall::rule_engine::{Guard, LoadOptions, RuleEngineCommand, RuleSet, Source, load_sources};
use outcall::state::{DynamicRulesCommand, RequestFailure, RequestsCommand};
use serde_json::{Value, json};

/// An owner played by a thread: `answer` gets each command and gives `true` to end.
fn owner<C: Send + 'static>(mut answer: impl FnMut(C) -> bool + Send + 'static) -> (Address<C>, JoinHandle<()>) {
    let mut poll = Poll::new().unwrap();
    let (address, inbox) = mailbox(&poll, 16).unwrap();
    let thread = std::thread::spawn(move || {
        let mut events = Events::with_capacity(4);
        loop {
            poll.poll(&mut events, None).unwrap();
            while let Some(command) = inbox.take() {
                if answer(command) {
                    return;
                }
            }
        }
    });
    (address, thread)
}

fn bridge_status(up: bool) -> api::BridgeStatus {
    api::BridgeStatus {
        name: "outcall0".to_owned(),
        up,
        index: up.then_some(12),
        nftables_active: up,
        nftables: if up { "active" } else { "inactive" }.to_owned(),
    }
}

fn bridge(command: BridgeCommand) -> bool {
    match command {
        BridgeCommand::Status(reply) => reply.send(bridge_status(true)),
        BridgeCommand::Up(reply) => reply.send(Err("cannot make outcall0: CAP_NET_ADMIN is missing".to_owned())),
        BridgeCommand::Down(reply) => reply.send(Ok(bridge_status(false))),
        BridgeCommand::Grants(reply) => reply.send(Ok(Vec::new())),
        BridgeCommand::Ping(reply) => reply.send(()),
        BridgeCommand::Stop(_) => return true,
        _ => {}
    }
    false
}

fn docker(command: DockerCommand) -> bool {
    match command {
        DockerCommand::CreateNetwork(wish, reply) => {
            let name = wish.name.unwrap_or_else(|| "default".to_owned());
            reply.send(if name == "taken" {
                Err(DockerFailure { status: 409, message: "10.200.1.0/24 overlaps docker network x".to_owned() })
            } else {
                Ok(api::NetworkCreated {
                    network_id: "abc".to_owned(),
                    created: name != "old",
                    name: format!("outcall-{name}"),
                    subnet: "10.200.1.0/24".to_owned(),
                    gateway: "10.200.1.1".to_owned(),
                })
            });
        }
        DockerCommand::DestroyNetwork(select, reply) => {
            let name = format!("outcall-{}", select.name.unwrap_or_else(|| "default".to_owned()));
            reply.send(Ok(api::NetworkDestroyed { name, destroyed: true }));
        }
        DockerCommand::Network(select, reply) => reply.send(Ok(network(&select.name.unwrap_or_default()))),
        DockerCommand::Networks(reply) => reply.send(Ok(vec![network("default")])),
        DockerCommand::Container(command) => container(command),
        DockerCommand::Ping(reply) => reply.send(()),
        DockerCommand::Stop => return true,
        DockerCommand::Identify(_) => {}
        #[allow(unreachable_patterns)] // commands of later issues are not for this file
        _ => {}
    }
    false
}

fn container(command: ContainerCommand) {
    let summary = api::ContainerSummary {
        container_id: "abc".to_owned(),
        name: "coder-1".to_owned(),
        image: "busybox".to_owned(),
        state: "running".to_owned(),
        network: "outcall-default".to_owned(),
        created_at: "2026-11-24T00:00:00.000Z".to_owned(),
    };
    match command {
        ContainerCommand::Create(wish, rules, reply) => reply.send(if wish.image == "blocked" {
            let message = format!("blocked by rule {}", rules.rules()[0].id);
            Err(DockerFailure { status: 403, message })
        } else {
            let (container_id, name) = (summary.container_id, wish.name.unwrap_or_default());
            Ok(api::ContainerCreated { container_id, name, created: true, notes: Vec::new() })
        }),
        ContainerCommand::Stop(stop, reply) => reply.send(Ok(api::ContainerStopped { name: stop.name, stopped: true })),
        ContainerCommand::Remove(one, reply) => {
            reply.send(Ok(api::ContainerRemoved { name: one.name, removed: one.force }))
        }
        ContainerCommand::Pull(pull, reply) => reply.send(Ok(api::ContainerPulled { image: pull.image, pulled: true })),
        ContainerCommand::List(reply) => reply.send(Ok(vec![summary])),
        ContainerCommand::Inspect(_, reply) => {
            let mount = api::ContainerMount { source: "/s".to_owned(), target: "/t".to_owned(), read_only: true };
            let (mounts, env) = (vec![mount], vec!["A=<redacted>".to_owned()]);
            let ip_address = Some("10.200.0.2".to_owned());
            reply.send(Ok(api::ContainerDetail { summary, ip_address, mounts, env }));
        }
    }
}

fn network(name: &str) -> api::NetworkStatus {
    api::NetworkStatus {
        exists: true,
        network_id: Some("abc".to_owned()),
        name: format!("outcall-{name}"),
        subnet: Some("10.200.0.0/24".to_owned()),
        gateway: Some("10.200.0.1".to_owned()),
        bridge: Some("outcall0".to_owned()),
        containers: vec![api::AttachedContainer { name: "writer-1".to_owned(), ipv4_address: "10.200.0.2".to_owned() }],
    }
}

fn dns(command: DnsCommand) -> bool {
    let stats = api::DnsCacheStats { entries: 1, max_entries: 10_000, hits: 2, misses: 3, evictions: 0 };
    match command {
        DnsCommand::Status(reply) => reply.send(api::DnsStatus {
            running: true,
            listen_address: "0.0.0.0".to_owned(),
            listen_port: 53,
            upstreams: vec!["192.0.2.1:53".to_owned()],
            cache_entries: 1,
            queries_total: 5,
            queries_allowed: 3,
            queries_blocked: 2,
        }),
        DnsCommand::Cache(reply) => reply.send(api::DnsCache {
            stats,
            entries: vec![api::DnsCacheEntry {
                hostname: "example.com".to_owned(),
                record_type: "A".to_owned(),
                ttl_remaining_secs: 60,
                cached_at: "2026-11-24T00:00:00Z".to_owned(),
            }],
        }),
        DnsCommand::Flush(reply) => reply.send(7),
        DnsCommand::Ping(reply) => reply.send(()),
        DnsCommand::Stop => return true,
        _ => {}
    }
    false
}

fn proxy(command: ProxyCommand) -> bool {
    match command {
        ProxyCommand::Status(reply) => reply.send(api::ProxyStatus {
            running: true,
            listen_address: "0.0.0.0:8080".to_owned(),
            proxy_url: "http://10.200.0.1:8080".to_owned(),
            active_connections: 1,
            total_requests: 2,
            total_blocked: 1,
        }),
        // A proxy that is stuck: its pings are kept and never answered.
        ProxyCommand::Ping(reply) => std::mem::forget(reply),
        ProxyCommand::Stop => return true,
        _ => {}
    }
    false
}

fn rule_engine(command: RuleEngineCommand) -> bool {
    match command {
        RuleEngineCommand::Reload(reply) => {
            reply.send(Err(vec![
                "a.yaml:3: rule x: unknown action `alow`".to_owned(),
                "b.yaml:1: no version".to_owned(),
            ]));
        }
        RuleEngineCommand::Test(question, reply) => {
            let error = (question.expression != "true").then(|| "syntax error".to_owned());
            reply.send(api::RuleTested { result: error.is_none().then_some(true), error });
        }
        RuleEngineCommand::Ping(reply) => reply.send(()),
        RuleEngineCommand::Stop => return true,
    }
    false
}

struct World {
    directory: PathBuf,
    socket: PathBuf,
    own: Address<HostApiCommand>,
    readiness: Readiness,
    stops: Vec<Box<dyn FnOnce()>>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    acknowledged: crossbeam_channel::Receiver<u64>,
}

fn links(
    with_proxy: bool,
    own: Address<HostApiCommand>,
    stops: &mut Vec<Box<dyn FnOnce()>>,
    acknowledged: crossbeam_channel::Sender<u64>,
) -> HostApiLinks {
    let (control, control_thread) = owner(move |message| match message {
        ControlMessage::Acknowledged { subsystem: Subsystem::HostApi, generation } => {
            acknowledged.send(generation).unwrap();
            false
        }
        ControlMessage::Ping(reply) => {
            reply.send(());
            false
        }
        ControlMessage::Ended { .. } => true,
        _ => false,
    });
    let (bridge, bridge_thread) = owner(bridge);
    let (docker, docker_thread) = owner(docker);
    let (dns, dns_thread) = owner(dns);
    let (rule_engine, rule_thread) = owner(rule_engine);
    let (proxy, proxy_thread) = owner(proxy);
    let (requests, requests_thread) = owner(requests);
    let (dynamic_rules, dynamic_thread) = owner(dynamic_rules);
    let (agent_api, agent_thread) = owner(|command| match command {
        AgentApiCommand::Ping(reply) => {
            reply.send(());
            false
        }
        other => matches!(other, AgentApiCommand::Stop),
    });
    let (to_events, events) = crossbeam_channel::bounded(4);
    let events_thread = std::thread::spawn(move || {
        while let Ok(EventsCommand::Ping(reply)) = events.recv() {
            reply.send(());
        }
    });
    let links = HostApiLinks {
        control: control.clone(),
        bridge: bridge.clone(),
        docker: docker.clone(),
        dns: dns.clone(),
        proxy: with_proxy.then(|| proxy.clone()),
        leaves: None,
        rule_engine: rule_engine.clone(),
        requests: requests.clone(),
        dynamic_rules: dynamic_rules.clone(),
        agent_api: agent_api.clone(),
        events: to_events.clone(),
        live: Arc::default(),
        readiness: Readiness::default(),
        own,
    };
    stops.push(Box::new(move || {
        let ended = ControlMessage::Ended { subsystem: Subsystem::HostApi, outcome: Ok(()) };
        assert!(control.send(ended).is_ok());
        assert!(bridge.send(BridgeCommand::Stop(outcall::bridge::StopMode::Keep)).is_ok());
        assert!(docker.send(DockerCommand::Stop).is_ok());
        assert!(dns.send(DnsCommand::Stop).is_ok());
        assert!(rule_engine.send(RuleEngineCommand::Stop).is_ok());
        assert!(proxy.send(ProxyCommand::Stop).is_ok());
        assert!(requests.send(RequestsCommand::Stop).is_ok());
        assert!(dynamic_rules.send(DynamicRulesCommand::Stop).is_ok());
        assert!(agent_api.send(AgentApiCommand::Stop).is_ok());
        assert!(to_events.send(EventsCommand::Stop).is_ok());
        let agents = [requests_thread, dynamic_thread, agent_thread, events_thread];
        let others = [control_thread, bridge_thread, docker_thread, dns_thread, rule_thread, proxy_thread];
        for thread in others.into_iter().chain(agents) {
            thread.join().unwrap();
        }
    }));
    links
}

fn dynamic_rules(command: DynamicRulesCommand) -> bool {
    match command {
        DynamicRulesCommand::Allow(wish, reply) => reply.send(Err(match &*wish.container {
            "stopped" => OperatorRefusal::Conflict("src_ip is not its address".to_owned()),
            "special" => OperatorRefusal::Forbidden("a special-purpose address".to_owned()),
            "full" => OperatorRefusal::Failed("cannot write dynamic-rules.json".to_owned()),
            name => OperatorRefusal::Unknown(format!("no container `{name}`")),
        })),
        DynamicRulesCommand::Flush(reply) => reply.send(Ok(3)),
        DynamicRulesCommand::Stop => return true,
        _ => {}
    }
    false
}

fn requests(command: RequestsCommand) -> bool {
    const ID: &str = "rr-0123456789abcdef";
    let failure = |id: &str| match id {
        "rr-decided" => RequestFailure::Conflict("the rule request is approved already".to_owned()),
        "rr-broken" => RequestFailure::Invalid("the rules do not load with this request in them: x".to_owned()),
        _ => RequestFailure::Unknown("there is no such rule request".to_owned()),
    };
    match command {
        RequestsCommand::List { all_agents, reply } => reply.send(Ok(vec![api::PendingRuleRequest {
            id: ID.to_owned(),
            container_id: "c".repeat(64),
            container: "coder-1".to_owned(),
            rule_file: "submitted".to_owned(),
            installs: format!("installs, all_agents {all_agents}"),
            lint: Some(vec!["rule a: look".to_owned()]),
            status: "pending".to_owned(),
            submitted_at: "2026-11-24T00:00:00.000Z".to_owned(),
        }])),
        RequestsCommand::Approve { id, all_agents, reply } if id == ID => {
            reply.send(Ok(api::RuleRequestApproved { id, rules_loaded: if all_agents { 8 } else { 7 } }));
        }
        RequestsCommand::Approve { id, reply, .. } => reply.send(Err(failure(&id))),
        RequestsCommand::Reject { id, reason, reply } if id == ID && reason.as_deref() != Some("bad") => {
            reply.send(Ok(api::RuleRequestRejected { id }));
        }
        RequestsCommand::Reject { id, reply, .. } => reply.send(Err(failure(&id))),
        RequestsCommand::Stop => return true,
        _ => {}
    }
    false
}

const RULES: &str = r#"
version: "1"
definitions:
  example: 'dns.query == "example.com" || dns.query.endsWith(".example.com")'
rules:
  - id: allow-example
    description: the example
    condition: '$example'
    action: allow
    log: true
  - id: test
    condition: 'agent.name == "tester"'
    action: block
    priority: 50
"#;

fn rules() -> Arc<RuleSet> {
    let options = LoadOptions { proxy: true, interception: false, guard: Guard::InProcess };
    let source = Source { name: "a.yaml".to_owned(), text: RULES.to_owned() };
    load_sources(&[source], &options, None).unwrap().set
}

fn snapshot(generation: u64) -> Arc<Snapshot> {
    Arc::new(Snapshot { generation, rules: rules(), directory: Arc::new(Directory::empty(Instant::now())) })
}

fn scratch() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("outcall-api-routes-{}-{number}", std::process::id()))
}

impl World {
    fn new(with_proxy: bool) -> Self {
        let directory = scratch();
        let socket = directory.join("host.sock");
        let poll = Poll::new().unwrap();
        let (own, inbox) = mailbox(&poll, 64).unwrap();
        let mut stops = Vec::new();
        let (sender, acknowledged) = crossbeam_channel::bounded(8);
        let links = links(with_proxy, own.clone(), &mut stops, sender);
        let readiness = links.readiness.clone();
        let config =
            HostApiConfig { socket: socket.clone(), subnet_block: "10.200.0.0/16".to_owned(), ca: None, proxy: None };
        let api = HostApi::start(config, links, poll, inbox, snapshot(1)).unwrap();
        let thread = Some(std::thread::spawn(move || api.run()));
        World { directory, socket, own, readiness, stops, thread, acknowledged }
    }

    /// Status, header lines and JSON of one request.
    fn call(&self, method: &str, path: &str, body: &str) -> (u16, String, Value) {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        if method != "HEAD" {
            assert!(body.ends_with("}\n") && head.contains("Content-Type: application/json"), "{answer}");
        }
        (status, head.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null))
    }

    fn data(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, _, answer) = self.call(method, path, body);
        assert_eq!((status, &answer["success"]), (200, &Value::Bool(true)), "{path}: {answer}");
        assert!(answer.get("error").is_none(), "{answer}");
        answer["data"].clone()
    }

    fn failure(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let (status, _, answer) = self.call(method, path, body);
        assert_eq!(answer["success"], Value::Bool(false), "{path}: {answer}");
        (status, answer["error"].as_str().unwrap().to_owned())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.own.send(HostApiCommand::Stop);
        let ended = self.thread.take().map(|thread| thread.join());
        let gone = !self.socket.exists();
        for stop in self.stops.drain(..) {
            stop();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(Ok(())))), "the thread did not end well");
            assert!(gone, "the socket file stays behind");
        }
    }
}

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
