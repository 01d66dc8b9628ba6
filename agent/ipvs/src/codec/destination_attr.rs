//! Attributes of a destination, `IPVS_DEST_ATTR_*`.

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, ErrorContext, NLA_F_NESTED, Nla, NlaBuffer, Parseable,
    parse_u8, parse_u16, parse_u16_be, parse_u32,
};

use super::{StatsAttr, parse_array, parse_attrs, uapi};

/// An attribute of a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DestinationAttr {
    /// `union nf_inet_addr`: 16 bytes, an IPv4 address in the first four.
    Address([u8; 16]),
    /// Port; big-endian on the wire.
    Port(u16),
    /// `FWD_METHOD`: connection flags (`IP_VS_CONN_F_*`). The kernel sends and takes only the bits
    /// of `IP_VS_CONN_F_FWD_MASK`.
    ConnFlags(u32),
    /// Weight.
    Weight(u32),
    /// Connections above which it is overloaded.
    UpperThreshold(u32),
    /// Connections below which it is no longer.
    LowerThreshold(u32),
    /// Established connections.
    ActiveConnections(u32),
    /// Connections in any other state.
    InactiveConnections(u32),
    /// Connections that persistence holds.
    PersistentConnections(u32),
    /// Counters of 32 bits.
    Stats(Vec<StatsAttr>),
    /// Address family, `AF_INET` or `AF_INET6`.
    Family(u16),
    /// Counters of 64 bits.
    Stats64(Vec<StatsAttr>),
    /// `IP_VS_CONN_F_TUNNEL_TYPE_*`.
    TunnelType(u8),
    /// UDP port of the tunnel; big-endian on the wire.
    TunnelPort(u16),
    /// `IP_VS_TUNNEL_ENCAP_FLAG_*`.
    TunnelFlags(u16),
    /// Anything else, as it came.
    Other(DefaultNla),
}

impl Nla for DestinationAttr {
    fn value_len(&self) -> usize {
        match self {
            Self::TunnelType(_) => 1,
            Self::Port(_) | Self::Family(_) | Self::TunnelPort(_) | Self::TunnelFlags(_) => 2,
            Self::ConnFlags(_)
            | Self::Weight(_)
            | Self::UpperThreshold(_)
            | Self::LowerThreshold(_)
            | Self::ActiveConnections(_)
            | Self::InactiveConnections(_)
            | Self::PersistentConnections(_) => 4,
            Self::Address(_) => 16,
            Self::Stats(attrs) | Self::Stats64(attrs) => attrs.as_slice().buffer_len(),
            Self::Other(attr) => attr.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Address(_) => uapi::IPVS_DEST_ATTR_ADDR,
            Self::Port(_) => uapi::IPVS_DEST_ATTR_PORT,
            Self::ConnFlags(_) => uapi::IPVS_DEST_ATTR_FWD_METHOD,
            Self::Weight(_) => uapi::IPVS_DEST_ATTR_WEIGHT,
            Self::UpperThreshold(_) => uapi::IPVS_DEST_ATTR_U_THRESH,
            Self::LowerThreshold(_) => uapi::IPVS_DEST_ATTR_L_THRESH,
            Self::ActiveConnections(_) => uapi::IPVS_DEST_ATTR_ACTIVE_CONNS,
            Self::InactiveConnections(_) => uapi::IPVS_DEST_ATTR_INACT_CONNS,
            Self::PersistentConnections(_) => uapi::IPVS_DEST_ATTR_PERSIST_CONNS,
            Self::Stats(_) => uapi::IPVS_DEST_ATTR_STATS | NLA_F_NESTED,
            Self::Family(_) => uapi::IPVS_DEST_ATTR_ADDR_FAMILY,
            Self::Stats64(_) => uapi::IPVS_DEST_ATTR_STATS64 | NLA_F_NESTED,
            Self::TunnelType(_) => uapi::IPVS_DEST_ATTR_TUN_TYPE,
            Self::TunnelPort(_) => uapi::IPVS_DEST_ATTR_TUN_PORT,
            Self::TunnelFlags(_) => uapi::IPVS_DEST_ATTR_TUN_FLAGS,
            Self::Other(attr) => attr.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::TunnelType(value) => buffer.copy_from_slice(&[*value]),
            Self::Port(port) | Self::TunnelPort(port) => {
                buffer.copy_from_slice(&port.to_be_bytes());
            }
            Self::Family(value) | Self::TunnelFlags(value) => {
                buffer.copy_from_slice(&value.to_ne_bytes());
            }
            Self::ConnFlags(value)
            | Self::Weight(value)
            | Self::UpperThreshold(value)
            | Self::LowerThreshold(value)
            | Self::ActiveConnections(value)
            | Self::InactiveConnections(value)
            | Self::PersistentConnections(value) => buffer.copy_from_slice(&value.to_ne_bytes()),
            Self::Address(bytes) => buffer.copy_from_slice(bytes),
            Self::Stats(attrs) | Self::Stats64(attrs) => attrs.as_slice().emit(buffer),
            Self::Other(attr) => attr.emit_value(buffer),
        }
    }
}

impl Parseable<NlaBuffer<&[u8]>> for DestinationAttr {
    fn parse(attr: &NlaBuffer<&[u8]>) -> Result<Self, DecodeError> {
        let value = attr.value();
        Ok(match attr.kind() {
            uapi::IPVS_DEST_ATTR_ADDR => Self::Address(parse_array(value).context("ADDR")?),
            uapi::IPVS_DEST_ATTR_PORT => Self::Port(parse_u16_be(value).context("PORT")?),
            uapi::IPVS_DEST_ATTR_FWD_METHOD => {
                Self::ConnFlags(parse_u32(value).context("FWD_METHOD")?)
            }
            uapi::IPVS_DEST_ATTR_WEIGHT => Self::Weight(parse_u32(value).context("WEIGHT")?),
            uapi::IPVS_DEST_ATTR_U_THRESH => {
                Self::UpperThreshold(parse_u32(value).context("U_THRESH")?)
            }
            uapi::IPVS_DEST_ATTR_L_THRESH => {
                Self::LowerThreshold(parse_u32(value).context("L_THRESH")?)
            }
            uapi::IPVS_DEST_ATTR_ACTIVE_CONNS => {
                Self::ActiveConnections(parse_u32(value).context("ACTIVE_CONNS")?)
            }
            uapi::IPVS_DEST_ATTR_INACT_CONNS => {
                Self::InactiveConnections(parse_u32(value).context("INACT_CONNS")?)
            }
            uapi::IPVS_DEST_ATTR_PERSIST_CONNS => {
                Self::PersistentConnections(parse_u32(value).context("PERSIST_CONNS")?)
            }
            uapi::IPVS_DEST_ATTR_STATS => Self::Stats(parse_attrs(value).context("STATS")?),
            uapi::IPVS_DEST_ATTR_ADDR_FAMILY => {
                Self::Family(parse_u16(value).context("ADDR_FAMILY")?)
            }
            uapi::IPVS_DEST_ATTR_STATS64 => Self::Stats64(parse_attrs(value).context("STATS64")?),
            uapi::IPVS_DEST_ATTR_TUN_TYPE => Self::TunnelType(parse_u8(value).context("TUN_TYPE")?),
            uapi::IPVS_DEST_ATTR_TUN_PORT => {
                Self::TunnelPort(parse_u16_be(value).context("TUN_PORT")?)
            }
            uapi::IPVS_DEST_ATTR_TUN_FLAGS => {
                Self::TunnelFlags(parse_u16(value).context("TUN_FLAGS")?)
            }
            _ => Self::Other(DefaultNla::parse(attr)?),
        })
    }
}
