//! Address families, transport protocols and the 16 byte address of the wire.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::DecodeError;

/// Address family of a service or a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4, `AF_INET`.
    V4,
    /// IPv6, `AF_INET6`.
    V6,
}

/// `AF_INET` of include/linux/socket.h.
const AF_INET: u16 = 2;
/// `AF_INET6` of include/linux/socket.h.
const AF_INET6: u16 = 10;

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The number of the family on the wire, `AF_INET` or `AF_INET6`.
    pub fn number(self) -> u16 {
        match self {
            Self::V4 => AF_INET,
            Self::V6 => AF_INET6,
        }
    }

    /// The family with this number; any other number is an error.
    pub fn from_number(number: u16) -> Result<Self, DecodeError> {
        match number {
            AF_INET => Ok(Self::V4),
            AF_INET6 => Ok(Self::V6),
            other => Err(format!("unknown address family {other}").into()),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        })
    }
}

/// Transport protocol of a service, an `IPPROTO_*` number.
///
/// IPVS balances TCP, UDP and SCTP; other numbers can be represented so that a listing never fails
/// on one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(u16);

impl Protocol {
    /// `IPPROTO_TCP`.
    pub const TCP: Self = Self(6);
    /// `IPPROTO_UDP`.
    pub const UDP: Self = Self(17);
    /// `IPPROTO_SCTP`.
    pub const SCTP: Self = Self(132);

    /// The protocol with this `IPPROTO_*` number.
    pub const fn from_number(number: u16) -> Self {
        Self(number)
    }

    /// The `IPPROTO_*` number.
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TCP => f.write_str("tcp"),
            Self::UDP => f.write_str("udp"),
            Self::SCTP => f.write_str("sctp"),
            Self(number) => write!(f, "protocol {number}"),
        }
    }
}

/// `union nf_inet_addr`: 16 bytes in network order, an IPv4 address in the first four.
pub(crate) fn to_wire(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address in a `union nf_inet_addr`, read as `family` says.
pub(crate) fn from_wire(family: Family, bytes: [u8; 16]) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        Family::V6 => Ipv6Addr::from(bytes).into(),
    }
}
