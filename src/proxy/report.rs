//! Events: one for each decision, and one for the end of each tunnel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::events::{self, Event, EventSink, Layer, Verdict};
use crate::rule_engine::Rule;

use super::judge::{Facts, Refused};
use super::session::{Client, Core};

/// An event of `client`, without more.
pub(super) fn event(client: &Client, verdict: Verdict, reason: &'static str) -> Event {
    Event {
        flow: Some(client.flow),
        endpoint: client.peer.endpoint().cloned(),
        peer: Some(client.address),
        ..Event::new(client.layer, verdict, reason)
    }
}

/// The flow of a new request or tunnel: that of the question for its name, where there was one.
pub(super) fn flow(sink: &EventSink, client: &Client, facts: &Facts) -> u64 {
    let party = events::party(client.peer.endpoint().map(|it| &**it), Some(client.address));
    party.map_or_else(|| sink.flows().begin(), |party| sink.flows().attempt(party, &facts.host_text))
}

fn of_facts(client: &Client, facts: &Facts, verdict: Verdict, reason: &'static str) -> Event {
    let path = facts.path.split('?').next().unwrap_or_default();
    Event {
        host: Some((&facts.host_text).into()),
        port: Some(facts.port),
        protocol: Some(facts.scheme),
        method: Some((&facts.method).into()),
        path: Some(path.into()),
        ..event(client, verdict, reason)
    }
}

fn since(begun: Instant) -> Option<u64> {
    u64::try_from(begun.elapsed().as_micros()).ok()
}

/// A request or tunnel was allowed to `address`; `begun` is when its head was complete. The rule counts it.
pub(super) fn allowed(
    core: &Core,
    client: &Client,
    facts: &Facts,
    rule: Option<Arc<Rule>>,
    (address, begun): (SocketAddr, Instant),
) {
    facts.count(&core.snapshot.rules, &client.peer, Some(address.ip()));
    let event = of_facts(client, facts, Verdict::Allow, "rule");
    let bytes_up = (client.layer == Layer::Intercept).then_some(facts.body_size).flatten();
    core.links.events.record(Event { rule, destination: Some(address), bytes_up, duration_us: since(begun), ..event });
}

/// A tunnel is decrypted because of `rule`, which counts nothing: its requests do.
pub(super) fn intercepting(core: &Core, client: &Client, facts: &Facts, rule: &Arc<Rule>, begun: Instant) {
    let event = of_facts(client, facts, Verdict::Allow, "intercepted");
    core.links.events.record(Event { rule: Some(Arc::clone(rule)), duration_us: since(begun), ..event });
}

/// A request or tunnel was refused. The rule counts it, if there is one.
pub(super) fn refused(core: &mut Core, client: &Client, facts: &Facts, refused: &Refused, begun: Instant) {
    core.count_blocked(client.layer);
    if refused.rule.is_some() {
        facts.count(&core.snapshot.rules, &client.peer, refused.address);
    }
    tracing::debug!(target: "proxy", host = %facts.host_text, port = facts.port, reason = refused.reason, "blocked");
    let destination = refused.address.map(|address| SocketAddr::new(address, facts.port));
    let event = of_facts(client, facts, Verdict::Block, refused.reason);
    core.links.events.record(Event { rule: refused.rule.clone(), destination, duration_us: since(begun), ..event });
}

/// A tunnel ended after so many bytes `(up, down)`.
pub(super) fn tunnel_end(
    sink: &EventSink,
    client: &Client,
    facts: &Facts,
    reason: &'static str,
    end: (SocketAddr, Instant, u64, u64),
) {
    let (destination, begun, up, down) = end;
    let event = of_facts(client, facts, Verdict::Allow, reason);
    sink.record(Event {
        destination: Some(destination),
        bytes_up: Some(up),
        bytes_down: Some(down),
        duration_us: since(begun),
        ..event
    });
}
