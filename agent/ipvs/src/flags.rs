//! Flags of a virtual service.

use std::ops::BitOr;

/// A set of `IP_VS_SVC_F_*` flags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceFlags(u32);

impl ServiceFlags {
    /// Clients stay with their destination for the service's timeout (`ipvsadm -p`).
    pub const PERSISTENT: Self = Self(0x0001);
    /// The service is in the kernel's hash table. Set by the kernel alone.
    pub const HASHED: Self = Self(0x0002);
    /// Every datagram is scheduled anew, UDP only (`ipvsadm -o`).
    pub const ONE_PACKET: Self = Self(0x0004);
    /// First flag of the scheduler: `sh-fallback` for `sh`, `mh-fallback` for `mh`.
    pub const SCHED_1: Self = Self(0x0008);
    /// Second flag of the scheduler: `sh-port` for `sh`, `mh-port` for `mh`.
    pub const SCHED_2: Self = Self(0x0010);
    /// Third flag of the scheduler.
    pub const SCHED_3: Self = Self(0x0020);

    /// No flag.
    pub const fn empty() -> Self {
        Self(0)
    }

    /// The set with these bits, of which this crate may not know all.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits of the set.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether every flag of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// This set less the flags of `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for ServiceFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
