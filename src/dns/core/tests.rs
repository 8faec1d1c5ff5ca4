//! The filter without sockets: hand-made messages in, actions looked at.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::mpsc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record};
use proptest::prelude::*;

use super::*;
use crate::dns::answer::{self as answer_module};
use crate::docker_manager::{Directory, Endpoint, ManagedNetwork};
use crate::rule_engine::{self, Context, Decision, Egress, EgressMode, RuleSet};

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

fn rule(id: &str, mode: EgressMode, allow_private_ips: bool) -> Arc<Rule> {
    let ports = if mode == EgressMode::DirectIp { vec![443] } else { Vec::new() };
    Arc::new(Rule {
        id: id.into(),
        file: "test.yaml".into(),
        order: 0,
        description: None,
        condition: "".into(),
        expanded: "".into(),
        action: rule_engine::Action::Allow,
        priority: 100,
        log: false,
        egress: Some(Egress { mode, ports, allow_private_ips, match_body: false }),
        explicit_egress: true,
        hits: AtomicU64::new(0),
        errors: AtomicU64::new(0),
        last_hit_ms: AtomicI64::new(0),
    })
}

/// Allows what ends in `ok.example`, to agent `writer` or an extra peer; the first label says how.
fn judge(_: &RuleSet, context: &Context<'_>) -> Decision {
    let name = context.dns.query.unwrap();
    let known = matches!(context.agent.name, Some("writer" | ""));
    let rule = (known && name.ends_with("ok.example")).then(|| match name.split('.').next() {
        Some("private") => rule("private", EgressMode::Proxy, true),
        Some("direct") => rule("direct", EgressMode::DirectIp, false),
        _ => rule("plain", EgressMode::Proxy, false),
    });
    let action = if rule.is_some() { rule_engine::Action::Allow } else { rule_engine::Action::Block };
    Decision { action, rule, wants_address: false, could_intercept: None }
}

fn block_all(_: &RuleSet, _: &Context<'_>) -> Decision {
    Decision { action: rule_engine::Action::Block, rule: None, wants_address: false, could_intercept: None }
}

impl World {
    fn new() -> Self {
        let begin = Instant::now();
        let first = snapshot(begin, &[(CONTAINER, "c1")], Arc::new(RuleSet::block_all()));
        let upstreams = vec![UPSTREAM.parse().unwrap(), OTHER_UPSTREAM.parse().unwrap()];
        let core = Core::new(first, Box::new(judge), Vec::new(), upstreams, EventSink::discard());
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

#[test]
fn a_blocked_name_is_denied_with_authority_and_asks_nobody() {
    let mut world = World::new();
    let denial = reply(&world.ask(&query("Secret.Example.", RecordType::A)));
    assert_eq!(code(&denial), ResponseCode::NXDomain);
    assert!(denial.metadata.authoritative && denial.metadata.recursion_desired && denial.metadata.id == 7);
    assert_eq!(denial.queries[0].name().to_ascii(), "Secret.Example.");
    let [soa] = denial.authorities.as_slice() else { panic!("no SOA") };
    assert!(matches!(&soa.data, RData::SOA(soa) if soa.minimum == 60));
    assert_eq!(soa.ttl, 60);
    assert!(world.core.is_idle() && world.core.deadline().is_none());
}

#[test]
fn an_allowed_name_is_answered_in_the_case_it_was_asked_in() {
    let mut world = World::new();
    let (lookup, sent) = asked(&world.ask(&query("WwW.oK.example.", RecordType::A)));
    let records = [a(&sent.queries[0].name().to_ascii(), "93.184.216.34")];
    let found = reply(&world.upstream(lookup, &answer(&sent, &records)));
    assert_eq!(code(&found), ResponseCode::NoError);
    assert_eq!(found.answers[0].name.to_ascii(), "WwW.oK.example.");
    assert!(found.metadata.recursion_available && !found.metadata.authoritative);
    assert!(world.core.is_idle());
}

#[test]
fn a_kept_answer_counts_down_and_ends_when_the_rules_change() {
    let mut world = World::new();
    world.resolve(&query("www.ok.example.", RecordType::A), &[a("www.ok.example.", "93.184.216.34")]);
    world.pass(100_500);
    let kept = reply(&world.ask(&query("www.ok.example.", RecordType::A)));
    assert_eq!(kept.answers[0].ttl, 200);
    let same = Arc::clone(&world.core.snapshot().rules);
    world.core.adopt(snapshot(world.now, &[(CONTAINER, "c1")], same), world.now);
    assert_eq!(world.core.cache.len(), 1);
    let other = snapshot(world.now, &[(CONTAINER, "c1")], Arc::new(RuleSet::block_all()));
    world.core.adopt(other, world.now);
    asked(&world.ask(&query("www.ok.example.", RecordType::A)));
}

#[test]
fn equal_questions_in_flight_are_asked_once_and_a_repeat_is_answered_once() {
    let mut world = World::new();
    let (lookup, sent) = asked(&world.ask(&query("www.ok.example.", RecordType::A)));
    assert!(world.ask(&query("www.ok.example.", RecordType::A)).is_empty());
    let mut second = query("WWW.ok.example.", RecordType::A);
    second.metadata.id = 8;
    assert!(world.ask(&second).is_empty());
    let replies = world.upstream(lookup, &answer(&sent, &[a("www.ok.example.", "93.184.216.34")]));
    assert_eq!(replies.len(), 2);
}

#[test]
fn private_addresses_are_stripped_for_one_rule_and_not_for_another() {
    let mut world = World::new();
    let mixed = [a("www.ok.example.", "10.0.0.1"), a("www.ok.example.", "93.184.216.34")];
    let found = world.resolve(&query("www.ok.example.", RecordType::A), &mixed);
    assert_eq!(found.answers.len(), 1);
    let all = [a("evil.ok.example.", "169.254.169.254"), a("evil.ok.example.", "127.0.0.1")];
    let found = world.resolve(&query("evil.ok.example.", RecordType::A), &all);
    assert_eq!((code(&found), found.answers.len()), (ResponseCode::ServFail, 0));
    let aliased = [
        record("rebind.ok.example.", 60, RData::CNAME(CNAME(Name::from_ascii("inner.test.").unwrap()))),
        a("inner.test.", "192.168.1.1"),
    ];
    let found = world.resolve(&query("rebind.ok.example.", RecordType::A), &aliased);
    assert_eq!(code(&found), ResponseCode::ServFail);
    let mapped = [record("six.ok.example.", 60, RData::AAAA(AAAA("::ffff:10.0.0.1".parse().unwrap())))];
    assert_eq!(code(&world.resolve(&query("six.ok.example.", RecordType::AAAA), &mapped)), ResponseCode::ServFail);
    let private = [a("private.ok.example.", "10.0.0.1")];
    assert_eq!(world.resolve(&query("private.ok.example.", RecordType::A), &private).answers.len(), 1);
}

#[test]
fn only_the_chain_to_the_answer_passes() {
    let mut world = World::new();
    let alias = |from: &str, to: &str| record(from, 60, RData::CNAME(CNAME(Name::from_ascii(to).unwrap())));
    let records = [
        a("unasked.example.", "93.184.216.34"),
        alias("www.ok.example.", "cdn.example."),
        a("cdn.example.", "93.184.216.35"),
        record("cdn.example.", 5, RData::TXT(TXT::new(vec!["more".to_owned()]))),
        alias("elsewhere.example.", "cdn.example."),
    ];
    let mut message = query("www.ok.example.", RecordType::A);
    message.metadata.id = 9;
    let (lookup, sent) = asked(&world.ask(&message));
    let mut reply_message = answer(&sent, &records);
    reply_message.additionals.push(a("ns.example.", "93.184.216.36"));
    reply_message.authorities.push(soa("example.", 60, 60));
    let found = reply(&world.upstream(lookup, &reply_message));
    let names: Vec<String> = found.answers.iter().map(|record| record.name.to_ascii()).collect();
    assert_eq!(names, ["www.ok.example.", "cdn.example."]);
    assert!(found.authorities.is_empty() && found.additionals.is_empty());
    let loops = [alias("loop.ok.example.", "b.example."), alias("b.example.", "loop.ok.example.")];
    let (lookup, sent) = asked(&world.ask(&query("loop.ok.example.", RecordType::A)));
    let (lookup, sent) = asked(&world.upstream(lookup, &answer(&sent, &loops)));
    let failed = reply(&world.upstream(lookup, &answer(&sent, &loops)));
    assert_eq!(code(&failed), ResponseCode::ServFail);
}

#[test]
fn a_denial_is_kept_as_long_as_its_soa_says() {
    let mut world = World::new();
    let (lookup, sent) = asked(&world.ask(&query("none.ok.example.", RecordType::A)));
    let mut denial = answer(&sent, &[]);
    denial.metadata.response_code = ResponseCode::NXDomain;
    denial.authorities.push(soa("ok.example.", 3600, 30));
    let found = reply(&world.upstream(lookup, &denial));
    assert_eq!(code(&found), ResponseCode::NXDomain);
    assert_eq!(found.authorities.len(), 1);
    world.pass(29_000);
    assert_eq!(code(&reply(&world.ask(&query("none.ok.example.", RecordType::A)))), ResponseCode::NXDomain);
    world.pass(2_000);
    asked(&world.ask(&query("none.ok.example.", RecordType::A)));
}

#[test]
fn answers_that_do_not_match_are_ignored_and_guessing_ends_in_tcp() {
    let mut world = World::new();
    let (lookup, sent) = asked(&world.ask(&query("www.ok.example.", RecordType::A)));
    let good = answer(&sent, &[a("www.ok.example.", "93.184.216.34")]);
    let mut wrong_id = good.clone();
    wrong_id.metadata.id ^= 1;
    let mut wrong_name = good.clone();
    wrong_name.queries[0].set_name(Name::from_ascii("ww.ok.example.").unwrap());
    let mut wrong_type = good.clone();
    wrong_type.queries[0].set_query_type(RecordType::AAAA);
    let mut no_answer = good.clone();
    no_answer.metadata.message_type = MessageType::Query;
    for forged in [&wrong_id, &wrong_name, &wrong_type, &no_answer] {
        assert!(world.upstream(lookup, forged).is_empty());
    }
    for _ in 0..3 {
        assert!(world.upstream(lookup, &wrong_id).is_empty());
    }
    let over_tcp = world.upstream(lookup, &wrong_id);
    assert!(matches!(over_tcp.as_slice(), [Action::Ask { transport: Transport::Tcp, .. }]), "{over_tcp:?}");
    let (_, sent) = asked(&over_tcp);
    assert_eq!(reply(&world.upstream(lookup, &answer(&sent, &good.answers))).answers.len(), 1);
}

#[test]
fn an_answer_in_another_case_is_asked_again_over_tcp() {
    let mut world = World::new();
    let name = "a-name-with-many-letters.www.ok.example.";
    let (lookup, sent) = asked(&world.ask(&query(name, RecordType::A)));
    let mut lower = answer(&sent, &[a(name, "93.184.216.34")]);
    lower.queries[0].set_name(Name::from_ascii(name).unwrap());
    assert_ne!(sent.queries[0].name().to_ascii(), name, "the case is mixed");
    let (_, sent) = asked(&world.upstream(lookup, &lower));
    lower.metadata.id = sent.metadata.id;
    assert_eq!(reply(&world.upstream(lookup, &lower)).answers.len(), 1);
}

#[test]
fn a_silent_upstream_is_followed_by_the_next_and_then_asked_last() {
    let mut world = World::new();
    let first = world.ask(&query("www.ok.example.", RecordType::A));
    let (lookup, _) = asked(&first);
    assert!(matches!(&first[0], Action::Ask { upstream, .. } if *upstream == UPSTREAM.parse().unwrap()));
    world.pass(1_300);
    let second = world.core.actions();
    assert!(matches!(&second[0], Action::Ask { upstream, .. } if *upstream == OTHER_UPSTREAM.parse().unwrap()));
    let (_, sent) = asked(&second);
    reply(&world.upstream(lookup, &answer(&sent, &[a("www.ok.example.", "93.184.216.34")])));
    let next = world.ask(&query("other.ok.example.", RecordType::A));
    assert!(matches!(&next[0], Action::Ask { upstream, .. } if *upstream == OTHER_UPSTREAM.parse().unwrap()));
}

#[test]
fn when_no_upstream_answers_it_is_servfail_within_the_clients_patience() {
    let mut world = World::new();
    world.ask(&query("www.ok.example.", RecordType::A));
    let mut tries = 1;
    let failed = loop {
        let due = world.core.deadline().expect("something is due");
        world.now = due;
        world.core.tick(due);
        let actions = world.core.actions();
        match actions.as_slice() {
            [Action::Ask { .. }] => tries += 1,
            [Action::Close { .. }, Action::Reply { bytes, .. }] => break Message::from_vec(bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((code(&failed), tries), (ResponseCode::ServFail, 4));
    assert!(world.now - world.begin < Duration::from_secs(5));
    assert!(world.core.is_idle() && world.core.open.is_empty());
}

#[test]
fn an_upstream_that_refuses_or_fails_is_followed_by_the_next() {
    let mut world = World::new();
    let (lookup, sent) = asked(&world.ask(&query("www.ok.example.", RecordType::A)));
    let mut refused = answer(&sent, &[]);
    refused.set_edns(Edns::new());
    refused.metadata.response_code = ResponseCode::Refused;
    let (_, sent) = asked(&world.upstream(lookup, &refused));
    refused.metadata.id = sent.metadata.id;
    refused.queries = sent.queries;
    assert_eq!(code(&reply(&world.upstream(lookup, &refused))), ResponseCode::ServFail);
}

#[test]
fn a_stranger_is_refused_and_an_unknown_container_waits_for_docker() {
    let mut world = World::new();
    let message = query("www.ok.example.", RecordType::A);
    assert_eq!(code(&reply(&world.ask_from("10.9.9.9", &message))), ResponseCode::Refused);
    assert_eq!(code(&reply(&world.ask_from("10.200.0.1", &message))), ResponseCode::Refused);
    let held = world.ask_from("10.200.0.9", &message);
    assert!(matches!(held.as_slice(), [Action::Identify(address)] if address.octets() == [10, 200, 0, 9]));
    assert!(world.ask_from("10.200.0.9", &query("x.example.", RecordType::A)).is_empty());
    // A directory from before the question does not say that nobody is there: Docker is asked again.
    let rules = Arc::clone(&world.core.snapshot().rules);
    world.core.adopt(snapshot(world.begin, &[(CONTAINER, "c1")], Arc::clone(&rules)), world.now);
    assert!(matches!(world.core.actions().as_slice(), [Action::Identify(_)]));
    world.pass(50);
    world.core.adopt(snapshot(world.now, &[("10.200.0.9", "c9")], rules), world.now);
    let actions = world.core.actions();
    assert!(matches!(actions.as_slice(), [Action::Ask { .. }, Action::Reply { .. }]), "{actions:?}");
}

#[test]
fn who_stays_unknown_is_refused_after_a_second() {
    let mut world = World::new();
    world.ask_from("10.200.0.9", &query("www.ok.example.", RecordType::A));
    assert_eq!(world.core.deadline(), Some(world.now + HOLD));
    world.pass(999);
    assert!(world.core.actions().is_empty());
    world.pass(1);
    assert_eq!(code(&reply(&world.core.actions())), ResponseCode::Refused);
    assert!(world.core.is_idle());
}

#[test]
fn held_questions_are_capped() {
    let mut world = World::new();
    let mut refused = 0;
    for id in 0..100_u16 {
        let mut message = query("www.ok.example.", RecordType::A);
        message.metadata.id = id;
        refused += world.ask_from("10.200.0.9", &message).iter().filter(|a| matches!(a, Action::Reply { .. })).count();
    }
    assert_eq!(refused, 100 - HELD_PER_PEER);
}

#[test]
fn one_container_cannot_have_all_questions_in_flight() {
    let mut world = World::new();
    let mut failed = 0;
    for n in 0..500 {
        let actions = world.ask(&query(&format!("n{n}.ok.example."), RecordType::A));
        failed += actions.iter().filter(|action| matches!(action, Action::Reply { .. })).count();
    }
    assert_eq!(failed, 500 - OPEN_PER_PEER as usize);
}

#[test]
fn rules_that_change_while_a_question_waits_decide_it() {
    let mut world = World::new();
    let (lookup, sent) = asked(&world.ask(&query("www.ok.example.", RecordType::A)));
    world.core.judge = Box::new(block_all);
    let other = snapshot(world.now, &[(CONTAINER, "c1")], Arc::new(RuleSet::block_all()));
    world.core.adopt(other, world.now);
    assert_eq!(code(&reply(&world.core.actions())), ResponseCode::NXDomain);
    assert!(world.upstream(lookup, &answer(&sent, &[a("www.ok.example.", "93.184.216.34")])).is_empty());
    assert!(world.core.is_idle() && world.core.open.is_empty());
}

#[test]
fn an_address_that_changed_hands_gets_no_answer_of_the_one_before() {
    let mut world = World::new();
    world.ask(&query("direct.ok.example.", RecordType::A));
    let rules = Arc::clone(&world.core.snapshot().rules);
    world.core.adopt(snapshot(world.now, &[(CONTAINER, "c2")], rules), world.now);
    assert_eq!(code(&reply(&world.core.actions())), ResponseCode::Refused);
}

#[test]
fn a_direct_answer_waits_for_the_kernel() {
    let mut world = World::new();
    let records = [a("direct.ok.example.", "93.184.216.34"), a("direct.ok.example.", "10.0.0.1")];
    let (lookup, sent) = asked(&world.ask(&query("direct.ok.example.", RecordType::A)));
    let actions = world.upstream(lookup, &answer(&sent, &records));
    let [Action::Grant { ticket, grant }] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!(grant.addresses, [Ipv4Addr::new(93, 184, 216, 34)]);
    assert_eq!((&*grant.name, grant.ports.as_slice(), grant.ttl.as_secs()), ("direct.ok.example", &[443][..], 300));
    assert_eq!(&*grant.endpoint.container_id, "c1");
    world.core.granted(*ticket, true, world.now);
    let found = reply(&world.core.actions());
    assert_eq!((found.answers.len(), found.answers[0].ttl), (1, 300));
    // From the cache it is opened anew, for the time that is left, but a minute at least.
    world.pass(290_000);
    let actions = world.ask(&query("direct.ok.example.", RecordType::A));
    let [Action::Grant { ticket, grant }] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!(grant.ttl.as_secs(), 60);
    world.core.granted(*ticket, false, world.now);
    assert_eq!(code(&reply(&world.core.actions())), ResponseCode::ServFail);
    let actions = world.ask(&query("direct.ok.example.", RecordType::A));
    assert!(matches!(actions.as_slice(), [Action::Grant { .. }]));
    world.pass(2_000);
    assert_eq!(code(&reply(&world.core.actions())), ResponseCode::ServFail);
    assert!(world.core.is_idle() && world.core.open.is_empty());
}

#[test]
fn types_that_lead_around_the_filter_have_no_data() {
    let mut world = World::new();
    for record_type in [RecordType::HTTPS, RecordType::SVCB] {
        let empty = reply(&world.ask(&query("www.ok.example.", record_type)));
        assert_eq!((code(&empty), empty.answers.len(), empty.authorities.len()), (ResponseCode::NoError, 0, 1));
        let denied = reply(&world.ask(&query("no.example.", record_type)));
        assert_eq!(code(&denied), ResponseCode::NXDomain);
    }
    for record_type in [RecordType::ANY, RecordType::AXFR, RecordType::from(0), RecordType::from(255)] {
        assert_eq!(code(&reply(&world.ask(&query("www.ok.example.", record_type)))), ResponseCode::NotImp);
    }
}

#[test]
fn names_without_a_normal_form_and_local_names_are_denied() {
    let mut world = World::new();
    let labels: [&[&[u8]]; 5] = [
        &[b"a.b", b"ok", b"example"],
        &[b"nul\0", b"ok", b"example"],
        &[b"1", b"2", b"3", b"4"],
        &[b"-a", b"ok", b"example"],
        &[b"printer", b"LOCAL"],
    ];
    for labels in labels {
        let mut name = Name::from_labels(labels.iter().copied()).unwrap();
        name.set_fqdn(true);
        let mut message = query("x.", RecordType::A);
        message.queries[0].set_name(name.clone());
        let denied = reply(&world.ask(&message));
        assert_eq!(code(&denied), ResponseCode::NXDomain, "{name}");
        assert!(denied.queries[0].name().eq_case(&name));
    }
    asked(&world.ask(&query("_dmarc.ok.example.", RecordType::TXT)));
    assert_eq!(code(&reply(&world.ask(&query(".", RecordType::NS)))), ResponseCode::Refused);
}

#[test]
fn odd_messages_are_refused_or_dropped() {
    let mut world = World::new();
    let mut two = query("www.ok.example.", RecordType::A);
    two.queries.push(two.queries[0].clone());
    assert_eq!(code(&reply(&world.ask(&two))), ResponseCode::FormErr);
    let mut none = query("www.ok.example.", RecordType::A);
    none.queries.clear();
    assert_eq!(code(&reply(&world.ask(&none))), ResponseCode::FormErr);
    let mut notify = query("www.ok.example.", RecordType::A);
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&reply(&world.ask(&notify))), ResponseCode::NotImp);
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&reply(&world.ask(&chaos))), ResponseCode::Refused);
    let mut answer = query("www.ok.example.", RecordType::A);
    answer.metadata.message_type = MessageType::Response;
    assert!(world.ask(&answer).is_empty());
    // A name of 256 bytes: four labels of 63 with their lengths, and the root.
    let mut long = query("x.", RecordType::A).to_vec().unwrap()[..12].to_vec();
    for _ in 0..4 {
        long.push(63);
        long.extend([b'a'; 63]);
    }
    long.extend([0, 0, 1, 0, 1]);
    assert!(world.core.received(client(CONTAINER), &long, world.now));
    assert_eq!(code(&reply(&world.core.actions())), ResponseCode::FormErr);
    assert!(world.core.received(client("10.9.9.9"), &long, world.now));
    assert_eq!(code(&reply(&world.core.actions())), ResponseCode::Refused);
    // A name that points at itself.
    let mut looped = long[..12].to_vec();
    looped.extend([0xc0, 12, 0, 1, 0, 1]);
    assert!(!world.core.received(client(CONTAINER), &looped, world.now));
    assert!(world.core.actions().is_empty());
}

#[test]
fn edns_is_answered_and_its_size_kept() {
    let mut world = World::new();
    let message = with_edns(query("no.example.", RecordType::A), 4096, true);
    let denied = reply(&world.ask(&message));
    let edns = denied.edns.as_ref().unwrap();
    assert_eq!((edns.max_payload(), edns.version(), edns.flags().dnssec_ok), (1232, 0, true));
    let mut future = with_edns(query("www.ok.example.", RecordType::A), 1232, false);
    future.edns.as_mut().unwrap().set_version(1);
    let bad = reply(&world.ask(&future));
    // 16 has two names (RFC 6891 BADVERS, RFC 8945 BADSIG).
    assert_eq!(u16::from(code(&bad)), 16);
    assert_eq!(bad.edns.unwrap().version(), 0);
    let records: Vec<Record> = (0..60).map(|n| a("big.ok.example.", &format!("93.184.216.{n}"))).collect();
    let plain = world.resolve(&query("big.ok.example.", RecordType::A), &records);
    assert!(plain.metadata.truncation && plain.answers.is_empty());
    let sized = with_edns(query("big.ok.example.", RecordType::A), 1232, false);
    assert_eq!(reply(&world.ask(&sized)).answers.len(), 60);
    let mut over_tcp = client(CONTAINER);
    over_tcp.transport = Transport::Tcp;
    let bytes = query("big.ok.example.", RecordType::A).to_vec().unwrap();
    world.core.received(over_tcp, &bytes, world.now);
    assert_eq!(reply(&world.core.actions()).answers.len(), 60);
}

#[test]
fn signatures_pass_untouched_when_asked_for_and_not_otherwise() {
    let mut world = World::new();
    let mut data = 1_u16.to_be_bytes().to_vec();
    data.extend([13, 3, 0, 0, 1, 44, 1, 2, 3, 4, 1, 2, 3, 4, 0, 1, 2, b'o', b'k', 0, 9, 9, 9]);
    data[18..22].copy_from_slice(&[2, b'o', b'k', 0]);
    let signature = {
        let anything = hickory_proto::rr::rdata::NULL::with(data.clone());
        record("www.ok.example.", 300, RData::Unknown { code: RecordType::RRSIG, rdata: anything })
    };
    let records = [a("www.ok.example.", "93.184.216.34"), signature];
    let signed = with_edns(query("www.ok.example.", RecordType::A), 1232, true);
    let found = world.resolve(&signed, &records);
    assert_eq!(found.answers.len(), 2);
    assert!(matches!(&found.answers[1].data, RData::Unknown { rdata, .. } if rdata.anything == data));
    assert_eq!(world.resolve(&query("www.ok.example.", RecordType::A), &records).answers.len(), 1);
}

#[test]
fn the_proxy_gets_addresses_unfiltered_first_a_then_aaaa() {
    let mut world = World::new();
    let (sender, receiver) = mpsc::channel();
    let resolve = |world: &mut World, name: &str| {
        let sender = sender.clone();
        let reply = Reply::new(move |outcome| sender.send(outcome).unwrap());
        world.core.resolve(HostName::parse(name).unwrap(), reply, world.now);
        world.core.actions()
    };
    let (lookup, sent) = asked(&resolve(&mut world, "any.example"));
    assert!(world.upstream(lookup, &answer(&sent, &[a("any.example.", "10.0.0.1")])).is_empty());
    assert_eq!(receiver.recv().unwrap(), Ok(vec!["10.0.0.1".parse().unwrap()]));

    let (lookup, sent) = asked(&resolve(&mut world, "six.example"));
    let (lookup, sent) = asked(&world.upstream(lookup, &answer(&sent, &[])));
    assert_eq!(sent.queries[0].query_type(), RecordType::AAAA);
    let six = record("six.example.", 60, RData::AAAA(AAAA("2606:4700::1111".parse().unwrap())));
    world.upstream(lookup, &answer(&sent, &[six]));
    assert_eq!(receiver.recv().unwrap(), Ok(vec!["2606:4700::1111".parse().unwrap()]));

    let (lookup, sent) = asked(&resolve(&mut world, "none.example"));
    let mut denial = answer(&sent, &[]);
    denial.metadata.response_code = ResponseCode::NXDomain;
    world.upstream(lookup, &denial);
    assert_eq!(receiver.recv().unwrap(), Err(ResolveError::NoSuchName));

    let (lookup, sent) = asked(&resolve(&mut world, "empty.example"));
    let (lookup, sent) = asked(&world.upstream(lookup, &answer(&sent, &[])));
    world.upstream(lookup, &answer(&sent, &[]));
    assert_eq!(receiver.recv().unwrap(), Err(ResolveError::NoAddress));

    assert!(resolve(&mut world, "printer.local").is_empty());
    assert_eq!(receiver.recv().unwrap(), Err(ResolveError::NoSuchName));

    asked(&resolve(&mut world, "slow.example"));
    while let Some(due) = world.core.deadline() {
        world.core.tick(due);
    }
    assert_eq!(receiver.recv().unwrap(), Err(ResolveError::Timeout));
}

proptest! {
    #[test]
    fn random_bytes_of_a_client_never_panic_and_never_get_records(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut world = World::new();
        world.core.received(client(CONTAINER), &bytes, world.now);
        for action in world.core.actions() {
            if let Action::Reply { bytes, .. } = action {
                let message = Message::from_vec(&bytes).unwrap();
                prop_assert!(message.answers.is_empty());
                prop_assert_eq!(message.metadata.message_type, MessageType::Response);
            }
        }
    }

    #[test]
    fn a_damaged_question_is_answered_only_as_what_it_says(at in 0_usize..32, value in any::<u8>()) {
        let mut world = World::new();
        let mut bytes = with_edns(query("www.no.example.", RecordType::A), 1232, true).to_vec().unwrap();
        let at = at % bytes.len();
        bytes[at] = value;
        world.core.received(client(CONTAINER), &bytes, world.now);
        for action in world.core.actions() {
            if let Action::Reply { bytes: sent, .. } = action {
                let message = Message::from_vec(&sent).unwrap();
                prop_assert_eq!(message.metadata.id.to_be_bytes(), [bytes[0], bytes[1]]);
                prop_assert!(message.answers.is_empty());
            }
        }
    }

    #[test]
    fn damaged_messages_of_upstream_never_panic(damage in proptest::collection::vec((0_usize..200, any::<u8>()), 1..8)) {
        let mut world = World::new();
        let (lookup, sent) = asked(&world.ask(&query("www.ok.example.", RecordType::A)));
        let records = [a("www.ok.example.", "93.184.216.34"), soa("ok.example.", 1, 1)];
        let mut bytes = answer(&sent, &records).to_vec().unwrap();
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        world.core.answered(lookup, &bytes, world.now);
        for action in world.core.actions() {
            if let Action::Reply { bytes, .. } = action {
                for record in Message::from_vec(&bytes).unwrap().answers {
                    let address = answer_module::address(&record);
                    prop_assert!(address.is_none_or(|address| crate::names::special_purpose(address).is_none()));
                }
            }
        }
    }
}
