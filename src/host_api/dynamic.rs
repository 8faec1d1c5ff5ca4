//! `/rules/active`, `/rules/flush`, `/rule/allow`: flows that may leave directly.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::api::{ActiveRule, RuleAllow, RulesFlushed};
use crate::bridge::{BridgeCommand, GrantedFlow, LONGEST, OperatorRefusal, OperatorWish, Protocol};
use crate::daemon::Subsystem;
use crate::events::rfc3339;
use crate::state::DynamicRulesCommand;
use crate::unix_http::{Answer, Response};

use super::api::Api;
use super::call::Call;
use super::respond::{data_with, failed, ok};

/// Reading the kernel back takes milliseconds.
const LIST_LIMIT: Duration = Duration::from_secs(5);
/// The bridge's work and a write to the disk.
const CHANGE_LIMIT: Duration = Duration::from_secs(15);
/// How long a grant lasts that does not say: as long as a name's answer at most.
const LASTS: Duration = Duration::from_secs(3600);

pub(super) fn active(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let owner = api.links.bridge.clone();
    api.ask(call.ticket, (Subsystem::Bridge, &owner), LIST_LIMIT, BridgeCommand::Grants, |outcome| match outcome {
        Ok(flows) => {
            let mut rows: Vec<ActiveRule> = flows.iter().map(row).collect();
            rows.sort_by(|a, b| {
                let key = |row: &ActiveRule| (row.container.clone(), row.destination.clone(), row.port);
                key(a).cmp(&key(b))
            });
            ok(rows)
        }
        Err(message) => failed(500, message),
    })
}

pub(super) fn flush(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    call.no_body()?;
    let owner = api.links.dynamic_rules.clone();
    let asked = (Subsystem::DynamicRules, &owner);
    api.ask(call.ticket, asked, CHANGE_LIMIT, DynamicRulesCommand::Flush, |outcome| match outcome {
        Ok(removed) => ok(RulesFlushed { removed }),
        Err(message) => failed(500, message),
    })
}

pub(super) fn allow(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let wish = wish(call.body()?)?;
    let owner = api.links.dynamic_rules.clone();
    let command = |reply| DynamicRulesCommand::Allow(wish, reply);
    api.ask(call.ticket, (Subsystem::DynamicRules, &owner), CHANGE_LIMIT, command, |outcome| match outcome {
        Ok(allowed) => data_with(if allowed.new { 201 } else { 200 }, row(&allowed.shown)),
        Err(OperatorRefusal::Unknown(message)) => failed(404, message),
        Err(OperatorRefusal::Conflict(message)) => failed(409, message),
        Err(OperatorRefusal::Forbidden(message)) => failed(422, message),
        Err(OperatorRefusal::Failed(message)) => failed(500, message),
    })
}

/// What is asked for, as far as it can be judged without knowing anybody.
fn wish(body: RuleAllow) -> Result<OperatorWish, Response> {
    let RuleAllow { container, src_ip, destination, protocol, port, expires_in_secs } = body;
    let wrong = |field: &str, value: &str, wanted: &str| failed(400, format!("{field} `{value}` is not {wanted}"));
    if container.is_empty() {
        return Err(wrong("container", &container, "the name or id of a container"));
    }
    let source: Ipv4Addr = src_ip.parse().map_err(|_| wrong("src_ip", &src_ip, "an IPv4 address"))?;
    let destination = match destination.parse() {
        Ok(IpAddr::V4(address)) => address,
        Ok(IpAddr::V6(_)) => {
            let text = format!("destination {destination} is IPv6, which containers of managed networks do not have");
            return Err(failed(422, text));
        }
        Err(_) => return Err(wrong("destination", &destination, "an IPv4 address; a name needs a `direct_ip` rule")),
    };
    let protocol = Protocol::named(&protocol).ok_or_else(|| wrong("protocol", &protocol, "tcp or udp"))?;
    if port == 0 {
        return Err(wrong("port", "0", "from 1 to 65535"));
    }
    let lasts = expires_in_secs.map_or(LASTS, Duration::from_secs);
    if lasts.is_zero() || lasts > LONGEST {
        let given = lasts.as_secs().to_string();
        return Err(wrong("expires_in_secs", &given, &format!("from 1 to {}", LONGEST.as_secs())));
    }
    Ok(OperatorWish { container, source, destination, protocol, port, lasts })
}

fn row(flow: &GrantedFlow) -> ActiveRule {
    ActiveRule {
        container: flow.endpoint.container.to_string(),
        destination: flow.destination.to_string(),
        port: flow.port,
        protocol: Protocol::numbered(flow.protocol).map_or_else(|| flow.protocol.to_string(), |p| p.name().to_owned()),
        nft_handle: flow.handle,
        inserted_at: rfc3339(flow.inserted_at),
        // Rounded up: what is still open is not shown as over.
        expires_in_secs: flow.expires_in.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX),
        packets: flow.packets,
        bytes: flow.bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> RuleAllow {
        RuleAllow {
            container: "a-1".to_owned(),
            src_ip: "10.200.0.2".to_owned(),
            destination: "9.9.9.9".to_owned(),
            protocol: "tcp".to_owned(),
            port: 443,
            expires_in_secs: None,
        }
    }

    #[test]
    fn a_wish_is_read_strictly() {
        assert_eq!(wish(body()).unwrap().lasts, LASTS);
        assert_eq!(wish(RuleAllow { expires_in_secs: Some(86_400), ..body() }).unwrap().lasts, LONGEST);
        let text = str::to_owned;
        for (status, wrong) in [
            (400, RuleAllow { container: text(""), ..body() }),
            (400, RuleAllow { src_ip: text("10.200.2"), ..body() }),
            (400, RuleAllow { destination: text("example.com"), ..body() }),
            (400, RuleAllow { destination: text("0x08080808"), ..body() }),
            (422, RuleAllow { destination: text("2001:4860::1"), ..body() }),
            (400, RuleAllow { protocol: text("TCP"), ..body() }),
            (400, RuleAllow { protocol: text("icmp"), ..body() }),
            (400, RuleAllow { port: 0, ..body() }),
            (400, RuleAllow { expires_in_secs: Some(0), ..body() }),
            (400, RuleAllow { expires_in_secs: Some(86_401), ..body() }),
        ] {
            assert_eq!(wish(wrong.clone()).unwrap_err().status, status, "{wrong:?}");
        }
    }
}
