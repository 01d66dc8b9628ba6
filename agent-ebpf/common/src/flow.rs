//! The flow table: through which ingress node a client's packets reach a task of this host.

use core::fmt;
use core::net::IpAddr;

use crate::word::{halves, word};
use crate::{Address, Endpoint, FLOW_CLOSED_NS, FLOW_IDLE_TCP_NS, FLOW_IDLE_UDP_NS, Protocol};

/// A flow as the task sees it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    client: Address,
    task: Address,
    /// The client's port and the task's, in wire order, as they lie in a packet: see [`word`].
    ports: u32,
    protocol: u32,
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
            ports: word(client.1, task.1),
            protocol: protocol as u32,
        }
    }

    /// Protocol number.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        self.protocol as u8
    }

    /// The task's address and port, in wire order.
    #[inline(always)]
    pub const fn task(&self) -> (Address, u16) {
        (self.task, halves(self.ports).1)
    }

    /// The client, as the task sees it.
    #[inline(always)]
    pub const fn client(&self) -> Endpoint {
        Endpoint::from_wire(self.client, halves(self.ports).0)
    }

    /// The same flow with another client.
    #[inline(always)]
    pub const fn with_client(mut self, client: Endpoint) -> Self {
        self.client = client.address;
        self.ports = word(client.port_be, halves(self.ports).1);
        self
    }
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (client, task) = halves(self.ports);
        let (client, task) = (u16::from_be(client), u16::from_be(task));
        write!(
            f,
            "{:?} port {client} to {:?} port {task} protocol {}",
            self.client, self.task, self.protocol
        )
    }
}

/// Bits of [`FlowValue::state`]. What they mean for the 5-tuple: [`FlowValue::is_over`].
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
    /// The port that the client uses, in wire order, where the flow is translated; 0 where not.
    pub orig_port_be: u16,
    /// The port that the task sees instead, in wire order; 0 where the flow is not translated. With
    /// it, the client itself is in the map `xlat_out`.
    pub xlat_port_be: u16,
    /// Interface index of the task's port in the ingress namespace: what comes in there is from the
    /// task that the client's packets were delivered to.
    pub ifindex: u32,
    /// Always zero.
    pub zero: u32,
}

impl FlowValue {
    /// Whether the task sees the client's own address and port.
    #[inline(always)]
    pub const fn is_native(&self) -> bool {
        self.xlat_port_be == 0
    }

    /// Whether the 5-tuple is free for another flow at `now_ns`: after a reset at once, after both
    /// ends' FIN when no socket can be in TIME-WAIT any more, else when nothing has come for as
    /// long as no flow of the protocol is idle.
    #[inline(always)]
    pub const fn is_over(&self, is_tcp: bool, now_ns: u64) -> bool {
        let idle_ns = now_ns.saturating_sub(self.last_seen_ns);
        let allowed_ns = if !is_tcp {
            FLOW_IDLE_UDP_NS
        } else if self.is_closed() {
            FLOW_CLOSED_NS
        } else {
            FLOW_IDLE_TCP_NS
        };
        self.state & flow_state::RESET != 0 || idle_ns > allowed_ns
    }

    /// Whether both ends are done with the connection.
    #[inline(always)]
    pub const fn is_closed(&self) -> bool {
        const FINISHED: u16 = flow_state::CLIENT_FIN | flow_state::TASK_FIN;
        self.state & flow_state::RESET != 0 || self.state & FINISHED == FINISHED
    }
}

const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<FlowValue>() == 32);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, 16 + 16 + 4 + 4 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: `repr(C)`, 8 + 6 + 2 + 4 + 2 + 2 + 4 + 4 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::FlowValue {}
}
