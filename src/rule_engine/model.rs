//! A checked rule.

use std::sync::atomic::{AtomicI64, AtomicU64};

/// What a matching rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let it pass, as `egress` says.
    Allow,
    /// Refuse.
    Block,
}

impl Action {
    /// The word of rules and answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Block => "block",
        }
    }
}

/// How an allowed flow leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EgressMode {
    /// Through the proxy only.
    Proxy,
    /// Directly, to the addresses the name resolved to.
    DirectIp,
    /// Through the proxy, decrypted.
    Intercept,
}

impl EgressMode {
    /// The word of rules and answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            EgressMode::Proxy => "proxy",
            EgressMode::DirectIp => "direct_ip",
            EgressMode::Intercept => "intercept",
        }
    }
}

/// The `egress:` part of an allow rule, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// How.
    pub mode: EgressMode,
    /// `direct_ip` only: the TCP ports.
    pub ports: Vec<u16>,
    /// Whether special-purpose addresses may be reached.
    pub allow_private_ips: bool,
    /// `intercept` only: expose `http.body`.
    pub match_body: bool,
}

/// A rule that loaded.
#[derive(Debug)]
pub struct Rule {
    /// Unique over all files.
    pub id: Box<str>,
    /// File name, without its directory.
    pub file: Box<str>,
    /// Position in evaluation order, from 0.
    pub order: usize,
    /// Free text.
    pub description: Option<Box<str>>,
    /// The condition as written.
    pub condition: Box<str>,
    /// The condition with definitions expanded.
    pub expanded: Box<str>,
    /// What it does.
    pub action: Action,
    /// Lower runs first.
    pub priority: i64,
    /// Whether matches are logged.
    pub log: bool,
    /// `Some` for allow rules.
    pub egress: Option<Egress>,
    /// Whether the file has an `egress:` key.
    pub explicit_egress: bool,
    /// Matches since it was loaded (kept over reloads of an unchanged rule).
    pub hits: AtomicU64,
    /// Evaluations that ended in an error.
    pub errors: AtomicU64,
    /// Unix time in milliseconds of the last match; 0: never.
    pub last_hit_ms: AtomicI64,
}
