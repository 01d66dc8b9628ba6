//! Published ports.

use core::fmt;
use core::net::IpAddr;

use crate::Address;

/// Transport protocols of a published port, by their IP protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
}

/// Where clients reach a service: an address of this node, a port, a protocol.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishedKey {
    address: Address,
    port_be: u16,
    protocol: u8,
    zero: u8,
}

impl PublishedKey {
    /// `port` in host order.
    pub fn new(address: IpAddr, port: u16, protocol: Protocol) -> Self {
        Self::from_wire(address.into(), port.to_be(), protocol as u8)
    }

    /// `port_be` and `protocol` as read from a packet.
    #[inline(always)]
    pub const fn from_wire(address: Address, port_be: u16, protocol: u8) -> Self {
        Self {
            address,
            port_be,
            protocol,
            zero: 0,
        }
    }
}

impl fmt::Debug for PublishedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = u16::from_be(self.port_be);
        write!(
            f,
            "{:?} port {port} protocol {}",
            self.address, self.protocol
        )
    }
}

/// What is published there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedValue {
    /// Index of the service in the map `service_stats`. Chosen by the agent.
    pub service: u32,
    /// No flag is defined yet; write 0.
    pub flags: u32,
}

const _: () = assert!(size_of::<PublishedKey>() == 20);
const _: () = assert!(size_of::<PublishedValue>() == 8);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, 16 + 2 + 1 + 1 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::PublishedKey {}
    // SAFETY: `repr(C)`, two `u32`, no padding; every bit pattern is a value.
    unsafe impl aya::Pod for super::PublishedValue {}
}
