//! Containers made by outcalld: what they may be, how they are made, and what is done with them later.
//!
//! Owns: the commands about containers and the threads they run on, a few at a time; what a create that broke off has
//! left is removed by a sweep. Does not own: who is behind an address (`view`), what is enforced in the kernel: a
//! container started by plain `docker run` on a managed network is held by the same table.
//!
//! | file | what it owns |
//! |---|---|
//! | `wish` | a request, checked |
//! | `binds`, `mounts` | which paths of the host may be seen |
//! | `helpers` | the agents' socket, the shim, the certificates |
//! | `contained` | whether outcalld runs in a container itself |
//! | `body` | the hardening, as the Engine is told |
//! | `create`, `manage` | the steps |
//! | `calls` | the Engine's calls and their JSON |

mod binds;
mod body;
mod calls;
mod contained;
mod create;
mod helpers;
mod manage;
mod mounts;
mod wish;

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::client::{Client, DockerError};
use super::manager::{Noticed, STOP_LIMIT};
use super::network_ops::failure;
use super::{DockerCommand, DockerConfig, DockerFailure, DockerManager, Notice};
use crate::api;
use crate::event_loop::Reply;
use crate::rule_engine::RuleSet;

use binds::Own;

/// Where the agents' socket is in a container: the directory is mounted, so that a socket made anew is seen.
const AGENT_DIRECTORY_TARGET: &str = "/run/outcall";
const AGENT_SOCKET_TARGET: &str = "/run/outcall/agent.sock";
/// Where the shim is.
const SHIM_TARGET: &str = "/usr/local/bin/outcall";
/// Where the certificates are.
const CA_TARGET: &str = "/etc/outcall/ca";
const CA_BUNDLE_TARGET: &str = "/etc/outcall/ca/bundle.pem";
/// Labels beside `managed-by`.
const LABEL_NETWORK: &str = "outcall.network";
const LABEL_CREATED_AT: &str = "outcall.created-at";

/// Commands about containers at work at once: each holds a thread and an Engine's attention.
const RUNNING_MAX: usize = 4;
/// Pulls at once, apart from the others: they take minutes.
const PULLING_MAX: usize = 2;
/// Commands that wait; past it they are refused (503).
const WAITING_MAX: usize = 64;
/// The first wait before half-made containers are looked for again, and the longest: an Engine that hung may still
/// make what it was asked for.
const SWEEP_WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

type Answer<T> = Reply<Result<T, DockerFailure>>;

/// What can be asked about containers.
pub enum ContainerCommand {
    /// Make and start one, judged by these rules.
    Create(Box<api::ContainerCreate>, Arc<RuleSet>, Answer<api::ContainerCreated>),
    /// Stop one.
    Stop(api::ContainerStop, Answer<api::ContainerStopped>),
    /// Remove one.
    Remove(api::ContainerRemove, Answer<api::ContainerRemoved>),
    /// Fetch an image.
    Pull(api::ContainerPull, Answer<api::ContainerPulled>),
    /// All of them.
    List(Answer<Vec<api::ContainerSummary>>),
    /// One of them, by name or id.
    Inspect(String, Answer<api::ContainerDetail>),
}

impl ContainerCommand {
    fn refuse(self, why: DockerFailure) {
        match self {
            ContainerCommand::Create(_, _, reply) => reply.send(Err(why)),
            ContainerCommand::Stop(_, reply) => reply.send(Err(why)),
            ContainerCommand::Remove(_, reply) => reply.send(Err(why)),
            ContainerCommand::Pull(_, reply) => reply.send(Err(why)),
            ContainerCommand::List(reply) => reply.send(Err(why)),
            ContainerCommand::Inspect(_, reply) => reply.send(Err(why)),
        }
    }
}

/// What the commands need. Cheap to clone.
#[derive(Clone)]
pub(super) struct ContainerOps {
    client: Client,
    default_bridge: String,
    own: Arc<Own>,
    agent_directory: PathBuf,
    shim: PathBuf,
    proxy: Option<SocketAddr>,
    ca_bundle: Option<PathBuf>,
    making: Making,
}

impl ContainerOps {
    fn new(config: &DockerConfig, client: &Client) -> Self {
        ContainerOps {
            // Connections of its own: a hung command of these must not hold up the others' pool.
            client: client.clone(),
            default_bridge: config.bridge.clone(),
            own: Arc::new(Own {
                sockets: vec![config.operator_socket.clone(), config.socket.clone()],
                trees: config.protected.clone(),
            }),
            agent_directory: config.agent_directory.clone(),
            shim: config.shim.clone(),
            proxy: config.proxy,
            ca_bundle: config.ca_bundle.clone(),
            making: Making::default(),
        }
    }
}

/// The names of containers that are being made, for the sweep to leave alone.
#[derive(Clone, Default)]
struct Making(Arc<Mutex<HashSet<String>>>);

/// Holds a name until it is dropped.
struct Held<'a>(&'a Making, String);

impl Making {
    fn hold(&self, name: &str) -> Held<'_> {
        self.names().insert(name.to_owned());
        Held(self, name.to_owned())
    }

    fn holds(&self, name: &str) -> bool {
        self.names().contains(name)
    }

    fn names(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        // A set of names is whole at any moment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.names().remove(&self.1);
    }
}

/// Where the manager keeps its containers' commands.
pub(super) struct Containers {
    ops: ContainerOps,
    waiting: VecDeque<ContainerCommand>,
    pulls: VecDeque<ContainerCommand>,
    running: usize,
    pulling: usize,
    /// When half-made containers are looked for next, and the wait after that.
    sweep: Option<Instant>,
    sweep_wait: Duration,
    /// A create hung: what it asked for may still come, so one sweep is not enough.
    sweep_again: bool,
    sweeping: bool,
}

/// What a thread of ours did.
pub(super) enum Finished {
    /// A command; something half-made may be left.
    Command { left_over: bool },
    /// A pull.
    Pull,
    /// A sweep; `done` when nothing is left.
    Sweep { done: bool },
}

impl Containers {
    pub(super) fn new(config: &DockerConfig, client: &Client) -> Self {
        Containers {
            ops: ContainerOps::new(config, client),
            waiting: VecDeque::new(),
            pulls: VecDeque::new(),
            running: 0,
            pulling: 0,
            sweep: None,
            sweep_wait: SWEEP_WAITS.0,
            sweep_again: false,
            sweeping: false,
        }
    }

    /// Something is being changed in Docker, and is worth waiting for at a stop.
    pub(super) fn busy(&self) -> bool {
        self.running > 0
    }

    pub(super) fn enqueue(&mut self, command: ContainerCommand) {
        let queue = if matches!(command, ContainerCommand::Pull(..)) { &mut self.pulls } else { &mut self.waiting };
        if queue.len() < WAITING_MAX {
            queue.push_back(command);
        } else {
            command.refuse(failure(503, format!("{WAITING_MAX} commands about containers wait already: try again")));
        }
    }

    /// Half-made containers are looked for at once: Docker is there (again).
    pub(super) fn sweep_now(&mut self, now: Instant) {
        self.sweep_wait = SWEEP_WAITS.0;
        self.sweep = Some(now);
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.sweep.filter(|_| !self.sweeping)
    }

    pub(super) fn finished(&mut self, finished: Finished, now: Instant) {
        match finished {
            Finished::Command { left_over } => {
                self.running = self.running.saturating_sub(1);
                if left_over {
                    self.sweep_again = true;
                    self.sweep_wait = SWEEP_WAITS.0;
                    self.sweep = Some(now + self.sweep_wait);
                }
            }
            Finished::Pull => self.pulling = self.pulling.saturating_sub(1),
            Finished::Sweep { done } => {
                self.sweeping = false;
                // After a create that hung at growing intervals, until the longest has passed.
                self.sweep_wait = (self.sweep_wait * 2).min(SWEEP_WAITS.1);
                self.sweep_again &= self.sweep_wait < SWEEP_WAITS.1;
                if !done || self.sweep_again {
                    let next = now + self.sweep_wait;
                    self.sweep = Some(self.sweep.map_or(next, |due| due.min(next)));
                }
            }
        }
    }

    /// What is to be begun now.
    fn next(&mut self, now: Instant) -> Option<Work> {
        if self.running < RUNNING_MAX
            && let Some(command) = self.waiting.pop_front()
        {
            self.running += 1;
            return Some(Work::Command(command));
        }
        if self.pulling < PULLING_MAX
            && let Some(command) = self.pulls.pop_front()
        {
            self.pulling += 1;
            return Some(Work::Pull(command));
        }
        if !self.sweeping && self.sweep.is_some_and(|due| due <= now) {
            self.sweep = None;
            self.sweeping = true;
            return Some(Work::Sweep);
        }
        None
    }
}

enum Work {
    Command(ContainerCommand),
    Pull(ContainerCommand),
    Sweep,
}

impl DockerManager {
    /// Begins the next command about containers, on a thread of its own. `false`: there is none to begin.
    pub(super) fn begin_container_work(&mut self) -> bool {
        let now = Instant::now();
        let Some(work) = self.containers.next(now) else { return false };
        let (ops, own) = (self.containers.ops.clone(), self.links.own.clone());
        let given_up = || match &work {
            Work::Command(_) => Finished::Command { left_over: true },
            Work::Pull(_) => Finished::Pull,
            Work::Sweep => Finished::Sweep { done: false },
        };
        let (failed, unstarted) = (given_up(), given_up());
        let spawned = std::thread::Builder::new().name("docker_contain".to_owned()).spawn(move || {
            // A place that is never given back would in the end stop all commands.
            let worked = catch_unwind(AssertUnwindSafe(|| ops.work(work)));
            let finished = worked.unwrap_or_else(|_| {
                tracing::error!(target: "docker_manager", "a command about containers panicked");
                failed
            });
            // A manager that is gone needs no notice.
            let _ = own.send_within(DockerCommand::Noticed(Notice(Noticed::Container(finished))), STOP_LIMIT);
        });
        if let Err(error) = spawned {
            // The closure is dropped, and with it the reply: its asker sees a closed channel.
            tracing::error!(target: "docker_manager", %error, "cannot start the thread docker_contain");
            self.containers.finished(unstarted, now);
        }
        true
    }
}

impl ContainerOps {
    fn work(&self, work: Work) -> Finished {
        match work {
            Work::Command(command) => Finished::Command { left_over: self.obey(command) },
            Work::Pull(command) => {
                self.obey(command);
                Finished::Pull
            }
            Work::Sweep => Finished::Sweep { done: self.sweep() },
        }
    }

    /// Does one command and answers it. True: something half-made may be left.
    fn obey(&self, command: ContainerCommand) -> bool {
        match command {
            ContainerCommand::Create(request, rules, reply) => {
                let outcome = self.create(*request, &rules);
                let left_over = outcome.as_ref().is_err_and(|failed| failed.left_over);
                reply.send(outcome.map_err(|failed| failed.failure));
                return left_over;
            }
            ContainerCommand::Stop(request, reply) => reply.send(self.stop(&request)),
            ContainerCommand::Remove(request, reply) => reply.send(self.remove(&request)),
            ContainerCommand::Pull(request, reply) => reply.send(self.pull(&request)),
            ContainerCommand::List(reply) => reply.send(self.list()),
            ContainerCommand::Inspect(name, reply) => reply.send(self.inspect(&name)),
        }
        false
    }
}

/// Docker's refusal in the operator API's terms; the Engine's own words are the cause.
fn refusal(error: &DockerError, operation: &str, what: &str) -> DockerFailure {
    match error {
        DockerError::Refused { status, message, .. } => {
            let status = if matches!(status, 400 | 404 | 409) { *status } else { 500 };
            failure(status, format!("Docker cannot {operation} {what}: {message}"))
        }
        other => {
            let DockerFailure { status, message } = other.into();
            failure(status, format!("cannot {operation} {what}: {message}"))
        }
    }
}
