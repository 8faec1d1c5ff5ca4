//! nf_tables expressions as values: what a rule is made of (`linux/netfilter/nf_tables.h`).
//!
//! Owns: the vocabulary of matches and statements that the plan uses, and their attributes. Does not own: their
//! order in rules (`plan.rs`), or how they become messages (`batch.rs`).

use std::ffi::{CStr, CString};
use std::net::Ipv4Addr;

use nftnl_sys as sys;

/// Where an expression of the plan puts its value: the first register.
const REG_1: u32 = 1;
/// The register behind it, when that holds 16 bytes.
const REG_2: u32 = 2;
/// The 32-bit registers behind `REG_1`, for concatenations: `NFT_REG32_01` and on (`NFT_REG32_00` is `REG_1`).
const REG32_01: u32 = 9;
/// `NFT_REG_VERDICT`
const REG_VERDICT: u32 = 0;

/// The value of an expression's attribute, by the type libnftnl expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    U16(u16),
    U32(u32),
    U64(u64),
    Bytes(Vec<u8>),
    Text(CString),
}

/// One expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expression {
    pub kind: &'static CStr,
    pub attributes: Vec<(u16, Value)>,
}

/// Expressions in order: a match, or a whole rule.
pub(super) type Expressions = Vec<Expression>;

fn expression(kind: &'static CStr, attributes: &[(u32, Value)]) -> Expression {
    // libnftnl's attribute numbers are below 20.
    Expression { kind, attributes: attributes.iter().map(|(name, value)| (*name as u16, value.clone())).collect() }
}

/// A name as the kernel compares it: NUL-padded to `IFNAMSIZ`.
pub(super) fn ifname(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    let length = name.len().min(15);
    padded[..length].copy_from_slice(&name.as_bytes()[..length]);
    padded
}

/// `NFT_META_*`
#[derive(Clone, Copy, Debug)]
pub(super) enum Meta {
    Protocol = 1,
    Mark = 3,
    IifName = 6,
    OifName = 7,
    NfProto = 15,
    L4Proto = 16,
}

/// `NFT_CT_*`
#[derive(Clone, Copy, Debug)]
pub(super) enum Ct {
    State = 0,
    Direction = 1,
    Mark = 3,
}

/// `NF_CT_STATE_BIT` of `ct state`.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    Invalid = 1,
    Established = 2,
    Related = 4,
}

/// `NFT_PAYLOAD_*_HEADER`
#[derive(Clone, Copy, Debug)]
pub(super) enum Header {
    Link = 0,
    Network = 1,
    Transport = 2,
}

fn load_meta(key: Meta, register: u32) -> Expression {
    expression(
        c"meta",
        &[(sys::NFTNL_EXPR_META_KEY, Value::U32(key as u32)), (sys::NFTNL_EXPR_META_DREG, Value::U32(register))],
    )
}

fn load_ct(key: Ct) -> Expression {
    expression(c"ct", &[(sys::NFTNL_EXPR_CT_KEY, Value::U32(key as u32)), (sys::NFTNL_EXPR_CT_DREG, Value::U32(REG_1))])
}

fn load_payload(header: Header, offset: u32, length: u32, register: u32) -> Expression {
    expression(
        c"payload",
        &[
            (sys::NFTNL_EXPR_PAYLOAD_DREG, Value::U32(register)),
            (sys::NFTNL_EXPR_PAYLOAD_BASE, Value::U32(header as u32)),
            (sys::NFTNL_EXPR_PAYLOAD_OFFSET, Value::U32(offset)),
            (sys::NFTNL_EXPR_PAYLOAD_LEN, Value::U32(length)),
        ],
    )
}

fn compare(operation: u32, value: &[u8]) -> Expression {
    expression(
        c"cmp",
        &[
            (sys::NFTNL_EXPR_CMP_SREG, Value::U32(REG_1)),
            (sys::NFTNL_EXPR_CMP_OP, Value::U32(operation)),
            (sys::NFTNL_EXPR_CMP_DATA, Value::Bytes(value.to_vec())),
        ],
    )
}

/// `NFT_CMP_EQ`
const EQUAL: u32 = 0;
/// `NFT_CMP_NEQ`
const UNEQUAL: u32 = 1;

fn lookup(set: &CStr, register: u32) -> Expression {
    expression(
        c"lookup",
        &[
            (sys::NFTNL_EXPR_LOOKUP_SREG, Value::U32(register)),
            (sys::NFTNL_EXPR_LOOKUP_SET, Value::Text(set.to_owned())),
        ],
    )
}

/// `KEY == value`, in the value's own byte order.
pub(super) fn meta(key: Meta, value: &[u8]) -> Expressions {
    vec![load_meta(key, REG_1), compare(EQUAL, value)]
}

/// The interface is exactly `name`.
pub(super) fn interface(key: Meta, name: &str) -> Expressions {
    meta(key, &ifname(name))
}

/// The interface's name begins with `prefix`: a comparison shorter than the name.
pub(super) fn interface_prefix(key: Meta, prefix: &str) -> Expressions {
    meta(key, prefix.as_bytes())
}

/// The interface is in `set`.
pub(super) fn interface_in(key: Meta, set: &CStr) -> Expressions {
    vec![load_meta(key, REG_1), lookup(set, REG_1)]
}

/// IPv4 in the `inet` family; what makes `nft` list network header matches by name.
pub(super) fn ipv4() -> Expressions {
    meta(Meta::NfProto, &[2])
}

/// The transport protocol.
pub(super) fn l4proto(protocol: u8) -> Expressions {
    meta(Meta::L4Proto, &[protocol])
}

/// The transport destination port of `protocol`.
pub(super) fn dport(protocol: u8, port: u16) -> Expressions {
    let mut rule = l4proto(protocol);
    rule.extend(payload(Header::Transport, 2, &port.to_be_bytes()));
    rule
}

/// Bytes of a header equal `value`.
pub(super) fn payload(header: Header, offset: u32, value: &[u8]) -> Expressions {
    // Values are header fields: a few bytes.
    vec![load_payload(header, offset, value.len() as u32, REG_1), compare(EQUAL, value)]
}

/// Bytes of a header differ from `value`.
pub(super) fn payload_other(header: Header, offset: u32, value: &[u8]) -> Expressions {
    vec![load_payload(header, offset, value.len() as u32, REG_1), compare(UNEQUAL, value)]
}

/// Four bytes of a header are in `set`.
pub(super) fn address_in(header: Header, offset: u32, set: &CStr) -> Expressions {
    vec![load_payload(header, offset, 4, REG_1), lookup(set, REG_1)]
}

/// Incoming interface and IPv4 destination are a pair in `set`.
pub(super) fn gateway_in(set: &CStr) -> Expressions {
    // A name fills the first 128-bit register; the address follows in the second.
    vec![load_meta(Meta::IifName, REG_1), load_payload(Header::Network, 16, 4, REG_2), lookup(set, REG_1)]
}

/// Source, destination, protocol and destination port are in `set`.
pub(super) fn flow_in(set: &CStr) -> Expressions {
    vec![
        load_payload(Header::Network, 12, 4, REG_1),
        load_payload(Header::Network, 16, 4, REG32_01),
        load_meta(Meta::L4Proto, REG32_01 + 1),
        load_payload(Header::Transport, 2, 2, REG32_01 + 2),
        lookup(set, REG_1),
    ]
}

/// `ct state STATE`
pub(super) fn ct_state(state: State) -> Expressions {
    let mask = (state as u32).to_ne_bytes().to_vec();
    vec![
        load_ct(Ct::State),
        expression(
            c"bitwise",
            &[
                (sys::NFTNL_EXPR_BITWISE_SREG, Value::U32(REG_1)),
                (sys::NFTNL_EXPR_BITWISE_DREG, Value::U32(REG_1)),
                (sys::NFTNL_EXPR_BITWISE_LEN, Value::U32(4)),
                (sys::NFTNL_EXPR_BITWISE_MASK, Value::Bytes(mask)),
                (sys::NFTNL_EXPR_BITWISE_XOR, Value::Bytes(vec![0; 4])),
            ],
        ),
        compare(UNEQUAL, &[0; 4]),
    ]
}

/// `ct mark MARK`
pub(super) fn ct_mark(mark: u32) -> Expressions {
    vec![load_ct(Ct::Mark), compare(EQUAL, &mark.to_ne_bytes())]
}

/// `ct direction original|reply`
pub(super) fn ct_direction(reply: bool) -> Expressions {
    vec![load_ct(Ct::Direction), compare(EQUAL, &[u8::from(reply)])]
}

fn load_number(value: &[u8]) -> Expression {
    expression(
        c"immediate",
        &[(sys::NFTNL_EXPR_IMM_DREG, Value::U32(REG_1)), (sys::NFTNL_EXPR_IMM_DATA, Value::Bytes(value.to_vec()))],
    )
}

/// `ct mark set MARK`
pub(super) fn set_ct_mark(mark: u32) -> Expressions {
    vec![
        load_number(&mark.to_ne_bytes()),
        expression(
            c"ct",
            &[(sys::NFTNL_EXPR_CT_KEY, Value::U32(Ct::Mark as u32)), (sys::NFTNL_EXPR_CT_SREG, Value::U32(REG_1))],
        ),
    ]
}

/// `meta mark set MARK`
pub(super) fn set_mark(mark: u32) -> Expressions {
    vec![
        load_number(&mark.to_ne_bytes()),
        expression(
            c"meta",
            &[
                (sys::NFTNL_EXPR_META_KEY, Value::U32(Meta::Mark as u32)),
                (sys::NFTNL_EXPR_META_SREG, Value::U32(REG_1)),
            ],
        ),
    ]
}

/// `redirect to :PORT`
pub(super) fn redirect(port: u16) -> Expressions {
    /// `NF_NAT_RANGE_PROTO_SPECIFIED`, which the kernel adds and reports.
    const PROTO_SPECIFIED: u32 = 2;
    vec![
        load_number(&port.to_be_bytes()),
        expression(
            c"redir",
            &[
                (sys::NFTNL_EXPR_REDIR_REG_PROTO_MIN, Value::U32(REG_1)),
                (sys::NFTNL_EXPR_REDIR_REG_PROTO_MAX, Value::U32(REG_1)),
                (sys::NFTNL_EXPR_REDIR_FLAGS, Value::U32(PROTO_SPECIFIED)),
            ],
        ),
    ]
}

/// `masquerade`
pub(super) fn masquerade() -> Expressions {
    vec![expression(c"masq", &[])]
}

/// `counter`
pub(super) fn counter() -> Expressions {
    vec![expression(c"counter", &[])]
}

/// `limit rate RATE/second burst BURST packets`
pub(super) fn limit(rate: u64, burst: u32) -> Expressions {
    vec![expression(
        c"limit",
        &[
            (sys::NFTNL_EXPR_LIMIT_RATE, Value::U64(rate)),
            (sys::NFTNL_EXPR_LIMIT_UNIT, Value::U64(1)),
            (sys::NFTNL_EXPR_LIMIT_BURST, Value::U32(burst)),
            (sys::NFTNL_EXPR_LIMIT_TYPE, Value::U32(0)),
            (sys::NFTNL_EXPR_LIMIT_FLAGS, Value::U32(0)),
        ],
    )]
}

/// `log prefix PREFIX group GROUP snaplen SNAPLEN`
pub(super) fn log(group: u16, snaplen: u32, prefix: &CStr) -> Expressions {
    vec![expression(
        c"log",
        &[
            (sys::NFTNL_EXPR_LOG_PREFIX, Value::Text(prefix.to_owned())),
            (sys::NFTNL_EXPR_LOG_GROUP, Value::U16(group)),
            (sys::NFTNL_EXPR_LOG_SNAPLEN, Value::U32(snaplen)),
        ],
    )]
}

/// `NF_ACCEPT`, `NF_DROP`, `NFT_GOTO`
#[derive(Clone, Debug)]
pub(super) enum Verdict<'a> {
    Accept,
    Drop,
    Goto(&'a CStr),
}

/// The end of a rule.
pub(super) fn verdict(verdict: &Verdict<'_>) -> Expressions {
    let code = match verdict {
        Verdict::Drop => 0,
        Verdict::Accept => 1,
        Verdict::Goto(_) => -4i32,
    };
    let mut attributes = vec![
        (sys::NFTNL_EXPR_IMM_DREG, Value::U32(REG_VERDICT)),
        (sys::NFTNL_EXPR_IMM_VERDICT, Value::U32(code.cast_unsigned())),
    ];
    if let Verdict::Goto(chain) = verdict {
        attributes.push((sys::NFTNL_EXPR_IMM_CHAIN, Value::Text((*chain).to_owned())));
    }
    vec![expression(c"immediate", &attributes)]
}

/// The IPv4 source address is `address`.
pub(super) fn saddr(address: Ipv4Addr) -> Expressions {
    payload(Header::Network, 12, &address.octets())
}
