//! The system calls that Rust counts as unsafe: signal dispositions and what runs between fork and exec.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Puts SIGCHLD to its default: whoever started us may have ignored it, and then the kernel would not tell us how
/// the command ended (sigaction(2)).
pub fn hear_of_children() -> nix::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: a default disposition runs no code of ours in a signal context.
    unsafe { sigaction(Signal::SIGCHLD, &default) }.map(drop)
}

/// Makes the command start with the signal mask that we were started with.
pub fn start_with_mask(command: &mut Command, mask: SigSet) {
    // SAFETY: between fork and exec only async-signal-safe calls are made (signal-safety(7)): pthread_sigmask is
    // one, and `mask` is a copied value, so nothing is allocated or locked.
    unsafe {
        command.pre_exec(move || mask.thread_set_mask().map_err(std::io::Error::from));
    }
}
