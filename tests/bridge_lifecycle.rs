//! The bridge on the real kernel, in network namespaces of its own: starts, stops, restarts, and what others change.
//!
//! Needs root; says so and passes where that is not given (the lab of `integration/` runs it as root).
#![cfg(feature = "daemon")]

mod bridge_world;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bridge_world::*;
use outcall::bridge::{BridgeCommand, BridgeConfig, Grant, StopMode, lockdown};
use outcall::docker_manager::Endpoint;
use outcall::event_loop::Reply;

fn start_error() -> Option<String> {
    let poll = mio::Poll::new().unwrap();
    let (_, inbox) = outcall::event_loop::mailbox(&poll, 4).unwrap();
    let (control, _) = outcall::event_loop::mailbox(&mio::Poll::new().unwrap(), 4).unwrap();
    let events = outcall::events::EventSink::discard();
    let started = outcall::bridge::Bridge::start(config(), control, events, Default::default(), poll, inbox);
    started.err().map(|error| error.to_string())
}

#[test]
fn what_others_change_is_put_back_at_once() {
    if !enter() {
        return;
    }
    let outside = internet();
    let (daemon, _, a, a_end) = daemon_with_container(DIRECT);
    daemon.open(&a_end, Duration::from_secs(60)).unwrap();
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
    // Within what time, the lab sees on a machine that does nothing else.
    for change in tampering {
        run(change);
        until(change, || daemon.healthy());
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
fn a_container_that_opens_flows_without_end_keeps_no_change_from_being_put_back() {
    if !enter() {
        return;
    }
    let mut daemon = Daemon::start();
    daemon.rules = rules(DIRECT);
    let default = network("outcall-default", "outcall0", 0);
    daemon.ensure(&default);
    let (_a, a_end) = container(&default, 2, "vethA");
    daemon.publish(&[&default], &[&a_end]);
    let (over, commands) = (AtomicBool::new(false), daemon.commands.clone());
    std::thread::scope(|scope| {
        // The mailbox is never empty: as with a container that resolves names whose addresses are new each time, so that
        // each flow pushes another one out.
        for half in [0, 1 << 15] {
            let opened = grant(&daemon.rules, &a_end, Duration::from_secs(60));
            let (over, commands) = (&over, commands.clone());
            scope.spawn(move || {
                for number in (0..1 << 15).cycle().take_while(|_| !over.load(Ordering::Relaxed)) {
                    let addresses = vec![Ipv4Addr::from_bits(0x0808_0000 + half + number)];
                    let command = BridgeCommand::Grant(Grant { addresses, ..opened.clone() }, Reply::nobody());
                    let _ = commands.send_within(command, PATIENCE);
                }
            });
        }
        let put_back = || daemon.events.try_iter().any(|event| event.reason == "table_restored");
        let start = Instant::now();
        while !put_back() && start.elapsed() < PATIENCE {
            run("nft insert rule inet outcall forward accept");
            std::thread::sleep(Duration::from_millis(100));
        }
        over.store(true, Ordering::Relaxed);
        assert!(start.elapsed() < PATIENCE, "nobody looked at the tables");
    });
}

#[test]
fn replacing_the_tables_under_traffic_lets_nothing_through() {
    if !enter() {
        return;
    }
    let outside = internet();
    let (daemon, _, a, _) = daemon_with_container("");
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
    let (daemon, _, a, _) = daemon_with_container("");
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
    run("ip link add outcall0 up type bridge");
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
    daemon.open(&endpoint, Duration::from_secs(60)).unwrap();
    assert_eq!(daemon.ask(BridgeCommand::Flush).unwrap(), 1);
    daemon.stop(StopMode::Teardown);
}

/// Takes CAP_NET_ADMIN out of this thread's effective set, or puts it back; it stays permitted.
fn net_admin(on: bool) {
    const NET_ADMIN: u32 = 1 << 12;
    let mut header = [0x2008_0522_u32, 0];
    let mut sets = [[0_u32; 3]; 2];
    // SAFETY: a header of version 3, for this thread, and the two sets that this version reads and writes.
    let done = unsafe {
        let read = libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr());
        sets[0][0] = if on { sets[0][0] | NET_ADMIN } else { sets[0][0] & !NET_ADMIN };
        read == 0 && libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()) == 0
    };
    assert!(done, "{}", std::io::Error::last_os_error());
}

/// What a thread logs, from here on.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn after_an_own_change_that_failed_the_table_is_put_back_and_nobody_else_is_blamed() {
    if !enter() {
        return;
    }
    let (daemon, _, _a, a_end) = daemon_with_container(DIRECT);
    let said = Said::default();
    let log = said.clone();
    daemon.inside(move || {
        let subscriber = tracing_subscriber::fmt().with_writer(move || log.clone()).finish();
        // For as long as the thread lives.
        std::mem::forget(tracing::subscriber::set_default(subscriber));
    });
    let logged = || String::from_utf8(said.0.lock().unwrap().clone()).unwrap();
    let many = |first: u8| {
        let mut opened = grant(&daemon.rules, &a_end, Duration::from_secs(60));
        opened.addresses = (0..64).map(|last| Ipv4Addr::new(9, 9, first, last)).collect();
        daemon.ask(|done| BridgeCommand::Grant(opened, done))
    };
    (0..4).for_each(|first| many(first).unwrap());
    assert_eq!(daemon.ask(BridgeCommand::Grants).unwrap().len(), 256);
    // The book has given up the oldest for these when the kernel refuses the change.
    daemon.inside(|| net_admin(false));
    let refused = many(4).unwrap_err();
    assert!(refused.contains("CAP_NET_ADMIN"), "{refused}");
    daemon.inside(|| net_admin(true));
    until("the flows that no one holds to be gone", || {
        daemon.ask(BridgeCommand::Grants).unwrap().len() == 192 && !run("nft list ruleset").contains("9.9.0.1 ")
    });
    until("the word of it", || logged().contains("by a change of outcalld's own, and has been put back"));
    assert!(!logged().contains("someone else"), "{}", logged());
    assert!(daemon.healthy());
    run("nft flush set inet outcall direct4");
    until("the flows to be back", || run("nft list ruleset").contains("9.9.1.1 "));
    until("the word of it", || logged().contains("nftables was changed by someone else"));
}

#[test]
fn lockdown_and_a_panic_close_everything() {
    if !enter() {
        return;
    }
    let outside = internet();
    lockdown(&config()).unwrap();
    assert!(run("nft list table inet outcall").contains("policy drop"));
    let (mut daemon, _, a, a_end) = daemon_with_container(DIRECT);
    let _web = outside.listen(PUBLIC, 443);
    let _proxy = TcpListener::bind((GATEWAY, 8080)).unwrap();
    daemon.open(&a_end, Duration::from_secs(60)).unwrap();
    let mut client = a.dial(PUBLIC, 443).unwrap();
    assert!(a.connects(GATEWAY, 8080));
    // The thread is alive, and does not take the closed table for a change to be put back.
    daemon.closer.close().unwrap();
    let ended = daemon.thread.take().unwrap();
    until("the thread to end", || ended.is_finished());
    assert!(ended.join().unwrap().is_err());
    assert!(!a.connects(PUBLIC, 443) && !a.connects(GATEWAY, 8080));
    client.set_read_timeout(Some(DROPPED)).unwrap();
    assert!(client.write_all(b"x").is_err() || client.read_exact(&mut [0]).is_err());
}
