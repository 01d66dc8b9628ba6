//! `shortcut_in`: tc ingress on the ingress namespace's end of the veth pair from the host. A
//! client's packet of a connection that IPVS has balanced goes straight towards its task.

use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_redirect};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{
    SHORTCUT_RENEWAL_NS, SHORTCUT_RENEWAL_UDP_NS, ShortcutDraft, TraceStep, shortcut_state,
    shortcut_way,
};

use crate::NEXT;
use crate::packet::tcp;
use crate::shortcut::{DRAFT, SHORTCUTS, packet, rewrite};
use crate::trace::traced;

/// Entry point.
#[classifier]
pub fn shortcut_in(ctx: TcContext) -> i32 {
    let verdict = inward(&ctx).unwrap_or(NEXT);
    traced(&ctx, TraceStep::ShortcutIn, verdict)
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
