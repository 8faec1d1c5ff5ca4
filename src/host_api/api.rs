//! The route table, and the waiting room: which request waits for whom, until when.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::daemon::control::ControlMessage;
use crate::daemon::{Snapshot, Subsystem};
use crate::event_loop::{Address, Reply, SendError};
use crate::unix_http::{Admission, Answer, Handler, Peer, PeerContainer, Request, Response, Ticket, container_of_peer};

use super::call::{Call, decoded};
use super::events::Readers;
use super::links::{HostApiCommand, HostApiConfig, HostApiLinks, Late};
use super::metrics::Scrapes;
use super::respond::failed;
use super::ui;
use super::{bridge, ca, container, dns, dynamic, events, explain, health, metrics, network, proxy, requests, rules};

/// The beginning of every path of this API.
const PREFIX: &str = "/api/v1";
/// At most one line about refused peers in this time.
const REFUSAL_LOG_PAUSE: Duration = Duration::from_secs(1);
/// Digits of a container's id that are shown, as Docker shows them.
const SHORT_ID: usize = 12;

/// What a route does with a call; `Err` is an answer too.
type Handle = fn(&mut Api, Call) -> Result<Answer, Response>;

/// A resource: each has one method.
enum Route {
    Get(Handle),
    Post(Handle),
}

/// A request that waits.
struct Waiting {
    until: Instant,
    limit: Duration,
    on: On,
}

enum On {
    /// The owner's answer.
    Owner(Subsystem),
    /// The pings that are still out, and all that were sent.
    Pings { out: BTreeSet<Subsystem>, asked: BTreeSet<Subsystem> },
}

/// The operator API without its sockets.
pub(super) struct Api {
    pub(super) config: HostApiConfig,
    pub(super) links: HostApiLinks,
    pub(super) snapshot: Arc<Snapshot>,
    waiting: BTreeMap<Ticket, Waiting>,
    /// Those who follow the events.
    pub(super) readers: Readers,
    /// Scrapes of `/metrics` that wait for their numbers.
    pub(super) scrapes: Scrapes,
    /// Rule sets after the first.
    pub(super) reloads: u64,
    /// Scrapes that came over TCP and have no connection here.
    detached: u64,
    /// Who waits for a health check and has no connection here.
    pub(super) watchers: BTreeMap<Ticket, Reply<Vec<&'static str>>>,
    refusals: Refusals,
}

/// Refused peers for the log: somebody who connects in a loop must not fill it.
#[derive(Default)]
struct Refusals {
    logged_at: Option<Instant>,
    /// Since then.
    silent: u64,
}

impl Refusals {
    fn log(&mut self, peer: &Peer, message: &str, now: Instant) {
        if self.logged_at.is_some_and(|at| now < at + REFUSAL_LOG_PAUSE) {
            self.silent += 1;
            return;
        }
        let (uid, pid, silent) = (peer.uid, peer.pid, std::mem::take(&mut self.silent));
        tracing::warn!(target: "host_api", uid, pid, unlogged_before = silent, "refused: {message}");
        self.logged_at = Some(now);
    }
}

impl Api {
    pub(super) fn new(config: HostApiConfig, links: HostApiLinks, snapshot: Arc<Snapshot>) -> Self {
        let readers = Readers::new(Arc::clone(&links.live));
        Api {
            config,
            links,
            snapshot,
            waiting: BTreeMap::new(),
            readers,
            scrapes: Scrapes::default(),
            reloads: 0,
            detached: 0,
            watchers: BTreeMap::new(),
            refusals: Refusals::default(),
        }
    }

    pub(super) fn set_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.reloads += u64::from(!Arc::ptr_eq(&self.snapshot.rules, &snapshot.rules));
        self.snapshot = snapshot;
    }

    /// The metrics for somebody who has no connection here.
    pub(super) fn metrics(&mut self, reply: Reply<Vec<u8>>) {
        let ticket = self.detached();
        metrics::begin(self, ticket, Some(reply));
    }

    /// A ticket without a connection.
    pub(super) fn detached(&mut self) -> Ticket {
        self.detached += 1;
        Ticket::detached(self.detached)
    }

    pub(super) fn control(&self) -> &Address<ControlMessage> {
        &self.links.control
    }

    /// The route table.
    fn route(&self, method: &str, path: &str) -> Option<Route> {
        if ui::has(path) {
            return Some(Route::Get(ui::show));
        }
        if path == "/metrics" {
            return Some(Route::Get(metrics::scrape));
        }
        Some(match path.strip_prefix(PREFIX)? {
            // `allow`, `evaluate` and `test` are ids that a rule may have.
            rule if method != "POST" && self.has_rule(rule) => Route::Get(rules::show),
            "/bridge" => Route::Get(bridge::status),
            "/bridge/up" => Route::Post(bridge::up),
            "/bridge/down" => Route::Post(bridge::down),
            "/network" => Route::Get(network::status),
            "/networks" => Route::Get(network::list),
            "/network/config" => Route::Get(network::config),
            "/network/create" => Route::Post(network::create),
            "/network/destroy" => Route::Post(network::destroy),
            "/containers" => Route::Get(container::list),
            "/container" => Route::Get(container::inspect),
            "/container/create" => Route::Post(container::create),
            "/container/stop" => Route::Post(container::stop),
            "/container/remove" => Route::Post(container::remove),
            "/container/pull" => Route::Post(container::pull),
            "/rules" => Route::Get(rules::list),
            "/rules/active" => Route::Get(dynamic::active),
            "/rules/flush" => Route::Post(dynamic::flush),
            "/rule/allow" => Route::Post(dynamic::allow),
            "/rules/reload" => Route::Post(rules::reload),
            "/rule/evaluate" => Route::Post(rules::evaluate),
            "/rule/test" => Route::Post(rules::test),
            "/explain" => Route::Post(explain::explain),
            "/dns" => Route::Get(dns::status),
            "/dns/cache" => Route::Get(dns::cache),
            "/dns/cache/flush" => Route::Post(dns::flush),
            "/proxy" => Route::Get(proxy::status),
            "/proxy/intercept" => Route::Get(ca::interception),
            "/proxy/intercept/cache/flush" => Route::Post(ca::flush),
            "/ca" => Route::Get(ca::status),
            "/ca/bundle" => Route::Get(ca::bundle),
            "/requests/rules" => Route::Get(requests::list),
            path if requests::request_id(path, "approve").is_some() => Route::Post(requests::approve),
            path if requests::request_id(path, "reject").is_some() => Route::Post(requests::reject),
            "/events" => Route::Get(events::events),
            "/health" => Route::Get(health::health),
            "/ready" => Route::Get(health::ready),
            rule if rule_id(rule).is_some() => Route::Get(rules::show),
            _ => return None,
        })
    }

    fn has_rule(&self, path: &str) -> bool {
        rule_id(path).is_some_and(|id| self.snapshot.rules.rule(id).is_some())
    }

    fn serve(&mut self, request: Request, ticket: Ticket) -> Result<Answer, Response> {
        let route = self
            .route(&request.method, &request.path)
            .ok_or_else(|| failed(404, format!("no such resource: {}", request.path)))?;
        let (handle, allowed) = match (route, &*request.method) {
            (Route::Get(handle), "GET" | "HEAD") => (Some(handle), ""),
            (Route::Post(handle), "POST") => (Some(handle), ""),
            (Route::Get(_), _) => (None, "GET, HEAD"),
            (Route::Post(_), _) => (None, "POST"),
        };
        let Some(handle) = handle else {
            let message = format!("{} is not for {}; allowed: {allowed}", request.path, request.method);
            return Err(failed(405, message).with("Allow", allowed));
        };
        if &*request.method == "POST" {
            let Peer { pid, uid, .. } = request.peer;
            tracing::info!(target: "host_api", uid, pid, "POST {}", request.path);
        } else {
            tracing::debug!(target: "host_api", "{} {}", request.method, request.path);
        }
        let name = request.path.strip_prefix(PREFIX).and_then(named).unwrap_or("");
        let name = decoded(name, false).map_err(|error| failed(400, format!("the path has {error}")))?;
        handle(self, Call { ticket, request, name })
    }

    /// Sends a command to the owner of the state. Its answer is formatted by this thread; without one within `limit`
    /// the request is answered with 503.
    pub(super) fn ask<C, T: Send + 'static>(
        &mut self,
        ticket: Ticket,
        (owner, address): (Subsystem, &Address<C>),
        limit: Duration,
        command: impl FnOnce(Reply<T>) -> C,
        format: impl FnOnce(T) -> Response + Send + 'static,
    ) -> Result<Answer, Response> {
        let own = self.links.own.clone();
        let reply = Reply::new(move |answer| {
            // A full mailbox loses the answer; the request then ends by its own deadline.
            let _ = own.send(HostApiCommand::Answer(ticket, Late::new(move || format(answer))));
        });
        address.send(command(reply)).map_err(|error| undelivered(owner, &error))?;
        self.wait_for_owner(ticket, owner, Instant::now(), limit);
        Ok(Answer::Later)
    }

    /// Answers with 503 unless `owner` does within `limit`.
    pub(super) fn wait_for_owner(&mut self, ticket: Ticket, owner: Subsystem, now: Instant, limit: Duration) {
        self.waiting.insert(ticket, Waiting { until: now + limit, limit, on: On::Owner(owner) });
    }

    /// Pings; whoever could not be reached is in none of the sets but in the answer.
    pub(super) fn wait_for_pings(
        &mut self,
        ticket: Ticket,
        out: BTreeSet<Subsystem>,
        asked: BTreeSet<Subsystem>,
        limit: Duration,
    ) -> Answer {
        self.waiting.insert(ticket, Waiting { until: Instant::now() + limit, limit, on: On::Pings { out, asked } });
        Answer::Later
    }

    /// A ping came back; the answer when it was the last one.
    pub(super) fn alive(&mut self, ticket: Ticket, subsystem: Subsystem) -> Option<Response> {
        let Some(Waiting { on: On::Pings { out, asked }, .. }) = self.waiting.get_mut(&ticket) else {
            return None;
        };
        out.remove(&subsystem);
        if !out.is_empty() {
            return None;
        }
        let response = health::healthy(asked);
        self.waiting.remove(&ticket);
        if let Some(watcher) = self.watchers.remove(&ticket) {
            watcher.send(Vec::new());
        }
        Some(response)
    }

    /// An owner's answer came: true when the request still waits for it.
    pub(super) fn settle(&mut self, ticket: Ticket) -> bool {
        self.waiting.remove(&ticket).is_some()
    }

    /// The next moment at which [`Api::overdue`] has something to say.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.until).chain(self.scrapes.next_deadline()).min()
    }

    /// The answers of requests that waited too long.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<(Ticket, Response)> {
        if self.next_deadline().is_none_or(|at| at > now) {
            return Vec::new();
        }
        let late: Vec<Ticket> =
            self.waiting.iter().filter(|(_, waiting)| waiting.until <= now).map(|(ticket, _)| *ticket).collect();
        let scrapes = metrics::overdue(self, now);
        let too_late = late.into_iter().filter_map(|ticket| {
            let waiting = self.waiting.remove(&ticket)?;
            if let (Some(watcher), On::Pings { out, .. }) = (self.watchers.remove(&ticket), &waiting.on) {
                watcher.send(out.iter().map(|subsystem| subsystem.name()).collect());
            }
            Some((ticket, too_late(&waiting)))
        });
        too_late.chain(scrapes).collect()
    }
}

impl Handler for Api {
    fn admit(&mut self, peer: &Peer, socket: BorrowedFd<'_>) -> Admission {
        let message = match container_of_peer(*peer, socket) {
            PeerContainer::Own => return Admission::Serve { key: u64::from(peer.uid) },
            PeerContainer::Other(id) => {
                let short: String = id.chars().take(SHORT_ID).collect();
                format!("a process of container {short} may not use the operator API")
            }
            PeerContainer::Unknown => "it cannot be told which container this process belongs to: it has ended, or \
                                       outcalld runs in a pid namespace that does not show it"
                .to_owned(),
        };
        self.refusals.log(peer, &message, Instant::now());
        Admission::Refuse { status: 403, message }
    }

    fn request(&mut self, request: Request, ticket: Ticket) -> Answer {
        self.serve(request, ticket).unwrap_or_else(Answer::Now)
    }

    fn refusal(&mut self, status: u16, message: &str) -> Response {
        failed(status, message)
    }

    fn gone(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
        self.readers.remove(ticket);
        self.scrapes.remove(ticket);
    }

    fn accept_failed(&mut self, error: &std::io::Error) {
        tracing::warn!(target: "host_api", "cannot accept connections: {error}; trying on");
    }
}

/// The ID that a path names.
fn named(path: &str) -> Option<&str> {
    let verbs = ["approve", "reject"];
    rule_id(path).or_else(|| verbs.into_iter().find_map(|verb| requests::request_id(path, verb)))
}

/// ID of `/rule/ID`.
fn rule_id(path: &str) -> Option<&str> {
    path.strip_prefix("/rule/").filter(|id| !id.is_empty() && !id.contains('/'))
}

fn undelivered<C>(owner: Subsystem, error: &SendError<C>) -> Response {
    match error {
        SendError::Full(_) => failed(503, format!("{owner} is busy: its mailbox is full; try again")),
        SendError::Closed(_) => failed(503, format!("{owner} has ended; is outcalld stopping?")),
    }
}

fn too_late(waiting: &Waiting) -> Response {
    let seconds = waiting.limit.as_secs();
    match &waiting.on {
        On::Owner(owner) => {
            failed(503, format!("{owner} did not answer within {seconds} s; what was asked may still happen"))
        }
        On::Pings { out, .. } => {
            let names: Vec<&str> = out.iter().map(|subsystem| subsystem.name()).collect();
            failed(503, format!("no answer within {seconds} s from: {}", names.join(", ")))
        }
    }
}
