//! What the programs need to know about the host's links.

use crate::Mac;

/// The single entry of the map `config`. All zero until the agent has written it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Interface index, in the host's network namespace, of the host end of the veth pair into the
    /// ingress namespace. 0: not there yet, published traffic is left to the host.
    pub e1h_ifindex: u32,
    /// Interface index of the default uplink, for replies to which the routing table has no
    /// answer. 0: such replies are dropped.
    pub uplink_ifindex: u32,
    /// Interface index, in the ingress namespace, of the VXLAN device. 0: answers to other nodes
    /// find it by the bridge.
    pub vxlan_ifindex: u32,
    /// IPv4 address of this end of the tunnel, in wire order. 0: the host's stack unpacks everything
    /// that comes by the tunnel.
    pub vtep: u32,
    /// The last word of the ingress network's VXLAN headers, in wire order: its VNI and a zero byte.
    pub vni: u32,
    /// Zero.
    pub reserved: u32,
    /// This node's own MAC address on the ingress network.
    pub mac: Mac,
}

const _: () = assert!(size_of::<Config>() == 32);

// SAFETY: `repr(C)`, six `u32` and 8 bytes, no padding; every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Config {}
