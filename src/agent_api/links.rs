//! What the thread is given, and the commands it takes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::api::RuleRequestState;
use crate::daemon::control::ControlMessage;
use crate::daemon::{Rate, Readiness, Snapshot};
use crate::docker_manager::DockerCommand;
use crate::event_loop::{Address, Reply};
use crate::events::EventSink;
use crate::state::{RequestFailure, RequestsCommand};
use crate::unix_http::Ticket;

/// The agent API's settings.
#[derive(Clone, Debug)]
pub struct AgentApiConfig {
    /// `--agent-socket-host-path`
    pub socket: PathBuf,
    /// `--docker-socket`: only to tell, at the start, whether containers' processes can be seen from here.
    pub docker_socket: PathBuf,
    /// `--agent-timeout-secs`
    pub evaluation_limit: Duration,
    /// `--agent-perm-rate`
    pub checks: Rate,
    /// `--agent-rule-rate`
    pub submissions: Rate,
}

/// Whom the agent API asks and tells.
pub struct AgentApiLinks {
    /// Told which generation is worked by.
    pub control: Address<ControlMessage>,
    /// Asked about a container that nobody knows yet.
    pub docker: Address<DockerCommand>,
    /// Owner of the rule requests.
    pub requests: Address<RequestsCommand>,
    /// Decisions.
    pub events: EventSink,
    /// What `/ready` says.
    pub readiness: Readiness,
    /// This thread's own mailbox: answers come back through it.
    pub own: Address<AgentApiCommand>,
}

/// What the agent API's thread is told.
pub enum AgentApiCommand {
    /// Work by this snapshot.
    Snapshot(Arc<Snapshot>),
    /// The keeper's answer about a rule request.
    Request {
        /// Whose connection waits.
        ticket: Ticket,
        /// Of the container that asked.
        container_id: Arc<str>,
        /// Whether it was a submission.
        submitted: bool,
        /// The answer.
        answer: Result<RuleRequestState, RequestFailure>,
    },
    /// Answered at once by a living thread.
    Ping(Reply<()>),
    /// Finish: no new connections, what is under way within 3 s.
    Stop,
}
