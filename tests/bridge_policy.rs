//! The bridge on the real kernel, in network namespaces of its own: what passes and what does not.
//!
//! Needs root; says so and passes where that is not given (the lab of `integration/` runs it as root).
#![cfg(feature = "daemon")]

mod bridge_world;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bridge_world::*;
use outcall::bridge::{BridgeCommand, Grant, OperatorRefusal, OperatorWish, OwnedFlow, Protocol, StopMode};
use outcall::daemon::control::ControlMessage;
use outcall::docker_manager::Endpoint;
use outcall::events::{Event, Layer};
use outcall::rule_engine::RuleSet;

/// Whether bytes sent on a connection still come back.
fn echoes(client: &mut std::net::TcpStream, server: &mut std::net::TcpStream) -> bool {
    client.set_read_timeout(Some(DROPPED)).unwrap();
    server.set_read_timeout(Some(DROPPED)).unwrap();
    let mut byte = [0];
    client.write_all(b"x").is_ok()
        && server.read_exact(&mut byte).is_ok()
        && server.write_all(&byte).is_ok()
        && client.read_exact(&mut byte).is_ok()
}

#[test]
fn tables_list_cleanly_and_go_with_the_daemon() {
    if !enter() {
        return;
    }
    let daemon = Daemon::start();
    assert!(daemon.healthy());
    let listed = run("nft list ruleset");
    assert!(listed.contains("table inet outcall") && listed.contains("comment \"a granted flow\""), "{listed}");
    // What nft cannot read back it prints as raw bytes.
    assert!(!listed.contains("@nh") && !listed.contains("@ll") && !listed.contains("@th"), "{listed}");
    daemon.stop(StopMode::Teardown);
    assert_eq!(run("nft list ruleset"), "");
    assert!(!run("ip -o link").contains("outcall0"));
}

#[test]
fn a_container_reaches_dns_proxy_and_ping_on_its_gateway_and_nothing_else() {
    if !enter() {
        return;
    }
    let outside = internet();
    let mut daemon = Daemon::start();
    let (one, two) = (network("outcall-default", "outcall0", 0), network("outcall-b", "oc-0123456789", 1));
    daemon.ensure(&one);
    daemon.ensure(&two);
    let (a, a_end) = container(&one, 2, "vethA");
    let (b, b_end) = container(&one, 3, "vethB");
    let (c, c_end) = container(&two, 2, "vethC");
    let _services: Vec<TcpListener> =
        [53, 8080, 22].map(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).into();
    let host = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap();
    host.set_nonblocking(true).unwrap();
    let web = outside.listen(Ipv4Addr::UNSPECIFIED, 443);
    web.set_nonblocking(true).unwrap();

    // A port without identity has no traffic at all, ARP included.
    assert!(!a.connects(GATEWAY, 8080));
    assert!(!run("ip neigh show dev outcall0").contains("10.200.0.2"));
    daemon.publish(&[&one, &two], &[&a_end, &b_end, &c_end]);
    assert!(daemon.healthy());

    // Its first question for the gateway's MAC was dropped; it asks again within a second.
    until("the gateway to be found", || a.connects(GATEWAY, 8080));
    for port in [53, 8080] {
        assert!(a.connects(GATEWAY, port) && b.connects(GATEWAY, port), "{port}");
        assert!(c.connects(Ipv4Addr::new(10, 200, 1, 1), port), "{port}");
    }
    assert!(a.pings(GATEWAY));
    a.udp(Ipv4Addr::UNSPECIFIED, 0).send_to(b"q", (GATEWAY, 53)).unwrap();
    until("the datagram", || host.recv_from(&mut [0; 4]).is_ok());

    // Other services, the host's other addresses, the other network's gateway.
    assert!(!a.connects(GATEWAY, 22));
    for address in [Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(10, 200, 1, 1)] {
        assert!(!a.connects(address, 8080) && !a.connects(address, 53) && !a.pings(address), "{address}");
    }
    // The internet.
    assert!(!a.connects(PUBLIC, 443) && !a.pings(PUBLIC));
    assert!(web.accept().is_err());
    // Other containers, with the bridge's own filter on and off.
    let _b_listens = b.listen(Ipv4Addr::UNSPECIFIED, 9000);
    let _c_listens = c.listen(Ipv4Addr::UNSPECIFIED, 9000);
    for filter in ["0", "1"] {
        std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", filter).unwrap();
        assert!(!a.connects(b_end.address, 9000) && !a.pings(b_end.address), "br_netfilter {filter}");
        assert!(!a.connects(c_end.address, 9000) && !a.pings(c_end.address), "br_netfilter {filter}");
        assert!(a.connects(GATEWAY, 8080), "br_netfilter {filter}");
    }
    // Also where a neighbour entry is forged and the ports are not isolated.
    run("bridge link set dev vethA isolated off; bridge link set dev vethB isolated off");
    a.run("ip neigh replace 10.200.0.3 lladdr 02:42:0a:c8:00:03 dev eth0");
    assert!(!a.connects(b_end.address, 9000));
    // Nobody begins a flow towards a container: neither the host nor the outside.
    let a_listens = a.listen(Ipv4Addr::UNSPECIFIED, 9000);
    a_listens.set_nonblocking(true).unwrap();
    let from_host = std::net::TcpStream::connect_timeout(&(a_end.address, 9000).into(), DROPPED);
    assert!(from_host.is_err() && !outside.connects(a_end.address, 9000));
    assert!(a_listens.accept().is_err());
    // Other interfaces are not ours.
    let (plain, _) = {
        run("ip link add br9 type bridge; ip addr add 192.168.9.1/24 dev br9; ip link set br9 up");
        let space = Space::new();
        run(&format!(
            "ip link add vethP type veth peer name eth0 netns {}; ip link set vethP master br9 up",
            space.pid()
        ));
        space.run("ip addr add 192.168.9.2/24 dev eth0; ip link set eth0 up; ip route add default via 192.168.9.1");
        outside.run("ip route add 192.168.9.0/24 via 198.18.0.1");
        (space, ())
    };
    assert!(plain.connects(Ipv4Addr::new(192, 168, 9, 1), 22) && plain.connects(PUBLIC, 443));
    // Somebody elsewhere with a managed address.
    plain.run("ip addr add 10.200.0.77/32 dev lo");
    let spoofing = plain.inside(|| {
        let socket = UdpSocket::bind((Ipv4Addr::new(10, 200, 0, 77), 0)).unwrap();
        socket.send_to(b"q", (Ipv4Addr::new(192, 168, 9, 1), 53)).is_ok()
    });
    assert!(spoofing);
    until("the drop to be counted", || {
        !run("nft list chain inet outcall misplaced_source").contains("counter packets 0 ")
    });
    // Each attempt was seen, with who made it.
    let seen: Vec<_> = daemon.events.try_iter().collect();
    for (reason, address) in [
        ("no_grant", a_end.address),
        ("host_service", a_end.address),
        ("container_to_container", a_end.address),
        ("inbound", a_end.address),
        ("from_host", a_end.address),
    ] {
        let found = seen.iter().any(|event| {
            event.layer == Layer::Kernel
                && event.reason == reason
                && event.endpoint.as_ref().is_some_and(|endpoint| endpoint.address == address)
        });
        let reasons: Vec<_> = seen.iter().map(|event| (event.reason, event.peer, event.destination)).collect();
        assert!(found, "{reason}: {reasons:?}");
    }
    assert!(daemon.healthy());
}

#[test]
fn nobody_sends_as_someone_else() {
    if !enter() {
        return;
    }
    let mut daemon = Daemon::start();
    let default = network("outcall-default", "outcall0", 0);
    daemon.ensure(&default);
    let (a, a_end) = container(&default, 2, "vethA");
    let (b, b_end) = container(&default, 3, "vethB");
    daemon.publish(&[&default], &[&a_end, &b_end]);
    let _proxy = TcpListener::bind((GATEWAY, 8080)).unwrap();
    assert!(a.connects(GATEWAY, 8080) && b.connects(GATEWAY, 8080));
    let spoofed = || run("nft list chain netdev outcall spoofed");

    // Another container's address.
    a.run("ip addr add 10.200.0.3/24 dev eth0");
    let forged = a.inside(|| {
        let socket = UdpSocket::bind((Ipv4Addr::new(10, 200, 0, 3), 0)).unwrap();
        socket.send_to(b"q", (GATEWAY, 8080)).is_ok()
    });
    assert!(forged);
    until("the forged packet to be counted", || !spoofed().contains("counter packets 0 "));
    a.run("ip addr del 10.200.0.3/24 dev eth0");
    // Another MAC.
    a.run("ip link set eth0 address 02:42:0a:c8:00:03");
    assert!(!a.connects(GATEWAY, 8080));
    a.run("ip link set eth0 address 02:42:0a:c8:00:02; ip neigh flush all");
    until("its own MAC to work again", || a.connects(GATEWAY, 8080));
    // The gateway still knows the right neighbour.
    assert!(!run("ip neigh show 10.200.0.3 dev outcall0").contains("02:42:0a:c8:00:02"));
    // IPv6 in any form is dropped, and gets nowhere.
    run("ip -6 addr add fd00:6::1/64 dev outcall0 nodad");
    a.run("ip -6 addr add fd00:6::2/64 dev eth0 nodad");
    assert!(a.inside(|| std::net::TcpStream::connect_timeout(&"[fd00:6::1]:8080".parse().unwrap(), DROPPED)).is_err());
    assert!(!run("nft list chain netdev outcall ipv6").contains("counter packets 0 "));
    // The event names the port's owner, whatever the packet says.
    let seen: Vec<_> = daemon.events.try_iter().filter(|event| event.reason == "spoofed").collect();
    assert!(!seen.is_empty());
    assert!(seen.iter().all(|event| event.endpoint.as_ref().is_some_and(|owner| owner.address == a_end.address)));
    // By the name that it has now.
    let renamed = Arc::new(Endpoint { container: "renamed-1".into(), agent: "renamed".into(), ..(*a_end).clone() });
    daemon.publish(&[&default], &[&renamed, &b_end]);
    a.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().send_to(b"q", (GATEWAY, 22)).unwrap());
    let by_its_new_name = |event: Event| {
        event.reason == "host_service" && event.endpoint.is_some_and(|owner| &*owner.container == "renamed-1")
    };
    until("the drop to be told", || daemon.events.try_iter().any(by_its_new_name));
}

#[test]
fn an_identity_ends_with_its_veth_and_its_address_passes_on_clean() {
    if !enter() {
        return;
    }
    let outside = internet();
    let (mut daemon, default, a, a_end) = daemon_with_container(DIRECT);
    let _web = outside.listen(PUBLIC, 443);
    daemon.open(&a_end, Duration::from_secs(60)).unwrap();
    assert!(a.connects(PUBLIC, 443));
    drop(a);
    until("control to be told", || {
        std::iter::from_fn(|| daemon.control.take())
            .any(|message| matches!(message, ControlMessage::EndpointGone { address, .. } if address == a_end.address))
    });
    assert_eq!(daemon.ask(BridgeCommand::Grants).unwrap(), []);
    assert!(!run("nft list table netdev outcall").contains("vethA"));
    // The next container of that address, on the same name.
    let (next, next_end) = container(&default, 2, "vethA");
    let mut next_end = (*next_end).clone();
    next_end.container_id = "f".repeat(64).into();
    let next_end = Arc::new(next_end);
    daemon.publish(&[&default], &[&next_end]);
    let _proxy = TcpListener::bind((GATEWAY, 8080)).unwrap();
    assert!(next.connects(GATEWAY, 8080));
    assert!(!next.connects(PUBLIC, 443));
    assert!(daemon.healthy());
    // One that is no longer in the directory loses its filter, and gets it back with its place there.
    daemon.publish(&[&default], &[]);
    assert!(!next.connects(GATEWAY, 8080));
    daemon.publish(&[&default], &[&next_end]);
    assert!(next.connects(GATEWAY, 8080));
}

#[test]
fn a_veth_that_appears_after_its_endpoint_is_filtered_when_it_leads_there() {
    if !enter() {
        return;
    }
    let mut daemon = Daemon::start();
    let default = network("outcall-default", "outcall0", 0);
    daemon.ensure(&default);
    let _proxy = TcpListener::bind((GATEWAY, 8080)).unwrap();
    // As Docker does: the directory knows the endpoint while both ends are still here.
    let space = Space::new();
    let endpoint = Arc::new(Endpoint {
        container_id: "e".repeat(64).into(),
        container: "late".into(),
        agent: "late".into(),
        network: Arc::clone(&default),
        address: Ipv4Addr::new(10, 200, 0, 9),
        mac: [2, 0x42, 10, 200, 0, 9],
        sandbox_key: format!("/proc/{}/ns/net", space.pid()),
        pid: 0,
    });
    run("ip link add vethL type veth peer name tmpL; ip link set vethL master outcall0 up");
    daemon.publish(&[&default], &[&endpoint]);
    assert!(!run("nft list table netdev outcall").contains("vethL"));
    run(&format!("ip link set tmpL netns {} name eth0", space.pid()));
    let filtered = until("the filter", || run("nft list table netdev outcall").contains("vethL"));
    eprintln!("filter {filtered:?} after the move");
    assert!(run("bridge -d link show dev vethL").contains("isolated on"));
    space.run("ip link set eth0 address 02:42:0a:c8:00:09 up; ip addr add 10.200.0.9/24 dev eth0");
    until("the way through", || space.connects(GATEWAY, 8080));
}

#[test]
fn grants_open_flows_and_revoking_ends_them() {
    if !enter() {
        return;
    }
    let outside = internet();
    let mut daemon = Daemon::start();
    daemon.rules = rules(DIRECT);
    let default = network("outcall-default", "outcall0", 0);
    daemon.ensure(&default);
    let (a, a_end) = container(&default, 2, "vethA");
    let (b, b_end) = container(&default, 3, "vethB");
    daemon.publish(&[&default], &[&a_end, &b_end]);
    let web = outside.listen(PUBLIC, 443);
    let _other = outside.listen(PUBLIC, 444);
    daemon.open(&a_end, Duration::from_secs(1)).unwrap();
    let mut client = a.dial(PUBLIC, 443).unwrap();
    let (mut server, peer) = web.accept().unwrap();
    // Masqueraded: the outside sees the host.
    assert_eq!(peer.ip(), Ipv4Addr::new(198, 18, 0, 1));
    assert!(echoes(&mut client, &mut server));
    // Only this container, this address, this port.
    assert!(!b.connects(PUBLIC, 443) && !a.connects(PUBLIC, 444));
    let listed = daemon.ask(BridgeCommand::Grants).unwrap();
    assert_eq!((listed.len(), listed[0].port, listed[0].destination), (1, 443, PUBLIC));
    assert!(listed[0].packets > 0 && listed[0].bytes > 0);
    // Expiry ends no running flow, but begins no new one.
    until("the grant to expire", || daemon.ask(BridgeCommand::Grants).unwrap().is_empty());
    assert!(!a.connects(PUBLIC, 443));
    assert!(echoes(&mut client, &mut server));
    // A refresh lengthens.
    daemon.open(&a_end, Duration::from_secs(1)).unwrap();
    daemon.open(&a_end, Duration::from_secs(60)).unwrap();
    assert!(daemon.ask(BridgeCommand::Grants).unwrap()[0].expires_in > Duration::from_secs(50));
    let lengthened = Instant::now();
    until("the former end to pass", || lengthened.elapsed() > Duration::from_millis(1200));
    assert!(a.connects(PUBLIC, 443));
    web.accept().unwrap();
    // Rules that no longer allow it end the running flow too.
    daemon.rules = Arc::new(RuleSet::block_all());
    daemon.publish(&[&default], &[&a_end, &b_end]);
    assert!(!echoes(&mut client, &mut server));
    assert!(!a.connects(PUBLIC, 443));
    // An answer judged by the former rules opens nothing any more.
    let late = grant(&rules(DIRECT), &a_end, Duration::from_secs(60));
    assert!(daemon.ask(|done| BridgeCommand::Grant(late, done)).is_err());
    // Flush, which also ends flows whose grant has expired.
    daemon.rules = rules(DIRECT);
    daemon.publish(&[&default], &[&a_end, &b_end]);
    daemon.open(&a_end, Duration::from_secs(60)).unwrap();
    let mut client = a.dial(PUBLIC, 443).unwrap();
    let (mut server, _) = web.accept().unwrap();
    assert!(echoes(&mut client, &mut server));
    assert_eq!(daemon.ask(BridgeCommand::Flush).unwrap(), 1);
    assert!(!echoes(&mut client, &mut server));
    // The cap: the oldest goes.
    for last in 0..=255u16 {
        let mut many = grant(&daemon.rules, &a_end, Duration::from_secs(60));
        many.addresses = vec![Ipv4Addr::from_bits(0x0808_0000 + u32::from(last))];
        daemon.ask(|done| BridgeCommand::Grant(many, done)).unwrap();
    }
    daemon.open(&a_end, Duration::from_secs(60)).unwrap();
    let listed = daemon.ask(BridgeCommand::Grants).unwrap();
    assert_eq!(listed.len(), 256);
    assert!(listed.iter().all(|flow| flow.destination != Ipv4Addr::new(8, 8, 0, 0)));
    assert!(a.connects(PUBLIC, 443));
    assert!(daemon.healthy());
}

#[test]
fn a_flow_does_not_stay_open_for_the_time_of_a_name_that_is_no_longer_allowed() {
    if !enter() {
        return;
    }
    let outside = internet();
    let mut daemon = Daemon::start();
    let other = DIRECT.replace("id: direct", "id: other").replace("ok.example", "other.example");
    daemon.rules = rules(&format!("{DIRECT}{other}"));
    let default = network("outcall-default", "outcall0", 0);
    daemon.ensure(&default);
    let (a, a_end) = container(&default, 2, "vethA");
    daemon.publish(&[&default], &[&a_end]);
    let _web = outside.listen(PUBLIC, 443);
    // Both names have this address, and the answer of the first lasts.
    for (name, ttl) in [("other.example", 600), ("ok.example", 2)] {
        let opened = grant(&daemon.rules, &a_end, Duration::from_secs(ttl));
        daemon.ask(|done| BridgeCommand::Grant(Grant { name: name.into(), ..opened }, done)).unwrap();
    }
    assert!(a.connects(PUBLIC, 443));
    daemon.rules = rules(DIRECT);
    daemon.publish(&[&default], &[&a_end]);
    // The kernel's own word: a flow that the book has forgotten is closed by nobody.
    let open = || run("nft list set inet outcall direct4").contains(&PUBLIC.to_string());
    until("the flow to end with the name that is left", || !open());
    assert!(!a.connects(PUBLIC, 443));
}

#[test]
fn an_operators_flow_outlives_rules_and_daemons_but_not_its_container() {
    if !enter() {
        return;
    }
    // An ordinary address: a special-purpose one is never opened by hand.
    const FAR: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
    let outside = internet();
    outside.run(&format!("ip addr add {FAR}/32 dev lo"));
    let mut daemon = Daemon::start();
    let default = network("outcall-default", "outcall0", 0);
    daemon.ensure(&default);
    let (a, a_end) = container(&default, 2, "vethA");
    let (b, b_end) = container(&default, 3, "vethB");
    daemon.publish(&[&default], &[&a_end, &b_end]);
    let web = outside.listen(FAR, 443);
    let wish = OperatorWish {
        container: a_end.container.to_string(),
        source: a_end.address,
        destination: FAR,
        protocol: Protocol::Tcp,
        port: 443,
        lasts: Duration::from_secs(600),
    };
    let allow = |daemon: &Daemon, wish: &OperatorWish| daemon.ask(|done| BridgeCommand::Allow(wish.clone(), done));
    let other = OperatorWish { source: b_end.address, ..wish.clone() };
    assert!(matches!(allow(&daemon, &other), Err(OperatorRefusal::Conflict(_))));
    let special = OperatorWish { destination: PUBLIC, ..wish.clone() };
    assert!(matches!(allow(&daemon, &special), Err(OperatorRefusal::Forbidden(_))));
    assert!(!a.connects(FAR, 443));
    let allowed = allow(&daemon, &wish).unwrap();
    assert!(allowed.new && allowed.shown.handle > 0);
    assert!(!allow(&daemon, &wish).unwrap().new);
    let mut client = a.dial(FAR, 443).unwrap();
    let (mut server, _) = web.accept().unwrap();
    assert!(echoes(&mut client, &mut server) && !b.connects(FAR, 443));
    let listed = daemon.ask(BridgeCommand::Grants).unwrap();
    assert!(listed.len() == 1 && listed[0].packets > 0 && listed[0].bytes > 0 && listed[0].names.is_empty());
    daemon.publish(&[&default], &[&a_end, &b_end]);
    assert!(echoes(&mut client, &mut server));
    daemon.ask(|done| BridgeCommand::TakeBack(allowed.grant.flow.clone(), done)).unwrap();
    assert!(!echoes(&mut client, &mut server) && !a.connects(FAR, 443));

    // Kept over a daemon: opened when the container is seen, and told as ended when another has its address.
    let mut stranger = allowed.grant.clone();
    stranger.flow.container_id = "f".repeat(64).into();
    let mut unread = stranger.clone();
    unread.flow.source = Ipv4Addr::new(10, 200, 0, 77);
    let (sender, ended) = crossbeam_channel::unbounded();
    let tell = move |flows: &[OwnedFlow]| sender.send(flows.to_vec()).is_ok();
    let kept = vec![allowed.grant.clone(), stranger.clone(), unread.clone()];
    assert!(daemon.commands.send(BridgeCommand::Restore { kept, ended: Box::new(tell) }).is_ok());
    until("the kept flow to be open", || a.connects(FAR, 443));
    web.accept().unwrap();
    // Docker has not told of everybody yet, in this world; nobody is given up.
    assert!(ended.try_recv().is_err());
    daemon.directory_read = true;
    daemon.publish(&[&default], &[&a_end, &b_end]);
    let mut gone = ended.recv_timeout(Duration::from_secs(5)).unwrap();
    gone.sort();
    let mut expected = [stranger.flow, unread.flow];
    expected.sort();
    assert_eq!(gone, expected);
    let mut client = a.dial(FAR, 443).unwrap();
    let (mut server, _) = web.accept().unwrap();
    assert!(echoes(&mut client, &mut server));
    daemon.publish(&[&default], &[&b_end]);
    assert_eq!(ended.recv_timeout(Duration::from_secs(5)).unwrap(), [allowed.grant.flow]);
    assert!(!echoes(&mut client, &mut server));
    // One whose port was never found leaves nothing to the next holder of its address either.
    let mut portless = (*a_end).clone();
    portless.container_id = "9".repeat(64).into();
    portless.address = Ipv4Addr::new(10, 200, 0, 9);
    (portless.sandbox_key, portless.pid) = ("/nonexistent".to_owned(), 0);
    let wish = OperatorWish { source: portless.address, ..wish };
    let heir = Arc::new(Endpoint { container_id: "8".repeat(64).into(), ..portless.clone() });
    daemon.publish(&[&default], &[&b_end, &Arc::new(portless)]);
    let flow = allow(&daemon, &wish).unwrap().grant.flow;
    daemon.publish(&[&default], &[&b_end, &heir]);
    assert_eq!(ended.recv_timeout(Duration::from_secs(5)).unwrap(), [flow]);
    assert!(daemon.ask(BridgeCommand::Grants).unwrap().is_empty());
    assert!(daemon.healthy());
}
