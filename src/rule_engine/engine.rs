//! The `rule_engine` thread: reloads, and tests expressions. It judges nothing; the snapshot's readers do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::api;
use crate::daemon::control::ControlMessage;
use crate::event_loop::{Address, Mailbox, Reply};

use super::{LoadOptions, RuleEngineCommand, RuleSet, load, test_expression};

/// How long a full mailbox of control is waited for.
const CONTROL_WITHIN: Duration = Duration::from_secs(5);

/// What the rule engine works with.
pub struct RuleEngineConfig {
    /// `--rules-dir`
    pub directory: PathBuf,
    /// What can be enforced.
    pub options: LoadOptions,
    /// The set that the start loaded.
    pub current: Arc<RuleSet>,
}

/// The thread's state.
pub struct RuleEngine {
    config: RuleEngineConfig,
    control: Address<ControlMessage>,
    poll: mio::Poll,
    mailbox: Mailbox<RuleEngineCommand>,
}

impl RuleEngine {
    /// A rule engine that waits on `poll`, which wakes for `mailbox`.
    #[must_use]
    pub fn new(
        config: RuleEngineConfig,
        control: Address<ControlMessage>,
        poll: mio::Poll,
        mailbox: Mailbox<RuleEngineCommand>,
    ) -> Self {
        RuleEngine { config, control, poll, mailbox }
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
                    RuleEngineCommand::Reload(reply) => self.reload(reply),
                    RuleEngineCommand::Test(request, reply) => {
                        reply.send(test_expression(&request, &self.config.options.guard));
                    }
                    RuleEngineCommand::Ping(reply) => reply.send(()),
                    RuleEngineCommand::Stop => return Ok(()),
                }
            }
            match self.poll.poll(&mut events, None) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("cannot wait for commands: {error}")),
            }
        }
    }

    fn reload(&mut self, reply: Reply<Result<api::Reloaded, Vec<String>>>) {
        let loaded = match load(&self.config.directory, &self.config.options, Some(&self.config.current)) {
            Ok(loaded) => loaded,
            Err(errors) => {
                let lines = errors.lines();
                tracing::error!(target: "rule_engine", errors = lines.len(), first = lines.first(), "reload refused; the old rules stay");
                return reply.send(Err(lines));
            }
        };
        for warning in &loaded.warnings {
            tracing::warn!(target: "rule_engine", "{warning}");
        }
        let set = loaded.set;
        let reloaded =
            api::Reloaded { files_loaded: loaded.files, rules_loaded: set.rules().len(), warnings: loaded.warnings };
        // Whoever answers, the asker or this thread, takes the one reply out.
        let waiting = Arc::new(std::sync::Mutex::new(Some(reply)));
        let published = {
            let waiting = Arc::clone(&waiting);
            Reply::new(move |generation: u64| {
                let (files, rules) = (reloaded.files_loaded, reloaded.rules_loaded);
                tracing::info!(target: "rule_engine", generation, files, rules, "rules reloaded");
                if let Some(reply) = take(&waiting) {
                    reply.send(Ok(reloaded));
                }
            })
        };
        let message = ControlMessage::Rules { rules: Arc::clone(&set), published };
        match self.control.send_within(message, CONTROL_WITHIN) {
            // What control publishes next is this set, or one that a later reload made from it.
            Ok(()) => self.config.current = set,
            Err(_) => {
                if let Some(reply) = take(&waiting) {
                    reply.send(Err(vec!["the daemon's control thread does not answer; the old rules stay".to_owned()]));
                }
            }
        }
    }
}

fn take<T>(waiting: &std::sync::Mutex<Option<T>>) -> Option<T> {
    // The only thing done under the lock is this, so it cannot be poisoned half-way.
    waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_loop::{mailbox, reply_channel};
    use crate::rule_engine::Guard;

    const WITHIN: Duration = Duration::from_secs(10);

    fn rules(directory: &std::path::Path, condition: &str) {
        let text = format!("version: \"1\"\nrules:\n  - id: a\n    action: allow\n    condition: {condition}\n");
        std::fs::write(directory.join("a.yaml"), text).unwrap();
    }

    #[test]
    fn a_reload_is_answered_when_it_is_published_and_changes_nothing_when_it_fails() {
        let directory = std::env::temp_dir().join(format!("outcall-engine-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        rules(&directory, "'true'");
        let options = LoadOptions { proxy: true, interception: false, guard: Guard::InProcess };
        let config =
            RuleEngineConfig { directory: directory.clone(), options, current: Arc::new(RuleSet::block_all()) };
        let control_poll = mio::Poll::new().unwrap();
        let (control, inbox) = mailbox::<ControlMessage>(&control_poll, 4).unwrap();
        let poll = mio::Poll::new().unwrap();
        let (address, commands) = mailbox(&poll, 4).unwrap();
        let engine = RuleEngine::new(config, control, poll, commands);
        let thread = std::thread::spawn(move || engine.run());
        let send = |command| assert!(address.send(command).is_ok());

        let (reply, answer) = reply_channel();
        send(RuleEngineCommand::Reload(reply));
        let deadline = std::time::Instant::now() + WITHIN;
        let published = loop {
            match inbox.take() {
                Some(ControlMessage::Rules { rules, published }) => {
                    assert_eq!(rules.rules().len(), 1);
                    break published;
                }
                _ => assert!(std::time::Instant::now() < deadline),
            }
            std::thread::yield_now();
        };
        assert!(answer.try_recv().is_err());
        published.send(2);
        assert_eq!(answer.recv_timeout(WITHIN).unwrap().unwrap().rules_loaded, 1);

        rules(&directory, "'ip.dst == 1'");
        let (reply, answer) = reply_channel();
        send(RuleEngineCommand::Reload(reply));
        let errors = answer.recv_timeout(WITHIN).unwrap().unwrap_err();
        assert_eq!(errors, ["a.yaml:5: rule a: there is no field `ip.dst`; did you mean `network.ip`?"]);
        assert!(inbox.take().is_none());

        let (reply, answer) = reply_channel();
        let request = api::RuleTest { expression: "1 == 1".to_owned(), context: serde_json::Map::new() };
        send(RuleEngineCommand::Test(request, reply));
        assert_eq!(answer.recv_timeout(WITHIN).unwrap().result, Some(true));
        let (reply, answer) = reply_channel();
        send(RuleEngineCommand::Ping(reply));
        answer.recv_timeout(WITHIN).unwrap();
        send(RuleEngineCommand::Stop);
        assert_eq!(thread.join().unwrap(), Ok(()));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
