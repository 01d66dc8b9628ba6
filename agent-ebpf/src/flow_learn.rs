//! `flow_learn`: tc egress on the host side of a task's veth. Remembers through which ingress node
//! a client's packets come, so that `flow_return` can send the task's answers back there.

use aya_ebpf::bindings::{BPF_ANY, TC_ACT_SHOT};
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::{HashMap, LruHashMap};
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{
    Counter, FLOW_DEFENDED_NS, FLOW_SEEN_GRAIN_NS, FlowKey, FlowValue, Mac, capacity, flow_state,
};

use crate::count::count;
use crate::packet::{Ports, tcp};
use crate::shortcut_learn::remember;
use crate::{NEXT, headers, isolation, packet};

#[map(name = "ingress_macs")]
static INGRESS_MACS: HashMap<Mac, u32> = HashMap::pinned(capacity::INGRESS_MACS, 0);

#[map(name = "flow")]
pub static FLOW: LruHashMap<FlowKey, FlowValue> = LruHashMap::pinned(capacity::FLOW, 0);

/// Entry point.
#[classifier]
pub fn flow_learn(ctx: TcContext) -> i32 {
    remember(&ctx);
    let Some(mac) = packet::source_mac(&ctx) else {
        return NEXT;
    };
    if let Some(node) = ingress_node(mac) {
        learn(&ctx, mac, node);
    } else if !isolation::may_receive(&ctx) {
        return TC_ACT_SHOT;
    }
    NEXT
}

/// The number of the ingress node with this MAC address.
#[inline(always)]
pub fn ingress_node(mac: [u8; 6]) -> Option<u32> {
    // SAFETY: the value is one integer; an entry replaced meanwhile is as good.
    unsafe { INGRESS_MACS.get(Mac::new(mac)) }.copied()
}

/// Remembers that a client's packet came through the ingress node with this MAC address and number.
#[inline(always)]
pub fn learn(ctx: &TcContext, mac: [u8; 6], node: u32) -> Option<()> {
    let (key, ports) = flow(ctx)?;
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    let fresh = FlowValue {
        last_seen_ns: now_ns,
        mac,
        state: 0,
        node,
        orig_port_be: 0,
        xlat_port_be: 0,
    };
    let Some(known) = FLOW.get_ptr_mut(key) else {
        return write(&key, fresh, Counter::FlowLearned);
    };
    // SAFETY: the map owns the value. Other CPUs may write to it in place, but only whole aligned
    // integers (`refresh`, and `flow_return`'s state); the address changes only by replacement.
    let known = unsafe { &mut *known };
    if known.mac == mac {
        refresh(known, &ports, now_ns);
        return Some(());
    }
    let opens = ports.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    let idle_ns = now_ns.saturating_sub(known.last_seen_ns);
    let defended = idle_ns <= FLOW_DEFENDED_NS && !known.is_closed();
    if defended && (opens || !ports.is_tcp) {
        count(Counter::Collisions);
        // A TCP connection that is alive keeps its way back. A UDP client that asks several nodes
        // from one socket is answered by each in turn: there the last packet decides.
        if opens {
            return Some(());
        }
    }
    // Also for a TCP packet in mid-connection: another node has taken over the client's address.
    write(&key, fresh, Counter::FlowMoved)
}

/// The flow that a packet of a client belongs to. Of a packet in fragments the first one will do.
#[inline(always)]
fn flow(ctx: &TcContext) -> Option<(FlowKey, Ports)> {
    let headers = if let Some(ip) = packet::ipv4(ctx) {
        if let Some(ports) = packet::ports(ctx, &ip) {
            let key = FlowKey::from_wire(
                (ip.source_address(), ports.source),
                (ip.destination_address(), ports.destination),
                ip.protocol,
            );
            return Some((key, ports));
        }
        ip.headers()
    } else {
        headers::ipv6(ctx)?
    };
    let ports = headers.ports(ctx)?;
    let key = FlowKey::from_wire(
        (headers.source, ports.source),
        (headers.destination, ports.destination),
        headers.protocol,
    );
    Some((key, ports))
}

/// Notes on a known flow: the time, coarsely, and the end of a TCP connection.
#[inline(always)]
fn refresh(known: &mut FlowValue, ports: &Ports, now_ns: u64) {
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

#[inline(always)]
fn write(key: &FlowKey, value: FlowValue, counter: Counter) -> Option<()> {
    let written = FLOW.insert(key, value, u64::from(BPF_ANY)).is_ok();
    count(if written {
        counter
    } else {
        Counter::FlowRefused
    });
    Some(())
}
