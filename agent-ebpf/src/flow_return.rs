//! `flow_return`: tc ingress on the host side of a task's veth. An answer to a client that came
//! through the mesh goes back to the ingress node it came through, straight by the tunnel;
//! everything else takes the ordinary way out.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{Address, Counter, FlowKey, FragmentValue, TraceStep, flow_state};

use crate::flow_learn::{FLOW, closing};
use crate::headers::{Headers, Part};
use crate::mesh_uplink::CONFIG;
use crate::packet::tcp;
use crate::trace::{drop_of, traced};
use crate::{NEXT, fragments, headers, isolation, packet, translation};

/// Entry point.
#[classifier]
pub fn flow_return(ctx: TcContext) -> i32 {
    let verdict = sent(&ctx);
    traced(&ctx, TraceStep::FromTask, verdict)
}

/// The verdict on what a task sends.
#[inline(always)]
fn sent(ctx: &TcContext) -> i32 {
    let way = match established(ctx) {
        Some(way) => way,
        None => {
            if !isolation::may_send(ctx.skb.skb) {
                return TC_ACT_SHOT;
            }
            match of_any(ctx.skb.skb) {
                TRANSLATED => return translation::outward(ctx.skb.skb),
                verdict => return verdict,
            }
        }
    };
    if way.is_native {
        send(ctx, way.mac)
    } else {
        translation::outward(ctx.skb.skb)
    }
}

/// The way of an IPv4 packet of a flow that came in by this very port: it comes from the task that
/// the flow leads to, and goes to the ingress node whatever its addresses are, so that isolation has
/// no part in it.
#[inline(always)]
fn established(ctx: &TcContext) -> Option<Way> {
    let ip = packet::ipv4(ctx)?;
    let ports = packet::ports(ctx, &ip)?;
    let key = FlowKey::from_wire(
        (ip.destination_address(), ports.destination),
        (ip.source_address(), ports.source),
        ip.protocol,
    );
    let way = through(&key, ports.tcp_flags)?;
    // SAFETY: the kernel gives every program a valid context.
    (way.ifindex == unsafe { (*ctx.skb.skb).ifindex }).then_some(way)
}

/// What [`of_any`] says of a packet that [`translation`] has to change.
const TRANSLATED: i32 = i32::MIN;

/// Any other packet. Gives the verdict, or [`TRANSLATED`].
#[inline(never)]
fn of_any(skb: *mut __sk_buff) -> i32 {
    let ctx = TcContext::new(skb);
    match headers::of_packet(&ctx).and_then(|headers| of_headers(&ctx, &headers)) {
        None => NEXT,
        Some(way) if way.is_native => send(&ctx, way.mac),
        Some(_) => TRANSLATED,
    }
}

/// Sends an answer to the ingress node with this MAC address. Gives the verdict.
#[inline(always)]
pub fn send(ctx: &TcContext, mac: [u8; 6]) -> i32 {
    if ctx.store(0, &mac, 0).is_err() {
        // The way out it would take otherwise masquerades it: of no use to the client.
        // SAFETY: the kernel gives every program a valid context.
        return drop_of(Counter::ReturnFailed, unsafe { (*ctx.skb.skb).ifindex });
    }
    let Some(config) = CONFIG.get(0) else {
        return NEXT;
    };
    if config.vxlan_ifindex == 0 || config.mac.octets == mac {
        return NEXT;
    }
    // To another node: the bridge would do the same.
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(config.vxlan_ifindex, 0) as i32 }
}

/// Where an answer goes.
#[derive(Clone, Copy)]
struct Way {
    /// MAC address of the ingress node that the flow came through.
    mac: [u8; 6],
    /// Whether the task sees the client as it is.
    is_native: bool,
    /// Interface index of the port by which the task got the client's packets; 0 where that is not
    /// known.
    ifindex: u32,
}

/// The way of a flow, noting the flags of an answer.
#[inline(always)]
fn through(key: &FlowKey, tcp_flags: u8) -> Option<Way> {
    let flow = FLOW.get_ptr_mut(key)?;
    // SAFETY: the map owns the value. The address in it changes only by replacement of the whole
    // value; the state is one aligned integer, and a lost update of it costs a new flow on the
    // same 5-tuple one second.
    unsafe {
        if tcp_flags & (tcp::FIN | tcp::RST) != 0 {
            (*flow).state |= closing(tcp_flags, flow_state::TASK_FIN);
        }
        Some(Way {
            mac: (*flow).mac,
            is_native: (*flow).is_native(),
            ifindex: (*flow).ifindex,
        })
    }
}

/// The way of any other packet.
#[inline(always)]
fn of_headers(ctx: &TcContext, headers: &Headers) -> Option<Way> {
    if headers.part == Part::Later {
        let first = fragments::known(&headers.fragment_key())?;
        return Some(Way {
            mac: first.mac,
            is_native: first.client == Address::UNSPECIFIED_V6,
            ifindex: 0,
        });
    }
    if let Some(ports) = headers.ports(ctx) {
        let key = FlowKey::from_wire(
            (headers.destination, ports.destination),
            (headers.source, ports.source),
            headers.protocol,
        );
        // One exit for each case: merged, the compiler copies what was never written, which the
        // verifier refuses.
        if headers.part != Part::First {
            return through(&key, ports.tcp_flags);
        }
        let fragments = headers.fragment_key();
        let Some(way) = through(&key, ports.tcp_flags) else {
            fragments::forget(&fragments);
            return None;
        };
        fragments::remember(&fragments, |now_ns| FragmentValue::answer(now_ns, way.mac));
        return Some(way);
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
