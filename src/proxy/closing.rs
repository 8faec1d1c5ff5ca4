//! Answers of the proxy's own, and the end of a connection: delivered first, then closed, so that what the client
//! still sends does not turn into a reset that eats the answer.

use crate::http1::{BodyFraming, BodyReader, Found, RequestHead, Version};

use super::answer::Answer;
use super::intercept::body;
use super::leg::ReadOutcome;
use super::session::{Core, Next, Session, State};

/// Bytes of a refused request's body that are read to keep the connection.
const DISCARD_MAX: usize = 64 * 1024;

/// Bytes that are read from a client that sends on after its last answer.
const LINGER_MAX: usize = 16 * 1024 * 1024;

/// How far the end has come.
#[derive(Debug, Default)]
pub(super) struct Closing {
    drained: usize,
}

/// Answers the request `head`, whose body is not read yet, and keeps the connection when that is safe.
pub(super) fn respond(session: &mut Session, core: &mut Core, answer: &Answer, head: &RequestHead) -> Next {
    let bodiless = matches!(head.framing, BodyFraming::None | BodyFraming::Length(0));
    let small = match head.framing {
        BodyFraming::Length(length) => length <= DISCARD_MAX as u64,
        BodyFraming::Chunked => true,
        BodyFraming::None | BodyFraming::UntilClose => false,
    };
    // A client that waits for 100 may send its body or not: two readings.
    let keep = head.keep_alive() && !core.stopping && (bodiless || small && !head.expects_continue());
    answer.write(session.client.leg.output(), &head.method, head.version, keep);
    if !keep {
        return close(session, core);
    }
    if bodiless {
        return next_request(session, core);
    }
    session.due.set(core.now + core.config.times.head);
    Next::Go(State::Discard(BodyReader::new(head.framing), DISCARD_MAX))
}

/// Answers the request `head`, whose body was read.
pub(super) fn respond_after_body(session: &mut Session, core: &mut Core, answer: &Answer, head: &RequestHead) -> Next {
    let keep = head.keep_alive() && !core.stopping;
    answer.write(session.client.leg.output(), &head.method, head.version, keep);
    if keep { next_request(session, core) } else { close(session, core) }
}

/// Answers whatever came and ends the connection.
pub(super) fn last_answer(session: &mut Session, core: &mut Core, answer: &Answer) -> Next {
    answer.write(session.client.leg.output(), "GET", Version::Http11, false);
    close(session, core)
}

/// Delivers what is pending, then ends the connection.
pub(super) fn close(session: &mut Session, core: &mut Core) -> Next {
    body::release(session, core);
    session.upstream = None;
    session.client.leg.input = Vec::new();
    session.due.set(core.now + core.config.times.linger);
    Next::Go(State::Closing(Closing::default()))
}

/// Waits for the next request.
pub(super) fn next_request(session: &mut Session, core: &mut Core) -> Next {
    body::release(session, core);
    session.due.set(core.now + core.config.times.keep_alive);
    Next::Go(State::Head { begun: false })
}

/// Reads and drops the rest of a body.
pub(super) fn discard(session: &mut Session, core: &mut Core, mut reader: BodyReader, mut left: usize) -> Next {
    let leg = &mut session.client.leg;
    match leg.flush() {
        Ok(true) => {}
        Ok(false) => return Next::Wait(State::Discard(reader, left)),
        Err(_) => return Next::End,
    }
    loop {
        let mut at = 0;
        let ended = loop {
            let Ok(progress) = reader.read(&leg.input[at..]) else { return close(session, core) };
            at += progress.consumed;
            match progress.found {
                Found::Data(_) => {}
                Found::Nothing => break false,
                Found::End => break true,
            }
        };
        leg.consume(at);
        if ended {
            return next_request(session, core);
        }
        let Some(rest) = left.checked_sub(at) else { return close(session, core) };
        left = rest;
        match leg.fill(&mut core.scratch) {
            Ok(ReadOutcome::Bytes(_)) => {}
            Ok(ReadOutcome::Blocked) => return Next::Wait(State::Discard(reader, left)),
            Ok(ReadOutcome::Ended) | Err(_) => return Next::End,
        }
    }
}

/// Delivers, says that no more comes, and reads until the client says so too.
pub(super) fn step(session: &mut Session, core: &mut Core, mut closing: Closing) -> Next {
    let leg = &mut session.client.leg;
    match leg.flush() {
        Ok(true) => leg.shut_down(),
        Ok(false) => return Next::Wait(State::Closing(closing)),
        Err(_) => return Next::End,
    }
    loop {
        match leg.read(&mut core.scratch) {
            Ok(ReadOutcome::Bytes(bytes)) => closing.drained += bytes,
            Ok(ReadOutcome::Blocked) => return Next::Wait(State::Closing(closing)),
            Ok(ReadOutcome::Ended) | Err(_) => return Next::End,
        }
        if closing.drained > LINGER_MAX {
            return Next::End;
        }
    }
}
