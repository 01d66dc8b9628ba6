//! Netlink attributes: built up, taken apart.
//!
//! nf_tables has its numbers in network byte order, and marks nested attributes.

use netlink_packet_core::{NLA_ALIGNTO, NLA_F_NESTED, NLA_HEADER_SIZE, NLA_TYPE_MASK};

/// A list of attributes under construction. A value longer than an attribute can be (64 KiB) is
/// left out: nothing here comes near, see [`message`](super::message).
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// None yet.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// The bytes of all of them.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Adds one.
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let Ok(length) = u16::try_from(NLA_HEADER_SIZE + value.len()) else {
            debug_assert!(false, "an attribute of {} bytes", value.len());
            return self;
        };
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(NLA_ALIGNTO), 0);
        self
    }

    /// Adds a text, closed by a zero.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Adds a number in network byte order.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds attributes within one.
    pub(super) fn nested(self, kind: u16, value: &Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &value.0)
    }
}

/// The attributes in `bytes`, up to the first that is malformed.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (length, tail) = rest.split_first_chunk()?;
        let (kind, _) = tail.split_first_chunk()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = rest.get(NLA_HEADER_SIZE..length)?;
        rest = rest
            .get(length.next_multiple_of(NLA_ALIGNTO)..)
            .unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & NLA_TYPE_MASK, value))
    })
}

/// The value of the first attribute of this kind.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(of, _)| *of == kind)
        .map(|(_, value)| value)
}

/// The number in the first attribute of this kind.
pub(super) fn find_number(bytes: &[u8], kind: u16) -> Option<u32> {
    find(bytes, kind)?.try_into().ok().map(u32::from_be_bytes)
}

/// The text in the first attribute of this kind, without what closes it.
pub(super) fn find_text(bytes: &[u8], kind: u16) -> Option<String> {
    let bytes = find(bytes, kind)?;
    let end = bytes.iter().position(|byte| *byte == 0);
    let text = bytes.get(..end.unwrap_or(bytes.len()))?;
    String::from_utf8(text.to_vec()).ok()
}
