//! `/metrics`: asks every owner for its numbers, then writes what has come within the limit.
//!
//! Owns: who is asked, and the wait. Does not own: the numbers, or their text (`metrics_text`).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::bridge::BridgeCommand;
use crate::daemon::Subsystem;
use crate::dns::{DnsCommand, DnsMetrics};
use crate::event_loop::{Address, Reply};
use crate::events::{EventsCommand, Tally};
use crate::proxy::ProxyCommand;
use crate::unix_http::{Answer, Response, Ticket};

use super::api::Api;
use super::call::Call;
use super::links::HostApiCommand;
use super::metrics_text::{self, Here};

/// The text format's own type.
pub(super) const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Owners that have not answered by then are left out, and told as not up.
const LIMIT: Duration = Duration::from_secs(1);

/// An owner's numbers.
pub enum Part {
    /// Of the DNS filter.
    Dns(DnsMetrics),
    /// Of the proxy.
    Proxy(crate::api::ProxyStatus),
    /// Direct flows that are open; `None` when the kernel did not say.
    Grants(Option<usize>),
    /// Of all decisions.
    Events(Box<Tally>),
}

impl Part {
    fn owner(&self) -> Subsystem {
        match self {
            Part::Dns(_) => Subsystem::Dns,
            Part::Proxy(_) => Subsystem::Proxy,
            Part::Grants(_) => Subsystem::Bridge,
            Part::Events(_) => Subsystem::Events,
        }
    }
}

/// What has come.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) dns: Option<DnsMetrics>,
    pub(super) proxy: Option<crate::api::ProxyStatus>,
    pub(super) grants: Option<usize>,
    pub(super) tally: Option<Box<Tally>>,
    /// Who answered, and who is asked and has not.
    pub(super) answered: BTreeSet<Subsystem>,
    pub(super) out: BTreeSet<Subsystem>,
}

impl Gathered {
    /// Takes a part; true when it was the last one.
    fn take(&mut self, part: Part) -> bool {
        self.out.remove(&part.owner());
        self.answered.insert(part.owner());
        match part {
            Part::Dns(numbers) => self.dns = Some(numbers),
            Part::Proxy(numbers) => self.proxy = Some(numbers),
            Part::Grants(count) => self.grants = count,
            Part::Events(tally) => self.tally = Some(tally),
        }
        self.out.is_empty()
    }
}

/// Scrapes that wait for owners.
#[derive(Default)]
pub(super) struct Scrapes(std::collections::BTreeMap<Ticket, Scrape>);

struct Scrape {
    until: Instant,
    gathered: Gathered,
    /// Where the text goes; `None`: to the connection that holds the ticket.
    reply: Option<Reply<Vec<u8>>>,
}

impl Scrapes {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.0.values().map(|scrape| scrape.until).min()
    }

    pub(super) fn remove(&mut self, ticket: Ticket) {
        self.0.remove(&ticket);
    }

    fn overdue(&self, now: Instant) -> Vec<Ticket> {
        self.0.iter().filter(|(_, scrape)| scrape.until <= now).map(|(ticket, _)| *ticket).collect()
    }
}

/// `GET /metrics`
pub(super) fn scrape(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    begin(api, call.ticket, None);
    Ok(Answer::Later)
}

/// Asks all owners. Each answers from its own loop, without waiting for anybody.
pub(super) fn begin(api: &mut Api, ticket: Ticket, reply: Option<Reply<Vec<u8>>>) {
    let links = &api.links;
    let own = &links.own;
    let mut out = BTreeSet::from([Subsystem::Dns, Subsystem::Bridge, Subsystem::Events]);
    // A question that cannot be delivered stays out.
    let _ = links.dns.send(DnsCommand::Metrics(part(own, ticket, Part::Dns)));
    let _ = links.bridge.send(BridgeCommand::Grants(part(own, ticket, |grants: Result<Vec<_>, String>| {
        Part::Grants(grants.ok().map(|grants| grants.len()))
    })));
    let _ = links.events.try_send(EventsCommand::Tally(part(own, ticket, Part::Events)));
    if let Some(proxy) = &links.proxy {
        out.insert(Subsystem::Proxy);
        let _ = proxy.send(ProxyCommand::Status(part(own, ticket, Part::Proxy)));
    }
    let gathered = Gathered { out, ..Gathered::default() };
    api.scrapes.0.insert(ticket, Scrape { until: Instant::now() + LIMIT, gathered, reply });
}

fn part<T: Send + 'static>(
    own: &Address<HostApiCommand>,
    ticket: Ticket,
    make: impl FnOnce(T) -> Part + Send + 'static,
) -> Reply<T> {
    let own = own.clone();
    Reply::new(move |numbers| {
        let _ = own.send(HostApiCommand::Part(ticket, make(numbers)));
    })
}

/// An owner's numbers came; the answer when they were the last.
pub(super) fn took(api: &mut Api, ticket: Ticket, part: Part) -> Option<Response> {
    let complete = api.scrapes.0.get_mut(&ticket)?.gathered.take(part);
    if complete { finish(api, ticket) } else { None }
}

/// The answers of scrapes that waited long enough.
pub(super) fn overdue(api: &mut Api, now: Instant) -> Vec<(Ticket, Response)> {
    let late = api.scrapes.overdue(now);
    late.into_iter().filter_map(|ticket| Some((ticket, finish(api, ticket)?))).collect()
}

/// Writes the text and gives it to whoever asked.
fn finish(api: &mut Api, ticket: Ticket) -> Option<Response> {
    let Scrape { gathered, reply, .. } = api.scrapes.0.remove(&ticket)?;
    let here = Here {
        snapshot: &api.snapshot,
        reloads: api.reloads,
        readers: api.readers.count(),
        lost_to_readers: api.readers.lost,
    };
    let text = metrics_text::write(&gathered, &here).into_bytes();
    match reply {
        Some(reply) => {
            reply.send(text);
            None
        }
        None => Some(Response::whole(200, TEXT, text)),
    }
}
