//! One request going up and its response coming down, both at once, each no faster than the other side takes it.

use std::net::SocketAddr;

use crate::http1::{
    Authority, BodyFraming, BodyReader, Found, Parse, ResponseHead, Version, write_chunk, write_last_chunk,
    write_request, write_response,
};

use super::answer::Answer;
use super::judge::Standing;
use super::leg::ReadOutcome;
use super::session::{Client, Core, Next, Request, Session, State, Upstream};
use super::tunnel::Tunnel;
use super::{closing, dial};

/// Interim responses (1xx) before the final one. Servers send one or two; an endless row is an attack.
const INTERIM_MAX: u8 = 8;

/// Reads in one turn of one direction, before the other direction and other sessions get theirs.
const READS_MAX: usize = 8;

/// An exchange.
pub(super) struct Exchange {
    pub(super) request: Box<Request>,
    pub(super) address: SocketAddr,
    upload: Upload,
    download: Download,
    websocket: bool,
    interim: u8,
    /// The connection carried a request before: the server may have closed it just now.
    reused: bool,
    /// Something of the response head that is due has come.
    heard: bool,
    /// Both ends can go on after this response.
    client_stays: bool,
    upstream_stays: bool,
}

enum Upload {
    Sending(BodyReader),
    Done,
    /// The server takes no more; it may have answered already.
    Broken,
}

enum Download {
    Head,
    /// `chunked`: whether the client gets chunks.
    Body {
        reader: BodyReader,
        chunked: bool,
    },
    Done,
}

/// What ends an exchange early.
enum Failure {
    /// The client is gone.
    Client,
    /// The client's body is malformed.
    Body,
    /// The server failed, and why.
    Upstream(&'static str),
    /// The server asked for, and was allowed, another protocol.
    Switched,
}

/// Sends the request's head on the session's upstream connection.
pub(super) fn begin(session: &mut Session, core: &mut Core, request: Box<Request>) -> Next {
    let Some(upstream) = &mut session.upstream else { return Next::End };
    let head = &request.head;
    let websocket = head.upgrades_to_websocket();
    let authority = Authority { host: request.facts.host.clone(), port: Some(request.facts.port) };
    let host = authority.to_host_field(request.facts.default_port());
    write_request(upstream.leg.output(), head, &request.facts.path, &host, websocket);
    let upload = match head.framing {
        BodyFraming::None | BodyFraming::Length(0) => Upload::Done,
        framing => Upload::Sending(BodyReader::new(framing)),
    };
    let exchange = Exchange {
        address: upstream.address,
        upload,
        download: Download::Head,
        websocket,
        interim: 0,
        reused: upstream.used,
        heard: false,
        client_stays: head.keep_alive(),
        upstream_stays: false,
        request,
    };
    upstream.used = true;
    session.due.set(core.now + core.config.times.exchange_idle);
    Next::Go(State::Exchange(Box::new(exchange)))
}

/// Moves what can be moved.
pub(super) fn step(session: &mut Session, core: &mut Core, mut exchange: Box<Exchange>) -> Next {
    let Session { client, upstream: Some(upstream), .. } = session else { return Next::End };
    let heard = exchange.heard;
    let moved = match exchange.upload(client, upstream, core) {
        Ok(moved) => moved,
        Err(failure) => return fail(session, core, exchange, &failure),
    };
    let moved = match exchange.download(client, upstream, core) {
        Ok(more) => moved || more,
        Err(failure) => return fail(session, core, exchange, &failure),
    };
    let in_head = exchange.heard && matches!(exchange.download, Download::Head);
    if in_head && !heard {
        // Set once, when the head begins, and not moved by further bytes of it.
        session.due.set(core.now + core.config.times.response_head);
    } else if moved && !in_head {
        session.due.set(core.now + core.config.times.exchange_idle);
    }
    match (&exchange.download, &exchange.upload) {
        (Download::Done, Upload::Done) if exchange.client_stays && !core.stopping => {
            let stays =
                exchange.upstream_stays && session.upstream.as_ref().is_some_and(|upstream| upstream.leg.is_quiet());
            if !stays {
                session.upstream = None;
            }
            closing::next_request(session, core)
        }
        (Download::Done, _) => closing::close(session, core),
        _ if moved => Next::Go(State::Exchange(exchange)),
        _ => Next::Wait(State::Exchange(exchange)),
    }
}

impl Exchange {
    /// Request body, client to server. True when something moved.
    fn upload(&mut self, client: &mut Client, upstream: &mut Upstream, core: &mut Core) -> Result<bool, Failure> {
        let mut moved = false;
        for _ in 0..READS_MAX {
            match &mut self.upload {
                Upload::Broken => return Ok(moved),
                Upload::Done => {}
                Upload::Sending(reader) => {
                    // Behind the head, in one segment with it where it came so.
                    let chunked = matches!(reader, BodyReader::Chunked(_));
                    let copied = copy(reader, chunked, &client.leg.input, upstream.leg.output());
                    let copied = copied.map_err(|()| Failure::Body)?;
                    moved |= copied.consumed > 0 || copied.end;
                    client.leg.consume(copied.consumed);
                    if copied.end {
                        self.upload = Upload::Done;
                    }
                }
            }
            match upstream.leg.flush() {
                Ok(true) => {}
                Ok(false) => return Ok(moved),
                Err(_) => {
                    self.upload = Upload::Broken;
                    return Ok(true);
                }
            }
            if matches!(self.upload, Upload::Done) {
                return Ok(moved);
            }
            match client.leg.fill(&mut core.scratch) {
                Ok(ReadOutcome::Bytes(_)) => moved = true,
                Ok(ReadOutcome::Blocked) => return Ok(moved),
                Ok(ReadOutcome::Ended) | Err(_) => return Err(Failure::Client),
            }
        }
        Ok(moved)
    }

    /// Response, server to client. True when something moved.
    fn download(&mut self, client: &mut Client, upstream: &mut Upstream, core: &mut Core) -> Result<bool, Failure> {
        let mut moved = false;
        for _ in 0..READS_MAX {
            // All heads that are there, and what is there of the body: the client gets them in one segment.
            while matches!(self.download, Download::Head) && self.response_head(client, upstream)? {
                moved = true;
            }
            if let Download::Body { reader, chunked } = &mut self.download {
                let chunked = *chunked;
                let copied = copy(reader, chunked, &upstream.leg.input, client.leg.output())
                    .map_err(|()| Failure::Upstream("its response body is malformed"))?;
                moved |= copied.consumed > 0 || copied.end;
                upstream.leg.consume(copied.consumed);
                if copied.end {
                    self.download = Download::Done;
                }
            }
            match client.leg.flush() {
                Ok(true) => {}
                Ok(false) => return Ok(moved),
                Err(_) => return Err(Failure::Client),
            }
            if matches!(self.download, Download::Done) {
                return Ok(moved);
            }
            match upstream.leg.fill(&mut core.scratch) {
                Ok(ReadOutcome::Bytes(_)) => {
                    moved = true;
                    self.heard = true;
                }
                Ok(ReadOutcome::Blocked) => return Ok(moved),
                Ok(ReadOutcome::Ended) => {
                    self.server_closed()?;
                    moved = true;
                }
                Err(_) => return Err(Failure::Upstream("it broke the connection")),
            }
        }
        Ok(moved)
    }

    fn server_closed(&mut self) -> Result<(), Failure> {
        match &self.download {
            Download::Body { reader: BodyReader::UntilClose, .. } => {
                self.download = Download::Done;
                Ok(())
            }
            Download::Body { .. } => Err(Failure::Upstream("its response was cut short")),
            Download::Head | Download::Done => Err(Failure::Upstream("it closed the connection without a response")),
        }
    }

    /// Reads a response head, interim ones too, and passes it on. False when more must be read first.
    fn response_head(&mut self, client: &mut Client, upstream: &mut Upstream) -> Result<bool, Failure> {
        let head = match ResponseHead::parse(&upstream.leg.input) {
            Parse::Incomplete => return Ok(false),
            Parse::Refused(refusal) => {
                tracing::debug!(target: "proxy", address = %upstream.address, code = refusal.code(), "bad response");
                return Err(Failure::Upstream("its response head is malformed"));
            }
            Parse::Parsed { head, consumed } => {
                upstream.leg.consume(consumed);
                head
            }
        };
        let version = self.request.head.version;
        match head.status {
            101 if self.websocket && head.fields.lists("upgrade", "websocket") => {
                write_response(client.leg.output(), &head, BodyFraming::None, Some("Upgrade"));
                return Err(Failure::Switched);
            }
            101 => return Err(Failure::Upstream("it switched to a protocol that was not asked for")),
            100..=199 => {
                self.interim += 1;
                self.heard = false;
                if self.interim > INTERIM_MAX {
                    return Err(Failure::Upstream("it sends interim responses without end"));
                }
                if version == Version::Http11 {
                    write_response(client.leg.output(), &head, BodyFraming::None, None);
                }
                return Ok(true);
            }
            _ => {}
        }
        let framing = head.framing(&self.request.head.method);
        self.upstream_stays = head.keep_alive();
        // HTTP/1.0 knows no chunks: such a client reads until the end of the connection.
        let to_client = match framing {
            BodyFraming::Chunked if version == Version::Http10 => BodyFraming::UntilClose,
            framing => framing,
        };
        // A server that answers before it has the body may never take the rest: what the client then still sends
        // has no reader, so the connection ends with the response.
        self.client_stays &= to_client != BodyFraming::UntilClose && matches!(self.upload, Upload::Done);
        let connection = match (self.client_stays, version) {
            (false, _) => Some("close"),
            (true, Version::Http10) => Some("keep-alive"),
            (true, Version::Http11) => None,
        };
        write_response(client.leg.output(), &head, to_client, connection);
        self.download = Download::Body { reader: BodyReader::new(framing), chunked: to_client == BodyFraming::Chunked };
        Ok(true)
    }
}

/// What was done with an input.
struct Copied {
    consumed: usize,
    end: bool,
}

/// Copies the body in `input` to `out`, in chunks or as it is. `Err`: malformed.
fn copy(reader: &mut BodyReader, chunked: bool, input: &[u8], out: &mut Vec<u8>) -> Result<Copied, ()> {
    let mut consumed = 0;
    loop {
        let rest = &input[consumed..];
        let progress = reader.read(rest).map_err(|_| ())?;
        consumed += progress.consumed;
        match progress.found {
            Found::Data(place) if chunked => write_chunk(out, &rest[place]),
            Found::Data(place) => out.extend_from_slice(&rest[place]),
            Found::Nothing => return Ok(Copied { consumed, end: false }),
            Found::End => {
                if chunked {
                    let trailers = match reader {
                        BodyReader::Chunked(decoder) => decoder.trailers(),
                        _ => &[],
                    };
                    write_last_chunk(out, trailers);
                }
                return Ok(Copied { consumed, end: true });
            }
        }
    }
}

/// Ends an exchange that did not come to its end; the client is told if it has been told nothing yet.
fn fail(session: &mut Session, core: &mut Core, exchange: Box<Exchange>, failure: &Failure) -> Next {
    let untold = matches!(exchange.download, Download::Head);
    match failure {
        Failure::Switched => return switch(session, core, *exchange),
        Failure::Client => return Next::End,
        Failure::Body if untold => {
            core.blocked += 1;
            return closing::last_answer(session, core, &Answer::failure(400, "the request body is malformed"));
        }
        Failure::Upstream(text) if untold => {
            // The server closed the idle connection while the request was under way: only requests that may be sent
            // twice were sent on it.
            if exchange.reused && !exchange.heard && exchange.interim == 0 {
                let address = exchange.address;
                return dial::anew(session, core, exchange.request, address);
            }
            session.upstream = None;
            if matches!(exchange.upload, Upload::Done) {
                let answer = failure_answer(&exchange, 502, text);
                return closing::respond_after_body(session, core, &answer, &exchange.request.head);
            }
            let answer = failure_answer(&exchange, 502, text);
            return closing::last_answer(session, core, &answer);
        }
        Failure::Body | Failure::Upstream(_) => {}
    }
    // The client has a part of a response. A close short of its end tells that the rest is missing; where only the
    // close is the end, a reset does.
    if let Download::Body { chunked: false, reader: BodyReader::UntilClose | BodyReader::Chunked(_) } =
        exchange.download
    {
        session.client.leg.abort();
        return Next::End;
    }
    closing::close(session, core)
}

fn failure_answer(exchange: &Exchange, status: u16, text: &str) -> Answer {
    let facts = &exchange.request.facts;
    tracing::debug!(target: "proxy", host = %facts.host_text, port = facts.port, status, text, "failed");
    Answer::failure(status, &format!("{}:{}: {text}", facts.host_text, facts.port))
}

/// WebSocket: from here on bytes are copied.
fn switch(session: &mut Session, core: &mut Core, exchange: Exchange) -> Next {
    let standing = Standing { facts: vec![exchange.request.facts], address: exchange.address };
    session.due.set(core.now + core.config.times.tunnel_idle);
    Next::Go(State::Tunnel(Box::new(Tunnel::new(standing, exchange.request.begun, core.now))))
}

/// Nothing moved for too long.
pub(super) fn timed_out(session: &mut Session, core: &mut Core, exchange: &Exchange) -> Next {
    if !matches!(exchange.download, Download::Head) || session.client.leg.pending() > 0 {
        return Next::End;
    }
    closing::last_answer(session, core, &failure_answer(exchange, 504, "no response in time"))
}
