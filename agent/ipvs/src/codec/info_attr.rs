//! Attributes of IPVS itself, `IPVS_INFO_ATTR_*`.

use netlink_packet_core::{
    DecodeError, DefaultNla, ErrorContext, Nla, NlaBuffer, Parseable, parse_u32,
};

use super::uapi;

/// An attribute of an `IPVS_CMD_SET_INFO` message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InfoAttr {
    /// Version, three numbers of a byte each in the lower 24 bits.
    Version(u32),
    /// Buckets of the connection hash table.
    ConnectionTableSize(u32),
    /// Anything else, as it came.
    Other(DefaultNla),
}

impl Nla for InfoAttr {
    fn value_len(&self) -> usize {
        match self {
            Self::Version(_) | Self::ConnectionTableSize(_) => 4,
            Self::Other(attr) => attr.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Version(_) => uapi::IPVS_INFO_ATTR_VERSION,
            Self::ConnectionTableSize(_) => uapi::IPVS_INFO_ATTR_CONN_TAB_SIZE,
            Self::Other(attr) => attr.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Version(value) | Self::ConnectionTableSize(value) => {
                buffer.copy_from_slice(&value.to_ne_bytes());
            }
            Self::Other(attr) => attr.emit_value(buffer),
        }
    }
}

impl Parseable<NlaBuffer<&[u8]>> for InfoAttr {
    fn parse(attr: &NlaBuffer<&[u8]>) -> Result<Self, DecodeError> {
        let value = attr.value();
        Ok(match attr.kind() {
            uapi::IPVS_INFO_ATTR_VERSION => Self::Version(parse_u32(value).context("VERSION")?),
            uapi::IPVS_INFO_ATTR_CONN_TAB_SIZE => {
                Self::ConnectionTableSize(parse_u32(value).context("CONN_TAB_SIZE")?)
            }
            _ => Self::Other(DefaultNla::parse(attr)?),
        })
    }
}
