//! What an upstream's message is reduced to before anybody sees it: the chain from the question to the records asked
//! for, or a denial. Everything else that a server may put in a message is dropped here.
//!
//! Owns: reading upstream messages, TTL limits. Does not own: whether the message may be believed (`upstream`), the
//! private-address rule (judged for each asker, in `core`).

use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

/// A longer chain of aliases is a loop or an attack, in CNAMEs. Public names have three or four.
const CHAIN_MAX: usize = 12;
/// More records than this answer no honest question (the largest public address sets have some dozens), in records.
const RECORDS_MAX: usize = 256;
/// No answer is believed for longer, in seconds: a day (RFC 8767 recommends a cap).
const TTL_MAX: u32 = 86_400;
/// No denial is believed for longer, in seconds (RFC 2308 5 allows up to three hours; new names should appear soon).
const NEGATIVE_TTL_MAX: u32 = 900;

const RRSIG: RecordType = RecordType::RRSIG;

/// A checked answer; names in lower case, TTLs as of its arrival.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// `NoError` or `NXDomain`.
    pub(super) code: ResponseCode,
    /// The alias chain, then the records asked for; with their signatures when DNSSEC was asked for.
    pub(super) records: Vec<Record>,
    /// For a denial the SOA; the proof of either when DNSSEC was asked for.
    pub(super) authority: Vec<Record>,
    /// Upstream says that it validated the answer.
    pub(super) authentic: bool,
    /// How long it may be kept, in seconds; 0: not at all.
    pub(super) ttl: u32,
}

/// Why an upstream's message gives no answer: the next upstream is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadAnswer {
    /// A response code that says nothing about the name.
    Code(ResponseCode),
    /// An alias chain that loops or does not end.
    Chain,
    /// More records than any honest answer has.
    TooMany,
}

impl Answer {
    /// Reduces `message`, which answers `name` and `record_type`.
    pub(super) fn read(
        message: Message,
        name: &Name,
        record_type: RecordType,
        dnssec: bool,
    ) -> Result<Self, BadAnswer> {
        let code = message.metadata.response_code;
        if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return Err(BadAnswer::Code(code));
        }
        let answers: Vec<Record> =
            message.answers.into_iter().filter(|record| record.dns_class == DNSClass::IN).collect();
        let mut chain = Chain { records: Vec::new(), end: name.clone(), links: 0 };
        chain.follow(&answers, record_type, dnssec)?;
        let found = chain.take(&answers, record_type, dnssec);
        let Chain { mut records, end, .. } = chain;
        if records.len() > RECORDS_MAX {
            return Err(BadAnswer::TooMany);
        }
        let mut ttl = TTL_MAX;
        for record in &mut records {
            record.ttl = sane_ttl(record.ttl);
            ttl = ttl.min(record.ttl);
            plain_case(record);
        }
        let mut authority = proof(message.authorities, &end, dnssec)?;
        if found {
            // What remains proves that a wildcard was rightly expanded (RFC 4035 3.1.3.3); it has no SOA.
            authority
                .retain(|record| record.record_type() != RecordType::SOA && covered(record) != Some(RecordType::SOA));
        } else {
            let soa = authority.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            });
            // Without an SOA a denial is not kept (RFC 2308 5).
            ttl = ttl.min(soa.unwrap_or(0)).min(NEGATIVE_TTL_MAX);
        }
        let code = if found { ResponseCode::NoError } else { code };
        Ok(Answer { code, records, authority, authentic: message.metadata.authentic_data, ttl })
    }

    /// The addresses that it holds.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.records.iter().filter_map(address)
    }

    /// The IPv4 addresses that it holds.
    pub(super) fn addresses_v4(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.addresses().filter_map(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
    }

    /// A rough measure of the memory it takes, in bytes.
    pub(super) fn weight(&self) -> usize {
        let records = self.records.iter().chain(&self.authority);
        records.map(|record| size_of::<Record>() + record.name.len() + data_weight(&record.data)).sum()
    }
}

/// The address of an A or AAAA record.
pub(super) fn address(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    }
}

/// The type whose records an RRSIG covers: the first two bytes of its data (RFC 4034 3.1).
pub(super) fn covered(record: &Record) -> Option<RecordType> {
    match &record.data {
        RData::Unknown { code, rdata } if *code == RRSIG => {
            rdata.anything.first_chunk::<2>().map(|bytes| RecordType::from(u16::from_be_bytes(*bytes)))
        }
        _ => None,
    }
}

struct Chain {
    records: Vec<Record>,
    end: Name,
    links: usize,
}

impl Chain {
    fn follow(&mut self, answers: &[Record], record_type: RecordType, dnssec: bool) -> Result<(), BadAnswer> {
        if record_type == RecordType::CNAME {
            return Ok(());
        }
        loop {
            let alias = answers.iter().find_map(|record| match &record.data {
                RData::CNAME(target) if record.name == self.end => Some((record, &target.0)),
                _ => None,
            });
            let Some((record, target)) = alias else { return Ok(()) };
            self.links += 1;
            if self.links > CHAIN_MAX {
                return Err(BadAnswer::Chain);
            }
            if dnssec {
                // A DNAME above the alias is what a validator needs to believe the alias (RFC 6672 5.3.1).
                let above = |r: &&Record| r.record_type() == RecordType::DNAME && r.name.zone_of(&self.end);
                self.records.extend(answers.iter().filter(above).cloned());
            }
            self.records.push(record.clone());
            if dnssec {
                self.signatures(answers, RecordType::CNAME);
            }
            self.end = target.clone();
        }
    }

    /// Takes the records asked for; false when there are none.
    fn take(&mut self, answers: &[Record], record_type: RecordType, dnssec: bool) -> bool {
        let before = self.records.len();
        let asked = |r: &&Record| r.record_type() == record_type && r.name == self.end;
        self.records.extend(answers.iter().filter(asked).cloned());
        let found = self.records.len() > before;
        if found && dnssec {
            self.signatures(answers, record_type);
        }
        found
    }

    fn signatures(&mut self, answers: &[Record], of: RecordType) {
        let signed = |r: &&Record| r.name == self.end && covered(r) == Some(of);
        self.records.extend(answers.iter().filter(signed).cloned());
    }
}

/// What the authority section says about `end`: its zone's SOA, and with DNSSEC what exists around it.
fn proof(authorities: Vec<Record>, end: &Name, dnssec: bool) -> Result<Vec<Record>, BadAnswer> {
    let mut kept = Vec::new();
    for mut record in authorities {
        let of_use = match record.record_type() {
            RecordType::SOA => record.name.zone_of(end),
            RecordType::NSEC | RecordType::NSEC3 => dnssec,
            RecordType::RRSIG => {
                dnssec && matches!(covered(&record), Some(RecordType::SOA | RecordType::NSEC | RecordType::NSEC3))
            }
            _ => false,
        };
        if of_use && record.dns_class == DNSClass::IN {
            record.ttl = sane_ttl(record.ttl);
            plain_case(&mut record);
            kept.push(record);
        }
    }
    if kept.len() > RECORDS_MAX { Err(BadAnswer::TooMany) } else { Ok(kept) }
}

/// Takes out the random case of our question, which upstream compresses names against: into every name that DNSSEC
/// compares in lower case anyway (RFC 4034 6.2).
fn plain_case(record: &mut Record) {
    record.name = record.name.to_lowercase();
    match &mut record.data {
        RData::CNAME(target) => target.0 = target.0.to_lowercase(),
        RData::NS(target) => target.0 = target.0.to_lowercase(),
        RData::PTR(target) => target.0 = target.0.to_lowercase(),
        RData::MX(mx) => mx.exchange = mx.exchange.to_lowercase(),
        RData::SRV(srv) => srv.target = srv.target.to_lowercase(),
        RData::SOA(soa) => {
            soa.mname = soa.mname.to_lowercase();
            soa.rname = soa.rname.to_lowercase();
        }
        _ => {}
    }
}

/// A TTL with its top bit set counts as 0 (RFC 2181 8).
fn sane_ttl(ttl: u32) -> u32 {
    if ttl > i32::MAX.unsigned_abs() { 0 } else { ttl.min(TTL_MAX) }
}

fn data_weight(data: &RData) -> usize {
    match data {
        RData::A(_) | RData::AAAA(_) => 0,
        RData::TXT(txt) => txt.txt_data.iter().map(|part| part.len()).sum(),
        RData::Unknown { rdata, .. } => rdata.anything.len(),
        RData::NULL(null) => null.anything.len(),
        // Names of at most 255 bytes and some numbers.
        _ => 256,
    }
}
