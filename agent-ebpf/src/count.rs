//! Counters by event.

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use swarm_ebpf_common::Counter;

#[map(name = "counters")]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(Counter::COUNT, 0);

/// Adds one to `counter` on this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the map owns the value and it belongs to this CPU, on which a tc program is not
        // preempted by another.
        unsafe { *value += 1 };
    }
}
