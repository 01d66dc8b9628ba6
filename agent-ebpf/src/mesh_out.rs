//! `mesh_out`: tc ingress on the host end of the veth pair from the ingress namespace. A reply that
//! IPVS has given back its node address leaves by the interface that leads to the client; the
//! host's stack would drop it, because its source is a local address there.

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup, bpf_redir_neigh,
};
use aya_ebpf::helpers::{bpf_fib_lookup as fib_lookup, bpf_redirect_neigh};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{Address, Counter, TraceStep, capacity};

use crate::count::count;
use crate::mesh_uplink::CONFIG;
use crate::packet::Ipv4;
use crate::trace::{drop_for, traced};
use crate::{NEXT, headers, packet};

#[map(name = "node_addrs")]
static NODE_ADDRS: HashMap<Address, u32> = HashMap::pinned(capacity::NODE_ADDRS, 0);

/// `AF_INET` and `AF_INET6`.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Entry point.
#[classifier]
pub fn mesh_out(ctx: TcContext) -> i32 {
    let verdict = reply(&ctx).unwrap_or(NEXT);
    traced(&ctx, TraceStep::Out, verdict)
}

#[inline(always)]
fn reply(ctx: &TcContext) -> Option<i32> {
    let found = if let Some(ip) = packet::ipv4(ctx) {
        NODE_ADDRS.get_ptr(ip.source_address())?;
        route(ctx, &ip)
    } else {
        // What comes after the addresses does not matter: fragments and all protocols leave.
        let (source, destination, class_and_label) = headers::ipv6_addresses(ctx)?;
        NODE_ADDRS.get_ptr(source)?;
        route6(ctx, &source, &destination, class_and_label)
    };
    if let Some((ifindex, mut next_hop)) = found {
        // SAFETY: `next_hop` is a whole structure of the size given.
        let verdict = unsafe {
            bpf_redirect_neigh(
                ifindex,
                &raw mut next_hop,
                size_of::<bpf_redir_neigh>() as i32,
                0,
            )
        };
        return Some(verdict as i32);
    }
    let uplink = CONFIG.get(0)?.uplink_ifindex;
    if uplink == 0 {
        return Some(drop_for(Counter::OutUnroutable));
    }
    count(Counter::OutByUplink);
    // Without parameters the helper looks up a route bound to that interface.
    // SAFETY: a null pointer with length zero is the documented form.
    Some(unsafe { bpf_redirect_neigh(uplink, core::ptr::null_mut(), 0, 0) } as i32)
}

/// Interface and next hop towards the client, from the host's routing tables and rules, as for a
/// packet forwarded from here. Nothing when there is no unicast route, or when the host does not
/// forward.
#[inline(always)]
fn route(ctx: &TcContext, ip: &Ipv4) -> Option<(u32, bpf_redir_neigh)> {
    // SAFETY: all zero is a valid value of a structure of integers and unions of integers.
    let mut query: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    query.family = AF_INET;
    query.l4_protocol = ip.protocol;
    // SAFETY: the kernel gives every program a valid context.
    query.ifindex = unsafe { (*ctx.skb.skb).ifindex };
    query.__bindgen_anon_2.tos = ip.tos;
    query.__bindgen_anon_3.ipv4_src = ip.source;
    query.__bindgen_anon_4.ipv4_dst = ip.destination;
    next_hop(ctx, query)
}

/// The same for IPv6. `class_and_label` is in wire order.
#[inline(always)]
fn route6(
    ctx: &TcContext,
    source: &Address,
    destination: &Address,
    class_and_label: u32,
) -> Option<(u32, bpf_redir_neigh)> {
    // SAFETY: all zero is a valid value of a structure of integers and unions of integers.
    let mut query: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    query.family = AF_INET6;
    // SAFETY: the kernel gives every program a valid context.
    query.ifindex = unsafe { (*ctx.skb.skb).ifindex };
    query.__bindgen_anon_2.flowinfo = class_and_label;
    query.__bindgen_anon_3.ipv6_src = source.words();
    query.__bindgen_anon_4.ipv6_dst = destination.words();
    next_hop(ctx, query)
}

/// The kernel's answer to a query.
#[inline(always)]
fn next_hop(ctx: &TcContext, mut query: bpf_fib_lookup) -> Option<(u32, bpf_redir_neigh)> {
    // SAFETY: context and query are valid, the size is the query's.
    let found = unsafe {
        let size = size_of::<bpf_fib_lookup>() as i32;
        fib_lookup(ctx.skb.skb.cast(), &raw mut query, size, 0)
    };
    // Without a neighbour entry the rest of the answer holds: the redirect resolves it.
    if found != BPF_FIB_LKUP_RET_SUCCESS as i64 && found != BPF_FIB_LKUP_RET_NO_NEIGH as i64 {
        return None;
    }
    // SAFETY: as above.
    let mut next_hop: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    // SAFETY: integers in unions; the kernel has written the member that `family` names.
    unsafe {
        if query.family == AF_INET6 {
            next_hop.nh_family = u32::from(AF_INET6);
            next_hop.__bindgen_anon_1.ipv6_nh = query.__bindgen_anon_4.ipv6_dst;
        } else {
            next_hop.nh_family = u32::from(AF_INET);
            next_hop.__bindgen_anon_1.ipv4_nh = query.__bindgen_anon_4.ipv4_dst;
        }
    }
    Some((query.ifindex, next_hop))
}
