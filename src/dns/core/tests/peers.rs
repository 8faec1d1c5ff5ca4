//! Who asks, how much one may ask, and snapshots that change while somebody waits.

use super::*;

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
fn an_answer_kept_for_one_container_is_no_permission_of_another() {
    let mut world = World::new();
    world.resolve(&query("www.ok.example.", RecordType::A), &[a("www.ok.example.", "93.184.216.34")]);
    let mut directory = Directory::empty(world.now);
    directory.networks.push(network());
    let reader =
        Endpoint { agent: "reader".into(), container: "reader".into(), ..(*endpoint(CONTAINER, "c2")).clone() };
    directory.endpoints.insert(reader.address, Arc::new(reader));
    let rules = Arc::clone(&world.core.snapshot().rules);
    world.core.adopt(Arc::new(Snapshot { generation: 2, rules, directory: Arc::new(directory) }), world.now);
    assert_eq!(world.core.cache.len(), 1);
    assert_eq!(code(&reply(&world.ask(&query("www.ok.example.", RecordType::A)))), ResponseCode::NXDomain);
}

#[test]
fn the_proxy_and_the_containers_do_not_use_up_each_others_lookups() {
    let mut world = World::new();
    for n in 0..LOOKUPS_PROXY + 10 {
        world.core.resolve(HostName::parse(&format!("n{n}.example")).unwrap(), Reply::nobody(), world.now);
    }
    assert_eq!(world.core.flights.len(), LOOKUPS_PROXY);
    world.core.actions();
    asked(&world.ask(&query("www.ok.example.", RecordType::A)));
    world.pass(60_000);
    while let Some(due) = world.core.deadline() {
        world.core.tick(due);
    }
    assert_eq!((world.core.proxy_flights, world.core.is_idle()), (0, true));
}
