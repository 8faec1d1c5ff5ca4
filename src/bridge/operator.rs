//! Flows that an operator opens by hand (`POST /rule/allow`): what may be asked for, and what is kept of it.
//!
//! Owns: the judgement of such a wish, as a function of the directory. Does not own: the kernel's side (`flows.rs`),
//! the file that outlives the daemon ([`crate::state`]).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::docker_manager::{Directory, Endpoint};
use crate::names::special_purpose;

use super::grants::GrantedFlow;
use super::readback::FlowKey;
use super::routing::is_this_host;

/// Flows that an operator may open for one container: names that it resolves keep three quarters of its room.
pub const MAX_OPERATED_PER_CONTAINER: usize = 64;
/// Flows that an operator may open in all: what one small file holds, and one listing shows.
pub const MAX_OPERATED: usize = 1024;
/// How long such a flow lasts at most.
pub const LONGEST: Duration = Duration::from_secs(86_400);
/// Hex digits of a container's id that name it, as Docker shows them, at least.
const SHORT_ID: usize = 12;

/// A transport protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// 6
    Tcp,
    /// 17
    Udp,
}

impl Protocol {
    /// Its IP protocol number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }

    /// `tcp` or `udp`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }

    /// By name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Protocol::Tcp, Protocol::Udp].into_iter().find(|protocol| protocol.name() == name)
    }

    /// By IP protocol number.
    #[must_use]
    pub fn numbered(number: u8) -> Option<Self> {
        [Protocol::Tcp, Protocol::Udp].into_iter().find(|protocol| protocol.number() == number)
    }
}

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorWish {
    /// A container's name, its id, or the first 12 digits or more of that.
    pub container: String,
    /// Its own address.
    pub source: Ipv4Addr,
    /// Where to.
    pub destination: Ipv4Addr,
    /// How.
    pub protocol: Protocol,
    /// Not 0.
    pub port: u16,
    /// How long new flows may begin; at most [`LONGEST`].
    pub lasts: Duration,
}

/// Which flow, and whose.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnedFlow {
    /// 64 hex digits.
    pub container_id: Arc<str>,
    /// The container's address.
    pub source: Ipv4Addr,
    /// Where to.
    pub destination: Ipv4Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// The port there.
    pub port: u16,
}

impl OwnedFlow {
    pub(super) fn new(container_id: &Arc<str>, key: FlowKey) -> Self {
        let FlowKey { source, destination, protocol, port } = key;
        OwnedFlow { container_id: Arc::clone(container_id), source, destination, protocol, port }
    }

    pub(super) fn key(&self) -> FlowKey {
        let OwnedFlow { source, destination, protocol, port, .. } = *self;
        FlowKey { source, destination, protocol, port }
    }
}

/// A flow that an operator opened, as it is kept over a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorGrant {
    /// Which.
    pub flow: OwnedFlow,
    /// The container's name when it was asked for.
    pub container: Arc<str>,
    /// When it was opened first.
    pub inserted_at: SystemTime,
    /// When new flows may no longer begin.
    pub expires_at: SystemTime,
}

/// An operator's flow that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// To be kept.
    pub grant: OperatorGrant,
    /// To be shown.
    pub shown: GrantedFlow,
    /// Whether the operator had not opened it already.
    pub new: bool,
}

/// Why it was not opened. Each kind is one HTTP status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperatorRefusal {
    /// 404
    Unknown(String),
    /// 409
    Conflict(String),
    /// 422
    Forbidden(String),
    /// 500
    Failed(String),
}

impl std::fmt::Display for OperatorRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (OperatorRefusal::Unknown(text)
        | OperatorRefusal::Conflict(text)
        | OperatorRefusal::Forbidden(text)
        | OperatorRefusal::Failed(text)) = self;
        f.write_str(text)
    }
}

/// Whose flow it would be, if it may be.
pub(super) fn judge(wish: &OperatorWish, directory: &Directory) -> Result<Arc<Endpoint>, OperatorRefusal> {
    let named = |endpoint: &&Arc<Endpoint>| {
        let id = &endpoint.container_id;
        *endpoint.container == *wish.container || wish.container.len() >= SHORT_ID && id.starts_with(&wish.container)
    };
    let own: Vec<&Arc<Endpoint>> = directory.endpoints.values().filter(named).collect();
    let Some(first) = own.first() else {
        let name = &wish.container;
        return Err(OperatorRefusal::Unknown(format!("no container `{name}` is on a managed network")));
    };
    if own.iter().any(|endpoint| endpoint.container_id != first.container_id) {
        let name = &wish.container;
        return Err(OperatorRefusal::Conflict(format!("`{name}` is more than one container; give its whole id")));
    }
    let Some(endpoint) = own.iter().find(|endpoint| endpoint.address == wish.source) else {
        let mut addresses: Vec<String> = own.iter().map(|endpoint| endpoint.address.to_string()).collect();
        addresses.sort();
        return Err(OperatorRefusal::Conflict(format!(
            "src_ip {} is not an address of {}, which has {}",
            wish.source,
            first.container,
            addresses.join(", ")
        )));
    };
    let destination = wish.destination;
    if let Some(kind) = special_purpose(IpAddr::V4(destination)) {
        return Err(OperatorRefusal::Forbidden(format!(
            "{destination} is a special-purpose address ({}): no grant by hand opens it; write a `direct_ip` rule \
             with `allow_private_ips: true` for its name",
            kind.code()
        )));
    }
    if is_this_host(IpAddr::V4(destination)) {
        return Err(OperatorRefusal::Forbidden(format!(
            "{destination} is this host's own address: containers reach nothing of the host but DNS and proxy of their gateway"
        )));
    }
    Ok(Arc::clone(endpoint))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::docker_manager::ManagedNetwork;

    fn directory(endpoints: &[(u8, &str, u8)]) -> Directory {
        let mut directory = Directory::empty(Instant::now());
        let network = Arc::new(ManagedNetwork {
            name: "outcall-default".to_owned(),
            id: String::new(),
            bridge: "outcall0".to_owned(),
            subnet: "10.200.0.0/24".parse().unwrap(),
            gateway: "10.200.0.1".parse().unwrap(),
        });
        for (id, name, last) in endpoints {
            let endpoint = Endpoint {
                container_id: format!("{id:064x}").into(),
                container: (*name).into(),
                agent: (*name).into(),
                network: Arc::clone(&network),
                address: Ipv4Addr::new(10, 200, 0, *last),
                mac: [2, 0, 0, 0, 0, *last],
                sandbox_key: String::new(),
                pid: 1,
            };
            directory.endpoints.insert(endpoint.address, Arc::new(endpoint));
        }
        directory
    }

    fn wish(container: &str, last: u8, destination: &str) -> OperatorWish {
        OperatorWish {
            container: container.to_owned(),
            source: Ipv4Addr::new(10, 200, 0, last),
            destination: destination.parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 443,
            lasts: Duration::from_secs(60),
        }
    }

    #[test]
    fn a_container_is_known_by_name_and_by_id() {
        let directory = directory(&[(1, "a-1", 2), (1, "a-1", 3), (2, "b", 4)]);
        for name in ["a-1", &format!("{:064x}", 1)] {
            assert_eq!(judge(&wish(name, 3, "8.8.8.8"), &directory).unwrap().address, Ipv4Addr::new(10, 200, 0, 3));
        }
        assert!(matches!(judge(&wish("a", 3, "8.8.8.8"), &directory), Err(OperatorRefusal::Unknown(_))));
        assert!(matches!(judge(&wish("00000000000", 2, "8.8.8.8"), &directory), Err(OperatorRefusal::Unknown(_))));
        assert!(matches!(judge(&wish("000000000000", 2, "8.8.8.8"), &directory), Err(OperatorRefusal::Conflict(_))));
    }

    #[test]
    fn the_source_is_the_containers_own_address() {
        let directory = directory(&[(1, "a-1", 2), (1, "a-1", 3), (2, "b", 4)]);
        for last in [4, 5] {
            let Err(OperatorRefusal::Conflict(text)) = judge(&wish("a-1", last, "8.8.8.8"), &directory) else {
                panic!("refused");
            };
            assert!(text.contains("10.200.0.2, 10.200.0.3"), "{text}");
        }
    }

    #[test]
    fn no_special_purpose_address_is_opened_by_hand() {
        let directory = directory(&[(1, "a-1", 2)]);
        for special in
            ["10.0.0.1", "127.0.0.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "0.0.0.0", "255.255.255.255"]
        {
            let refused = judge(&wish("a-1", 2, special), &directory);
            assert!(matches!(refused, Err(OperatorRefusal::Forbidden(_))), "{special}: {refused:?}");
        }
    }

    #[test]
    fn protocols_have_names_and_numbers() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            assert_eq!(Protocol::named(protocol.name()), Some(protocol));
            assert_eq!(Protocol::numbered(protocol.number()), Some(protocol));
        }
        assert_eq!((Protocol::named("icmp"), Protocol::numbered(1)), (None, None));
    }
}
