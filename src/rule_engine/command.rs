//! What the rule engine's thread is asked to do.

use crate::api;
use crate::event_loop::Reply;

/// Messages to the rule engine.
pub enum RuleEngineCommand {
    /// Load the rule files anew; answered when every reader has the new set, or with every error.
    Reload(Reply<Result<api::Reloaded, Vec<String>>>),
    /// `POST /rule/test`
    Test(api::RuleTest, Reply<api::RuleTested>),
    /// Answered at once by a living thread.
    Ping(Reply<()>),
    /// Finish.
    Stop,
}
