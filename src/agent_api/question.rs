//! A permission check as the rules see it. Pure: facts in, verdict out; [`RuleSet::decide`] decides.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::api::{ActionType, PermissionCheck, PermissionVerdict};
use crate::docker_manager::Endpoint;
use crate::http1::Target;
use crate::names::Host;
use crate::rule_engine::{Action, Agent, Context, Http, Network, Rule, RuleSet, Run};

/// Bytes of a target: a long URL has half of it.
const TARGET_MAX: usize = 8 * 1024;
/// Bytes of a method; the longest registered one has 17 (RFC 9110 16.1, IANA).
const METHOD_MAX: usize = 32;
/// The layer that reasons name, as events do: what is refused here was refused by nothing else yet.
const LAYER: &str = "agent_api";
/// `run.tool` of a network call and of a file access.
const NETWORK_TOOL: &str = "network_call";
const FILE_TOOL: &str = "file";

/// A request that asks nothing: 400.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) String);

/// One question, its facts in normal form.
#[derive(Debug)]
pub(super) struct Question {
    tool: String,
    arguments: Option<Vec<String>>,
    flags: Option<Vec<String>>,
    cwd: Option<String>,
    context: Map<String, Value>,
    network: Option<Destination>,
    /// Why the answer is no, whatever the rules say.
    hopeless: Option<(&'static str, String)>,
}

/// Where a network call goes.
#[derive(Debug)]
struct Destination {
    host: Host,
    host_text: String,
    port: Option<u16>,
    http: Option<HttpFacts>,
}

#[derive(Debug)]
struct HttpFacts {
    scheme: &'static str,
    path: String,
    method: Option<String>,
}

/// An answer, and what the decision event says about it.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) verdict: PermissionVerdict,
    pub(super) rule: Option<Arc<Rule>>,
    /// The event's short code.
    pub(super) code: &'static str,
}

impl Question {
    /// Reads a check.
    ///
    /// # Errors
    /// [`Malformed`]
    pub(super) fn read(check: PermissionCheck) -> Result<Self, Malformed> {
        let PermissionCheck { action_type, target, metadata } = check;
        if target.is_empty() || target.len() > TARGET_MAX || target.chars().any(char::is_control) {
            let reason = format!("`target` is 1 to {TARGET_MAX} bytes without control characters");
            return Err(Malformed(reason));
        }
        let metadata = metadata.unwrap_or_default();
        let arguments = arguments(&metadata)?;
        let flags = flags(&metadata, arguments.as_deref())?;
        let cwd = text(&metadata, "cwd")?;
        let method = method(&metadata)?;
        let mut context = metadata;
        context.insert("action_type".to_owned(), Value::String(action_type.as_str().to_owned()));
        context.insert("target".to_owned(), Value::String(target.clone()));
        let mut question =
            Question { tool: String::new(), arguments, flags, cwd, context, network: None, hopeless: None };
        match action_type {
            ActionType::ToolExec | ActionType::ShellExec => question.tool = target,
            ActionType::FileAccess => {
                question.tool = FILE_TOOL.to_owned();
                if target.split('/').any(|part| part == "..") {
                    let reason = "write the path without `..`: rules see it as it is written";
                    question.hopeless = Some(("bad_path", reason.to_owned()));
                }
                question.arguments = Some(vec![target]);
            }
            ActionType::NetworkCall => {
                question.tool = NETWORK_TOOL.to_owned();
                match Destination::read(&target, method) {
                    Ok(destination) => question.network = Some(destination),
                    Err(reason) => question.hopeless = Some(("bad_target", reason)),
                }
            }
        }
        Ok(question)
    }

    /// Asks the rules.
    pub(super) fn ask(&self, endpoint: &Endpoint, rules: &RuleSet) -> Answered {
        if let Some((code, reason)) = &self.hopeless {
            return denied(None, code, reason.clone());
        }
        let decision = self.with_context(endpoint, |context| rules.decide(context));
        match (decision.action, decision.rule) {
            (Action::Allow, Some(rule)) => Answered {
                verdict: PermissionVerdict {
                    allowed: true,
                    matched_rule: Some(rule.id.to_string()),
                    reason: format!("rule {} allows it ({LAYER})", rule.id),
                },
                rule: Some(rule),
                code: "rule",
            },
            (Action::Block, Some(rule)) => {
                let reason = format!("rule {} blocks it ({LAYER})", rule.id);
                denied(Some(rule), "rule", reason)
            }
            (_, None) if decision.wants_address => denied(
                None,
                "default",
                format!("no rule allows it by its name alone; one depends on the address ({LAYER})"),
            ),
            // An allow without a rule does not exist; if it did, it would be none.
            (_, None) => denied(None, "default", format!("no rule allows it ({LAYER})")),
        }
    }

    /// Host and port, for the event.
    pub(super) fn destination(&self) -> Option<(&str, Option<u16>)> {
        self.network.as_ref().map(|network| (network.host_text.as_str(), network.port))
    }

    /// Method and path without its query, for the event.
    pub(super) fn http(&self) -> Option<(Option<&str>, &str)> {
        let http = self.network.as_ref()?.http.as_ref()?;
        let path = http.path.split('?').next().unwrap_or("/");
        Some((http.method.as_deref(), path))
    }

    fn with_context<T>(&self, endpoint: &Endpoint, use_it: impl FnOnce(&Context<'_>) -> T) -> T {
        let arguments: Option<Vec<&str>> = self.arguments.as_ref().map(|all| all.iter().map(String::as_str).collect());
        let flags: Option<Vec<&str>> = self.flags.as_ref().map(|all| all.iter().map(String::as_str).collect());
        let address = match self.network.as_ref().map(|network| &network.host) {
            Some(Host::Address(address)) => Some(IpAddr::to_string(address)),
            _ => None,
        };
        let network = self.network.as_ref();
        let http = network.and_then(|network| network.http.as_ref());
        use_it(&Context {
            agent: Agent { name: Some(&endpoint.agent), container: Some(&endpoint.container) },
            network: Network {
                hostname: network.map(|network| network.host_text.as_str()),
                ip: address.as_deref(),
                port: network.and_then(|network| network.port),
                protocol: network.map(|_| "tcp"),
            },
            http: Http {
                method: http.and_then(|http| http.method.as_deref()),
                path: http.map(|http| http.path.as_str()),
                host: http.and(network).map(|network| network.host_text.as_str()),
                scheme: http.map(|http| http.scheme),
                ..Http::default()
            },
            run: Run {
                tool: Some(&self.tool),
                args: arguments.as_deref(),
                flags: flags.as_deref(),
                cwd: self.cwd.as_deref(),
                context: Some(&self.context),
            },
            ..Context::default()
        })
    }
}

fn denied(rule: Option<Arc<Rule>>, code: &'static str, reason: String) -> Answered {
    let matched_rule = rule.as_ref().map(|rule| rule.id.to_string());
    Answered { verdict: PermissionVerdict { allowed: false, matched_rule, reason }, rule, code }
}

/// The verdict when the rules took longer than they may.
pub(super) fn timed_out() -> Answered {
    denied(None, "evaluation_timeout", "the rules took too long to evaluate".to_owned())
}

impl Destination {
    /// Reads a URL, `host` or `host:port`.
    fn read(target: &str, method: Option<String>) -> Result<Self, String> {
        // A fragment is never sent (RFC 9110 4.2.5).
        let target = target.split('#').next().unwrap_or(target);
        let url = if target.contains("://") { target.to_owned() } else { format!("none://{target}/") };
        if !target.contains("://") && target.contains(['/', '?']) {
            return Err("the target is no URL and no host; write https://…".to_owned());
        }
        let (scheme, authority, path) = match Target::parse(method.as_deref().unwrap_or("GET"), &url) {
            Ok(Target::Absolute { scheme, authority, path }) => (scheme, authority, path),
            Ok(_) => return Err("the target is no URL and no host".to_owned()),
            Err(error) => return Err(format!("the target cannot be judged: {error}")),
        };
        let (http_scheme, port) = match &*scheme {
            "http" | "ws" => (Some("http"), Some(80)),
            "https" | "wss" => (Some("https"), Some(443)),
            "ssh" => (None, Some(22)),
            "git" => (None, Some(9418)),
            _ => (None, None),
        };
        let http = http_scheme.map(|scheme| HttpFacts { scheme, path: path.into(), method });
        let host_text = authority.host.to_text();
        Ok(Destination { host: authority.host, host_text, port: authority.port.or(port), http })
    }
}

/// `args_json`, a list or the JSON text of one; else `args`, a list or words.
fn arguments(metadata: &Map<String, Value>) -> Result<Option<Vec<String>>, Malformed> {
    match metadata.get("args_json") {
        None | Some(Value::Null) => words(metadata, "args"),
        Some(Value::String(json)) => match serde_json::from_str::<Vec<String>>(json) {
            Ok(list) => Ok(Some(list)),
            Err(_) => Err(Malformed("`metadata.args_json` is no JSON list of texts".to_owned())),
        },
        Some(value) => texts(value, "args_json").map(Some),
    }
}

/// The flags given, and every argument that looks like one: nobody hides a flag by not listing it.
fn flags(metadata: &Map<String, Value>, arguments: Option<&[String]>) -> Result<Option<Vec<String>>, Malformed> {
    let given = words(metadata, "flags")?;
    let Some(arguments) = arguments else { return Ok(given) };
    let mut flags = given.unwrap_or_default();
    for argument in arguments.iter().filter(|argument| argument.starts_with('-') && argument.len() > 1) {
        if !flags.contains(argument) {
            flags.push(argument.clone());
        }
    }
    Ok(Some(flags))
}

fn words(metadata: &Map<String, Value>, key: &str) -> Result<Option<Vec<String>>, Malformed> {
    match metadata.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.split_ascii_whitespace().map(str::to_owned).collect())),
        Some(value) => texts(value, key).map(Some),
    }
}

fn texts(value: &Value, key: &str) -> Result<Vec<String>, Malformed> {
    let list = value.as_array().map(|list| list.iter().map(|item| item.as_str().map(str::to_owned)).collect());
    match list {
        Some(Some(texts)) => Ok(texts),
        _ => Err(Malformed(format!("`metadata.{key}` is no list of texts"))),
    }
}

fn text(metadata: &Map<String, Value>, key: &str) -> Result<Option<String>, Malformed> {
    match metadata.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Malformed(format!("`metadata.{key}` is no text"))),
    }
}

fn method(metadata: &Map<String, Value>) -> Result<Option<String>, Malformed> {
    let method = text(metadata, "method")?;
    let bad = |method: &String| {
        let letters = method.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-');
        method.is_empty() || method.len() > METHOD_MAX || !letters || method == "CONNECT"
    };
    match method {
        Some(method) if bad(&method) => Err(Malformed("`metadata.method` is no method of a request".to_owned())),
        method => Ok(method),
    }
}

#[cfg(test)]
#[path = "question_tests.rs"]
mod tests;
