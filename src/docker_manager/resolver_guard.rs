//! Whether a container's names can be resolved past every rule.
//!
//! On a user-defined network resolv.conf names Docker's embedded resolver (127.0.0.11). It asks the servers of `--dns`
//! (or `dns` of daemon.json) from inside the container's namespace, through our filter. Without those it copies the
//! host's servers, and asks the ones on loopback from the *host's* namespace, where no rule of ours sees it; newer
//! Engines do that for IPv6 servers too when the network has no IPv6.
//!
//! Owns: reading the host's files, the judgement. Does not own: acting on it.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// Bytes of a host file that are read.
const FILE_CAP: u64 = 1 << 20;

/// The files that decide what the Engine's resolver does.
#[derive(Clone, Debug)]
pub struct HostFiles {
    /// The host's resolv.conf.
    pub resolv_conf: PathBuf,
    /// What the Engine reads instead when the former names systemd-resolved's stub alone.
    pub systemd_resolv_conf: PathBuf,
    /// The Engine's configuration, for its `dns`.
    pub daemon_json: PathBuf,
}

impl Default for HostFiles {
    fn default() -> Self {
        HostFiles {
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            systemd_resolv_conf: PathBuf::from("/run/systemd/resolve/resolv.conf"),
            daemon_json: PathBuf::from("/etc/docker/daemon.json"),
        }
    }
}

/// What the Engine falls back to for a container without `--dns`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostResolver {
    /// A server that the Engine would ask from the host's own namespace; `None`: all are asked from the container's.
    pub(super) past_the_filter: Option<IpAddr>,
    /// `dns` of daemon.json.
    pub(super) engine_dns: Vec<String>,
}

/// How a container resolves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DnsVerdict {
    /// Through its gateway.
    Filtered,
    /// Not through its gateway, but what it asks passes the filter (and is dropped there).
    Useless,
    /// Past every rule.
    Unsafe,
}

/// The server that Docker asks past every rule for a container without `--dns`, if there is one.
#[must_use]
pub fn resolver_trap(files: &HostFiles) -> Option<IpAddr> {
    let host = HostResolver::read(files);
    if host.engine_dns.is_empty() { host.past_the_filter } else { None }
}

impl HostResolver {
    /// Reads the files. What cannot be read or understood counts as unsafe, except that an absent daemon.json has no `dns`.
    pub(super) fn read(files: &HostFiles) -> Self {
        let servers = match read(&files.resolv_conf) {
            Ok(text) if nameservers(&text) == [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53))] => {
                // The Engine falls back to the stub itself when the other file is missing.
                read(&files.systemd_resolv_conf).map_or_else(|_| nameservers(&text), |other| nameservers(&other))
            }
            Ok(text) => nameservers(&text),
            // Without the file the Engine uses public servers of its own choice, from the container's namespace.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(_) => vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        };
        let past_the_filter =
            servers.into_iter().find(|server| server.to_canonical().is_loopback() || server.is_ipv6());
        let engine_dns = read(&files.daemon_json).map_or_else(|_| Vec::new(), |text| engine_dns(&text));
        HostResolver { past_the_filter, engine_dns }
    }

    /// Judges a container with these `--dns` on a network with this gateway.
    pub(super) fn judge(&self, dns: &[String], gateway: Ipv4Addr) -> DnsVerdict {
        let effective = if dns.is_empty() { &self.engine_dns } else { dns };
        let exact = matches!(effective, [one] if one.parse() == Ok(gateway));
        match (exact, self.past_the_filter) {
            (true, _) => DnsVerdict::Filtered,
            (false, None) => DnsVerdict::Useless,
            (false, Some(_)) => DnsVerdict::Unsafe,
        }
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_CAP).read_to_string(&mut text)?;
    Ok(text)
}

/// The `nameserver` lines of resolv.conf(5), in order; a scope (`%eth0`) is cut off.
fn nameservers(text: &str) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() == Some("nameserver") {
            let address = words.next().and_then(|word| word.split('%').next());
            servers.extend(address.and_then(|address| address.parse::<IpAddr>().ok()));
        }
    }
    servers
}

fn engine_dns(text: &str) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct DaemonJson {
        #[serde(default)]
        dns: Vec<String>,
    }
    // A file that the Engine would not accept either: no `dns`, which is the strict reading.
    serde_json::from_str::<DaemonJson>(text).map(|file| file.dns).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(servers: &str, daemon_json: &str) -> HostResolver {
        let past_the_filter =
            nameservers(servers).into_iter().find(|server| server.to_canonical().is_loopback() || server.is_ipv6());
        HostResolver { past_the_filter, engine_dns: engine_dns(daemon_json) }
    }

    #[test]
    fn only_the_gateway_is_filtered() {
        let gateway = Ipv4Addr::new(10, 200, 0, 1);
        let own = ["10.200.0.1".to_owned()];
        let two = ["10.200.0.1".to_owned(), "1.1.1.1".to_owned()];
        let loopback = host("search x\nnameserver 127.0.0.1 # dnsmasq\n", "{}");
        assert_eq!(loopback.judge(&own, gateway), DnsVerdict::Filtered);
        assert_eq!(loopback.judge(&[], gateway), DnsVerdict::Unsafe);
        assert_eq!(loopback.judge(&two, gateway), DnsVerdict::Unsafe);
        let routed = host("nameserver 192.0.2.53\n", "{}");
        assert_eq!(routed.judge(&[], gateway), DnsVerdict::Useless);
        assert_eq!(routed.judge(&own, gateway), DnsVerdict::Filtered);
    }

    #[test]
    fn the_engine_s_own_dns_counts_where_the_container_has_none() {
        let gateway = Ipv4Addr::new(10, 200, 0, 1);
        let host = host("nameserver ::1\n", r#"{"dns":["10.200.0.1"],"debug":true}"#);
        assert_eq!(host.judge(&[], gateway), DnsVerdict::Filtered);
        assert_eq!(host.judge(&["1.1.1.1".to_owned()], gateway), DnsVerdict::Unsafe);
        assert_eq!(host.judge(&[], Ipv4Addr::new(10, 200, 1, 1)), DnsVerdict::Unsafe);
    }

    #[test]
    fn resolv_conf_is_read_as_the_engine_reads_it() {
        assert_eq!(
            nameservers("nameserver fe80::1%eth0\nnameserver x\n#nameserver 1.1.1.1\n nameserver 9.9.9.9").len(),
            2
        );
        assert_eq!(engine_dns("not json"), Vec::<String>::new());
        let missing = HostFiles {
            resolv_conf: "/nonexistent/a".into(),
            systemd_resolv_conf: "/nonexistent/b".into(),
            daemon_json: "/nonexistent/c".into(),
        };
        assert_eq!(HostResolver::read(&missing), HostResolver { past_the_filter: None, engine_dns: Vec::new() });
    }
}
