//! Who may use DNS and proxy, and as whom. One judgement for both.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::{Directory, Endpoint};

/// A CIDR of `--extra-peers`, IPv4 or IPv6, host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerRange {
    first: u128,
    mask: u128,
}

impl std::str::FromStr for PeerRange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = text.split_once('/').ok_or("not ADDRESS/PREFIX")?;
        let address: IpAddr = address.parse().map_err(|_| "the part before '/' is no IP address")?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix: u32 = prefix.parse().map_err(|_| "the part after '/' is no prefix length")?;
        if prefix > bits {
            return Err("the prefix is longer than the address");
        }
        let mask = u128::MAX.checked_shl(bits - prefix).unwrap_or(0);
        let first = as_mapped(address);
        // The 96 bits before a v4-mapped address always count, so that 0.0.0.0/0 holds no IPv6 peer.
        if first & !mask != 0 {
            return Err("host bits are set");
        }
        Ok(PeerRange { first, mask })
    }
}

impl PeerRange {
    /// True when `address` lies in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        as_mapped(address) & self.mask == self.first
    }
}

fn as_mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Who is behind a peer address.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A container on a managed network.
    Container(Arc<Endpoint>),
    /// Allowed by `--extra-peers`, judged with an empty `agent.name`.
    Extra,
    /// On a managed network, but Docker has not been asked since it arrived: ask, and hold it meanwhile.
    Unasked,
    /// Nobody we serve.
    Stranger,
}

impl Peer {
    /// Judges `address`, whose packet arrived at `arrival`.
    #[must_use]
    pub fn identify(directory: &Directory, extra: &[PeerRange], address: IpAddr, arrival: Instant) -> Peer {
        if let IpAddr::V4(v4) = address.to_canonical() {
            if let Some(endpoint) = directory.endpoints.get(&v4) {
                return Peer::Container(Arc::clone(endpoint));
            }
            if let Some(network) = directory.network_of(v4) {
                let own = v4 == network.gateway;
                return if !own && directory.as_of < arrival { Peer::Unasked } else { Peer::Stranger };
            }
        }
        if extra.iter().any(|range| range.contains(address.to_canonical())) { Peer::Extra } else { Peer::Stranger }
    }

    /// The endpoint, for a container.
    #[must_use]
    pub fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        match self {
            Peer::Container(endpoint) => Some(endpoint),
            _ => None,
        }
    }

    /// `agent.*` of a served peer: a container's names, or empty strings for an extra peer.
    #[must_use]
    pub fn agent(&self) -> crate::rule_engine::Agent<'_> {
        match self.endpoint() {
            Some(endpoint) => {
                crate::rule_engine::Agent { name: Some(&endpoint.agent), container: Some(&endpoint.container) }
            }
            None => crate::rule_engine::Agent { name: Some(""), container: Some("") },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_their_own_family_only() {
        let loopback: PeerRange = "127.0.0.0/8".parse().unwrap();
        assert!(loopback.contains("127.9.9.9".parse().unwrap()));
        assert!(!loopback.contains("::1".parse().unwrap()));
        let all: PeerRange = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("8.8.8.8".parse().unwrap()) && !all.contains("2606::1".parse().unwrap()));
        assert_eq!("127.0.0.1/8".parse::<PeerRange>(), Err("host bits are set"));
        assert!("::1/128".parse::<PeerRange>().unwrap().contains("::1".parse().unwrap()));
    }

    #[test]
    fn an_unknown_address_of_a_managed_network_is_held_once() {
        let before = Instant::now();
        let mut directory = Directory::empty(before);
        let arrival = before + std::time::Duration::from_millis(1);
        let address: IpAddr = "10.200.0.9".parse().unwrap();
        assert!(matches!(Peer::identify(&directory, &[], address, arrival), Peer::Stranger));
        directory.networks.push(Arc::new(super::super::ManagedNetwork {
            name: "outcall-default".to_owned(),
            id: String::new(),
            bridge: "outcall0".to_owned(),
            subnet: "10.200.0.0/24".parse().unwrap(),
            gateway: "10.200.0.1".parse().unwrap(),
        }));
        assert!(matches!(Peer::identify(&directory, &[], address, arrival), Peer::Unasked));
        directory.as_of = arrival + std::time::Duration::from_millis(1);
        assert!(matches!(Peer::identify(&directory, &[], address, arrival), Peer::Stranger));
    }
}
