//! `/dns`, `/dns/cache`, `/dns/cache/flush`

use std::time::Duration;

use crate::api::{DnsCache, DnsFlushed};
use crate::daemon::Subsystem;
use crate::dns::DnsCommand;
use crate::unix_http::{Answer, Response};

use super::api::Api;
use super::call::{Call, flag};
use super::respond::ok;

/// The DNS loop never waits; it answers between two packets.
const LIMIT: Duration = Duration::from_secs(5);

pub(super) fn status(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let owner = api.links.dns.clone();
    api.ask(call.ticket, (Subsystem::Dns, &owner), LIMIT, DnsCommand::Status, ok)
}

pub(super) fn cache(api: &mut Api, call: Call) -> Result<Answer, Response> {
    let [entries] = call.query(["entries"])?;
    let entries = flag("entries", entries.as_deref())?;
    let owner = api.links.dns.clone();
    api.ask(call.ticket, (Subsystem::Dns, &owner), LIMIT, DnsCommand::Cache, move |cache: DnsCache| {
        if entries { ok(cache) } else { ok(cache.stats) }
    })
}

pub(super) fn flush(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    call.no_body()?;
    let owner = api.links.dns.clone();
    api.ask(call.ticket, (Subsystem::Dns, &owner), LIMIT, DnsCommand::Flush, |entries_flushed| {
        ok(DnsFlushed { entries_flushed })
    })
}
