//! The main thread after the start: publishes snapshots, hears signals, and notices a subsystem that ended.

use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::Subsystem;
use super::control::ControlMessage;
use super::publisher::{Publisher, ReaderStuck};
use super::signals::{Signals, Wish};
use crate::event_loop::{Address, MAILBOX, Mailbox, Reply};
use crate::rule_engine::RuleEngineCommand;

const SIGNALS: Token = Token(0);

/// Why the daemon ends.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was told to.
    Told,
    /// A part of it died: the closed base table must be put back in force first.
    Died(String),
}

/// The main thread's state.
pub struct Control {
    poll: Poll,
    mailbox: Mailbox<ControlMessage>,
    signals: Signals,
    publisher: Publisher,
    rule_engine: Address<RuleEngineCommand>,
}

impl Control {
    /// Registers the signals with `poll`, to which `mailbox` belongs already.
    ///
    /// # Errors
    /// What `epoll_ctl` says.
    pub fn new(
        poll: Poll,
        mailbox: Mailbox<ControlMessage>,
        signals: Signals,
        publisher: Publisher,
        rule_engine: Address<RuleEngineCommand>,
    ) -> std::io::Result<Self> {
        poll.registry().register(&mut SourceFd(&signals.raw_fd()), SIGNALS, Interest::READABLE)?;
        Ok(Control { poll, mailbox, signals, publisher, rule_engine })
    }

    /// Runs until told to stop or until a part dies.
    pub fn run(&mut self) -> Ending {
        let mut events = Events::with_capacity(8);
        loop {
            let limit = self.publisher.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
            match self.poll.poll(&mut events, limit) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Ending::Died(format!("control cannot wait for events: {error}")),
            }
            for event in &events {
                let ending = match event.token() {
                    MAILBOX => self.messages(),
                    _ => self.signalled(),
                };
                if let Some(ending) = ending {
                    return ending;
                }
            }
            if let Err(stuck) = self.publisher.check(Instant::now()) {
                return died(stuck);
            }
        }
    }

    fn messages(&mut self) -> Option<Ending> {
        while let Some(message) = self.mailbox.take() {
            let now = Instant::now();
            let published = match message {
                ControlMessage::Rules { rules, published } => self.publisher.rules(rules, published, now),
                ControlMessage::Directory(directory) => self.publisher.directory(directory, now),
                ControlMessage::EndpointGone { container_id, address, at } => {
                    self.publisher.endpoint_gone(container_id, address, at, now)
                }
                ControlMessage::Acknowledged { subsystem, generation } => {
                    self.publisher.acknowledged(subsystem, generation);
                    Ok(())
                }
                ControlMessage::Ping(reply) => {
                    reply.send(());
                    Ok(())
                }
                ControlMessage::Ended { subsystem, outcome } => return Some(ended(subsystem, outcome)),
            };
            if let Err(stuck) = published {
                return Some(died(stuck));
            }
        }
        None
    }

    fn signalled(&mut self) -> Option<Ending> {
        while let Some(wish) = self.signals.take() {
            match wish {
                Wish::Stop => return Some(Ending::Told),
                Wish::Reload => self.reload(),
            }
        }
        None
    }

    fn reload(&self) {
        let reply = Reply::new(|outcome: Result<crate::api::Reloaded, Vec<String>>| match outcome {
            // The rule engine has said it in its own words.
            Ok(_) => {}
            Err(errors) => errors.iter().for_each(|error| tracing::error!(target: "rule_engine", "{error}")),
        });
        if self.rule_engine.send_within(RuleEngineCommand::Reload(reply), Duration::from_secs(1)).is_err() {
            tracing::error!(target: "rule_engine", "the rule engine takes no reload: it is busy with others");
        }
    }
}

fn died(stuck: ReaderStuck) -> Ending {
    Ending::Died(format!("{} does not take the newest rules and identities", stuck.0))
}

fn ended(subsystem: Subsystem, outcome: Result<(), String>) -> Ending {
    let why = outcome.err().unwrap_or_else(|| "ended without being told to".to_owned());
    Ending::Died(format!("{subsystem}: {why}"))
}
