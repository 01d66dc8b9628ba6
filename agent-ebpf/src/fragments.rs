//! The fragments under way. The first one of a packet has the ports; the others are known by it.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use swarm_ebpf_common::{
    Address, Counter, FRAGMENT_LIFETIME_NS, FragmentKey, FragmentValue, capacity,
};

use crate::count::count;

#[map(name = "fragments")]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentValue> =
    LruHashMap::pinned(capacity::FRAGMENTS, 0);

/// Remembers a packet by its first fragment. `value` gets the time.
#[inline(always)]
pub fn remember(key: &FragmentKey, value: impl FnOnce(u64) -> FragmentValue) {
    // SAFETY: a helper without arguments.
    let value = value(unsafe { bpf_ktime_get_coarse_ns() });
    // Refused, the rest of this packet is not recognised, and counted then.
    let _ = FRAGMENTS.insert(key, value, u64::from(BPF_ANY));
}

/// Forgets an earlier packet with the same key: this one goes elsewhere.
#[inline(always)]
pub fn forget(key: &FragmentKey) {
    let _ = FRAGMENTS.remove(key);
}

/// What a later fragment of a translated packet gets as its client's address; nothing when that
/// stays.
#[inline(always)]
pub fn translated(key: &FragmentKey) -> Option<Address> {
    // SAFETY: plain integers; an entry replaced meanwhile belongs to a packet with the same key.
    let value = unsafe { FRAGMENTS.get(key) }?;
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    let fresh = now_ns.saturating_sub(value.seen_ns) <= FRAGMENT_LIFETIME_NS;
    (fresh && value.client != Address::UNSPECIFIED_V6).then_some(value.client)
}

/// The packet that a later fragment belongs to.
#[inline(always)]
pub fn known(key: &FragmentKey) -> Option<FragmentValue> {
    // SAFETY: plain integers; an entry replaced meanwhile belongs to a packet with the same key.
    if let Some(value) = unsafe { FRAGMENTS.get(key) } {
        // SAFETY: a helper without arguments.
        let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
        if now_ns.saturating_sub(value.seen_ns) <= FRAGMENT_LIFETIME_NS {
            return Some(*value);
        }
    }
    count(Counter::Fragments);
    None
}
