//! Attributes of counters, `IPVS_STATS_ATTR_*`.

use netlink_packet_core::{
    DecodeError, DefaultNla, ErrorContext, Nla, NlaBuffer, Parseable, parse_u32, parse_u64,
};

use super::uapi;

/// Which counter or rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counter {
    /// Connections scheduled.
    Connections,
    /// Packets from clients.
    InPackets,
    /// Packets to clients.
    OutPackets,
    /// Bytes from clients.
    InBytes,
    /// Bytes to clients.
    OutBytes,
    /// Connections per second.
    ConnectionsPerS,
    /// Packets from clients per second.
    InPacketsPerS,
    /// Packets to clients per second.
    OutPacketsPerS,
    /// Bytes from clients per second.
    InBytesPerS,
    /// Bytes to clients per second.
    OutBytesPerS,
}

impl Counter {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Connections,
        Self::InPackets,
        Self::OutPackets,
        Self::InBytes,
        Self::OutBytes,
        Self::ConnectionsPerS,
        Self::InPacketsPerS,
        Self::OutPacketsPerS,
        Self::InBytesPerS,
        Self::OutBytesPerS,
    ];

    fn number(self) -> u16 {
        match self {
            Self::Connections => uapi::IPVS_STATS_ATTR_CONNS,
            Self::InPackets => uapi::IPVS_STATS_ATTR_INPKTS,
            Self::OutPackets => uapi::IPVS_STATS_ATTR_OUTPKTS,
            Self::InBytes => uapi::IPVS_STATS_ATTR_INBYTES,
            Self::OutBytes => uapi::IPVS_STATS_ATTR_OUTBYTES,
            Self::ConnectionsPerS => uapi::IPVS_STATS_ATTR_CPS,
            Self::InPacketsPerS => uapi::IPVS_STATS_ATTR_INPPS,
            Self::OutPacketsPerS => uapi::IPVS_STATS_ATTR_OUTPPS,
            Self::InBytesPerS => uapi::IPVS_STATS_ATTR_INBPS,
            Self::OutBytesPerS => uapi::IPVS_STATS_ATTR_OUTBPS,
        }
    }
}

/// Value of a counter. `STATS` has bytes in 64 bits and the rest in 32, `STATS64` all in 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CounterValue {
    /// In 32 bits.
    U32(u32),
    /// In 64 bits.
    U64(u64),
}

impl CounterValue {
    /// The number, whatever its width on the wire.
    pub fn get(self) -> u64 {
        match self {
            Self::U32(value) => value.into(),
            Self::U64(value) => value,
        }
    }
}

/// An attribute of counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatsAttr {
    /// A counter with its value.
    Counter(Counter, CounterValue),
    /// Anything else, padding included, as it came.
    Other(DefaultNla),
}

impl Nla for StatsAttr {
    fn value_len(&self) -> usize {
        match self {
            Self::Counter(_, CounterValue::U32(_)) => 4,
            Self::Counter(_, CounterValue::U64(_)) => 8,
            Self::Other(attr) => attr.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Counter(counter, _) => counter.number(),
            Self::Other(attr) => attr.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Counter(_, CounterValue::U32(value)) => {
                buffer.copy_from_slice(&value.to_ne_bytes());
            }
            Self::Counter(_, CounterValue::U64(value)) => {
                buffer.copy_from_slice(&value.to_ne_bytes());
            }
            Self::Other(attr) => attr.emit_value(buffer),
        }
    }
}

impl Parseable<NlaBuffer<&[u8]>> for StatsAttr {
    fn parse(attr: &NlaBuffer<&[u8]>) -> Result<Self, DecodeError> {
        let kind = attr.kind();
        let Some(counter) = Counter::ALL
            .into_iter()
            .find(|counter| counter.number() == kind)
        else {
            return DefaultNla::parse(attr).map(Self::Other);
        };
        let value = attr.value();
        let value = if value.len() == 4 {
            CounterValue::U32(parse_u32(value)?)
        } else {
            CounterValue::U64(parse_u64(value).with_context(|| format!("{counter:?}"))?)
        };
        Ok(Self::Counter(counter, value))
    }
}
