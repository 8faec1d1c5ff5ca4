//! The bridge on the real kernel, in network namespaces of its own: what passes, what does not, and who puts it back.
//!
//! Needs root; says so and passes where that is not given (the lab of `integration/` runs it as root).
#![cfg(feature = "daemon")]

mod bridge_world;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bridge_world::*;
use outcall::bridge::{BridgeCommand, BridgeConfig, Grant, StopMode, lockdown, panic_closed};
use outcall::daemon::control::ControlMessage;
use outcall::docker_manager::Endpoint;
use outcall::events::Layer;
use outcall::rule_engine::RuleSet;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
const DIRECT: &str = "  - { id: direct, condition: 'dns.query == \"ok.example\"', action: allow, egress: { mode: direct_ip, ports: [443], allow_private_ips: true } }\n";

fn grant(rules: &RuleSet, endpoint: &Arc<Endpoint>, ttl: Duration) -> Grant {
    Grant {
        endpoint: Arc::clone(endpoint),
        name: "ok.example".into(),
        rule: Arc::clone(&rules.rules()[0]),
        addresses: vec![PUBLIC],
        ports: vec![443],
        ttl,
    }
}

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
}

#[test]
fn an_identity_ends_with_its_veth_and_its_address_passes_on_clean() {
    if !enter() {
        return;
    }
    let outside = internet();
    let mut daemon = Daemon::start();
    daemon.rules = rules(DIRECT);
    let default = network("outcall-default", "outcall0", 0);
    daemon.ensure(&default);
    let (a, a_end) = container(&default, 2, "vethA");
    daemon.publish(&[&default], &[&a_end]);
    let _web = outside.listen(PUBLIC, 443);
    let opened = grant(&daemon.rules, &a_end, Duration::from_secs(60));
    daemon.ask(|done| BridgeCommand::Grant(opened, done)).unwrap();
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
    assert!(space.connects(GATEWAY, 8080));
}

#[test]
fn what_others_change_is_put_back_at_once() {
    if !enter() {
        return;
    }
    let outside = internet();
    let mut daemon = Daemon::start();
    daemon.rules = rules(DIRECT);
    let default = network("outcall-default", "outcall0", 0);
    daemon.ensure(&default);
    let (a, a_end) = container(&default, 2, "vethA");
    daemon.publish(&[&default], &[&a_end]);
    let opened = grant(&daemon.rules, &a_end, Duration::from_secs(60));
    daemon.ask(|done| BridgeCommand::Grant(opened, done)).unwrap();
    let _web = outside.listen(PUBLIC, 443);
    let _other = outside.listen(PUBLIC, 444);
    let tampering = [
        "nft flush ruleset",
        "nft delete table inet outcall",
        "nft delete table netdev outcall",
        "nft delete table bridge outcall",
        "nft insert rule inet outcall forward accept",
        "nft flush chain inet outcall leaving",
        "nft add chain inet outcall forward \"{ policy accept; }\"",
        "nft add element inet outcall direct4 \"{ 10.200.0.2 . 203.0.113.5 . tcp . 444 timeout 1h }\"",
        "nft flush set inet outcall direct4",
        "nft flush set inet outcall subnets",
        "nft add element inet outcall gateways \"{ outcall0 . 198.18.0.1 }\"",
        "nft add chain inet outcall stranger",
    ];
    for change in tampering {
        let start = Instant::now();
        run(change);
        until(change, || daemon.healthy());
        assert!(start.elapsed() < Duration::from_millis(200), "{change}: {:?}", start.elapsed());
        assert!(!a.connects(PUBLIC, 444), "{change}");
        // The grant has survived.
        assert!(a.connects(PUBLIC, 443), "{change}");
    }
    assert!(daemon.events.try_iter().any(|event| event.reason == "table_restored"));
    // Tables of others are none of our business.
    let before = run("nft -a list table inet outcall");
    run("nft add table inet other; nft add chain inet other c; nft flush table inet other");
    daemon.healthy();
    assert_eq!(before.lines().nth(1), run("nft -a list table inet outcall").lines().nth(1));
}

#[test]
fn replacing_the_tables_under_traffic_lets_nothing_through() {
    if !enter() {
        return;
    }
    let outside = internet();
    let mut daemon = Daemon::start();
    let default = network("outcall-default", "outcall0", 0);
    daemon.ensure(&default);
    let (a, a_end) = container(&default, 2, "vethA");
    daemon.publish(&[&default], &[&a_end]);
    let flood = Flood::start(&a);
    for _ in 0..50 {
        // What is strange makes the daemon replace everything.
        run("nft add chain inet outcall stranger");
        until("the replacement", || daemon.healthy());
    }
    assert!(flood.stop() > 1000);
    assert_eq!(outside.echo_requests(), 0);
}

#[test]
fn it_is_the_table_that_blocks() {
    if !enter() {
        return;
    }
    let outside = internet();
    let mut daemon = Daemon::start();
    let default = network("outcall-default", "outcall0", 0);
    daemon.ensure(&default);
    let (a, a_end) = container(&default, 2, "vethA");
    daemon.publish(&[&default], &[&a_end]);
    let web = outside.listen(PUBLIC, 443);
    assert!(!a.connects(PUBLIC, 443));
    // The thread is gone without a word; its tables stay. An accept at the head of the chain opens the way.
    daemon.stop(StopMode::Keep);
    assert!(!a.connects(PUBLIC, 443));
    run("nft insert rule inet outcall forward accept");
    assert!(a.connects(PUBLIC, 443));
    web.accept().unwrap();
    let again = Daemon::start();
    assert!(again.healthy());
    assert!(!a.connects(PUBLIC, 443));
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
    let open = |daemon: &Daemon, ttl| {
        let opened = grant(&daemon.rules, &a_end, ttl);
        daemon.ask(|done| BridgeCommand::Grant(opened, done))
    };
    open(&daemon, Duration::from_secs(1)).unwrap();
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
    open(&daemon, Duration::from_secs(1)).unwrap();
    open(&daemon, Duration::from_secs(60)).unwrap();
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
    open(&daemon, Duration::from_secs(60)).unwrap();
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
    open(&daemon, Duration::from_secs(60)).unwrap();
    let listed = daemon.ask(BridgeCommand::Grants).unwrap();
    assert_eq!(listed.len(), 256);
    assert!(listed.iter().all(|flow| flow.destination != Ipv4Addr::new(8, 8, 0, 0)));
    assert!(a.connects(PUBLIC, 443));
    assert!(daemon.healthy());
}

#[test]
fn down_takes_everything_away_and_up_puts_it_back() {
    if !enter() {
        return;
    }
    let mut daemon = Daemon::start();
    let (one, two) = (network("outcall-default", "outcall0", 0), network("outcall-b", "oc-0123456789", 1));
    daemon.ensure(&one);
    daemon.ensure(&two);
    let (a, a_end) = container(&one, 2, "vethA");
    let (b, b_end) = container(&two, 2, "vethB");
    daemon.publish(&[&one, &two], &[&a_end, &b_end]);
    let _proxy = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap();
    let other = Ipv4Addr::new(10, 200, 1, 1);
    assert!(a.connects(GATEWAY, 8080) && b.connects(other, 8080));
    let status = daemon.ask(BridgeCommand::Down).unwrap();
    assert_eq!((status.up, status.index, status.nftables.as_str()), (false, None, "inactive"));
    assert_eq!(run("nft list ruleset"), "");
    assert!(!a.connects(GATEWAY, 8080) && !b.connects(other, 8080));
    assert!(
        daemon
            .ask(|done| BridgeCommand::EnsureNetwork {
                bridge: two.bridge.clone(),
                subnet: two.subnet,
                gateway: two.gateway,
                done
            })
            .is_err()
    );
    // A bridge that somebody makes meanwhile would be unfiltered: it goes again.
    run("ip link add outcall0 type bridge");
    until("the bridge to go", || !run("ip -o link").contains("outcall0:"));
    let again = daemon.ask(BridgeCommand::Down).unwrap();
    assert!(!again.up);
    let status = daemon.ask(BridgeCommand::Up).unwrap();
    assert!(status.up && status.nftables_active, "{status:?}");
    until("the containers to be back", || a.connects(GATEWAY, 8080) && b.connects(other, 8080));
    assert!(!a.connects(b_end.address, 8080));
    assert!(daemon.ask(BridgeCommand::Up).unwrap().up);
    // A network that is removed.
    daemon.publish(&[&one], &[&a_end]);
    drop(b);
    daemon.ask(|done| BridgeCommand::RemoveNetwork { bridge: two.bridge.clone(), done }).unwrap();
    assert!(!run("ip -o link").contains(&two.bridge));
    assert!(!run("nft list set inet outcall subnets").contains("10.200.1"));
    assert!(daemon.healthy());
}

#[test]
fn a_restart_finds_everything_again_and_is_never_open() {
    if !enter() {
        return;
    }
    let outside = internet();
    let web = outside.listen(PUBLIC, 443);
    web.set_nonblocking(true).unwrap();
    let default = network("outcall-default", "outcall0", 0);
    let _proxy = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap();
    let mut daemon = Daemon::start();
    daemon.ensure(&default);
    let (a, a_end) = container(&default, 2, "vethA");
    daemon.publish(&[&default], &[&a_end]);
    // Without pause, while daemons come and go: nothing may arrive.
    let flood = Flood::start(&a);
    for mode in [StopMode::Keep, StopMode::Teardown, StopMode::Keep] {
        assert!(a.connects(GATEWAY, 8080), "{mode:?}");
        daemon.stop(mode);
        // Not even what another service now answers on that port.
        assert!(!a.connects(GATEWAY, 8080), "{mode:?}");
        assert!(!a.connects(PUBLIC, 443), "{mode:?}");
        daemon = Daemon::start();
        daemon.publish(&[&default], &[&a_end]);
        assert!(daemon.healthy(), "{mode:?}");
    }
    // Its bridge was deleted: made again, and the veth put back.
    run("ip link del outcall0");
    until("the bridge to be back", || a.connects(GATEWAY, 8080));
    assert!(flood.stop() > 1000);
    assert!(web.accept().is_err());
    assert_eq!(outside.echo_requests(), 0);
}

#[test]
fn dns_on_another_port_is_reached_as_53() {
    if !enter() {
        return;
    }
    let mut daemon = Daemon::start_with(BridgeConfig { dns_port: 5353, proxy_port: None, ..config() });
    let default = network("outcall-default", "outcall0", 0);
    daemon.ensure(&default);
    let (a, a_end) = container(&default, 2, "vethA");
    daemon.publish(&[&default], &[&a_end]);
    let dns = UdpSocket::bind((GATEWAY, 5353)).unwrap();
    let _tcp = TcpListener::bind((GATEWAY, 5353)).unwrap();
    let _proxy = TcpListener::bind((GATEWAY, 8080)).unwrap();
    dns.set_read_timeout(Some(PATIENCE)).unwrap();
    let client = a.udp(Ipv4Addr::UNSPECIFIED, 0);
    client.connect((GATEWAY, 53)).unwrap();
    client.send(b"q").unwrap();
    let mut buffer = [0; 8];
    let (_, peer) = dns.recv_from(&mut buffer).unwrap();
    assert_eq!(peer.ip(), a_end.address);
    dns.send_to(b"a", peer).unwrap();
    assert_eq!(client.recv(&mut buffer).unwrap(), 1);
    assert!(a.connects(GATEWAY, 53) && !a.connects(GATEWAY, 8080));
    assert!(daemon.healthy());
}

fn start_error() -> Option<String> {
    let poll = mio::Poll::new().unwrap();
    let (_, inbox) = outcall::event_loop::mailbox(&poll, 4).unwrap();
    let (control, _) = outcall::event_loop::mailbox(&mio::Poll::new().unwrap(), 4).unwrap();
    let events = outcall::events::EventSink::discard();
    let started = outcall::bridge::Bridge::start(config(), control, events, Default::default(), poll, inbox);
    started.err().map(|error| error.to_string())
}

#[test]
fn a_name_that_is_no_bridge_is_refused_and_left_alone() {
    if !enter() {
        return;
    }
    run("ip link add outcall0 type veth peer name other0");
    let error = start_error().unwrap();
    assert!(error.contains("outcall0") && error.contains("veth") && error.contains("--bridge"), "{error}");
    assert_eq!(run("nft list ruleset"), "");
    assert!(run("ip -o link").contains("outcall0"));
}

/// What the child process of `net_admin_is_enough_and_named_when_missing` does, told by this variable.
const ROLE: &str = "OUTCALL_BRIDGE_TEST_PID";

#[test]
fn net_admin_is_enough_and_named_when_missing() {
    if let Ok(pid) = std::env::var(ROLE) {
        return with_few_capabilities(pid.parse().unwrap());
    }
    if !enter() {
        return;
    }
    run("ip link add outcall0 type bridge");
    let default = network("outcall-default", "outcall0", 0);
    let (a, _) = container(&default, 2, "vethA");
    let itself = std::env::current_exe().unwrap();
    let child = |capabilities: &str, pid: i32| {
        let output = std::process::Command::new("setpriv")
            .args(["--inh-caps=-all", &format!("--bounding-set={capabilities}")])
            .arg(&itself)
            .args(["--exact", "--nocapture", "net_admin_is_enough_and_named_when_missing"])
            .env(ROLE, pid.to_string())
            .output()
            .unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{said}");
    };
    child("-all,+net_admin,+net_bind_service", a.pid());
    child("-all,+net_bind_service", 0);
}

fn with_few_capabilities(pid: i32) {
    if pid == 0 {
        let error = start_error().unwrap();
        assert!(error.contains("CAP_NET_ADMIN"), "{error}");
        return;
    }
    let mut daemon = Daemon::start();
    let default = network("outcall-default", "outcall0", 0);
    let endpoint = Arc::new(Endpoint {
        container_id: "a".repeat(64).into(),
        container: "a".into(),
        agent: "a".into(),
        network: Arc::clone(&default),
        address: Ipv4Addr::new(10, 200, 0, 2),
        mac: [2, 0x42, 10, 200, 0, 2],
        sandbox_key: String::new(),
        pid,
    });
    let other = network("outcall-b", "oc-0123456789", 1);
    daemon.publish(&[&default, &other], &[&endpoint]);
    assert!(daemon.healthy());
    assert!(run("nft list table netdev outcall").contains("vethA"));
    daemon.rules = rules(DIRECT);
    daemon.publish(&[&default, &other], &[&endpoint]);
    let opened = grant(&daemon.rules, &endpoint, Duration::from_secs(60));
    daemon.ask(|done| BridgeCommand::Grant(opened, done)).unwrap();
    assert_eq!(daemon.ask(BridgeCommand::Flush).unwrap(), 1);
    daemon.stop(StopMode::Teardown);
}

#[test]
fn lockdown_and_a_panic_close_everything() {
    if !enter() {
        return;
    }
    let outside = internet();
    lockdown(&config()).unwrap();
    assert!(run("nft list table inet outcall").contains("policy drop"));
    let mut daemon = Daemon::start();
    daemon.rules = rules(DIRECT);
    let default = network("outcall-default", "outcall0", 0);
    daemon.ensure(&default);
    let (a, a_end) = container(&default, 2, "vethA");
    daemon.publish(&[&default], &[&a_end]);
    let _web = outside.listen(PUBLIC, 443);
    let _proxy = TcpListener::bind((GATEWAY, 8080)).unwrap();
    let opened = grant(&daemon.rules, &a_end, Duration::from_secs(60));
    daemon.ask(|done| BridgeCommand::Grant(opened, done)).unwrap();
    let mut client = a.dial(PUBLIC, 443).unwrap();
    assert!(a.connects(GATEWAY, 8080));
    daemon.stop(StopMode::Keep);
    panic_closed(&config()).unwrap();
    assert!(!a.connects(PUBLIC, 443) && !a.connects(GATEWAY, 8080));
    client.set_read_timeout(Some(DROPPED)).unwrap();
    assert!(client.write_all(b"x").is_err() || client.read_exact(&mut [0]).is_err());
}
