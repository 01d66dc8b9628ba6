//! `mesh_uplink`: tc ingress on an uplink. A packet for a published port goes straight into the
//! ingress namespace; the host's stack and its netfilter rules never see it.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, TC_ACT_SHOT};
use aya_ebpf::helpers::bpf_redirect_peer;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, PerCpuHashMap};
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{
    Config, Counter, PublishedKey, PublishedValue, ServiceStats, SourceKey, capacity,
    published_flag,
};

use crate::count::count;
use crate::{NEXT, packet};

#[map(name = "config")]
pub static CONFIG: Array<Config> = Array::pinned(1, 0);

#[map(name = "published")]
static PUBLISHED: HashMap<PublishedKey, PublishedValue> = HashMap::pinned(capacity::PUBLISHED, 0);

#[map(name = "sources")]
static SOURCES: LpmTrie<SourceKey, u32> = LpmTrie::pinned(capacity::SOURCES, BPF_F_NO_PREALLOC);

#[map(name = "service_stats")]
static SERVICE_STATS: PerCpuHashMap<u32, ServiceStats> =
    PerCpuHashMap::pinned(capacity::SERVICE_STATS, 0);

/// The 12 bits of a VLAN's number.
const VLAN_ID: u32 = 0x0fff;

/// Entry point.
#[classifier]
pub fn mesh_uplink(ctx: TcContext) -> i32 {
    published(&ctx).unwrap_or(NEXT)
}

#[inline(always)]
fn published(ctx: &TcContext) -> Option<i32> {
    let skb = ctx.skb.skb;
    // A tagged frame belongs to the VLAN's own interface, where this program sees it again.
    // SAFETY: the kernel gives every program a valid context.
    if unsafe { (*skb).vlan_present != 0 && (*skb).vlan_tci & VLAN_ID != 0 } {
        return None;
    }
    let ip = packet::ipv4(ctx)?;
    let ports = packet::ports(ctx, &ip)?;
    let key = PublishedKey::from_wire(ip.destination_address(), ports.destination, ip.protocol);
    // SAFETY: the value is plain integers; an entry replaced meanwhile is as good.
    let entry = unsafe { PUBLISHED.get(key) }?;
    let (service, flags) = (entry.service, entry.flags);
    // Before anything else is spent on it, and before the balancer makes a connection of it.
    if flags & published_flag::SOURCES != 0 {
        let client = SourceKey::from_wire(ports.destination, ip.protocol, ip.source_address());
        if SOURCES.get(Key::new(SourceKey::BITS, client)).is_none() {
            count(Counter::SourceRefused);
            return Some(TC_ACT_SHOT);
        }
    }
    let e1h = CONFIG.get(0)?.e1h_ifindex;
    if e1h == 0 {
        count(Counter::UplinkUnconfigured);
        return None;
    }
    count_request(ctx, service);
    // SAFETY: a helper without pointers.
    Some(unsafe { bpf_redirect_peer(e1h, 0) } as i32)
}

#[inline(always)]
fn count_request(ctx: &TcContext, service: u32) {
    let stats = SERVICE_STATS.get_ptr_mut(service).or_else(|| {
        // Refused when another CPU was first, or when the table is full: then it is not counted.
        let _ = SERVICE_STATS.insert(
            service,
            ServiceStats {
                packets: 0,
                bytes: 0,
            },
            NOEXIST,
        );
        SERVICE_STATS.get_ptr_mut(service)
    });
    if let Some(stats) = stats {
        // SAFETY: the kernel gives every program a valid context; the map owns the value and it
        // belongs to this CPU.
        unsafe {
            let segments = (*ctx.skb.skb).gso_segs;
            (*stats).packets += if segments == 0 {
                1
            } else {
                u64::from(segments)
            };
            (*stats).bytes += u64::from(ctx.len());
        }
    }
}

/// Insert only.
const NOEXIST: u64 = aya_ebpf::bindings::BPF_NOEXIST as u64;
