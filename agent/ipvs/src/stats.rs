//! Counters and rates of a service or a destination.

use crate::codec::{Counter, CounterValue, StatsAttr};

/// Counters since creation, and the kernel's moving averages of the last seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Stats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Packets to clients.
    pub out_packets: u64,
    /// Bytes from clients.
    pub in_bytes: u64,
    /// Bytes to clients.
    pub out_bytes: u64,
    /// Connections per second.
    pub connections_per_s: u64,
    /// Packets from clients per second.
    pub in_packets_per_s: u64,
    /// Packets to clients per second.
    pub out_packets_per_s: u64,
    /// Bytes from clients per second.
    pub in_bytes_per_s: u64,
    /// Bytes to clients per second.
    pub out_bytes_per_s: u64,
}

impl Stats {
    /// Gathers the counters of a `STATS` or `STATS64` attribute; a counter that is absent is zero.
    pub fn from_attrs(attrs: &[StatsAttr]) -> Self {
        let mut stats = Self::default();
        for attr in attrs {
            if let StatsAttr::Counter(counter, value) = attr {
                *stats.field(*counter) = value.get();
            }
        }
        stats
    }

    /// The counters as the content of a `STATS64` attribute.
    pub fn attrs(&self) -> Vec<StatsAttr> {
        let mut stats = *self;
        Counter::ALL
            .iter()
            .map(|&counter| StatsAttr::Counter(counter, CounterValue::U64(*stats.field(counter))))
            .collect()
    }

    fn field(&mut self, counter: Counter) -> &mut u64 {
        match counter {
            Counter::Connections => &mut self.connections,
            Counter::InPackets => &mut self.in_packets,
            Counter::OutPackets => &mut self.out_packets,
            Counter::InBytes => &mut self.in_bytes,
            Counter::OutBytes => &mut self.out_bytes,
            Counter::ConnectionsPerS => &mut self.connections_per_s,
            Counter::InPacketsPerS => &mut self.in_packets_per_s,
            Counter::OutPacketsPerS => &mut self.out_packets_per_s,
            Counter::InBytesPerS => &mut self.in_bytes_per_s,
            Counter::OutBytesPerS => &mut self.out_bytes_per_s,
        }
    }
}
