//! Signals as a descriptor of the main loop: SIGTERM and SIGINT stop, SIGHUP reloads the rules.

use std::os::fd::{AsFd, AsRawFd as _};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// SIGTERM, SIGINT
    Stop,
    /// SIGHUP
    Reload,
}

/// The signals, blocked for the whole process and read here.
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals in this thread and all it will start; call it before the first thread.
    ///
    /// # Errors
    /// What `pthread_sigmask` or `signalfd` says.
    pub fn block() -> nix::Result<Self> {
        let mut wanted = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            wanted.add(signal);
        }
        wanted.thread_block()?;
        Ok(Signals(SignalFd::with_flags(&wanted, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// The descriptor, for mio.
    #[must_use]
    pub fn raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_fd().as_raw_fd()
    }

    /// The next wish, `None` when no signal waits.
    pub fn take(&mut self) -> Option<Wish> {
        let info = self.0.read_signal().ok().flatten()?;
        let hangup = i32::try_from(info.ssi_signo).is_ok_and(|number| number == Signal::SIGHUP as i32);
        Some(if hangup { Wish::Reload } else { Wish::Stop })
    }
}
