//! What the main thread is told; it alone publishes snapshots.

use std::sync::Arc;
use std::time::Instant;

use crate::docker_manager::Directory;
use crate::event_loop::Reply;
use crate::rule_engine::RuleSet;

use super::Subsystem;

/// Messages to the main thread.
pub enum ControlMessage {
    /// A new rule set; answered with its generation when every reader has acknowledged it.
    Rules {
        /// The rules to publish.
        rules: Arc<RuleSet>,
        /// Answered with the generation that carries them.
        published: Reply<u64>,
    },
    /// Docker's view has been read anew. Published even when nothing changed, since `as_of` moved.
    Directory(Arc<Directory>),
    /// A container's host-side veth is gone: its identity ends now, whatever Docker says until it is asked again.
    EndpointGone {
        /// The container's id.
        container_id: Arc<str>,
        /// Its address on the managed network.
        address: std::net::Ipv4Addr,
        /// When the kernel said so: a directory read before this does not bring it back.
        at: Instant,
    },
    /// A reader works by this generation now.
    Acknowledged {
        /// Which reader.
        subsystem: Subsystem,
        /// The generation it took.
        generation: u64,
    },
    /// The watchdog's question is answered: the names of the threads that are stuck.
    Watched(Vec<&'static str>),
    /// Answered at once by a living thread.
    Ping(Reply<()>),
    /// A subsystem thread ended, cleanly or not.
    Ended {
        /// Which one.
        subsystem: Subsystem,
        /// `Err` with the reason when it was not told to.
        outcome: Result<(), String>,
    },
}
