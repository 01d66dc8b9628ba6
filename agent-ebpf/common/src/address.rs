//! Addresses as the maps hold them.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The third word of a v4-mapped address (RFC 4291, section 2.5.5.2), as it lies in memory.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// An IPv6 or v4-mapped IPv4 address, in wire order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Four words as they lie in the packet. Words and not bytes, so that the programs build and
    /// compare keys with 32-bit instructions.
    words: [u32; 4],
}

impl Address {
    /// The v4-mapped form of an IPv4 address given as the word read from a packet, unswapped.
    #[inline(always)]
    pub const fn from_ipv4_word(word: u32) -> Self {
        Self {
            words: [0, 0, MAPPED, word],
        }
    }

    /// Whether it is a v4-mapped one.
    #[inline(always)]
    pub const fn is_ipv4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    /// 127.0.0.1.
    pub const LOOPBACK_V4: Self = Self::from_ipv4_word(0x7f00_0001_u32.to_be());

    /// `::1`.
    pub const LOOPBACK_V6: Self = Self::from_words([0, 0, 0, 1_u32.to_be()]);

    /// 0.0.0.0.
    pub const UNSPECIFIED_V4: Self = Self::from_ipv4_word(0);

    /// `::`.
    pub const UNSPECIFIED_V6: Self = Self::from_words([0; 4]);

    /// An IPv6 or v4-mapped address given as the words read from a packet, unswapped.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The words as they lie in a packet.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        self.words
    }

    /// The word of an IPv4 address, unswapped; nothing when this is none.
    #[inline(always)]
    pub const fn ipv4_word(self) -> Option<u32> {
        if self.is_ipv4() {
            Some(self.words[3])
        } else {
            None
        }
    }

    /// Whether it is 127.0.0.1 or `::1`.
    #[inline(always)]
    pub fn is_loopback(self) -> bool {
        self == Self::LOOPBACK_V4 || self == Self::LOOPBACK_V6
    }

    /// The address in ordinary form; IPv4 when v4-mapped.
    pub fn to_ip(self) -> IpAddr {
        let [a, b, c, d] = self.words.map(u32::from_be);
        let address =
            (u128::from(a) << 96) | (u128::from(b) << 64) | (u128::from(c) << 32) | u128::from(d);
        Ipv6Addr::from_bits(address).to_canonical()
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => address.into(),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        Self::from_ipv4_word(address.to_bits().to_be())
    }
}

impl From<Ipv6Addr> for Address {
    fn from(address: Ipv6Addr) -> Self {
        let bits = address.to_bits();
        let word = |shift: u32| ((bits >> shift) as u32).to_be();
        Self {
            words: [word(96), word(64), word(32), word(0)],
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

/// A MAC address, padded to a size the programs can load as words.
#[repr(C, align(4))]
#[derive(Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac {
    /// The six octets in transmission order.
    pub octets: [u8; 6],
    zero: [u8; 2],
}

impl Mac {
    /// A MAC address from its octets in transmission order.
    #[inline(always)]
    pub const fn new(octets: [u8; 6]) -> Self {
        Self {
            octets,
            zero: [0; 2],
        }
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.octets;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 4);
const _: () = assert!(size_of::<Mac>() == 8);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, four `u32`, no padding; every bit pattern is a value.
    unsafe impl aya::Pod for super::Address {}
    // SAFETY: `repr(C)`, eight bytes, no padding; every bit pattern is a value.
    unsafe impl aya::Pod for super::Mac {}
}
