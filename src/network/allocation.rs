//! The first free /24 of the block.

use std::fmt;

use crate::docker_manager::Ipv4Net;

/// Every automatic network is a /24.
const SUBNET_PREFIX: u8 = 24;

/// A range that is in use, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupied {
    /// The range.
    pub subnet: Ipv4Net,
    /// A Docker network's name, or a route of the host.
    pub by: String,
}

/// No subnet was free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocationError {
    /// Where it was looked for.
    pub block: Ipv4Net,
}

impl fmt::Display for AllocationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no available subnets in {}: remove a network, or give a larger --subnet-block", self.block)
    }
}

impl std::error::Error for AllocationError {}

/// The first /24 of `block` that overlaps nothing in `networks` (Docker's) or `routes` (the host's).
///
/// A route that is as wide as the block or wider says nothing about a /24 inside it (a default route, a VPN's
/// 10.0.0.0/8): the connected route of the new bridge is more specific. Such routes are not counted.
///
/// # Errors
/// [`AllocationError`] when the block is full.
pub fn allocate(block: Ipv4Net, networks: &[Occupied], routes: &[Ipv4Net]) -> Result<Ipv4Net, AllocationError> {
    let routes = routes.iter().copied().filter(|route| route.prefix() > block.prefix());
    let occupied: Vec<Ipv4Net> = networks.iter().map(|network| network.subnet).chain(routes).collect();
    let step = 1u64 << (32 - SUBNET_PREFIX);
    let first = u64::from(block.address().to_bits());
    let last = u64::from(block.last().to_bits());
    let mut start = first;
    while start + step - 1 <= last {
        // `start` is at most `last`, which is 32 bits wide.
        let candidate = Ipv4Net::of(std::net::Ipv4Addr::from_bits(start as u32), SUBNET_PREFIX);
        match occupied.iter().find(|taken| taken.overlaps(candidate)) {
            None => return Ok(candidate),
            // Skip all of what is in the way; a taken range that is smaller than a /24 skips one /24.
            Some(taken) => start = (u64::from(taken.last().to_bits()) / step + 1) * step,
        }
    }
    Err(AllocationError { block })
}

/// The Docker network that `subnet` would overlap.
#[must_use]
pub fn overlapping(subnet: Ipv4Net, networks: &[Occupied]) -> Option<&Occupied> {
    networks.iter().find(|network| network.subnet.overlaps(subnet))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn taken(texts: &[&str]) -> Vec<Occupied> {
        texts.iter().map(|text| Occupied { subnet: net(text), by: (*text).to_owned() }).collect()
    }

    #[test]
    fn the_first_gap_is_taken() {
        let block = net("10.200.0.0/16");
        assert_eq!(allocate(block, &[], &[]), Ok(net("10.200.0.0/24")));
        assert_eq!(allocate(block, &taken(&["10.200.0.0/24", "10.200.2.0/24"]), &[]), Ok(net("10.200.1.0/24")));
        assert_eq!(allocate(block, &taken(&["10.200.0.0/20"]), &[]), Ok(net("10.200.16.0/24")));
        assert_eq!(allocate(block, &taken(&["10.200.0.128/28"]), &[]), Ok(net("10.200.1.0/24")));
        assert_eq!(allocate(block, &[], &[net("10.200.0.0/23")]), Ok(net("10.200.2.0/24")));
    }

    #[test]
    fn a_route_wider_than_the_block_takes_nothing_but_a_network_does() {
        let block = net("10.200.0.0/16");
        assert_eq!(allocate(block, &[], &[net("10.0.0.0/8"), net("0.0.0.0/0")]), Ok(net("10.200.0.0/24")));
        assert_eq!(allocate(block, &taken(&["10.0.0.0/8"]), &[]), Err(AllocationError { block }));
    }

    #[test]
    fn a_full_block_says_so() {
        let block = net("192.168.254.0/23");
        let full = taken(&["192.168.254.0/24", "192.168.255.0/24"]);
        let error = allocate(block, &full, &[]).unwrap_err();
        assert!(error.to_string().starts_with("no available subnets in 192.168.254.0/23"));
        assert_eq!(allocate(net("10.1.2.0/24"), &[], &[]), Ok(net("10.1.2.0/24")));
    }

    #[test]
    fn an_overlap_names_the_network() {
        let networks = taken(&["172.17.0.0/16"]);
        assert_eq!(overlapping(net("172.17.9.0/24"), &networks).map(|o| o.by.as_str()), Some("172.17.0.0/16"));
        assert_eq!(overlapping(net("172.18.0.0/24"), &networks), None);
    }

    proptest::proptest! {
        #[test]
        fn what_is_allocated_is_inside_and_free(ranges in proptest::collection::vec((0u32..65536, 18u8..=30), 0..40)) {
            let block = net("10.200.0.0/16");
            let occupied: Vec<Occupied> = ranges
                .iter()
                .map(|(low, prefix)| Occupied {
                    subnet: Ipv4Net::of(std::net::Ipv4Addr::from_bits(0x0ac8_0000 | low), *prefix),
                    by: String::new(),
                })
                .collect();
            if let Ok(subnet) = allocate(block, &occupied, &[]) {
                proptest::prop_assert!(block.contains(subnet.address()) && subnet.prefix() == 24);
                proptest::prop_assert!(overlapping(subnet, &occupied).is_none());
            }
        }
    }
}
