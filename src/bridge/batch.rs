//! From the plan to nf_tables messages, by libnftnl.
//!
//! Owns: every call of libnftnl, and so all `unsafe` of this interface. The invariant: each object is allocated,
//! filled and freed within one function of this file or owned by a wrapper that frees it once; libnftnl copies what
//! it is given; and a message is written only into the buffer that [`nftnl::Batch`] hands out, which has room for
//! the longest message there is. Does not own: sending.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::NonNull;

use nftnl::{Batch, MsgType, NlMsg, ProtoFamily};
use nftnl_sys as sys;

use super::expression::{Expression, Value};
use super::tables::{Base, Chain, Element, Family, KeyPart, Set, TABLE, Table};
use super::wire;

/// Elements a message: 300 of the longest stay below the 64 KiB of the list's length field.
const ELEMENTS_PER_MESSAGE: usize = 300;

/// Messages to be applied as one transaction.
pub(super) struct Transaction {
    batch: Batch,
    next_set_id: u32,
}

/// A finished transaction: its bytes, and the sequence number of the message that is acknowledged.
pub(super) struct Finished {
    pub bytes: Vec<u8>,
    pub last: u32,
}

impl Transaction {
    /// An empty transaction.
    pub fn new() -> Self {
        Transaction { batch: Batch::new(), next_set_id: 1 }
    }

    /// Replaces `table`, whether it exists or not: never a moment without it.
    pub fn replace(&mut self, table: &Table) {
        self.remove(table.family);
        let owned = nft_table(table.family);
        self.batch.add(&owned, MsgType::Add);
        for set in &table.sets {
            self.add_set(table.family, set);
        }
        // All chains before the first rule: rules name chains.
        for chain in &table.chains {
            self.batch.add(&nft_chain(&owned, chain), MsgType::Add);
        }
        for chain in &table.chains {
            self.add_rules(&owned, chain);
        }
        for set in &table.sets {
            self.add_elements(table.family, set.name, &set.elements);
        }
    }

    /// Removes the table of `family`, whether it exists or not.
    pub fn remove(&mut self, family: Family) {
        let table = nft_table(family);
        // Adding what exists is no error; deleting what does not exist is one.
        self.batch.add(&table, MsgType::Add);
        self.batch.add(&table, MsgType::Del);
    }

    /// Adds a chain with its rules to a table that exists.
    pub fn add_chain(&mut self, family: Family, chain: &Chain) {
        let table = nft_table(family);
        self.batch.add(&nft_chain(&table, chain), MsgType::Add);
        self.add_rules(&table, chain);
    }

    /// Deletes a chain and its rules.
    pub fn delete_chain(&mut self, family: Family, name: &CStr) {
        let table = nft_table(family);
        self.batch.add(&nftnl::Chain::new(name, &table), MsgType::Del);
    }

    /// Adds elements; one that exists is kept. Whether it takes the timeout is the kernel's word: see `firewall.rs`.
    pub fn add_elements(&mut self, family: Family, set: &CStr, elements: &[Element]) {
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.batch.add(&Elements { family, set: nft_elements(family, set, chunk) }, MsgType::Add);
        }
    }

    /// Deletes elements, all of which must exist.
    pub fn delete_elements(&mut self, family: Family, set: &CStr, elements: &[Element]) {
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.batch.add(&Elements { family, set: nft_elements(family, set, chunk) }, MsgType::Del);
        }
    }

    /// The bytes to send at once.
    pub fn finish(self) -> Finished {
        let finished = self.batch.finalize();
        let mut bytes: Vec<u8> = finished.iter().flatten().copied().collect();
        // An acknowledgement for each message would overflow the receive buffer; one for the last says it all.
        let (mut last_index, mut last) = (0, 0);
        let seqs: Vec<(u32, u16)> = wire::messages(&bytes).map(|message| (message.seq, message.flags)).collect();
        for (index, (seq, flags)) in seqs.into_iter().enumerate() {
            if flags & wire::F_ACK != 0 {
                (last_index, last) = (index, seq);
            }
        }
        wire::edit_flags(&mut bytes, |index, _, flags| if index == last_index { flags } else { flags & !wire::F_ACK });
        Finished { bytes, last }
    }

    fn add_set(&mut self, family: Family, set: &Set) {
        let id = self.next_set_id;
        self.next_set_id += 1;
        self.batch.add(&SetMessage { family, set: nft_set(family, set, id) }, MsgType::Add);
    }

    fn add_rules(&mut self, table: &nftnl::Table, chain: &Chain) {
        let parent = nftnl::Chain::new(&chain.name, table);
        for rule in &chain.rules {
            let mut message = nftnl::Rule::new(&parent);
            for expression in &rule.expressions {
                message.add_expr(expression);
            }
            // Comments are short literals; a rule without one would do its work too.
            let _ = message.set_comment(rule.comment);
            self.batch.add(&message, MsgType::Add);
        }
    }
}

fn family(family: Family) -> ProtoFamily {
    match family {
        Family::Inet => ProtoFamily::Inet,
        Family::Arp => ProtoFamily::Arp,
        Family::NetDev => ProtoFamily::NetDev,
        Family::Bridge => ProtoFamily::Bridge,
    }
}

fn nft_table(of: Family) -> nftnl::Table {
    nftnl::Table::new(TABLE, family(of))
}

fn nft_chain<'a>(table: &'a nftnl::Table, chain: &Chain) -> nftnl::Chain<'a> {
    let mut message = nftnl::Chain::new(&chain.name, table);
    if let Some(Base { nat, hook, priority, drop, device }) = &chain.base {
        message.set_type(if *nat { nftnl::ChainType::Nat } else { nftnl::ChainType::Filter });
        message.set_hook(*hook, *priority);
        message.set_policy(if *drop { nftnl::Policy::Drop } else { nftnl::Policy::Accept });
        if let Some(device) = device {
            message.set_device(device);
        }
    }
    message
}

impl nftnl::expr::Expression for Expression {
    fn to_expr(&self, _rule: &nftnl::Rule<'_>) -> NonNull<sys::nftnl_expr> {
        nft_expression(self)
    }
}

/// Out of memory for a few bytes: nothing sensible can follow, and half a firewall must not.
fn allocated<T>(object: *mut T) -> NonNull<T> {
    NonNull::new(object).unwrap_or_else(|| std::process::abort())
}

fn nft_expression(expression: &Expression) -> NonNull<sys::nftnl_expr> {
    // SAFETY: the names of `expression.rs` are NUL-terminated; a kind that libnftnl does not know gives null.
    let object = allocated(unsafe { sys::nftnl_expr_alloc(expression.kind.as_ptr()) });
    let raw = object.as_ptr();
    for (name, value) in &expression.attributes {
        // SAFETY: `raw` lives; libnftnl copies the value, whose type is the one this attribute has.
        unsafe {
            match value {
                Value::U16(value) => sys::nftnl_expr_set_u16(raw, *name, *value),
                Value::U32(value) => sys::nftnl_expr_set_u32(raw, *name, *value),
                Value::U64(value) => sys::nftnl_expr_set_u64(raw, *name, *value),
                Value::Bytes(bytes) => {
                    sys::nftnl_expr_set(raw, *name, bytes.as_ptr().cast::<c_void>(), length(bytes));
                }
                Value::Text(text) => {
                    sys::nftnl_expr_set_str(raw, *name, text.as_ptr());
                }
            }
        }
    }
    object
}

/// A set of libnftnl, freed once.
struct NftSet(NonNull<sys::nftnl_set>);

impl Drop for NftSet {
    fn drop(&mut self) {
        // SAFETY: allocated by `NftSet::named`, freed only here, with the elements and expressions added to it.
        unsafe { sys::nftnl_set_free(self.0.as_ptr()) };
    }
}

impl NftSet {
    fn named(of: Family, name: &CStr) -> Self {
        // SAFETY: a plain allocation; the strings are NUL-terminated and copied.
        unsafe {
            let set = allocated(sys::nftnl_set_alloc());
            sys::nftnl_set_set_u32(set.as_ptr(), sys::NFTNL_SET_FAMILY as u16, of as u32);
            sys::nftnl_set_set_str(set.as_ptr(), sys::NFTNL_SET_TABLE as u16, TABLE.as_ptr());
            sys::nftnl_set_set_str(set.as_ptr(), sys::NFTNL_SET_NAME as u16, name.as_ptr());
            NftSet(set)
        }
    }

    fn number(&self, attribute: u32, value: u32) {
        // SAFETY: the set lives; the attribute is a number.
        unsafe { sys::nftnl_set_set_u32(self.0.as_ptr(), attribute as u16, value) };
    }

    fn bytes(&self, attribute: u32, value: &[u8]) {
        // SAFETY: the set lives; libnftnl copies the bytes.
        unsafe {
            sys::nftnl_set_set_data(self.0.as_ptr(), attribute as u16, value.as_ptr().cast::<c_void>(), length(value));
        }
    }
}

fn nft_set(of: Family, set: &Set, id: u32) -> NftSet {
    /// `TYPE_BITS` of nftables: the width of one part in a concatenated type.
    const TYPE_BITS: u32 = 6;
    /// The byte order in which `nft` reads a key, by the userdata type `NFTNL_UDATA_SET_KEYBYTEORDER`.
    const HOST_ENDIAN: u32 = 1;
    const BIG_ENDIAN: u32 = 2;
    let object = NftSet::named(of, set.name);
    object.number(sys::NFTNL_SET_ID, id);
    object.number(sys::NFTNL_SET_FLAGS, set.flags);
    let key_type = set.key.iter().fold(0, |number, part| number << TYPE_BITS | part.datatype());
    object.number(sys::NFTNL_SET_KEY_TYPE, key_type);
    object.number(sys::NFTNL_SET_KEY_LEN, set.key.iter().map(|part| part.width()).sum());
    if set.key.len() > 1 {
        let lengths: Vec<u8> = set.key.iter().map(|part| part.bytes()).collect();
        object.bytes(sys::NFTNL_SET_DESC_CONCAT, &lengths);
    }
    let order = if set.key == [KeyPart::Interface] { HOST_ENDIAN } else { BIG_ENDIAN };
    let mut userdata = vec![sys::NFTNL_UDATA_SET_KEYBYTEORDER as u8, 4];
    userdata.extend(order.to_ne_bytes());
    object.bytes(sys::NFTNL_SET_USERDATA, &userdata);
    if set.counted {
        let counter = nft_expression(&Expression { kind: c"counter", attributes: Vec::new() });
        // SAFETY: both live; the set owns the expression from here on.
        unsafe { sys::nftnl_set_add_expr(object.0.as_ptr(), counter.as_ptr()) };
    }
    object
}

fn nft_elements(of: Family, name: &CStr, elements: &[Element]) -> NftSet {
    /// `NFT_SET_ELEM_INTERVAL_END`
    const INTERVAL_END: u32 = 1;
    let set = NftSet::named(of, name);
    for element in elements {
        // SAFETY: the element is allocated here, filled with copies, and owned by the set from `add` on.
        unsafe {
            let object = allocated(sys::nftnl_set_elem_alloc()).as_ptr();
            let key = element.key.as_ptr().cast::<c_void>();
            sys::nftnl_set_elem_set(object, sys::NFTNL_SET_ELEM_KEY as u16, key, length(&element.key));
            if element.interval_end {
                sys::nftnl_set_elem_set_u32(object, sys::NFTNL_SET_ELEM_FLAGS as u16, INTERVAL_END);
            }
            if let Some(timeout) = element.timeout {
                sys::nftnl_set_elem_set_u64(object, sys::NFTNL_SET_ELEM_TIMEOUT as u16, timeout);
            }
            sys::nftnl_set_elem_add(set.0.as_ptr(), object);
        }
    }
    set
}

fn length(bytes: &[u8]) -> u32 {
    // Keys, names and marks: a few bytes.
    bytes.len() as u32
}

struct SetMessage {
    family: Family,
    set: NftSet,
}

// SAFETY: a set without elements is some hundred bytes.
unsafe impl NlMsg for SetMessage {
    unsafe fn write(&self, buffer: *mut c_void, seq: u32, kind: MsgType) {
        let (kind, flags) = match kind {
            MsgType::Add => (libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE | libc::NLM_F_ACK),
            MsgType::Del => (libc::NFT_MSG_DELSET, libc::NLM_F_ACK),
        };
        // SAFETY: the caller's buffer holds any message; the set lives.
        unsafe {
            let header =
                sys::nftnl_nlmsg_build_hdr(buffer.cast::<c_char>(), kind as u16, self.family as u16, flags as u16, seq);
            sys::nftnl_set_nlmsg_build_payload(header, self.set.0.as_ptr());
        }
    }
}

struct Elements {
    family: Family,
    set: NftSet,
}

// SAFETY: at most `ELEMENTS_PER_MESSAGE` elements of some hundred bytes each.
unsafe impl NlMsg for Elements {
    unsafe fn write(&self, buffer: *mut c_void, seq: u32, kind: MsgType) {
        let (kind, flags) = match kind {
            MsgType::Add => (libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE | libc::NLM_F_ACK),
            MsgType::Del => (libc::NFT_MSG_DELSETELEM, libc::NLM_F_ACK),
        };
        // SAFETY: the caller's buffer holds any message; the set and its elements live.
        unsafe {
            let header =
                sys::nftnl_nlmsg_build_hdr(buffer.cast::<c_char>(), kind as u16, self.family as u16, flags as u16, seq);
            sys::nftnl_set_elems_nlmsg_build_payload(header, self.set.0.as_ptr());
        }
    }
}
