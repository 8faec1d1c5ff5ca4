//! The thread that owns `dynamic-rules.json`: it may block on the disk, so that the loops that ask it never do.
//!
//! What opens is opened in the kernel first, then written: a crash between the two loses an open flow and never makes
//! one. What closes leaves the file first.

use std::time::{Duration, SystemTime};

use crate::bridge::{Allowed, BridgeCommand, OperatorRefusal, OperatorWish, OwnedFlow};
use crate::event_loop::{Address, Mailbox, Reply, reply_channel};

use super::dynamic_rules::DynamicRules;

/// How long the bridge's full mailbox is waited for.
const SEND_WITHIN: Duration = Duration::from_secs(2);
/// How long the bridge may take: it answers after its own netlink requests.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const LOG: &str = "bridge";

/// What the keeper is asked to do.
pub enum DynamicRulesCommand {
    /// `POST /rule/allow`: answered when the kernel has it and it is durable.
    Allow(OperatorWish, Reply<Result<Allowed, OperatorRefusal>>),
    /// `POST /rules/flush`: ends every granted flow, of names too; answered with their number.
    Flush(Reply<Result<usize, String>>),
    /// These have ended otherwise than by their time.
    Ended(Vec<OwnedFlow>),
    /// Answered at once by a living thread.
    Ping(Reply<()>),
    /// Finish what is under way.
    Stop,
}

/// The thread's state.
pub struct GrantKeeper {
    rules: DynamicRules,
    bridge: Address<BridgeCommand>,
    poll: mio::Poll,
    mailbox: Mailbox<DynamicRulesCommand>,
}

impl GrantKeeper {
    /// A keeper that waits on `poll`, which wakes for `mailbox`, whose address is `own`. Gives the bridge what is kept.
    #[must_use]
    pub fn new(
        rules: DynamicRules,
        bridge: Address<BridgeCommand>,
        poll: mio::Poll,
        mailbox: Mailbox<DynamicRulesCommand>,
        own: Address<DynamicRulesCommand>,
    ) -> Self {
        let ended = Box::new(move |flows: &[OwnedFlow]| own.send(DynamicRulesCommand::Ended(flows.to_vec())).is_ok());
        let restore = BridgeCommand::Restore { kept: rules.kept(SystemTime::now()), ended };
        if bridge.send_within(restore, SEND_WITHIN).is_err() {
            // A bridge that takes nothing ends the daemon; should it live, its mailbox would be read first.
            tracing::error!(target: LOG, "the bridge does not take the kept grants: they stay closed");
        }
        GrantKeeper { rules, bridge, poll, mailbox }
    }

    /// Works until told to stop.
    ///
    /// # Errors
    /// The poll fails, which leaves the thread deaf.
    pub fn run(mut self) -> Result<(), String> {
        let mut events = mio::Events::with_capacity(4);
        loop {
            while let Some(command) = self.mailbox.take() {
                match command {
                    DynamicRulesCommand::Allow(wish, reply) => reply.send(self.allow(wish)),
                    DynamicRulesCommand::Flush(reply) => reply.send(self.flush()),
                    DynamicRulesCommand::Ended(flows) => {
                        if let Err(why) = self.rules.forget(&flows, SystemTime::now()) {
                            tracing::error!(target: LOG, "{why}; grants that have ended may come back with the next start");
                        }
                    }
                    DynamicRulesCommand::Ping(reply) => reply.send(()),
                    DynamicRulesCommand::Stop => return Ok(()),
                }
            }
            match self.poll.poll(&mut events, None) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("cannot wait for dynamic rules: {error}")),
            }
        }
    }

    fn allow(&mut self, wish: OperatorWish) -> Result<Allowed, OperatorRefusal> {
        self.rules.usable().map_err(OperatorRefusal::Failed)?;
        let allowed = self.ask(|reply| BridgeCommand::Allow(wish, reply)).map_err(OperatorRefusal::Failed)??;
        if let Err(why) = self.rules.keep(allowed.grant.clone(), SystemTime::now()) {
            if allowed.new {
                self.take_back(allowed.grant.flow);
            }
            return Err(OperatorRefusal::Failed(why));
        }
        Ok(allowed)
    }

    /// A grant that cannot be kept is none.
    fn take_back(&self, flow: OwnedFlow) {
        let taken = self.ask(|reply| BridgeCommand::TakeBack(flow, reply)).and_then(|taken| taken);
        if let Err(why) = taken {
            tracing::error!(target: LOG, "a grant that could not be kept stays open until it expires: {why}");
        }
    }

    fn flush(&mut self) -> Result<usize, String> {
        let cleared = self.rules.clear();
        let removed = self.ask(BridgeCommand::Flush)??;
        cleared.map_err(|why| {
            format!("{removed} flows are closed, but {why}: those opened by hand may come back with the next start")
        })?;
        Ok(removed)
    }

    fn ask<T: Send + 'static>(&self, command: impl FnOnce(Reply<T>) -> BridgeCommand) -> Result<T, String> {
        let (reply, answer) = reply_channel();
        if self.bridge.send_within(command(reply), SEND_WITHIN).is_err() {
            return Err("the bridge is busy; try again".to_owned());
        }
        answer
            .recv_timeout(ANSWER_WITHIN)
            .map_err(|_| "the bridge did not answer; what was asked may still happen".to_owned())
    }
}
