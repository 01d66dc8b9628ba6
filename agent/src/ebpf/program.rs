//! The programs in the object.

use std::fmt;

/// The object that `cargo xtask ebpf build` made; `build.rs` checks that it fits the sources.
pub(super) fn object() -> &'static [u8] {
    aya::include_bytes_aligned!(env!("SWARM_EBPF_OBJECT"))
}

/// A tc program of the mesh. See the file of the same name in `agent-ebpf/src`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Program {
    /// On every uplink: published traffic goes into the ingress namespace.
    MeshUplink,
    /// On the host end of the veth pair from the ingress namespace: replies go to the client.
    MeshOut,
    /// On the host side of a task's veth, towards the task: remembers the ingress node.
    FlowLearn,
    /// On the host side of a task's veth, from the task: answers go to that ingress node.
    FlowReturn,
    /// On the ingress namespace's end of that veth pair: packets of balanced connections go straight
    /// towards the task.
    ShortcutIn,
    /// On the VXLAN device, outwards: remembers what was balanced.
    ShortcutLearn,
    /// On the VXLAN device, inwards: answers go straight to the host.
    ShortcutOut,
}

/// Which way packets go at a tc hook, seen from the interface's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Direction {
    /// Packets that the interface received.
    Ingress,
    /// Packets that the interface is about to send.
    Egress,
}

impl Program {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::MeshUplink,
        Self::MeshOut,
        Self::FlowLearn,
        Self::FlowReturn,
        Self::ShortcutIn,
        Self::ShortcutLearn,
        Self::ShortcutOut,
    ];

    /// Its name in the object, in the kernel and in `tc filter show`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::MeshUplink => "mesh_uplink",
            Self::MeshOut => "mesh_out",
            Self::FlowLearn => "flow_learn",
            Self::FlowReturn => "flow_return",
            Self::ShortcutIn => "shortcut_in",
            Self::ShortcutLearn => "shortcut_learn",
            Self::ShortcutOut => "shortcut_out",
        }
    }

    /// The hook it is written for.
    pub(crate) const fn direction(self) -> Direction {
        match self {
            Self::MeshUplink
            | Self::MeshOut
            | Self::FlowReturn
            | Self::ShortcutIn
            | Self::ShortcutOut => Direction::Ingress,
            Self::FlowLearn | Self::ShortcutLearn => Direction::Egress,
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
