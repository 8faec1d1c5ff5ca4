//! `outcall ui`: lets the operator's browser reach the dashboard, which the daemon serves on its Unix socket only.
//!
//! Owns: a port on 127.0.0.1 for as long as the command runs, the secret in its address, who may pass. Does not own:
//! the dashboard and its data; both are the daemon's.
//!
//! | file | what it is |
//! |---|---|
//! | `server` | the TCP socket: one request after the other, caps and deadlines |
//! | `admission` | the secret, Host, Origin, method and path of one request |
//! | `forward` | to the operator socket and back |

mod admission;
mod forward;
mod server;

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use admission::{Head, Refusal, Secret, Wanted};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use server::{Client, Request};

use super::CliError;
use super::output::Output;

/// Event streams at once, so that most of the connections are left for everything else.
const STREAMS: usize = 8;
/// Descriptors of one connection: its own, and one to the operator socket.
const DESCRIPTORS_EACH: u64 = 2;
/// Descriptors for everything else.
const DESCRIPTORS_BASE: u64 = 64;
/// How long the link that is given to the browser waits for it.
const LINK_TIME: Duration = Duration::from_secs(60);
/// What the operator and the browser are told when the link was followed twice.
const LINK_TWICE: &str = "the link that the browser was given was followed twice: another user of this host may have \
                          read it from the browser's command line and used your rights since; `outcall ui` has ended \
                          and its address is void. outcalld's log names each POST. Start again with --no-open";

/// What the workers share.
struct Bridge {
    socket: PathBuf,
    port: u16,
    secret: Secret,
    streams: AtomicUsize,
    /// The link that the browser was given.
    link: Mutex<Option<Link>>,
    /// The secret may be somebody else's: nothing passes any more.
    void: AtomicBool,
}

/// A link for the browser, with a code that gives the secret away once.
struct Link {
    code: Secret,
    until: Instant,
    spent: bool,
}

/// What a code is worth.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    /// The first to show it, in time.
    First,
    /// Somebody has had the secret for it.
    Again,
    /// Unknown, or too old and never used.
    Worthless,
}

impl Link {
    fn take(&mut self, code: &str, now: Instant) -> Taken {
        if !self.code.is(code) {
            return Taken::Worthless;
        }
        if self.spent {
            return Taken::Again;
        }
        if now >= self.until {
            return Taken::Worthless;
        }
        self.spent = true;
        Taken::First
    }
}

/// Serves until a signal ends it.
///
/// # Errors
/// The port is taken, descriptors are too few, or the server ended.
pub(super) fn run(socket: &Path, port: u16, open: bool, output: &mut Output) -> Result<(), CliError> {
    enough_descriptors()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|source| CliError::Local {
        what: format!("cannot listen on 127.0.0.1:{port}; choose another --port, or none for a free one"),
        source,
    })?;
    let port = listener.local_addr().map_err(|source| local("the port", source))?.port();
    let random = |error: getrandom::Error| local("the kernel's random source", std::io::Error::other(error));
    let bridge = Arc::new(Bridge {
        socket: socket.to_owned(),
        port,
        secret: Secret::new().map_err(random)?,
        streams: AtomicUsize::new(0),
        link: Mutex::new(None),
        void: AtomicBool::new(false),
    });
    // A program that is started inherits what is blocked; so the browser comes first.
    let browser = if open { open_browser(&bridge, Secret::new().map_err(random)?) } else { None };
    // Blocked before the first thread and before anybody knows the address, so that the wait below gets them.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().map_err(|error| local("the signal mask", error.into()))?;
    tell(&bridge, open, output)?;

    let thread = |name: &str, run: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|source| local("a thread", source))
    };
    if let Some(mut browser) = browser {
        // Somebody has to take its exit status; what it started goes on.
        thread("ui_browser", Box::new(move || drop(browser.wait())))?;
    }
    let served = Arc::clone(&bridge);
    thread(
        "ui_accept",
        Box::new(move || server::run(&listener, move |request, client| served.serve(request, client))),
    )?;
    signals.wait().map_err(|error| local("the wait for a signal", error.into()))?;
    if bridge.void.load(Ordering::SeqCst) {
        return Err(CliError::Unsuccessful(LINK_TWICE.to_owned()));
    }
    Ok(())
}

fn local(what: &str, source: std::io::Error) -> CliError {
    CliError::Local { what: what.to_owned(), source }
}

impl Bridge {
    fn address(&self) -> String {
        format!("http://127.0.0.1:{}{}", self.port, self.page())
    }

    fn page(&self) -> String {
        format!("/{}/ui/", self.secret.text())
    }

    fn serve(&self, request: &Request, client: &mut Client<'_>) {
        if self.void.load(Ordering::SeqCst) {
            return forward::refuse(client, 403, LINK_TWICE);
        }
        let fields: Vec<(&str, &[u8])> = request.head.fields.iter().collect();
        let head = Head { method: &request.head.method, target: &request.head.target, fields: &fields };
        match admission::admit(&head, &self.secret, self.port) {
            Ok(Wanted::Forward(target)) => {
                forward::forward(request, &target, &self.socket, client, || self.stream());
            }
            Ok(Wanted::Open(code)) => match self.take_link(&code) {
                Taken::First => forward::redirect(client, &self.page()),
                Taken::Again => {
                    forward::refuse(client, 403, LINK_TWICE);
                    // Ends the wait of `run`, which says why. It cannot fail: the process is our own.
                    let _ = kill(Pid::this(), Signal::SIGTERM);
                }
                Taken::Worthless => {
                    let message = "this link is unknown or too old: open the address that `outcall ui` printed";
                    forward::refuse(client, 403, message);
                }
            },
            Err(Refusal(message)) => forward::refuse(client, 403, &message),
        }
    }

    /// A place among the streams.
    fn stream(&self) -> Option<Stream<'_>> {
        let place = Stream(&self.streams);
        (self.streams.fetch_add(1, Ordering::Relaxed) < STREAMS).then_some(place)
    }

    /// What `code` is worth; the secret is void from the moment that it is shown again.
    fn take_link(&self, code: &str) -> Taken {
        // A holder that panicked left it whole: only `spent` ever changes.
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = link.as_mut().map_or(Taken::Worthless, |link| link.take(code, Instant::now()));
        if taken == Taken::Again {
            self.void.store(true, Ordering::SeqCst);
        }
        taken
    }
}

/// A place among the streams, given back when it is dropped.
struct Stream<'b>(&'b AtomicUsize);

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn tell(bridge: &Bridge, open: bool, output: &mut Output) -> Result<(), CliError> {
    let url = bridge.address();
    output.data(&serde_json::json!({"url": url, "port": bridge.port}), |output, _| {
        output.line(&format!("Dashboard: {url}"))?;
        output.line("Whoever has this address can do what you can do; it ends with this command (^C).")
    })?;
    output.flush().map_err(CliError::Output)?;
    if open && nix::unistd::geteuid().is_root() {
        let _ = writeln!(std::io::stderr(), "no browser is started as root: open the address yourself");
    }
    Ok(())
}

/// Starts the user's browser. Other users see its command line, so what it is given works once.
fn open_browser(bridge: &Bridge, code: Secret) -> Option<Child> {
    if nix::unistd::geteuid().is_root() {
        return None;
    }
    let link = format!("http://127.0.0.1:{}/open/{}", bridge.port, code.text());
    let given = Link { code, until: Instant::now() + LINK_TIME, spent: false };
    *bridge.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(given);
    let mut command = Command::new("xdg-open");
    // A group of its own: ^C ends this command and not the browser.
    command.arg(&link).process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = command.spawn();
    started
        .inspect_err(|error| {
            let words = format!("cannot start a browser (xdg-open: {error}): open the address yourself");
            let _ = writeln!(std::io::stderr(), "{words}");
        })
        .ok()
}

/// Has room for every connection, or says so: what runs out of descriptors here would be the server's end.
fn enough_descriptors() -> Result<(), CliError> {
    let wanted = server::CONNECTIONS as u64 * DESCRIPTORS_EACH + DESCRIPTORS_BASE;
    let failed = |error: nix::Error| local("the limit of open files", error.into());
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if soft >= wanted {
        return Ok(());
    }
    if hard < wanted {
        let message = format!("at most {hard} files may be open and {wanted} are needed; raise it with `ulimit -Hn`");
        return Err(CliError::Unsuccessful(message));
    }
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_is_followed_again_voids_the_secret() {
        let (now, code) = (Instant::now(), Secret::new().unwrap());
        let link = Link { code: code.clone(), until: now + LINK_TIME, spent: false };
        let bridge = Bridge {
            socket: PathBuf::new(),
            port: 0,
            secret: Secret::new().unwrap(),
            streams: AtomicUsize::new(0),
            link: Mutex::new(Some(link)),
            void: AtomicBool::new(false),
        };
        assert_eq!(bridge.take_link("x"), Taken::Worthless);
        assert_eq!(bridge.take_link(code.text()), Taken::First);
        assert_eq!(bridge.take_link("x"), Taken::Worthless);
        assert!(!bridge.void.load(Ordering::SeqCst));
        assert_eq!(bridge.take_link(code.text()), Taken::Again);
        assert!(bridge.void.load(Ordering::SeqCst));
    }

    #[test]
    fn a_link_that_nobody_followed_in_time_gives_nothing_away() {
        let (now, code) = (Instant::now(), Secret::new().unwrap());
        let mut link = Link { code: code.clone(), until: now + LINK_TIME, spent: false };
        assert_eq!(link.take(code.text(), now + LINK_TIME), Taken::Worthless);
        // Whenever it is shown after it was used, somebody has the secret.
        assert_eq!(link.take(code.text(), now), Taken::First);
        assert_eq!(link.take(code.text(), now + 2 * LINK_TIME), Taken::Again);
    }
}
