//! Attributes of a service, `IPVS_SVC_ATTR_*`.

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, ErrorContext, NLA_F_NESTED, Nla, NlaBuffer, Parseable,
    parse_u16, parse_u16_be, parse_u32,
};

use super::{StatsAttr, parse_array, parse_attrs, uapi};
use crate::name::Name;

/// `struct ip_vs_flags`: the flags, and which of them are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlagsAndMask {
    /// Values of the flags.
    pub flags: u32,
    /// Flags that are to be set to their values; the kernel leaves the others as they are.
    pub mask: u32,
}

/// An attribute of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceAttr {
    /// Address family, `AF_INET` or `AF_INET6`.
    Family(u16),
    /// `IPPROTO_*` number.
    Protocol(u16),
    /// `union nf_inet_addr`: 16 bytes, an IPv4 address in the first four.
    Address([u8; 16]),
    /// Port; big-endian on the wire.
    Port(u16),
    /// Firewall mark, in place of protocol, address and port.
    Fwmark(u32),
    /// Name of the scheduler.
    Scheduler(Name),
    /// Flags.
    Flags(FlagsAndMask),
    /// Seconds persistence lasts.
    TimeoutS(u32),
    /// Persistence mask: for IPv4 the mask in network order, for IPv6 a length in host order.
    Netmask([u8; 4]),
    /// Counters of 32 bits.
    Stats(Vec<StatsAttr>),
    /// Name of the persistence engine.
    PersistenceEngine(Name),
    /// Counters of 64 bits.
    Stats64(Vec<StatsAttr>),
    /// Anything else, as it came.
    Other(DefaultNla),
}

impl Nla for ServiceAttr {
    fn value_len(&self) -> usize {
        match self {
            Self::Family(_) | Self::Protocol(_) | Self::Port(_) => 2,
            Self::Fwmark(_) | Self::TimeoutS(_) | Self::Netmask(_) => 4,
            Self::Flags(_) => 8,
            Self::Address(_) => 16,
            Self::Scheduler(name) | Self::PersistenceEngine(name) => name.as_str().len() + 1,
            Self::Stats(attrs) | Self::Stats64(attrs) => attrs.as_slice().buffer_len(),
            Self::Other(attr) => attr.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Family(_) => uapi::IPVS_SVC_ATTR_AF,
            Self::Protocol(_) => uapi::IPVS_SVC_ATTR_PROTOCOL,
            Self::Address(_) => uapi::IPVS_SVC_ATTR_ADDR,
            Self::Port(_) => uapi::IPVS_SVC_ATTR_PORT,
            Self::Fwmark(_) => uapi::IPVS_SVC_ATTR_FWMARK,
            Self::Scheduler(_) => uapi::IPVS_SVC_ATTR_SCHED_NAME,
            Self::Flags(_) => uapi::IPVS_SVC_ATTR_FLAGS,
            Self::TimeoutS(_) => uapi::IPVS_SVC_ATTR_TIMEOUT,
            Self::Netmask(_) => uapi::IPVS_SVC_ATTR_NETMASK,
            Self::Stats(_) => uapi::IPVS_SVC_ATTR_STATS | NLA_F_NESTED,
            Self::PersistenceEngine(_) => uapi::IPVS_SVC_ATTR_PE_NAME,
            Self::Stats64(_) => uapi::IPVS_SVC_ATTR_STATS64 | NLA_F_NESTED,
            Self::Other(attr) => attr.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Family(value) | Self::Protocol(value) => {
                buffer.copy_from_slice(&value.to_ne_bytes());
            }
            Self::Port(port) => buffer.copy_from_slice(&port.to_be_bytes()),
            Self::Fwmark(value) | Self::TimeoutS(value) => {
                buffer.copy_from_slice(&value.to_ne_bytes());
            }
            Self::Netmask(bytes) => buffer.copy_from_slice(bytes),
            Self::Flags(pair) => {
                buffer[..4].copy_from_slice(&pair.flags.to_ne_bytes());
                buffer[4..].copy_from_slice(&pair.mask.to_ne_bytes());
            }
            Self::Address(bytes) => buffer.copy_from_slice(bytes),
            Self::Scheduler(name) | Self::PersistenceEngine(name) => {
                let text = name.as_str().as_bytes();
                buffer[..text.len()].copy_from_slice(text);
                buffer[text.len()] = 0;
            }
            Self::Stats(attrs) | Self::Stats64(attrs) => attrs.as_slice().emit(buffer),
            Self::Other(attr) => attr.emit_value(buffer),
        }
    }
}

impl Parseable<NlaBuffer<&[u8]>> for ServiceAttr {
    fn parse(attr: &NlaBuffer<&[u8]>) -> Result<Self, DecodeError> {
        let value = attr.value();
        Ok(match attr.kind() {
            uapi::IPVS_SVC_ATTR_AF => Self::Family(parse_u16(value).context("AF")?),
            uapi::IPVS_SVC_ATTR_PROTOCOL => Self::Protocol(parse_u16(value).context("PROTOCOL")?),
            uapi::IPVS_SVC_ATTR_ADDR => Self::Address(parse_array(value).context("ADDR")?),
            uapi::IPVS_SVC_ATTR_PORT => Self::Port(parse_u16_be(value).context("PORT")?),
            uapi::IPVS_SVC_ATTR_FWMARK => Self::Fwmark(parse_u32(value).context("FWMARK")?),
            uapi::IPVS_SVC_ATTR_SCHED_NAME => {
                Self::Scheduler(parse_name(value).context("SCHED_NAME")?)
            }
            uapi::IPVS_SVC_ATTR_FLAGS => Self::Flags(parse_flags(value).context("FLAGS")?),
            uapi::IPVS_SVC_ATTR_TIMEOUT => Self::TimeoutS(parse_u32(value).context("TIMEOUT")?),
            uapi::IPVS_SVC_ATTR_NETMASK => Self::Netmask(parse_array(value).context("NETMASK")?),
            uapi::IPVS_SVC_ATTR_STATS => Self::Stats(parse_attrs(value).context("STATS")?),
            uapi::IPVS_SVC_ATTR_PE_NAME => {
                Self::PersistenceEngine(parse_name(value).context("PE_NAME")?)
            }
            uapi::IPVS_SVC_ATTR_STATS64 => Self::Stats64(parse_attrs(value).context("STATS64")?),
            _ => Self::Other(DefaultNla::parse(attr)?),
        })
    }
}

fn parse_flags(value: &[u8]) -> Result<FlagsAndMask, DecodeError> {
    let [f0, f1, f2, f3, m0, m1, m2, m3] = parse_array(value)?;
    Ok(FlagsAndMask {
        flags: u32::from_ne_bytes([f0, f1, f2, f3]),
        mask: u32::from_ne_bytes([m0, m1, m2, m3]),
    })
}

/// A string that ends at its first NUL, or at its end.
fn parse_name(value: &[u8]) -> Result<Name, DecodeError> {
    let text = value.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = String::from_utf8(text.to_vec())?;
    Name::new(&text).map_err(|error| error.to_string().into())
}
