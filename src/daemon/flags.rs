//! The flags of `outcalld`. Every value is checked here, before anything is touched; a bad one exits 2.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::docker_manager::{Ipv4Net, Ipv4NetError, PeerRange};

/// The host daemon of Outcall: decides what containers that run AI agents may reach.
///
/// There is no configuration file: flags, and the YAML rules in --rules-dir. The log level comes from RUST_LOG
/// (default info), OUTCALL_LOG_FORMAT=json gives one JSON object a line.
#[derive(Clone, Debug, Parser)]
#[command(name = "outcalld", version, max_term_width = 100)]
pub struct Flags {
    /// Operator API socket.
    #[arg(long, value_name = "PATH", default_value = "/run/outcall/host.sock", value_parser = absolute)]
    pub socket: PathBuf,
    /// Bridge of the default network; created if missing.
    #[arg(long, value_name = "NAME", default_value = "outcall0", value_parser = bridge_name)]
    pub bridge: String,
    /// Directory of the rule files (*.yaml, *.yml).
    #[arg(long, value_name = "PATH", default_value = "/etc/outcall/rules.d")]
    pub rules_dir: PathBuf,
    /// DNS filter bind address; 0.0.0.0 is one socket for each managed gateway.
    #[arg(long, value_name = "IP", default_value = "0.0.0.0", value_parser = listen_ip)]
    pub dns_listen: IpAddr,
    /// DNS filter port; another than 53 is redirected to from gateway:53.
    #[arg(long, value_name = "PORT", default_value = "53", value_parser = number::<u16>(1, u16::MAX))]
    pub dns_port: u16,
    /// Upstream resolvers in the order of asking, each `IP`, `IP:PORT` or `[IPv6]:PORT`.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_parser = upstream,
        help = "Upstream resolvers, IP, IP:PORT or [IPv6]:PORT, comma-separated, tried in order; default: /etc/resolv.conf"
    )]
    pub dns_upstream: Vec<SocketAddr>,
    /// Proxy bind address, IP:PORT; 0.0.0.0 is one socket for each managed gateway.
    #[arg(long, value_name = "HOST:PORT", default_value = "0.0.0.0:8080", value_parser = listen_address)]
    pub proxy_addr: SocketAddr,
    /// No proxy at all.
    #[arg(long)]
    pub no_proxy: bool,
    /// Agent API socket.
    #[arg(long, value_name = "PATH", default_value = "/run/outcall/agent.sock", value_parser = absolute)]
    pub agent_socket_host_path: PathBuf,
    /// Shim binary that is mounted into containers.
    #[arg(long, value_name = "PATH", default_value = "/usr/local/bin/outcall-agent", value_parser = absolute)]
    pub shim_host_path: PathBuf,
    /// Rule-evaluation timeout of a permission check, 1 to 300 seconds.
    #[arg(long, value_name = "N", default_value = "5", value_parser = number::<u64>(1, 300))]
    pub agent_timeout_secs: u64,
    /// Permission checks per container in a sliding window, COUNT/SECS.
    #[arg(long, value_name = "COUNT/SECS", default_value = "100/10", value_parser = rate)]
    pub agent_perm_rate: Rate,
    /// Rule submissions per container in a sliding window, COUNT/SECS.
    #[arg(long, value_name = "COUNT/SECS", default_value = "10/60", value_parser = rate)]
    pub agent_rule_rate: Rate,
    /// RFC 1918 block that each network's /24 comes from.
    #[arg(long, value_name = "CIDR", default_value = "10.200.0.0/16", value_parser = subnet_block)]
    pub subnet_block: Ipv4Net,
    /// Root CA certificate (PEM) for interception.
    #[arg(long, value_name = "PATH")]
    pub ca_cert: Option<PathBuf>,
    /// Root CA key (PEM, mode 0600) for interception.
    #[arg(long, value_name = "PATH")]
    pub ca_key: Option<PathBuf>,
    /// Life of an intercepted host's certificate, 60 to 604800 seconds.
    #[arg(long, value_name = "N", default_value = "86400", value_parser = number::<u64>(60, 604_800))]
    pub intercept_leaf_ttl_secs: u64,
    /// Largest body that rules may see, 0 to 16777216 bytes.
    #[arg(long, value_name = "N", default_value = "1048576", value_parser = number::<u64>(0, 16_777_216))]
    pub intercept_body_cap_bytes: u64,
    /// Directory of the daemon's own state: decision log, rule requests, dynamic rules.
    #[arg(long, value_name = "PATH", default_value = "/var/lib/outcall")]
    pub state_dir: PathBuf,
    /// Docker's API socket.
    #[arg(long, value_name = "PATH", default_value = "/var/run/docker.sock")]
    pub docker_socket: PathBuf,
    /// What a stop leaves behind.
    #[arg(long, value_name = "teardown|keep", value_enum, default_value_t = OnExit::Teardown)]
    pub on_exit: OnExit,
    /// CIDRs outside the managed networks whose peers may use DNS and proxy, comma-separated.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = peer_range)]
    pub extra_peers: Vec<PeerRange>,
    /// Connections of the proxy at once, 1 to 1000000.
    #[arg(long, value_name = "N", default_value = "4096", value_parser = number::<u32>(1, 1_000_000))]
    pub proxy_max_connections: u32,
    /// Connections of one container at once, 1 to 1000000.
    #[arg(long, value_name = "N", default_value = "256", value_parser = number::<u32>(1, 1_000_000))]
    pub proxy_max_per_container: u32,
    /// Extra root certificates (PEM) for upstream verification.
    #[arg(long, value_name = "PATH")]
    pub upstream_ca: Option<PathBuf>,
    /// Prometheus text over TCP.
    #[arg(long, value_name = "IP:PORT", value_parser = listen_address)]
    pub metrics_addr: Option<SocketAddr>,
    /// Size at which the decision log is rotated, at least 4096 bytes.
    #[arg(long, value_name = "N", default_value = "67108864", value_parser = number::<u64>(4096, u64::MAX))]
    pub decision_log_bytes: u64,
    /// Rotated decision logs that are kept, 1 to 1000.
    #[arg(long, value_name = "N", default_value = "8", value_parser = number::<u32>(1, 1000))]
    pub decision_log_files: u32,
    /// Put the closed base table in place and exit.
    #[arg(long)]
    pub lockdown: bool,
    /// Load and check the rules as a start would, print the report, exit 0 or 1.
    #[arg(long)]
    pub check: bool,
    /// With `--check`: the report as JSON, for `outcall rules check`.
    #[arg(long, hide = true, requires = "check")]
    pub check_json: bool,
}

/// What a stop leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnExit {
    /// Bridges go down, then the table is deleted.
    Teardown,
    /// The bridge stays under the closed base table.
    Keep,
}

/// A sliding-window limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// In how long.
    pub window: Duration,
}

impl Flags {
    /// The upstream resolvers: the flag's, else those of `/etc/resolv.conf`.
    ///
    /// # Errors
    /// One line with cause and remedy, when there is none.
    pub fn upstreams(&self) -> Result<Vec<SocketAddr>, String> {
        if !self.dns_upstream.is_empty() {
            return Ok(self.dns_upstream.clone());
        }
        const PATH: &str = "/etc/resolv.conf";
        let text = std::fs::read_to_string(PATH)
            .map_err(|error| format!("cannot read {PATH} ({error}); give resolvers with --dns-upstream"))?;
        let found = resolv_conf_servers(&text);
        if found.is_empty() {
            return Err(format!("{PATH} names no nameserver; give resolvers with --dns-upstream"));
        }
        Ok(found)
    }
}

/// The `nameserver` lines of a resolv.conf(5), scoped addresses left out, at most eight.
fn resolv_conf_servers(text: &str) -> Vec<SocketAddr> {
    const SERVERS_MAX: usize = 8;
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()).flatten()
        })
        .filter_map(|word| word.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .take(SERVERS_MAX)
        .collect()
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    if text.starts_with('/') && !text.contains('\0') && !text.ends_with('/') {
        Ok(PathBuf::from(text))
    } else {
        Err("an absolute path of a file is accepted".to_owned())
    }
}

/// IFNAMSIZ is 16 with its NUL (linux/if.h); `oc-` is the prefix of the other networks' bridges.
fn bridge_name(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if text.is_empty() || text.len() > 15 || !plain || text.starts_with(['-', '.']) || text.starts_with("oc-") {
        return Err(
            "1 to 15 letters, digits, '-', '_' or '.' are accepted, not beginning with '-', '.' or 'oc-'".to_owned()
        );
    }
    Ok(text.to_owned())
}

fn upstream(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<SocketAddr>().or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)));
    match address {
        Ok(address) if address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast() => {
            Ok(address)
        }
        _ => Err("IP, IP:PORT or [IPv6]:PORT is accepted, several separated by commas".to_owned()),
    }
}

fn listen_ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "an IP address is accepted, no name and no port".to_owned())
}

/// A whole number from `least` to `most`.
fn number<T>(least: T, most: T) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display + Copy + Send + Sync + 'static,
{
    move |text| match text.parse() {
        Ok(number) if least <= number && number <= most => Ok(number),
        _ => Err(format!("a whole number from {least} to {most} is accepted")),
    }
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err("IP:PORT with a port from 1 to 65535 is accepted".to_owned()),
    }
}

fn rate(text: &str) -> Result<Rate, String> {
    let parsed = text.split_once('/').and_then(|(count, secs)| Some((count.parse().ok()?, secs.parse().ok()?)));
    match parsed {
        Some((count @ 1..=1_000_000u32, secs @ 1..=86_400u64)) => Ok(Rate { count, window: Duration::from_secs(secs) }),
        _ => Err("COUNT/SECS is accepted, COUNT from 1 to 1000000, SECS from 1 to 86400".to_owned()),
    }
}

fn subnet_block(text: &str) -> Result<Ipv4Net, String> {
    const ACCEPTED: &str = "an RFC 1918 network in CIDR notation with a prefix of at most 24 is accepted";
    let network: Ipv4Net = text.parse().map_err(|error| match error {
        Ipv4NetError::Syntax => ACCEPTED.to_owned(),
        Ipv4NetError::HostBits(meant) => format!("host bits are set, {meant} may be meant; {ACCEPTED}"),
    })?;
    let private =
        [(Ipv4Addr::new(10, 0, 0, 0), 8), (Ipv4Addr::new(172, 16, 0, 0), 12), (Ipv4Addr::new(192, 168, 0, 0), 16)]
            .into_iter()
            .any(|(address, prefix)| {
                network.prefix() >= prefix && Ipv4Net::of(address, prefix).contains(network.address())
            });
    if !private || network.prefix() > 24 {
        return Err(ACCEPTED.to_owned());
    }
    Ok(network)
}

fn peer_range(text: &str) -> Result<PeerRange, String> {
    text.parse()
        .map_err(|cause| format!("{cause}; CIDRs such as 127.0.0.0/8 are accepted, several separated by commas"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Flags, String> {
        Flags::try_parse_from(std::iter::once(&"outcalld").chain(args)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let flags = parse(&[]).unwrap();
        assert_eq!(flags.socket, PathBuf::from("/run/outcall/host.sock"));
        assert_eq!((flags.bridge.as_str(), flags.dns_port), ("outcall0", 53));
        assert_eq!(flags.proxy_addr.to_string(), "0.0.0.0:8080");
        assert_eq!(flags.subnet_block.to_string(), "10.200.0.0/16");
        assert_eq!(flags.agent_perm_rate, Rate { count: 100, window: Duration::from_secs(10) });
        assert_eq!(flags.agent_rule_rate, Rate { count: 10, window: Duration::from_secs(60) });
        assert_eq!((flags.proxy_max_connections, flags.proxy_max_per_container), (4096, 256));
        assert_eq!((flags.decision_log_bytes, flags.decision_log_files), (67_108_864, 8));
        assert_eq!((flags.intercept_leaf_ttl_secs, flags.intercept_body_cap_bytes), (86_400, 1_048_576));
        assert_eq!(flags.on_exit, OnExit::Teardown);
    }

    #[test]
    fn a_bad_value_names_flag_value_and_what_is_accepted() {
        let cases: [(&[&str], &str); 16] = [
            (&["--dns-listen", "localhost"], "--dns-listen"),
            (&["--dns-port", "0"], "--dns-port"),
            (&["--proxy-max-connections", "many"], "--proxy-max-connections"),
            (&["--decision-log-bytes", "4095"], "--decision-log-bytes"),
            (&["--metrics-addr", "9100"], "--metrics-addr"),
            (&["--on-exit", "leave"], "--on-exit"),
            (&["--dns-upstream", "1.1.1.1,dns.example"], "--dns-upstream"),
            (&["--proxy-addr", "8080"], "--proxy-addr"),
            (&["--subnet-block", "10.200.0.1/16"], "--subnet-block"),
            (&["--subnet-block", "10.200.0.0/25"], "--subnet-block"),
            (&["--subnet-block", "8.8.0.0/16"], "--subnet-block"),
            (&["--subnet-block", "10.0.0.0/7"], "--subnet-block"),
            (&["--agent-perm-rate", "100"], "--agent-perm-rate"),
            (&["--intercept-leaf-ttl-secs", "59"], "--intercept-leaf-ttl-secs"),
            (&["--bridge", "a-name-that-is-too-long"], "--bridge"),
            (&["--extra-peers", "127.0.0.1/8"], "--extra-peers"),
        ];
        for (args, flag) in cases {
            let error = parse(args).expect_err(flag);
            assert!(error.contains(flag) && error.contains(args[1].split(',').next_back().unwrap()), "{error}");
            assert!(error.contains("accepted") || error.contains("possible values: teardown, keep"), "{error}");
        }
    }

    #[test]
    fn upstreams_take_ports_and_ipv6() {
        let flags = parse(&["--dns-upstream", "1.1.1.1,8.8.8.8:5353,[2606:4700::1111]:53,::1"]).unwrap();
        let texts: Vec<String> = flags.dns_upstream.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["1.1.1.1:53", "8.8.8.8:5353", "[2606:4700::1111]:53", "[::1]:53"]);
    }

    #[test]
    fn resolv_conf_is_read_as_its_manual_says() {
        let text =
            "# comment\nsearch lan\nnameserver 192.0.2.1\nnameserver\tfe80::1%eth0\n nameserver 2001:db8::1 trailing\n";
        let texts: Vec<String> = resolv_conf_servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["192.0.2.1:53", "[2001:db8::1]:53"]);
    }
}
