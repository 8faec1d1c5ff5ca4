//! YAML rules with CEL conditions: source → definitions → compile → rule set → decision.
//!
//! [`RuleSet::decide`] is a pure function and the only thing in the daemon that decides.
//!
//! | file | what it is |
//! |---|---|
//! | `source` | the files of a directory |
//! | `yaml`, `lines`, `file` | YAML within a budget, and where its parts are; the shape of a rule file |
//! | `definitions` | `$name` |
//! | `guarded`, `vetting` | the child process that tries hostile input first |
//! | `expression`, `check`, `literal`, `pattern` | CEL: caps, parser, allowlist, normal forms, regular expressions |
//! | `condition`, `facts`, `field` | evaluation with unknown fields |
//! | `index`, `ruleset`, `direct` | the decision; whether a flow may leave directly |
//! | `document`, `views` | questions as JSON; what the operator API shows |
//! | `engine`, `command` | the thread: reloads and tests |
//! | `installs` | an agent's submission, written down as the file that an approval installs |
//! | `why`, `unparse` | which rules came close, and what of them failed, as text |
//! | `load` | all of it together, with every error and warning |
//! | `lint`, `report` | what loads but is not as it seems; the report of a check |

mod check;
mod command;
mod condition;
mod context;
mod definitions;
mod direct;
mod document;
mod engine;
mod expression;
mod facts;
mod field;
mod file;
mod guarded;
mod index;
mod installs;
mod lines;
mod lint;
mod literal;
mod load;
mod model;
mod pattern;
mod report;
mod ruleset;
mod source;
mod unparse;
mod vetting;
mod views;
mod why;
mod yaml;

pub use command::RuleEngineCommand;
pub use context::{Agent, Body, Context, Dns, Docker, Header, Http, Network, Run, Tls};
pub use document::ContextDocument;
pub use engine::{RuleEngine, RuleEngineConfig};
pub use guarded::{GUARDED_ARGUMENT, Guard};
pub use installs::{Installs, installs};
pub use load::{LoadError, LoadErrors, LoadOptions, Loaded, load, load_sources};
pub use model::{Action, Egress, EgressMode, Rule};
pub use report::check;
pub use ruleset::{Decision, RuleSet};
pub use source::Source;
pub(crate) use unparse::quoted;
pub use vetting::guarded_child_main;
pub use views::test_expression;
pub use why::{Failed, FailedPart, Near};
