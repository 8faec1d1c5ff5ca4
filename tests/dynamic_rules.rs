//! Flows opened by hand: their file survives a kill -9 at every single step of every write, and their keeper never has
//! a flow open that it could not write down.
#![cfg(feature = "daemon")]

mod disks;
mod owner;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use disks::{FullDisk, KillingDisk, as_child, kill_at_each_moment, scratch};
use outcall::bridge::{
    Allowed, BridgeCommand, GrantedFlow, OperatorGrant, OperatorRefusal, OperatorWish, OwnedFlow, Protocol,
};
use outcall::docker_manager::{Endpoint, ManagedNetwork};
use outcall::event_loop::{Address, mailbox, reply_channel};
use outcall::state::{DynamicRules, DynamicRulesCommand, GrantKeeper, RealDisk};
use owner::owner;

const PATIENCE: Duration = Duration::from_secs(10);

/// A time of whole seconds, as the file keeps it.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn grant(port: u16) -> OperatorGrant {
    OperatorGrant {
        flow: OwnedFlow {
            container_id: "c".repeat(64).into(),
            source: Ipv4Addr::new(10, 200, 0, 2),
            destination: Ipv4Addr::new(9, 9, 9, 9),
            protocol: 6,
            port,
        },
        container: "coder-1".into(),
        inserted_at: now(),
        expires_at: now() + Duration::from_secs(60),
    }
}

fn ports(rules: &DynamicRules) -> Vec<u16> {
    rules.kept(now()).iter().map(|grant| grant.flow.port).collect()
}

/// The child's work; a line in a file that no crash takes back says what its caller was told.
fn work(base: &Path, disk: KillingDisk) {
    let tell = |what: &str| std::fs::write(base.join(what), "").unwrap();
    let (mut rules, _) = DynamicRules::open(Box::new(disk), &base.join("state"), 7);
    for port in [1, 2, 3] {
        rules.keep(grant(port), now()).unwrap();
        tell(&format!("kept-{port}"));
    }
    rules.forget(&[grant(2).flow], now()).unwrap();
    tell("forgotten");
    rules.clear().unwrap();
    tell("cleared");
}

#[test]
fn child_of_the_kill_test() {
    as_child(work);
}

#[test]
fn a_kill_at_any_step_leaves_the_grants_of_before_or_those_of_after() {
    let states: [&[u16]; 6] = [&[], &[1], &[1, 2], &[1, 2, 3], &[1, 3], &[]];
    let kills = kill_at_each_moment("child_of_the_kill_test", "grants", |kill_at, base, ended| {
        let (rules, said) = DynamicRules::open(Box::new(RealDisk), &base.join("state"), 7);
        assert!(said.is_empty(), "{kill_at}: {said:?}");
        let told = ["kept-1", "kept-2", "kept-3", "forgotten", "cleared"];
        let done = told.iter().filter(|what| base.join(what).exists()).count();
        let found = ports(&rules);
        assert!(
            found == states[done] || states.get(done + 1) == Some(&&found[..]),
            "{kill_at}: {done} done, {found:?}"
        );
        assert!(!ended || done == told.len());
    });
    // Five writes of seven moments: if the steps were not seen, this test saw nothing.
    assert!(kills >= 30, "{kills} kills");
}

#[test]
fn a_damaged_file_is_set_aside_with_its_bytes_and_never_overwritten() {
    let base = scratch("damaged");
    let file = base.join("dynamic-rules.json");
    for number in 0..2 {
        std::fs::write(&file, format!("{{\"version\":1,{number}")).unwrap();
        let (mut rules, said) = DynamicRules::open(Box::new(RealDisk), &base, 7);
        assert!(said.len() == 1 && said[0].contains("damaged") && ports(&rules).is_empty(), "{said:?}");
        rules.keep(grant(1), now()).unwrap();
    }
    for (number, name) in ["dynamic-rules.json.damaged-7", "dynamic-rules.json.damaged-7-1"].iter().enumerate() {
        assert_eq!(std::fs::read_to_string(base.join(name)).unwrap(), format!("{{\"version\":1,{number}"));
    }
    // One that cannot be read at all is left where it is, and nothing is kept over it.
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let (mut rules, said) = DynamicRules::open(Box::new(RealDisk), &base, 7);
    assert!(said[0].contains("cannot read"), "{said:?}");
    assert!(rules.keep(grant(1), now()).is_err() && rules.clear().is_err() && file.is_dir());
    std::fs::remove_dir_all(&base).unwrap();
}

#[test]
fn what_has_expired_is_not_kept() {
    let base = scratch("expired");
    let (mut rules, _) = DynamicRules::open(Box::new(RealDisk), &base, 7);
    rules.keep(grant(1), now()).unwrap();
    let later = now() + Duration::from_secs(60);
    let mut second = grant(2);
    second.expires_at += Duration::from_secs(60);
    rules.keep(second, later).unwrap();
    assert_eq!(ports(&DynamicRules::open(Box::new(RealDisk), &base, 7).0), [2]);
    std::fs::remove_dir_all(&base).unwrap();
}

fn wish(port: u16) -> OperatorWish {
    OperatorWish {
        container: "coder-1".to_owned(),
        source: Ipv4Addr::new(10, 200, 0, 2),
        destination: Ipv4Addr::new(9, 9, 9, 9),
        protocol: Protocol::Tcp,
        port,
        lasts: Duration::from_secs(600),
    }
}

/// What a bridge would answer that opens everything.
fn allowed(wish: &OperatorWish) -> Allowed {
    let network = Arc::new(ManagedNetwork {
        name: "outcall-default".to_owned(),
        id: String::new(),
        bridge: "outcall0".to_owned(),
        subnet: "10.200.0.0/24".parse().unwrap(),
        gateway: "10.200.0.1".parse().unwrap(),
    });
    let endpoint = Arc::new(Endpoint {
        container_id: "c".repeat(64).into(),
        container: "coder-1".into(),
        agent: "coder".into(),
        network,
        address: wish.source,
        mac: [2; 6],
        sandbox_key: String::new(),
        pid: 1,
    });
    let mut kept = grant(wish.port);
    kept.inserted_at = SystemTime::now();
    kept.expires_at = kept.inserted_at + wish.lasts;
    let shown = GrantedFlow {
        endpoint,
        destination: wish.destination,
        protocol: wish.protocol.number(),
        port: wish.port,
        names: Vec::new(),
        inserted_at: kept.inserted_at,
        expires_in: wish.lasts,
        handle: 4,
        packets: 0,
        bytes: 0,
    };
    Allowed { grant: kept, shown, new: true }
}

/// A bridge that opens everything, and says what it was asked.
fn bridge(said: Arc<Mutex<Vec<String>>>) -> Address<BridgeCommand> {
    // Ends with the test's process.
    let (address, _) = owner(move |command| {
        let say = |text: String| said.lock().unwrap().push(text);
        match command {
            BridgeCommand::Restore { kept, .. } => say(format!("restore {}", kept.len())),
            BridgeCommand::Allow(wish, reply) => {
                say(format!("allow {}", wish.port));
                reply.send(Ok(allowed(&wish)));
            }
            BridgeCommand::TakeBack(flow, reply) => {
                say(format!("take back {}", flow.port));
                reply.send(Ok(()));
            }
            BridgeCommand::Flush(reply) => {
                say("flush".to_owned());
                reply.send(Ok(5));
            }
            _ => panic!("not asked for by the keeper"),
        }
        false
    });
    address
}

#[test]
fn a_grant_that_cannot_be_written_is_taken_back_and_a_flush_goes_through_all_the_same() {
    let base = scratch("keeper");
    let (room, said) = (Arc::new(AtomicU32::new(u32::MAX)), Arc::new(Mutex::new(Vec::new())));
    let (rules, _) = DynamicRules::open(Box::new(FullDisk(Arc::clone(&room))), &base, 7);
    let poll = mio::Poll::new().unwrap();
    let (own, inbox) = mailbox(&poll, 16).unwrap();
    let keeper = GrantKeeper::new(rules, bridge(Arc::clone(&said)), poll, inbox, own.clone());
    let thread = std::thread::spawn(move || keeper.run());
    let allow = |port| {
        let (reply, answer) = reply_channel();
        assert!(own.send(DynamicRulesCommand::Allow(wish(port), reply)).is_ok());
        answer.recv_timeout(PATIENCE).unwrap()
    };
    let flush = || {
        let (reply, answer) = reply_channel();
        assert!(own.send(DynamicRulesCommand::Flush(reply)).is_ok());
        answer.recv_timeout(PATIENCE).unwrap()
    };
    let on_disk = || {
        let (rules, _) = DynamicRules::open(Box::new(RealDisk), &base, 7);
        rules.kept(SystemTime::now()).iter().map(|grant| grant.flow.port).collect::<Vec<_>>()
    };
    for port in [1, 2] {
        assert_eq!(allow(port).unwrap().shown.port, port);
    }
    assert_eq!(on_disk(), [1, 2]);
    room.store(0, Ordering::Relaxed);
    assert!(matches!(allow(3), Err(OperatorRefusal::Failed(text)) if text.contains("dynamic-rules.json")));
    assert_eq!(on_disk(), [1, 2]);
    // What ended is forgotten; the file follows as soon as it can.
    assert!(own.send(DynamicRulesCommand::Ended(vec![grant(1).flow])).is_ok());
    let refused = flush().unwrap_err();
    assert!(refused.contains("5 flows are closed") && refused.contains("may come back"), "{refused}");
    room.store(u32::MAX, Ordering::Relaxed);
    assert_eq!(flush(), Ok(5));
    assert_eq!(on_disk(), [0u16; 0]);
    assert!(own.send(DynamicRulesCommand::Stop).is_ok());
    thread.join().unwrap().unwrap();
    let said = said.lock().unwrap();
    assert_eq!(*said, ["restore 0", "allow 1", "allow 2", "allow 3", "take back 3", "flush", "flush"]);
    std::fs::remove_dir_all(&base).unwrap();
}
