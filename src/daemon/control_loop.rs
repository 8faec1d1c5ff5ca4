//! The main thread after the start: publishes snapshots, hears signals, and notices a subsystem that ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::Subsystem;
use super::control::ControlMessage;
use super::notify::{Notifier, Watchdog};
use super::publisher::{Publisher, ReaderStuck};
use super::signals::{Signals, Wish};
use crate::event_loop::{Address, MAILBOX, Mailbox, Reply};
use crate::host_api::HostApiCommand;
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
    notifier: Arc<Notifier>,
    watch: Option<Watch>,
}

/// The watchdog, and whom it asks.
pub struct Watch {
    /// When to ask, and when to feed.
    pub watchdog: Watchdog,
    /// Asks every thread, its own included.
    pub host_api: Address<HostApiCommand>,
    /// Where the answer comes back.
    pub own: Address<ControlMessage>,
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
        let notifier = Arc::new(Notifier::from_environment());
        Ok(Control { poll, mailbox, signals, publisher, rule_engine, notifier, watch: None })
    }

    /// Feeds the service manager's watchdog while every thread answers.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = Some(watch);
    }

    /// Where the service manager is told things.
    #[must_use]
    pub fn notifier(&self) -> Arc<Notifier> {
        Arc::clone(&self.notifier)
    }

    /// Runs until told to stop or until a part dies.
    pub fn run(&mut self) -> Ending {
        let mut events = Events::with_capacity(8);
        loop {
            let watch = self.watch.as_ref().map(|watch| watch.watchdog.deadline());
            let next = self.publisher.deadline().into_iter().chain(watch).min();
            let limit = next.map(|deadline| deadline.saturating_duration_since(Instant::now()));
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
            self.ask_threads();
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
                ControlMessage::Watched(stuck) => {
                    self.watched(&stuck, now);
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

    fn ask_threads(&mut self) {
        let Some(Watch { watchdog, host_api, own }) = &mut self.watch else { return };
        if watchdog.ask(Instant::now()) {
            let own = own.clone();
            let reply = Reply::new(move |stuck| {
                // Lost with a full mailbox: the watchdog is not fed for it, and asks again.
                let _ = own.send(ControlMessage::Watched(stuck));
            });
            // Not delivered is not answered.
            let _ = host_api.send(HostApiCommand::Health { limit: watchdog.limit(), reply });
        }
    }

    fn watched(&mut self, stuck: &[&'static str], now: Instant) {
        let Some(watch) = &mut self.watch else { return };
        if watch.watchdog.answered(stuck.is_empty(), now) {
            self.notifier.feed();
        } else {
            tracing::error!(target: "outcalld", stuck = stuck.join(", "), "threads do not answer: the watchdog is not fed");
        }
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
        self.notifier.reloading();
        let notifier = self.notifier();
        let reply = Reply::new(move |outcome: Result<crate::api::Reloaded, Vec<String>>| {
            // The rule engine has said what was loaded in its own words.
            if let Err(errors) = outcome {
                errors.iter().for_each(|error| tracing::error!(target: "rule_engine", "{error}"));
            }
            // Old rules or new ones: something serves.
            notifier.ready();
        });
        if self.rule_engine.send_within(RuleEngineCommand::Reload(reply), Duration::from_secs(1)).is_err() {
            tracing::error!(target: "rule_engine", "the rule engine takes no reload: it is busy with others");
            self.notifier.ready();
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
