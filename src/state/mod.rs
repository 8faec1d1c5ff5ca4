//! State that outlives the daemon: files changed so that a crash at any moment leaves the old or the new one, and the
//! rule requests of agents and the flows that operators opened by hand.
//!
//! Owns: `rule-requests.json` with the `agent-ID.yaml` files that approvals write, `dynamic-rules.json`. Does not own: the decision log
//! ([`crate::events`]), or what a rule file means ([`crate::rule_engine`]).
//!
//! | file | what it is |
//! |---|---|
//! | `disk` | durable replacement of files, step by step |
//! | `ledger` | the rule requests and their caps, pure |
//! | `store` | the ledger on disk; approvals, undone when a part fails |
//! | `keeper` | the thread that owns the store, and its messages |
//! | `dynamic_rules`, `grant_keeper` | the flows opened by hand on disk, and their thread |

mod disk;
mod dynamic_rules;
mod grant_keeper;
mod keeper;
mod ledger;
mod store;

pub use disk::{Disk, RealDisk, make_directory, read, remove, replace, set_aside};
pub use dynamic_rules::DynamicRules;
pub use grant_keeper::{DynamicRulesCommand, GrantKeeper};
pub use keeper::{RequestFailure, RequestKeeper, RequestKeeperConfig, RequestsCommand, Submission};
pub use ledger::{
    Ledger, LedgerError, PENDING_BYTES_MAX, PENDING_MAX, PENDING_PER_CONTAINER, REASON_MAX, RECORDS_MAX, RuleRequest,
    Status,
};
pub use store::{ApproveError, NotInstalled, RequestStore, StoreError};
