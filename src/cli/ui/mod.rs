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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use admission::{Head, Refusal, Secret, Wanted};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
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

/// What the workers share.
struct Bridge {
    socket: PathBuf,
    port: u16,
    secret: Secret,
    streams: AtomicUsize,
    /// The code of the link that the browser was given, until it is used or too old.
    link: Mutex<Option<(Secret, Instant)>>,
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
    thread(
        "ui_accept",
        Box::new(move || server::run(&listener, move |request, client| bridge.serve(request, client))),
    )?;
    signals.wait().map_err(|error| local("the wait for a signal", error.into()))?;
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
        let fields: Vec<(&str, &[u8])> = request.head.fields.iter().collect();
        let head = Head { method: &request.head.method, target: &request.head.target, fields: &fields };
        match admission::admit(&head, &self.secret, self.port) {
            Ok(Wanted::Forward(target)) => {
                forward::forward(request, &target, &self.socket, client, || self.stream());
            }
            Ok(Wanted::Open(code)) if self.take_link(&code) => forward::redirect(client, &self.page()),
            Ok(Wanted::Open(_)) => {
                let message = "this link was used before or is too old; if that was not you, end `outcall ui` now";
                forward::refuse(client, 403, message);
            }
            Err(Refusal(message)) => forward::refuse(client, 403, &message),
        }
    }

    /// A place among the streams.
    fn stream(&self) -> Option<Stream<'_>> {
        let place = Stream(&self.streams);
        (self.streams.fetch_add(1, Ordering::Relaxed) < STREAMS).then_some(place)
    }

    /// True for the first that has the code.
    fn take_link(&self, code: &str) -> bool {
        // A holder that panicked left it whole: it is replaced in one step.
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        match &*link {
            Some((known, until)) if known.is(code) => {
                let young = Instant::now() < *until;
                *link = None;
                young
            }
            _ => false,
        }
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
    *bridge.link.lock().unwrap_or_else(PoisonError::into_inner) = Some((code, Instant::now() + LINK_TIME));
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
