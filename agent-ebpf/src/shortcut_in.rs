//! `shortcut_in`: tc ingress on the ingress namespace's end of the veth pair from the host. A
//! client's packet of a connection that IPVS has balanced goes straight towards its task; and what
//! [`tunnel`](crate::tunnel) has unpacked goes on as `shortcut_out` would send it. Where that has no way for
//! it, IPVS has: to it one interface is as good as the other.

use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_redirect};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{
    Mac, SHORTCUT_RENEWAL_NS, SHORTCUT_RENEWAL_UDP_NS, ShortcutDraft, TraceStep, shortcut_state,
    shortcut_way,
};

use crate::NEXT;
use crate::mesh_uplink::CONFIG;
use crate::packet::{macs, tcp};
use crate::shortcut::{DRAFT, SHORTCUTS, packet, rewrite};
use crate::shortcut_out::{TASK_MACS, inward as to_task, outward};
use crate::trace::traced;

/// How MAC addresses on overlay networks begin; the rest is the IPv4 address.
const OVERLAY_MAC_PREFIX: [u8; 2] = [0x02, 0x42];

/// Entry point.
#[classifier]
pub fn shortcut_in(ctx: TcContext) -> i32 {
    let verdict = match unpacked(&ctx) {
        Some(verdict) => verdict,
        None => inward(&ctx).unwrap_or(NEXT),
    };
    traced(&ctx, TraceStep::ShortcutIn, verdict)
}

/// The verdict on a frame of the ingress network; nothing on a packet from the outside, which has the
/// Ethernet header that it came to the uplink with.
#[inline(always)]
fn unpacked(ctx: &TcContext) -> Option<i32> {
    let (destination, _) = macs(ctx)?;
    if destination[..2] != OVERLAY_MAC_PREFIX {
        return None;
    }
    if CONFIG.get(0)?.mac.octets == destination {
        return Some(outward(ctx).unwrap_or(NEXT));
    }
    // SAFETY: the value is one integer; an entry replaced meanwhile is as good.
    let port = unsafe { TASK_MACS.get(Mac::new(destination)) }?;
    to_task(ctx, *port)
}

#[inline(always)]
fn inward(ctx: &TcContext) -> Option<i32> {
    let packet = packet(ctx, shortcut_way::IN)?;
    if packet.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
        return None;
    }
    if packet.tcp_flags & tcp::SYN == 0
        && let Some(known) = SHORTCUTS.get_ptr_mut(packet.key)
    {
        // SAFETY: the map owns the value. It changes only by replacement of the whole value and in
        // one aligned integer, which may be lost: then IPVS sees a packet more.
        let known = unsafe { &mut *known };
        // SAFETY: a helper without arguments.
        let age_ns = unsafe { bpf_ktime_get_coarse_ns() }.saturating_sub(known.balanced_ns);
        let renewal_ns = if packet.tcp_flags == 0 {
            SHORTCUT_RENEWAL_UDP_NS
        } else {
            SHORTCUT_RENEWAL_NS
        };
        if age_ns < renewal_ns {
            if known.state != shortcut_state::OPEN {
                known.state = shortcut_state::OPEN;
                return None;
            }
            if let Some(rewritten) = rewrite(ctx, &packet, known, true) {
                return Some(match rewritten {
                    // SAFETY: a helper without pointers.
                    Ok(()) => unsafe { bpf_redirect(known.ifindex, 0) as i32 },
                    Err(verdict) => verdict,
                });
            }
        }
    }
    if let Some(draft) = DRAFT.get_ptr_mut(0) {
        // SAFETY: the map owns the value and it belongs to this CPU; the kernel gives every
        // program a valid context.
        unsafe {
            *draft = ShortcutDraft {
                key: packet.key,
                ifindex: (*ctx.skb.skb).ifindex,
            };
        }
    }
    None
}
