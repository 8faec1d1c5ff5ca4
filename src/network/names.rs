//! Names of managed networks and of their bridges.

use sha2::{Digest, Sha256};

/// The network that `--bridge` carries.
pub const DEFAULT_NETWORK: &str = "outcall-default";
/// What the name of every managed network starts with.
const PREFIX: &str = "outcall-";
/// Suffix of the default network.
const DEFAULT_SUFFIX: &str = "default";
/// The longest suffix.
const SUFFIX_CAP: usize = 64;

/// Docker's name of the network that a request means: a suffix, or the whole name; absent: the default network.
///
/// # Errors
/// What is wrong with the name.
pub fn network_name(requested: Option<&str>) -> Result<String, String> {
    let requested = requested.unwrap_or(DEFAULT_SUFFIX);
    let suffix = match requested.strip_prefix(PREFIX) {
        Some(rest) if !rest.is_empty() => rest,
        _ => requested,
    };
    if is_suffix(suffix) {
        return Ok(format!("{PREFIX}{suffix}"));
    }
    let shown: String = requested.chars().take(SUFFIX_CAP).collect();
    Err(format!("network name {shown:?} is not accepted: use 1 to {SUFFIX_CAP} of A-Z a-z 0-9 _ -"))
}

/// The MAC address of bridge `name`: locally administered, unicast, and the same whenever the bridge is made anew, so
/// that what containers remember of their gateway stays true. It is seen on this host's bridge only.
#[must_use]
pub fn bridge_mac(name: &str) -> [u8; 6] {
    let digest = Sha256::digest(format!("outcall bridge {name}"));
    [0x02, digest[0], digest[1], digest[2], digest[3], digest[4]]
}

/// True for a whole name that [`network_name`] could have made.
pub(super) fn is_network_name(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(is_suffix)
}

/// True for a name that claims to be ours.
pub(super) fn claims_to_be_managed(name: &str) -> bool {
    name.starts_with(PREFIX)
}

fn is_suffix(suffix: &str) -> bool {
    (1..=SUFFIX_CAP).contains(&suffix.len())
        && suffix.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// The bridge of the network `name`: `default_bridge` for the default network, else `oc-` and ten hex digits of the
/// SHA-256 of the whole name (13 bytes; an interface name holds 15).
#[must_use]
pub fn bridge_of(name: &str, default_bridge: &str) -> String {
    if name == DEFAULT_NETWORK {
        return default_bridge.to_owned();
    }
    let digest = Sha256::digest(name.as_bytes());
    let mut bridge = String::from("oc-");
    for byte in digest.iter().take(5) {
        bridge.push_str(&format!("{byte:02x}"));
    }
    bridge
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_and_the_whole_name_mean_the_same_network() {
        assert_eq!(network_name(None).unwrap(), DEFAULT_NETWORK);
        assert_eq!(network_name(Some("ci_1")).unwrap(), "outcall-ci_1");
        assert_eq!(network_name(Some("outcall-ci_1")).unwrap(), "outcall-ci_1");
        assert_eq!(network_name(Some("outcall-")).unwrap(), "outcall-outcall-");
        let longest = "a".repeat(64);
        assert!(network_name(Some(&longest)).is_ok());
        for bad in ["", "a b", "a/b", "é", "a.b", "a\n", &"a".repeat(65)] {
            assert!(network_name(Some(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bridge_names_come_from_the_whole_name() {
        assert_eq!(bridge_of("outcall-default", "outcall0"), "outcall0");
        assert_eq!(bridge_mac("outcall0"), bridge_mac("outcall0"));
        assert_ne!(bridge_mac("outcall0"), bridge_mac("oc-0123456789"));
        // printf outcall-x | sha256sum
        let bridge = bridge_of("outcall-x", "outcall0");
        assert_eq!(bridge, "oc-2df5f24712");
        assert_ne!(bridge, bridge_of("outcall-y", "outcall0"));
    }
}
