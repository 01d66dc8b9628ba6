//! Balancing where a socket is connected: who asks, what is asked for, who answers.
//!
//! Numbers of scopes and slots are the agent's, derived from ids, so that an agent that takes the
//! maps over gives the same ones.

use core::fmt;
use core::net::IpAddr;

use crate::{Address, Protocol};

/// Value of `sock_scope`, by network namespace cookie: what the sockets of a namespace are balanced
/// to. Namespaces that are not listed are none of this node's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketScope {
    /// Scope of the virtual addresses of the networks it is on. [`scope::NONE`]: on none.
    pub networks: u64,
    /// See [`scope_flag`].
    pub flags: u64,
}

/// Scopes that are not of networks. The agent gives those numbers above [`scope::LAST`].
pub mod scope {
    /// No scope: nothing is looked up.
    pub const NONE: u64 = 0;
    /// Published ports, at this node's addresses and at the loopback addresses.
    pub const PUBLISHED: u64 = 1;
    /// The last number that is not of networks.
    pub const LAST: u64 = 255;
}

/// Bits of [`SocketScope::flags`].
pub mod scope_flag {
    /// Ports published at this node's addresses.
    pub const PUBLISHED: u64 = 1;
    /// Ports published at the loopback addresses too: the host's own namespace.
    pub const LOOPBACK: u64 = 2;
}

/// Key of `sock_service`: what a socket asks for.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketService {
    scope: u64,
    address: Address,
    port_be: u16,
    protocol: u8,
    zero: [u8; 5],
}

impl SocketService {
    /// One port, given in host order.
    pub fn port(scope: u64, address: IpAddr, port: u16, protocol: Protocol) -> Self {
        Self::from_wire(scope, address.into(), port.to_be(), protocol as u8)
    }

    /// Every port of an address, TCP and UDP.
    pub fn any_port(scope: u64, address: IpAddr) -> Self {
        Self::any_port_of(scope, address.into())
    }

    /// As [`any_port`](Self::any_port).
    #[inline(always)]
    pub const fn any_port_of(scope: u64, address: Address) -> Self {
        Self::from_wire(scope, address, 0, 0)
    }

    /// `port_be` in wire order, `protocol` by its number.
    #[inline(always)]
    pub const fn from_wire(scope: u64, address: Address, port_be: u16, protocol: u8) -> Self {
        Self {
            scope,
            address,
            port_be,
            protocol,
            zero: [0; 5],
        }
    }
}

impl fmt::Debug for SocketService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = u16::from_be(self.port_be);
        write!(
            f,
            "scope {:x} {:?} port {port} protocol {}",
            self.scope, self.address, self.protocol
        )
    }
}

/// Value of `sock_service`: who answers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketTarget {
    /// The slot with the backends.
    pub slot: u64,
    /// The port at the backend, in wire order. 0: the one asked for.
    pub port_be: u16,
    zero: [u8; 6],
}

impl SocketTarget {
    /// `port` in host order; nothing keeps the one asked for.
    pub const fn new(slot: u64, port: Option<u16>) -> Self {
        Self {
            slot,
            port_be: match port {
                Some(port) => port.to_be(),
                None => 0,
            },
            zero: [0; 6],
        }
    }
}

/// Key of `sock_backend`. The backends of a slot have the indexes from 0 to one less than the value
/// of `sock_slot`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketBackend {
    slot: u64,
    index: u32,
    zero: u32,
}

impl SocketBackend {
    /// The backend of that index.
    #[inline(always)]
    pub const fn new(slot: u64, index: u32) -> Self {
        Self {
            slot,
            index,
            zero: 0,
        }
    }

    /// Which slot's, and the index in it.
    pub const fn parts(&self) -> (u64, u32) {
        (self.slot, self.index)
    }
}

/// Key of `sock_flow`: one end of a translation, at one socket.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketFlow {
    socket: u64,
    address: Address,
    port_be: u16,
    direction: u8,
    zero: [u8; 5],
}

/// Values of [`SocketFlow::direction`].
mod direction {
    pub(super) const ASKED: u8 = 0;
    pub(super) const ANSWERS: u8 = 1;
}

impl SocketFlow {
    /// By what the socket's owner asked for. `socket` is the socket's cookie, the port in wire
    /// order.
    #[inline(always)]
    pub const fn asked(socket: u64, address: Address, port_be: u16) -> Self {
        Self::new(socket, address, port_be, direction::ASKED)
    }

    /// By who answers.
    #[inline(always)]
    pub const fn answers(socket: u64, address: Address, port_be: u16) -> Self {
        Self::new(socket, address, port_be, direction::ANSWERS)
    }

    #[inline(always)]
    const fn new(socket: u64, address: Address, port_be: u16, direction: u8) -> Self {
        Self {
            socket,
            address,
            port_be,
            direction,
            zero: [0; 5],
        }
    }
}

/// Value of `sock_flow`: the other end.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SocketPeer {
    /// Address.
    pub address: Address,
    /// Port in wire order.
    pub port_be: u16,
    zero: u16,
    /// Of the backend in its slot, where this is one.
    pub index: u32,
}

impl SocketPeer {
    /// Port in wire order.
    #[inline(always)]
    pub const fn new(address: Address, port_be: u16, index: u32) -> Self {
        Self {
            address,
            port_be,
            zero: 0,
            index,
        }
    }
}

const _: () = assert!(size_of::<SocketScope>() == 16);
const _: () = assert!(size_of::<SocketService>() == 32);
const _: () = assert!(size_of::<SocketTarget>() == 16);
const _: () = assert!(size_of::<SocketBackend>() == 16);
const _: () = assert!(size_of::<SocketFlow>() == 32);
const _: () = assert!(size_of::<SocketPeer>() == 24);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, two `u64`, no padding; every bit pattern is a value.
    unsafe impl aya::Pod for super::SocketScope {}
    // SAFETY: `repr(C)`, 8 + 16 + 2 + 1 + 5 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::SocketService {}
    // SAFETY: `repr(C)`, 8 + 2 + 6 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::SocketTarget {}
    // SAFETY: `repr(C)`, 8 + 4 + 4 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::SocketBackend {}
    // SAFETY: `repr(C)`, 8 + 16 + 2 + 1 + 5 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::SocketFlow {}
    // SAFETY: `repr(C)`, 16 + 2 + 2 + 4 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::SocketPeer {}
}
