//! Isolation on the ingress network: who a task is.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Address, Mac};

/// Value of `task_ports`, by interface index in the ingress namespace: the task behind that port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskPort {
    /// Its IPv4 address, v4-mapped.
    pub address: Address,
    /// Its IPv6 address; all zero without IPv6.
    pub address6: Address,
    /// The bits of an address that name the network: an IPv4 one's, v4-mapped.
    pub mask: Address,
    /// The same of an IPv6 address.
    pub mask6: Address,
    /// Its MAC address.
    pub mac: Mac,
}

impl TaskPort {
    /// A task on a network of these prefix lengths, which are at most 32 and 128.
    pub fn new(mac: [u8; 6], address: (Ipv4Addr, u8), address6: Option<(Ipv6Addr, u8)>) -> Self {
        let ones = |len: u8| u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
        let mask = |len| Ipv6Addr::from_bits(ones(len)).into();
        let (of6, len6) = address6.unwrap_or((Ipv6Addr::UNSPECIFIED, 128));
        Self {
            address: address.0.into(),
            address6: of6.into(),
            mask: mask(96 + address.1),
            mask6: mask(len6),
            mac: Mac::new(mac),
        }
    }

    /// Its address of the family of `other`.
    #[inline(always)]
    pub const fn address_like(&self, other: Address) -> Address {
        if other.is_ipv4() {
            self.address
        } else {
            self.address6
        }
    }

    /// Whether an address is of the task's network.
    #[inline(always)]
    pub const fn is_neighbour(&self, other: Address) -> bool {
        let mask = if other.is_ipv4() {
            self.mask.words()
        } else {
            self.mask6.words()
        };
        let (own, other) = (self.address_like(other).words(), other.words());
        (own[0] ^ other[0]) & mask[0] == 0
            && (own[1] ^ other[1]) & mask[1] == 0
            && (own[2] ^ other[2]) & mask[2] == 0
            && (own[3] ^ other[3]) & mask[3] == 0
    }

    /// Its addresses in ordinary form.
    pub fn ips(&self) -> (IpAddr, Option<IpAddr>) {
        let ipv6 = self.address6 != Address::UNSPECIFIED_V6;
        (self.address.to_ip(), ipv6.then(|| self.address6.to_ip()))
    }
}

const _: () = assert!(size_of::<TaskPort>() == 72);

// SAFETY: `repr(C)`, four times 16 and 8 bytes, no padding; every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for TaskPort {}
