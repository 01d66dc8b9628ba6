//! Established IPv4 connections through the mesh, as IPVS has balanced them: their packets take a
//! shortcut past the ingress namespace's IP stack.

use crate::word::{halves, word};

/// Packets of one connection in one direction, as they come. Everything in wire order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShortcutKey {
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
    /// Source and destination port.
    ports: u32,
    /// IP protocol number and [`shortcut_way`].
    kind: u32,
}

impl ShortcutKey {
    /// Not a packet's.
    pub const NONE: Self = Self {
        source: 0,
        destination: 0,
        ports: 0,
        kind: 0,
    };

    /// Packets of `protocol` between two ends, addresses and ports as read from one; `way` is one of
    /// [`shortcut_way`].
    #[inline(always)]
    pub const fn new(source: (u32, u16), destination: (u32, u16), protocol: u8, way: u16) -> Self {
        Self {
            source: source.0,
            destination: destination.0,
            ports: word(source.1, destination.1),
            kind: word(protocol as u16, way),
        }
    }

    /// Source port.
    #[inline(always)]
    pub const fn source_port(&self) -> u16 {
        halves(self.ports).0
    }

    /// Destination port.
    #[inline(always)]
    pub const fn destination_port(&self) -> u16 {
        halves(self.ports).1
    }

    /// IP protocol number.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        halves(self.kind).0 as u8
    }

    /// Whether it is [`NONE`](Self::NONE).
    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        self.kind == 0
    }
}

/// Which way packets go.
pub mod shortcut_way {
    /// From a client to a node's address.
    pub const IN: u16 = 1;
    /// From a task to a client.
    pub const OUT: u16 = 2;
}

/// What becomes of such a packet. Everything in wire order but the times and the index.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortcutValue {
    /// When IPVS last saw a packet of the connection, on the monotonic clock
    /// (`bpf_ktime_get_coarse_ns`). Inward only.
    pub balanced_ns: u64,
    /// The address instead: of the task, as destination; of the node, as source.
    pub address: u32,
    /// The port instead.
    pub port: u16,
    /// One of [`shortcut_state`].
    pub state: u16,
    /// Interface index in the ingress namespace: the VXLAN device or the task's port inward, the
    /// veth into the host's namespace outward.
    pub ifindex: u32,
    /// Inward only: the task's MAC address, and this node's on the overlay.
    pub macs: MacPair,
}

/// Destination and source MAC address as they lie in a packet. Words and not an array, which the
/// programs would copy with a call.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacPair(pub u32, pub u32, pub u32);

/// Values of [`ShortcutValue::state`].
pub mod shortcut_state {
    /// Packets take the shortcut.
    pub const OPEN: u16 = 0;
    /// The client has asked for a connection: IPVS has to see the end of the handshake. Inward only.
    pub const OPENING: u16 = 1;
}

/// The packet that IPVS is working on: written where it enters the ingress namespace, read where it
/// leaves for the task.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortcutDraft {
    /// The packet as it came. All zero: nothing is to be learned.
    pub key: ShortcutKey,
    /// Interface index of the veth it came by.
    pub ifindex: u32,
}

const _: () = assert!(size_of::<ShortcutKey>() == 16);
const _: () = assert!(size_of::<ShortcutValue>() == 32);
const _: () = assert!(size_of::<ShortcutDraft>() == 20);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, 4 + 4 + 4 + 4 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::ShortcutKey {}
    // SAFETY: `repr(C)`, 8 + 4 + 2 + 2 + 4 + 12 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::ShortcutValue {}
    // SAFETY: `repr(C)`, 16 + 4 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::ShortcutDraft {}
}
