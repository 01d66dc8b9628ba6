//! `mesh_uplink`: tc ingress on an uplink. A packet for a published port goes straight into the
//! ingress namespace; the host's stack and its netfilter rules never see it.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, TC_ACT_SHOT};
use aya_ebpf::helpers::bpf_redirect_peer;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, PerCpuHashMap};
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{
    Address, Config, Counter, FragmentValue, PublishedKey, PublishedValue, ServiceStats, SourceKey,
    TraceStep, capacity, published_flag,
};

use crate::count::{count, count_of};
use crate::headers::{Headers, Part};
use crate::trace::{drop_of, traced};
use crate::{NEXT, fragments, headers, packet, tunnel};

#[map(name = "config")]
pub static CONFIG: Array<Config> = Array::pinned(1, 0);

#[map(name = "published")]
static PUBLISHED: HashMap<PublishedKey, PublishedValue> = HashMap::pinned(capacity::PUBLISHED, 0);

#[map(name = "sources")]
static SOURCES: LpmTrie<SourceKey, u32> = LpmTrie::pinned(capacity::SOURCES, BPF_F_NO_PREALLOC);

#[map(name = "service_stats")]
static SERVICE_STATS: PerCpuHashMap<u32, ServiceStats> =
    PerCpuHashMap::pinned(capacity::SERVICE_STATS, 0);

/// UDP port of VXLAN (IANA), in wire order.
const VXLAN_PORT: u16 = 4789_u16.to_be();

/// The 12 bits of a VLAN's number.
const VLAN_ID: u32 = 0x0fff;

/// Entry point.
#[classifier]
pub fn mesh_uplink(ctx: TcContext) -> i32 {
    let verdict = published(&ctx).unwrap_or(NEXT);
    traced(&ctx, TraceStep::Uplink, verdict)
}

#[inline(always)]
fn published(ctx: &TcContext) -> Option<i32> {
    let skb = ctx.skb.skb;
    // A tagged frame belongs to the VLAN's own interface, where this program sees it again.
    // SAFETY: the kernel gives every program a valid context.
    if unsafe { (*skb).vlan_present != 0 && (*skb).vlan_tci & VLAN_ID != 0 } {
        return None;
    }
    let found = if let Some(ip) = packet::ipv4(ctx) {
        if let Some(ports) = packet::ports(ctx, &ip) {
            // What most packets of a node are: the tunnel's own. Nobody can publish its port.
            if ip.protocol == packet::PROTOCOL_UDP && ports.destination == VXLAN_PORT {
                return tunnel::arrived(ctx);
            }
            let (client, address) = (ip.source_address(), ip.destination_address());
            request(client, address, ports.destination, ip.protocol)
        } else {
            of_headers(ctx, &ip.headers())
        }
    } else {
        of_headers(ctx, &headers::ipv6(ctx)?)
    };
    if found == NOT_PUBLISHED {
        return None;
    }
    if found == REFUSED {
        return Some(TC_ACT_SHOT);
    }
    let service = found as u32;
    let e1h = CONFIG.get(0)?.e1h_ifindex;
    if e1h == 0 {
        count(Counter::UplinkUnconfigured);
        return None;
    }
    count_request(ctx, service);
    // SAFETY: a helper without pointers.
    Some(unsafe { bpf_redirect_peer(e1h, 0) } as i32)
}

/// What a packet can be instead of a request for the service of an index, which is no less than zero.
/// One integer, because Linux 6.1 refuses a program that copies what an enum leaves open.
const NOT_PUBLISHED: i64 = -1;
const REFUSED: i64 = -2;

/// The service that a request of `client` to a port is for, or one of the above.
#[inline(always)]
fn request(client: Address, address: Address, port: u16, protocol: u8) -> i64 {
    let Some((service, flags)) = entry(address, port, protocol) else {
        return NOT_PUBLISHED;
    };
    // Before anything else is spent on it, and before the balancer makes a connection of it.
    if flags & published_flag::SOURCES != 0 {
        let client = SourceKey::from_wire(port, protocol, client);
        if SOURCES.get(Key::new(SourceKey::BITS, client)).is_none() {
            drop_of(Counter::SourceRefused, service);
            return REFUSED;
        }
    }
    if flags & published_flag::NO_TASK != 0 {
        count_of(Counter::NoTask, service);
    }
    i64::from(service)
}

/// Service and flags of a published port.
#[inline(always)]
fn entry(address: Address, port: u16, protocol: u8) -> Option<(u32, u32)> {
    let key = PublishedKey::from_wire(address, port, protocol);
    // SAFETY: the value is plain integers; an entry replaced meanwhile is as good.
    let entry = unsafe { PUBLISHED.get(key) }?;
    Some((entry.service, entry.flags))
}

/// As [`request`], of any other packet.
#[inline(always)]
fn of_headers(ctx: &TcContext, headers: &Headers) -> i64 {
    if headers.part == Part::Later {
        let known = fragments::known(&headers.fragment_key());
        return known.map_or(NOT_PUBLISHED, |known| i64::from(known.service));
    }
    let Some(ports) = headers.ports(ctx) else {
        return error(ctx, headers).map_or(NOT_PUBLISHED, i64::from);
    };
    let (client, address) = (headers.source, headers.destination);
    let found = request(client, address, ports.destination, headers.protocol);
    if headers.part == Part::First {
        let key = headers.fragment_key();
        if found >= 0 {
            fragments::remember(&key, |now_ns| FragmentValue::request(now_ns, found as u32));
        } else {
            fragments::forget(&key);
        }
    }
    found
}

/// The service of an answer that has left from a published port, where the packet is an error about
/// one: IPVS knows whose it was.
#[inline(always)]
fn error(ctx: &TcContext, headers: &Headers) -> Option<u32> {
    let answer = headers.subject(ctx)?;
    if answer.source != headers.destination {
        return None;
    }
    let (service, _) = entry(answer.source, answer.ports.0, answer.protocol)?;
    Some(service)
}

/// The counters of a service on this CPU.
#[inline(always)]
fn stats(service: u32) -> Option<*mut ServiceStats> {
    SERVICE_STATS.get_ptr_mut(service).or_else(|| {
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
    })
}

#[inline(always)]
fn count_request(ctx: &TcContext, service: u32) {
    if let Some(stats) = stats(service) {
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
