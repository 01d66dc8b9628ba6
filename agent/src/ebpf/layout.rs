//! What the pinned maps must look like, and what to do with one that another version of the agent
//! has left behind in another shape.

use std::fs;
use std::path::Path;

use aya::maps::lpm_trie::Key;
use aya::maps::{MapInfo, MapType};
use swarm_ebpf_common::{
    Address, Config, Counter, DropKey, Endpoint, FlowKey, FlowValue, FragmentKey, FragmentValue,
    Mac, PublishedKey, PublishedValue, ServiceStats, ShortcutDraft, ShortcutKey, ShortcutValue,
    SocketBackend, SocketFlow, SocketPeer, SocketScope, SocketService, SocketTarget, SourceKey,
    TaskPort, TraceCpu, TraceFilter, TranslationKey, capacity, map,
};

use super::MeshError;

/// The shape of a map. `agent-ebpf` declares the same; a test compares the two.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) name: &'static str,
    map_type: MapType,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// All maps of the object.
pub(super) const LAYOUTS: [Layout; 26] = [
    Layout::of::<PublishedKey, PublishedValue>(map::PUBLISHED, MapType::Hash, capacity::PUBLISHED),
    Layout::of::<Key<SourceKey>, u32>(map::SOURCES, MapType::LpmTrie, capacity::SOURCES),
    Layout::of::<u32, Config>(map::CONFIG, MapType::Array, 1),
    Layout::of::<Address, u32>(map::NODE_ADDRS, MapType::Hash, capacity::NODE_ADDRS),
    Layout::of::<Mac, u32>(map::INGRESS_MACS, MapType::Hash, capacity::INGRESS_MACS),
    Layout::of::<FlowKey, FlowValue>(map::FLOW, MapType::LruHash, capacity::FLOW),
    Layout::of::<ShortcutKey, ShortcutValue>(map::SHORTCUTS, MapType::LruHash, capacity::SHORTCUTS),
    Layout::of::<u32, ShortcutDraft>(map::SHORTCUT_DRAFT, MapType::PerCpuArray, 1),
    Layout::of::<FragmentKey, FragmentValue>(map::FRAGMENTS, MapType::LruHash, capacity::FRAGMENTS),
    Layout::of::<u32, ServiceStats>(
        map::SERVICE_STATS,
        MapType::PerCpuHash,
        capacity::SERVICE_STATS,
    ),
    Layout::of::<u32, u64>(map::COUNTERS, MapType::PerCpuArray, Counter::COUNT),
    Layout::of::<DropKey, u64>(map::DROPS, MapType::LruPerCpuHash, capacity::DROPS),
    Layout::of::<u32, TaskPort>(map::TASK_PORTS, MapType::Hash, capacity::TASK_PORTS),
    Layout::of::<Mac, u32>(map::TASK_MACS, MapType::Hash, capacity::TASK_MACS),
    Layout::of::<PublishedKey, u32>(map::TARGETS, MapType::Hash, capacity::TARGETS),
    Layout::of::<FlowKey, u64>(map::ASKED, MapType::LruHash, capacity::ASKED),
    Layout::of::<TranslationKey, Endpoint>(map::XLAT_IN, MapType::LruHash, capacity::TRANSLATIONS),
    Layout::of::<FlowKey, Endpoint>(map::XLAT_OUT, MapType::LruHash, capacity::TRANSLATIONS),
    Layout::of::<u32, TraceFilter>(map::TRACE, MapType::Array, 1),
    Layout::of::<u32, TraceCpu>(map::TRACE_CPU, MapType::PerCpuArray, 1),
    Layout::of::<(), ()>(map::TRACE_EVENTS, MapType::RingBuf, capacity::TRACE_EVENTS),
    Layout::of::<u64, SocketScope>(map::SOCK_SCOPE, MapType::Hash, capacity::SOCK_SCOPE),
    Layout::of::<SocketService, SocketTarget>(
        map::SOCK_SERVICE,
        MapType::Hash,
        capacity::SOCK_SERVICE,
    ),
    Layout::of::<u64, u32>(map::SOCK_SLOT, MapType::Hash, capacity::SOCK_SLOT),
    Layout::of::<SocketBackend, Address>(map::SOCK_BACKEND, MapType::Hash, capacity::SOCK_BACKEND),
    Layout::of::<SocketFlow, SocketPeer>(map::SOCK_FLOW, MapType::LruHash, capacity::SOCK_FLOW),
];

impl Layout {
    const fn of<K, V>(name: &'static str, map_type: MapType, max_entries: u32) -> Self {
        Self {
            name,
            map_type,
            key_size: size_of::<K>() as u32,
            value_size: size_of::<V>() as u32,
            max_entries,
        }
    }

    /// Whether a map in the kernel has this shape.
    pub(super) fn fits(&self, info: &MapInfo) -> bool {
        info.map_type()
            .is_ok_and(|map_type| map_type == self.map_type)
            && info.key_size() == self.key_size
            && info.value_size() == self.value_size
            && info.max_entries() == self.max_entries
    }
}

/// Unpins every map under `directory` whose shape is not today's, so that loading makes it anew.
/// Programs still attached keep the old map until they are replaced. Gives the names.
pub(super) fn discard_misfits(directory: &Path) -> Result<Vec<&'static str>, MeshError> {
    let mut discarded = Vec::new();
    for layout in LAYOUTS {
        let path = directory.join(layout.name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path).map_err(|source| MeshError::InspectPin {
            path: path.clone(),
            source,
        })?;
        if layout.fits(&info) {
            continue;
        }
        tracing::warn!(
            map = layout.name,
            ?info,
            "a pinned map is from another version of the agent: starting with an empty one"
        );
        fs::remove_file(&path).map_err(|source| MeshError::RemovePin { path, source })?;
        discarded.push(layout.name);
    }
    Ok(discarded)
}
