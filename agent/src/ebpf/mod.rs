//! The data plane's eBPF: the embedded object, its maps and where its programs are attached: those of
//! the routing mesh to links, those that balance sockets to the cgroup root.
//!
//! Invariants:
//! * The only place that sees aya. Everything is synchronous; a call takes microseconds, loading
//!   some tens of milliseconds.
//! * Nothing is detached or unpinned when a [`Mesh`] is dropped or the process ends: filters and
//!   maps outlive the agent, and the next agent takes them over.
//! * tc is spoken to in the *calling thread's* network namespace: enter the right one first.
//! * Changing a map or replacing a filter is atomic for each packet.
//!
//! Deliberately absent: deciding what is published or where to attach (`mesh` does), tcx links
//! (one mechanism for every kernel from 6.1, visible to `tc filter show`), cleaning up behind an
//! agent that has left the swarm beyond [`Mesh::remove_pins`].

mod batch;
mod bench;
mod bpffs;
mod cgroup;
pub(crate) mod command;
mod cookie;
mod layout;
mod link;
mod mesh;
mod program;
mod reconcile;
mod slots;
mod sockets;
mod tc;
#[cfg(test)]
pub(crate) mod tests;
mod trace;
mod way_out;

pub(crate) use cookie::netns_cookie;
pub(crate) use mesh::{MapContents, Mesh, MeshError};
pub(crate) use program::{Direction, Program};
pub(crate) use reconcile::Changed;
pub(crate) use sockets::{SocketChange, SocketError, SocketLinks, SocketProgram, SocketTables};
pub(crate) use swarm_ebpf_common::{
    Config, Counter, DropKey, FlowKey, FlowValue, Mac, Protocol, PublishedKey, PublishedValue,
    ServiceStats, SocketScope, SocketService, SocketTarget, SourceKey, TaskPort, TraceEvent,
    TraceFilter, TraceStep, published_flag, scope, scope_flag, target_flag,
};
pub(crate) use tc::{Attached, TcError};
pub(crate) use trace::{TraceRequest, Tracer};
