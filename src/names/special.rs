//! Special-purpose addresses: never connected to nor answered unless a rule says `allow_private_ips: true`.
//!
//! The IANA IPv4 and IPv6 Special-Purpose Address Registries, plus multicast, and every IPv6 form that embeds an
//! IPv4 address is judged by what it embeds. For IPv6 the direction is the other way round as well: only global
//! unicast space (2000::/3) can be ordinary at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What kind of address it is; the name is a reason code for events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialPurpose {
    /// 0.0.0.0/8, ::
    Unspecified,
    /// RFC 1918, fc00::/7, fec0::/10.
    Private,
    /// 100.64.0.0/10 (RFC 6598).
    SharedCgnat,
    /// 127.0.0.0/8, ::1.
    Loopback,
    /// 169.254.0.0/16, fe80::/10; the cloud metadata services are here.
    LinkLocal,
    /// 224.0.0.0/4, ff00::/8.
    Multicast,
    /// Documentation prefixes.
    Documentation,
    /// 198.18.0.0/15, 2001:2::/48.
    Benchmarking,
    /// Everything else that the registries set apart, 240.0.0.0/4 and unassigned IPv6 space.
    Reserved,
}

impl SpecialPurpose {
    /// A short code for events and messages.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            SpecialPurpose::Unspecified => "unspecified",
            SpecialPurpose::Private => "private",
            SpecialPurpose::SharedCgnat => "cgnat",
            SpecialPurpose::Loopback => "loopback",
            SpecialPurpose::LinkLocal => "link_local",
            SpecialPurpose::Multicast => "multicast",
            SpecialPurpose::Documentation => "documentation",
            SpecialPurpose::Benchmarking => "benchmarking",
            SpecialPurpose::Reserved => "reserved",
        }
    }
}

/// The registry entry that `address` falls under, `None` for an ordinary global unicast address.
#[must_use]
pub fn special_purpose(address: IpAddr) -> Option<SpecialPurpose> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    }
}

fn special_v4(address: Ipv4Addr) -> Option<SpecialPurpose> {
    use SpecialPurpose as S;
    match address.octets() {
        [0, ..] => Some(S::Unspecified),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Some(S::Private),
        [100, 64..=127, ..] => Some(S::SharedCgnat),
        [127, ..] => Some(S::Loopback),
        [169, 254, ..] => Some(S::LinkLocal),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Some(S::Documentation),
        [192, 0, 0, _] | [192, 31, 196, _] | [192, 52, 193, _] | [192, 175, 48, _] | [192, 88, 99, _] => {
            Some(S::Reserved)
        }
        [198, 18..=19, ..] => Some(S::Benchmarking),
        [224..=239, ..] => Some(S::Multicast),
        [240..=255, ..] => Some(S::Reserved),
        _ => None,
    }
}

fn special_v6(address: Ipv6Addr) -> Option<SpecialPurpose> {
    use SpecialPurpose as S;
    let s = address.segments();
    if address.is_unspecified() {
        return Some(S::Unspecified);
    }
    if address.is_loopback() {
        return Some(S::Loopback);
    }
    // An embedded IPv4 address counts twice: it may itself be special, and the form is never an ordinary one.
    if let Some(embedded) = embedded_v4(s) {
        return Some(special_v4(embedded).unwrap_or(S::Reserved));
    }
    match s {
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Some(S::Private),
        [0xfe80..=0xfebf, ..] => Some(S::LinkLocal),
        [0xff00..=0xffff, ..] => Some(S::Multicast),
        [0x2001, 0x0db8, ..] | [0x3fff, 0x0000..=0x0fff, ..] => Some(S::Documentation),
        [0x2001, 0x0002, 0, ..] => Some(S::Benchmarking),
        // 2001::/23 is IETF protocol assignments, Teredo among them; 2620:4f:8000::/48 is AS112.
        [0x2001, 0x0000..=0x01ff, ..] | [0x2620, 0x004f, 0x8000, ..] => Some(S::Reserved),
        [0x2000..=0x3fff, ..] => None,
        _ => Some(S::Reserved),
    }
}

/// The IPv4 address inside a v4-mapped, v4-compatible, v4-translated, NAT64 (RFC 6052, RFC 8215) or 6to4 address.
fn embedded_v4(s: [u16; 8]) -> Option<Ipv4Addr> {
    let from = |high: u16, low: u16| Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match s {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => from(high, low),
        [0x0064, 0xff9b, 0, 0, 0, 0, high, low] | [0x0064, 0xff9b, 1, _, _, _, high, low] => from(high, low),
        [0x2002, high, low, ..] => from(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Option<&'static str> {
        special_purpose(text.parse().unwrap()).map(SpecialPurpose::code)
    }

    #[test]
    fn ordinary_addresses_pass() {
        for ordinary in
            ["1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1", "192.0.1.1"]
        {
            assert_eq!(code(ordinary), None, "{ordinary}");
        }
    }

    #[test]
    fn special_addresses_do_not() {
        let cases = [
            ("0.0.0.0", "unspecified"),
            ("10.1.2.3", "private"),
            ("172.31.255.255", "private"),
            ("192.168.0.1", "private"),
            ("100.64.0.1", "cgnat"),
            ("127.8.8.8", "loopback"),
            ("169.254.169.254", "link_local"),
            ("224.0.0.251", "multicast"),
            ("255.255.255.255", "reserved"),
            ("192.0.2.9", "documentation"),
            ("198.19.0.1", "benchmarking"),
            ("192.88.99.1", "reserved"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("fd00:ec2::254", "private"),
            ("fe80::1", "link_local"),
            ("ff02::1", "multicast"),
            ("::ffff:10.0.0.1", "private"),
            ("::ffff:1.1.1.1", "reserved"),
            ("::127.0.0.1", "loopback"),
            ("64:ff9b::169.254.169.254", "link_local"),
            ("64:ff9b:1::a00:1", "private"),
            ("2002:7f00:1::", "loopback"),
            ("2001:0:1::", "reserved"),
            ("2001:db8::1", "documentation"),
            ("4000::1", "reserved"),
            ("3fff:1::", "documentation"),
            ("::ffff:0:127.0.0.1", "loopback"),
        ];
        for (address, expected) in cases {
            assert_eq!(code(address), Some(expected), "{address}");
        }
    }
}
