//! What the eBPF programs and the agent agree on: the names, sizes, keys and values of the maps.
//!
//! Invariants:
//! * Every type is `#[repr(C)]` without implicit padding (asserted below), because the kernel
//!   compares hash keys byte by byte and the agent reads values as bytes.
//! * Addresses are 16 bytes, IPv4 as v4-mapped IPv6 (`::ffff:a.b.c.d`), so that IPv6 needs no new
//!   layout.
//! * Addresses, ports and MAC addresses are as on the wire (big-endian); everything else is in host
//!   order.
//! * When the *meaning* of a map changes without its sizes, rename the map: pinned maps are reused
//!   when sizes agree.
//!
//! Deliberately absent: logic. The programs are in `agent-ebpf/src`, the writer of the maps in
//! `agent/src/ebpf`.
#![no_std]

mod address;
mod config;
mod counter;
mod flow;
mod fragment;
mod isolation;
mod published;
mod shortcut;
mod socket;
mod trace;
mod translation;
mod word;

pub use address::{Address, Mac};
pub use config::Config;
pub use counter::{Counter, DropKey, ServiceStats};
pub use flow::{FlowKey, FlowValue, flow_state};
pub use fragment::{FragmentKey, FragmentValue};
pub use isolation::TaskPort;
pub use published::{Protocol, PublishedKey, PublishedValue, SourceKey, published_flag};
pub use shortcut::{
    MacPair, ShortcutDraft, ShortcutKey, ShortcutValue, shortcut_state, shortcut_way,
};
pub use socket::{
    SocketBackend, SocketFlow, SocketPeer, SocketScope, SocketService, SocketTarget, scope,
    scope_flag,
};
pub use trace::{TraceCpu, TraceEvent, TraceFilter, TraceStep};
pub use translation::{Endpoint, TranslationKey, target_flag};

/// Map names, as in the object and under the pin directory. At most 15 bytes, so that the kernel
/// (`BPF_OBJ_NAME_LEN`) shows them whole.
pub mod map {
    /// `HASH` of [`PublishedKey`](crate::PublishedKey) to [`PublishedValue`](crate::PublishedValue).
    pub const PUBLISHED: &str = "published";
    /// `LPM_TRIE` of [`SourceKey`](crate::SourceKey) to `u32` (always 1): who may use the ports with
    /// [`published_flag::SOURCES`](crate::published_flag::SOURCES).
    pub const SOURCES: &str = "sources";
    /// `ARRAY` with one [`Config`](crate::Config).
    pub const CONFIG: &str = "config";
    /// `HASH` of [`Address`](crate::Address) to `u32` (always 1): this node's own addresses.
    pub const NODE_ADDRS: &str = "node_addrs";
    /// `HASH` of [`Mac`](crate::Mac) to `u32` node index: the ingress nodes on the overlay.
    pub const INGRESS_MACS: &str = "ingress_macs";
    /// `LRU_HASH` of [`FlowKey`](crate::FlowKey) to [`FlowValue`](crate::FlowValue).
    pub const FLOW: &str = "flow";
    /// `LRU_HASH` of [`ShortcutKey`](crate::ShortcutKey) to
    /// [`ShortcutValue`](crate::ShortcutValue).
    pub const SHORTCUTS: &str = "shortcuts";
    /// `PERCPU_ARRAY` with one [`ShortcutDraft`](crate::ShortcutDraft).
    pub const SHORTCUT_DRAFT: &str = "shortcut_draft";
    /// `LRU_HASH` of [`FragmentKey`](crate::FragmentKey) to [`FragmentValue`](crate::FragmentValue).
    pub const FRAGMENTS: &str = "fragments";
    /// `PERCPU_HASH` of `u32` service index to [`ServiceStats`](crate::ServiceStats).
    pub const SERVICE_STATS: &str = "service_stats";
    /// `PERCPU_ARRAY` of `u64`, indexed by [`Counter`](crate::Counter).
    pub const COUNTERS: &str = "counters";
    /// `LRU_PERCPU_HASH` of [`DropKey`](crate::DropKey) to `u64` packets.
    pub const DROPS: &str = "drops";
    /// `HASH` of an interface index in the ingress namespace (`u32`) to
    /// [`TaskPort`](crate::TaskPort).
    pub const TASK_PORTS: &str = "task_ports";
    /// `HASH` of a task's [`Mac`](crate::Mac) on the ingress network to the interface index (`u32`)
    /// of its port in the ingress namespace.
    pub const TASK_MACS: &str = "task_macs";
    /// `HASH` of [`PublishedKey`](crate::PublishedKey) to `u32` of bits of
    /// [`target_flag`](crate::target_flag): what other tasks may reach on the ingress network, by
    /// the task's address and target port.
    pub const TARGETS: &str = "targets";
    /// `LRU_HASH` of [`TranslationKey`](crate::TranslationKey) to [`Endpoint`](crate::Endpoint): what
    /// the task sees instead of the client.
    pub const XLAT_IN: &str = "xlat_in";
    /// `LRU_HASH` of [`FlowKey`](crate::FlowKey), as the task sees it, to
    /// [`Endpoint`](crate::Endpoint): the client.
    pub const XLAT_OUT: &str = "xlat_out";
    /// `LRU_HASH` of [`FlowKey`](crate::FlowKey) to `u64`, the time: which targets of other tasks the
    /// tasks here have asked over UDP and SCTP, each asker in the client's place.
    pub const ASKED: &str = "asked";
    /// `ARRAY` with one [`TraceFilter`](crate::TraceFilter).
    pub const TRACE: &str = "trace";
    /// `PERCPU_ARRAY` with one [`TraceCpu`](crate::TraceCpu).
    pub const TRACE_CPU: &str = "trace_cpu";
    /// `RINGBUF` of [`TraceEvent`](crate::TraceEvent)s, which one agent at a time reads.
    pub const TRACE_EVENTS: &str = "trace_events";
    /// `HASH` of a network namespace's cookie (`u64`) to [`SocketScope`](crate::SocketScope).
    pub const SOCK_SCOPE: &str = "sock_scope";
    /// `HASH` of [`SocketService`](crate::SocketService) to [`SocketTarget`](crate::SocketTarget).
    pub const SOCK_SERVICE: &str = "sock_service";
    /// `HASH` of slot (`u64`) to its number of backends (`u32`).
    pub const SOCK_SLOT: &str = "sock_slot";
    /// `HASH` of [`SocketBackend`](crate::SocketBackend) to its [`Address`](crate::Address).
    pub const SOCK_BACKEND: &str = "sock_backend";
    /// `LRU_HASH` of [`SocketFlow`](crate::SocketFlow) to [`SocketPeer`](crate::SocketPeer).
    pub const SOCK_FLOW: &str = "sock_flow";
}

/// Entries of the maps. They bound kernel memory. Hash maps are preallocated but for those of the
/// socket programs, which grow with what is in them.
pub mod capacity {
    /// {address, port, protocol} triples: 256 node addresses times 64 ports, or one address with
    /// 16 Ki ports.
    pub const PUBLISHED: u32 = 16_384;
    /// Source ranges of all ports. Not preallocated: only what is there takes memory.
    pub const SOURCES: u32 = 16_384;
    /// Addresses of one host.
    pub const NODE_ADDRS: u32 = 1_024;
    /// Nodes of one swarm that take in published traffic.
    pub const INGRESS_MACS: u32 = 4_096;
    /// Flows towards the tasks of one host, about 16 MB. The table is an approximate LRU: keep it
    /// at four times the flows expected, a lost entry sends a reply the wrong way until the
    /// client's next packet.
    pub const FLOW: u32 = 131_072;
    /// Connections that came in through one host, two entries each, about 14 MB. An approximate
    /// LRU; a connection that is not in it goes through IPVS.
    pub const SHORTCUTS: u32 = 131_072;
    /// Packets in fragments that are under way at one time, about 1 MB. An approximate LRU: of a
    /// lost entry, the rest of one packet is lost.
    pub const FRAGMENTS: u32 = 8_192;
    /// Services with a published port: the 5,000 that a node is measured with (docs/benchmarks.md), and
    /// room. Those beyond are balanced and not counted.
    pub const SERVICE_STATS: u32 = 8_192;
    /// Reasons with a service or a task of which packets were dropped for them, about 1 MB. An
    /// approximate LRU: of a lost entry, counting starts again.
    pub const DROPS: u32 = 8_192;
    /// Tasks of one host.
    pub const TASK_PORTS: u32 = 4_096;
    /// The same.
    pub const TASK_MACS: u32 = TASK_PORTS;
    /// Published targets of all tasks of the swarm.
    pub const TARGETS: u32 = 65_536;
    /// Targets of other tasks that tasks of one host are asking over UDP and SCTP, about 2 MB. An
    /// approximate LRU: where an entry is lost, the answer is.
    pub const ASKED: u32 = 16_384;
    /// Translated flows, about 4 MB for each of the two tables. Approximate LRUs: one whose entry is
    /// lost gets another port, which resets a TCP connection.
    pub const TRANSLATIONS: u32 = 32_768;
    /// Bytes of traced packets that nobody has read yet, some 680. What does not fit is lost.
    pub const TRACE_EVENTS: u32 = 65_536;
    /// Namespaces of one host: its own and those of its tasks.
    pub const SOCK_SCOPE: u32 = 4_096;
    /// Virtual addresses, once for each different set of networks that tasks here are on, and
    /// published ports, once for each address of the node.
    pub const SOCK_SERVICE: u32 = 131_072;
    /// Services, once for each network and address family.
    pub const SOCK_SLOT: u32 = 32_768;
    /// Tasks behind them.
    pub const SOCK_BACKEND: u32 = 131_072;
    /// Translations in use by sockets of this host, two for each, about 8 MB. An approximate LRU:
    /// a socket whose entry is lost is shown the task's address instead of the one it asked for.
    pub const SOCK_FLOW: u32 = 65_536;
}

/// Nanoseconds for which a TCP flow keeps its 5-tuple after both ends have finished: Linux's
/// TIME-WAIT (`TCP_TIMEWAIT_LEN`).
pub const FLOW_CLOSED_NS: u64 = 60_000_000_000;

/// The same for a TCP flow that is open: Linux's first keep-alive (`tcp_keepalive_time`) comes
/// before. A second flow gets a port of its own meanwhile, which costs nothing.
pub const FLOW_IDLE_TCP_NS: u64 = 7_500_000_000_000;

/// The same for UDP, which has no end: IPVS's timeout of a UDP connection.
pub const FLOW_IDLE_UDP_NS: u64 = 300_000_000_000;

/// Nanoseconds for which a task's question to another one's target lets answers in.
pub const ASKED_NS: u64 = 180_000_000_000;

/// Granularity in nanoseconds of [`FlowValue::last_seen_ns`]: coarser than a packet, so that an
/// established flow does not write to a shared cache line for every packet.
pub const FLOW_SEEN_GRAIN_NS: u64 = 100_000_000;

/// Nanoseconds after which IPVS sees a packet of a TCP connection again: well below its shortest
/// timeout of an established connection, and how long a connection to a task that is gone goes on.
pub const SHORTCUT_RENEWAL_NS: u64 = 5_000_000_000;

/// The same for UDP, where clients do not notice that a task is gone.
pub const SHORTCUT_RENEWAL_UDP_NS: u64 = 500_000_000;

/// Nanoseconds after the first fragment of a packet in which the others are known by it: as long as
/// the kernel waits for them (`net.ipv4.ipfrag_time`).
pub const FRAGMENT_LIFETIME_NS: u64 = 30_000_000_000;
