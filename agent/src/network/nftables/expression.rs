//! What rules are made of: steps of a small machine with one register in use. Each step loads the
//! register, changes it, or ends the rule where it does not match; the last one acts.

use super::attribute::{Attributes, find, find_number, find_text};

/// `NFT_REG_VERDICT`: what the rule comes to.
const REGISTER_VERDICT: u32 = 0;
/// `NFT_REG_1`, 16 bytes: the one register that we use.
const REGISTER: u32 = 1;

/// `NFTA_EXPR_*`.
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
/// `NFTA_DATA_*`.
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// `NFTA_VERDICT_CODE`.
const VERDICT_CODE: u16 = 1;
/// `NFTA_META_*`.
const META_DREG: u16 = 1;
const META_KEY: u16 = 2;
/// `NFTA_PAYLOAD_*`.
const PAYLOAD_DREG: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LEN: u16 = 4;
/// `NFTA_CMP_*`.
const CMP_SREG: u16 = 1;
const CMP_OP: u16 = 2;
const CMP_DATA: u16 = 3;
/// `NFT_CMP_EQ`, `NFT_CMP_NEQ`.
const CMP_EQUAL: u32 = 0;
const CMP_DIFFERENT: u32 = 1;
/// `NFTA_BITWISE_*`.
const BITWISE_SREG: u16 = 1;
const BITWISE_DREG: u16 = 2;
const BITWISE_LEN: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
/// `NFTA_CT_*`, `NFT_CT_STATE`.
const CT_DREG: u16 = 1;
const CT_KEY: u16 = 2;
const CT_STATE: u32 = 0;
/// `NFTA_LOOKUP_*`, `NFT_LOOKUP_F_INV`.
const LOOKUP_SET: u16 = 1;
const LOOKUP_SREG: u16 = 2;
const LOOKUP_FLAGS: u16 = 5;
const LOOKUP_INVERTED: u32 = 1;
/// `NFTA_IMMEDIATE_*`.
const IMMEDIATE_DREG: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;

/// A property of a packet that is not in its bytes (`NFT_META_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(in super::super) enum MetaKey {
    /// Name of the interface it came in by: 16 bytes, the rest zero.
    InputName = 6,
    /// Name of the interface it leaves by: likewise.
    OutputName = 7,
    /// Family of its network protocol: one byte, an `NFPROTO_*`.
    NetworkProtocol = 15,
    /// Its transport protocol: one byte.
    TransportProtocol = 16,
}

impl MetaKey {
    const ALL: [Self; 4] = [
        Self::InputName,
        Self::OutputName,
        Self::NetworkProtocol,
        Self::TransportProtocol,
    ];
}

/// Where in a packet bytes are counted from (`NFT_PAYLOAD_*_HEADER`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(in super::super) enum Header {
    /// The network protocol's header.
    Network = 1,
    /// The transport protocol's header.
    Transport = 2,
}

/// Bits of connection tracking's opinion (`NF_CT_STATE_BIT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct CtState(pub(in super::super) u32);

impl CtState {
    /// Of a connection seen in both directions, or belonging to one.
    pub(in super::super) const ESTABLISHED_OR_RELATED: Self = Self(1 << 1 | 1 << 2);
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(in super::super) enum Verdict {
    /// `NF_DROP`.
    Drop = 0,
    /// `NF_ACCEPT`.
    Accept = 1,
}

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Expression {
    /// Loads a property.
    Meta(MetaKey),
    /// Loads bytes of the packet; goes no further where it has none there.
    Payload {
        /// Counted from here.
        header: Header,
        /// The first.
        offset: u32,
        /// How many, at most 16.
        length: u32,
    },
    /// Loads the state of the packet's connection: 4 bytes in the order of the machine.
    ConnectionState,
    /// Keeps the bits that are set in this mask of the register's length.
    Mask(Vec<u8>),
    /// Goes on only where the register is, or is not, this.
    Compare {
        /// Whether it has to be equal.
        equal: bool,
        /// What it is compared with.
        with: Vec<u8>,
    },
    /// Goes on only where the register is, or is not, in the set.
    Lookup {
        /// The set's name.
        set: String,
        /// Whether it has to be in it.
        contained: bool,
    },
    /// Decides.
    Verdict(Verdict),
    /// Sends on in the name of the interface it leaves by.
    Masquerade,
    /// Keeps connection tracking from looking at it.
    NoTrack,
    /// Something else: its name. Nothing of ours.
    Other(String),
}

impl Expression {
    /// The steps that go on only where the interface a packet came in or leaves by (`key`) has, or
    /// has not, this name.
    pub(in super::super) fn interface(key: MetaKey, name: &str, equal: bool) -> [Self; 2] {
        // The kernel compares all 16 bytes (IFNAMSIZ).
        let mut with = name.as_bytes().to_vec();
        with.resize(16, 0);
        [Self::Meta(key), Self::Compare { equal, with }]
    }

    /// The attributes of a list's element.
    pub(super) fn encode(&self) -> Attributes {
        let data = |bytes: &[u8]| Attributes::new().bytes(DATA_VALUE, bytes);
        let (name, content) = match self {
            Self::Meta(key) => (
                "meta",
                Attributes::new()
                    .number(META_KEY, *key as u32)
                    .number(META_DREG, REGISTER),
            ),
            Self::Payload {
                header,
                offset,
                length,
            } => (
                "payload",
                Attributes::new()
                    .number(PAYLOAD_DREG, REGISTER)
                    .number(PAYLOAD_BASE, *header as u32)
                    .number(PAYLOAD_OFFSET, *offset)
                    .number(PAYLOAD_LEN, *length),
            ),
            Self::ConnectionState => (
                "ct",
                Attributes::new()
                    .number(CT_KEY, CT_STATE)
                    .number(CT_DREG, REGISTER),
            ),
            Self::Mask(mask) => (
                "bitwise",
                Attributes::new()
                    .number(BITWISE_SREG, REGISTER)
                    .number(BITWISE_DREG, REGISTER)
                    .number(BITWISE_LEN, u32::try_from(mask.len()).unwrap_or_default())
                    .nested(BITWISE_MASK, &data(mask))
                    .nested(BITWISE_XOR, &data(&vec![0; mask.len()])),
            ),
            Self::Compare { equal, with } => (
                "cmp",
                Attributes::new()
                    .number(CMP_SREG, REGISTER)
                    .number(CMP_OP, if *equal { CMP_EQUAL } else { CMP_DIFFERENT })
                    .nested(CMP_DATA, &data(with)),
            ),
            Self::Lookup { set, contained } => (
                "lookup",
                Attributes::new()
                    .text(LOOKUP_SET, set)
                    .number(LOOKUP_SREG, REGISTER)
                    .number(LOOKUP_FLAGS, if *contained { 0 } else { LOOKUP_INVERTED }),
            ),
            Self::Verdict(verdict) => {
                let code = Attributes::new().number(VERDICT_CODE, *verdict as u32);
                let verdict = Attributes::new().nested(DATA_VERDICT, &code);
                (
                    "immediate",
                    Attributes::new()
                        .number(IMMEDIATE_DREG, REGISTER_VERDICT)
                        .nested(IMMEDIATE_DATA, &verdict),
                )
            }
            Self::Masquerade => ("masq", Attributes::new()),
            Self::NoTrack => ("notrack", Attributes::new()),
            Self::Other(name) => (name.as_str(), Attributes::new()),
        };
        Attributes::new()
            .text(EXPR_NAME, name)
            .nested(EXPR_DATA, &content)
    }

    /// The step that a list's element holds.
    pub(super) fn decode(element: &[u8]) -> Self {
        let name = find_text(element, EXPR_NAME).unwrap_or_default();
        let content = find(element, EXPR_DATA).unwrap_or_default();
        Self::known(&name, content).unwrap_or(Self::Other(name))
    }

    /// Nothing where it is not exactly what [`encode`](Self::encode) makes of some step.
    fn known(name: &str, content: &[u8]) -> Option<Self> {
        let is = |kind, number| (find_number(content, kind) == Some(number)).then_some(());
        let data = |kind| find(find(content, kind)?, DATA_VALUE).map(<[u8]>::to_vec);
        Some(match name {
            "meta" => {
                is(META_DREG, REGISTER)?;
                let key = find_number(content, META_KEY)?;
                Self::Meta(
                    MetaKey::ALL
                        .into_iter()
                        .find(|known| *known as u32 == key)?,
                )
            }
            "payload" => {
                is(PAYLOAD_DREG, REGISTER)?;
                let base = find_number(content, PAYLOAD_BASE)?;
                let header = [Header::Network, Header::Transport]
                    .into_iter()
                    .find(|known| *known as u32 == base)?;
                Self::Payload {
                    header,
                    offset: find_number(content, PAYLOAD_OFFSET)?,
                    length: find_number(content, PAYLOAD_LEN)?,
                }
            }
            "ct" => {
                is(CT_DREG, REGISTER)?;
                is(CT_KEY, CT_STATE)?;
                Self::ConnectionState
            }
            "bitwise" => {
                is(BITWISE_SREG, REGISTER)?;
                is(BITWISE_DREG, REGISTER)?;
                let xor = data(BITWISE_XOR)?;
                xor.iter().all(|byte| *byte == 0).then_some(())?;
                Self::Mask(data(BITWISE_MASK)?)
            }
            "cmp" => {
                is(CMP_SREG, REGISTER)?;
                let equal = match find_number(content, CMP_OP)? {
                    CMP_EQUAL => true,
                    CMP_DIFFERENT => false,
                    _ => return None,
                };
                let with = data(CMP_DATA)?;
                Self::Compare { equal, with }
            }
            "lookup" => {
                is(LOOKUP_SREG, REGISTER)?;
                let contained = match find_number(content, LOOKUP_FLAGS).unwrap_or(0) {
                    0 => true,
                    LOOKUP_INVERTED => false,
                    _ => return None,
                };
                let set = find_text(content, LOOKUP_SET)?;
                Self::Lookup { set, contained }
            }
            "immediate" => {
                is(IMMEDIATE_DREG, REGISTER_VERDICT)?;
                let verdict = find(find(content, IMMEDIATE_DATA)?, DATA_VERDICT)?;
                let code = find_number(verdict, VERDICT_CODE)?;
                let known = [Verdict::Drop, Verdict::Accept];
                Self::Verdict(known.into_iter().find(|known| *known as u32 == code)?)
            }
            "masq" if content.is_empty() => Self::Masquerade,
            "notrack" => Self::NoTrack,
            _ => return None,
        })
    }
}
