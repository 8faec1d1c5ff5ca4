//! The rule set and its decision.

use std::sync::Arc;

use super::{Action, Context, Rule};

/// All rules in evaluation order, indexed.
pub struct RuleSet {
    rules: Vec<Arc<Rule>>,
}

/// The answer to one question.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Allowed or not, with everything that is still unknown taken as unknown.
    pub action: Action,
    /// The rule that decided; `None` is the default block.
    pub rule: Option<Arc<Rule>>,
    /// True when a rule before the deciding one is unknown only for want of `network.ip`, and knowing it could
    /// end in an allow: the asker resolves the name and asks again for each address.
    pub wants_address: bool,
    /// An `intercept` rule, before the deciding one, that could match once the request is decrypted.
    pub could_intercept: Option<Arc<Rule>>,
}

impl RuleSet {
    /// A rule set that blocks everything.
    #[must_use]
    pub fn block_all() -> Self {
        RuleSet { rules: Vec::new() }
    }

    /// The rules in evaluation order.
    #[must_use]
    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.rules
    }

    /// Judges one question. Pure but for the counters of the rules.
    #[must_use]
    pub fn decide(&self, _context: &Context<'_>) -> Decision {
        Decision { action: Action::Block, rule: None, wants_address: false, could_intercept: None }
    }
}

impl Decision {
    /// True when some way of filling in the address could end in an allow: then, and only then, is a name resolved.
    #[must_use]
    pub fn may_allow(&self) -> bool {
        self.action == Action::Allow || self.wants_address
    }
}
