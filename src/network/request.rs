//! Subnets and gateways that an operator asks for: parsed and checked before anything is touched.

use std::fmt;
use std::net::Ipv4Addr;

use crate::docker_manager::{Ipv4Net, Ipv4NetError};

/// The longest prefix of a network: a /29 has room for the gateway and five containers.
const LONGEST_PREFIX: u8 = 29;

/// Why a subnet or gateway is refused; each says what is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// Not `a.b.c.d/n`.
    Syntax(String),
    /// Host bits are set; the field is the network meant.
    HostBits(String, Ipv4Net),
    /// Not inside a private range.
    NotPrivate(Ipv4Net),
    /// No room for containers.
    TooSmall(Ipv4Net),
    /// Not an IPv4 address.
    GatewaySyntax(String),
    /// Not a host address of its subnet.
    GatewayOutside(Ipv4Addr, Ipv4Net),
    /// A gateway without the subnet that it lies in.
    GatewayAlone,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddressError::Syntax(text) => write!(f, "subnet {text:?} is not a.b.c.d/n"),
            AddressError::HostBits(text, meant) => write!(f, "subnet {text} has host bits set: use {meant}"),
            AddressError::NotPrivate(subnet) => {
                write!(f, "subnet {subnet} is not private: use one inside 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16")
            }
            AddressError::TooSmall(subnet) => {
                write!(f, "subnet {subnet} has no room for containers: use a prefix of at most /{LONGEST_PREFIX}")
            }
            AddressError::GatewaySyntax(text) => write!(f, "gateway {text:?} is no IPv4 address"),
            AddressError::GatewayOutside(gateway, subnet) => {
                write!(f, "gateway {gateway} is no host address of {subnet}")
            }
            AddressError::GatewayAlone => f.write_str("a gateway without a subnet: give both, or neither"),
        }
    }
}

impl std::error::Error for AddressError {}

/// The subnet that `text` names.
///
/// # Errors
/// [`AddressError`] for all that a managed network cannot have.
pub fn check_subnet(text: &str) -> Result<Ipv4Net, AddressError> {
    let shown = || text.chars().take(40).collect::<String>();
    let subnet: Ipv4Net = text.parse().map_err(|error| match error {
        Ipv4NetError::Syntax => AddressError::Syntax(shown()),
        Ipv4NetError::HostBits(meant) => AddressError::HostBits(shown(), meant),
    })?;
    if !is_rfc1918(subnet) {
        return Err(AddressError::NotPrivate(subnet));
    }
    if subnet.prefix() > LONGEST_PREFIX {
        return Err(AddressError::TooSmall(subnet));
    }
    Ok(subnet)
}

/// The gateway that `text` names inside `subnet`: neither its first nor its last address.
///
/// # Errors
/// [`AddressError::GatewaySyntax`], [`AddressError::GatewayOutside`].
pub fn check_gateway(text: &str, subnet: Ipv4Net) -> Result<Ipv4Addr, AddressError> {
    let gateway: Ipv4Addr = text.parse().map_err(|_| AddressError::GatewaySyntax(text.chars().take(40).collect()))?;
    let host = subnet.contains(gateway) && gateway != subnet.address() && gateway != subnet.last();
    if host { Ok(gateway) } else { Err(AddressError::GatewayOutside(gateway, subnet)) }
}

/// The first host address of `subnet`.
#[must_use]
pub fn first_gateway(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from_bits(subnet.address().to_bits().wrapping_add(1))
}

/// True when all of `subnet` lies in one of the ranges of RFC 1918.
#[must_use]
pub fn is_rfc1918(subnet: Ipv4Net) -> bool {
    let ranges = [
        Ipv4Net::of(Ipv4Addr::new(10, 0, 0, 0), 8),
        Ipv4Net::of(Ipv4Addr::new(172, 16, 0, 0), 12),
        Ipv4Net::of(Ipv4Addr::new(192, 168, 0, 0), 16),
    ];
    ranges.iter().any(|range| range.contains(subnet.address()) && range.prefix() <= subnet.prefix())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_private_networks_with_room() {
        assert_eq!(check_subnet("10.9.0.0/24").unwrap().to_string(), "10.9.0.0/24");
        assert!(check_subnet("192.168.0.0/29").is_ok());
        assert!(
            matches!(check_subnet("10.9.0.1/24"), Err(AddressError::HostBits(_, meant)) if meant.to_string() == "10.9.0.0/24")
        );
        assert!(matches!(check_subnet("10.0.0.0/7"), Err(AddressError::NotPrivate(_) | AddressError::HostBits(..))));
        assert!(matches!(check_subnet("172.16.0.0/11"), Err(AddressError::HostBits(..) | AddressError::NotPrivate(_))));
        assert!(matches!(check_subnet("8.8.8.0/24"), Err(AddressError::NotPrivate(_))));
        assert!(matches!(check_subnet("10.0.0.0/30"), Err(AddressError::TooSmall(_))));
        assert!(matches!(check_subnet("fd00::/64"), Err(AddressError::Syntax(_))));
    }

    #[test]
    fn a_gateway_is_a_host_of_its_subnet() {
        let subnet = check_subnet("10.9.0.0/24").unwrap();
        assert_eq!(check_gateway("10.9.0.254", subnet).unwrap(), Ipv4Addr::new(10, 9, 0, 254));
        assert_eq!(first_gateway(subnet), Ipv4Addr::new(10, 9, 0, 1));
        for bad in ["10.9.0.0", "10.9.0.255", "10.9.1.1"] {
            assert!(matches!(check_gateway(bad, subnet), Err(AddressError::GatewayOutside(..))), "{bad}");
        }
        assert!(matches!(check_gateway("10.9.0.01x", subnet), Err(AddressError::GatewaySyntax(_))));
    }
}
