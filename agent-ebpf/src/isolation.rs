//! Isolation on the ingress network. Every task is on it, of whatever service; to another task only
//! its published targets are open (address, target port, protocol, all of them in `targets`).
//!
//! Two looks, both at the task's port: `flow_return` at what the task sends, `flow_learn` at what it
//! gets from anybody but an ingress node. A task sends as itself or not at all, so that nobody's
//! address and no node's MAC address can be borrowed; what it sends to its own network goes to a
//! published target, or comes from one, or is an ICMP error about such a packet. What leaves the
//! network (answers to clients, the way out) is not looked at further.
//!
//! Who owns a target cannot reach others from its port: there, over TCP only what does not open a
//! connection passes, and over UDP and SCTP only what answers a task's question (`asked`, which
//! the asker's own port keeps).
//!
//! A fragment after the first carries no port and passes: without its first it is nothing. A port
//! that is not in `task_ports` is not looked at: the agent describes it before a container starts.

use core::mem::offset_of;

use aya_ebpf::bindings::{__sk_buff, BPF_ANY};
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap};
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{
    ASKED_NS, Address, Counter, FLOW_SEEN_GRAIN_NS, FlowKey, Mac, PublishedKey, TaskPort, capacity,
};

use crate::headers::{FRAGMENT, FRAGMENT_OFFSET6, FragmentHeader, ICMP, ICMP6, Ipv6Header};
use crate::packet::{
    EthernetHeader, FRAGMENT_OFFSET, Ipv4Header, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP,
    PortsHeader, tcp,
};
use crate::trace::drop_of;

#[map(name = "task_ports")]
pub static TASK_PORTS: HashMap<u32, TaskPort> = HashMap::pinned(capacity::TASK_PORTS, 0);

#[map(name = "targets")]
pub static TARGETS: HashMap<PublishedKey, u32> = HashMap::pinned(capacity::TARGETS, 0);

#[map(name = "asked")]
static ASKED: LruHashMap<FlowKey, u64> = LruHashMap::pinned(capacity::ASKED, 0);

/// Ethernet types (`linux/if_ether.h`).
const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
const ARP: u16 = 0x0806_u16.to_be();

/// Everything that is looked at without options fits: Ethernet, IPv6, a fragment's header, ICMPv6, and
/// an IPv6 header with ports in it.
const LOOKED_AT: u32 = 14 + 40 + 8 + 8 + 40 + 4;

/// Up to the sender of an ARP message about IPv4 on Ethernet (RFC 826).
#[repr(C)]
struct Arp {
    kinds_and_lengths: [u8; 6],
    operation: u16,
    sender_mac: [u8; 6],
    sender: [u16; 2],
}

#[repr(C)]
struct Icmp {
    kind: u8,
    code: u8,
    checksum: u16,
    rest: u32,
}

/// An IP header.
#[derive(Clone, Copy)]
struct Header {
    source: Address,
    destination: Address,
    protocol: u8,
    /// A fragment after the first.
    later: bool,
    /// Where what it carries begins.
    end: usize,
}

/// Whether the task behind this port may send this frame.
#[inline(never)]
pub fn may_send(skb: *mut __sk_buff) -> bool {
    let ctx = &TcContext::new(skb);
    let Some(task) = task(ctx) else {
        return true;
    };
    let Some(ethernet) = at::<EthernetHeader>(ctx, 0) else {
        return true;
    };
    if Mac::new(ethernet.source) != task.mac {
        return refuse(ctx, Counter::Spoofed);
    }
    let header = match ethernet.kind {
        ARP => return sends_as_itself(ctx, task),
        IPV4 => ipv4(ctx, size_of::<EthernetHeader>()),
        IPV6 => ipv6(ctx, size_of::<EthernetHeader>()),
        _ => return refuse(ctx, Counter::Isolated),
    };
    let Some(header) = header else {
        return refuse(ctx, Counter::Isolated);
    };
    if header.source != task.address_like(header.source) {
        if is_local(header.source) && is_neighbour_discovery(ctx, &header) {
            return true;
        }
        return refuse(ctx, Counter::Spoofed);
    }
    let inside = task.is_neighbour(header.destination) || !is_unicast(header.destination);
    !inside || is_open(ctx, &header, Way::Out) || refuse(ctx, Counter::Isolated)
}

/// Whether the task behind this port may get this frame from another task.
#[inline(never)]
pub fn may_receive(skb: *mut __sk_buff) -> bool {
    let ctx = &TcContext::new(skb);
    let Some(task) = task(ctx) else {
        return true;
    };
    let Some(ethernet) = at::<EthernetHeader>(ctx, 0) else {
        return true;
    };
    let header = match ethernet.kind {
        ARP => return true,
        IPV4 => ipv4(ctx, size_of::<EthernetHeader>()),
        IPV6 => ipv6(ctx, size_of::<EthernetHeader>()),
        _ => None,
    };
    let Some(header) = header else {
        return refuse(ctx, Counter::Isolated);
    };
    if is_neighbour_discovery(ctx, &header) {
        return true;
    }
    let open = header.destination == task.address_like(header.destination)
        && task.is_neighbour(header.source)
        && is_open(ctx, &header, Way::In);
    open || refuse(ctx, Counter::Isolated)
}

/// Why it is not.
#[inline(always)]
fn refuse(ctx: &TcContext, counter: Counter) -> bool {
    drop_of(counter, ifindex(ctx));
    false
}

/// The port that the packet is at.
#[inline(always)]
fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the kernel gives every program a valid context.
    unsafe { (*ctx.skb.skb).ifindex }
}

#[inline(always)]
fn task<'a>(ctx: &TcContext) -> Option<&'a TaskPort> {
    // SAFETY: the value is plain integers, and an entry replaced meanwhile is as good.
    unsafe { TASK_PORTS.get(ifindex(ctx)) }
}

/// Whether an ARP message names the task as its sender.
#[inline(always)]
fn sends_as_itself(ctx: &TcContext, task: &TaskPort) -> bool {
    let itself = at::<Arp>(ctx, size_of::<EthernetHeader>()).is_some_and(|arp| {
        let [high, low] = arp.sender;
        let word = u32::from(high) | u32::from(low) << 16;
        Mac::new(arp.sender_mac) == task.mac && Address::from_ipv4_word(word) == task.address
    });
    itself || refuse(ctx, Counter::Spoofed)
}

/// Solicitations and advertisements of neighbours (RFC 4861).
#[inline(always)]
fn is_neighbour_discovery(ctx: &TcContext, header: &Header) -> bool {
    const SOLICITATION: u8 = 135;
    const ADVERTISEMENT: u8 = 136;
    header.protocol == ICMP6
        && at::<Icmp>(ctx, header.end)
            .is_some_and(|icmp| icmp.kind == SOLICITATION || icmp.kind == ADVERTISEMENT)
}

/// Whether an IPv6 address is the link's alone, or none yet.
#[inline(always)]
fn is_local(address: Address) -> bool {
    const LINK_LOCAL: u32 = 0xfe80_0000_u32.to_be();
    const LINK_LOCAL_MASK: u32 = 0xffc0_0000_u32.to_be();
    address == Address::UNSPECIFIED_V6 || address.words()[0] & LINK_LOCAL_MASK == LINK_LOCAL
}

/// Not one for many: those reach every task of the bridge.
#[inline(always)]
fn is_unicast(address: Address) -> bool {
    const MULTICAST_V4: u32 = 0xe000_0000;
    const MULTICAST_V6: u32 = 0xff00_0000;
    match address.ipv4_word() {
        // With the reserved addresses above them, the broadcast address among those.
        Some(word) => u32::from_be(word) < MULTICAST_V4,
        None => u32::from_be(address.words()[0]) < MULTICAST_V6,
    }
}

/// Whether it goes to a published target, comes from one, or is an error about such a packet.
#[inline(always)]
fn is_open(ctx: &TcContext, header: &Header, way: Way) -> bool {
    if header.later {
        return true;
    }
    if header.protocol != ICMP && header.protocol != ICMP6 {
        return is_published(ctx, header, way);
    }
    let Some(icmp) = at::<Icmp>(ctx, header.end) else {
        return false;
    };
    let inner = header.end + size_of::<Icmp>();
    let inner = match (header.protocol, icmp.kind) {
        // Unreachable, time exceeded, parameter problem (RFC 792).
        (ICMP, 3 | 11 | 12) => ipv4(ctx, inner),
        // Unreachable, too big, time exceeded, parameter problem (RFC 4443).
        (ICMP6, 1..=4) => ipv6(ctx, inner),
        // Who sees a neighbour resolves it by its global address too.
        (ICMP6, 135 | 136) => return true,
        _ => None,
    };
    inner.is_some_and(|inner| {
        inner.source == header.destination && is_published(ctx, &inner, Way::Inside)
    })
}

/// Where a packet is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A task sends it.
    Out,
    /// A task gets it.
    In,
    /// It is inside an ICMP error.
    Inside,
}

#[inline(always)]
fn is_published(ctx: &TcContext, header: &Header, way: Way) -> bool {
    let is_tcp = header.protocol == PROTOCOL_TCP;
    if !matches!(header.protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_SCTP) {
        return false;
    }
    let Some(ports) = at::<PortsHeader>(ctx, header.end) else {
        return false;
    };
    let (from, to) = (
        (header.source, ports.source),
        (header.destination, ports.destination),
    );
    if is_target(to, header.protocol) {
        if way == Way::Out && !is_tcp {
            ask(&FlowKey::from_wire(from, to, header.protocol));
        }
        return true;
    }
    if !is_target(from, header.protocol) {
        return false;
    }
    match way {
        Way::Inside => true,
        Way::Out | Way::In if is_tcp => !opens(ctx, header),
        Way::Out => true,
        Way::In => was_asked(&FlowKey::from_wire(to, from, header.protocol)),
    }
}

#[inline(always)]
fn is_target((address, port): (Address, u16), protocol: u8) -> bool {
    let key = PublishedKey::from_wire(address, port, protocol);
    TARGETS.get_ptr(key).is_some()
}

/// Whether a TCP packet is the first of a connection.
#[inline(always)]
fn opens(ctx: &TcContext, header: &Header) -> bool {
    const LENGTH_AND_FLAGS: usize = 12;
    at::<[u8; 2]>(ctx, header.end + LENGTH_AND_FLAGS)
        .is_none_or(|[_, flags]| flags & (tcp::SYN | tcp::ACK) == tcp::SYN)
}

/// Remembers that the task asks a target.
#[inline(always)]
fn ask(flow: &FlowKey) {
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: the value is one integer; an entry replaced meanwhile is as good.
    let known = unsafe { ASKED.get(flow) };
    if known.is_none_or(|asked_ns| now_ns.saturating_sub(*asked_ns) > FLOW_SEEN_GRAIN_NS) {
        // Refused, the answer is not let in, and counted then.
        let _ = ASKED.insert(flow, now_ns, u64::from(BPF_ANY));
    }
}

/// Whether the task has asked that target lately.
#[inline(always)]
fn was_asked(flow: &FlowKey) -> bool {
    // SAFETY: a helper without arguments; the value is one integer, and an entry replaced meanwhile
    // is as good.
    unsafe {
        let now_ns = bpf_ktime_get_coarse_ns();
        ASKED
            .get(flow)
            .is_some_and(|asked_ns| now_ns.saturating_sub(*asked_ns) <= ASKED_NS)
    }
}

#[inline(always)]
fn ipv4(ctx: &TcContext, offset: usize) -> Option<Header> {
    let header = at::<Ipv4Header>(ctx, offset)?;
    Some(Header {
        source: Address::from_ipv4_word(header.source),
        destination: Address::from_ipv4_word(header.destination),
        protocol: header.protocol,
        later: header.fragment & FRAGMENT_OFFSET != 0,
        end: offset + usize::from(header.version_and_length & 0x0f) * 4,
    })
}

/// Of the extension headers that of a fragment is read. What has others is open to nobody.
#[inline(always)]
fn ipv6(ctx: &TcContext, offset: usize) -> Option<Header> {
    let header = at::<Ipv6Header>(ctx, offset)?;
    let mut found = Header {
        source: Address::from_words(header.source),
        destination: Address::from_words(header.destination),
        protocol: header.next,
        later: false,
        end: offset + size_of::<Ipv6Header>(),
    };
    if found.protocol == FRAGMENT {
        let fragment = at::<FragmentHeader>(ctx, found.end)?;
        found.protocol = fragment.next;
        found.later = fragment.offset & FRAGMENT_OFFSET6 != 0;
        found.end += size_of::<FragmentHeader>();
    }
    Some(found)
}

/// The `T` at `offset` bytes of the packet, pulled into its linear part where it is not in that.
/// Valid until the next call.
#[inline(always)]
fn at<'a, T>(ctx: &TcContext, offset: usize) -> Option<&'a T> {
    let reach = || {
        let start = ctx.data() + offset;
        // SAFETY: the end is compared with the packet's; aligned as far as this architecture cares,
        // the verifier refuses the load otherwise.
        (start + size_of::<T>() <= ctx.data_end()).then(|| unsafe { &*(start as *const T) })
    };
    reach().or_else(|| {
        ctx.pull_data(LOOKED_AT.min(ctx.len())).ok()?;
        reach()
    })
}

const _: () = assert!(size_of::<EthernetHeader>() == 14 && size_of::<Ipv6Header>() == 40);
const _: () = assert!(offset_of!(Arp, sender) == 14);
