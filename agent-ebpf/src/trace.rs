//! Tells the agent (`swarmctl mesh trace`) what the programs do with sampled packets of a port.
//!
//! Without a trace it costs each program a look-up in an array of one entry, which the kernel turns
//! into a few instructions without a call, and a comparison. With one, the headers of each packet are
//! read once more, and of each that is to be told of an entry is written to a ring buffer. What does
//! not fit there is counted as lost.
//!
//! Deliberately absent: fragments after the first, packets with IPv6 extension headers, ICMP errors.

use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_RB_NO_WAKEUP, TC_ACT_SHOT};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray, RingBuf};
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{
    Address, Counter, Endpoint, FlowKey, TraceCpu, TraceEvent, TraceFilter, TraceStep, capacity,
};

use crate::count::{count, count_of};
use crate::headers::{Ipv6Header, PROTOCOL_IPV6};
use crate::packet::{
    ETHERNET_LEN, EthernetHeader, FRAGMENT_OFFSET, Ipv4Header, PROTOCOL_IPV4, PROTOCOL_SCTP,
    PROTOCOL_TCP, PROTOCOL_UDP, PortsHeader, TcpHeader,
};
use crate::translation::XLAT_OUT;

#[map(name = "trace")]
static TRACE: Array<TraceFilter> = Array::pinned(1, 0);

#[map(name = "trace_cpu")]
static CPU: PerCpuArray<TraceCpu> = PerCpuArray::pinned(1, 0);

#[map(name = "trace_events")]
static EVENTS: RingBuf = RingBuf::pinned(capacity::TRACE_EVENTS, 0);

/// Tells, when somebody looks, that a program's verdict on a packet is `verdict`; and gives it back.
#[inline(always)]
pub fn traced(ctx: &TcContext, step: TraceStep, verdict: i32) -> i32 {
    if let Some(filter) = TRACE.get(0)
        && filter.until_ns != 0
    {
        tell(ctx, filter, step, verdict);
    }
    verdict
}

/// Counts a packet that is going to be dropped, and notes why. Gives the verdict.
#[inline(always)]
pub fn drop_for(counter: Counter) -> i32 {
    count(counter);
    note(counter as u32 + 1);
    TC_ACT_SHOT
}

/// As [`drop_for`], and counted of the service or task that [`DropKey`](swarm_ebpf_common::DropKey)
/// means by `of`.
#[inline(always)]
pub fn drop_of(counter: Counter, of: u32) -> i32 {
    count_of(counter, of);
    note(counter as u32 + 1);
    TC_ACT_SHOT
}

/// The verdict on a packet that is dropped because it cannot be written to, which nothing counts.
#[inline(always)]
pub fn drop_unwritable() -> i32 {
    note(0);
    TC_ACT_SHOT
}

/// A packet is finished before its CPU takes the next one, so that one note a CPU does.
#[inline(always)]
fn note(reason: u32) {
    if let Some(cpu) = CPU.get_ptr_mut(0) {
        // SAFETY: the map owns the value and it belongs to this CPU.
        unsafe { (*cpu).reason = reason };
    }
}

/// Out of line: without a trace it is not called.
#[inline(never)]
fn tell(ctx: &TcContext, filter: &TraceFilter, step: TraceStep, verdict: i32) -> u64 {
    u64::from(write(ctx, filter, step, verdict).is_some())
}

#[inline(always)]
fn write(ctx: &TcContext, filter: &TraceFilter, step: TraceStep, verdict: i32) -> Option<()> {
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if now_ns > filter.until_ns {
        return None;
    }
    // SAFETY: the kernel gives every program a valid context.
    let (from, to, protocol, transport) = match unsafe { (*ctx.skb.skb).protocol } {
        PROTOCOL_IPV4 => {
            let header: Ipv4Header = ctx.load(ETHERNET_LEN).ok()?;
            if header.fragment & FRAGMENT_OFFSET != 0 {
                return None;
            }
            let header_len = usize::from(header.version_and_length & 0x0f) * 4;
            let source = Address::from_ipv4_word(header.source);
            let destination = Address::from_ipv4_word(header.destination);
            (source, destination, header.protocol, header_len)
        }
        PROTOCOL_IPV6 => {
            let header: Ipv6Header = ctx.load(ETHERNET_LEN).ok()?;
            let source = Address::from_words(header.source);
            let destination = Address::from_words(header.destination);
            (source, destination, header.next, size_of::<Ipv6Header>())
        }
        _ => return None,
    };
    if !matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_SCTP) {
        return None;
    }
    let transport = ETHERNET_LEN + transport;
    let ports: PortsHeader = ctx.load(transport).ok()?;
    let is_request = filter.has_port(ports.destination);
    if !is_request && !filter.has_port(ports.source) {
        return None;
    }
    let mut client = if is_request {
        Endpoint::from_wire(from, ports.source)
    } else {
        Endpoint::from_wire(to, ports.destination)
    };
    let mut seen = Endpoint::from_wire(Address::UNSPECIFIED_V6, 0);
    if is_request {
        let flow = FlowKey::from_wire((from, ports.source), (to, ports.destination), protocol);
        // SAFETY: plain integers; an entry replaced meanwhile is as good.
        if let Some(own) = unsafe { XLAT_OUT.get(&flow) } {
            seen = client;
            client = *own;
        }
    }
    let wanted = filter.client;
    if wanted != Address::UNSPECIFIED_V6 && wanted != client.address {
        return None;
    }
    if !filter.has_in_sample(client.port_be) {
        return None;
    }
    let tcp_flags = if protocol == PROTOCOL_TCP {
        ctx.load(transport + offset_of!(TcpHeader, flags)).ok()?
    } else {
        0_u8
    };
    let macs: EthernetHeader = ctx.load(0).ok()?;
    let cpu = CPU.get_ptr_mut(0)?;
    let (source, destination) = if is_request {
        (client, Endpoint::from_wire(to, ports.destination))
    } else {
        (Endpoint::from_wire(from, ports.source), client)
    };
    let Some(mut room) = EVENTS.reserve::<TraceEvent>(0) else {
        // SAFETY: the map owns the value and it belongs to this CPU.
        unsafe { (*cpu).lost += 1 };
        return None;
    };
    let reason = if verdict == TC_ACT_SHOT {
        // SAFETY: as above.
        unsafe { (*cpu).reason as u8 }
    } else {
        0
    };
    room.write(TraceEvent {
        time_ns: now_ns,
        source: source.address,
        destination: destination.address,
        source_port_be: source.port_be,
        destination_port_be: destination.port_be,
        seen_port_be: seen.port_be,
        protocol,
        tcp_flags,
        seen: seen.address,
        len: ctx.len(),
        verdict,
        source_mac: macs.source,
        destination_mac: macs.destination,
        step: step as u8,
        reason,
        zero: 0,
    });
    // The agent looks by itself, every few milliseconds.
    room.submit(u64::from(BPF_RB_NO_WAKEUP));
    Some(())
}
