//! Counters by event; of drops also by whose packets they were.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruPerCpuHashMap, PerCpuArray};
use swarm_ebpf_common::{Counter, DropKey, capacity};

#[map(name = "counters")]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(Counter::COUNT, 0);

#[map(name = "drops")]
static DROPS: LruPerCpuHashMap<DropKey, u64> = LruPerCpuHashMap::pinned(capacity::DROPS, 0);

/// Adds one to `counter` on this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the map owns the value and it belongs to this CPU, on which a tc program is not
        // preempted by another.
        unsafe { *value += 1 };
    }
}

/// As [`count`], and of the service or task that [`DropKey`] means by `of`. Out of line: what is
/// dropped may cost more.
#[inline(never)]
pub fn count_of(counter: Counter, of: u32) {
    count(counter);
    let key = DropKey::new(counter, of);
    if let Some(value) = DROPS.get_ptr_mut(key) {
        // SAFETY: as above.
        unsafe { *value += 1 };
    } else {
        // Refused when another CPU was first, or there is no room: then this one is not counted.
        let _ = DROPS.insert(key, 1, u64::from(BPF_NOEXIST));
    }
}
