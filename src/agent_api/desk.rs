//! The routes of the agent API, and who waits for what. No socket here: requests in, answers out.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::api::{CheckIn, CheckedIn, PermissionCheck, RuleRequestState, RuleSubmission};
use crate::daemon::Snapshot;
use crate::docker_manager::{DockerCommand, Endpoint};
use crate::event_loop::Reply;
use crate::events::{Event, Layer, Party, Verdict};
use crate::state::{RequestFailure, RequestsCommand, Submission};
use crate::unix_http::{Admission, Answer, Handler, Peer, Request, Response, Ticket};

use super::identities::{Identities, Who};
use super::identity::{Identifier, Unidentified};
use super::links::{AgentApiCommand, AgentApiConfig, AgentApiLinks};
use super::question::{Question, timed_out};
use super::respond::{failed, json, request_failed, too_often, unauthorized};
use super::sessions::Sessions;

/// How long Docker is waited for when somebody unknown asks.
const HOLD: Duration = Duration::from_secs(1);
/// How long the keeper is waited for: its queue, 2 s of checking, a write.
const KEEPER_WITHIN: Duration = Duration::from_secs(60);
/// Between two log lines, and two events, about peers that are refused.
const REFUSED_SAID_EVERY: Duration = Duration::from_secs(1);
/// Known keys beyond which those without a connection are dropped at the next chance.
const KEYS_MAX: usize = 4096;
/// The fields of a permission check, as check-in tells them.
const CONTEXT_KEYS: [&str; 3] = ["action_type", "target", "metadata"];

const CHECKIN: &str = "/v1/checkin";
const CHECK: &str = "/v1/permissions/check";
const REQUESTS: &str = "/v1/requests/rules";

/// A request whose sender is not known yet.
struct Held {
    request: Request,
    arrived: Instant,
}

/// The agent API without its sockets.
pub(super) struct Desk {
    config: AgentApiConfig,
    pub(super) links: AgentApiLinks,
    identifier: Identifier,
    snapshot: Arc<Snapshot>,
    identities: Identities,
    sessions: Sessions,
    held: BTreeMap<Ticket, Held>,
    /// Requests that wait for the keeper, and until when.
    waiting: BTreeMap<Ticket, Instant>,
    refused_said: Option<Instant>,
}

impl Desk {
    pub(super) fn new(
        config: AgentApiConfig,
        links: AgentApiLinks,
        identifier: Identifier,
        snapshot: Arc<Snapshot>,
    ) -> Self {
        let identities = Identities::new(&snapshot.directory);
        Desk {
            config,
            links,
            identifier,
            snapshot,
            identities,
            sessions: Sessions::default(),
            held: BTreeMap::new(),
            waiting: BTreeMap::new(),
            refused_said: None,
        }
    }

    /// Works by another snapshot. The requests that were held for it have their answers.
    pub(super) fn take(&mut self, snapshot: Arc<Snapshot>, now: Instant) -> Vec<(Ticket, Response)> {
        self.identities.take(&snapshot.directory);
        self.sessions.retain(&snapshot.directory);
        self.snapshot = snapshot;
        let tickets: Vec<Ticket> = self.held.keys().copied().collect();
        let mut answers = Vec::new();
        for ticket in tickets {
            let Some(held) = self.held.remove(&ticket) else { continue };
            match self.identities.who(held.request.key, held.arrived) {
                Who::Unasked => {
                    self.held.insert(ticket, held);
                }
                Who::Stranger => answers.push((ticket, self.stranger(&held.request))),
                Who::Endpoint(endpoint) => {
                    if let Answer::Now(response) = self.serve(&held.request, ticket, &endpoint, now) {
                        answers.push((ticket, response));
                    }
                }
            }
        }
        answers
    }

    /// The keeper answered. `None`: nobody waits for it any more.
    pub(super) fn request_answered(
        &mut self,
        ticket: Ticket,
        container_id: &str,
        submitted: bool,
        answer: Result<RuleRequestState, RequestFailure>,
    ) -> Option<Response> {
        if submitted {
            self.sessions.submitted(container_id);
        }
        self.waiting.remove(&ticket)?;
        Some(match answer {
            Ok(state) => json(if submitted { 201 } else { 200 }, &state),
            Err(failure) => request_failed(failure),
        })
    }

    /// When [`Desk::overdue`] has something to say.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let held = self.held.values().map(|held| held.arrived + HOLD);
        held.chain(self.waiting.values().copied()).min()
    }

    /// The answers of requests that waited too long.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<(Ticket, Response)> {
        if self.next_deadline().is_none_or(|at| at > now) {
            return Vec::new();
        }
        let mut answers = Vec::new();
        let late: Vec<Ticket> =
            self.held.iter().filter(|(_, held)| held.arrived + HOLD <= now).map(|(ticket, _)| *ticket).collect();
        for ticket in late {
            if let Some(held) = self.held.remove(&ticket) {
                answers.push((ticket, self.stranger(&held.request)));
            }
        }
        let late: Vec<Ticket> = self.waiting.iter().filter(|(_, until)| **until <= now).map(|(t, _)| *t).collect();
        for ticket in late {
            self.waiting.remove(&ticket);
            answers.push((ticket, failed(503, "the daemon did not get to the rule request in time; try again")));
        }
        answers
    }

    /// Told when no connection is open: whatever is only kept for connections may go.
    pub(super) fn nobody_is_connected(&mut self) {
        if self.identities.keys() > KEYS_MAX {
            self.identities.forget_keys();
        }
    }

    /// The route table.
    fn serve(&mut self, request: &Request, ticket: Ticket, endpoint: &Arc<Endpoint>, now: Instant) -> Answer {
        let answer = match (&*request.method, &*request.path) {
            _ if request.query.is_some() => Err(failed(400, "there are no query parameters here")),
            ("POST", CHECKIN) => self.check_in(request, endpoint),
            ("POST", CHECK) => self.check(request, endpoint, now),
            ("POST", REQUESTS) => self.submit(request, ticket, endpoint, now),
            ("GET", path) if request_id(path).is_some() => self.request_state(request, ticket, endpoint, now),
            (_, CHECKIN | CHECK | REQUESTS) => Err(failed(405, "only POST is allowed here").with("Allow", "POST")),
            (_, path) if request_id(path).is_some() => {
                Err(failed(405, "only GET is allowed here").with("Allow", "GET"))
            }
            _ => Err(failed(404, "there is no such resource")),
        };
        answer.unwrap_or_else(Answer::Now)
    }

    fn check_in(&mut self, request: &Request, endpoint: &Endpoint) -> Result<Answer, Response> {
        let CheckIn {} = body(request)?;
        let session_token = self.sessions.check_in(endpoint).map_err(|error| {
            tracing::error!(target: "agent_api", "no session token: the kernel gives no random numbers: {error}");
            failed(500, "the daemon cannot make a session token")
        })?;
        tracing::debug!(target: "agent_api", container = %endpoint.container, "checked in");
        Ok(Answer::Now(json(
            200,
            &CheckedIn {
                container_id: endpoint.container_id.to_string(),
                session_token,
                context_keys: CONTEXT_KEYS.map(str::to_owned).to_vec(),
            },
        )))
    }

    fn check(&mut self, request: &Request, endpoint: &Arc<Endpoint>, now: Instant) -> Result<Answer, Response> {
        if !bearer(request).is_some_and(|token| self.sessions.knows(endpoint, token)) {
            return Err(unauthorized());
        }
        self.sessions
            .take_check(endpoint, self.config.checks, now)
            .map_err(|wait| too_often(wait, "too many permission checks; wait as Retry-After says"))?;
        let check: PermissionCheck = body(request)?;
        let question = Question::read(check).map_err(|malformed| failed(400, malformed.0))?;
        let begun = Instant::now();
        let mut answered = question.ask(endpoint, &self.snapshot.rules);
        let took = begun.elapsed();
        if took > self.config.evaluation_limit {
            tracing::warn!(target: "agent_api", container = %endpoint.container, took_ms = took.as_millis(),
                "a permission check took too long and is denied");
            answered = timed_out();
        }
        let verdict = if answered.verdict.allowed { Verdict::Allow } else { Verdict::Block };
        let http = question.http();
        let flows = self.links.events.flows();
        let party = Party::Container(&endpoint.container_id);
        self.links.events.record(Event {
            flow: Some(question.destination().map_or_else(|| flows.begin(), |(host, _)| flows.asked(party, host))),
            endpoint: Some(Arc::clone(endpoint)),
            rule: answered.rule,
            host: question.destination().map(|(host, _)| host.into()),
            port: question.destination().and_then(|(_, port)| port),
            method: http.and_then(|(method, _)| method).map(Into::into),
            path: http.map(|(_, path)| path.into()),
            duration_us: Some(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            ..Event::new(Layer::AgentApi, verdict, answered.code)
        });
        Ok(Answer::Now(json(200, &answered.verdict)))
    }

    fn submit(
        &mut self,
        request: &Request,
        ticket: Ticket,
        endpoint: &Arc<Endpoint>,
        now: Instant,
    ) -> Result<Answer, Response> {
        self.own_token_if_any(request, endpoint)?;
        self.sessions
            .take_submission(endpoint, self.config.submissions, now)
            .map_err(|wait| too_often(wait, "too many rule requests; wait as Retry-After says"))?;
        let RuleSubmission { rule_file } = body(request).inspect_err(|_| {
            self.sessions.submitted(&endpoint.container_id);
        })?;
        let snapshot = Arc::clone(&self.snapshot);
        let submission = Submission { endpoint: Arc::clone(endpoint), rule_file, snapshot };
        let reply = self.reply(ticket, endpoint, true);
        self.ask_keeper(ticket, RequestsCommand::Submit(submission, reply), now).inspect_err(|_| {
            self.sessions.submitted(&endpoint.container_id);
        })
    }

    fn request_state(
        &mut self,
        request: &Request,
        ticket: Ticket,
        endpoint: &Arc<Endpoint>,
        now: Instant,
    ) -> Result<Answer, Response> {
        self.own_token_if_any(request, endpoint)?;
        let id = request_id(&request.path).unwrap_or_default().to_owned();
        let reply = self.reply(ticket, endpoint, false);
        let container_id = Arc::clone(&endpoint.container_id);
        self.ask_keeper(ticket, RequestsCommand::Status { container_id, id, reply }, now)
    }

    /// The kernel has said who asks; a token is not needed here, but a wrong one is still wrong.
    fn own_token_if_any(&self, request: &Request, endpoint: &Endpoint) -> Result<(), Response> {
        let given = request.fields.first("authorization").is_some();
        let good = bearer(request).is_some_and(|token| self.sessions.knows(endpoint, token));
        if given && !good { Err(unauthorized()) } else { Ok(()) }
    }

    fn reply(
        &self,
        ticket: Ticket,
        endpoint: &Endpoint,
        submitted: bool,
    ) -> Reply<Result<RuleRequestState, RequestFailure>> {
        let own = self.links.own.clone();
        let container_id = Arc::clone(&endpoint.container_id);
        Reply::new(move |answer| {
            // A full mailbox loses the answer; the request then ends by its own deadline.
            let _ = own.send(AgentApiCommand::Request { ticket, container_id, submitted, answer });
        })
    }

    fn ask_keeper(&mut self, ticket: Ticket, command: RequestsCommand, now: Instant) -> Result<Answer, Response> {
        if self.links.requests.send(command).is_err() {
            return Err(failed(503, "the daemon is busy with other rule requests; try again").with("Retry-After", "5"));
        }
        self.waiting.insert(ticket, now + KEEPER_WITHIN);
        Ok(Answer::Later)
    }

    fn stranger(&mut self, request: &Request) -> Response {
        let id = self.identities.id(request.key).map_or("?", |id| id.get(..12).unwrap_or("?")).to_owned();
        self.say_refused(&format!("container {id} is on no managed network"));
        failed(403, "this container is on no network of outcalld").closing()
    }

    /// A line and an event, once a second at most: whoever is refused may try as often as it likes.
    fn say_refused(&mut self, why: &str) {
        let now = Instant::now();
        if self.refused_said.is_some_and(|said| now.duration_since(said) < REFUSED_SAID_EVERY) {
            return;
        }
        self.refused_said = Some(now);
        tracing::warn!(target: "agent_api", "refused: {why}");
        self.links.events.record(Event::new(Layer::AgentApi, Verdict::Block, "unknown_peer"));
    }
}

impl Handler for Desk {
    fn admit(&mut self, peer: &Peer, socket: BorrowedFd<'_>) -> Admission {
        let (why, message) = match self.identifier.container_of(socket, peer.pid) {
            Ok(id) => match self.identities.key(&id) {
                Some(key) => return Admission::Serve { key },
                None => ("two containers have the same key".to_owned(), "try again later".to_owned()),
            },
            Err(error) => {
                if matches!(error, Unidentified::PidHidden) {
                    self.links.readiness.warn("agent_api.pids", Some(super::PIDS_HIDDEN.to_owned()));
                }
                (error.to_string(), "only processes of containers on outcalld's networks are served here".to_owned())
            }
        };
        self.say_refused(&format!("pid {}, uid {}: {why}", peer.pid, peer.uid));
        Admission::Refuse { status: 403, message }
    }

    fn request(&mut self, request: Request, ticket: Ticket) -> Answer {
        let now = Instant::now();
        match self.identities.who(request.key, now) {
            Who::Endpoint(endpoint) => self.serve(&request, ticket, &endpoint, now),
            Who::Stranger => Answer::Now(self.stranger(&request)),
            Who::Unasked => {
                // Docker answers for all of them at once; a mailbox that is full has other questions to answer first,
                // and its next reading answers this one too.
                let _ = self.links.docker.send(DockerCommand::Identify(std::net::Ipv4Addr::UNSPECIFIED));
                self.held.insert(ticket, Held { request, arrived: now });
                Answer::Later
            }
        }
    }

    fn refusal(&mut self, status: u16, message: &str) -> Response {
        failed(status, message)
    }

    fn gone(&mut self, ticket: Ticket) {
        self.held.remove(&ticket);
        self.waiting.remove(&ticket);
    }

    fn accept_failed(&mut self, error: &std::io::Error) {
        tracing::warn!(target: "agent_api", "cannot accept connections: {error}; trying on");
    }
}

/// ID of `/v1/requests/rules/ID`.
fn request_id(path: &str) -> Option<&str> {
    let id = path.strip_prefix(REQUESTS)?.strip_prefix('/')?;
    (!id.is_empty() && !id.contains('/')).then_some(id)
}

/// The token of `Authorization: Bearer T` (RFC 6750 2.1), when there is exactly one such field.
fn bearer(request: &Request) -> Option<&[u8]> {
    let mut fields = request.fields.all("authorization");
    let value = fields.next()?;
    if fields.next().is_some() {
        return None;
    }
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii_start())
}

/// The body as a JSON object; an empty one is `{}`. Unknown fields are refused by the types.
fn body<T: DeserializeOwned>(request: &Request) -> Result<T, Response> {
    let bytes: &[u8] = if request.body.is_empty() { b"{}" } else { &request.body };
    // serde would take a list for a struct, field by field.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(failed(400, "the body is no JSON object"));
    }
    serde_json::from_slice(bytes).map_err(|error| failed(400, format!("the body is wrong: {error}")))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{directory, endpoint};
    use super::*;
    use crate::daemon::{Rate, Readiness};
    use crate::event_loop::{Address, Mailbox, mailbox};
    use crate::events::EventSink;
    use crate::rule_engine::RuleSet;

    #[test]
    fn a_keeper_that_does_not_answer_is_503_in_the_end() {
        fn address<T>() -> (Address<T>, Mailbox<T>) {
            mailbox(&mio::Poll::new().unwrap(), 1).unwrap()
        }
        let (requests, taken) = address();
        let links = AgentApiLinks {
            control: address().0,
            docker: address().0,
            requests,
            events: EventSink::discard(),
            readiness: Readiness::default(),
            own: address().0,
        };
        let rate = Rate { count: 1, window: Duration::from_secs(1) };
        let config = AgentApiConfig {
            socket: "agent.sock".into(),
            docker_socket: "docker.sock".into(),
            evaluation_limit: Duration::from_secs(1),
            checks: rate,
            submissions: rate,
        };
        let now = Instant::now();
        let snapshot = Snapshot {
            generation: 1,
            rules: Arc::new(RuleSet::block_all()),
            directory: Arc::new(directory(&[&endpoint("coder-1", 1, 7)])),
        };
        let mut desk = Desk::new(config, links, Identifier::new().unwrap(), Arc::new(snapshot));
        let ticket = Ticket::detached(1);
        let stop = RequestsCommand::Stop;
        assert!(matches!(desk.ask_keeper(ticket, stop, now), Ok(Answer::Later)));
        assert!(taken.take().is_some());
        assert!(desk.overdue(now + KEEPER_WITHIN - Duration::from_secs(1)).is_empty());
        let answers = desk.overdue(now + KEEPER_WITHIN);
        assert_eq!(
            answers.iter().map(|(ticket, response)| (*ticket, response.status)).collect::<Vec<_>>(),
            [(ticket, 503)]
        );
        assert_eq!(desk.next_deadline(), None);
    }
}
