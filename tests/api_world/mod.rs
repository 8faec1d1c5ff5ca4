//! The operator API's thread on a socket of its own, with owners played by test threads.

mod owners;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::Poll;
use outcall::agent_api::AgentApiCommand;
use outcall::bridge::BridgeCommand;
use outcall::daemon::control::ControlMessage;
use outcall::daemon::{Readiness, Snapshot, Subsystem};
use outcall::dns::DnsCommand;
use outcall::docker_manager::{Directory, DockerCommand};
use outcall::event_loop::{Address, mailbox};
use outcall::events::EventsCommand;
use outcall::host_api::{HostApi, HostApiCommand, HostApiConfig, HostApiLinks};
use outcall::proxy::ProxyCommand;
use outcall::rule_engine::{Guard, LoadOptions, RuleEngineCommand, RuleSet, Source, load_sources};
use outcall::state::{DynamicRulesCommand, RequestsCommand};
use serde_json::Value;

use crate::owner::owner;

pub struct World {
    directory: PathBuf,
    pub socket: PathBuf,
    pub own: Address<HostApiCommand>,
    pub readiness: Readiness,
    stops: Vec<Box<dyn FnOnce()>>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    pub acknowledged: crossbeam_channel::Receiver<u64>,
}

pub fn links(
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
    let (bridge, bridge_thread) = owner(owners::bridge);
    let (docker, docker_thread) = owner(owners::docker);
    let (dns, dns_thread) = owner(owners::dns);
    let (rule_engine, rule_thread) = owner(owners::rule_engine);
    let (proxy, proxy_thread) = owner(owners::proxy);
    let (requests, requests_thread) = owner(owners::requests);
    let (dynamic_rules, dynamic_thread) = owner(owners::dynamic_rules);
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

pub fn snapshot(generation: u64) -> Arc<Snapshot> {
    Arc::new(Snapshot { generation, rules: rules(), directory: Arc::new(Directory::empty(Instant::now())) })
}

fn scratch() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("outcall-api-routes-{}-{number}", std::process::id()))
}

impl World {
    pub fn new(with_proxy: bool) -> Self {
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
    pub fn call(&self, method: &str, path: &str, body: &str) -> (u16, String, Value) {
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

    pub fn data(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, _, answer) = self.call(method, path, body);
        assert_eq!((status, &answer["success"]), (200, &Value::Bool(true)), "{path}: {answer}");
        assert!(answer.get("error").is_none(), "{answer}");
        answer["data"].clone()
    }

    pub fn failure(&self, method: &str, path: &str, body: &str) -> (u16, String) {
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
