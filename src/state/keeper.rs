//! The thread that owns the rule requests: it may block on the disk, the rule checker and the rule engine, so that
//! the loops that ask it never do.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::api;
use crate::daemon::Snapshot;
use crate::docker_manager::Endpoint;
use crate::event_loop::{Address, Mailbox, Reply, reply_channel};
use crate::events::rfc3339;
use crate::rule_engine::{LoadOptions, RuleEngineCommand, installs};

use super::ledger::{LedgerError, REASON_MAX, RuleRequest, Status};
use super::store::{ApproveError, NotInstalled, RequestStore, StoreError};

/// How long a reload may take: a load of 30 s and 10 s for every reader to take it.
const RELOAD_WITHIN: Duration = Duration::from_secs(45);
/// How long the rule engine's full mailbox is waited for.
const SEND_WITHIN: Duration = Duration::from_secs(5);
/// Lines of errors in one answer.
const LINES_MAX: usize = 20;
/// Requests that one list looks into anew, each with the guarded child: a list after a restart must not keep its
/// asker waiting. The next list goes on.
const LINTED_AT_ONCE: usize = 16;
/// Bytes of one line: agents see what they wrote, not more of it than helps.
const LINE_MAX: usize = 400;

/// A submission of an agent.
pub struct Submission {
    /// Who asks: by the kernel's word.
    pub endpoint: Arc<Endpoint>,
    /// The text.
    pub rule_file: String,
    /// Rules and containers as they are now.
    pub snapshot: Arc<Snapshot>,
}

/// Why an answer is no success. Each kind is one HTTP status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestFailure {
    /// 404
    Unknown(String),
    /// 409
    Conflict(String),
    /// 422
    Invalid(String),
    /// 429
    TooMany(String),
    /// 500
    Failed(String),
}

impl From<StoreError> for RequestFailure {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::Ledger(LedgerError::Unknown) => RequestFailure::Unknown(text),
            StoreError::Ledger(LedgerError::Decided(_) | LedgerError::Busy) => RequestFailure::Conflict(text),
            StoreError::Ledger(LedgerError::ContainerFull | LedgerError::Full) => RequestFailure::TooMany(text),
            StoreError::Unusable(_) | StoreError::Write { .. } => RequestFailure::Failed(text),
        }
    }
}

impl From<ApproveError> for RequestFailure {
    fn from(error: ApproveError) -> Self {
        let text = error.to_string();
        match error {
            ApproveError::Store(error) => error.into(),
            ApproveError::FileExists(_) => RequestFailure::Conflict(text),
            ApproveError::File { .. } => RequestFailure::Failed(text),
            ApproveError::Refused(_) => RequestFailure::Invalid(text),
        }
    }
}

type Answer<T> = Reply<Result<T, RequestFailure>>;

/// What the keeper is asked to do.
pub enum RequestsCommand {
    /// `POST /v1/requests/rules`: answered when the request is durable.
    Submit(Submission, Answer<api::RuleRequestState>),
    /// `GET /v1/requests/rules/ID` of this container.
    Status {
        /// Who asks.
        container_id: Arc<str>,
        /// The request.
        id: String,
        /// Another's is [`RequestFailure::Unknown`] too.
        reply: Answer<api::RuleRequestState>,
    },
    /// What waits for the operator; with `all_agents`, `installs` is what such an approval would write.
    List {
        /// See there.
        all_agents: bool,
        /// Oldest first.
        reply: Answer<Vec<api::PendingRuleRequest>>,
    },
    /// Installs a request.
    Approve {
        /// The request.
        id: String,
        /// Not limited to the container that asked.
        all_agents: bool,
        /// Answered when every thread has the rules.
        reply: Answer<api::RuleRequestApproved>,
    },
    /// Refuses a request.
    Reject {
        /// The request.
        id: String,
        /// For the agent to read.
        reason: Option<String>,
        /// Answered when it is durable.
        reply: Answer<api::RuleRequestRejected>,
    },
    /// Answered at once by a living thread.
    Ping(Reply<()>),
    /// Finish what is under way.
    Stop,
}

/// What the keeper works with.
pub struct RequestKeeperConfig {
    /// Opened before the rules were loaded.
    pub store: RequestStore,
    /// How rules are checked.
    pub options: LoadOptions,
    /// Reloads.
    pub rule_engine: Address<RuleEngineCommand>,
}

/// The thread's state.
pub struct RequestKeeper {
    config: RequestKeeperConfig,
    poll: mio::Poll,
    mailbox: Mailbox<RequestsCommand>,
    /// What was found in the requests that wait, by id.
    lints: HashMap<String, Option<Vec<String>>>,
}

impl RequestKeeper {
    /// A keeper that waits on `poll`, which wakes for `mailbox`.
    #[must_use]
    pub fn new(config: RequestKeeperConfig, poll: mio::Poll, mailbox: Mailbox<RequestsCommand>) -> Self {
        RequestKeeper { config, poll, mailbox, lints: HashMap::new() }
    }

    /// Works until told to stop.
    ///
    /// # Errors
    /// The poll fails, which leaves the thread deaf.
    pub fn run(mut self) -> Result<(), String> {
        let mut events = mio::Events::with_capacity(4);
        // Submissions take the checker's time; whoever only asks or decides goes first.
        let mut submissions = VecDeque::new();
        loop {
            while let Some(command) = self.mailbox.take() {
                match command {
                    RequestsCommand::Submit(submission, reply) => submissions.push_back((submission, reply)),
                    RequestsCommand::Status { container_id, id, reply } => {
                        reply.send(self.status(&container_id, &id));
                    }
                    RequestsCommand::List { all_agents, reply } => reply.send(self.list(all_agents)),
                    RequestsCommand::Approve { id, all_agents, reply } => reply.send(self.approve(&id, all_agents)),
                    RequestsCommand::Reject { id, reason, reply } => reply.send(self.reject(&id, reason)),
                    RequestsCommand::Ping(reply) => reply.send(()),
                    RequestsCommand::Stop => return Ok(()),
                }
            }
            if let Some((submission, reply)) = submissions.pop_front() {
                reply.send(self.submit(&submission));
                continue;
            }
            match self.poll.poll(&mut events, None) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("cannot wait for rule requests: {error}")),
            }
        }
    }

    fn submit(&mut self, submission: &Submission) -> Result<api::RuleRequestState, RequestFailure> {
        let endpoint = &submission.endpoint;
        self.config.store.ledger()?.room_for(&endpoint.container_id).map_err(StoreError::from)?;
        let id = fresh_id()?;
        let heading = format!(
            "Rule request {id} of container {} ({})",
            endpoint.container,
            endpoint.container_id.get(..12).unwrap_or_default()
        );
        let done = installs(&submission.rule_file, Some(&endpoint.container), &heading, &self.config.options)
            .map_err(|errors| RequestFailure::Invalid(lines(&errors.lines())))?;
        if let Some(taken) = done.ids.iter().find(|id| submission.snapshot.rules.rule(id).is_some()) {
            let reason = format!("rule_file: rule {taken}: the id is taken already; choose another");
            return Err(RequestFailure::Invalid(reason));
        }
        let now = rfc3339(SystemTime::now());
        let request = RuleRequest {
            id: id.clone(),
            container_id: Arc::clone(&endpoint.container_id),
            container: Arc::clone(&endpoint.container),
            rule_file: submission.rule_file.as_str().into(),
            installs: done.text.into(),
            status: Status::Pending,
            submitted_at: now.clone(),
            decided_at: None,
        };
        let directory = &submission.snapshot.directory;
        let lives = |id: &str| directory.endpoints.values().any(|endpoint| &*endpoint.container_id == id);
        self.config.store.submit(request, lives, &now)?;
        tracing::info!(target: "agent_api", id, container = %endpoint.container, rules = done.ids.len(),
            "a rule request waits for the operator");
        Ok(api::RuleRequestState { id, status: Status::Pending.as_str().to_owned(), reason: None })
    }

    fn status(&self, container_id: &str, id: &str) -> Result<api::RuleRequestState, RequestFailure> {
        let found = self.config.store.ledger()?.find(id).filter(|request| &*request.container_id == container_id);
        let request = found.ok_or(StoreError::Ledger(LedgerError::Unknown))?;
        Ok(api::RuleRequestState {
            id: request.id.clone(),
            status: request.status.as_str().to_owned(),
            reason: request.status.reason().map(str::to_owned),
        })
    }

    fn list(&mut self, all_agents: bool) -> Result<Vec<api::PendingRuleRequest>, RequestFailure> {
        self.look_into_pending()?;
        let pending = self.config.store.ledger()?.pending();
        pending
            .map(|request| {
                let text = if all_agents { self.for_all_agents(request)? } else { request.installs.to_string() };
                Ok(api::PendingRuleRequest {
                    id: request.id.clone(),
                    container_id: request.container_id.to_string(),
                    container: request.container.to_string(),
                    rule_file: request.rule_file.to_string(),
                    installs: text,
                    lint: self.lints.get(&request.id).cloned().flatten(),
                    status: request.status.as_str().to_owned(),
                    submitted_at: request.submitted_at.clone(),
                })
            })
            .collect()
    }

    /// Finds out what is odd about requests that were not looked into yet, and forgets those that wait no more.
    fn look_into_pending(&mut self) -> Result<(), RequestFailure> {
        let pending: Vec<&RuleRequest> = self.config.store.ledger()?.pending().collect();
        self.lints.retain(|id, _| pending.iter().any(|request| request.id == *id));
        let unknown = pending.iter().filter(|request| !self.lints.contains_key(&request.id)).take(LINTED_AT_ONCE);
        let found: Vec<_> = unknown
            .map(|request| {
                let done = installs(&request.rule_file, Some(&request.container), &request.id, &self.config.options);
                // What does not load any more, the approval will say.
                (request.id.clone(), done.ok().and_then(|done| done.remarks))
            })
            .collect();
        self.lints.extend(found);
        Ok(())
    }

    fn for_all_agents(&self, request: &RuleRequest) -> Result<String, RequestFailure> {
        let heading =
            format!("Rule request {} of container {}, installed for all agents", request.id, request.container);
        let done = installs(&request.rule_file, None, &heading, &self.config.options);
        done.map(|done| done.text).map_err(|errors| RequestFailure::Invalid(lines(&errors.lines())))
    }

    fn approve(&mut self, id: &str, all_agents: bool) -> Result<api::RuleRequestApproved, RequestFailure> {
        let request = self.config.store.ledger()?.find(id).ok_or(StoreError::Ledger(LedgerError::Unknown))?;
        let text = match request.status {
            Status::Pending if all_agents => self.for_all_agents(request)?,
            // Of a request that is decided, nothing is installed: the store says so.
            _ => request.installs.to_string(),
        };
        let now = rfc3339(SystemTime::now());
        let rule_engine = self.config.rule_engine.clone();
        let approved = self.config.store.approve(id, text.as_bytes(), &now, &mut || reload(&rule_engine));
        let rules_loaded = approved.inspect_err(|error| {
            tracing::warn!(target: "agent_api", id, "a rule request was not approved: {error}");
        })?;
        tracing::info!(target: "agent_api", id, all_agents, rules_loaded, "a rule request is approved");
        Ok(api::RuleRequestApproved { id: id.to_owned(), rules_loaded })
    }

    fn reject(&mut self, id: &str, reason: Option<String>) -> Result<api::RuleRequestRejected, RequestFailure> {
        if reason.as_ref().is_some_and(|reason| reason.len() > REASON_MAX) {
            return Err(RequestFailure::Invalid(format!("the reason is longer than {REASON_MAX} bytes")));
        }
        self.config.store.reject(id, reason, &rfc3339(SystemTime::now()))?;
        tracing::info!(target: "agent_api", id, "a rule request is rejected");
        Ok(api::RuleRequestRejected { id: id.to_owned() })
    }
}

fn reload(rule_engine: &Address<RuleEngineCommand>) -> Result<usize, NotInstalled> {
    let (reply, answer) = reply_channel();
    if rule_engine.send_within(RuleEngineCommand::Reload(reply), SEND_WITHIN).is_err() {
        return Err(NotInstalled { reasons: vec!["the rule engine takes no reload".to_owned()], unclear: false });
    }
    match answer.recv_timeout(RELOAD_WITHIN) {
        Ok(Ok(reloaded)) => Ok(reloaded.rules_loaded),
        Ok(Err(reasons)) => Err(NotInstalled { reasons, unclear: false }),
        Err(_) => Err(NotInstalled { reasons: vec!["the rule engine did not answer".to_owned()], unclear: true }),
    }
}

fn fresh_id() -> Result<String, RequestFailure> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| RequestFailure::Failed(format!("the kernel gives no random numbers: {error}")))?;
    Ok(format!("rr-{:016x}", u64::from_be_bytes(bytes)))
}

/// The first lines of many, each cut short, without control characters.
fn lines(all: &[String]) -> String {
    let mut shown: Vec<String> = all
        .iter()
        .take(LINES_MAX)
        .map(|line| {
            let mut end = line.len().min(LINE_MAX);
            while !line.is_char_boundary(end) {
                end -= 1;
            }
            line[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
        })
        .collect();
    if all.len() > LINES_MAX {
        shown.push("and more".to_owned());
    }
    shown.join("\n")
}
