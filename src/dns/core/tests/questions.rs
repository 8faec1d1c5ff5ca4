//! Questions and the answers of one asker.

use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};

use super::*;

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
    let other = snapshot(world.now, &[(CONTAINER, "c1")], rules());
    world.core.adopt(other, world.now);
    asked(&world.ask(&query("www.ok.example.", RecordType::A)));
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
fn a_direct_answer_waits_for_the_kernel() {
    let mut world = World::new();
    let records = [a("direct.ok.example.", "93.184.216.34"), a("direct.ok.example.", "10.0.0.1")];
    let (lookup, sent) = asked(&world.ask(&query("direct.ok.example.", RecordType::A)));
    let actions = world.upstream(lookup, &answer(&sent, &records));
    let [Action::Grant { ticket, grant }] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!(grant.addresses, [Ipv4Addr::new(93, 184, 216, 34)]);
    assert_eq!((&*grant.name, grant.ports.as_slice(), grant.ttl.as_secs()), ("direct.ok.example", &[443][..], 300));
    assert_eq!(&*grant.endpoint.container_id, "c1");
    world.core.granted(*ticket, true);
    let found = reply(&world.core.actions());
    assert_eq!((found.answers.len(), found.answers[0].ttl), (1, 300));
    // From the cache it is opened anew, for the time that is left, but a minute at least.
    world.pass(290_000);
    let actions = world.ask(&query("direct.ok.example.", RecordType::A));
    let [Action::Grant { ticket, grant }] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!(grant.ttl.as_secs(), 60);
    world.core.granted(*ticket, false);
    assert_eq!(code(&reply(&world.core.actions())), ResponseCode::ServFail);
    let actions = world.ask(&query("direct.ok.example.", RecordType::A));
    assert!(matches!(actions.as_slice(), [Action::Grant { .. }]));
    world.pass(2_000);
    assert_eq!(code(&reply(&world.core.actions())), ResponseCode::ServFail);
    assert!(world.core.is_idle() && world.core.open.is_empty());
}

#[test]
fn a_direct_flow_opens_no_address_that_an_earlier_rule_blocks() {
    let mut world = World::new();
    let records = [a("direct.ok.example.", "93.184.216.34"), a("direct.ok.example.", "93.184.216.99")];
    let (lookup, sent) = asked(&world.ask(&query("direct.ok.example.", RecordType::A)));
    let actions = world.upstream(lookup, &answer(&sent, &records));
    let [Action::Grant { ticket, grant }] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!(grant.addresses, [Ipv4Addr::new(93, 184, 216, 34)]);
    world.core.granted(*ticket, true);
    assert_eq!(reply(&world.core.actions()).answers.len(), 1);
    let only = [a("direct.two.ok.example.", "93.184.216.99")];
    let denied = world.resolve(&query("direct.two.ok.example.", RecordType::A), &only);
    assert_eq!(code(&denied), ResponseCode::NXDomain);
    // Through the proxy it is the proxy that judges the address it dials.
    let proxied = [a("www.ok.example.", "93.184.216.99")];
    assert_eq!(world.resolve(&query("www.ok.example.", RecordType::A), &proxied).answers.len(), 1);
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
    let why = EdnsOption::Unknown(15, [b"\0\x0f".as_slice(), b"outcall: no rule allows this name"].concat());
    assert_eq!(edns.options().get(EdnsCode::Unknown(15)), Some(&why), "RFC 8914: 15 Blocked");
    assert!(reply(&world.ask(&query("no.example.", RecordType::A))).edns.is_none(), "none without EDNS0");
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
