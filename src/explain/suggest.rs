//! The smallest rule that would allow what is blocked: for this destination, this port, this agent and, where the proxy
//! sees it, this method and path.
//!
//! What is suggested was loaded and walked with, together with the rules in force: a rule that would not help is not
//! suggested.

use crate::docker_manager::Peer;
use crate::names::Host;
use crate::rule_engine::{Guard, LoadOptions, RuleSet, Source, load_sources, quoted};

use super::target::How;
use super::walk::{Obstacle, Walk, Walked};
use super::{ProxyWay, Question, Resolved};

/// Rules that are tried, each put in front of what stood in the way of the one before.
const TRIES_MAX: usize = 6;
/// The priority of a rule that names none.
const PRIORITY_DEFAULT: i64 = 100;

/// A rule being made.
struct Draft {
    id: String,
    condition: String,
    priority: i64,
    private: bool,
    way: Way,
}

/// How it would be let through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By the proxy, a tunnel as a whole.
    Proxy,
    /// By the proxy, as one request inside a tunnel that the rules have decrypted.
    Decrypted,
    /// Past the proxy, on this port.
    Direct(u16),
}

/// The rule file that would allow it; `None` when no rule could.
pub(super) fn suggest(question: &Question, walked: &Walked, resolved: &Resolved) -> Option<String> {
    let rules = &question.snapshot.rules;
    let way = match question.proxy {
        ProxyWay::Absent => Way::Direct(question.destination.port()),
        ProxyWay::Present(_) if walked.decrypted => Way::Decrypted,
        ProxyWay::Present(_) => Way::Proxy,
    };
    // Without a proxy only names can be opened.
    if matches!((way, &question.destination.authority.host), (Way::Direct(_), Host::Address(_))) {
        return None;
    }
    let id = unused_id(question, rules);
    let mut draft = Draft { id, condition: condition(question, way), priority: PRIORITY_DEFAULT, private: false, way };
    overtake(&mut draft, &walked.obstacles)?;
    for _ in 0..TRIES_MAX {
        let text = draft.write();
        let options = LoadOptions {
            proxy: !matches!(way, Way::Direct(_)),
            // Rules in force have tunnels decrypted, so there is a CA.
            interception: way == Way::Decrypted,
            // The text is ours, of names and paths in normal form.
            guard: Guard::InProcess,
        };
        let source = Source { name: "suggested.yaml".to_owned(), text: text.clone() };
        let own = load_sources(&[source], &options, None).ok()?.set;
        let together = rules.merged(&own);
        let tried = Walk::new(question, &together, resolved).run();
        // Not resolved yet: by name it goes on, which is all that can be known.
        if tried.allowed || (resolved.is_none() && tried.resolves && tried.obstacles.is_empty()) {
            return Some(text);
        }
        overtake(&mut draft, &tried.obstacles)?;
    }
    None
}

/// Puts the draft in front of `obstacles`. `None`: nothing helps.
fn overtake(draft: &mut Draft, obstacles: &[Obstacle]) -> Option<()> {
    let mut moved = false;
    for obstacle in obstacles {
        let own = obstacle.rule.as_ref().is_some_and(|rule| *rule.id == *draft.id);
        match (obstacle.reason, &obstacle.rule) {
            ("private_address" | "own_address" | "not_opened", Some(_)) if own && !draft.private => {
                draft.private = true;
                moved = true;
            }
            ("default", None) => moved = true,
            (_, Some(rule)) if !own => {
                draft.priority = draft.priority.min(rule.priority.checked_sub(1)?);
                moved = true;
            }
            // No rule changes how a request reads, whether a name exists, or what is nobody's address.
            _ => return None,
        }
    }
    moved.then_some(())
}

fn condition(question: &Question, way: Way) -> String {
    let destination = &question.destination;
    let host = quoted(&destination.authority.host.to_text());
    let mut parts = Vec::new();
    if let Peer::Container(endpoint) = &question.peer {
        parts.push(format!("agent.name == {}", quoted(&endpoint.agent)));
    }
    if let Way::Direct(_) = way {
        parts.push(format!("dns.query == {host}"));
        return parts.join(" && ");
    }
    parts.push(format!("http.host == {host}"));
    parts.push(format!("network.port == {}", destination.port()));
    // What is inside a tunnel that is not decrypted, nobody sees.
    let seen = match &destination.how {
        How::Http { path } => Some(path),
        How::Https { path } if way == Way::Decrypted => Some(path),
        How::Https { .. } | How::Tcp => None,
    };
    if let Some(path) = seen {
        parts.push(format!("http.method == {}", quoted(question.method())));
        parts.push(format!("http.path == {}", quoted(path)));
    }
    parts.join(" && ")
}

/// `allow-HOST`, and a number where that is taken.
fn unused_id(question: &Question, rules: &RuleSet) -> String {
    /// Characters of the host in an id: with `allow-` and a number it stays below what an id may have.
    const HOST_MAX: usize = 100;
    let host = question.destination.authority.host.to_text();
    let plain = host.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(HOST_MAX);
    let base = format!("allow-{}", plain.collect::<String>());
    let numbered = (2..).map(|number: u64| format!("{base}-{number}"));
    // Endless, and the set is not.
    std::iter::once(base.clone()).chain(numbered).find(|id| rules.rule(id).is_none()).unwrap_or(base)
}

impl Draft {
    fn write(&self) -> String {
        let Draft { id, condition, priority, .. } = self;
        let condition = condition.replace('\'', "''");
        let mut text =
            format!("version: \"1\"\nrules:\n  - id: {id}\n    condition: '{condition}'\n    action: allow\n");
        if *priority != PRIORITY_DEFAULT {
            text.push_str(&format!("    priority: {priority}\n"));
        }
        if self.way != Way::Proxy || self.private {
            text.push_str("    egress:\n");
        }
        match self.way {
            Way::Proxy => {}
            Way::Decrypted => text.push_str("      mode: intercept\n"),
            Way::Direct(port) => text.push_str(&format!("      mode: direct_ip\n      ports: [{port}]\n")),
        }
        if self.private {
            text.push_str("      allow_private_ips: true\n");
        }
        text
    }
}
