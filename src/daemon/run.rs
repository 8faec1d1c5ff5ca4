//! The start, top to bottom; then control; then the stop. The only place that makes channels and starts threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::agent_api::{AgentApi, AgentApiCommand, AgentApiLinks, socket_path};
use crate::api::{RuleFinding, RulesChecked};
use crate::authority::{self, LeavesCommand, Published};
use crate::bridge::{self, Bridge, BridgeCommand, StartError, StopMode};
use crate::dns::{DnsCommand, DnsConfig, DnsLinks, DnsServer};
use crate::docker_manager::{DockerCommand, DockerLinks, DockerManager};
use crate::event_loop::{Address, Mailbox, mailbox};
use crate::events::{DecisionLog, EventLog, EventSink, EventsCommand, Live};
use crate::host_api::{HostApi, HostApiCommand, HostApiConfig, HostApiLinks, MetricsCommand, MetricsServer};
use crate::proxy::{Listening, Proxy, ProxyCommand, ProxyLinks};
use crate::rule_engine::{self, RuleEngine, RuleEngineCommand, RuleEngineConfig};

use crate::state::{
    DynamicRules, DynamicRulesCommand, GrantKeeper, RealDisk, RequestKeeper, RequestKeeperConfig, RequestStore,
    RequestsCommand,
};
use crate::unix_http;

use super::control::ControlMessage;
use super::control_loop::{Control, Ending, Watch};
use super::inherited::Inherited;
use super::interception::{self, Interception};
use super::lock::{self, Lock};
use super::notify::Watchdog;
use super::publisher::{Publisher, Reader};
use super::settings::{agent_config, bridge_config, docker_config, interception_config, load_options, proxy_config};
use super::signals::Signals;
use super::started::Started;
use super::threads::{panic_text, spawn};
use super::{Flags, OnExit, Readiness, Snapshot, Subsystem, logging};

/// Messages that may wait for one subsystem; past it the sender is told, and control takes the reader for dead.
const MAILBOX_CAPACITY: usize = 1024;
/// How long a snapshot may wait for room in a reader's mailbox.
const DELIVER_WITHIN: Duration = Duration::from_secs(5);

/// A step of the start that failed: one line, with cause and remedy.
struct StartFailure {
    step: &'static str,
    cause: String,
}

impl StartFailure {
    fn new(step: &'static str, cause: impl std::fmt::Display) -> Self {
        StartFailure { step, cause: cause.to_string() }
    }
}

/// Runs the daemon until a signal or a failure ends it. Exit code 0: it was told to stop; 1: it could not start, or
/// a part of it died.
#[must_use]
pub fn run(flags: &Flags) -> ExitCode {
    logging::start();
    let begun = Instant::now();
    let mut started = Started::default();
    match start(flags, &mut started) {
        Ok(mut control) => {
            tracing::info!(target: "outcalld", took_ms = millis(begun), "outcalld {} is up", env!("CARGO_PKG_VERSION"));
            let notifier = control.notifier();
            notifier.ready();
            // Control is a part like the others: its panic closes too.
            let ending = catch_unwind(AssertUnwindSafe(|| control.run()))
                .unwrap_or_else(|panic| Ending::Died(format!("control: {}", panic_text(panic.as_ref()))));
            notifier.stopping();
            finish(flags, started, ending)
        }
        Err(failure) => {
            tracing::error!(target: "outcalld", "start failed at step {}: {}", failure.step, failure.cause);
            started.stop(StopMode::Undo);
            ExitCode::FAILURE
        }
    }
}

/// Puts the closed base table in place and returns.
#[must_use]
pub fn lockdown(flags: &Flags) -> ExitCode {
    logging::start();
    match bridge::lockdown(&bridge_config(flags)) {
        Ok(()) => {
            tracing::info!(target: "outcalld", "the closed base table is in place");
            ExitCode::SUCCESS
        }
        Err(error) => {
            // Closed it was; a daemon that runs puts its own tables back, maybe before these were compared.
            if let (StartError::Differs(_), Some(pid)) = (&error, lock::running()) {
                tracing::info!(target: "outcalld", "closed; outcalld (pid {pid}) runs here and has put its own tables back");
                return ExitCode::SUCCESS;
            }
            tracing::error!(target: "outcalld", "lockdown failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Loads and checks the rules as a start would, and the CA; touches nothing.
#[must_use]
pub fn check(flags: &Flags) -> ExitCode {
    let about_ca = |level: &str, what: String| {
        let finding = RuleFinding { level: level.to_owned(), what, ..RuleFinding::default() };
        (format!("{level}: {finding}"), finding)
    };
    let (ca, warnings) = match interception::load(flags) {
        Ok(Interception::On(_, warnings)) => (Ok(true), warnings),
        Ok(Interception::Off(reason)) => (Ok(false), reason.into_iter().collect()),
        Err(error) => (Err(chain(error.as_ref())), Vec::new()),
    };
    let mut checked = match ca {
        Ok(ca) => rule_engine::check(&flags.rules_dir, &load_options(flags, ca)),
        Err(error) => {
            let (line, finding) = about_ca("error", error);
            RulesChecked { valid: false, findings: vec![finding], report: vec![line] }
        }
    };
    for (place, warning) in warnings.into_iter().enumerate() {
        let (line, finding) = about_ca("warning", warning);
        checked.report.insert(place, line);
        checked.findings.insert(place, finding);
    }
    if flags.check_json {
        match serde_json::to_string(&checked) {
            Ok(json) => println!("{json}"),
            Err(error) => {
                eprintln!("error: the report cannot be written as JSON: {error}");
                return ExitCode::FAILURE;
            }
        }
    } else {
        checked.report.iter().for_each(|line| println!("{line}"));
    }
    if checked.valid { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn start(flags: &Flags, started: &mut Started) -> Result<Control, StartFailure> {
    const START: &str = "start";
    // Before anything else takes a descriptor.
    let mut inherited = Inherited::take().map_err(|error| StartFailure::new(START, error))?;
    let host_socket = inherited.socket("host", &flags.socket).map_err(|error| StartFailure::new(START, error))?;
    let agent_path = socket_path(&flags.agent_socket_host_path);
    let agent_socket = inherited.socket("agent", &agent_path).map_err(|error| StartFailure::new(START, error))?;
    inherited.left().for_each(|socket| {
        tracing::warn!(target: "outcalld", "the service manager passed on a socket that nothing here uses: {socket}");
    });
    drop(inherited);
    let signals = Signals::block().map_err(|error| StartFailure::new(START, error))?;
    started.lock = Some(Lock::take().map_err(|error| StartFailure::new(START, error))?);
    // A socket that was passed on takes connections already, and nobody else's.
    let taken = host_socket.is_none()
        && unix_http::another_answers(&flags.socket).map_err(|error| StartFailure::new(START, error))?;
    if taken {
        let socket = flags.socket.display();
        return Err(StartFailure::new(
            START,
            format!("another outcalld answers at {socket} and was left alone; stop it first"),
        ));
    }
    let upstreams = flags.upstreams().map_err(|error| StartFailure::new("dns", error))?;

    let (control_poll, control, control_mailbox) = loop_parts::<ControlMessage>()?;
    let (bridge_poll, to_bridge, bridge_mailbox) = loop_parts::<BridgeCommand>()?;
    let (rules_poll, to_rules, rules_mailbox) = loop_parts::<RuleEngineCommand>()?;
    let (docker_poll, to_docker, docker_mailbox) = loop_parts::<DockerCommand>()?;
    let (dns_poll, to_dns, dns_mailbox) = loop_parts::<DnsCommand>()?;
    let (proxy_poll, to_proxy, proxy_mailbox) = loop_parts::<ProxyCommand>()?;
    let (requests_poll, to_requests, requests_mailbox) = loop_parts::<RequestsCommand>()?;
    let (grants_poll, to_grants, grants_mailbox) = loop_parts::<DynamicRulesCommand>()?;
    let (agent_poll, to_agents, agent_mailbox) = loop_parts::<AgentApiCommand>()?;
    let (host_poll, to_host, host_mailbox) = loop_parts::<HostApiCommand>()?;
    let (metrics_poll, to_metrics, metrics_mailbox) = loop_parts::<MetricsCommand>()?;
    let metrics_parts = (metrics_poll, to_metrics.clone(), metrics_mailbox);
    let readiness = Readiness::default();
    // Before anything is touched: a pair that must not be used stops the start.
    let intercepting = interception::load(flags)
        .map_err(|error| StartFailure::new("interception", chain(error.as_ref())))?
        .announce(&readiness);
    let ca = intercepting.as_ref().map(|loaded| loaded.published.clone());
    let (events, to_events, live) = start_events(flags, started, &control, to_host.clone())?;

    step("bridge", &readiness, || {
        let bridge = Bridge::start(
            bridge_config(flags),
            control.clone(),
            events.clone(),
            readiness.clone(),
            bridge_poll,
            bridge_mailbox,
        )?;
        started.bridge = Some(to_bridge.clone());
        started.closer = Some(bridge.closer());
        run_thread(started, Subsystem::Bridge, &control, move || bridge.run(), || ())
    })?;

    let rules = step("rules", &readiness, || {
        let options = load_options(flags, ca.is_some());
        // Half-done approvals are taken back before their files could be loaded.
        let (store, said) = RequestStore::open(Box::new(RealDisk), &flags.state_dir, &flags.rules_dir, unix_seconds());
        said.iter().for_each(|line| tracing::warn!(target: "agent_api", "{line}"));
        let loaded = rule_engine::load(&flags.rules_dir, &options, None)?;
        loaded.warnings.iter().for_each(|warning| tracing::warn!(target: "rule_engine", "{warning}"));
        tracing::info!(target: "rule_engine", files = loaded.files, rules = loaded.set.rules().len(), "rules loaded");
        let keeper = RequestKeeperConfig { store, options: options.clone(), rule_engine: to_rules.clone() };
        let config = RuleEngineConfig { directory: flags.rules_dir.clone(), options, current: Arc::clone(&loaded.set) };
        let engine = RuleEngine::new(config, control.clone(), rules_poll, rules_mailbox);
        let address = to_rules.clone();
        run_thread(
            started,
            Subsystem::RuleEngine,
            &control,
            move || engine.run(),
            tell(address, || RuleEngineCommand::Stop),
        )?;
        let keeper = RequestKeeper::new(keeper, requests_poll, requests_mailbox);
        let stop = tell(to_requests.clone(), || RequestsCommand::Stop);
        run_thread(started, Subsystem::RuleRequests, &control, move || keeper.run(), stop)?;
        Ok(loaded.set)
    })?;

    let docker = step("network", &readiness, || {
        // Written with the step `leaves`, before anybody can ask for a container.
        let ca_bundle = ca.as_ref().map(|_| Published::path(&flags.state_dir));
        let config = docker_config(flags, ca_bundle);
        let links = DockerLinks {
            control: control.clone(),
            bridge: to_bridge.clone(),
            events: events.clone(),
            readiness: readiness.clone(),
            own: to_docker.clone(),
        };
        let docker = DockerManager::start(config, links, docker_poll, docker_mailbox)?;
        started.network = docker.undo_start();
        Ok(docker)
    })?;

    let first = Arc::new(Snapshot { generation: 1, rules, directory: docker.directory() });
    let mut publisher = Publisher::new((*first).clone());
    let reached = to_bridge.send_within(BridgeCommand::Snapshot(Arc::clone(&first)), DELIVER_WITHIN).is_ok();
    if !reached {
        return Err(StartFailure::new("network", "the bridge thread does not take the first snapshot"));
    }

    // Who is there is known: what an operator had opened comes back, for the containers that are the same.
    let (kept, said) = DynamicRules::open(Box::new(RealDisk), &flags.state_dir, unix_seconds());
    said.iter().for_each(|line| tracing::warn!(target: "bridge", "{line}"));
    readiness.warn("dynamic_rules", (!said.is_empty()).then(|| said.join("; ")));
    let keeper = GrantKeeper::new(kept, to_bridge.clone(), grants_poll, grants_mailbox, to_grants.clone());
    let stop = tell(to_grants.clone(), || DynamicRulesCommand::Stop);
    run_thread(&mut *started, Subsystem::DynamicRules, &control, move || keeper.run(), stop)
        .map_err(|error| StartFailure::new("network", error))?;

    step("dns", &readiness, || {
        let config = DnsConfig {
            listen: flags.dns_listen,
            port: flags.dns_port,
            upstreams,
            extra_peers: flags.extra_peers.clone(),
        };
        let links = DnsLinks {
            control: control.clone(),
            docker: to_docker.clone(),
            bridge: to_bridge.clone(),
            own: to_dns.clone(),
            events: events.clone(),
            readiness: readiness.clone(),
        };
        let server = DnsServer::start(config, links, dns_poll, dns_mailbox, Arc::clone(&first))?;
        publisher.add(reader(Subsystem::Dns, to_dns.clone(), DnsCommand::Snapshot));
        run_thread(started, Subsystem::Dns, &control, move || server.run(), tell(to_dns.clone(), || DnsCommand::Stop))
    })?;

    let mut to_leaves = None;
    let interception = match intercepting {
        Some(loaded) => Some(step("leaves", &readiness, || {
            interception::write_bundle(&loaded.published, &flags.state_dir)?;
            let ttl = Duration::from_secs(flags.intercept_leaf_ttl_secs);
            let (leaves, signer, commands) = authority::leaves(loaded.authority, ttl, to_proxy.clone());
            to_leaves = Some(commands.clone());
            let stop = move || {
                // A thread that is gone needs no telling.
                let _ = commands.send_timeout(LeavesCommand::Stop, Duration::from_secs(1));
            };
            run_thread(started, Subsystem::Leaves, &control, move || signer.run(), stop)?;
            Ok(interception_config(flags, leaves, loaded.upstream))
        })?),
        None => None,
    };

    if !flags.no_proxy {
        step("proxy", &readiness, || {
            let links = ProxyLinks {
                control: control.clone(),
                docker: to_docker.clone(),
                dns: to_dns.clone(),
                events: events.clone(),
                readiness: readiness.clone(),
                own: to_proxy.clone(),
            };
            let proxy =
                Proxy::start(proxy_config(flags, interception), links, proxy_poll, proxy_mailbox, Arc::clone(&first))?;
            publisher.add(reader(Subsystem::Proxy, to_proxy.clone(), ProxyCommand::Snapshot));
            run_thread(
                started,
                Subsystem::Proxy,
                &control,
                move || proxy.run(),
                tell(to_proxy.clone(), || ProxyCommand::Stop),
            )
        })?;
    }

    step("docker_manager", &readiness, || {
        run_thread(
            started,
            Subsystem::DockerManager,
            &control,
            move || docker.run(),
            tell(to_docker.clone(), || DockerCommand::Stop),
        )
    })?;

    // The operator's socket answers before the last step is done: that is not ready yet.
    readiness.set("agent_api", Err("it is being started".to_owned()));
    step("host_api", &readiness, || {
        let config = HostApiConfig {
            socket: flags.socket.clone(),
            subnet_block: flags.subnet_block.to_string(),
            ca,
            proxy: (!flags.no_proxy)
                .then_some(Listening { address: flags.proxy_addr, extra_peers: !flags.extra_peers.is_empty() }),
        };
        let links = HostApiLinks {
            control: control.clone(),
            bridge: to_bridge.clone(),
            docker: to_docker.clone(),
            dns: to_dns.clone(),
            proxy: (!flags.no_proxy).then(|| to_proxy.clone()),
            leaves: to_leaves,
            rule_engine: to_rules.clone(),
            requests: to_requests.clone(),
            dynamic_rules: to_grants.clone(),
            agent_api: to_agents.clone(),
            events: to_events,
            live,
            readiness: readiness.clone(),
            own: to_host.clone(),
        };
        let api = HostApi::start_on(host_socket, config, links, host_poll, host_mailbox, Arc::clone(&first))?;
        publisher.add(reader(Subsystem::HostApi, to_host.clone(), HostApiCommand::Snapshot));
        run_thread(
            started,
            Subsystem::HostApi,
            &control,
            move || api.run().map_err(|error| error.to_string()),
            tell(to_host.clone(), || HostApiCommand::Stop),
        )
    })?;

    if let Some(address) = flags.metrics_addr {
        step("metrics", &readiness, || {
            let server = MetricsServer::start(address, flags.subnet_block, to_host.clone(), metrics_parts)?;
            let stop = tell(to_metrics, || MetricsCommand::Stop);
            run_thread(started, Subsystem::Metrics, &control, move || server.run(), stop)
        })?;
    }

    step("agent_api", &readiness, || {
        let links = AgentApiLinks {
            control: control.clone(),
            docker: to_docker.clone(),
            requests: to_requests.clone(),
            events: events.clone(),
            readiness: readiness.clone(),
            own: to_agents.clone(),
        };
        let api = AgentApi::start_on(
            agent_socket,
            agent_config(flags),
            links,
            agent_poll,
            agent_mailbox,
            Arc::clone(&first),
        )?;
        publisher.add(reader(Subsystem::AgentApi, to_agents.clone(), AgentApiCommand::Snapshot));
        run_thread(
            started,
            Subsystem::AgentApi,
            &control,
            move || api.run(),
            tell(to_agents.clone(), || AgentApiCommand::Stop),
        )
    })?;

    publisher.add(reader(Subsystem::Bridge, to_bridge, BridgeCommand::Snapshot));
    let mut running = Control::new(control_poll, control_mailbox, signals, publisher, to_rules)
        .map_err(|error| StartFailure::new(START, error))?;
    if let Some(watchdog) = Watchdog::from_environment(Instant::now()) {
        running.watch(Watch { watchdog, host_api: to_host, own: control });
    }
    Ok(running)
}

/// Runs one step of the start, logs its duration and tells `/ready`.
fn step<T>(
    name: &'static str,
    readiness: &Readiness,
    work: impl FnOnce() -> Result<T, Box<dyn std::error::Error>>,
) -> Result<T, StartFailure> {
    let begun = Instant::now();
    let done = work().map_err(|error| StartFailure::new(name, chain(error.as_ref())))?;
    tracing::info!(target: "outcalld", step = name, took_ms = millis(begun), "started");
    readiness.set(name, Ok(()));
    Ok(done)
}

/// An error with its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // nix says `EPERM: Operation not permitted` where the standard library leaves the first word out.
        let known = match next.split_once(": ") {
            Some((errno, rest)) if errno.bytes().all(|byte| byte.is_ascii_uppercase()) => rest,
            _ => next.as_str(),
        };
        if !text.contains(known) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

fn run_thread(
    started: &mut Started,
    subsystem: Subsystem,
    control: &Address<ControlMessage>,
    work: impl FnOnce() -> Result<(), String> + Send + 'static,
    stop: impl Fn() + Send + 'static,
) -> Result<(), Box<dyn std::error::Error>> {
    started.running.push(spawn(subsystem, control.clone(), work, stop)?);
    Ok(())
}

fn start_events(
    flags: &Flags,
    started: &mut Started,
    control: &Address<ControlMessage>,
    to_host: Address<HostApiCommand>,
) -> Result<(EventSink, Sender<EventsCommand>, Arc<Live>), StartFailure> {
    let log = DecisionLog::new(&flags.state_dir, flags.decision_log_bytes, flags.decision_log_files);
    let (mut log, sink, commands) = EventLog::new(log);
    let live = log.publish_to(Box::new(move |batch| to_host.send(HostApiCommand::Events(batch)).is_ok()));
    let to_events = commands.clone();
    let stop = move || {
        // A thread that is gone needs no telling.
        let _ = commands.send_timeout(EventsCommand::Stop, Duration::from_secs(1));
    };
    let running = spawn(Subsystem::Events, control.clone(), move || log.run(), stop)
        .map_err(|error| StartFailure::new("start", error))?;
    started.events = Some(running);
    Ok((sink, to_events, live))
}

fn loop_parts<T>() -> Result<(mio::Poll, Address<T>, Mailbox<T>), StartFailure> {
    let failed = |error| StartFailure::new("start", format!("cannot make an event loop: {error}"));
    let poll = mio::Poll::new().map_err(failed)?;
    let (address, mailbox) = mailbox(&poll, MAILBOX_CAPACITY).map_err(failed)?;
    Ok((poll, address, mailbox))
}

fn reader<T: Send + 'static>(subsystem: Subsystem, address: Address<T>, message: fn(Arc<Snapshot>) -> T) -> Reader {
    Reader {
        subsystem,
        deliver: Box::new(move |snapshot| address.send_within(message(snapshot), DELIVER_WITHIN).is_ok()),
    }
}

fn tell<T: Send + 'static>(address: Address<T>, message: fn() -> T) -> impl Fn() + Send + 'static {
    move || {
        // A thread that is gone, or that takes nothing for a second, is left to the deadline of the stop.
        let _ = address.send_within(message(), Duration::from_secs(1));
    }
}

fn finish(flags: &Flags, started: Started, ending: Ending) -> ExitCode {
    match ending {
        Ending::Told => {
            let begun = Instant::now();
            let mode = match flags.on_exit {
                OnExit::Teardown => StopMode::Teardown,
                OnExit::Keep => StopMode::Keep,
            };
            let clean = started.stop(mode);
            tracing::info!(target: "outcalld", took_ms = millis(begun), "stopped");
            if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Ending::Died(why) => {
            tracing::error!(target: "outcalld", "{why}; closing the table and ending, so that nothing half works");
            if let Some(Err(error)) = started.closer.map(|closer| closer.close()) {
                tracing::error!(target: "outcalld", "the closed base table could not be put back: {error}");
            }
            // The other threads may be stuck on the one that died: the process ends without waiting for them.
            ExitCode::FAILURE
        }
    }
}

fn unix_seconds() -> u64 {
    // A clock before 1970 only names files oddly.
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
