//! What can be typed.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::api::MemoryLimit;

/// Where outcalld listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/outcall/host.sock";

/// Operate outcalld: see and control what containers may reach.
///
/// Without a command: the state in a few lines, and what to do next.
#[derive(Debug, Parser)]
#[command(name = "outcall", version, propagate_version = true, disable_help_subcommand = true, after_help = AFTER_HELP)]
pub struct Arguments {
    /// Operator socket of outcalld
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Print the API's data as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to look at.
    #[command(subcommand)]
    pub group: Option<Group>,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 bad arguments, 6 no CA loaded (ca status, ca bundle).
NO_COLOR is honoured; colour is used on a terminal only.";

/// The groups of commands.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // each variant's help text is its documentation
pub enum Group {
    /// The bridge and the nftables table that filter in the kernel
    #[command(subcommand)]
    Bridge(BridgeCommand),
    /// The DNS filter
    #[command(subcommand)]
    Dns(DnsCommand),
    /// The HTTP proxy
    #[command(subcommand)]
    Proxy(ProxyCommand),
    /// The CA of TLS interception
    #[command(subcommand)]
    Ca(CaCommand),
    /// The managed Docker networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Containers with outcalld's hardening
    #[command(subcommand)]
    Container(ContainerCommand),
    /// The rules that decide
    #[command(subcommand)]
    Rules(RulesCommand),
    /// Why a destination is allowed or blocked: every layer, the rules that came close, and a rule that would allow it
    Explain(ExplainArguments),
    /// The rules that agents ask for
    #[command(subcommand)]
    Requests(RequestsCommand),
    /// Look at this host: what keeps outcalld from filtering, and what to do about it
    Doctor,
    /// Whether every part of outcalld works; exit code 1, and which one does not, if not
    Ready,
    /// Show what was allowed and blocked
    Events(EventsArguments),
    /// Open the dashboard in a browser; serves it on 127.0.0.1 until ^C
    Ui {
        /// Port on 127.0.0.1; 0 is a free one
        #[arg(long, value_name = "N", default_value_t = 0)]
        port: u16,
        /// Print the address and start no browser
        #[arg(long)]
        no_open: bool,
    },
}

/// `outcall bridge`
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // each variant's help text is its documentation
pub enum BridgeCommand {
    /// Show the bridge and whether the kernel's table is the planned one
    Status,
    /// Put bridges and table in place and the containers back on them
    Up,
    /// Take bridges and table away: containers have no network at all until `up`
    Down,
}

/// `outcall dns`
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // each variant's help text is its documentation
pub enum DnsCommand {
    /// Show where it listens, its upstreams and counters
    Status,
    /// Ask the rules about a name, as the DNS filter would for an unnamed agent; resolves nothing
    Test {
        /// The name
        #[arg(value_name = "HOST")]
        host: String,
        /// Record type
        #[arg(long = "type", value_name = "TYPE", default_value = "A", value_parser = record_type)]
        record_type: String,
    },
    /// Show the cache's counters
    Cache {
        /// List the cached answers too
        #[arg(long)]
        entries: bool,
    },
    /// Empty the cache
    Flush,
}

/// `outcall proxy`
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // each variant's help text is its documentation
pub enum ProxyCommand {
    /// Show where it listens and its counters
    Status,
}

/// `outcall ca`
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // each variant's help text is its documentation
pub enum CaCommand {
    /// Make a CA: ca-cert.pem and ca-key.pem; overwrites nothing, asks no daemon
    Init {
        /// Directory of the two files; made if missing
        #[arg(long, value_name = "DIR", default_value = "/etc/outcall/ca")]
        out: PathBuf,
        /// RSA with 4096 bits, which every client knows, or ECDSA on P-384, which signs faster
        #[arg(long, value_name = "rsa|ecdsa", value_enum, default_value_t = CaAlgorithm::Rsa)]
        algorithm: CaAlgorithm,
        /// Have clients refuse it for names outside this domain; may be given more than once
        #[arg(long, value_name = "DOMAIN", value_parser = domain)]
        constrain: Vec<String>,
    },
    /// Show the CA that outcalld has loaded
    Status,
    /// Print the system's roots and the CA as PEM, for clients that must trust it
    Bundle,
}

/// `--algorithm`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CaAlgorithm {
    /// RSA, 4096 bits
    Rsa,
    /// ECDSA on P-384
    Ecdsa,
}

/// `outcall network`
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // each variant's help text is its documentation
pub enum NetworkCommand {
    /// Create a network, or find it when it exists
    Create {
        #[command(flatten)]
        select: NetworkName,
        /// Subnet in CIDR notation; default: the first free /24 of the daemon's block
        #[arg(long, value_name = "CIDR")]
        subnet: Option<String>,
        /// Address of the bridge; default: the first of the subnet
        #[arg(long, value_name = "IP")]
        gateway: Option<String>,
    },
    /// Show a network and its containers
    Status(NetworkName),
    /// List the managed networks
    List,
    /// Remove a network that no container uses
    Destroy(NetworkName),
}

/// Which network.
#[derive(Debug, clap::Args)]
pub struct NetworkName {
    /// Name without its `outcall-` prefix; default: the default network
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

/// `outcall container`
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // each variant's help text is its documentation
pub enum ContainerCommand {
    /// Make and start a container on a managed network
    Create(Box<ContainerArguments>),
    /// List the containers that outcalld made
    List,
    /// Show one of them; environment values stay hidden
    Inspect {
        /// Name or id
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Stop one of them
    Stop {
        /// Name or id
        #[arg(value_name = "NAME")]
        name: String,
        /// Seconds before it is killed, at most 300; default: 10
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=300))]
        timeout: Option<u32>,
    },
    /// Remove one of them
    Remove {
        /// Name or id
        #[arg(value_name = "NAME")]
        name: String,
        /// Kill it first if it runs
        #[arg(long)]
        force: bool,
    },
    /// Fetch an image; `create` never does that by itself
    Pull {
        /// The image
        #[arg(value_name = "IMAGE")]
        image: String,
    },
}

/// `outcall container create`
#[derive(Debug, clap::Args)]
#[allow(missing_docs)] // each field's help text is its documentation
pub struct ContainerArguments {
    /// An image that is on the host
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// What it runs; default: the image's command
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
    /// Managed network, without its `outcall-` prefix; default: the default network
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
    /// Name, which rules see as agent.container; default: outcall- and 8 hex digits
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Numeric user and group, not root; default: 65532:65532
    #[arg(long, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Memory, such as 1g; default: 512m, at least 6m
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<MemoryLimit>,
    /// CPU weight, at least 2; default: 1024
    #[arg(long, value_name = "N")]
    pub cpu_shares: Option<i64>,
    /// Environment variable; without a value it is taken from this command's own environment
    #[arg(long, short = 'e', value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Mount a path of the host, or a volume
    #[arg(long, short = 'v', value_name = "SOURCE:TARGET[:ro]")]
    pub volume: Vec<String>,
    /// Program to run instead of the image's
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Directory to run in
    #[arg(long, value_name = "PATH")]
    pub workdir: Option<String>,
    /// Read-only root with a tmpfs at /tmp
    #[arg(long)]
    pub read_only: bool,
    /// Mount the agents' socket and the shim (true or false); default: true where outcalld runs on the host
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub helper_mounts: Option<bool>,
    /// Keep standard input open
    #[arg(long, short)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(long, short)]
    pub tty: bool,
}

/// `outcall rules`
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // each variant's help text is its documentation
pub enum RulesCommand {
    /// List the rules in evaluation order
    List,
    /// Show one rule, its definitions expanded
    Show {
        /// The rule's id
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Load the rule files anew; any error leaves the old rules in force
    Reload,
    /// List the flows that are open directly, past the proxy
    Active,
    /// End all of them, running ones too
    Flush,
    /// Open a flow by hand: one container to one address and port, for a while
    Allow(AllowArguments),
    /// Check rule files offline, as a start of outcalld would
    Check {
        /// Directory of rule files
        #[arg(value_name = "DIR", default_value = "/etc/outcall/rules.d")]
        directory: PathBuf,
        /// CA certificate that outcalld will have: rules with `mode: intercept` load only with one
        #[arg(long, value_name = "PATH", requires = "ca_key")]
        ca_cert: Option<PathBuf>,
        /// Its key
        #[arg(long, value_name = "PATH", requires = "ca_cert")]
        ca_key: Option<PathBuf>,
    },
    /// Evaluate a condition against a context
    Test {
        /// The CEL condition
        #[arg(value_name = "EXPR")]
        expression: String,
        /// JSON file with the namespaces, such as {"http":{"host":"example.com"}}; `-` is standard input
        #[arg(long, value_name = "FILE")]
        context: PathBuf,
    },
}

/// `outcall rules allow`
#[derive(Debug, clap::Args)]
pub struct AllowArguments {
    /// The container's name or id
    #[arg(value_name = "CONTAINER")]
    pub container: String,
    /// Where to: an IPv4 address (a name needs a `direct_ip` rule)
    #[arg(value_name = "ADDRESS", value_parser = destination)]
    pub destination: std::net::Ipv4Addr,
    /// Which port there
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// tcp or udp
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp", value_parser = ["tcp", "udp"])]
    pub protocol: String,
    /// How long new flows may begin, 1 to 86400 seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub expires_in_secs: u64,
    /// The container's own address; needed when it has several
    #[arg(long, value_name = "IP")]
    pub src_ip: Option<std::net::Ipv4Addr>,
}

/// `outcall explain`
#[derive(Clone, Debug, clap::Args)]
pub struct ExplainArguments {
    /// A http:// or https:// URL, a name, an address, or one of the two with a port
    #[arg(value_name = "TARGET")]
    pub target: String,
    /// Method of the request; default GET
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,
    /// Name of the container that asks; default: a peer with an empty agent.name
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,
}

/// `outcall events`
#[derive(Debug, clap::Args)]
pub struct EventsArguments {
    /// Wait for new ones and print them as they come; without it, the last ones are printed
    #[arg(long, short)]
    pub follow: bool,
    /// Only what was blocked
    #[arg(long)]
    pub blocked: bool,
    /// Only this container: its name or id
    #[arg(long, value_name = "N")]
    pub container: Option<String>,
}

/// `outcall requests`
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // each variant's help text is its documentation
pub enum RequestsCommand {
    /// List the rule requests that wait for you
    List,
    /// Show one, and the exact file that an approval installs
    Show {
        /// The request's id
        #[arg(value_name = "ID")]
        id: String,
        /// Show the file that `approve --all-agents` installs
        #[arg(long)]
        all_agents: bool,
    },
    /// Install the rules of a request, limited to the container that asked, and load them
    Approve {
        /// The request's id
        #[arg(value_name = "ID")]
        id: String,
        /// Install them for all agents instead
        #[arg(long)]
        all_agents: bool,
    },
    /// Refuse a request
    Reject {
        /// The request's id
        #[arg(value_name = "ID")]
        id: String,
        /// Why; the agent can read it
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

/// Where a flow by hand leads.
fn destination(text: &str) -> Result<std::net::Ipv4Addr, String> {
    text.parse().map_err(|_| "an IPv4 address is accepted; for a name write a `direct_ip` rule".to_owned())
}

/// A DNS record type by name or as `TYPE65` (RFC 3597): letters and digits, in upper case as rules see it.
fn record_type(text: &str) -> Result<String, String> {
    let shaped = (1..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if shaped { Ok(text.to_ascii_uppercase()) } else { Err("a record type such as A, AAAA or TXT".to_owned()) }
}

/// A domain as name constraints hold it (RFC 5280 4.2.1.10): no wildcard, no dot in front, lower case.
fn domain(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        (1..=63).contains(&label.len()) && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    let numeric = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    if text.len() <= 253 && text.split('.').all(label) && !numeric {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a domain such as example.com; it covers the names below it too".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn global_flags_are_taken_before_and_after_the_command() {
        for line in [["outcall", "--json", "bridge", "status"], ["outcall", "bridge", "status", "--json"]] {
            let parsed = Arguments::try_parse_from(line).unwrap();
            assert!(parsed.json);
            assert_eq!(parsed.socket, PathBuf::from(DEFAULT_SOCKET));
        }
    }

    #[test]
    fn constraints_are_plain_domains() {
        assert_eq!(domain("Example.COM"), Ok("example.com".to_owned()));
        assert_eq!(domain("internal"), Ok("internal".to_owned()));
        for text in ["", ".example.com", "*.example.com", "example.com.", "a b", "192.0.2.1", "\u{e9}.com", "-a.com"] {
            assert!(domain(text).is_err(), "{text}");
        }
    }

    #[test]
    fn record_types_are_upper_case_words() {
        assert_eq!(record_type("aaaa"), Ok("AAAA".to_owned()));
        assert!(record_type("").is_err());
        assert!(record_type("A B").is_err());
    }

    #[test]
    fn a_typo_is_answered_with_the_nearest_word() {
        let refusal = Arguments::try_parse_from(["outcall", "brige"]).unwrap_err();
        assert_eq!(refusal.exit_code(), 2);
        assert!(refusal.to_string().contains("bridge"), "{refusal}");
    }
}
