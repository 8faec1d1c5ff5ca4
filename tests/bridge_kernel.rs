//! The bridge on the real kernel, in network namespaces of its own: what passes, what does not, and who puts it back.
//!
//! Needs root; says so and passes where that is not given (the lab of `integration/` runs it as root).
#![cfg(feature = "daemon")]

mod bridge_world;

use std::net::Ipv4Addr;
use std::time::Duration;

use bridge_world::*;
use outcall::bridge::{BridgeCommand, StopMode};

#[test]
fn tables_list_cleanly_and_go_with_the_daemon() {
    if !enter() {
        return;
    }
    let daemon = Daemon::start();
    assert!(daemon.healthy());
    let listed = run("nft list ruleset");
    eprintln!("{listed}");
    assert!(listed.contains("table inet outcall"), "{listed}");
    daemon.stop(StopMode::Teardown);
    assert_eq!(run("nft list ruleset"), "");
    assert!(!run("ip -o link").contains("outcall0"));
}
