//! What each played owner answers.

use outcall::api;
use outcall::bridge::{BridgeCommand, OperatorRefusal};
use outcall::dns::DnsCommand;
use outcall::docker_manager::{ContainerCommand, DockerCommand, DockerFailure};
use outcall::proxy::ProxyCommand;
use outcall::rule_engine::RuleEngineCommand;
use outcall::state::{DynamicRulesCommand, RequestFailure, RequestsCommand};

fn bridge_status(up: bool) -> api::BridgeStatus {
    api::BridgeStatus {
        name: "outcall0".to_owned(),
        up,
        index: up.then_some(12),
        nftables_active: up,
        nftables: if up { "active" } else { "inactive" }.to_owned(),
    }
}

pub(super) fn bridge(command: BridgeCommand) -> bool {
    match command {
        BridgeCommand::Status(reply) => reply.send(bridge_status(true)),
        BridgeCommand::Up(reply) => reply.send(Err("cannot make outcall0: CAP_NET_ADMIN is missing".to_owned())),
        BridgeCommand::Down(reply) => reply.send(Ok(bridge_status(false))),
        BridgeCommand::Grants(reply) => reply.send(Ok(Vec::new())),
        BridgeCommand::Ping(reply) => reply.send(()),
        BridgeCommand::Stop(_) => return true,
        _ => {}
    }
    false
}

pub(super) fn docker(command: DockerCommand) -> bool {
    match command {
        DockerCommand::CreateNetwork(wish, reply) => {
            let name = wish.name.unwrap_or_else(|| "default".to_owned());
            reply.send(if name == "taken" {
                Err(DockerFailure { status: 409, message: "10.200.1.0/24 overlaps docker network x".to_owned() })
            } else {
                Ok(api::NetworkCreated {
                    network_id: "abc".to_owned(),
                    created: name != "old",
                    name: format!("outcall-{name}"),
                    subnet: "10.200.1.0/24".to_owned(),
                    gateway: "10.200.1.1".to_owned(),
                })
            });
        }
        DockerCommand::DestroyNetwork(select, reply) => {
            let name = format!("outcall-{}", select.name.unwrap_or_else(|| "default".to_owned()));
            reply.send(Ok(api::NetworkDestroyed { name, destroyed: true }));
        }
        DockerCommand::Network(select, reply) => reply.send(Ok(network(&select.name.unwrap_or_default()))),
        DockerCommand::Networks(reply) => reply.send(Ok(vec![network("default")])),
        DockerCommand::Container(command) => container(command),
        DockerCommand::Ping(reply) => reply.send(()),
        DockerCommand::Stop => return true,
        DockerCommand::Identify(_) => {}
        #[allow(unreachable_patterns)] // commands of later issues are not for this file
        _ => {}
    }
    false
}

fn container(command: ContainerCommand) {
    let summary = api::ContainerSummary {
        container_id: "abc".to_owned(),
        name: "coder-1".to_owned(),
        image: "busybox".to_owned(),
        state: "running".to_owned(),
        network: "outcall-default".to_owned(),
        created_at: "2026-11-24T00:00:00.000Z".to_owned(),
    };
    match command {
        ContainerCommand::Create(wish, rules, reply) => reply.send(if wish.image == "blocked" {
            let message = format!("blocked by rule {}", rules.rules()[0].id);
            Err(DockerFailure { status: 403, message })
        } else {
            let (container_id, name) = (summary.container_id, wish.name.unwrap_or_default());
            Ok(api::ContainerCreated { container_id, name, created: true, notes: Vec::new() })
        }),
        ContainerCommand::Stop(stop, reply) => reply.send(Ok(api::ContainerStopped { name: stop.name, stopped: true })),
        ContainerCommand::Remove(one, reply) => {
            reply.send(Ok(api::ContainerRemoved { name: one.name, removed: one.force }))
        }
        ContainerCommand::Pull(pull, reply) => reply.send(Ok(api::ContainerPulled { image: pull.image, pulled: true })),
        ContainerCommand::List(reply) => reply.send(Ok(vec![summary])),
        ContainerCommand::Inspect(_, reply) => {
            let mount = api::ContainerMount { source: "/s".to_owned(), target: "/t".to_owned(), read_only: true };
            let (mounts, env) = (vec![mount], vec!["A=<redacted>".to_owned()]);
            let ip_address = Some("10.200.0.2".to_owned());
            reply.send(Ok(api::ContainerDetail { summary, ip_address, mounts, env }));
        }
    }
}

fn network(name: &str) -> api::NetworkStatus {
    api::NetworkStatus {
        exists: true,
        network_id: Some("abc".to_owned()),
        name: format!("outcall-{name}"),
        subnet: Some("10.200.0.0/24".to_owned()),
        gateway: Some("10.200.0.1".to_owned()),
        bridge: Some("outcall0".to_owned()),
        containers: vec![api::AttachedContainer { name: "writer-1".to_owned(), ipv4_address: "10.200.0.2".to_owned() }],
    }
}

pub(super) fn dns(command: DnsCommand) -> bool {
    let stats = api::DnsCacheStats { entries: 1, max_entries: 10_000, hits: 2, misses: 3, evictions: 0 };
    match command {
        DnsCommand::Status(reply) => reply.send(api::DnsStatus {
            running: true,
            listen_address: "0.0.0.0".to_owned(),
            listen_port: 53,
            upstreams: vec!["192.0.2.1:53".to_owned()],
            cache_entries: 1,
            queries_total: 5,
            queries_allowed: 3,
            queries_blocked: 2,
        }),
        DnsCommand::Cache(reply) => reply.send(api::DnsCache {
            stats,
            entries: vec![api::DnsCacheEntry {
                hostname: "example.com".to_owned(),
                record_type: "A".to_owned(),
                ttl_remaining_secs: 60,
                cached_at: "2026-11-24T00:00:00Z".to_owned(),
            }],
        }),
        DnsCommand::Flush(reply) => reply.send(7),
        DnsCommand::Ping(reply) => reply.send(()),
        DnsCommand::Stop => return true,
        _ => {}
    }
    false
}

pub(super) fn proxy(command: ProxyCommand) -> bool {
    match command {
        ProxyCommand::Status(reply) => reply.send(api::ProxyStatus {
            running: true,
            listen_address: "0.0.0.0:8080".to_owned(),
            proxy_url: "http://10.200.0.1:8080".to_owned(),
            active_connections: 1,
            total_requests: 2,
            total_blocked: 1,
        }),
        // A proxy that is stuck: its pings are kept and never answered.
        ProxyCommand::Ping(reply) => std::mem::forget(reply),
        ProxyCommand::Stop => return true,
        _ => {}
    }
    false
}

pub(super) fn rule_engine(command: RuleEngineCommand) -> bool {
    match command {
        RuleEngineCommand::Reload(reply) => {
            reply.send(Err(vec![
                "a.yaml:3: rule x: unknown action `alow`".to_owned(),
                "b.yaml:1: no version".to_owned(),
            ]));
        }
        RuleEngineCommand::Test(question, reply) => {
            let error = (question.expression != "true").then(|| "syntax error".to_owned());
            reply.send(api::RuleTested { result: error.is_none().then_some(true), error });
        }
        RuleEngineCommand::Ping(reply) => reply.send(()),
        RuleEngineCommand::Stop => return true,
    }
    false
}

pub(super) fn dynamic_rules(command: DynamicRulesCommand) -> bool {
    match command {
        DynamicRulesCommand::Allow(wish, reply) => reply.send(Err(match &*wish.container {
            "stopped" => OperatorRefusal::Conflict("src_ip is not its address".to_owned()),
            "special" => OperatorRefusal::Forbidden("a special-purpose address".to_owned()),
            "full" => OperatorRefusal::Failed("cannot write dynamic-rules.json".to_owned()),
            name => OperatorRefusal::Unknown(format!("no container `{name}`")),
        })),
        DynamicRulesCommand::Flush(reply) => reply.send(Ok(3)),
        DynamicRulesCommand::Stop => return true,
        _ => {}
    }
    false
}

pub(super) fn requests(command: RequestsCommand) -> bool {
    const ID: &str = "rr-0123456789abcdef";
    let failure = |id: &str| match id {
        "rr-decided" => RequestFailure::Conflict("the rule request is approved already".to_owned()),
        "rr-broken" => RequestFailure::Invalid("the rules do not load with this request in them: x".to_owned()),
        _ => RequestFailure::Unknown("there is no such rule request".to_owned()),
    };
    match command {
        RequestsCommand::List { all_agents, reply } => reply.send(Ok(vec![api::PendingRuleRequest {
            id: ID.to_owned(),
            container_id: "c".repeat(64),
            container: "coder-1".to_owned(),
            rule_file: "submitted".to_owned(),
            installs: format!("installs, all_agents {all_agents}"),
            lint: Some(vec!["rule a: look".to_owned()]),
            status: "pending".to_owned(),
            submitted_at: "2026-11-24T00:00:00.000Z".to_owned(),
        }])),
        RequestsCommand::Approve { id, all_agents, reply } if id == ID => {
            reply.send(Ok(api::RuleRequestApproved { id, rules_loaded: if all_agents { 8 } else { 7 } }));
        }
        RequestsCommand::Approve { id, reply, .. } => reply.send(Err(failure(&id))),
        RequestsCommand::Reject { id, reason, reply } if id == ID && reason.as_deref() != Some("bad") => {
            reply.send(Ok(api::RuleRequestRejected { id }));
        }
        RequestsCommand::Reject { id, reply, .. } => reply.send(Err(failure(&id))),
        RequestsCommand::Stop => return true,
        _ => {}
    }
    false
}
