//! What the thread is given, and the commands it takes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;

use crate::agent_api::AgentApiCommand;
use crate::authority::{LeavesCommand, Published};
use crate::bridge::BridgeCommand;
use crate::daemon::control::ControlMessage;
use crate::daemon::{Readiness, Snapshot, Subsystem};
use crate::dns::DnsCommand;
use crate::docker_manager::DockerCommand;
use crate::event_loop::{Address, Reply};
use crate::events::{Batch, EventsCommand, Live};
use crate::proxy::{Listening, ProxyCommand};
use crate::rule_engine::RuleEngineCommand;
use crate::state::{DynamicRulesCommand, RequestsCommand};
use crate::unix_http::{Response, Ticket};

use super::metrics::Part;

/// The operator API's settings.
#[derive(Clone, Debug)]
pub struct HostApiConfig {
    /// `--socket`
    pub socket: PathBuf,
    /// `--subnet-block`, as `network/config` shows it.
    pub subnet_block: String,
    /// What is public of the CA, when one is loaded.
    pub ca: Option<Published>,
    /// How the proxy listens; `None` with `--no-proxy`.
    pub proxy: Option<Listening>,
}

/// Whom the operator API asks.
pub struct HostApiLinks {
    /// Told which generation is worked by; asked whether it is alive.
    pub control: Address<ControlMessage>,
    /// Owner of links and tables.
    pub bridge: Address<BridgeCommand>,
    /// Owner of networks.
    pub docker: Address<DockerCommand>,
    /// Owner of the DNS filter and its cache.
    pub dns: Address<DnsCommand>,
    /// Owner of the proxy; `None` with `--no-proxy`.
    pub proxy: Option<Address<ProxyCommand>>,
    /// Signs certificates: asked only whether it is alive; `None` without a CA.
    pub leaves: Option<Sender<LeavesCommand>>,
    /// Loads and tests rules.
    pub rule_engine: Address<RuleEngineCommand>,
    /// Owner of the rule requests.
    pub requests: Address<RequestsCommand>,
    /// Keeps the flows that operators open.
    pub dynamic_rules: Address<DynamicRulesCommand>,
    /// The agents' API: asked only whether it is alive.
    pub agent_api: Address<AgentApiCommand>,
    /// Writes decisions down, keeps the last of them and counts them.
    pub events: Sender<EventsCommand>,
    /// Where the events thread sees whether anybody follows.
    pub live: Arc<Live>,
    /// What `/ready` says.
    pub readiness: Readiness,
    /// This thread's own mailbox: answers come back through it.
    pub own: Address<HostApiCommand>,
}

/// What the operator API's thread is told.
pub enum HostApiCommand {
    /// Work by this snapshot.
    Snapshot(Arc<Snapshot>),
    /// An owner's answer to the request that holds this ticket.
    Answer(Ticket, Late),
    /// Events for those who follow.
    Events(Batch),
    /// An owner's numbers for the scrape that holds this ticket.
    Part(Ticket, Part),
    /// The text of `/metrics`, for the thread that serves it over TCP.
    Metrics(Reply<Vec<u8>>),
    /// Which threads do not answer within `limit`: for the watchdog.
    Health {
        /// How long they have.
        limit: Duration,
        /// Their names; none: every thread answers.
        reply: Reply<Vec<&'static str>>,
    },
    /// A subsystem answered the health check that holds this ticket.
    Alive(Ticket, Subsystem),
    /// Answered at once by a living thread.
    Ping(Reply<()>),
    /// Finish: no new connections, what is under way within 3 s.
    Stop,
}

/// An answer that is formatted by the operator API's own thread, so that no enforcing thread writes JSON.
pub struct Late(Box<dyn FnOnce() -> Response + Send>);

impl Late {
    pub(super) fn new(format: impl FnOnce() -> Response + Send + 'static) -> Self {
        Late(Box::new(format))
    }

    pub(super) fn response(self) -> Response {
        (self.0)()
    }
}
