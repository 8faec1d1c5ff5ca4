//! Rule requests survive a kill -9 at every single step of every write: what is left is opened as the next start would.
#![cfg(feature = "daemon")]

mod disks;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use disks::{FullDisk, KillingDisk, as_child, kill_at_each_moment, scratch};
use outcall::state::{ApproveError, Disk, NotInstalled, RealDisk, RequestStore, RuleRequest, Status, StoreError};

const NOW: &str = "2026-11-24T00:00:00Z";
const ONE: &str = "rr-0000000000000001";
const TWO: &str = "rr-0000000000000002";

fn request(id: &str) -> RuleRequest {
    RuleRequest {
        id: id.to_owned(),
        container_id: "c".repeat(64).as_str().into(),
        container: "coder-1".into(),
        rule_file: "submitted".into(),
        installs: "installed bytes".into(),
        status: Status::Pending,
        submitted_at: NOW.to_owned(),
        decided_at: None,
    }
}

fn open(disk: Box<dyn Disk>, base: &Path) -> (RequestStore, Vec<String>) {
    RequestStore::open(disk, &base.join("state"), &base.join("rules.d"), 7)
}

/// A line in a file that no crash takes back: what the caller was told.
fn tell(base: &Path, what: &str) {
    std::fs::write(base.join(what), "").unwrap();
}

/// The child's work: submit two, approve one, reject the other.
fn work(base: &Path, disk: KillingDisk) {
    let (mut store, _) = open(Box::new(disk), base);
    for id in [ONE, TWO] {
        store.submit(request(id), |_| true, NOW).unwrap();
        tell(base, &format!("submitted-{id}"));
    }
    store.approve(ONE, b"installed bytes", NOW, &mut || Ok(1)).unwrap();
    tell(base, "approved");
    store.reject(TWO, Some("no".to_owned()), NOW).unwrap();
    tell(base, "rejected");
}

#[test]
fn child_of_the_kill_test() {
    as_child(work);
}

#[test]
fn a_kill_at_any_step_leaves_the_old_state_or_the_new_one_and_never_half_an_approval() {
    let mut undone = 0;
    let kills = kill_at_each_moment("child_of_the_kill_test", "requests", |kill_at, base, _| {
        let (store, said) = open(Box::new(RealDisk), base);
        let told = |what: &str| base.join(what).exists();
        assert!(said.iter().all(|line| line.contains("cut short")), "{kill_at}: {said:?}");
        undone += said.len();
        let ledger = store.ledger().unwrap();
        for id in [ONE, TWO] {
            assert!(ledger.find(id).is_some() || !told(&format!("submitted-{id}")), "{kill_at}: {id} was promised");
        }
        let status = |id: &str| ledger.find(id).map(|request| request.status.clone());
        let file = base.join("rules.d").join(format!("agent-{ONE}.yaml"));
        match status(ONE) {
            Some(Status::Approved) => assert_eq!(std::fs::read(&file).unwrap(), b"installed bytes", "{kill_at}"),
            Some(Status::Pending) | None => {
                assert!(!file.exists() && !told("approved"), "{kill_at}");
            }
            other => panic!("{kill_at}: {other:?}"),
        }
        match status(TWO) {
            Some(Status::Rejected { reason }) => assert_eq!(reason.as_deref(), Some("no")),
            _ => assert!(!told("rejected"), "{kill_at}"),
        }
    });
    // Five ledgers and a rule file, seven moments each or so: if the steps were not seen, this test saw nothing.
    assert!(kills >= 30 && undone >= 5, "{kills} kills, {undone} undone");
}

#[test]
fn a_reload_that_fails_undoes_the_approval() {
    let base = scratch("reload");
    let (mut store, _) = open(Box::new(RealDisk), &base);
    store.submit(request(ONE), |_| true, NOW).unwrap();
    let file = base.join("rules.d").join(format!("agent-{ONE}.yaml"));
    for unclear in [false, true] {
        let mut calls = 0;
        let refused = store.approve(ONE, b"x", NOW, &mut || {
            calls += 1;
            assert_eq!(file.exists(), calls == 1);
            Err(NotInstalled { reasons: vec!["no".to_owned()], unclear })
        });
        assert!(matches!(refused, Err(ApproveError::Refused(_))));
        assert_eq!(calls, if unclear { 2 } else { 1 });
        assert!(!file.exists());
        assert_eq!(store.ledger().unwrap().find(ONE).unwrap().status, Status::Pending);
    }
    assert_eq!(store.approve(ONE, b"x", NOW, &mut || Ok(3)).unwrap(), 3);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(matches!(store.approve(ONE, b"x", NOW, &mut || Ok(3)), Err(ApproveError::Store(StoreError::Ledger(_)))));
    std::fs::remove_dir_all(&base).unwrap();
}

#[test]
fn a_file_of_that_name_is_never_overwritten() {
    let base = scratch("exists");
    let (mut store, _) = open(Box::new(RealDisk), &base);
    store.submit(request(ONE), |_| true, NOW).unwrap();
    std::fs::create_dir_all(base.join("rules.d")).unwrap();
    let file = base.join("rules.d").join(format!("agent-{ONE}.yaml"));
    std::os::unix::fs::symlink("/nonexistent", &file).unwrap();
    let refused = store.approve(ONE, b"x", NOW, &mut || Ok(1));
    assert!(matches!(refused, Err(ApproveError::FileExists(_))));
    assert_eq!(store.ledger().unwrap().find(ONE).unwrap().status, Status::Pending);
    assert!(file.symlink_metadata().unwrap().file_type().is_symlink());
    std::fs::remove_dir_all(&base).unwrap();
}

#[test]
fn a_ledger_that_cannot_be_written_undoes_the_approval() {
    let base = scratch("full");
    // Submission, intent and rule file go through; the mark and what follows do not.
    let (mut store, _) = open(Box::new(FullDisk(Arc::new(AtomicU32::new(3)))), &base);
    store.submit(request(ONE), |_| true, NOW).unwrap();
    let mut reloads = 0;
    let refused = store.approve(ONE, b"x", NOW, &mut || {
        reloads += 1;
        Ok(1)
    });
    assert!(matches!(refused, Err(ApproveError::Store(StoreError::Write { .. }))), "{refused:?}");
    assert_eq!(reloads, 2);
    assert!(!base.join("rules.d").join(format!("agent-{ONE}.yaml")).exists());
    assert_eq!(store.ledger().unwrap().find(ONE).unwrap().status, Status::Pending);
    let (again, said) = open(Box::new(RealDisk), &base);
    assert_eq!(said.len(), 1);
    assert_eq!(again.ledger().unwrap().find(ONE).unwrap().status, Status::Pending);
    std::fs::remove_dir_all(&base).unwrap();
}

#[test]
fn a_damaged_ledger_is_set_aside_with_its_bytes() {
    let base = scratch("damaged");
    let file = base.join("state/rule-requests.json");
    std::fs::create_dir_all(base.join("state")).unwrap();
    for number in 0..2 {
        std::fs::write(&file, format!("{{\"version\":1,{number}")).unwrap();
        let (mut store, said) = open(Box::new(RealDisk), &base);
        assert!(said.len() == 1 && said[0].contains("damaged"), "{said:?}");
        store.submit(request(ONE), |_| true, NOW).unwrap();
    }
    for (number, name) in ["rule-requests.json.damaged-7", "rule-requests.json.damaged-7-1"].iter().enumerate() {
        let kept = std::fs::read_to_string(base.join("state").join(name)).unwrap();
        assert_eq!(kept, format!("{{\"version\":1,{number}"));
    }
    std::fs::remove_dir_all(&base).unwrap();
}
