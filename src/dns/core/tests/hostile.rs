//! Bytes that nobody sensible sends.

use proptest::prelude::*;

use super::*;

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

#[test]
fn a_flood_of_denied_questions_is_dropped_above_the_rate_and_counted() {
    let mut world = World::new();
    let denied = query("www.no.example.", RecordType::A);
    let answered = (0..1500).filter(|_| !world.ask(&denied).is_empty()).count();
    assert_eq!((answered, world.core.counters.blocked, world.core.counters.total), (1000, 1500, 1500));
    // Nothing of this container is read until it has been quiet for a moment.
    assert!(world.ask(&query("www.ok.example.", RecordType::A)).is_empty());
    world.pass(1000);
    assert_eq!((0..500).filter(|_| !world.ask(&denied).is_empty()).count(), 200);
    // Its successor begins with a clean slate.
    for id in ["", "c2"] {
        let containers = if id.is_empty() { Vec::new() } else { vec![(CONTAINER, id)] };
        world.core.adopt(snapshot(world.now, &containers, rules()), world.now);
    }
    assert!(!world.ask(&denied).is_empty());
}

#[test]
fn questions_that_are_refused_unjudged_count_as_denied_ones() {
    let mut notify = query("www.ok.example.", RecordType::A);
    notify.metadata.op_code = OpCode::Notify;
    let mut none = query("www.ok.example.", RecordType::A);
    none.queries.clear();
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    for refused in [notify, none, chaos] {
        let mut world = World::new();
        assert_eq!((0..1500).filter(|_| !world.ask(&refused).is_empty()).count(), 1000);
    }
}

#[test]
fn what_is_dropped_of_a_flood_is_one_event_of_each_container_every_ten_seconds() {
    const NEIGHBOUR: &str = "10.200.0.6";
    let mut world = World::new();
    world.core.adopt(snapshot(world.now, &[(CONTAINER, "c1"), (NEIGHBOUR, "c2")], rules()), world.now);
    let (sender, events) = crossbeam_channel::unbounded();
    world.core.events = EventSink::new(sender);
    let denied = query("www.no.example.", RecordType::A);
    let floods = |world: &mut World| {
        for peer in [CONTAINER, NEIGHBOUR] {
            (0..1200).for_each(|_| drop(world.ask_from(peer, &denied)));
        }
        let floods = events.try_iter().filter(|event| event.reason == "flood");
        floods.map(|event| (event.verdict, event.endpoint.unwrap().container_id.to_string())).collect::<Vec<_>>()
    };
    let both = [(Verdict::Block, "c1".to_owned()), (Verdict::Block, "c2".to_owned())];
    assert_eq!(floods(&mut world), both);
    for _ in 0..4 {
        world.pass(2000);
        assert_eq!(floods(&mut world), []);
    }
    world.pass(2000);
    assert_eq!(floods(&mut world), both);
    assert_eq!((world.core.counters.total, world.core.counters.blocked), (14400, 14400));
}
