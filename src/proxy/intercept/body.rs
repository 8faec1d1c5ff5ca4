//! Bodies that a rule hangs on: read up to the cap before the request is judged, and sent on as they came.
//!
//! The wire's bytes stay in the client's input, where the exchange finds them; what is taken out of them here, and
//! decoded, is for the rules alone.

use std::collections::HashMap;
use std::sync::Arc;

use crate::http1::{BodyReader, Found};

use super::super::admission::Holder;
use super::super::answer::Answer;
use super::super::judge::{BodyFacts, Refused};
use super::super::leg::ReadOutcome;
use super::super::session::{Core, Next, Request, Session, State};
use super::super::{closing, report, request};
use super::decode::decode;
use super::reason;

/// Bytes of bodies held for all sessions. A request that finds no room is judged as one over the cap.
const HELD_MAX: usize = 128 * 1024 * 1024;

/// Of one container: it must not take the room of all others. Twice the largest cap and its decoded form fit.
const HELD_PER_HOLDER_MAX: usize = 64 * 1024 * 1024;

/// Bytes of chunk headers that are held beside a body: those of a body in chunks of a few bytes may be more than the
/// body itself.
const FRAMING_MAX: usize = 64 * 1024;

/// A body that is being read.
pub(in crate::proxy) struct Gathering {
    request: Box<Request>,
    reader: BodyReader,
    /// So much of the input was looked at.
    at: usize,
    data: Vec<u8>,
}

/// Reads the body first, if a rule hangs on it.
pub(in crate::proxy) fn begin(session: &mut Session, core: &mut Core, mut request: Box<Request>) -> Next {
    if !request.facts.wants_body(&core.snapshot.rules, &session.client.peer) {
        return request::admit(session, core, request);
    }
    if request.head.expects_continue() {
        // Nobody else can say it: the server is asked only if the body pleases.
        session.client.leg.output().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        request.head.fields.remove("expect");
    }
    session.due.set(core.now + core.config.times.head);
    let reader = BodyReader::new(request.head.framing);
    Next::Go(State::Gathering(Box::new(Gathering { request, reader, at: 0, data: Vec::new() })))
}

/// Reads on.
pub(in crate::proxy) fn step(session: &mut Session, core: &mut Core, mut gathering: Box<Gathering>) -> Next {
    match session.client.leg.flush() {
        Ok(true) => {}
        Ok(false) => return Next::Wait(State::Gathering(gathering)),
        Err(_) => return Next::End,
    }
    let cap = core.config.interception.as_ref().map_or(0, |interception| interception.body_cap);
    loop {
        let ended = match gathering.take(&session.client.leg.input) {
            Ok(ended) => ended,
            Err(()) => {
                return request::refuse(session, core, 400, "bad_body", "the request body is malformed");
            }
        };
        let wire = session.client.leg.input.len();
        let over = gathering.data.len() > cap || wire > gathering.data.len() + FRAMING_MAX;
        if over || !hold(session, core, wire + gathering.data.len()) {
            return judge_unseen(session, core, gathering.request, over);
        }
        if ended {
            return judge(session, core, *gathering, cap);
        }
        match session.client.leg.fill(&mut core.scratch) {
            Ok(ReadOutcome::Bytes(_)) => session.due.set(core.now + core.config.times.head),
            Ok(ReadOutcome::Blocked) => return Next::Wait(State::Gathering(gathering)),
            Ok(ReadOutcome::Ended) | Err(_) => return Next::End,
        }
    }
}

/// The body does not come.
pub(in crate::proxy) fn timed_out(session: &mut Session, core: &mut Core) -> Next {
    closing::last_answer(session, core, &Answer::failure(408, "the request body took too long"))
}

impl Gathering {
    /// Takes what is new in `input`. True at the end of the body.
    fn take(&mut self, input: &[u8]) -> Result<bool, ()> {
        loop {
            let rest = &input[self.at..];
            let progress = self.reader.read(rest).map_err(|_| ())?;
            self.at += progress.consumed;
            match progress.found {
                Found::Data(place) => self.data.extend_from_slice(&rest[place]),
                Found::Nothing => return Ok(false),
                Found::End => return Ok(true),
            }
        }
    }
}

/// Judges with the body.
fn judge(session: &mut Session, core: &mut Core, gathering: Gathering, cap: usize) -> Next {
    let Gathering { mut request, data, .. } = gathering;
    let encodings: Vec<String> = request
        .head
        .fields
        .list("content-encoding")
        .map(|member| String::from_utf8_lossy(member).to_ascii_lowercase())
        .collect();
    let size = data.len() as u64;
    let decoded = if encodings.is_empty() { Ok(Some(data)) } else { decode(&encodings.join(","), &data, cap) };
    request.facts.body_size = Some(size);
    match decoded {
        Ok(Some(text)) if hold(session, core, session.client.leg.input.len() + text.len()) => {
            let text = String::from_utf8_lossy(&text);
            request.facts.body = BodyFacts::Read(Some(Arc::from(text.as_ref())));
            request::admit(session, core, request)
        }
        Ok(_) => judge_unseen(session, core, request, true),
        Err(error) => {
            let facts = &request.facts;
            let refused = Refused::because(reason::BODY_DECODE_FAILED);
            report::refused(core, &session.client, facts, &refused, request.begun);
            let text = format!("{}:{}: the request body cannot be decoded: {error}", facts.host_text, facts.port);
            let answer = Answer::failure(502, &text).with_reason(reason::BODY_DECODE_FAILED);
            closing::respond(session, core, &answer, &request.head)
        }
    }
}

/// Judges without: `http.body` is null, and what was read goes on as it came.
fn judge_unseen(session: &mut Session, core: &mut Core, mut request: Box<Request>, over: bool) -> Next {
    let facts = &mut request.facts;
    facts.body = BodyFacts::Read(None);
    let why = if over { "is over --intercept-body-cap-bytes" } else { "finds no room beside those held" };
    if core.intercept.body_log.opens(core.now) {
        let container = session.client.peer.agent().container.unwrap_or("-");
        tracing::warn!(target: "proxy", host = %facts.host_text, container, "a request body {why}: judged with `http.body == null`");
    }
    request::admit(session, core, request)
}

/// Has the session hold `bytes` of bodies; false when there is no room for them.
fn hold(session: &mut Session, core: &mut Core, bytes: usize) -> bool {
    let client = &mut session.client;
    match &client.holder {
        Some(holder) => core.intercept.bodies.hold(holder, &mut client.held, bytes),
        None => false,
    }
}

/// Lets go of what the session holds: its request is over.
pub(in crate::proxy) fn release(session: &mut Session, core: &mut Core) {
    let client = &mut session.client;
    if client.held > 0
        && let Some(holder) = &client.holder
    {
        core.intercept.bodies.hold(holder, &mut client.held, 0);
    }
}

/// How much is held, and for whom.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Bodies {
    all: usize,
    holders: HashMap<Holder, usize>,
}

impl Bodies {
    /// Changes what a session of `holder` holds from `held` to `bytes`; false, and nothing changed, without room.
    fn hold(&mut self, holder: &Holder, held: &mut usize, bytes: usize) -> bool {
        let own = self.holders.get(holder).copied().unwrap_or(0);
        // Both sums hold what this session held before.
        let (own, all) = (own.saturating_sub(*held) + bytes, self.all.saturating_sub(*held) + bytes);
        if bytes > *held && (own > HELD_PER_HOLDER_MAX || all > HELD_MAX) {
            return false;
        }
        self.all = all;
        if own == 0 {
            self.holders.remove(holder);
        } else {
            self.holders.insert(holder.clone(), own);
        }
        *held = bytes;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_container_does_not_take_the_room_of_all() {
        let mut bodies = Bodies::default();
        let holder = |name: &str| Holder::Container(name.into());
        let (mut first, mut second, mut other) = (0, 0, 0);
        assert!(bodies.hold(&holder("a"), &mut first, HELD_PER_HOLDER_MAX - 10));
        assert!(!bodies.hold(&holder("a"), &mut second, 11));
        assert_eq!(second, 0);
        assert!(bodies.hold(&holder("a"), &mut second, 10));
        assert!(bodies.hold(&holder("b"), &mut other, HELD_PER_HOLDER_MAX));
        let mut third = 0;
        assert!(!bodies.hold(&holder("c"), &mut third, HELD_MAX - 2 * HELD_PER_HOLDER_MAX + 1));
        for (name, held) in [("a", &mut first), ("a", &mut second), ("b", &mut other)] {
            assert!(bodies.hold(&holder(name), held, 0));
        }
        assert_eq!((bodies.all, bodies.holders.len()), (0, 0));
    }
}
