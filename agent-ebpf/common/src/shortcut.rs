//! Established IPv4 connections through the mesh, as IPVS has balanced them: their packets take a
//! shortcut past the ingress namespace's IP stack.

/// Packets of one connection in one direction, as they come. Everything in wire order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShortcutKey {
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// One of [`shortcut_way`].
    pub way: u8,
    /// Always zero.
    pub zero: u16,
}

/// Values of [`ShortcutKey::way`].
pub mod shortcut_way {
    /// From a client to a node's address.
    pub const IN: u8 = 1;
    /// From a task to a client.
    pub const OUT: u8 = 2;
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
    /// MAC addresses, inward only: the task's, and this node's on the overlay.
    pub macs: [u16; 6],
}

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
    // SAFETY: `repr(C)`, 4 + 4 + 2 + 2 + 1 + 1 + 2 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::ShortcutKey {}
    // SAFETY: `repr(C)`, 8 + 4 + 2 + 2 + 4 + 12 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::ShortcutValue {}
    // SAFETY: `repr(C)`, 16 + 4 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::ShortcutDraft {}
}
