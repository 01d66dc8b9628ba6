//! `shortcut_out`: tc ingress on the ingress namespace's VXLAN device, where packets come from other
//! nodes.
//!
//! A client's packet for a task here goes straight into the task's namespace: `flow_learn` at the
//! task's port would have seen it. A task's answer that the client has asked this node for gets the
//! node's address back and goes straight to the host, where `mesh_out` takes it.

use aya_ebpf::helpers::{bpf_redirect_peer, bpf_skb_change_type};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{Mac, TraceStep, capacity, shortcut_way};

use crate::flow_learn::learn;
use crate::mesh_uplink::CONFIG;
use crate::packet::tcp;
use crate::shortcut::{SHORTCUTS, packet as read, rewrite};
use crate::trace::traced;
use crate::{NEXT, packet};

#[map(name = "task_macs")]
pub static TASK_MACS: HashMap<Mac, u32> = HashMap::pinned(capacity::TASK_MACS, 0);

/// `PACKET_HOST` (linux/if_packet.h): the packet is for the device that has it.
const PACKET_HOST: u32 = 0;

/// Entry point.
#[classifier]
pub fn shortcut_out(ctx: TcContext) -> i32 {
    let verdict = arrived(&ctx).unwrap_or(NEXT);
    traced(&ctx, TraceStep::ShortcutOut, verdict)
}

#[inline(always)]
fn arrived(ctx: &TcContext) -> Option<i32> {
    let (destination, _) = packet::macs(ctx)?;
    let is_ours = CONFIG
        .get(0)
        .is_some_and(|config| config.mac.octets == destination);
    // What is for this node as an ingress node is for no task.
    if !is_ours
        // SAFETY: the value is one integer; an entry replaced meanwhile is as good.
        && let Some(port) = unsafe { TASK_MACS.get(Mac::new(destination)) }
    {
        return inward(ctx, *port);
    }
    outward(ctx)
}

/// What an ingress node sends to the task behind `port`. What others send goes by the bridge, and at
/// the port it is looked at whether they may.
#[inline(always)]
pub fn inward(ctx: &TcContext, port: u32) -> Option<i32> {
    let verdict = learn(ctx, port)?;
    if verdict != NEXT {
        return Some(verdict);
    }
    // To the tunnel's device it was somebody else's.
    // SAFETY: the kernel gives every program a valid context; a helper without pointers.
    unsafe {
        if bpf_skb_change_type(ctx.skb.skb, PACKET_HOST) != 0 {
            return None;
        }
        Some(bpf_redirect_peer(port, 0) as i32)
    }
}

/// A task's answer to a client of this node.
#[inline(always)]
pub fn outward(ctx: &TcContext) -> Option<i32> {
    let packet = read(ctx, shortcut_way::OUT)?;
    if packet.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
        return None;
    }
    // SAFETY: the value changes only by replacement of the whole value.
    let known = unsafe { SHORTCUTS.get(packet.key) }?;
    Some(match rewrite(ctx, &packet, known, false)? {
        // SAFETY: a helper without pointers.
        Ok(()) => unsafe { bpf_redirect_peer(known.ifindex, 0) as i32 },
        Err(verdict) => verdict,
    })
}
