//! The node's networks in the kernel: namespaces, the ingress overlay, IPVS and the mesh's eBPF
//! programs, kept as [`Desired`] says by a level-triggered loop.
//!
//! ```text
//! Desired (from the worker) ─┐
//!                            ├─ plan ─> ops ─> execute ─> kernel ─> observe ─┐
//!                            └──────────────────<────────────────────────────┘
//! ```
//!
//! * [`desired`] is what the worker asks for, [`model`] the kernel as data, [`op`] the operations
//!   on it and [`effect`] what they do to it. [`wanted`] turns what is desired into a kernel
//!   ([`balance`] what of it is about published ports),
//!   [`plan`] finds the operations between two kernels. All of that is pure.
//! * [`increment`] does the same between two desired states, where services and tasks alone differ.
//! * [`check`] tells the operations of a plan as what differs, for a person; carries out nothing.
//! * [`stats`] says of which service and task the kernel's counters are.
//! * [`observe`] reads the kernel, [`execute`] carries operations out, both through the sockets in
//!   [`kernel`]. [`pass`] is one round of it all, [`reconcile`] decides when there is one.
//!
//! Invariants:
//! * Everything found at a start is adopted. Nothing is flushed and rebuilt, no connection is lost.
//! * What is not ours is never touched. Ours are the namespaces `ingress`, `net-*` and `task-*` under
//!   `<run-dir>/netns` (of the latter only what [`wanted`] lists), links `sw-*` in the host's
//!   namespace with everything on them, the table `inet swarm` of its nf_tables, and the places of
//!   our programs on its links. Of links that are not ours only `forwarding` is set, and
//!   guarded; for IPv6 `accept_ra`, and the forwarding of the whole host.
//! * Any prefix of a plan is safe: a port is published last and withdrawn first.
//!
//! Deliberately absent: anything that runs another program, and any state between two passes but
//! open sockets and what was last written into the eBPF maps.
//!
//! IPv6 is beside IPv4 wherever the ingress network has an IPv6 subnet and the kernel does IPv6:
//! every address on the network has a twin ([`address6`](desired::address6)) with the same MAC
//! address. Without either, nothing of IPv6 is made.

mod answering;
mod balance;
mod check;
mod connection;
mod desired;
mod effect;
mod execute;
mod firewall;
mod increment;
mod isolation;
mod kernel;
mod listeners;
mod mesh;
mod model;
mod monitor;
mod names;
mod netlink;
mod netns;
mod nftables;
mod observe;
mod op;
mod pass;
mod plan;
mod probe;
mod reconcile;
mod sockets;
mod stats;
mod task_netns;
mod wanted;

#[cfg(test)]
mod tests;

pub(crate) use answering::{Answering, Entry};
pub(crate) use desired::{
    Attachment, Backend, BackendState, Desired, IngressNetwork, LocalNode, LocalTask, Overlay,
    Peer, Service, Task, TaskSockets, VirtualService,
};
#[cfg(test)]
pub(crate) use netns::NetnsDir;
pub(crate) use netns::{Netns, NetnsError};
pub(crate) use probe::{Outcome, probe};
pub(crate) use reconcile::{Applied, NetworkConfig, NetworkError, Passes, Reconciler};
pub(crate) use stats::{Drops, NodeStats, ServiceTally, TaskTally};
pub(crate) use task_netns::{task_connections, task_listens, task_netns};
