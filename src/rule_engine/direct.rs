//! Whether a flow may leave directly: the one judgement of DNS, which asks for it, and of the bridge, which opens it.

use std::net::{IpAddr, Ipv4Addr};

use super::{Action, Agent, Context, Dns, EgressMode, Network, RuleSet};
use crate::names::special_purpose;

impl RuleSet {
    /// Whether a `direct_ip` rule opens TCP `port` of `address`, which is an answer to `agent`'s question for the A
    /// records of `query` (in normal form).
    ///
    /// Nobody judges such a flow after DNS. So the rule that allows the question must be a `direct_ip` one with this
    /// port, the address must be ordinary or the rule must open what is private, and no rule may block once address
    /// and port are known. Counts and logs nothing.
    #[must_use]
    pub fn opens_directly(&self, agent: Agent<'_>, query: &str, address: Ipv4Addr, port: u16) -> bool {
        let dns = Dns { query: Some(query), record_type: Some("A") };
        let asked = self.peek(&Context { agent, dns, ..Context::default() });
        let rule = asked.rule.filter(|_| asked.action == Action::Allow);
        let opens = rule.as_ref().and_then(|rule| rule.egress.as_ref()).is_some_and(|egress| {
            egress.mode == EgressMode::DirectIp
                && egress.ports.contains(&port)
                && (egress.allow_private_ips || special_purpose(IpAddr::V4(address)).is_none())
        });
        if !opens {
            return false;
        }
        let text = address.to_string();
        let network = Network { hostname: Some(query), ip: Some(&text), port: Some(port), protocol: Some("tcp") };
        self.peek(&Context { agent, dns, network, ..Context::default() }).action == Action::Allow
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Guard, LoadOptions, Source, load_sources};
    use super::*;

    fn opens(rules: &str, address: &str, port: u16) -> bool {
        let text = format!("version: \"1\"\nrules:\n{rules}");
        let sources = [Source { name: "r.yaml".into(), text }];
        let options = LoadOptions { proxy: true, interception: false, guard: Guard::InProcess };
        let set = load_sources(&sources, &options, None).map(|loaded| loaded.set).unwrap();
        let agent = Agent { name: Some("a"), container: Some("a-1") };
        set.opens_directly(agent, "host.example", address.parse().unwrap(), port)
    }

    const DIRECT: &str = "  - {id: d, condition: 'dns.query == \"host.example\"', action: allow, \
        egress: {mode: direct_ip, ports: [443]}}\n";

    #[test]
    fn a_direct_rule_opens_its_ports_of_ordinary_addresses() {
        assert!(opens(DIRECT, "93.184.216.34", 443));
        assert!(!opens(DIRECT, "93.184.216.34", 80));
        assert!(!opens(DIRECT, "10.0.0.1", 443));
        assert!(!opens(
            "  - {id: p, condition: 'dns.query == \"host.example\"', action: allow}\n",
            "93.184.216.34",
            443
        ));
    }

    #[test]
    fn an_earlier_block_of_the_address_or_port_is_heard() {
        for condition in
            ["network.ip == \"93.184.216.34\"", "network.port == 443", "network.hostname == \"host.example\""]
        {
            let block = format!("  - {{id: b, priority: 1, condition: '{condition}', action: block}}\n");
            assert!(!opens(&format!("{block}{DIRECT}"), "93.184.216.34", 443), "{condition}");
        }
        let other = "  - {id: b, priority: 1, condition: 'network.ip == \"93.184.216.35\"', action: block}\n";
        assert!(opens(&format!("{other}{DIRECT}"), "93.184.216.34", 443));
    }
}
