//! Translation of clients' addresses and ports at a task's port: where two ingress nodes bring the
//! same client 5-tuple, and where a task cannot take a client's address (`snat=true`).

use core::fmt;

use crate::{Address, FlowKey, Mac};

/// An address and a port of a client, or what the task sees instead.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// The port, in wire order.
    pub port_be: u16,
    zero: u16,
}

impl Endpoint {
    /// Port as read from a packet.
    #[inline(always)]
    pub const fn from_wire(address: Address, port_be: u16) -> Self {
        Self {
            address,
            port_be,
            zero: 0,
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} port {}", self.address, u16::from_be(self.port_be))
    }
}

/// A client's flow as one of the ingress nodes brings it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TranslationKey {
    /// With the client's own address and port.
    pub flow: FlowKey,
    /// MAC address of the ingress node on the overlay.
    pub mac: Mac,
}

/// Bits of the values of the map `targets`.
pub mod target_flag {
    /// It is published. Always set.
    pub const PUBLISHED: u32 = 1;
    /// The task sees the ingress node's overlay address instead of the client's (`snat=true`).
    pub const SNAT: u32 = 2;
}

const _: () = assert!(size_of::<Endpoint>() == 20);
const _: () = assert!(size_of::<TranslationKey>() == 48);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, 16 + 2 + 2 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::Endpoint {}
    // SAFETY: `repr(C)`, 40 + 8 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::TranslationKey {}
}
