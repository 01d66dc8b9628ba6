//! `shortcut_learn`: tc egress on the ingress namespace's VXLAN device; `flow_learn` does the same
//! on a task's port. Remembers what IPVS has made of a client's packet.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY};
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{
    MacPair, ShortcutKey, ShortcutValue, TraceStep, shortcut_state, shortcut_way,
};

use crate::NEXT;
use crate::packet::{reach, tcp};
use crate::shortcut::{DRAFT, Headers, SHORTCUTS, packet};
use crate::trace::traced;

/// Entry point.
#[classifier]
pub fn shortcut_learn(ctx: TcContext) -> i32 {
    remember(&ctx);
    traced(&ctx, TraceStep::Tunnel, NEXT)
}

/// Looks whether this is the packet that `shortcut_in` has left to IPVS, and remembers both ways.
#[inline(always)]
pub fn remember(ctx: &TcContext) {
    let Some(draft) = DRAFT.get_ptr(0) else {
        return;
    };
    // SAFETY: the map owns the value and it belongs to this CPU.
    if !unsafe { (*draft).key.is_none() } {
        balanced(ctx.skb.skb);
    }
}

/// Out of line: it is rare, and its keys and values would fill the stack of the others.
#[inline(never)]
fn balanced(skb: *mut __sk_buff) -> i32 {
    i32::from(compare(&TcContext::new(skb)).is_some())
}

#[inline(always)]
fn compare(ctx: &TcContext) -> Option<()> {
    let draft = DRAFT.get_ptr_mut(0)?;
    // SAFETY: the map owns the value and it belongs to this CPU.
    let draft = unsafe { &mut *draft };
    let packet = packet(ctx, shortcut_way::IN)?;
    let (asked, given) = (draft.key, packet.key);
    if (asked.source, asked.source_port(), asked.protocol())
        != (given.source, given.source_port(), given.protocol())
    {
        return None;
    }
    draft.key = ShortcutKey::NONE;
    let headers = reach::<Headers>(ctx, 0)?;
    // SAFETY: `reach` compared the end of the headers with the packet's; the kernel gives every
    // program a valid context; a helper without arguments.
    let (macs, ifindex, now_ns) = unsafe {
        (
            (*headers).macs,
            (*ctx.skb.skb).ifindex,
            bpf_ktime_get_coarse_ns(),
        )
    };
    let inward = ShortcutValue {
        balanced_ns: now_ns,
        address: given.destination,
        port: given.destination_port(),
        state: if packet.tcp_flags & tcp::SYN == 0 {
            shortcut_state::OPEN
        } else {
            shortcut_state::OPENING
        },
        ifindex,
        macs,
    };
    let back = ShortcutKey::new(
        (given.destination, given.destination_port()),
        (given.source, given.source_port()),
        given.protocol(),
        shortcut_way::OUT,
    );
    let outward = ShortcutValue {
        balanced_ns: 0,
        address: asked.destination,
        port: asked.destination_port(),
        state: shortcut_state::OPEN,
        ifindex: draft.ifindex,
        macs: MacPair(0, 0, 0),
    };
    // The way out first: a packet inward without it only costs its answer the shortcut.
    SHORTCUTS.insert(back, outward, u64::from(BPF_ANY)).ok()?;
    let learned = SHORTCUTS.insert(asked, inward, u64::from(BPF_ANY));
    if learned.is_err() {
        // What was known before is of another decision.
        let _ = SHORTCUTS.remove(asked);
    }
    learned.ok()
}
