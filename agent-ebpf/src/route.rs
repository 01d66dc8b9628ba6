//! The ways to clients, from the host's routing tables and rules. Asking the kernel costs more than the
//! rest of a program, so that each CPU remembers some answers, each for [`LIFETIME_NS`].

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup, bpf_redir_neigh,
};
use aya_ebpf::helpers::{
    bpf_fib_lookup as fib_lookup, bpf_ktime_get_coarse_ns, bpf_redirect_neigh,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::Address;

/// For how long an answer is used: a change of the host's routes is followed that late.
const LIFETIME_NS: u64 = 100_000_000;
/// Bits of a slot's number. Clients that share a slot are asked for in turn.
const SLOT_BITS: u32 = 8;

#[map(name = "routes")]
static ROUTES: PerCpuArray<Route> = PerCpuArray::with_max_entries(1 << SLOT_BITS, 0);

/// `AF_INET` and `AF_INET6`.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The traffic class in the first word of an IPv6 header. The flow label, the rest of it, differs from
/// connection to connection.
const TRAFFIC_CLASS: u32 = 0x0ff0_0000_u32.to_be();

/// What a route is chosen by.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Query {
    source: Address,
    destination: Address,
    /// IPv4: type of service. IPv6: traffic class and flow label, in wire order.
    class: u32,
    /// IPv4 only.
    protocol: u32,
}

impl Query {
    /// For an IPv4 packet.
    #[inline(always)]
    pub fn ipv4(source: Address, destination: Address, tos: u8, protocol: u8) -> Self {
        Self {
            source,
            destination,
            class: u32::from(tos),
            protocol: u32::from(protocol),
        }
    }

    /// For an IPv6 packet; `class_and_label` is the first word of its header.
    #[inline(always)]
    pub fn ipv6(source: Address, destination: Address, class_and_label: u32) -> Self {
        Self {
            source,
            destination,
            class: class_and_label & TRAFFIC_CLASS,
            protocol: 0,
        }
    }

    /// Below `1 << SLOT_BITS`.
    #[inline(always)]
    fn slot(&self) -> u32 {
        let [a, b, c, d] = self.destination.words();
        // Fibonacci hashing (Knuth, volume 3, section 6.4).
        (a ^ b ^ c ^ d).wrapping_mul(0x9e37_79b1) >> (u32::BITS - SLOT_BITS)
    }
}

/// An answer.
#[repr(C)]
struct Route {
    asked_ns: u64,
    query: Query,
    /// 0: none yet.
    ifindex: u32,
    next_hop: bpf_redir_neigh,
}

/// Sends a packet by the route of `query`, as one forwarded from the interface it is at. Gives the
/// verdict; nothing when there is no unicast route, or when the host does not forward.
#[inline(always)]
pub fn send(ctx: &TcContext, query: &Query) -> Option<i32> {
    let route = ROUTES.get_ptr_mut(query.slot())?;
    // SAFETY: the map owns the value and it belongs to this CPU.
    let route = unsafe { &mut *route };
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    let is_known = route.ifindex != 0
        && route.query == *query
        && now_ns.saturating_sub(route.asked_ns) < LIFETIME_NS;
    if !is_known {
        ask(ctx, query, route)?;
        route.query = *query;
        route.asked_ns = now_ns;
    }
    // SAFETY: `next_hop` is a whole structure of the size given.
    let verdict = unsafe {
        bpf_redirect_neigh(
            route.ifindex,
            &raw mut route.next_hop,
            size_of::<bpf_redir_neigh>() as i32,
            0,
        )
    };
    Some(verdict as i32)
}

/// Puts the kernel's answer into `route`.
#[inline(always)]
fn ask(ctx: &TcContext, query: &Query, route: &mut Route) -> Option<()> {
    // SAFETY: all zero is a valid value of a structure of integers and unions of integers.
    let mut lookup: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    // SAFETY: the kernel gives every program a valid context.
    lookup.ifindex = unsafe { (*ctx.skb.skb).ifindex };
    if let (Some(source), Some(destination)) =
        (query.source.ipv4_word(), query.destination.ipv4_word())
    {
        lookup.family = AF_INET;
        lookup.l4_protocol = query.protocol as u8;
        lookup.__bindgen_anon_2.tos = query.class as u8;
        lookup.__bindgen_anon_3.ipv4_src = source;
        lookup.__bindgen_anon_4.ipv4_dst = destination;
    } else {
        lookup.family = AF_INET6;
        lookup.__bindgen_anon_2.flowinfo = query.class;
        lookup.__bindgen_anon_3.ipv6_src = query.source.words();
        lookup.__bindgen_anon_4.ipv6_dst = query.destination.words();
    }
    // SAFETY: context and query are valid, the size is the query's.
    let found = unsafe {
        let size = size_of::<bpf_fib_lookup>() as i32;
        fib_lookup(ctx.skb.skb.cast(), &raw mut lookup, size, 0)
    };
    // Without a neighbour entry the rest of the answer holds: the redirect resolves it.
    if found != BPF_FIB_LKUP_RET_SUCCESS as i64 && found != BPF_FIB_LKUP_RET_NO_NEIGH as i64 {
        return None;
    }
    // An IPv4 packet's next hop may be an IPv6 one: the kernel has changed the family then.
    route.next_hop.nh_family = u32::from(lookup.family);
    // SAFETY: integers in unions; the kernel has written the member that `family` names, and the
    // longer one was zero.
    route.next_hop.__bindgen_anon_1.ipv6_nh = unsafe { lookup.__bindgen_anon_4.ipv6_dst };
    route.ifindex = lookup.ifindex;
    Some(())
}
