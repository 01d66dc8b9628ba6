//! `flow_return`: tc ingress on the host side of a task's veth. An answer to a client that came
//! through the mesh goes back to the ingress node it came through; everything else takes the
//! ordinary way out.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{Counter, FlowKey, flow_state};

use crate::count::count;
use crate::flow_learn::{FLOW, closing};
use crate::packet::tcp;
use crate::{NEXT, packet};

/// Entry point.
#[classifier]
pub fn flow_return(ctx: TcContext) -> i32 {
    answer(&ctx).unwrap_or(NEXT)
}

#[inline(always)]
fn answer(ctx: &TcContext) -> Option<i32> {
    let ip = packet::ipv4(ctx)?;
    let ports = packet::ports(ctx, &ip)?;
    let key = FlowKey::from_wire(
        (ip.destination_address(), ports.destination),
        (ip.source_address(), ports.source),
        ip.protocol,
    );
    let flow = FLOW.get_ptr_mut(key)?;
    // SAFETY: the map owns the value. The address in it changes only by replacement of the whole
    // value; the state is one aligned integer, and a lost update of it costs a new flow on the
    // same 5-tuple one second.
    let mac = unsafe {
        if ports.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
            (*flow).state |= closing(ports.tcp_flags, flow_state::TASK_FIN);
        }
        (*flow).mac
    };
    if ctx.store(0, &mac, 0).is_err() {
        // The way out it would take otherwise masquerades it: of no use to the client.
        count(Counter::ReturnFailed);
        return Some(TC_ACT_SHOT);
    }
    Some(NEXT)
}
