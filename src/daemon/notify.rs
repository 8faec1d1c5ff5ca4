//! What a service manager is told (sd_notify(3)), and whether its watchdog is fed.
//!
//! Owns: `$NOTIFY_SOCKET`, `$WATCHDOG_USEC`, and the decision to feed. Does not own: who is asked whether it lives; the
//! operator API's thread does that, as for `/health`. Without those variables nothing here does anything.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// Shortest watchdog interval: below it, asking every thread would be all that the daemon does.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The service manager's socket. Sends never wait and never fail the daemon.
pub struct Notifier(Option<(UnixDatagram, SocketAddr)>);

impl Notifier {
    /// The one that `$NOTIFY_SOCKET` names: a path, or `@` and an abstract name.
    #[must_use]
    pub fn from_environment() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Notifier(None);
        };
        match Self::to(name.as_bytes()) {
            Ok(notifier) => notifier,
            Err(error) => {
                tracing::warn!(target: "outcalld", "cannot tell the service manager anything, NOTIFY_SOCKET={}: {error}",
                    name.to_string_lossy());
                Notifier(None)
            }
        }
    }

    /// The socket of this name.
    ///
    /// # Errors
    /// When it is no name of a socket, or the kernel gives none.
    pub fn to(name: &[u8]) -> std::io::Result<Self> {
        let address = match name {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
            [b'/', ..] => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
            _ => return Err(std::io::Error::other("neither a path nor @ and a name")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Notifier(Some((socket, address))))
    }

    /// Everything serves.
    pub fn ready(&self) {
        self.say("READY=1\nSTATUS=serving");
    }

    /// The stop has begun.
    pub fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=stopping");
    }

    /// A reload has begun; [`Notifier::ready`] ends it, whatever became of it.
    pub fn reloading(&self) {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
        let micros = now.map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000);
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=reloading the rules"));
    }

    /// Every thread answers.
    pub fn feed(&self) {
        self.say("WATCHDOG=1");
    }

    fn say(&self, state: &str) {
        let Some((socket, address)) = &self.0 else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), address) {
            tracing::debug!(target: "outcalld", "the service manager does not take {state:?}: {error}");
        }
    }
}

/// When to ask every thread whether it answers, and when that feeds the watchdog.
#[derive(Debug)]
pub struct Watchdog {
    interval: Duration,
    /// When the question that is out was asked.
    asked: Option<Instant>,
    next: Instant,
}

impl Watchdog {
    /// The one that `$WATCHDOG_USEC` asks for, unless `$WATCHDOG_PID` is another process.
    #[must_use]
    pub fn from_environment(now: Instant) -> Option<Self> {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        if number("WATCHDOG_PID").is_some_and(|pid| pid != u64::from(std::process::id())) {
            return None;
        }
        let interval = Duration::from_micros(number("WATCHDOG_USEC")?).max(INTERVAL_MIN);
        Some(Watchdog::new(interval, now))
    }

    /// One that must be fed once in `interval`.
    #[must_use]
    pub fn new(interval: Duration, now: Instant) -> Self {
        Watchdog { interval, asked: None, next: now }
    }

    /// How long an answer may take and still feed.
    #[must_use]
    pub fn limit(&self) -> Duration {
        // Asked a quarter after the last feed, answered within a half: fed in time, with a quarter to spare.
        self.interval / 2
    }

    /// When [`Watchdog::ask`] is due.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.next
    }

    /// True when the threads are to be asked now.
    pub fn ask(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        // An answer that never came is given up when the next question is due.
        self.next = now + if self.asked.is_some() { self.limit() } else { self.interval / 4 };
        let free = self.asked.is_none_or(|asked| asked + self.limit() <= now);
        if free {
            self.asked = Some(now);
        }
        free
    }

    /// An answer came; true when it feeds: every thread answered, in time.
    pub fn answered(&mut self, everybody: bool, now: Instant) -> bool {
        let Some(asked) = self.asked.take() else { return false };
        self.next = now + self.interval / 4;
        everybody && now.saturating_duration_since(asked) <= self.limit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_watchdog_is_fed_only_while_every_thread_answers_in_time() {
        let now = Instant::now();
        let mut dog = Watchdog::new(20 * SECOND, now);
        assert!(dog.ask(now) && !dog.ask(now));
        assert!(dog.answered(true, now + SECOND));
        assert!(!dog.answered(true, now + SECOND), "an answer that nobody asked for");
        assert!(!dog.ask(now + 5 * SECOND) && dog.ask(now + 6 * SECOND));
        assert!(!dog.answered(false, now + 7 * SECOND), "a thread is stuck");
        assert!(dog.ask(now + 12 * SECOND));
        assert!(!dog.answered(true, now + 23 * SECOND), "it answered, and too late");
    }

    #[test]
    fn a_question_without_an_answer_is_asked_again_and_feeds_nothing() {
        let now = Instant::now();
        let mut dog = Watchdog::new(20 * SECOND, now);
        let asked: Vec<u32> = (0..60).filter(|second| dog.ask(now + SECOND * *second)).collect();
        assert!(asked.len() > 2 && asked.windows(2).all(|two| two[1] - two[0] >= 10), "{asked:?}");
    }

    #[test]
    fn the_manager_is_told_by_path_and_by_abstract_name() {
        let path = std::env::temp_dir().join(format!("outcall-notify-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("outcall-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        for (manager, name) in [(by_path, path.as_os_str().as_bytes()), (by_name, format!("@{name}").as_bytes())] {
            let notifier = Notifier::to(name).unwrap();
            notifier.ready();
            notifier.reloading();
            notifier.feed();
            notifier.stopping();
            let mut told = [0; 256];
            let mut next = || {
                let bytes = manager.recv(&mut told).unwrap();
                String::from_utf8(told[..bytes].to_vec()).unwrap()
            };
            assert!(next().starts_with("READY=1\n"));
            assert!(next().starts_with("RELOADING=1\nMONOTONIC_USEC="));
            assert_eq!(next(), "WATCHDOG=1");
            assert!(next().starts_with("STOPPING=1\n"));
        }
        std::fs::remove_file(&path).unwrap();
        assert!(Notifier::to(b"relative").is_err());
        Notifier(None).ready();
    }
}
