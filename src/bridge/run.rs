//! The bridge thread: one mio loop over its mailbox, links, nftables notifications and the kernel's log.
//!
//! Owns: the loop, its deadlines, and what is told to control and events. Does not own: the kernel's side itself
//! (`enforcer.rs`).

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use tracing::{debug, error, warn};

use crate::daemon::control::ControlMessage;
use crate::daemon::{Readiness, Snapshot, Subsystem};
use crate::docker_manager::Endpoint;
use crate::event_loop::{Address, MAILBOX, Mailbox, SendError};
use crate::events::{Event, EventSink, Layer, Verdict};

use super::config::{BridgeConfig, StartError};
use super::enforcer::{Enforcer, LOG};
use super::kernel_log::{Drop as Dropped, KernelLog};
use super::links;
use super::plan::NetworkPlan;
use super::ports::same_identity;
use super::readback;
use super::reason::Reason;
use super::socket::{KernelError, Socket};
use super::wire;
use super::{Allowed, BridgeCommand, Closer, Protocol, StopMode, TellEnded, panic_closed};

const LINKS: Token = Token(0);
const TABLES: Token = Token(1);
const DROPS: Token = Token(2);
/// The bit of `NFNLGRP_NFTABLES`.
const GROUP_NFTABLES: u32 = 1 << 6;
/// `NFT_MSG_NEWGEN`, which closes every transaction's notifications.
const NEW_GENERATION: u16 = 15;
/// Between two repairs: a tool that fights us costs some percent of a core, and never wins for longer than this.
const REPAIR_INTERVAL: Duration = Duration::from_millis(50);
/// While an endpoint waits for its veth: a namespace gets its number without any notification.
const CLAIM_INTERVAL: Duration = Duration::from_millis(20);
/// Commands carried out in one turn: a container whose questions open flows without end must not keep links, tables and
/// the kernel's log waiting.
const COMMANDS_MAX: usize = 64;
/// How long an endpoint is waited for after the last news of it: Docker needs less than a second from its event to
/// the link; news of links and snapshots start this again.
const CLAIM_PATIENCE: Duration = Duration::from_secs(3);

/// The bridge subsystem.
pub struct Bridge {
    config: BridgeConfig,
    closer: Closer,
    enforcer: Enforcer,
    control: Address<ControlMessage>,
    events: EventSink,
    readiness: Readiness,
    poll: Poll,
    mailbox: Mailbox<BridgeCommand>,
    link_monitor: Socket,
    table_monitor: Socket,
    kernel_log: Option<KernelLog>,
    /// The mailbox may hold commands.
    commanded: bool,
    /// The tables are to be looked at.
    suspicious: bool,
    /// Somebody else changed them since they were last found as planned.
    foreign: bool,
    last_repair: Option<Instant>,
    /// Until when endpoints without veth are looked for.
    claim_until: Option<Instant>,
    /// A snapshot that could not be taken in full: acknowledged once the kernel is as planned.
    unacknowledged: Option<u64>,
    /// Told of operators' flows that ended.
    ended: Option<TellEnded>,
    /// Set by a stop in order: nothing is left to close.
    stopped: bool,
}

impl Bridge {
    /// Puts the base table in force, makes or adopts the default bridge, and prepares the loop.
    ///
    /// # Errors
    /// What the kernel refused, or why the bridge's name cannot be used; what had been made is undone.
    pub fn start(
        config: BridgeConfig,
        control: Address<ControlMessage>,
        events: EventSink,
        readiness: Readiness,
        poll: Poll,
        mailbox: Mailbox<BridgeCommand>,
    ) -> Result<Bridge, StartError> {
        // Subscribed before anything is made, so that no change is missed.
        let link_monitor = links::link_monitor()?;
        let table_monitor = Socket::listening(SockProtocol::NetlinkNetFilter, GROUP_NFTABLES)?;
        let kernel_log = KernelLog::open(Instant::now());
        let kernel_log = match kernel_log {
            Ok(log) => Some(log),
            Err(error) => {
                let text = format!("drops in the kernel are not reported: {error}");
                warn!(target: LOG, "{text}");
                readiness.warn("kernel_log", Some(text));
                None
            }
        };
        for (descriptor, token) in [
            (Some(link_monitor.as_raw_fd()), LINKS),
            (Some(table_monitor.as_raw_fd()), TABLES),
            (kernel_log.as_ref().map(AsRawFd::as_raw_fd), DROPS),
        ] {
            if let Some(descriptor) = descriptor {
                poll.registry()
                    .register(&mut SourceFd(&descriptor), token, Interest::READABLE)
                    .map_err(StartError::Poll)?;
            }
        }
        let enforcer = Enforcer::start(&config)?;
        readiness.set("bridge", Ok(()));
        Ok(Bridge {
            closer: Closer::new(config.clone()),
            config,
            enforcer,
            control,
            events,
            readiness,
            poll,
            mailbox,
            link_monitor,
            table_monitor,
            kernel_log,
            commanded: false,
            suspicious: false,
            foreign: false,
            last_repair: None,
            claim_until: None,
            unacknowledged: None,
            ended: None,
            stopped: false,
        })
    }

    /// Works until told to stop.
    ///
    /// # Errors
    /// What made it impossible to go on; the closed base table is in force then.
    pub fn run(mut self) -> Result<(), String> {
        let mut events = Events::with_capacity(64);
        loop {
            match self.poll.poll(&mut events, self.timeout(Instant::now())) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("the bridge cannot wait for events: {error}")),
            }
            let closer = self.closer.clone();
            let closed = closer.turn();
            if *closed {
                // The closer put the closed table in force, and its word is the last.
                self.stopped = true;
                return Err("everything was closed for good".to_owned());
            }
            if let Some(mode) = self.turn(&events) {
                return self.stop(mode);
            }
        }
    }

    /// What can close everything while this thread works.
    #[must_use]
    pub fn closer(&self) -> Closer {
        self.closer.clone()
    }

    /// One turn of the loop; gives how to stop when told to.
    fn turn(&mut self, events: &Events) -> Option<StopMode> {
        let mut reconcile = false;
        for event in events {
            match event.token() {
                MAILBOX => self.commanded = true,
                LINKS => reconcile |= self.link_monitor.drain(),
                TABLES => self.foreign |= self.foreign_change(),
                DROPS => self.report_drops(),
                _ => {}
            }
        }
        let now = Instant::now();
        if reconcile {
            self.wait_for_claims(now);
        }
        if reconcile || self.claim_until.is_some() {
            self.reconcile();
        }
        self.suspicious |= self.foreign;
        if self.suspicious {
            self.check(now);
        }
        for _ in 0..COMMANDS_MAX {
            if !self.commanded {
                break;
            }
            match self.mailbox.take() {
                None => self.commanded = false,
                Some(BridgeCommand::Stop(mode)) => return Some(mode),
                Some(command) => self.command(command),
            }
        }
        self.suspicious |= std::mem::take(&mut self.enforcer.in_doubt);
        self.tell_ended();
        None
    }

    fn timeout(&self, now: Instant) -> Option<Duration> {
        let commands = self.commanded.then_some(Duration::ZERO);
        let claims = self.claim_until.map(|_| CLAIM_INTERVAL);
        let repair = self.suspicious.then(|| {
            let next = self.last_repair.map_or(now, |last| last + REPAIR_INTERVAL);
            next.saturating_duration_since(now)
        });
        commands.into_iter().chain(claims).chain(repair).min()
    }

    fn stop(mut self, mode: StopMode) -> Result<(), String> {
        let stopped = self.enforcer.stop(mode).map_err(|error| error.to_string());
        self.stopped = stopped.is_ok();
        stopped
    }

    fn command(&mut self, command: BridgeCommand) {
        let now = Instant::now();
        match command {
            BridgeCommand::Snapshot(snapshot) => self.take(&snapshot, now),
            BridgeCommand::EnsureNetwork { bridge, subnet, gateway, done } => {
                done.send(self.enforcer.ensure_network(&bridge, NetworkPlan { subnet, gateway }));
                self.suspicious = true;
            }
            BridgeCommand::RemoveNetwork { bridge, done } => {
                done.send(self.enforcer.remove_network(&bridge));
                self.suspicious = true;
            }
            BridgeCommand::Grant(grant, done) => done.send(self.enforcer.grant(&grant, now)),
            BridgeCommand::Allow(wish, done) => {
                let allowed = self.enforcer.allow(&wish, now);
                if let Ok(allowed) = &allowed {
                    self.record(allowed);
                }
                done.send(allowed);
            }
            BridgeCommand::TakeBack(flow, done) => {
                done.send(self.enforcer.take_back(&flow, now).map_err(|error| error.to_string()));
            }
            BridgeCommand::Restore { kept, ended } => {
                self.enforcer.awaited = kept;
                self.ended = Some(ended);
                self.enforcer.restore(now);
            }
            BridgeCommand::Grants(done) => {
                done.send(self.enforcer.granted(now).map_err(|error| error.to_string()));
            }
            BridgeCommand::Flush(done) => {
                done.send(self.enforcer.flush(None).map_err(|error| error.to_string()));
            }
            BridgeCommand::Status(done) => done.send(self.enforcer.status()),
            BridgeCommand::Up(done) => {
                let result = self.enforcer.up(now).map_err(|error| error.to_string());
                self.wait_for_claims(now);
                self.suspicious = true;
                self.tell_ready();
                done.send(result.map(|()| self.enforcer.status()));
            }
            BridgeCommand::Down(done) => {
                let result = self.enforcer.take_down().map_err(|error| error.to_string());
                self.tell_gone();
                self.tell_ready();
                done.send(result.map(|()| self.enforcer.status()));
            }
            BridgeCommand::Ping(done) => done.send(()),
            // Handled by the loop.
            BridgeCommand::Stop(_) => {}
        }
    }

    fn take(&mut self, snapshot: &Arc<Snapshot>, now: Instant) {
        let before = self.enforcer.plan.clone();
        let taken = self.enforcer.take(snapshot, now);
        self.tell_gone();
        self.wait_for_claims(now);
        self.suspicious |= self.enforcer.plan != before;
        self.unacknowledged = Some(snapshot.generation);
        match taken {
            Ok(()) => self.acknowledge(),
            // Not acknowledged: a reload that the kernel did not take is not in force yet.
            Err(error) => {
                error!(target: LOG, "snapshot {}: {error}", snapshot.generation);
                self.readiness.set("bridge", Err(error.to_string()));
                self.close();
            }
        }
    }

    fn acknowledge(&mut self) {
        if let Some(generation) = self.unacknowledged.take() {
            self.tell_ready();
            self.tell(ControlMessage::Acknowledged { subsystem: Subsystem::Bridge, generation });
        }
    }

    /// After a failure that leaves the kernel's state in doubt: nothing is open until the next check repairs it.
    fn close(&mut self) {
        self.enforcer.grants.revoke_all();
        if let Err(error) = self.enforcer.firewall.close(&self.config.closed_plan()) {
            error!(target: LOG, "{error}");
        }
        self.suspicious = true;
    }

    fn wait_for_claims(&mut self, now: Instant) {
        self.claim_until = self.enforcer.waits().then(|| now + CLAIM_PATIENCE);
    }

    fn reconcile(&mut self) {
        if let Err(error) = self.enforcer.reconcile() {
            warn!(target: LOG, "{error}");
        }
        self.tell_gone();
        let patient = self.claim_until.is_some_and(|until| Instant::now() < until);
        if !patient || !self.enforcer.waits() {
            self.claim_until = None;
        }
    }

    fn tell_gone(&mut self) {
        for claim in std::mem::take(&mut self.enforcer.gone) {
            self.tell(ControlMessage::EndpointGone {
                container_id: Arc::clone(&claim.endpoint.container_id),
                address: claim.endpoint.address,
                at: Instant::now(),
            });
        }
    }

    /// `/ready`: the kernel is as planned, which is no use to anybody while the bridges are down.
    fn tell_ready(&self) {
        let down =
            "the bridges are down: containers have no network at all; POST /api/v1/bridge/up (outcall bridge up)";
        self.readiness.set("bridge", if self.enforcer.down { Err(down.to_owned()) } else { Ok(()) });
    }

    /// Tells of operators' flows that ended; those that cannot be told now are told later.
    fn tell_ended(&mut self) {
        let ended = &mut self.enforcer.grants.ended;
        if !ended.is_empty() && self.ended.as_ref().is_none_or(|tell| tell(ended)) {
            ended.clear();
        }
    }

    /// An operator's word is a decision too.
    fn record(&self, allowed: &Allowed) {
        let shown = &allowed.shown;
        let mut event = Event::new(Layer::DirectIp, Verdict::Allow, "operator");
        event.endpoint = Some(Arc::clone(&shown.endpoint));
        event.destination = Some((shown.destination, shown.port).into());
        event.protocol = Protocol::numbered(shown.protocol).map(Protocol::name);
        self.events.record(event);
    }

    fn tell(&self, message: ControlMessage) {
        // Control that is gone means that the daemon is ending.
        if let Err(SendError::Full(_)) = self.control.send(message) {
            warn!(target: LOG, "control does not take messages");
        }
    }

    /// True when somebody else changed a table of ours.
    fn foreign_change(&mut self) -> bool {
        let own = self.enforcer.firewall.port();
        let mut foreign = false;
        loop {
            match self.table_monitor.heard() {
                Ok(Some(buffer)) => {
                    foreign |= wire::messages(buffer).any(|message| {
                        message.port != own
                            && message.kind >> 8 == u16::from(readback::SUBSYSTEM)
                            && message.kind & 0xff != NEW_GENERATION
                            && message.netfilter_attributes().find(1).is_some_and(|table| table.text() == "outcall")
                    });
                }
                Err(Errno::EINTR) => {}
                Ok(None) => return foreign,
                // Lost notifications: look.
                Err(_) => return true,
            }
        }
    }

    /// Compares and repairs, at most once in `REPAIR_INTERVAL`.
    fn check(&mut self, now: Instant) {
        if self.last_repair.is_some_and(|last| now < last + REPAIR_INTERVAL) {
            return;
        }
        self.suspicious = false;
        // A port that vanished took its chain along: that is no foreign change.
        self.link_monitor.drain();
        self.reconcile();
        match self.enforcer.check(now) {
            Ok(differences) if differences.is_empty() => {
                self.foreign = false;
                self.acknowledge();
            }
            Ok(differences) => {
                self.last_repair = Some(now);
                // Once more after the repair: it is checked like any other change.
                self.suspicious = true;
                // Whoever did it, its notification is there by now.
                self.foreign |= self.foreign_change();
                let cause = if self.foreign {
                    "was changed by someone else"
                } else {
                    "was left otherwise than planned by a change of outcalld's own"
                };
                warn!(target: LOG, "nftables {cause}, and has been put back: {}", differences.join("; "));
                self.events.record(Event::new(Layer::Kernel, Verdict::Block, "table_restored"));
                self.tell_ready();
            }
            Err(error) => {
                self.last_repair = Some(now);
                self.suspicious = true;
                self.unrepaired(&error);
            }
        }
    }

    fn unrepaired(&mut self, error: &KernelError) {
        // A device that vanishes between the listing and the transaction is seen at the next turn.
        if error.errno == Errno::ENOENT {
            debug!(target: LOG, "{error}");
        } else {
            error!(target: LOG, "the nftables tables could not be checked: {error}");
            self.readiness.set("bridge", Err(error.to_string()));
        }
    }

    fn report_drops(&mut self) {
        let Some(log) = &mut self.kernel_log else { return };
        for dropped in log.read(Instant::now()) {
            let mut event = Event::new(Layer::Kernel, Verdict::Block, dropped.reason.code());
            event.endpoint = self.sender(&dropped);
            event.peer = dropped.source;
            event.destination = dropped.socket_address();
            event.protocol = Some(dropped.protocol);
            let flows = self.events.flows();
            event.flow = event.party().zip(dropped.destination).map(|(party, address)| flows.dropped(party, address));
            self.events.record(event);
        }
    }

    /// Whose packet it was: by its port where that is known, else by its address.
    fn sender(&self, dropped: &Dropped) -> Option<Arc<Endpoint>> {
        let snapshot = self.enforcer.snapshot.as_ref();
        let at = |address: &Ipv4Addr| snapshot.and_then(|snapshot| snapshot.directory.endpoints.get(address));
        let claims = &self.enforcer.claims;
        let by_port = dropped.interfaces.iter().flatten().find_map(|index| claims.get(index));
        if let Some(claim) = by_port {
            // By the name that it has now.
            let own = &claim.endpoint;
            return Some(Arc::clone(at(&own.address).filter(|now| same_identity(now, own)).unwrap_or(own)));
        }
        let address = match dropped.reason {
            Reason::Inbound | Reason::FromHost => dropped.destination?,
            // Nobody's: the address was not the sender's own, or may not have been.
            Reason::Spoofed | Reason::Unvetted | Reason::Misplaced => return None,
            _ => dropped.source?,
        };
        let IpAddr::V4(address) = address else { return None };
        at(&address).map(Arc::clone)
    }
}

impl Drop for Bridge {
    /// A thread that ends in any other way than by a stop leaves the closed base table in force.
    fn drop(&mut self) {
        if !self.stopped
            && let Err(error) = panic_closed(&self.config)
        {
            error!(target: LOG, "{error}");
        }
    }
}
