//! Whether this kernel has what the enforcement needs: asked by doing it, in a network namespace made for the question.
//!
//! Owns: the order of the questions, for `outcall doctor`. Does not own: how anything is done; that is the daemon's own
//! code, so that a yes here means the same as at a start.

use std::net::Ipv4Addr;
use std::time::Instant;

use nix::sched::{CloneFlags, unshare};

use super::BridgeConfig;
use super::conntrack::Conntrack;
use super::firewall::Firewall;
use super::kernel_log::KernelLog;
use super::links::Links;
use super::plan::PortPlan;

/// A feature, and what was refused.
pub type Probed = (&'static str, Option<String>);

/// The veth that is made for the question, and the address its filter is for.
const VETH: &str = "outcall-probe";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
const CONTAINER: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);
const CONTAINER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Asks for each feature in a fresh network namespace, which goes with this process: the host's is not touched.
///
/// # Errors
/// The namespace cannot be made (that takes CAP_SYS_ADMIN, which the daemon itself does not need).
pub fn probe(config: &BridgeConfig) -> Result<Vec<Probed>, nix::Error> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let said = |feature, result: Result<(), String>| (feature, result.err());
    // Each on its own, so that all that is missing is said at once.
    Ok(vec![
        said("nf_tables", super::lockdown(config).map_err(|error| error.to_string())),
        said("bridge", bridge(&config.bridge).map_err(|error| error.to_string())),
        said("veth", veth(&config.bridge).map_err(|error| error.to_string())),
        said("netdev ingress", ingress().map_err(|error| error.to_string())),
        said(
            "conntrack",
            Conntrack::open()
                .and_then(|mut conntrack| conntrack.end(|_| false))
                .map(|_| ())
                .map_err(|error| error.to_string()),
        ),
        said("nflog", KernelLog::open(Instant::now()).map(|_| ()).map_err(|error| error.to_string())),
    ])
}

fn index(links: &mut Links, name: &str) -> Result<u32, super::KernelError> {
    let found = links.all()?.into_iter().find(|link| link.name == name).map(|link| link.index);
    found.ok_or_else(|| super::KernelError::new(format!("find the link {name}"), nix::errno::Errno::ENODEV))
}

fn bridge(name: &str) -> Result<(), super::KernelError> {
    let mut links = Links::open()?;
    links.make_bridge(name)?;
    let bridge = index(&mut links, name)?;
    links.add_address(bridge, name, GATEWAY, 24)?;
    links.set_up(bridge, name, true)
}

fn veth(bridge: &str) -> Result<(), super::KernelError> {
    let mut links = Links::open()?;
    links.make_veth(VETH)?;
    let veth = index(&mut links, VETH)?;
    let bridge = index(&mut links, bridge)?;
    links.enslave(veth, VETH, bridge)?;
    links.isolate(veth, VETH)
}

fn ingress() -> Result<(), super::KernelError> {
    let veth = index(&mut Links::open()?, VETH)?;
    let port = PortPlan { index: veth, address: CONTAINER, mac: CONTAINER_MAC };
    Firewall::open()?.add_port(VETH, &port)
}
