//! Which of Docker's networks are ours, and which only look like it.

use crate::docker_manager::{Ipv4Net, ManagedNetwork, engine};

use super::names::{claims_to_be_managed, is_network_name};
use super::request::is_rfc1918;
use super::{bridge_of, check_gateway, first_gateway};

/// The label of managed networks and containers.
pub const LABEL: &str = "managed-by";
/// Its value.
pub const LABEL_VALUE: &str = "outcalld";
/// The driver option that names the Linux bridge.
pub const BRIDGE_NAME_OPTION: &str = "com.docker.network.bridge.name";
/// The driver option that must be `false`: our table masquerades granted flows only.
pub const MASQUERADE_OPTION: &str = "com.docker.network.bridge.enable_ip_masquerade";

/// What a Docker network is to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One of ours.
    Managed(ManagedNetwork),
    /// It has our name or our label but could not be enforced as ours: refused, and never touched.
    LookAlike(String),
    /// Somebody else's.
    Foreign,
}

/// Judges `network`, where the default network's bridge is `default_bridge`.
#[must_use]
pub fn judge(network: &engine::Network, default_bridge: &str) -> Verdict {
    let labelled = network.labels.get(LABEL).is_some_and(|value| value == LABEL_VALUE);
    if !labelled && !claims_to_be_managed(&network.name) {
        let bridge = network.options.get(BRIDGE_NAME_OPTION);
        // Somebody else's network on a bridge of ours: it would be filtered, but nobody there is known.
        return match bridge {
            Some(bridge) if bridge == default_bridge || bridge.starts_with("oc-") => {
                Verdict::LookAlike(format!("it uses the bridge name {bridge}, which is reserved"))
            }
            _ => Verdict::Foreign,
        };
    }
    match check(network, labelled, default_bridge) {
        Ok(managed) => Verdict::Managed(managed),
        Err(reason) => Verdict::LookAlike(reason),
    }
}

fn check(network: &engine::Network, labelled: bool, default_bridge: &str) -> Result<ManagedNetwork, String> {
    if !labelled {
        return Err(format!("it has no label {LABEL}={LABEL_VALUE}"));
    }
    if !is_network_name(&network.name) {
        return Err("its name is not outcall- and 1 to 64 of A-Z a-z 0-9 _ -".to_owned());
    }
    if network.driver != "bridge" || network.scope != "local" {
        return Err(format!("its driver is {} ({}), not bridge (local)", network.driver, network.scope));
    }
    let bridge = bridge_of(&network.name, default_bridge);
    match network.options.get(BRIDGE_NAME_OPTION) {
        Some(found) if *found == bridge => {}
        Some(found) => return Err(format!("its bridge is {found}, not {bridge}")),
        None => return Err(format!("its bridge has a name of Docker's choice, not {bridge}")),
    }
    if network.options.get(MASQUERADE_OPTION).map(String::as_str) != Some("false") {
        return Err("Docker masquerades it".to_owned());
    }
    if network.enable_ipv6 {
        return Err("IPv6 is on".to_owned());
    }
    let [pool] = network.ipam.config.as_slice() else {
        return Err(format!("it has {} address pools, not 1", network.ipam.config.len()));
    };
    let subnet: Ipv4Net = pool.subnet.parse().map_err(|_| format!("its subnet {:?} is not IPv4", pool.subnet))?;
    if !is_rfc1918(subnet) {
        return Err(format!("its subnet {subnet} is not private"));
    }
    let gateway = if pool.gateway.is_empty() {
        first_gateway(subnet)
    } else {
        check_gateway(&pool.gateway, subnet).map_err(|error| error.to_string())?
    };
    Ok(ManagedNetwork { name: network.name.clone(), id: network.id.clone(), bridge, subnet, gateway })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> engine::Network {
        serde_json::from_str(
            r#"{"Name":"outcall-default","Id":"792b","Scope":"local","Driver":"bridge","EnableIPv6":false,
            "IPAM":{"Config":[{"Subnet":"10.200.0.0/24","Gateway":"10.200.0.1"}]},
            "Options":{"com.docker.network.bridge.enable_ip_masquerade":"false","com.docker.network.bridge.name":"outcall0"},
            "Labels":{"managed-by":"outcalld"}}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_network_that_we_made_is_found_again() {
        let Verdict::Managed(network) = judge(&ours(), "outcall0") else { panic!("refused") };
        assert_eq!((network.bridge.as_str(), network.gateway.to_string().as_str()), ("outcall0", "10.200.0.1"));
    }

    #[test]
    fn each_deviation_makes_a_look_alike() {
        type Change = (&'static str, fn(&mut engine::Network));
        let changes: [Change; 9] = [
            ("no label", |n| n.labels.clear()),
            ("driver", |n| n.driver = "macvlan".to_owned()),
            ("bridge", |n| drop(n.options.insert(BRIDGE_NAME_OPTION.to_owned(), "br-1".to_owned()))),
            ("Docker's choice", |n| drop(n.options.remove(BRIDGE_NAME_OPTION))),
            ("masquerades", |n| drop(n.options.remove(MASQUERADE_OPTION))),
            ("IPv6", |n| n.enable_ipv6 = true),
            ("pools", |n| n.ipam.config.clear()),
            ("private", |n| n.ipam.config[0].subnet = "8.8.8.0/24".to_owned()),
            ("name", |n| n.name = "mine".to_owned()),
        ];
        for (expected, change) in changes {
            let mut network = ours();
            change(&mut network);
            let Verdict::LookAlike(reason) = judge(&network, "outcall0") else { panic!("{expected} passed") };
            assert!(reason.contains(expected), "{expected}: {reason}");
        }
        assert!(matches!(judge(&ours(), "outcall1"), Verdict::LookAlike(_)));
    }

    #[test]
    fn other_networks_are_foreign_unless_they_take_our_bridge() {
        let mut network = ours();
        network.labels.clear();
        network.name = "web".to_owned();
        assert!(matches!(judge(&network, "outcall0"), Verdict::LookAlike(_)));
        network.options.clear();
        assert_eq!(judge(&network, "outcall0"), Verdict::Foreign);
    }
}
