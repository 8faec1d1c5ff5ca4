//! What runs, and how it is stopped: the reverse of the start, the kernel's side last.

use std::time::{Duration, Instant};

use super::Subsystem;
use super::lock::Lock;
use super::threads::Running;
use crate::bridge::{BridgeCommand, Closer, StopMode};
use crate::docker_manager::StartNetwork;
use crate::event_loop::Address;

/// In-flight work gets this long at a stop.
const STOP_WITHIN: Duration = Duration::from_millis(4500);
/// The kernel's side of the stop comes last and is short.
const STOP_BRIDGE_WITHIN: Duration = Duration::from_secs(3);

/// Everything that runs, in the order it was started.
#[derive(Default)]
pub struct Started {
    pub(super) lock: Option<Lock>,
    pub(super) running: Vec<Running>,
    pub(super) bridge: Option<Address<BridgeCommand>>,
    pub(super) closer: Option<Closer>,
    /// The Docker network that this start made.
    pub(super) network: StartNetwork,
    pub(super) events: Option<Running>,
}

impl Started {
    /// Stops everything in the reverse order of the start; false: something did not end in time.
    pub fn stop(self, mode: StopMode) -> bool {
        let deadline = Instant::now() + STOP_WITHIN;
        let mut clean = true;
        let (bridge, others): (Vec<Running>, Vec<Running>) =
            self.running.into_iter().partition(|running| running.subsystem == Subsystem::Bridge);
        for running in others.iter().rev() {
            running.stop();
        }
        for running in others.into_iter().rev() {
            clean &= join(running, deadline);
        }
        if mode == StopMode::Undo {
            // While its bridge is still there: Docker then takes away all that it set up on it.
            self.network.undo();
        }
        if let Some(address) = self.bridge {
            clean &= address.send_within(BridgeCommand::Stop(mode), Duration::from_secs(1)).is_ok();
        }
        let deadline = Instant::now() + STOP_BRIDGE_WITHIN;
        for running in bridge.into_iter().chain(self.events) {
            running.stop();
            clean &= join(running, deadline);
        }
        drop(self.lock);
        clean
    }
}

fn join(running: Running, deadline: Instant) -> bool {
    let subsystem = running.subsystem;
    let ended = running.join_until(deadline);
    if !ended {
        tracing::warn!(target: "outcalld", "{subsystem} did not end in time and is left behind");
    }
    ended
}
