//! What upstream says, and what is made of it.

use std::sync::mpsc;

use super::*;

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

#[test]
fn an_upstream_from_before_edns_is_asked_without_it() {
    let mut world = World::new();
    let (lookup, sent) = asked(&world.ask(&query("www.ok.example.", RecordType::A)));
    assert!(sent.edns.is_some());
    let mut refused = answer(&sent, &[]);
    refused.metadata.response_code = ResponseCode::FormErr;
    let (_, sent) = asked(&world.upstream(lookup, &refused));
    assert!(sent.edns.is_none());
    let found = reply(&world.upstream(lookup, &answer(&sent, &[a("www.ok.example.", "93.184.216.34")])));
    assert_eq!(found.answers.len(), 1);
}

#[test]
fn the_random_case_of_our_question_reaches_no_client() {
    let mut world = World::new();
    let (lookup, sent) = asked(&world.ask(&query("www.ok.example.", RecordType::A)));
    // As a server writes it that compresses against the question.
    let alias = RData::CNAME(CNAME(Name::from_ascii("cdn.oK.ExAmple.").unwrap()));
    let records = [record("wWw.oK.ExAmple.", 60, alias), a("cdn.oK.ExAmple.", "93.184.216.34")];
    let found = reply(&world.upstream(lookup, &answer(&sent, &records)));
    let text: Vec<String> = found.answers.iter().map(ToString::to_string).collect();
    assert_eq!(text, ["www.ok.example. 60 IN CNAME cdn.ok.example.", "cdn.ok.example. 300 IN A 93.184.216.34"]);
}
