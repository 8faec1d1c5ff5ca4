//! The reader of the Engine's event stream, a thread of its own.
//!
//! Owns: the connection to `/events`, its reconnection, the parsing of a line. Does not own: what an event leads to.

use std::io::{BufRead, Read};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use serde::Deserialize;

use super::client::{Client, DockerError};
use super::{DockerCommand, Notice};
use crate::event_loop::Address;

/// `{"type":["network","container"],"event":[…]}` in percent-encoding: all that changes who is behind an address.
const PATH: &str = "/events?filters=%7B%22type%22%3A%5B%22network%22%2C%22container%22%5D%2C%22event%22%3A%5B%22connect\
    %22%2C%22disconnect%22%2C%22create%22%2C%22destroy%22%2C%22remove%22%2C%22start%22%2C%22die%22%2C%22rename%22%5D%7D";
/// Bytes of one event: labels are part of it, and may be long.
const LINE_CAP: u64 = 1 << 20;
/// The first wait before a lost Engine is tried again, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// How long the manager may take to have room for a notice. Its mailbox is drained between any two Docker calls.
const POST_LIMIT: Duration = Duration::from_secs(3);

/// What the stream says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The stream is open: whatever happened before must be read anew.
    Opened,
    /// The stream broke or did not open.
    Lost(String),
    /// A network was made or removed.
    Networks,
    /// A container came to or went from a network.
    Endpoints { network: String, container: Option<String> },
    /// A container was made; it is not running yet.
    Created(String),
    /// A container's process is about to run, and its inspection answers again.
    Started(String),
    /// A container's process ended, or the container is gone.
    Ended(String),
    /// A container has another name.
    Renamed(String),
}

/// The running reader.
pub(super) struct Stream {
    client: Client,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    /// Starts the reader with a client of its own: stopping it breaks that client's calls only.
    pub(super) fn start(client: Client, manager: Address<DockerCommand>) -> std::io::Result<Stream> {
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let reader = client.clone();
        let thread = std::thread::Builder::new()
            .name("docker_events".to_owned())
            .spawn(move || follow(&reader, &manager, &stopped))?;
        Ok(Stream { client, stop: Some(stop), thread: Some(thread) })
    }

    /// True when the reader ended by itself, which it does only by panicking or when its manager is gone.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Stream {
    /// Unblocks the reader wherever it waits, and waits for its end.
    fn drop(&mut self) {
        drop(self.stop.take());
        self.client.shutdown();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(target: "docker_manager", "the event reader panicked");
        }
    }
}

fn follow(client: &Client, manager: &Address<DockerCommand>, stopped: &Receiver<()>) {
    let mut backoff = BACKOFF.0;
    loop {
        let reason = match read_stream(client, manager) {
            Ok(Ended::ManagerGone) => return,
            Ok(Ended::Closed) => {
                backoff = BACKOFF.0;
                "the Engine closed its event stream".to_owned()
            }
            Ok(Ended::Broken(reason)) => {
                backoff = BACKOFF.0;
                reason
            }
            Err(error) => error.to_string(),
        };
        client.forget_version();
        if stopped.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected) {
            return;
        }
        if post(manager, Change::Lost(reason)).is_err() {
            return;
        }
        match stopped.recv_timeout(backoff) {
            Err(RecvTimeoutError::Timeout) => backoff = (backoff * 2).min(BACKOFF.1),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

enum Ended {
    ManagerGone,
    Closed,
    Broken(String),
}

fn read_stream(client: &Client, manager: &Address<DockerCommand>) -> Result<Ended, DockerError> {
    let mut stream = client.stream(PATH)?;
    if post(manager, Change::Opened).is_err() {
        return Ok(Ended::ManagerGone);
    }
    let mut line = Vec::new();
    loop {
        line.clear();
        match stream.by_ref().take(LINE_CAP).read_until(b'\n', &mut line) {
            Ok(0) => return Ok(Ended::Closed),
            Ok(_) if line.last() != Some(&b'\n') => {
                return Ok(Ended::Broken("an event was cut short or is larger than 1 MiB".to_owned()));
            }
            Ok(_) => {}
            Err(error) => return Ok(Ended::Broken(format!("the event stream broke: {error}"))),
        }
        match parse(&line) {
            Ok(Some(change)) => {
                tracing::debug!(target: "docker_manager", ?change, "event");
                if post(manager, change).is_err() {
                    return Ok(Ended::ManagerGone);
                }
            }
            Ok(None) => {}
            Err(error) => return Ok(Ended::Broken(format!("an event is not what the API promises: {error}"))),
        }
    }
}

/// `Err` when the manager is gone or stuck: the process is ending, or about to.
fn post(manager: &Address<DockerCommand>, change: Change) -> Result<(), ()> {
    manager.send_within(DockerCommand::Noticed(Notice::stream(change)), POST_LIMIT).map_err(drop)
}

/// One line of the stream; `None` for an event that changes nothing for us.
fn parse(line: &[u8]) -> Result<Option<Change>, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Line {
        r#type: String,
        action: String,
        actor: Actor,
    }
    #[derive(Deserialize)]
    struct Actor {
        #[serde(rename = "ID")]
        id: String,
        #[serde(rename = "Attributes", default)]
        attributes: Attributes,
    }
    #[derive(Default, Deserialize)]
    struct Attributes {
        container: Option<String>,
    }
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let Line { r#type: kind, action, actor } = serde_json::from_slice(line)?;
    Ok(match (kind.as_str(), action.as_str()) {
        ("network", "create" | "destroy" | "remove") => Some(Change::Networks),
        ("network", "connect" | "disconnect") => {
            Some(Change::Endpoints { network: actor.id, container: actor.attributes.container })
        }
        ("container", "create") => Some(Change::Created(actor.id)),
        ("container", "start") => Some(Change::Started(actor.id)),
        ("container", "die" | "destroy") => Some(Change::Ended(actor.id)),
        ("container", "rename") => Some(Change::Renamed(actor.id)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_engine_20_10_are_read() {
        let connect = br#"{"Type":"network","Action":"connect","Actor":{"ID":"792b","Attributes":{"container":"cdb9","name":"outcall-default","type":"bridge"}},"scope":"local","time":1,"timeNano":2}"#;
        let expected = Change::Endpoints { network: "792b".to_owned(), container: Some("cdb9".to_owned()) };
        assert_eq!(parse(connect).unwrap(), Some(expected));
        let start = br#"{"status":"start","id":"cdb9","from":"bb:1","Type":"container","Action":"start","Actor":{"ID":"cdb9","Attributes":{"image":"bb:1","name":"w-1"}},"scope":"local","time":1}"#;
        assert_eq!(parse(start).unwrap(), Some(Change::Started("cdb9".to_owned())));
        let other = br#"{"Type":"container","Action":"exec_start: sh","Actor":{"ID":"cdb9","Attributes":{}}}"#;
        assert_eq!(parse(other).unwrap(), None);
        assert_eq!(parse(b"\n").unwrap(), None);
        assert!(parse(b"garbage\n").is_err());
    }
}
