//! `shortcut_out`: tc ingress on the ingress namespace's VXLAN device. A task's answer that the
//! client has asked this node for gets the node's address back and goes straight to the host, where
//! `mesh_out` takes it.

use aya_ebpf::helpers::bpf_redirect_peer;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{shortcut_state, shortcut_way};

use crate::NEXT;
use crate::shortcut::{SHORTCUTS, note_state, packet, rewrite};

/// Entry point.
#[classifier]
pub fn shortcut_out(ctx: TcContext) -> i32 {
    outward(&ctx).unwrap_or(NEXT)
}

#[inline(always)]
fn outward(ctx: &TcContext) -> Option<i32> {
    let packet = packet(ctx, shortcut_way::OUT)?;
    let known = SHORTCUTS.get_ptr_mut(packet.key)?;
    // SAFETY: the map owns the value. It changes only by replacement of the whole value and in one
    // aligned integer, which may be lost: then IPVS misses the end of a connection.
    let known = unsafe { &mut *known };
    note_state(known, packet.tcp_flags);
    if known.state != shortcut_state::OPEN {
        return None;
    }
    Some(match rewrite(ctx, &packet, known, false)? {
        // SAFETY: a helper without pointers.
        Ok(()) => unsafe { bpf_redirect_peer(known.ifindex, 0) as i32 },
        Err(verdict) => verdict,
    })
}
