//! The flow table: through which ingress node a client's packets reach a task of this host.

use core::fmt;
use core::net::IpAddr;

use crate::{Address, Protocol};

/// A flow as the task sees it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    client: Address,
    task: Address,
    client_port_be: u16,
    task_port_be: u16,
    protocol: u8,
    zero: [u8; 3],
}

impl FlowKey {
    /// Ports in host order.
    pub fn new(client: (IpAddr, u16), task: (IpAddr, u16), protocol: Protocol) -> Self {
        Self::from_wire(
            (client.0.into(), client.1.to_be()),
            (task.0.into(), task.1.to_be()),
            protocol as u8,
        )
    }

    /// Ports and `protocol` as read from a packet.
    #[inline(always)]
    pub const fn from_wire(client: (Address, u16), task: (Address, u16), protocol: u8) -> Self {
        Self {
            client: client.0,
            task: task.0,
            client_port_be: client.1,
            task_port_be: task.1,
            protocol,
            zero: [0; 3],
        }
    }
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (client, task) = (
            u16::from_be(self.client_port_be),
            u16::from_be(self.task_port_be),
        );
        write!(
            f,
            "{:?} port {client} to {:?} port {task} protocol {}",
            self.client, self.task, self.protocol
        )
    }
}

/// Bits of [`FlowValue::state`]. A flow that was reset, or finished by both ends, no longer
/// defends its 5-tuple.
pub mod flow_state {
    /// The client has sent FIN.
    pub const CLIENT_FIN: u16 = 1;
    /// The task has sent FIN.
    pub const TASK_FIN: u16 = 2;
    /// Either end has sent RST.
    pub const RESET: u16 = 4;
}

/// The way back.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowValue {
    /// When the client last sent, on the monotonic clock (`bpf_ktime_get_coarse_ns`), in steps of
    /// [`FLOW_SEEN_GRAIN_NS`](crate::FLOW_SEEN_GRAIN_NS).
    pub last_seen_ns: u64,
    /// MAC address of the ingress node on the overlay.
    pub mac: [u8; 6],
    /// See [`flow_state`].
    pub state: u16,
    /// The ingress node's index, from `ingress_macs`.
    pub node: u32,
    /// The port the client uses, in wire order. For the translation of colliding flows, which is
    /// not done yet: 0.
    pub orig_port_be: u16,
    /// The port the task sees instead, in wire order. Not done yet: 0.
    pub xlat_port_be: u16,
}

impl FlowValue {
    /// Whether both ends are done with the connection.
    #[inline(always)]
    pub const fn is_closed(&self) -> bool {
        const FINISHED: u16 = flow_state::CLIENT_FIN | flow_state::TASK_FIN;
        self.state & flow_state::RESET != 0 || self.state & FINISHED == FINISHED
    }
}

const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<FlowValue>() == 24);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, 16 + 16 + 2 + 2 + 1 + 3 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: `repr(C)`, 8 + 6 + 2 + 4 + 2 + 2 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::FlowValue {}
}
