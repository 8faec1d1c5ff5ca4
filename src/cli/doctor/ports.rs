//! Whether the ports of DNS and proxy are free on the gateways.
//!
//! Owns: reading the kernel's lists of sockets (proc(5): /proc/net/udp, tcp and their IPv6 kin). Does not own: who the
//! gateways are; a socket on the wildcard address is in the way whatever they are.

use std::collections::HashSet;
use std::fs;

use super::{bad, good};
use crate::api::{DoctorVerdict, Finding, HostProbe};

/// Processes looked at for the owner of a socket.
const PROCESSES: usize = 65_536;
/// `TCP_LISTEN`, and the state of an unconnected UDP socket.
const LISTENING: [(&str, &str); 2] = [("tcp", "0A"), ("udp", "07")];

/// Looks for sockets in the way.
pub(super) fn look(probe: &HostProbe) -> Vec<Finding> {
    const PORTS: &str = "ports";
    if probe.running.is_some() {
        return vec![good(PORTS, "held by the daemon that runs")];
    }
    let wanted = [("DNS", probe.settings.dns_port, "udp"), ("DNS", probe.settings.dns_port, "tcp")]
        .into_iter()
        .chain(probe.settings.proxy_port.map(|port| ("proxy", port, "tcp")));
    let mut findings: Vec<Finding> = wanted
        .filter_map(|(who, port, protocol)| {
            let inodes = wildcard_sockets(protocol, port);
            if inodes.is_empty() {
                return None;
            }
            let owner = owner(&inodes).map(|name| format!(" by {name}")).unwrap_or_default();
            Some(bad(
                DoctorVerdict::Problem,
                PORTS,
                format!("{protocol} port {port} for {who} is taken on every address{owner}"),
                format!(
                    "bind that program to its own addresses, or use another port (--{}); 53 is redirected to it",
                    if who == "DNS" { "dns-port" } else { "proxy-addr" }
                ),
            ))
        })
        .collect();
    if findings.is_empty() {
        let proxy = probe.settings.proxy_port.map(|port| format!(" and {port}")).unwrap_or_default();
        findings.push(good(PORTS, format!("{}{proxy} are free", probe.settings.dns_port)));
    }
    findings
}

/// The inodes of sockets that wait on `port` at the wildcard address.
fn wildcard_sockets(protocol: &str, port: u16) -> HashSet<u64> {
    ["", "6"]
        .iter()
        .filter_map(|suffix| fs::read_to_string(format!("/proc/net/{protocol}{suffix}")).ok())
        .flat_map(|text| listed(&text, protocol, port))
        .collect()
}

fn listed(text: &str, protocol: &str, port: u16) -> Vec<u64> {
    let state = LISTENING.iter().find(|(name, _)| *name == protocol).map_or("", |(_, state)| *state);
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let (address, at) = words.get(1)?.split_once(':')?;
            let here = address.bytes().all(|digit| digit == b'0') && u16::from_str_radix(at, 16) == Ok(port);
            (here && words.get(3) == Some(&state)).then(|| words.get(9)?.parse().ok()).flatten()
        })
        .collect()
}

/// Name and id of a process that holds one of the sockets; takes root for others' processes.
fn owner(inodes: &HashSet<u64>) -> Option<String> {
    let processes = fs::read_dir("/proc").ok()?.flatten().take(PROCESSES);
    processes.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())).find_map(
        |entry| {
            let holds = fs::read_dir(entry.path().join("fd")).ok()?.flatten().any(|descriptor| {
                let target = fs::read_link(descriptor.path()).unwrap_or_default();
                let inode = target
                    .to_string_lossy()
                    .strip_prefix("socket:[")
                    .and_then(|rest| rest.strip_suffix(']')?.parse().ok());
                inode.is_some_and(|inode| inodes.contains(&inode))
            });
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            holds.then(|| format!("{} (pid {})", name.trim(), entry.file_name().to_string_lossy()))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
        0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n   \
        1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0\n   \
        2: 00000000:1F90 0100007F:8000 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0\n";

    #[test]
    fn only_a_listener_on_every_address_is_in_the_way() {
        assert_eq!(listed(TCP, "tcp", 8080), [4711]);
        assert!(listed(TCP, "tcp", 80).is_empty() && listed("", "udp", 53).is_empty());
    }
}
