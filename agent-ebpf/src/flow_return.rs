//! `flow_return`: tc ingress on the host side of a task's veth. An answer to a client that came
//! through the mesh goes back to the ingress node it came through, straight by the tunnel; everything else takes the
//! ordinary way out.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{Counter, FlowKey, FragmentValue, Mac, flow_state};

use crate::count::count;
use crate::flow_learn::{FLOW, closing};
use crate::headers::{Headers, Part};
use crate::mesh_uplink::CONFIG;
use crate::packet::tcp;
use crate::{NEXT, fragments, headers, isolation, packet};

/// Entry point.
#[classifier]
pub fn flow_return(ctx: TcContext) -> i32 {
    if !isolation::may_send(&ctx) {
        return TC_ACT_SHOT;
    }
    answer(&ctx).unwrap_or(NEXT)
}

#[inline(always)]
fn answer(ctx: &TcContext) -> Option<i32> {
    let mac = if let Some(ip) = packet::ipv4(ctx) {
        if let Some(ports) = packet::ports(ctx, &ip) {
            let key = FlowKey::from_wire(
                (ip.destination_address(), ports.destination),
                (ip.source_address(), ports.source),
                ip.protocol,
            );
            through(&key, ports.tcp_flags)?
        } else {
            of_headers(ctx, &ip.headers())?
        }
    } else {
        of_headers(ctx, &headers::ipv6(ctx)?)?
    };
    if ctx.store(0, &mac, 0).is_err() {
        // The way out it would take otherwise masquerades it: of no use to the client.
        count(Counter::ReturnFailed);
        return Some(TC_ACT_SHOT);
    }
    let config = CONFIG.get(0)?;
    if config.vxlan_ifindex == 0 || config.mac == Mac::new(mac) {
        return Some(NEXT);
    }
    // To another node: the bridge would do the same.
    // SAFETY: a helper without pointers.
    Some(unsafe { bpf_redirect(config.vxlan_ifindex, 0) } as i32)
}

/// MAC address of the ingress node that a flow came through, noting the flags of an answer.
#[inline(always)]
fn through(key: &FlowKey, tcp_flags: u8) -> Option<[u8; 6]> {
    let flow = FLOW.get_ptr_mut(key)?;
    // SAFETY: the map owns the value. The address in it changes only by replacement of the whole
    // value; the state is one aligned integer, and a lost update of it costs a new flow on the
    // same 5-tuple one second.
    unsafe {
        if tcp_flags & (tcp::FIN | tcp::RST) != 0 {
            (*flow).state |= closing(tcp_flags, flow_state::TASK_FIN);
        }
        Some((*flow).mac)
    }
}

/// MAC address of the ingress node that any other packet has to go to.
#[inline(always)]
fn of_headers(ctx: &TcContext, headers: &Headers) -> Option<[u8; 6]> {
    if headers.part == Part::Later {
        return Some(fragments::known(&headers.fragment_key())?.mac);
    }
    if let Some(ports) = headers.ports(ctx) {
        let key = FlowKey::from_wire(
            (headers.destination, ports.destination),
            (headers.source, ports.source),
            headers.protocol,
        );
        let mac = through(&key, ports.tcp_flags);
        if headers.part == Part::First {
            let key = headers.fragment_key();
            match mac {
                Some(mac) => {
                    fragments::remember(&key, |now_ns| FragmentValue::answer(now_ns, mac));
                }
                None => fragments::forget(&key),
            }
        }
        return mac;
    }
    // The task's error about a request: IPVS on that node knows what the client had asked.
    let request = headers.subject(ctx)?;
    let key = FlowKey::from_wire(
        (request.source, request.ports.0),
        (request.destination, request.ports.1),
        request.protocol,
    );
    through(&key, 0)
}
