//! Why a destination is allowed or blocked: each layer's verdict in the order in which a packet meets them.
//!
//! Every verdict comes from the function that judges for the layer itself ([`crate::dns::NameQuestion`],
//! [`crate::proxy::Preview`], [`RuleSet::opens_directly`]); nothing is judged here. Owns the order of the layers, the
//! words, and the rule that is suggested. Does not own resolution: the caller asks the DNS thread, and only for a name
//! that some rule would allow ([`Question::wants`]), so that a denied name reaches no DNS server. Nor does it own the
//! flows that are open: they are the bridge's to tell ([`Question::wants_flows`]).
//!
//! | file | what it is |
//! |---|---|
//! | `target` | what is to be explained, read |
//! | `walk` | the layers, one after the other |
//! | `suggest` | the smallest rule that would allow it |
//!
//! [`RuleSet::opens_directly`]: crate::rule_engine::RuleSet::opens_directly

mod suggest;
mod target;
mod walk;

use std::net::IpAddr;
use std::sync::Arc;

use crate::api;
use crate::bridge::GrantedFlow;
use crate::daemon::Snapshot;
use crate::dns::ResolveError;
use crate::docker_manager::Peer;
use crate::names::{Host, HostName};
use crate::proxy::Listening;
use target::{Destination, How};
use walk::Walk;

/// Bytes of a method; the longest registered one has 17.
const METHOD_MAX: usize = 32;

/// Whether there is a proxy, and how it listens.
#[derive(Clone, Copy, Debug)]
pub enum ProxyWay {
    /// `--no-proxy`.
    Absent,
    /// There is one, and these are its own addresses.
    Present(Listening),
}

/// Why there is nothing to explain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unexplained {
    /// The request has no meaning.
    Malformed(String),
    /// There is no such container on a managed network.
    NoContainer(String),
}

/// One thing to explain, by one snapshot.
#[derive(Clone)]
pub struct Question {
    snapshot: Arc<Snapshot>,
    peer: Peer,
    destination: Destination,
    method: Option<Box<str>>,
    proxy: ProxyWay,
}

/// What the DNS thread said, if it was asked.
pub type Resolved = Option<Result<Vec<IpAddr>, ResolveError>>;

/// The flows that may leave directly now, or why they could not be read.
pub type Open = Result<Vec<GrantedFlow>, String>;

impl Question {
    /// Reads `request`, to be explained by `snapshot`.
    ///
    /// # Errors
    /// [`Unexplained`].
    pub fn read(request: &api::ExplainRequest, snapshot: &Arc<Snapshot>, proxy: ProxyWay) -> Result<Self, Unexplained> {
        let destination = Destination::read(&request.target).map_err(Unexplained::Malformed)?;
        let method = request.method.as_deref().map(|method| read_method(method, &destination)).transpose()?;
        let peer = match request.container.as_deref() {
            None => Peer::Extra,
            Some(name) => {
                let mut endpoints: Vec<_> =
                    snapshot.directory.endpoints.values().filter(|endpoint| &*endpoint.container == name).collect();
                // On several networks it is judged by the same names on each.
                endpoints.sort_by_key(|endpoint| endpoint.address);
                let endpoint = endpoints.first().ok_or_else(|| {
                    Unexplained::NoContainer(format!("no container `{name}` is on a managed network; see `docker ps`"))
                })?;
                Peer::Container(Arc::clone(endpoint))
            }
        };
        Ok(Question { snapshot: Arc::clone(snapshot), peer, destination, method, proxy })
    }

    /// The name to resolve first, if a rule would allow anything to it.
    #[must_use]
    pub fn wants(&self) -> Option<HostName> {
        let Host::Name(name) = &self.destination.authority.host else { return None };
        let walked = Walk::new(self, &self.snapshot.rules, &None).run();
        walked.resolves.then(|| name.clone())
    }

    /// Whether flows that are open have a say: they belong to containers.
    #[must_use]
    pub fn wants_flows(&self) -> bool {
        matches!(self.peer, Peer::Container(_))
    }

    /// The explanation; `resolved` is what came of [`Question::wants`], if anything.
    #[must_use]
    pub fn answer(&self, resolved: &Resolved, open: &Open) -> api::Explained {
        let flows = open.as_ref().map_or(&[][..], Vec::as_slice);
        let walked = Walk::new(self, &self.snapshot.rules, resolved).with_open(flows).with_near().run();
        let suggestion = if walked.allowed { None } else { suggest::suggest(self, &walked, resolved) };
        let mut notes = self.notes();
        notes.extend(open.as_ref().err().map(|error| format!("the flows that are open could not be read: {error}")));
        notes.extend(walked.notes);
        if suggestion.is_some() && resolved.is_none() && matches!(self.destination.authority.host, Host::Name(_)) {
            notes.push(
                "the suggested rule was tried by name only, since a name that no rule allows is not resolved; if its \
                 addresses are private it also needs `egress: {allow_private_ips: true}`"
                    .to_owned(),
            );
        }
        let verdict = if walked.allowed { "allow" } else { "block" }.to_owned();
        api::Explained { steps: walked.steps, verdict, suggestion, notes }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if matches!(self.peer, Peer::Extra) {
            notes.push(
                "no container was named: judged as a peer of --extra-peers, with empty agent.name and agent.container"
                    .to_owned(),
            );
        }
        if self.destination.port_guessed {
            notes.push(format!("no port was named: TCP port {} is taken", self.destination.port()));
        }
        notes
    }

    /// The method of the request.
    fn method(&self) -> &str {
        self.method.as_deref().unwrap_or("GET")
    }
}

fn read_method(method: &str, destination: &Destination) -> Result<Box<str>, Unexplained> {
    let letters = method.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-');
    if method.is_empty() || method.len() > METHOD_MAX || !letters {
        return Err(Unexplained::Malformed("`method` is no method of a request, such as GET".to_owned()));
    }
    if method == "CONNECT" {
        return Err(Unexplained::Malformed("give HOST:PORT to explain a CONNECT".to_owned()));
    }
    if destination.how == How::Tcp {
        return Err(Unexplained::Malformed("`method` is for URLs; this target has no request".to_owned()));
    }
    Ok(method.into())
}

#[cfg(test)]
mod tests;
