//! Fragments: only the first one of a packet has the ports, the others have to be known by it.

use crate::Address;

/// What all fragments of one packet share (RFC 791, section 3.2; RFC 8200, section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    source: Address,
    destination: Address,
    /// As on the wire; of IPv4 only 16 bits are used.
    id_be: u32,
    protocol: u8,
    zero: [u8; 3],
}

impl FragmentKey {
    /// Everything as read from a packet.
    #[inline(always)]
    pub const fn from_wire(
        source: Address,
        destination: Address,
        id_be: u32,
        protocol: u8,
    ) -> Self {
        Self {
            source,
            destination,
            id_be,
            protocol,
            zero: [0; 3],
        }
    }
}

/// Where the fragments after the first one go.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentValue {
    /// When the first one came, on the monotonic clock (`bpf_ktime_get_coarse_ns`).
    pub seen_ns: u64,
    /// Of a request: index of the service in the map `service_stats`. Of an answer: 0.
    pub service: u32,
    /// Of an answer: MAC address of the ingress node it goes back to. Of a request: zero.
    pub mac: [u8; 6],
    zero: [u8; 6],
    /// At a task's port: the address in place of the client's, or the client's in place of that one;
    /// all zero where it stays.
    pub client: Address,
}

impl FragmentValue {
    /// The fragments of a request to a service.
    #[inline(always)]
    pub const fn request(seen_ns: u64, service: u32) -> Self {
        Self {
            seen_ns,
            service,
            mac: [0; 6],
            zero: [0; 6],
            client: Address::UNSPECIFIED_V6,
        }
    }

    /// The fragments of an answer through an ingress node.
    #[inline(always)]
    pub const fn answer(seen_ns: u64, mac: [u8; 6]) -> Self {
        Self {
            seen_ns,
            service: 0,
            mac,
            zero: [0; 6],
            client: Address::UNSPECIFIED_V6,
        }
    }

    /// The same, with another address in place of the client's or back.
    #[inline(always)]
    pub const fn with_client(mut self, client: Address) -> Self {
        self.client = client;
        self
    }
}

const _: () = assert!(size_of::<FragmentKey>() == 40);
const _: () = assert!(size_of::<FragmentValue>() == 40);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, 16 + 16 + 4 + 1 + 3 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::FragmentKey {}
    // SAFETY: `repr(C)`, 8 + 4 + 6 + 6 + 16 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::FragmentValue {}
}
