//! What the programs count.

/// Requests of one service that this node took in.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceStats {
    /// Packets on the wire: the segments of a merged (GRO) packet count one by one.
    pub packets: u64,
    /// Bytes including the Ethernet header; the headers of merged segments count once.
    pub bytes: u64,
}

const _: () = assert!(size_of::<ServiceStats>() == 16);

// SAFETY: `repr(C)`, two `u64`, no padding; every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for ServiceStats {}

/// Key of the map `drops`: why packets were dropped or refused, and whose they were.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DropKey {
    counter: u32,
    of: u32,
}

impl DropKey {
    /// `of` is a service's index for those of [`Counter::OF_SERVICES`], and the interface index of a
    /// task's port for those of [`Counter::OF_TASKS`].
    #[inline(always)]
    pub const fn new(counter: Counter, of: u32) -> Self {
        Self {
            counter: counter as u32,
            of,
        }
    }

    /// Both parts; nothing where another build counted what this one does not know.
    pub fn parts(&self) -> Option<(Counter, u32)> {
        let counter = Counter::ALL.get(self.counter as usize)?;
        Some((*counter, self.of))
    }
}

const _: () = assert!(size_of::<DropKey>() == 8);

// SAFETY: `repr(C)`, two `u32`, no padding; every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for DropKey {}

/// Index into the map `counters`. Only what is rare or new is counted: nothing here costs an
/// established flow anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Counter {
    /// `mesh_uplink`: a published port, but `config` names no interface to hand the packet to.
    UplinkUnconfigured = 0,
    /// `mesh_out`: no route for a reply, sent over the default uplink.
    OutByUplink = 1,
    /// `mesh_out`: no route for a reply and no default uplink, dropped.
    OutUnroutable = 2,
    /// `flow_learn`: a new flow.
    FlowLearned = 3,
    /// `flow_learn`: a known flow now comes through another ingress node.
    FlowMoved = 4,
    /// `flow_learn`: the flow table refused an entry.
    FlowRefused = 5,
    /// `flow_learn`: two ingress nodes brought the same client 5-tuple at the same time.
    Collisions = 6,
    /// `flow_return`: the destination MAC address could not be written, dropped.
    ReturnFailed = 7,
    /// `mesh_uplink`, `flow_return`: a fragment that came before the first of its packet, or long
    /// after it; passed through untouched.
    Fragments = 8,
    /// Any program: headers cut short or nonsensical, passed through untouched.
    Malformed = 9,
    /// `mesh_uplink`: a client outside the source ranges of a published port, dropped.
    SourceRefused = 10,
    /// Socket programs: asked for a service that has no ready task, refused.
    SocketNoBackend = 11,
    /// Any program: more IPv6 extension headers than are skipped, passed through untouched.
    Extensions = 12,
    /// Ingress network: a task sent under another address than its own, dropped.
    Spoofed = 13,
    /// Ingress network: from task to task, and not about a published target, dropped.
    Isolated = 14,
    /// `flow_learn`: a flow got another port, or address and port, for its task.
    Translated = 15,
    /// `flow_learn`, `flow_return`: no port was free for a flow that needs another one, or what it
    /// was translated from is forgotten, dropped.
    TranslationFailed = 16,
    /// `mesh_uplink`: a published port that no task answers on this node, left to the ingress
    /// namespace to refuse.
    NoTask = 17,
}

impl Counter {
    /// Entries of the map `counters`.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// All of them, by index.
    pub const ALL: [Self; 18] = [
        Self::UplinkUnconfigured,
        Self::OutByUplink,
        Self::OutUnroutable,
        Self::FlowLearned,
        Self::FlowMoved,
        Self::FlowRefused,
        Self::Collisions,
        Self::ReturnFailed,
        Self::Fragments,
        Self::Malformed,
        Self::SourceRefused,
        Self::SocketNoBackend,
        Self::Extensions,
        Self::Spoofed,
        Self::Isolated,
        Self::Translated,
        Self::TranslationFailed,
        Self::NoTask,
    ];

    /// Those that are counted by service as well.
    pub const OF_SERVICES: [Self; 2] = [Self::SourceRefused, Self::NoTask];

    /// Those that are counted by task as well.
    pub const OF_TASKS: [Self; 4] = [
        Self::Spoofed,
        Self::Isolated,
        Self::TranslationFailed,
        Self::ReturnFailed,
    ];

    /// The name under which it is shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UplinkUnconfigured => "uplink_unconfigured",
            Self::OutByUplink => "out_by_uplink",
            Self::OutUnroutable => "out_unroutable",
            Self::FlowLearned => "flow_learned",
            Self::FlowMoved => "flow_moved",
            Self::FlowRefused => "flow_refused",
            Self::Collisions => "collisions",
            Self::ReturnFailed => "return_failed",
            Self::Fragments => "fragments",
            Self::Malformed => "malformed",
            Self::SourceRefused => "source_refused",
            Self::SocketNoBackend => "socket_no_backend",
            Self::Extensions => "extensions",
            Self::Spoofed => "spoofed",
            Self::Isolated => "isolated",
            Self::Translated => "translated",
            Self::TranslationFailed => "translation_failed",
            Self::NoTask => "no_task",
        }
    }
}
