//! `mesh_out`: tc ingress on the host end of the veth pair from the ingress namespace. A reply that
//! IPVS has given back its node address leaves by the interface that leads to the client; the
//! host's stack would drop it, because its source is a local address there.

use aya_ebpf::helpers::bpf_redirect_neigh;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{Address, Counter, TraceStep, capacity};

use crate::count::count;
use crate::mesh_uplink::CONFIG;
use crate::route::Query;
use crate::trace::{drop_for, traced};
use crate::{NEXT, headers, packet, route};

#[map(name = "node_addrs")]
static NODE_ADDRS: HashMap<Address, u32> = HashMap::pinned(capacity::NODE_ADDRS, 0);

/// Entry point.
#[classifier]
pub fn mesh_out(ctx: TcContext) -> i32 {
    let verdict = reply(&ctx).unwrap_or(NEXT);
    traced(&ctx, TraceStep::Out, verdict)
}

#[inline(always)]
fn reply(ctx: &TcContext) -> Option<i32> {
    let sent = if let Some(ip) = packet::ipv4(ctx) {
        let source = ip.source_address();
        NODE_ADDRS.get_ptr(source)?;
        let query = Query::ipv4(source, ip.destination_address(), ip.tos, ip.protocol);
        route::send(ctx, &query)
    } else {
        // What comes after the addresses does not matter: fragments and all protocols leave.
        let (source, destination, class_and_label) = headers::ipv6_addresses(ctx)?;
        NODE_ADDRS.get_ptr(source)?;
        route::send(ctx, &Query::ipv6(source, destination, class_and_label))
    };
    if sent.is_some() {
        return sent;
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
