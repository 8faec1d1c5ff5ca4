//! The names of the subsystem threads, in one place: thread names, log targets and `/health` agree on them.

/// A thread of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subsystem {
    /// The main thread.
    Control,
    /// Links, nftables, conntrack.
    Bridge,
    /// Loads rules.
    RuleEngine,
    /// Docker's containers and networks.
    DockerManager,
    /// The DNS filter and resolver.
    Dns,
    /// The HTTP proxy.
    Proxy,
    /// Signs the certificates of intercepted hosts; only with a CA.
    Leaves,
    /// Decision events and their log.
    Events,
    /// The operator API.
    HostApi,
    /// The metrics over TCP.
    Metrics,
    /// The agents' API.
    AgentApi,
    /// Rule requests: their file, their checks, their approvals.
    RuleRequests,
    /// Flows that operators opened by hand: their file.
    DynamicRules,
}

impl Subsystem {
    /// The thread's name: at most 15 bytes, as `pthread_setname_np` wants.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Subsystem::Control => "outcalld",
            Subsystem::Bridge => "bridge",
            Subsystem::RuleEngine => "rule_engine",
            Subsystem::DockerManager => "docker_manager",
            Subsystem::Dns => "dns",
            Subsystem::Proxy => "proxy",
            Subsystem::Leaves => "leaves",
            Subsystem::Events => "events",
            Subsystem::HostApi => "host_api",
            Subsystem::Metrics => "metrics",
            Subsystem::AgentApi => "agent_api",
            Subsystem::RuleRequests => "rule_requests",
            Subsystem::DynamicRules => "dynamic_rules",
        }
    }
}

impl std::fmt::Display for Subsystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
