//! The wire format: family `IPVS` version 1, messages of nested attributes.
//!
//! [`IpvsMessage`] is the payload of a `netlink_packet_generic::GenlMessage`, so it travels over
//! any socket that speaks `netlink-packet-core`. Attributes are enums with an `Other` variant that
//! keeps what this crate does not know. The typed view of attributes is elsewhere: see
//! [`Service::attrs`](crate::Service::attrs) and
//! [`ServiceEntry::from_attrs`](crate::ServiceEntry::from_attrs), and the like for destinations.

pub mod uapi;

mod destination_attr;
mod family;
mod info_attr;
mod message;
mod service_attr;
mod stats_attr;

pub use destination_attr::DestinationAttr;
pub use family::FamilyId;
pub use info_attr::InfoAttr;
pub use message::{Attr, Command, IpvsMessage};
pub use service_attr::{FlagsAndMask, ServiceAttr};
pub use stats_attr::{Counter, CounterValue, StatsAttr};

use netlink_packet_core::{DecodeError, NlaBuffer, NlasIterator, Parseable};

/// Parses a run of attributes.
fn parse_attrs<T>(bytes: &[u8]) -> Result<Vec<T>, DecodeError>
where
    T: for<'a> Parseable<NlaBuffer<&'a [u8]>>,
{
    NlasIterator::new(bytes)
        .map(|attr| T::parse(&attr?))
        .collect()
}

/// Copies a value whose length is part of the format.
fn parse_array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], DecodeError> {
    bytes
        .try_into()
        .map_err(|_| DecodeError::invalid_number(N, bytes.len()))
}
