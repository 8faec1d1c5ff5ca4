//! YAML rules with CEL conditions: source → definitions → compile → rule set → decision.
//!
//! [`RuleSet::decide`] is a pure function and the only thing in the daemon that decides.

mod context;
mod model;
mod ruleset;

pub use context::{Agent, Context, Dns, Docker, Header, Http, Network, Run, Tls};
pub use model::{Action, Egress, EgressMode, Rule};
pub use ruleset::{Decision, RuleSet};
