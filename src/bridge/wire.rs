//! Netlink framing: message headers and attributes, read and written as plain bytes (`linux/netlink.h`).
//!
//! Owns: lengths, alignment, nesting. Does not own: sockets, or what any attribute means. Sans-I/O, no `unsafe`.

#[cfg(test)]
use std::net::Ipv4Addr;

/// Bytes of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;
/// Bytes of `struct nfgenmsg`, which opens every netfilter message.
pub(super) const NFGEN: usize = 4;

/// `NLMSG_ERROR`
pub(super) const ERROR: u16 = 2;
/// `NLMSG_DONE`
pub(super) const DONE: u16 = 3;
/// `NLM_F_REQUEST`
pub(super) const F_REQUEST: u16 = 1;
/// `NLM_F_ACK`
pub(super) const F_ACK: u16 = 4;
/// `NLM_F_DUMP_INTR`: what is dumped changed meanwhile.
pub(super) const F_DUMP_INTR: u16 = 0x10;
/// `NLM_F_DUMP`
pub(super) const F_DUMP: u16 = 0x300;
/// `NLA_F_NESTED`
pub(super) const NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`
const TYPE_MASK: u16 = 0x3fff;

/// One message of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    /// `nlmsg_type`
    pub kind: u16,
    /// `nlmsg_flags`
    pub flags: u16,
    /// `nlmsg_seq`
    pub seq: u32,
    /// `nlmsg_pid`: the port that caused it.
    pub port: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind `struct nfgenmsg`.
    pub fn netfilter_attributes(&self) -> Attributes<'a> {
        Attributes(self.payload.get(NFGEN..).unwrap_or_default())
    }

    /// The family in `struct nfgenmsg`.
    pub fn netfilter_family(&self) -> u8 {
        self.payload.first().copied().unwrap_or(0)
    }

    /// The `errno` of an error message (0 is an acknowledgement); `None` for any other message.
    pub fn error(&self) -> Option<i32> {
        if self.kind != ERROR {
            return None;
        }
        let code: [u8; 4] = self.payload.get(..4)?.try_into().ok()?;
        Some(i32::from_ne_bytes(code).wrapping_neg())
    }
}

/// The messages of a buffer; ends at the first one that is cut short.
pub(super) struct Messages<'a>(&'a [u8]);

/// The messages in `buffer`.
pub(super) fn messages(buffer: &[u8]) -> Messages<'_> {
    Messages(buffer)
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = u32_ne(self.0, 0)? as usize;
        let body = self.0.get(HEADER..length)?;
        let message = Message {
            kind: u16_ne(self.0, 4)?,
            flags: u16_ne(self.0, 6)?,
            seq: u32_ne(self.0, 8)?,
            port: u32_ne(self.0, 12)?,
            payload: body,
        };
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(message)
    }
}

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attribute<'a> {
    /// The type, flags removed.
    pub kind: u16,
    /// Whether the writer marked it as nested (the kernel often does not).
    pub nested: bool,
    /// The value.
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The attributes inside.
    pub fn inner(&self) -> Attributes<'a> {
        Attributes(self.value)
    }

    /// A text that may end in NUL.
    pub fn text(&self) -> &'a str {
        let end = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        std::str::from_utf8(&self.value[..end]).unwrap_or_default()
    }

    /// A big-endian number of 1 to 8 bytes.
    pub fn number(&self) -> Option<u64> {
        if self.value.is_empty() || self.value.len() > 8 {
            return None;
        }
        Some(self.value.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

/// The attributes of a message; ends at the first one that is cut short.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first attribute of type `kind`.
    pub fn find(mut self, kind: u16) -> Option<Attribute<'a>> {
        Iterator::find(&mut self, |attribute| attribute.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let length = usize::from(u16_ne(self.0, 0)?);
        let kind = u16_ne(self.0, 2)?;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(Attribute { kind: kind & TYPE_MASK, nested: kind & NESTED != 0, value })
    }
}

/// A request under construction.
pub(super) struct Request(Vec<u8>);

impl Request {
    /// A message of type `kind`; `F_REQUEST` is added to `flags`.
    pub fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | F_REQUEST).to_ne_bytes());
        Request(bytes)
    }

    /// A netfilter message of `family` for resource `id`.
    pub fn netfilter(subsystem: u8, kind: u8, flags: u16, family: u8, id: u16) -> Self {
        let [high, low] = id.to_be_bytes();
        Request::new(u16::from(subsystem) << 8 | u16::from(kind), flags).bytes(&[family, 0, high, low])
    }

    /// Appends a fixed part.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Appends an attribute.
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        // Every value written here is a name, an address or a number: far below the 64 KiB of a length field.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends a text with its NUL.
    pub fn text(self, kind: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.attribute(kind, &value)
    }

    /// Appends an IPv4 address.
    #[cfg(test)]
    pub fn address(self, kind: u16, address: Ipv4Addr) -> Self {
        self.attribute(kind, &address.octets())
    }

    /// Appends an attribute that holds what `fill` appends.
    #[cfg(test)]
    pub fn nest(mut self, kind: u16, fill: impl FnOnce(Request) -> Request) -> Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        let mut filled = fill(self);
        let length = u16::try_from(filled.0.len() - start).unwrap_or(u16::MAX);
        filled.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    /// The finished bytes, with their length and `seq` filled in.
    pub fn finish(mut self, seq: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&seq.to_ne_bytes());
        self.0
    }

    fn pad(&mut self) {
        self.0.resize(align(self.0.len()), 0);
    }
}

/// Lets `edit` change the flags of every message of `buffer`: it gets the index, the type and the flags.
pub(super) fn edit_flags(buffer: &mut [u8], mut edit: impl FnMut(usize, u16, u16) -> u16) {
    let (mut offset, mut index) = (0, 0);
    while let Some(length) = u32_ne(buffer, offset) {
        let (Some(kind), Some(flags)) = (u16_ne(buffer, offset + 4), u16_ne(buffer, offset + 6)) else { return };
        if (length as usize) < HEADER {
            return;
        }
        buffer[offset + 6..offset + 8].copy_from_slice(&edit(index, kind, flags).to_ne_bytes());
        offset += align(length as usize);
        index += 1;
    }
}

fn align(length: usize) -> usize {
    (length + 3) & !3
}

fn u16_ne(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The native-endian number at `at`.
pub(super) fn u32_ne(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let bytes = Request::netfilter(10, 3, F_ACK, 1, 7)
            .text(1, "outcall")
            .nest(2, |inner| inner.attribute(3, &[1, 2, 3]).address(4, Ipv4Addr::new(10, 0, 0, 1)))
            .finish(9);
        let message = messages(&bytes).next().unwrap();
        assert_eq!((message.kind, message.flags, message.seq), (10 << 8 | 3, F_ACK | F_REQUEST, 9));
        assert_eq!(message.netfilter_family(), 1);
        let attributes = message.netfilter_attributes();
        assert_eq!(attributes.find(1).unwrap().text(), "outcall");
        let nest = attributes.find(2).unwrap();
        assert!(nest.nested);
        assert_eq!(nest.inner().find(3).unwrap().value, [1, 2, 3]);
        assert_eq!(nest.inner().find(4).unwrap().number(), Some(0x0a00_0001));
    }

    #[test]
    fn what_is_cut_short_ends_the_reading() {
        let bytes = Request::new(20, 0).attribute(1, &[0; 8]).finish(1);
        for length in 0..bytes.len() {
            assert!(messages(&bytes[..length]).next().is_none(), "{length}");
        }
        assert!(Attributes(&[3, 0, 0, 0]).next().is_none());
        assert!(Attributes(&[200, 0, 0, 0, 1]).next().is_none());
        assert!(messages(&[0; 64]).next().is_none());
    }

    #[test]
    fn an_error_message_gives_its_errno() {
        let bytes = Request::new(ERROR, 0).bytes(&(-17i32).to_ne_bytes()).finish(1);
        assert_eq!(messages(&bytes).next().unwrap().error(), Some(17));
    }
}
