//! The filter without sockets: hand-made messages in, actions looked at. Here the world that the tests share.

mod hostile;
mod peers;
mod questions;
mod upstream;

use std::sync::LazyLock;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record};

use super::*;
use crate::dns::answer::{self as answer_module};
use crate::docker_manager::{Directory, Endpoint, ManagedNetwork};
use crate::rule_engine::{Guard, LoadOptions, RuleSet, Source, load_sources};

const CONTAINER: &str = "10.200.0.5";
const UPSTREAM: &str = "192.0.2.53:53";
const OTHER_UPSTREAM: &str = "192.0.2.54:53";

struct World {
    core: Core,
    now: Instant,
    begin: Instant,
}

fn network() -> Arc<ManagedNetwork> {
    Arc::new(ManagedNetwork {
        name: "outcall-default".to_owned(),
        id: "n".repeat(64),
        bridge: "outcall0".to_owned(),
        subnet: "10.200.0.0/24".parse().unwrap(),
        gateway: "10.200.0.1".parse().unwrap(),
    })
}

fn endpoint(address: &str, id: &str) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        container_id: id.into(),
        container: "writer-1".into(),
        agent: "writer".into(),
        network: network(),
        address: address.parse().unwrap(),
        mac: [2, 0, 0, 0, 0, 5],
        sandbox_key: String::new(),
        pid: 0,
    })
}

fn snapshot(as_of: Instant, containers: &[(&str, &str)], rules: Arc<RuleSet>) -> Arc<Snapshot> {
    let mut directory = Directory::empty(as_of);
    directory.networks.push(network());
    for (address, id) in containers {
        directory.endpoints.insert(address.parse().unwrap(), endpoint(address, id));
    }
    Arc::new(Snapshot { generation: 1, rules, directory: Arc::new(directory) })
}

/// Allows what ends in `ok.example`, to agent `writer` or an extra peer; the first label says how.
const RULES: &str = r#"
version: "1"
definitions:
  ok: '(agent.name == "writer" || agent.name == "") && dns.query.endsWith(".ok.example")'
rules:
  - id: not-there
    condition: 'network.ip == "93.184.216.99"'
    action: block
    priority: 1
  - id: private
    condition: '$ok && dns.query.startsWith("private.")'
    action: allow
    egress: { mode: proxy, allow_private_ips: true }
  - id: direct
    condition: '$ok && dns.query.startsWith("direct.")'
    action: allow
    egress: { mode: direct_ip, ports: [443] }
  - id: plain
    condition: '$ok'
    action: allow
"#;

fn rules() -> Arc<RuleSet> {
    let options = LoadOptions { proxy: true, interception: false, guard: Guard::InProcess };
    load_sources(&[Source { name: "test.yaml".to_owned(), text: RULES.to_owned() }], &options, None).unwrap().set
}

impl World {
    fn new() -> Self {
        let begin = Instant::now();
        // Compiled once; whoever needs another set that is equal makes it.
        static FIRST: LazyLock<Arc<RuleSet>> = LazyLock::new(rules);
        let first = snapshot(begin, &[(CONTAINER, "c1")], Arc::clone(&FIRST));
        let upstreams = vec![UPSTREAM.parse().unwrap(), OTHER_UPSTREAM.parse().unwrap()];
        let core = Core::new(first, Vec::new(), upstreams, EventSink::discard());
        World { core, now: begin + Duration::from_millis(1), begin }
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now += Duration::from_millis(milliseconds);
        self.core.tick(self.now);
    }

    /// Sends a question and gives what the filter does at once.
    fn ask_from(&mut self, peer: &str, message: &Message) -> Vec<Action> {
        self.core.received(client(peer), &message.to_vec().unwrap(), self.now);
        self.core.actions()
    }

    fn ask(&mut self, message: &Message) -> Vec<Action> {
        self.ask_from(CONTAINER, message)
    }

    /// Gives upstream's message to the lookup and gives what follows, without its end.
    fn upstream(&mut self, lookup: u64, message: &Message) -> Vec<Action> {
        self.core.answered(lookup, &message.to_vec().unwrap(), self.now);
        let mut actions = self.core.actions();
        actions.retain(|action| !matches!(action, Action::Close { .. }));
        actions
    }

    /// Asks, has upstream answer with `records`, and gives the answer.
    fn resolve(&mut self, query: &Message, records: &[Record]) -> Message {
        let (lookup, sent) = asked(&self.ask(query));
        reply(&self.upstream(lookup, &answer(&sent, records)))
    }
}

fn client(peer: &str) -> Client {
    Client { peer: SocketAddr::new(peer.parse().unwrap(), 40000), transport: Transport::Udp, socket: 0, local: None }
}

fn query(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(Question::query(Name::from_ascii(name).unwrap(), record_type));
    message
}

fn with_edns(mut message: Message, payload: u16, dnssec_ok: bool) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_dnssec_ok(dnssec_ok);
    message.set_edns(edns);
    message
}

/// Upstream's answer to what was sent.
fn answer(sent: &Message, records: &[Record]) -> Message {
    let mut message = Message::response(sent.metadata.id, OpCode::Query);
    message.queries = sent.queries.clone();
    message.answers = records.to_vec();
    message
}

fn record(name: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, data)
}

fn a(name: &str, address: &str) -> Record {
    record(name, 300, RData::A(A(address.parse().unwrap())))
}

fn soa(zone: &str, ttl: u32, minimum: u32) -> Record {
    let name = Name::from_ascii("ns.example.").unwrap();
    record(zone, ttl, RData::SOA(SOA::new(name.clone(), name, 1, 1, 1, 1, minimum)))
}

/// The one question that goes upstream.
fn asked(actions: &[Action]) -> (u64, Message) {
    match actions {
        [Action::Ask { lookup, message, .. }] => (*lookup, Message::from_vec(message).unwrap()),
        other => panic!("wanted one question to upstream: {other:?}"),
    }
}

/// The one answer that goes to the client.
fn reply(actions: &[Action]) -> Message {
    match actions {
        [Action::Reply { bytes, .. }] => Message::from_vec(bytes).unwrap(),
        other => panic!("wanted one answer: {other:?}"),
    }
}

fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}
