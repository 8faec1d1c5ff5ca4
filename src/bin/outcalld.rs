//! The host daemon: reads its flags and runs.

#[cfg(feature = "cli")]
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use outcall::daemon::{self, Flags};
use outcall::rule_engine;

fn main() -> ExitCode {
    // Before anything else: the child that tries rule sources must hold nothing.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == rule_engine::GUARDED_ARGUMENT) {
        rule_engine::guarded_child_main();
    }
    if std::env::args_os().nth(1).is_some_and(|argument| argument == daemon::PROBE_ARGUMENT) {
        return daemon::probe_host(std::env::args_os().skip(2));
    }
    // The image holds one program under two names: together they would be half again as large.
    #[cfg(feature = "cli")]
    if std::env::args_os().next().is_some_and(|name| Path::new(&name).file_name() == Some("outcall".as_ref())) {
        return outcall::cli::run(std::env::args_os());
    }
    let flags = Flags::parse();
    if flags.check {
        daemon::check(&flags)
    } else if flags.lockdown {
        daemon::lockdown(&flags)
    } else {
        daemon::run(&flags)
    }
}
