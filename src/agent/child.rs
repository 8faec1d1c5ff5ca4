//! The permitted command: started with our descriptors, sent our signals, waited for.
//!
//! Signals come through a signalfd(2), so that nothing runs in a signal context. One that the terminal sent reached
//! the command too, for it is in our process group: only those that another process sent to us alone are passed on.

use std::process::{Command, ExitCode};

use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Session, heartbeat, say, sys};

/// sh(1): a command that cannot be executed, and one that is not found.
const EXIT_CANNOT_RUN: u8 = 126;
const EXIT_NOT_FOUND: u8 = 127;
const EXIT_SIGNALLED: u8 = 128;

/// Runs `argv` to its end; its exit code, or 128 and the number of the signal that ended it.
pub fn run(argv: &[String], session: Session) -> ExitCode {
    let signals = match Signals::hold() {
        Ok(signals) => signals,
        Err(error) => return failed(EXIT_CANNOT_RUN, &argv[0], &error.into()),
    };
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]);
    sys::start_with_mask(&mut command, signals.before);
    let child = match command.spawn() {
        Ok(child) => Pid::from_raw(child.id().cast_signed()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return failed(EXIT_NOT_FOUND, &argv[0], &error),
        Err(error) => return failed(EXIT_CANNOT_RUN, &argv[0], &error),
    };
    heartbeat::start(session);
    loop {
        if let Some(code) = reap(child) {
            return ExitCode::from(code);
        }
        signals.pass_on(child);
    }
}

fn failed(code: u8, program: &str, error: &std::io::Error) -> ExitCode {
    say(&format!("outcall: {program}: {error}"));
    ExitCode::from(code)
}

/// Collects every process that has ended (as the first process of a container we inherit orphans). The command's
/// code, when it is among them. A command that stopped (Ctrl-Z) stops us as well, so that the shell takes over.
fn reap(child: Pid) -> Option<u8> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            // Exit codes are 0 to 255 (exit(3)), signals 1 to 64.
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return Some(u8::try_from(code).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return Some(EXIT_SIGNALLED.saturating_add(u8::try_from(signal as i32).unwrap_or(0)));
            }
            Ok(WaitStatus::Stopped(pid, _)) if pid == child => {
                // The first process of a container cannot stop; the command then stops alone.
                let _ = raise(Signal::SIGSTOP);
                let _ = kill(child, Signal::SIGCONT);
            }
            Ok(WaitStatus::StillAlive) => return None,
            Ok(_) | Err(nix::Error::EINTR) => {}
            // Somebody else collected it: cannot happen, as we are its only parent. Its fate is then unknown.
            Err(_) => return Some(u8::MAX),
        }
    }
}

/// Every signal that can be held, held.
struct Signals {
    descriptor: SignalFd,
    before: SigSet,
}

impl Signals {
    fn hold() -> nix::Result<Self> {
        let mut held = SigSet::all();
        // Faults of our own must end us at once; SIGTTIN and SIGTTOU stop a background job where it reads or writes.
        for own in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGFPE,
            Signal::SIGILL,
            Signal::SIGABRT,
            Signal::SIGTRAP,
            Signal::SIGSYS,
            Signal::SIGTTIN,
            Signal::SIGTTOU,
        ] {
            held.remove(own);
        }
        let before = held.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
        sys::hear_of_children()?;
        Ok(Signals { descriptor: SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC)?, before })
    }

    /// Waits for one signal and gives it to the command, if it did not get it already.
    fn pass_on(&self, child: Pid) {
        let Ok(Some(info)) = self.descriptor.read_signal() else {
            return;
        };
        let Some(signal) = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok()) else {
            return;
        };
        // Codes above zero are the kernel's own (sigaction(2)): SIGCHLD of the command, or the terminal's signals.
        if signal != Signal::SIGCHLD && info.ssi_code <= 0 {
            // A command that has just ended needs no signal.
            let _ = kill(child, signal);
        }
    }
}
