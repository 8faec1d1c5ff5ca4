//! DNS messages on the side of the clients: a datagram or a framed TCP message in, one question or a refusal out;
//! and every answer that leaves. RFC 1035, 2308 (negative answers), 6891 (EDNS0), 9619 (one question).
//!
//! Owns: reading questions and writing answers. Does not own: what is allowed, and what upstream says (`answer`).

use std::borrow::Cow;

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::DecodeError;

use super::answer::Answer;
use crate::names::HostName;

/// The largest datagram sent, and the size offered in EDNS0, in bytes: what passes unfragmented nearly everywhere
/// (DNS flag day 2020).
pub(super) const UDP_PAYLOAD: u16 = 1232;
/// What a client without EDNS0 takes, in bytes (RFC 1035 4.2.1).
const UDP_PAYLOAD_PLAIN: u16 = 512;
/// A question with OPT needs under 400 bytes; more additional records than these are no question, in records.
const ADDITIONALS_MAX: u16 = 4;
/// TTL of the SOA of an answer that is ours, in seconds: how soon a client sees that a rule changed.
const OWN_TTL: u32 = 60;

const HEADER: usize = 12;
/// Option code of an extended error (RFC 8914 2).
const EXTENDED_ERROR: u16 = 15;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Transport {
    /// One datagram; the answer has a size limit.
    Udp,
    /// A framed message on a connection.
    Tcp,
}

impl Transport {
    /// As events name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        }
    }
}

/// One question, as its asker wrote it.
#[derive(Clone, Debug)]
pub(super) struct Query {
    id: u16,
    /// The name in the asker's own case, and the type; the class is IN.
    pub(super) question: Question,
    /// The name's normal form, if it has one.
    pub(super) name: Option<HostName>,
    recursion_desired: bool,
    checking_disabled: bool,
    authentic_data: bool,
    edns: Option<ClientEdns>,
}

#[derive(Clone, Copy, Debug)]
struct ClientEdns {
    payload: u16,
    dnssec_ok: bool,
}

/// What a message from a client is.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A question to judge.
    Query(Query),
    /// No question that we take; the refusal echoes what could be read.
    Refused(Refusal),
    /// Nothing that has an answer: dropped over UDP, the end of the connection over TCP.
    Malformed,
}

/// A message that is refused whoever sent it.
#[derive(Debug)]
pub(super) struct Refusal {
    id: u16,
    op_code: OpCode,
    recursion_desired: bool,
    /// The question, as far as there is one.
    pub(super) question: Option<Question>,
    with_edns: bool,
    code: ResponseCode,
}

impl Refusal {
    /// The refusal on the wire; `code` replaces the reason that the message itself gives.
    pub(super) fn to_wire(&self, code: Option<ResponseCode>) -> Option<Vec<u8>> {
        let mut message = Message::response(self.id, self.op_code);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code.unwrap_or(self.code);
        message.queries.extend(self.question.clone());
        if self.with_edns {
            message.set_edns(own_edns(false));
        }
        message.to_vec().ok()
    }
}

/// Reads a message from a client.
pub(super) fn read(bytes: &[u8]) -> Incoming {
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Incoming::Malformed };
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    // An answer is never answered: two filters would talk for ever.
    if header[2] & 0x80 != 0 {
        return Incoming::Malformed;
    }
    let refusal = |code| Refusal {
        id: word(0),
        op_code: OpCode::from_u8((header[2] >> 3) & 0x0f),
        recursion_desired: header[2] & 1 != 0,
        question: None,
        with_edns: false,
        code,
    };
    // Judged before the body is read: counts of the header decide how much the parser would allocate.
    if header[2] & 0x78 != 0 {
        return Incoming::Refused(refusal(ResponseCode::NotImp));
    }
    let counts = (word(4), word(6), word(8));
    if counts != (1, 0, 0) || word(10) > ADDITIONALS_MAX {
        return Incoming::Refused(refusal(ResponseCode::FormErr));
    }
    let mut message = match Message::from_vec(bytes) {
        Ok(message) => message,
        Err(DecodeError::DomainNameTooLong(_)) => return Incoming::Refused(refusal(ResponseCode::FormErr)),
        Err(_) => return Incoming::Malformed,
    };
    let Some(question) = message.queries.pop() else { return Incoming::Malformed };
    let refused =
        |question, with_edns, code| Incoming::Refused(Refusal { question: Some(question), with_edns, ..refusal(code) });
    let edns = message.edns.as_ref();
    if edns.is_some_and(|edns| edns.version() != 0) {
        return refused(question, true, ResponseCode::BADVERS);
    }
    if question.query_class() != DNSClass::IN {
        return refused(question, edns.is_some(), ResponseCode::Refused);
    }
    if is_meta(question.query_type()) {
        return refused(question, edns.is_some(), ResponseCode::NotImp);
    }
    if question.name().is_root() {
        // NXDOMAIN for the root would deny every name there is (RFC 8020).
        return refused(question, edns.is_some(), ResponseCode::Refused);
    }
    Incoming::Query(Query {
        id: message.metadata.id,
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        authentic_data: message.metadata.authentic_data,
        edns: edns.map(|edns| ClientEdns { payload: edns.max_payload(), dnssec_ok: edns.flags().dnssec_ok }),
        name: HostName::parse(&question.name().to_ascii()).ok(),
        question,
    })
}

/// Types that ask for no record of that type: ANY, zone transfers, the pseudo types (RFC 6895 3.1).
fn is_meta(record_type: RecordType) -> bool {
    matches!(u16::from(record_type), 0 | 41 | 128..=255)
}

/// The type as rules and people write it; `TYPE731` for one without a name (RFC 3597).
pub(super) fn type_text(record_type: RecordType) -> Cow<'static, str> {
    match record_type {
        RecordType::Unknown(code) => format!("TYPE{code}").into(),
        named => <&'static str>::from(named).into(),
    }
}

impl Query {
    /// The type asked for.
    pub(super) fn record_type(&self) -> RecordType {
        self.question.query_type()
    }

    /// Whether DNSSEC records are wanted (RFC 3225).
    pub(super) fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// The same question of the same asker, sent again while the first one waits.
    pub(super) fn repeats(&self, earlier: &Query) -> bool {
        self.id == earlier.id && self.question == earlier.question
    }

    /// An answer without records, for what was found at `addresses` that rules do not let pass.
    pub(super) fn filtered(&self, code: ResponseCode, text: &str) -> Option<Vec<u8>> {
        let mut message = self.response(code);
        extend(&mut message, Extended::Filtered, text);
        message.to_vec().ok()
    }

    /// An answer without records.
    pub(super) fn refuse(&self, code: ResponseCode) -> Option<Vec<u8>> {
        self.response(code).to_vec().ok()
    }

    /// "There is no such name", by our own authority: `extended` and `text` say why to who understands EDNS0.
    pub(super) fn no_such_name(&self, extended: Extended, text: &str) -> Option<Vec<u8>> {
        self.own_denial(ResponseCode::NXDomain, Some((extended, text)))
    }

    /// "There is no such record", by our own authority.
    pub(super) fn no_data(&self) -> Option<Vec<u8>> {
        self.own_denial(ResponseCode::NoError, None)
    }

    fn own_denial(&self, code: ResponseCode, why: Option<(Extended, &str)>) -> Option<Vec<u8>> {
        let mut message = self.response(code);
        if let Some((extended, text)) = why {
            extend(&mut message, extended, text);
        }
        message.metadata.authoritative = true;
        message.authorities.push(own_soa(self.question.name().clone()));
        message.to_vec().ok()
    }

    /// What upstream answered `age` seconds ago, as far as `keep` lets each record pass, with no TTL over `ttl_max`
    /// seconds. Over UDP, what does not fit is cut to a TC answer.
    pub(super) fn answer(
        &self,
        answer: &Answer,
        age: u32,
        ttl_max: u32,
        transport: Transport,
        keep: impl Fn(&Record) -> bool,
    ) -> Option<Vec<u8>> {
        let mut message = self.response(answer.code);
        let aged = |record: &Record| {
            let mut record = record.clone();
            record.ttl = record.ttl.saturating_sub(age).min(ttl_max);
            // The owner that was asked for goes back as it was written (0x20); upstream saw another case.
            if record.name == *self.question.name() {
                record.name = self.question.name().clone();
            }
            record
        };
        message.answers = answer.records.iter().filter(|record| keep(record)).map(aged).collect();
        message.authorities = answer.authority.iter().map(aged).collect();
        let whole = message.answers.len() == answer.records.len();
        let wants_authentic = self.authentic_data || self.dnssec_ok();
        message.metadata.authentic_data = answer.authentic && whole && wants_authentic;
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= self.limit(transport) {
            return Some(bytes);
        }
        let mut cut = self.response(answer.code);
        cut.metadata.truncation = true;
        cut.to_vec().ok()
    }

    fn limit(&self, transport: Transport) -> usize {
        match transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => {
                let asked = self.edns.map_or(UDP_PAYLOAD_PLAIN, |edns| edns.payload);
                usize::from(asked.clamp(UDP_PAYLOAD_PLAIN, UDP_PAYLOAD))
            }
        }
    }

    fn response(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.response_code = code;
        message.queries.push(self.question.clone());
        if let Some(edns) = self.edns {
            message.set_edns(own_edns(edns.dnssec_ok));
        }
        message
    }
}

/// Extended errors (RFC 8914 5.2) of answers that rules deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extended {
    /// The name is not allowed.
    Blocked = 15,
    /// The name is, what was found there is not.
    Filtered = 17,
}

/// Adds an extended error to a message that has an OPT; one without is left alone (RFC 6891 6.1.1).
fn extend(message: &mut Message, extended: Extended, text: &str) {
    if let Some(edns) = &mut message.edns {
        let mut data = (extended as u16).to_be_bytes().to_vec();
        data.extend_from_slice(text.as_bytes());
        edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, data));
    }
}

/// The OPT of every message that we send: our size, and no options but an extended error.
pub(super) fn own_edns(dnssec_ok: bool) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD).set_dnssec_ok(dnssec_ok);
    edns
}

/// The SOA of an answer that is ours. Its owner is the name asked for: nothing is said about any other name.
fn own_soa(owner: Name) -> Record {
    const REFRESH: i32 = 3600;
    const RETRY: i32 = 600;
    const EXPIRE: i32 = 86_400;
    let mname = own_name([b"outcall".as_slice(), b"invalid"]);
    let rname = own_name([b"nobody".as_slice(), b"invalid"]);
    Record::from_rdata(owner, OWN_TTL, RData::SOA(SOA::new(mname, rname, 1, REFRESH, RETRY, EXPIRE, OWN_TTL)))
}

fn own_name(labels: [&[u8]; 2]) -> Name {
    let name: Result<Name, ProtoError> = Name::from_labels(labels);
    // Two short literal labels always make a name; the root stands for one that does not.
    name.unwrap_or_else(|_| Name::root())
}
