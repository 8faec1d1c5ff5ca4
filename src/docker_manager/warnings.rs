//! What is wrong with containers and networks that Docker allows and Outcall does not: found, told once, taken back.
//!
//! Owns: the texts, the events, the keys in `/ready`. Does not own: acting on it (`manager` disconnects).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::resolver_guard::{DnsVerdict, HostResolver};
use super::view::View;
use super::{Endpoint, network_ops};
use crate::daemon::Readiness;
use crate::events::{Event, EventSink, Layer, Verdict};

/// A warning in force.
#[derive(Clone, Debug)]
pub(super) struct Warning {
    text: String,
    /// The event that goes with it, once.
    event: Option<(Layer, Verdict, &'static str, Arc<Endpoint>)>,
}

/// A container that must leave a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) container: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) network: Arc<super::ManagedNetwork>,
}

/// What [`judge`] found.
pub(super) struct Findings {
    pub(super) warnings: BTreeMap<String, Warning>,
    pub(super) cuts: Vec<Cut>,
    /// (container id, network id) that resolve through the filter, or harmlessly.
    pub(super) fine: Vec<(Arc<str>, String)>,
}

/// Judges every attachment whose facts are known, and the look-alikes of the last list (name → reason).
pub(super) fn judge(view: &View, host: &HostResolver, look_alikes: &BTreeMap<String, String>) -> Findings {
    let mut findings = Findings { warnings: BTreeMap::new(), cuts: Vec::new(), fine: Vec::new() };
    for (name, reason) in look_alikes {
        let text = network_ops::look_alike_message(name, reason);
        findings.warnings.insert(format!("look_alike/{name}"), Warning { text, event: None });
    }
    for (endpoint, facts) in view.attachments() {
        let endpoint = Arc::new(endpoint);
        let network = &endpoint.network;
        let key = format!("{}/{}", endpoint.container_id, network.id);
        let verdict = host.judge(&facts.dns, network.gateway);
        if let Some(text) = dns_text(verdict, &endpoint.container, network.gateway, &network.name, host) {
            let event = (verdict == DnsVerdict::Unsafe)
                .then(|| (Layer::Dns, Verdict::Block, "unsafe_resolver", Arc::clone(&endpoint)));
            findings.warnings.insert(format!("dns/{key}"), Warning { text, event });
        }
        if verdict == DnsVerdict::Unsafe {
            findings.cuts.push(Cut {
                container: Arc::clone(&endpoint.container_id),
                name: Arc::clone(&endpoint.container),
                network: Arc::clone(network),
            });
        } else {
            findings.fine.push((Arc::clone(&endpoint.container_id), network.id.clone()));
        }
        let other = facts.networks.iter().find(|(_, id)| !id.is_empty() && !view.knows_network(id));
        if let Some((other, _)) = other {
            let text = format!(
                "container {} is also on the unmanaged network {other}, where nothing is filtered: \
                 `docker network disconnect {other} {}`",
                endpoint.container, endpoint.container
            );
            let event = Some((Layer::Kernel, Verdict::Allow, "unmanaged_network", endpoint));
            findings.warnings.insert(format!("networks/{key}"), Warning { text, event });
        }
    }
    findings
}

fn dns_text(
    verdict: DnsVerdict,
    container: &str,
    gateway: Ipv4Addr,
    network: &str,
    host: &HostResolver,
) -> Option<String> {
    let remedy = format!("start it with --dns {gateway}, or put \"dns\": [\"{gateway}\"] into Docker's daemon.json");
    match verdict {
        DnsVerdict::Filtered => None,
        DnsVerdict::Useless => Some(format!(
            "container {container} on {network} does not use its gateway as DNS and resolves nothing: {remedy}"
        )),
        DnsVerdict::Unsafe => {
            let server = host.past_the_filter.map(|server| server.to_string()).unwrap_or_default();
            Some(format!(
                "container {container} is taken off {network} and paused: without its gateway as DNS, Docker would resolve for it \
                 through the host's {server}, past every rule; {remedy}"
            ))
        }
    }
}

/// Tells what is new, takes back what is over, and keeps `found` as what is told.
pub(super) fn tell(
    told: &mut BTreeMap<String, Warning>,
    found: BTreeMap<String, Warning>,
    readiness: &Readiness,
    events: &EventSink,
) {
    for key in told.keys().filter(|key| !found.contains_key(*key)) {
        readiness.warn(key, None);
    }
    for (key, warning) in &found {
        if told.get(key).is_some_and(|old| old.text == warning.text) {
            continue;
        }
        let target_text = &warning.text;
        tracing::warn!(target: "docker_manager", "{target_text}");
        readiness.warn(key, Some(warning.text.clone()));
        if let Some((layer, verdict, reason, endpoint)) = &warning.event {
            let mut event = Event::new(*layer, *verdict, reason);
            event.endpoint = Some(Arc::clone(endpoint));
            event.peer = Some(endpoint.address.into());
            events.record(event);
        }
    }
    *told = found;
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::view::Facts;
    use super::super::{ManagedNetwork, engine};
    use super::*;

    fn view(dns: &[&str], other: Option<&str>) -> View {
        let mut view = View::new(Instant::now());
        view.listed(
            vec![ManagedNetwork {
                name: "outcall-a".to_owned(),
                id: "net1".to_owned(),
                bridge: "oc-1".to_owned(),
                subnet: "10.200.0.0/24".parse().unwrap(),
                gateway: Ipv4Addr::new(10, 200, 0, 1),
            }],
            Instant::now(),
        );
        let endpoint = engine::NetworkContainer {
            name: "w-1".to_owned(),
            mac_address: "02:42:0a:c8:00:02".to_owned(),
            ipv4_address: "10.200.0.2/24".to_owned(),
        };
        view.inspected("net1", BTreeMap::from([("c1".to_owned(), endpoint)]), Instant::now());
        let mut networks = vec![("outcall-a".to_owned(), "net1".to_owned())];
        networks.extend(other.map(|name| (name.to_owned(), format!("id-{name}"))));
        let dns = dns.iter().map(|server| (*server).to_owned()).collect();
        view.learnt("c1", Facts { pid: 9, dns, networks, ..Facts::default() });
        view
    }

    #[test]
    fn an_unsafe_container_is_cut_and_told_once() {
        let host = HostResolver { past_the_filter: Some("127.0.0.1".parse().unwrap()), engine_dns: Vec::new() };
        let findings = judge(&view(&[], None), &host, &BTreeMap::new());
        assert_eq!(findings.cuts.len(), 1);
        let (sender, receiver) = crossbeam_channel::bounded(8);
        let (sink, readiness, mut told) = (EventSink::new(sender), Readiness::default(), BTreeMap::new());
        tell(&mut told, findings.warnings.clone(), &readiness, &sink);
        tell(&mut told, findings.warnings, &readiness, &sink);
        let event = receiver.try_recv().unwrap();
        assert_eq!((event.reason, event.verdict), ("unsafe_resolver", Verdict::Block));
        assert!(receiver.try_recv().is_err());
        assert!(readiness.warnings()[0].contains("--dns 10.200.0.1"));
        tell(&mut told, BTreeMap::new(), &readiness, &sink);
        assert!(readiness.warnings().is_empty());
    }

    #[test]
    fn a_second_network_is_a_warning_and_wrong_dns_elsewhere_too() {
        let host = HostResolver { past_the_filter: None, engine_dns: Vec::new() };
        let findings = judge(&view(&["10.200.0.1"], Some("web")), &host, &BTreeMap::new());
        assert!(findings.cuts.is_empty());
        assert_eq!(findings.warnings.keys().collect::<Vec<_>>(), ["networks/c1/net1"]);
        let findings = judge(&view(&["1.1.1.1"], None), &host, &BTreeMap::new());
        assert!(findings.cuts.is_empty() && findings.warnings.contains_key("dns/c1/net1"));
    }
}
