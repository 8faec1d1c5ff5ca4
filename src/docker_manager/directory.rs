//! Who is behind an address: the directory of containers on managed networks.
//!
//! A plain value, published inside the snapshot. Made by the Docker manager from Docker's own answers; nothing an
//! agent says goes into it.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

/// An IPv4 network in CIDR notation, host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Net {
    address: Ipv4Addr,
    prefix: u8,
}

/// Why a text is no [`Ipv4Net`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ipv4NetError {
    /// Not `a.b.c.d/n`.
    Syntax,
    /// Bits below the prefix are set; the field is the network meant.
    HostBits(Ipv4Net),
}

impl Ipv4Net {
    /// The network of `address` with a prefix of `prefix` bits (0 to 32; more counts as 32); host bits are cleared.
    #[must_use]
    pub fn of(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Ipv4Net { address: Ipv4Addr::from_bits(address.to_bits() & Self::mask(prefix)), prefix }
    }

    /// The first address.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// The prefix length in bits.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The last address (the broadcast address of a subnet).
    #[must_use]
    pub fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !Self::mask(self.prefix))
    }

    /// True when `address` lies in this network.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & Self::mask(self.prefix) == self.address.to_bits()
    }

    /// True when the two networks share an address.
    #[must_use]
    pub fn overlaps(self, other: Ipv4Net) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    fn mask(prefix: u8) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
    }
}

impl std::str::FromStr for Ipv4Net {
    type Err = Ipv4NetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = text.split_once('/').ok_or(Ipv4NetError::Syntax)?;
        let address: Ipv4Addr = address.parse().map_err(|_| Ipv4NetError::Syntax)?;
        let digits = !prefix.is_empty() && prefix.len() <= 2 && prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix: u8 = if digits { prefix.parse().map_err(|_| Ipv4NetError::Syntax)? } else { 33 };
        if prefix > 32 {
            return Err(Ipv4NetError::Syntax);
        }
        let network = Ipv4Net::of(address, prefix);
        if network.address == address { Ok(network) } else { Err(Ipv4NetError::HostBits(network)) }
    }
}

impl std::fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A managed Docker network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedNetwork {
    /// Docker's name, `outcall-…`.
    pub name: String,
    /// Docker's id, 64 hex digits.
    pub id: String,
    /// The Linux bridge.
    pub bridge: String,
    /// The subnet containers get their addresses from.
    pub subnet: Ipv4Net,
    /// The bridge's own address: DNS and proxy of this network.
    pub gateway: Ipv4Addr,
}

/// A container's attachment to a managed network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The container's id, 64 hex digits.
    pub container_id: Arc<str>,
    /// The container's exact name, without Docker's leading slash (`agent.container` of rules).
    pub container: Arc<str>,
    /// The name without a trailing `-digits` (`agent.name` of rules).
    pub agent: Arc<str>,
    /// The network.
    pub network: Arc<ManagedNetwork>,
    /// Its address there.
    pub address: Ipv4Addr,
    /// Its MAC address there.
    pub mac: [u8; 6],
    /// The path of the network namespace, `/var/run/docker/netns/…`; empty when Docker does not say.
    pub sandbox_key: String,
    /// The process id of the container's init in the daemon's pid namespace; 0 when Docker does not say.
    pub pid: i32,
}

/// The directory.
#[derive(Clone, Debug)]
pub struct Directory {
    /// When the question to Docker that this answers began: an address that is unknown here was unknown then.
    pub as_of: Instant,
    /// Whether Docker has told of every managed network: before that, who is not here may be there all the same.
    pub read: bool,
    /// The managed networks, by name.
    pub networks: Vec<Arc<ManagedNetwork>>,
    /// Container endpoints by their address.
    pub endpoints: HashMap<Ipv4Addr, Arc<Endpoint>>,
}

impl Directory {
    /// A directory that knows nobody.
    #[must_use]
    pub fn empty(as_of: Instant) -> Self {
        Directory { as_of, read: false, networks: Vec::new(), endpoints: HashMap::new() }
    }

    /// The managed network that `address` belongs to.
    #[must_use]
    pub fn network_of(&self, address: Ipv4Addr) -> Option<&Arc<ManagedNetwork>> {
        self.networks.iter().find(|network| network.subnet.contains(address))
    }
}

/// `agent.name` of a container's name: without a trailing `-digits`.
///
/// ```
/// # use outcall::docker_manager::agent_name;
/// assert_eq!(agent_name("writer-12"), "writer");
/// assert_eq!(agent_name("writer-v2"), "writer-v2");
/// assert_eq!(agent_name("-7"), "-7");
/// ```
#[must_use]
pub fn agent_name(container: &str) -> &str {
    match container.rsplit_once('-') {
        Some((name, digits))
            if !name.is_empty() && !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) =>
        {
            name
        }
        _ => container,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_parsed_strictly() {
        assert_eq!("10.200.0.0/16".parse::<Ipv4Net>().unwrap().to_string(), "10.200.0.0/16");
        assert_eq!("0.0.0.0/0".parse::<Ipv4Net>().unwrap().last(), Ipv4Addr::BROADCAST);
        assert!(matches!("10.200.0.1/16".parse::<Ipv4Net>(), Err(Ipv4NetError::HostBits(n)) if n.prefix() == 16));
        for bad in ["", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0/8", "::/0", "10.0.0.0/008"] {
            assert_eq!(bad.parse::<Ipv4Net>(), Err(Ipv4NetError::Syntax), "{bad}");
        }
    }

    #[test]
    fn networks_know_what_they_contain() {
        let net: Ipv4Net = "10.200.3.0/24".parse().unwrap();
        assert!(net.contains(Ipv4Addr::new(10, 200, 3, 255)));
        assert!(!net.contains(Ipv4Addr::new(10, 200, 4, 0)));
        assert!(net.overlaps("10.200.0.0/16".parse().unwrap()));
        assert!(!net.overlaps("10.200.4.0/24".parse().unwrap()));
    }
}
