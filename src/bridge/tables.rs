//! nf_tables objects as values: tables, sets, chains, rules.
//!
//! Owns: their shape. Does not own: which ones there are (`plan.rs`), or how they become messages (`batch.rs`).

use std::ffi::{CStr, CString};

use super::expression::{self as ex, Expressions, Verdict};

/// The tables' name, in each family.
pub(super) const TABLE: &CStr = c"outcall";
/// A protocol family of nf_tables (`NFPROTO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// ARP for the host.
    Arp = 3,
    /// Per device.
    NetDev = 5,
    /// Bridged frames.
    Bridge = 7,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub family: Family,
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
}

/// A named set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub name: &'static CStr,
    /// The parts of its key, in nft's own type numbers and bytes.
    pub key: &'static [KeyPart],
    /// `NFT_SET_*`
    pub flags: u32,
    /// Whether each element counts packets.
    pub counted: bool,
    /// Elements that belong to the plan (granted flows do not).
    pub elements: Vec<Element>,
}

/// A part of a set's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyPart {
    Ipv4,
    Protocol,
    Port,
    Interface,
}

impl KeyPart {
    /// The type number that `nft` prints it by (nftables' `datatype.h`).
    pub fn datatype(self) -> u32 {
        match self {
            KeyPart::Ipv4 => 7,
            KeyPart::Protocol => 12,
            KeyPart::Port => 13,
            KeyPart::Interface => 41,
        }
    }

    /// Its width in a key: whole registers.
    pub fn width(self) -> u32 {
        if self == KeyPart::Interface { 16 } else { 4 }
    }

    /// Its own bytes.
    pub fn bytes(self) -> u8 {
        match self {
            KeyPart::Ipv4 => 4,
            KeyPart::Protocol => 1,
            KeyPart::Port => 2,
            KeyPart::Interface => 16,
        }
    }
}

/// `NFT_SET_INTERVAL`
pub(super) const SET_INTERVAL: u32 = 4;
/// `NFT_SET_TIMEOUT`
pub(super) const SET_TIMEOUT: u32 = 0x10;
/// `NFT_SET_CONCAT`
pub(super) const SET_CONCAT: u32 = 0x80;

/// An element of a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Element {
    pub key: Vec<u8>,
    /// `NFT_SET_ELEM_INTERVAL_END`: the first key behind an interval.
    pub interval_end: bool,
    /// Milliseconds.
    pub timeout: Option<u64>,
}

impl Element {
    /// An element without timeout.
    pub fn plain(key: &[u8]) -> Self {
        Element { key: key.to_vec(), interval_end: false, timeout: None }
    }
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub name: CString,
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

/// What makes a chain a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    pub nat: bool,
    pub hook: nftnl::Hook,
    pub priority: i32,
    pub drop: bool,
    pub device: Option<CString>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub comment: &'static CStr,
    pub expressions: Expressions,
}

/// A rule that ends in `verdict`.
pub(super) fn rule<const N: usize>(comment: &'static CStr, matches: [Expressions; N], verdict: &Verdict<'_>) -> Rule {
    let mut expressions = matches.concat();
    expressions.extend(ex::verdict(verdict));
    Rule { comment, expressions }
}
