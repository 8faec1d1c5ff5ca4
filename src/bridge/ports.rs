//! Which veth is whose: the host side of a container's veth, found by the namespace that its other end is in.
//!
//! Owns: the match of endpoints with links, as a pure function. Does not own: asking the kernel (`links.rs`), or
//! what follows from a match (`identity.rs`).
//!
//! A container cannot choose this identity: the number of the other end's namespace comes from the kernel, the path
//! of the container's namespace from Docker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::docker_manager::Endpoint;

use super::links::Link;

/// An endpoint and the kernel's number for its namespace.
pub(super) struct Located {
    pub endpoint: Arc<Endpoint>,
    pub namespace: i32,
}

/// A veth that belongs to an endpoint.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub endpoint: Arc<Endpoint>,
    pub index: u32,
    pub name: String,
}

/// Whether two endpoints are the same identity: everything that a filter is made of, and whose it is.
pub(super) fn same_identity(one: &Endpoint, other: &Endpoint) -> bool {
    one.container_id == other.container_id
        && one.address == other.address
        && one.mac == other.mac
        && one.network.bridge == other.network.bridge
}

/// Finds the veth of each located endpoint among `links`, leaving out those `taken`. `homes` says on which bridge a
/// veth was last seen. One that has several candidates is not matched: it stays without traffic.
pub(super) fn claim(
    links: &[Link],
    bridges: &BTreeMap<String, u32>,
    taken: &BTreeSet<u32>,
    homes: &BTreeMap<u32, String>,
    located: &[Located],
) -> Vec<Claim> {
    let mut taken = taken.clone();
    let mut claims = Vec::new();
    for Located { endpoint, namespace } in located {
        let Some(bridge) = bridges.get(&endpoint.network.bridge) else { continue };
        let candidates: Vec<&Link> = links
            .iter()
            .filter(|link| link.kind == "veth" && link.peer_namespace == Some(*namespace))
            .filter(|link| !taken.contains(&link.index))
            .collect();
        // On its bridge; or on none, as after its bridge was taken away: then on the one where it was.
        let here = |link: &Link| link.master == Some(*bridge);
        let lost = |link: &Link| link.master.is_none();
        let home = |link: &Link| lost(link) && homes.get(&link.index) == Some(&endpoint.network.bridge);
        let fits: &dyn Fn(&Link) -> bool = if candidates.iter().any(|link| here(link)) {
            &here
        } else if candidates.iter().any(|link| home(link)) {
            &home
        } else {
            &lost
        };
        let mut fitting = candidates.iter().filter(|link| fits(link));
        if let (Some(link), None) = (fitting.next(), fitting.next()) {
            taken.insert(link.index);
            claims.push(Claim { endpoint: Arc::clone(endpoint), index: link.index, name: link.name.clone() });
        }
    }
    claims
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker_manager::ManagedNetwork;

    fn endpoint(bridge: &str, last: u8) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            container_id: format!("{last:064}").into(),
            container: "agent-1".into(),
            agent: "agent".into(),
            network: Arc::new(ManagedNetwork {
                name: "outcall-default".to_owned(),
                id: String::new(),
                bridge: bridge.to_owned(),
                subnet: "10.200.0.0/24".parse().unwrap(),
                gateway: "10.200.0.1".parse().unwrap(),
            }),
            address: std::net::Ipv4Addr::new(10, 200, 0, last),
            mac: [2, 0, 0, 0, 0, last],
            sandbox_key: String::new(),
            pid: 1,
        })
    }

    fn veth(index: u32, master: Option<u32>, namespace: i32) -> Link {
        Link {
            index,
            name: format!("veth{index}"),
            kind: "veth".to_owned(),
            master,
            peer_namespace: Some(namespace),
            up: true,
            isolated: false,
            mac: Vec::new(),
        }
    }

    fn claimed(links: &[Link], endpoints: &[(Arc<Endpoint>, i32)]) -> Vec<u32> {
        let bridges = BTreeMap::from([("outcall0".to_owned(), 3), ("oc-1".to_owned(), 4)]);
        let located: Vec<Located> = endpoints
            .iter()
            .map(|(endpoint, namespace)| Located { endpoint: Arc::clone(endpoint), namespace: *namespace })
            .collect();
        let homes = BTreeMap::from([(20, "outcall0".to_owned()), (21, "oc-1".to_owned())]);
        claim(links, &bridges, &BTreeSet::new(), &homes, &located).iter().map(|claim| claim.index).collect()
    }

    #[test]
    fn the_veth_that_leads_into_the_namespace_is_claimed() {
        let links = [veth(10, Some(3), 0), veth(11, Some(3), 1), veth(12, Some(9), 1)];
        assert_eq!(claimed(&links, &[(endpoint("outcall0", 2), 1)]), [11]);
        assert_eq!(claimed(&links, &[(endpoint("outcall0", 2), 7)]), [0u32; 0]);
    }

    #[test]
    fn a_container_on_two_managed_networks_has_each_its_own() {
        let links = [veth(10, Some(4), 1), veth(11, Some(3), 1)];
        assert_eq!(claimed(&links, &[(endpoint("outcall0", 2), 1), (endpoint("oc-1", 3), 1)]), [11, 10]);
    }

    #[test]
    fn a_veth_that_lost_its_bridge_is_claimed_unless_another_could_be_meant() {
        assert_eq!(claimed(&[veth(10, None, 1)], &[(endpoint("outcall0", 2), 1)]), [10]);
        assert!(claimed(&[veth(10, None, 1), veth(11, None, 1)], &[(endpoint("outcall0", 2), 1)]).is_empty());
        let both = [(endpoint("oc-1", 3), 1), (endpoint("outcall0", 2), 1)];
        assert_eq!(claimed(&[veth(20, None, 1), veth(21, None, 1)], &both), [21, 20]);
        assert!(claimed(&[veth(10, Some(99), 1)], &[(endpoint("outcall0", 2), 1)]).is_empty());
    }
}
