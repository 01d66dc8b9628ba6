//! `flow_learn`: tc egress on the host side of a task's veth. Remembers through which ingress node
//! a client's packets come, so that `flow_return` can send the task's answers back there. What is not an established flow
//! that the task sees as it is, is for [`translation`].

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::{HashMap, LruHashMap};
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{
    FLOW_SEEN_GRAIN_NS, FlowKey, FlowValue, Mac, TraceStep, capacity, flow_state,
};

use crate::packet::{Ports, tcp};
use crate::shortcut_learn::remember;
use crate::trace::traced;
use crate::{NEXT, isolation, packet, translation};

#[map(name = "ingress_macs")]
pub static INGRESS_MACS: HashMap<Mac, u32> = HashMap::pinned(capacity::INGRESS_MACS, 0);

#[map(name = "flow")]
pub static FLOW: LruHashMap<FlowKey, FlowValue> = LruHashMap::pinned(capacity::FLOW, 0);

/// Entry point.
#[classifier]
pub fn flow_learn(ctx: TcContext) -> i32 {
    remember(&ctx);
    // SAFETY: the kernel gives every program a valid context.
    let port = unsafe { (*ctx.skb.skb).ifindex };
    let verdict = match learn(&ctx, port) {
        Some(verdict) => verdict,
        None if isolation::may_receive(ctx.skb.skb) => NEXT,
        None => TC_ACT_SHOT,
    };
    traced(&ctx, TraceStep::ToTask, verdict)
}

/// Remembers the way of a client's packet to the task behind `port`, translating it where it needs
/// that. Gives the verdict; nothing when no ingress node has sent it.
#[inline(always)]
pub fn learn(ctx: &TcContext, port: u32) -> Option<i32> {
    if established(ctx, port).is_some() {
        return Some(NEXT);
    }
    let mac = packet::source_mac(ctx)?;
    INGRESS_MACS.get_ptr(Mac::new(mac))?;
    Some(translation::inward(ctx.skb.skb, port))
}

/// Looks whether a packet is of an established IPv4 flow that the task sees as it is, refreshing it.
/// It has been learned from an ingress node, so that nothing else is asked.
#[inline(always)]
fn established(ctx: &TcContext, port: u32) -> Option<()> {
    let ip = packet::ipv4(ctx)?;
    let ports = packet::ports(ctx, &ip)?;
    let key = FlowKey::from_wire(
        (ip.source_address(), ports.source),
        (ip.destination_address(), ports.destination),
        ip.protocol,
    );
    let known = FLOW.get_ptr_mut(key)?;
    // SAFETY: the map owns the value. Other CPUs may write to it in place, but only whole aligned
    // integers (`refresh`, and `flow_return`'s state); the address changes only by replacement.
    let known = unsafe { &mut *known };
    refreshed(ctx, known, &ports, port)
}

/// Refreshes a flow that goes on as it was, seen by the task as it is; nothing where it does not.
#[inline(always)]
pub fn refreshed(ctx: &TcContext, known: &mut FlowValue, ports: &Ports, port: u32) -> Option<()> {
    let mac = packet::source_mac(ctx)?;
    let same = known.mac == mac && known.ifindex == port && known.is_native();
    if !same || ports.tcp_flags & tcp::SYN != 0 {
        return None;
    }
    // SAFETY: a helper without arguments.
    refresh(known, ports, unsafe { bpf_ktime_get_coarse_ns() });
    Some(())
}

/// Notes on a known flow: the time, coarsely, and the end of a TCP connection.
#[inline(always)]
pub fn refresh(known: &mut FlowValue, ports: &Ports, now_ns: u64) {
    if now_ns.saturating_sub(known.last_seen_ns) > FLOW_SEEN_GRAIN_NS {
        known.last_seen_ns = now_ns;
    }
    if ports.tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0 {
        if ports.tcp_flags & tcp::SYN != 0 {
            known.state = 0;
        } else {
            known.state |= closing(ports.tcp_flags, flow_state::CLIENT_FIN);
        }
    }
}

/// The bits that TCP flags add to a flow's state; `fin` is the bit of the end that sent them.
#[inline(always)]
pub fn closing(tcp_flags: u8, fin: u16) -> u16 {
    let finished = if tcp_flags & tcp::FIN != 0 { fin } else { 0 };
    let reset = if tcp_flags & tcp::RST != 0 {
        flow_state::RESET
    } else {
        0
    };
    finished | reset
}
