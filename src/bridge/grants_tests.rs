//! The tests of `grants.rs`.

use super::*;
use crate::docker_manager::ManagedNetwork;
use crate::rule_engine::{Guard, LoadOptions, Source, load_sources};

fn rules(names: &[&str]) -> Arc<RuleSet> {
    let rule = |name: &&str| {
        let condition = format!("dns.query == \"{name}\" && agent.name == \"agent\"");
        format!("  - {{ id: {name}, condition: '{condition}', action: allow, egress: {{ mode: direct_ip }} }}\n")
    };
    let text = format!("version: '1'\nrules:\n{}", names.iter().map(rule).collect::<String>());
    let options = LoadOptions { proxy: true, interception: false, guard: Guard::InProcess };
    load_sources(&[Source { name: "test.yaml".to_owned(), text }], &options, None).unwrap().set
}

fn endpoint() -> Arc<Endpoint> {
    Arc::new(Endpoint {
        container_id: "1".into(),
        container: "agent-1".into(),
        agent: "agent".into(),
        network: Arc::new(ManagedNetwork {
            name: "outcall-default".to_owned(),
            id: String::new(),
            bridge: "outcall0".to_owned(),
            subnet: "10.200.0.0/24".parse().unwrap(),
            gateway: "10.200.0.1".parse().unwrap(),
        }),
        address: Ipv4Addr::new(10, 200, 0, 2),
        mac: [2, 0, 0, 0, 0, 2],
        sandbox_key: String::new(),
        pid: 1,
    })
}

fn directory() -> Endpoints {
    HashMap::from([(endpoint().address, endpoint())])
}

fn grant(rules: &RuleSet, name: &str, address: u32, seconds: u64) -> Grant {
    Grant {
        endpoint: endpoint(),
        name: name.into(),
        rule: Arc::clone(&rules.rules()[0]),
        addresses: vec![Ipv4Addr::from_bits(0x0808_0000 + address)],
        ports: vec![443],
        ttl: Duration::from_secs(seconds),
    }
}

#[test]
fn the_oldest_flow_of_a_container_makes_room() {
    let (rules, now) = (rules(&["a.example"]), Instant::now());
    let mut book = GrantBook::default();
    for address in 0..256 {
        assert!(book.grant(&grant(&rules, "a.example", address, 60), now).close.is_empty());
    }
    // A refresh makes the first one the youngest.
    book.grant(&grant(&rules, "a.example", 0, 60), now);
    let change = book.grant(&grant(&rules, "a.example", 1000, 60), now);
    assert_eq!(change.close.iter().map(|key| key.destination).collect::<Vec<_>>(), [Ipv4Addr::new(8, 8, 0, 1)]);
    assert_eq!((change.open.len(), book.flows(now).len()), (1, MAX_PER_CONTAINER));
}

#[test]
fn a_refresh_never_shortens() {
    let (rules, now) = (rules(&["a.example"]), Instant::now());
    let mut book = GrantBook::default();
    book.grant(&grant(&rules, "a.example", 1, 600), now);
    let later = now + Duration::from_secs(100);
    assert_eq!(book.grant(&grant(&rules, "a.example", 1, 60), later).open[0].1, 500_000);
    assert_eq!(book.flows(now + Duration::from_secs(601)), []);
}

#[test]
fn a_flow_holds_as_long_as_one_of_its_names_is_allowed() {
    let (both, now) = (rules(&["a.example", "b.example"]), Instant::now());
    let mut book = GrantBook::default();
    book.grant(&grant(&both, "a.example", 1, 60), now);
    book.grant(&grant(&both, "b.example", 1, 60), now);
    assert_eq!(book.rejudge(&rules(&["b.example"]), &directory(), now), Change::default());
    let closed = book.rejudge(&rules(&["a.example"]), &directory(), now).close;
    assert_eq!((closed.len(), book.flows(now).len()), (1, 0));
}

#[test]
fn a_flow_does_not_keep_the_time_of_a_name_that_is_no_longer_allowed() {
    let (both, now) = (rules(&["a.example", "b.example"]), Instant::now());
    let mut book = GrantBook::default();
    book.grant(&grant(&both, "a.example", 1, 3600), now);
    book.grant(&grant(&both, "b.example", 1, 60), now);
    let [(key, _)] = book.flows(now)[..] else { panic!("one flow") };
    let change = book.rejudge(&rules(&["b.example"]), &directory(), now);
    assert_eq!(change, Change { close: vec![], open: vec![(key, 60_000)] });
    // Nor that of the operator's word, once that is taken back.
    book.operate(&endpoint(), key, Duration::from_secs(600), now).unwrap();
    assert_eq!(book.take_back(&key, now), Change { close: vec![], open: vec![(key, 60_000)] });
}

#[test]
fn what_runs_on_after_its_grant_ends_with_its_rule() {
    let (both, now) = (rules(&["a.example", "b.example"]), Instant::now());
    let later = now + Duration::from_secs(61);
    let mut book = GrantBook::default();
    book.grant(&grant(&both, "a.example", 1, 60), now);
    let [(key, _)] = book.flows(now)[..] else { panic!("one flow") };
    assert_eq!(book.flows(later), []);
    assert!(book.any() && !book.holds(&key));
    // Other rules leave it alone; those without its name do not, and nothing is left to close.
    assert_eq!(book.rejudge(&rules(&["a.example"]), &directory(), later), Change::default());
    assert!(book.may_run(&key));
    assert_eq!(book.rejudge(&rules(&["b.example"]), &directory(), later), Change::default());
    assert!(!book.may_run(&key) && !book.any());
}

#[test]
fn a_renamed_container_is_judged_by_its_new_name() {
    let (rules, now) = (rules(&["a.example"]), Instant::now());
    let later = now + Duration::from_secs(61);
    let renamed = |change: fn(&mut Endpoint)| {
        let mut own = (*endpoint()).clone();
        (own.agent, own.container) = ("other".into(), "other-1".into());
        change(&mut own);
        HashMap::from([(own.address, Arc::new(own))])
    };
    let mut book = GrantBook::default();
    book.grant(&grant(&rules, "a.example", 1, 60), now);
    book.grant(&grant(&rules, "a.example", 2, 600), now);
    let keys: Vec<FlowKey> = book.flows(now).iter().map(|(key, _)| *key).collect();
    // Another container at its address has no say; that one's flows are ended as orphans.
    assert_eq!(book.rejudge(&rules, &renamed(|own| own.container_id = "2".into()), later), Change::default());
    assert!(keys.iter().all(|key| book.may_run(key)));
    assert_eq!(book.rejudge(&rules, &renamed(|_| ()), later).close.len(), 1);
    // One whose grant is past ends as well.
    assert!(!keys.iter().any(|key| book.may_run(key)) && !book.any());
}

#[test]
fn an_evicted_flow_runs_on_until_its_rule_ends() {
    let (rules, now) = (rules(&["a.example"]), Instant::now());
    let mut book = GrantBook::default();
    for address in 0..600 {
        book.grant(&grant(&rules, "a.example", address, 60), now);
    }
    let first = book.flows(now)[0].0;
    let key = |address: u32| FlowKey { destination: Ipv4Addr::from_bits(0x0808_0000 + address), ..first };
    assert!(book.may_run(&key(600 - 257)) && book.may_run(&key(600 - 512)));
    assert!(!book.may_run(&key(600 - 513)));
    book.revoke(&endpoint());
    assert!(!book.any());
}

#[test]
fn only_a_direct_rule_with_that_port_and_a_public_address_allows() {
    let rules = rules(&["a.example"]);
    let public = Ipv4Addr::new(8, 8, 8, 8);
    assert!(allowed(&rules, &endpoint(), "a.example", public, 443));
    assert!(!allowed(&rules, &endpoint(), "a.example", public, 22));
    assert!(!allowed(&rules, &endpoint(), "b.example", public, 443));
    assert!(!allowed(&rules, &endpoint(), "a.example", Ipv4Addr::new(10, 0, 0, 1), 443));
    let other = Endpoint { agent: "other".into(), ..(*endpoint()).clone() };
    assert!(!allowed(&rules, &other, "a.example", public, 443));
}

#[test]
fn an_operators_flow_needs_no_rule_and_makes_no_room() {
    let (rules, now) = (rules(&["a.example"]), Instant::now());
    let mut book = GrantBook::default();
    let key = FlowKey { source: endpoint().address, destination: Ipv4Addr::new(9, 9, 9, 9), protocol: 17, port: 53 };
    let operated = book.operate(&endpoint(), key, Duration::from_secs(600), now).unwrap();
    assert!(operated.new && operated.change.open == [(key, 600_000)]);
    for address in 0..300 {
        book.grant(&grant(&rules, "a.example", address, 60), now);
    }
    assert!(book.holds(&key) && book.flows(now).len() == MAX_PER_CONTAINER);
    assert!(!book.rejudge(&RuleSet::block_all(), &directory(), now).close.contains(&key));
    assert_eq!(book.flows(now), [(key, 600_000)]);
    // It is never shortened; its end ends no running connection, and rules have no say in that either.
    assert_eq!(book.operate(&endpoint(), key, Duration::from_secs(1), now).unwrap().left, Duration::from_secs(600));
    let later = now + Duration::from_secs(601);
    book.rejudge(&RuleSet::block_all(), &directory(), later);
    assert!(!book.holds(&key) && book.may_run(&key) && book.ended.is_empty());
    book.revoke(&endpoint());
    assert!(!book.any());
}

#[test]
fn who_keeps_an_operators_flow_hears_of_its_end() {
    let now = Instant::now();
    let mut book = GrantBook::default();
    let key = |port| FlowKey { source: endpoint().address, destination: Ipv4Addr::new(9, 9, 9, 9), protocol: 6, port };
    for port in [1, 2] {
        book.operate(&endpoint(), key(port), Duration::from_secs(600), now).unwrap();
    }
    assert_eq!(book.take_back(&key(1), now).close, [key(1)]);
    assert!(book.ended.is_empty());
    assert_eq!(book.revoke(&endpoint()), [key(2)]);
    assert_eq!(book.ended, [OwnedFlow::new(&"1".into(), key(2))]);
}

#[test]
fn flows_opened_by_hand_are_bounded() {
    let now = Instant::now();
    let mut book = GrantBook::default();
    let mut open = |container: u8, port: u16| {
        let mut own = (*endpoint()).clone();
        own.address = Ipv4Addr::new(10, 200, 0, container);
        let destination = Ipv4Addr::new(9, 9, 9, 9);
        let key = FlowKey { source: own.address, destination, protocol: 6, port };
        book.operate(&Arc::new(own), key, Duration::from_secs(600), now).map(drop)
    };
    for container in 2..18 {
        for port in 1..=64 {
            open(container, port).unwrap();
        }
        assert!(container == 17 || open(container, 65).unwrap_err().contains("64 flows"));
        open(container, 64).unwrap();
    }
    assert!(open(99, 1).unwrap_err().contains("1024 flows"));
}
