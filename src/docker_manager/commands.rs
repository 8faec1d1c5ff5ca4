//! The operator's commands: changes of networks, and questions about them.
//!
//! Owns: their queues, the thread a change runs on, the answers. Does not own: the steps of a change (`network_ops`),
//! when a queue is served (`manager`).

use super::engine::{self, READ_TIMEOUT};
use super::manager::{Noticed, STOP_LIMIT, judge_list};
use super::network_ops::{failure, find};
use super::{DockerCommand, DockerFailure, DockerManager, ManagedNetwork, Notice};
use crate::api;
use crate::event_loop::Reply;
use crate::network::{self, DEFAULT_NETWORK};

/// Commands of the operator that wait; past it they are refused (503).
const COMMANDS_CAP: usize = 64;

/// A change of networks.
pub(super) enum Job {
    Create(api::NetworkCreate, Reply<Result<api::NetworkCreated, DockerFailure>>),
    Destroy(api::NetworkSelect, Reply<Result<api::NetworkDestroyed, DockerFailure>>),
}

/// A question of the operator.
pub(super) enum Query {
    Network(api::NetworkSelect, Reply<Result<api::NetworkStatus, DockerFailure>>),
    Networks(Reply<Result<Vec<api::NetworkStatus>, DockerFailure>>),
}

impl DockerManager {
    pub(super) fn enqueue(&mut self, job: Job) {
        if self.jobs.len() < COMMANDS_CAP {
            self.jobs.push_back(job);
            return;
        }
        match job {
            Job::Create(_, reply) => reply.send(Err(busy())),
            Job::Destroy(_, reply) => reply.send(Err(busy())),
        }
    }

    pub(super) fn ask(&mut self, query: Query) {
        if self.queries.len() < COMMANDS_CAP {
            self.queries.push_back(query);
            return;
        }
        match query {
            Query::Network(_, reply) => reply.send(Err(busy())),
            Query::Networks(reply) => reply.send(Err(busy())),
        }
    }

    /// Starts a change of networks on a thread of its own; one at a time.
    pub(super) fn begin(&mut self, job: Job) {
        let (ops, own) = (self.ops.clone(), self.links.own.clone());
        let spawned = std::thread::Builder::new().name("docker_network".to_owned()).spawn(move || {
            let (default_wanted, answer): (Option<bool>, Box<dyn FnOnce() + Send>) = match job {
                Job::Create(request, reply) => {
                    let made = ops.create(&request);
                    let wanted = made.as_ref().is_ok_and(|made| made.name == DEFAULT_NETWORK).then_some(true);
                    (wanted, Box::new(move || reply.send(made)))
                }
                Job::Destroy(select, reply) => {
                    let gone = ops.destroy(&select);
                    // The operator does not want it: it is not made again by itself.
                    let unwanted = gone.as_ref().is_ok_and(|gone| gone.name == DEFAULT_NETWORK).then_some(false);
                    (unwanted, Box::new(move || reply.send(gone)))
                }
            };
            let noticed = Noticed::Changed { default_wanted, answer };
            // A manager that is gone drops the reply, which its asker sees.
            let _ = own.send_within(DockerCommand::Noticed(Notice(noticed)), STOP_LIMIT);
        });
        match spawned {
            Ok(_) => self.job_running = true,
            // The closure is dropped, and with it the reply: its asker sees a closed channel.
            Err(error) => tracing::error!(target: "docker_manager", %error, "cannot start the thread docker_network"),
        }
    }

    pub(super) fn answer(&mut self, query: Query) {
        match query {
            Query::Network(select, reply) => {
                let status = self.status(&select);
                reply.send(status);
            }
            Query::Networks(reply) => {
                let statuses = self.statuses();
                reply.send(statuses);
            }
        }
    }

    fn status(&mut self, select: &api::NetworkSelect) -> Result<api::NetworkStatus, DockerFailure> {
        let name = network::network_name(select.name.as_deref()).map_err(|reason| failure(400, reason))?;
        let all = engine::networks(&self.ops.client, READ_TIMEOUT)?;
        match find(&all, &name, &self.ops.default_bridge)? {
            Some(network) => self.status_of(&network),
            None => Ok(api::NetworkStatus {
                exists: false,
                network_id: None,
                name,
                subnet: None,
                gateway: None,
                bridge: None,
                containers: Vec::new(),
            }),
        }
    }

    fn statuses(&mut self) -> Result<Vec<api::NetworkStatus>, DockerFailure> {
        let all = engine::networks(&self.ops.client, READ_TIMEOUT)?;
        let (mut managed, _) = judge_list(&all, &self.ops.default_bridge);
        managed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        managed.iter().map(|network| self.status_of(network)).collect()
    }

    fn status_of(&mut self, network: &ManagedNetwork) -> Result<api::NetworkStatus, DockerFailure> {
        // Between two questions: a ping must not wait for a whole list.
        self.drain();
        let containers = engine::network(&self.ops.client, &network.id, READ_TIMEOUT)?.containers;
        let mut containers: Vec<api::AttachedContainer> = containers
            .into_values()
            .map(|container| {
                let address = container.ipv4_address.split('/').next().unwrap_or_default().to_owned();
                api::AttachedContainer { name: container.name, ipv4_address: address }
            })
            .collect();
        containers.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(api::NetworkStatus {
            exists: true,
            network_id: Some(network.id.clone()),
            name: network.name.clone(),
            subnet: Some(network.subnet.to_string()),
            gateway: Some(network.gateway.to_string()),
            bridge: Some(network.bridge.clone()),
            containers,
        })
    }
}

fn busy() -> DockerFailure {
    failure(503, format!("{COMMANDS_CAP} commands for Docker wait already: try again"))
}
