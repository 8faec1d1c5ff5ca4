//! `/events`: the last events, or a stream of those to come.
//!
//! Owns: the readers and what each has lost. A reader that does not keep up loses events, is told how many in a line
//! `{"lost":N}`, and costs nobody else anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::daemon::Subsystem;
use crate::event_loop::Reply;
use crate::events::{Batch, EventsCommand, Filter, Live, Verdict};
use crate::unix_http::{Answer, Fed, Response, Ticket};

use super::api::Api;
use super::call::{Call, flag};
use super::links::{HostApiCommand, Late};
use super::respond::failed;

/// Readers that follow at once. Each may hold a stream's buffer: 16 MiB for all of them.
const READERS_MAX: usize = 64;
/// Bytes handed over at once: a reader that is nearly full then loses little.
const PIECE_MAX: usize = 16 * 1024;
/// The events thread answers between two writes to the disk.
const LIMIT: Duration = Duration::from_secs(5);
/// Lines of JSON.
const LINES: &str = "application/x-ndjson";

/// Those who follow.
pub(super) struct Readers {
    live: Arc<Live>,
    readers: BTreeMap<Ticket, Reader>,
    /// Events that readers lost, all readers together.
    pub(super) lost: u64,
}

struct Reader {
    filter: Filter,
    /// Not yet told.
    lost: u64,
}

impl Readers {
    pub(super) fn new(live: Arc<Live>) -> Self {
        Readers { live, readers: BTreeMap::new(), lost: 0 }
    }

    pub(super) fn count(&self) -> usize {
        self.readers.len()
    }

    pub(super) fn remove(&mut self, ticket: Ticket) {
        self.readers.remove(&ticket);
        self.live.set_readers(self.readers.len());
    }

    fn add(&mut self, ticket: Ticket, filter: Filter) -> Result<(), Response> {
        if self.readers.len() >= READERS_MAX {
            return Err(failed(503, format!("{READERS_MAX} readers follow the events already; end one of them")));
        }
        self.readers.insert(ticket, Reader { filter, lost: 0 });
        self.live.set_readers(self.readers.len());
        Ok(())
    }

    /// Those who follow, to end their streams.
    pub(super) fn tickets(&self) -> Vec<Ticket> {
        self.readers.keys().copied().collect()
    }

    /// A batch begins: what was lost before it is lost to everybody.
    pub(super) fn begin(&mut self, batch: &Batch) {
        for reader in self.readers.values_mut() {
            reader.lost += batch.lost;
            self.lost += batch.lost;
        }
    }

    /// What the reader gets of `batch` from the line at `next` on, and moves `next` behind it.
    pub(super) fn piece(&self, ticket: Ticket, batch: &Batch, next: &mut usize) -> Option<Piece> {
        let reader = self.readers.get(&ticket)?;
        let mut piece = Piece { bytes: Vec::new(), events: 0 };
        if reader.lost > 0 {
            piece.bytes.extend_from_slice(format!("{{\"lost\":{}}}\n", reader.lost).as_bytes());
        }
        while let Some(line) = batch.lines.get(*next) {
            if reader.filter.passes(line) {
                if piece.events > 0 && piece.bytes.len() + line.json().len() > PIECE_MAX {
                    break;
                }
                piece.bytes.extend_from_slice(line.json());
                piece.events += 1;
            }
            *next += 1;
        }
        (piece.events > 0).then_some(piece)
    }

    /// What became of a piece.
    pub(super) fn fed(&mut self, ticket: Ticket, events: u64, fed: Fed) {
        let Some(reader) = self.readers.get_mut(&ticket) else { return };
        match fed {
            Fed::Taken => reader.lost = 0,
            Fed::Full => {
                reader.lost += events;
                self.lost += events;
            }
            Fed::Gone => {
                self.remove(ticket);
            }
        }
    }
}

/// Part of a batch for one reader.
pub(super) struct Piece {
    pub(super) bytes: Vec<u8>,
    pub(super) events: u64,
}

/// `GET /events`
pub(super) fn events(api: &mut Api, call: Call) -> Result<Answer, Response> {
    let [follow, verdict, container] = call.query(["follow", "verdict", "container"])?;
    let verdict = match verdict.as_deref() {
        None => None,
        Some("allow") => Some(Verdict::Allow),
        Some("block") => Some(Verdict::Block),
        Some(other) => {
            return Err(failed(400, format!("query parameter `verdict` is allow or block, not `{other}`")));
        }
    };
    let container = match container.as_deref() {
        Some("") => return Err(failed(400, "query parameter `container` is the name or id of a container, not empty")),
        other => other.map(Into::into),
    };
    let filter = Filter { verdict, container };
    if flag("follow", follow.as_deref())? {
        if &*call.request.method != "HEAD" {
            api.readers.add(call.ticket, filter)?;
        }
        return Ok(Answer::Now(Response::stream(LINES).closing()));
    }
    let (own, ticket) = (api.links.own.clone(), call.ticket);
    let reply = Reply::new(move |lines| {
        let _ = own.send(HostApiCommand::Answer(ticket, Late::new(move || Response::whole(200, LINES, lines))));
    });
    if api.links.events.try_send(EventsCommand::Recent(filter, reply)).is_err() {
        return Err(failed(503, "the events thread is busy; try again"));
    }
    api.wait_for_owner(ticket, Subsystem::Events, Instant::now(), LIMIT);
    Ok(Answer::Later)
}
