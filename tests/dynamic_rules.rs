//! Flows opened by hand: their file survives a kill -9 at every single step of every write, and their keeper never has
//! a flow open that it could not write down.
#![cfg(feature = "daemon")]

mod killing_disk;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use killing_disk::KillingDisk;
use outcall::bridge::{
    Allowed, BridgeCommand, GrantedFlow, OperatorGrant, OperatorRefusal, OperatorWish, OwnedFlow, Protocol,
};
use outcall::docker_manager::{Endpoint, ManagedNetwork};
use outcall::event_loop::{Address, mailbox, reply_channel};
use outcall::state::{Disk, DynamicRules, DynamicRulesCommand, GrantKeeper, RealDisk};

const STATE: &str = "OUTCALL_TEST_STORE";
const KILL_AT: &str = "OUTCALL_TEST_KILL_AT";
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

fn scratch(name: &str) -> PathBuf {
    let base = std::env::temp_dir().join(format!("outcall-dynamic-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&base);
    std::fs::create_dir_all(&base).unwrap();
    base
}

/// The child's work; a line in a file that no crash takes back says what its caller was told.
fn work(base: &Path, kill_at: u32) {
    let tell = |what: &str| std::fs::write(base.join(what), "").unwrap();
    let (mut rules, _) = DynamicRules::open(Box::new(KillingDisk { left: kill_at }), &base.join("state"), 7);
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
    if let (Some(base), Ok(kill_at)) = (std::env::var_os(STATE), std::env::var(KILL_AT)) {
        work(&PathBuf::from(base), kill_at.parse().unwrap());
    }
}

#[test]
fn a_kill_at_any_step_leaves_the_grants_of_before_or_those_of_after() {
    let states: [&[u16]; 6] = [&[], &[1], &[1, 2], &[1, 2, 3], &[1, 3], &[]];
    let mut kills = 0;
    for kill_at in 0.. {
        let base = scratch("kill");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_of_the_kill_test", "--test-threads=1"])
            .env(STATE, &base)
            .env(KILL_AT, kill_at.to_string())
            .output()
            .unwrap();
        let (rules, said) = DynamicRules::open(Box::new(RealDisk), &base.join("state"), 7);
        assert!(said.is_empty(), "{kill_at}: {said:?}");
        let told = ["kept-1", "kept-2", "kept-3", "forgotten", "cleared"];
        let done = told.iter().filter(|what| base.join(what).exists()).count();
        let found = ports(&rules);
        assert!(
            found == states[done] || states.get(done + 1) == Some(&&found[..]),
            "{kill_at}: {done} done, {found:?}"
        );
        std::fs::remove_dir_all(&base).unwrap();
        if child.status.success() {
            assert_eq!(done, told.len());
            break;
        }
        use std::os::unix::process::ExitStatusExt as _;
        assert_eq!(child.status.signal(), Some(9), "{}", String::from_utf8_lossy(&child.stderr));
        kills += 1;
    }
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

/// A disk that is full while the switch says so.
struct FullDisk(Arc<AtomicBool>);

impl Disk for FullDisk {
    fn write(&mut self, path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        RealDisk.write(path, bytes, mode)
    }
    fn sync(&mut self, path: &Path) -> std::io::Result<()> {
        RealDisk.sync(path)
    }
    fn rename(&mut self, from: &Path, to: &Path) -> std::io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove(&mut self, path: &Path) -> std::io::Result<()> {
        RealDisk.remove(path)
    }
    fn sync_directory(&mut self, path: &Path) -> std::io::Result<()> {
        RealDisk.sync_directory(path)
    }
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
    let mut poll = mio::Poll::new().unwrap();
    let (address, inbox) = mailbox(&poll, 16).unwrap();
    // Ends with the test's process.
    std::thread::spawn(move || {
        let mut events = mio::Events::with_capacity(4);
        loop {
            poll.poll(&mut events, None).unwrap();
            while let Some(command) = inbox.take() {
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
            }
        }
    });
    address
}

#[test]
fn a_grant_that_cannot_be_written_is_taken_back_and_a_flush_goes_through_all_the_same() {
    let base = scratch("keeper");
    let (full, said) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let (rules, _) = DynamicRules::open(Box::new(FullDisk(Arc::clone(&full))), &base, 7);
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
    full.store(true, Ordering::Relaxed);
    assert!(matches!(allow(3), Err(OperatorRefusal::Failed(text)) if text.contains("dynamic-rules.json")));
    assert_eq!(on_disk(), [1, 2]);
    // What ended is forgotten; the file follows as soon as it can.
    assert!(own.send(DynamicRulesCommand::Ended(vec![grant(1).flow])).is_ok());
    let refused = flush().unwrap_err();
    assert!(refused.contains("5 flows are closed") && refused.contains("may come back"), "{refused}");
    full.store(false, Ordering::Relaxed);
    assert_eq!(flush(), Ok(5));
    assert_eq!(on_disk(), [0u16; 0]);
    assert!(own.send(DynamicRulesCommand::Stop).is_ok());
    thread.join().unwrap().unwrap();
    let said = said.lock().unwrap();
    assert_eq!(*said, ["restore 0", "allow 1", "allow 2", "allow 3", "take back 3", "flush", "flush"]);
    std::fs::remove_dir_all(&base).unwrap();
}
