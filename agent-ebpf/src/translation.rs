//! Another port, or address and port, for a client at a task's port. `flow_learn` translates what
//! comes from an ingress node, `flow_return` the answers back: one place sees both, whichever node
//! the client has asked, and IPVS on that node sees what it knows.
//!
//! | flow | what the task sees |
//! |---|---|
//! | the client's 5-tuple is in use by a flow through another ingress node | the client's address, another port |
//! | the target is published with `snat=true` | the ingress node's address on the overlay, the client's port if it is free |
//!
//! `xlat_in` has a flow by what the ingress node brings, `xlat_out` by what the task sees; the entry
//! of `flow` under the latter owns the port. An established flow that is not translated never gets
//! here.
//!
//! Fragments follow their first one. Of ICMP errors the packet inside is translated as well, but for
//! its transport checksum, which no end looks at.
//!
//! Deliberately absent: SCTP, whose checksum is over the whole packet.

use aya_ebpf::bindings::{
    __sk_buff, BPF_ANY, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, BPF_NOEXIST,
};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{
    Address, Counter, Endpoint, FlowKey, FlowValue, FragmentValue, Mac, PublishedKey,
    TranslationKey, capacity, target_flag,
};

use crate::count::count;
use crate::flow_learn::{FLOW, INGRESS_MACS, refresh, refreshed};
use crate::flow_return::send;
use crate::headers::{ERROR_LEN, Headers, Part, Subject, of_packet};
use crate::isolation::{TARGETS, TASK_PORTS};
use crate::packet::{ETHERNET_LEN, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, Ports, tcp};
use crate::trace::drop_of;
use crate::{NEXT, fragments, packet};

#[map(name = "xlat_in")]
static XLAT_IN: LruHashMap<TranslationKey, Endpoint> =
    LruHashMap::pinned(capacity::TRANSLATIONS, 0);

#[map(name = "xlat_out")]
pub static XLAT_OUT: LruHashMap<FlowKey, Endpoint> = LruHashMap::pinned(capacity::TRANSLATIONS, 0);

/// What is too big for the stack. A packet is finished before its CPU takes the next one here.
#[map(name = "xlat_scratch")]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

#[repr(C)]
struct Scratch {
    /// As the ingress node brings it.
    key: TranslationKey,
    /// As the task sees it.
    seen: FlowKey,
    value: FlowValue,
}

/// Ports that are tried before a packet is given up, and left to its client to send again: with a
/// tenth of them in use, one in 10,000 is. The verifier walks every try.
const TRIES: u32 = 4;

/// Ports that are given: the upper half, where clients that are translated only because of others
/// meet the fewest servers' ports.
const FIRST_PORT: u16 = 0x8000;

/// Offsets of the addresses and of the checksum in the IP headers.
const SOURCE4: usize = 12;
const DESTINATION4: usize = 16;
const CHECKSUM4: usize = 10;
const SOURCE6: usize = 8;
const DESTINATION6: usize = 24;
/// Offset of the checksum in an ICMP header.
const ICMP_CHECKSUM: usize = 2;

/// A client's packet from an ingress node, whatever is not of an established IPv4 flow that the task
/// sees as it is, on its way to the task behind `port`. Gives the verdict.
#[inline(never)]
pub fn inward(skb: *mut __sk_buff, port: u32) -> i32 {
    let ctx = TcContext::new(skb);
    let Some(headers) = of_packet(&ctx) else {
        return NEXT;
    };
    let Some(mac) = packet::source_mac(&ctx) else {
        return NEXT;
    };
    let mac = Mac::new(mac);
    // SAFETY: the value is one integer; an entry replaced meanwhile is as good.
    let node = unsafe { INGRESS_MACS.get(mac) }
        .copied()
        .unwrap_or_default();
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return NEXT;
    };
    // SAFETY: the map owns the value and it belongs to this CPU.
    let scratch = unsafe { &mut *scratch };
    if headers.part == Part::Later {
        return match fragments::translated(&headers.fragment_key()) {
            Some(client) => {
                readdress(&ctx, End::Source, headers.source, client);
                NEXT
            }
            None => NEXT,
        };
    }
    let Some(ports) = headers.ports(&ctx) else {
        return match headers.subject(&ctx) {
            Some(subject) => error_inward(&ctx, &headers, &subject, &mac, scratch),
            None => NEXT,
        };
    };
    scratch.key = TranslationKey {
        flow: FlowKey::from_wire(
            (headers.source, ports.source),
            (headers.destination, ports.destination),
            headers.protocol,
        ),
        mac,
    };
    if let Some(known) = FLOW.get_ptr_mut(&scratch.key.flow) {
        // SAFETY: the map owns the value; see `flow_learn`.
        if refreshed(&ctx, unsafe { &mut *known }, &ports, port).is_some() {
            return NEXT;
        }
    }
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    scratch.value = FlowValue {
        last_seen_ns: now_ns,
        mac: mac.octets,
        state: 0,
        node,
        orig_port_be: 0,
        xlat_port_be: 0,
        ifindex: port,
        zero: 0,
    };
    let client = Endpoint::from_wire(headers.source, ports.source);
    match decide(scratch, &ports, now_ns) {
        Decision::Native => NEXT,
        Decision::Drop => drop_of(Counter::TranslationFailed, port),
        Decision::Translated => {
            let seen = scratch.seen.client();
            if headers.part == Part::First && seen.address != client.address {
                fragments::remember(&headers.fragment_key(), |now_ns| {
                    FragmentValue::answer(now_ns, mac.octets).with_client(seen.address)
                });
            }
            replace(&ctx, &headers, End::Source, &client, &seen);
            NEXT
        }
    }
}

/// What becomes of a packet from an ingress node.
enum Decision {
    /// The task sees it as it is.
    Native,
    /// The task sees what is in [`Scratch::seen`].
    Translated,
    /// The task cannot be shown it.
    Drop,
}

#[inline(always)]
fn decide(scratch: &mut Scratch, ports: &Ports, now_ns: u64) -> Decision {
    let flow = &scratch.key.flow;
    let protocol = flow.protocol();
    let client = flow.client();
    let opens = ports.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    let snat = protocol != PROTOCOL_SCTP && wants_snat(flow);
    // SAFETY: plain integers; an entry replaced meanwhile is as good.
    if let Some(seen) = unsafe { XLAT_IN.get(&scratch.key) } {
        let seen = *seen;
        let outdated = opens && (seen.address != client.address) != snat;
        scratch.seen = flow.with_client(seen);
        if !outdated && owns(scratch, ports, now_ns) {
            return Decision::Translated;
        }
        let _ = XLAT_IN.remove(&scratch.key);
    }
    let flow = &scratch.key.flow;
    let mut moved = false;
    if let Some(known) = FLOW.get_ptr_mut(flow) {
        // SAFETY: the map owns the value; see `flow_learn`.
        let known = unsafe { &mut *known };
        let same = known.is_native() && known.mac == scratch.key.mac.octets;
        if same && !(snat && opens) && known.ifindex == scratch.value.ifindex {
            refresh(known, ports, now_ns);
            return Decision::Native;
        }
        moved = !same;
        // A TCP connection whose packets come by another node in mid-life has moved: another node
        // has taken over the address that the client asks.
        let another = opens || !ports.is_tcp || !known.is_native();
        let collides = moved && another && protocol != PROTOCOL_SCTP;
        if collides && !snat && !known.is_over(ports.is_tcp, now_ns) {
            count(Counter::Collisions);
            return own_port(scratch, client.address, 0, now_ns);
        }
    }
    if snat && (opens || !ports.is_tcp || !is_native(flow)) {
        if !moved {
            // As it was before, it would be found first.
            let _ = FLOW.remove(&scratch.key.flow);
        }
        return match overlay_address(scratch) {
            Some(address) => own_port(scratch, address, client.port_be, now_ns),
            None => Decision::Drop,
        };
    }
    let written = FLOW.insert(&scratch.key.flow, &scratch.value, u64::from(BPF_ANY));
    count(match written {
        Err(_) => Counter::FlowRefused,
        Ok(()) if moved => Counter::FlowMoved,
        Ok(()) => Counter::FlowLearned,
    });
    Decision::Native
}

/// Whether the task sees a flow that goes on as it is.
#[inline(always)]
fn is_native(flow: &FlowKey) -> bool {
    FLOW.get_ptr(flow)
        // SAFETY: the map owns the value, one integer is read.
        .is_some_and(|known| unsafe { (*known).is_native() })
}

/// Whether the target of a flow is published with `snat=true`.
#[inline(always)]
fn wants_snat(flow: &FlowKey) -> bool {
    let (address, port) = flow.task();
    let key = PublishedKey::from_wire(address, port, flow.protocol());
    // SAFETY: plain integers; an entry replaced meanwhile is as good.
    unsafe { TARGETS.get(key) }.is_some_and(|flags| flags & target_flag::SNAT != 0)
}

/// Whether what the task has been shown is still this flow's, refreshing it; entries that an LRU has
/// dropped are written again.
#[inline(always)]
fn owns(scratch: &mut Scratch, ports: &Ports, now_ns: u64) -> bool {
    let client = scratch.key.flow.client();
    let seen = scratch.seen.client();
    // SAFETY: plain integers; an entry replaced meanwhile is as good.
    match unsafe { XLAT_OUT.get(&scratch.seen) } {
        Some(known) if *known != client => return false,
        Some(_) => {}
        None => {
            if XLAT_OUT
                .insert(&scratch.seen, &client, u64::from(BPF_NOEXIST))
                .is_err()
            {
                return false;
            }
        }
    }
    if let Some(known) = FLOW.get_ptr_mut(&scratch.seen) {
        // SAFETY: the map owns the value; see `flow_learn`.
        let known = unsafe { &mut *known };
        if known.mac != scratch.key.mac.octets || known.xlat_port_be != seen.port_be {
            return false;
        }
        refresh(known, ports, now_ns);
        return true;
    }
    scratch.value.orig_port_be = client.port_be;
    scratch.value.xlat_port_be = seen.port_be;
    let noexist = u64::from(BPF_NOEXIST);
    FLOW.insert(&scratch.seen, &scratch.value, noexist).is_ok()
}

/// Finds a free port for a flow under `address`: `preferred_be` if that is not 0 and free.
#[inline(always)]
fn own_port(scratch: &mut Scratch, address: Address, preferred_be: u16, now_ns: u64) -> Decision {
    let client = scratch.key.flow.client();
    let is_tcp = scratch.key.flow.protocol() == PROTOCOL_TCP;
    scratch.value.orig_port_be = client.port_be;
    for attempt in 0..TRIES {
        let port_be = if attempt == 0 && preferred_be != 0 {
            preferred_be
        } else {
            // SAFETY: a helper without arguments.
            (unsafe { bpf_get_prandom_u32() } as u16 | FIRST_PORT).to_be()
        };
        let seen = Endpoint::from_wire(address, port_be);
        scratch.seen = scratch.key.flow.with_client(seen);
        if let Some(known) = FLOW.get_ptr(&scratch.seen) {
            // SAFETY: the map owns the value, whole integers are read.
            if !unsafe { (*known).is_over(is_tcp, now_ns) } {
                continue;
            }
            let _ = FLOW.remove(&scratch.seen);
        }
        scratch.value.xlat_port_be = port_be;
        // Another CPU may have been first.
        if FLOW
            .insert(&scratch.seen, &scratch.value, u64::from(BPF_NOEXIST))
            .is_err()
        {
            continue;
        }
        let any = u64::from(BPF_ANY);
        if XLAT_OUT.insert(&scratch.seen, &client, any).is_err()
            || XLAT_IN.insert(&scratch.key, &seen, any).is_err()
        {
            return Decision::Drop;
        }
        count(Counter::Translated);
        return Decision::Translated;
    }
    Decision::Drop
}

/// The overlay address of the ingress node that a flow came through, of the flow's IP version: its
/// MAC address has the IPv4 address in it, its IPv6 address the network's prefix before that.
#[inline(always)]
fn overlay_address(scratch: &Scratch) -> Option<Address> {
    let key = &scratch.key;
    let [_, _, a, b, c, d] = key.mac.octets;
    let word = u32::from_ne_bytes([a, b, c, d]);
    if key.flow.client().address.is_ipv4() {
        return Some(Address::from_ipv4_word(word));
    }
    // SAFETY: the value is plain integers, and an entry replaced meanwhile is as good.
    let task = unsafe { TASK_PORTS.get(scratch.value.ifindex) }?;
    let [first, second, third, _] = task.address6.words();
    Some(Address::from_words([first, second, third, word]))
}

/// A task's packet to what it sees instead of a client: gives it the client back and sends it to the
/// ingress node. Gives the verdict.
#[inline(never)]
pub fn outward(skb: *mut __sk_buff) -> i32 {
    let ctx = TcContext::new(skb);
    let Some(mac) = restore(&ctx) else {
        // SAFETY: the kernel gives every program a valid context.
        return drop_of(Counter::TranslationFailed, unsafe { (*skb).ifindex });
    };
    send(&ctx, mac)
}

/// Gives a packet the client back; the MAC address of the node that it has to go to. Nothing when
/// that is not known any more.
#[inline(always)]
fn restore(ctx: &TcContext) -> Option<[u8; 6]> {
    let headers = of_packet(ctx)?;
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the map owns the value and it belongs to this CPU.
    let scratch = unsafe { &mut *scratch };
    if headers.part == Part::Later {
        let first = fragments::known(&headers.fragment_key())?;
        let old = headers.destination;
        readdress(ctx, End::Destination, old, first.client);
        return Some(first.mac);
    }
    let ports = headers.ports(ctx);
    let subject = match ports {
        Some(_) => None,
        None => Some(headers.subject(ctx)?),
    };
    scratch.seen = match (ports, &subject) {
        (Some(ports), _) => FlowKey::from_wire(
            (headers.destination, ports.destination),
            (headers.source, ports.source),
            headers.protocol,
        ),
        (None, Some(request)) => FlowKey::from_wire(
            (request.source, request.ports.0),
            (request.destination, request.ports.1),
            request.protocol,
        ),
        (None, None) => return None,
    };
    // SAFETY: plain integers; entries replaced meanwhile are as good.
    let (client, mac) = unsafe {
        let client = *XLAT_OUT.get(&scratch.seen)?;
        (client, (*FLOW.get_ptr(&scratch.seen)?).mac)
    };
    let seen = scratch.seen.client();
    if let Some(subject) = &subject {
        error_outward(ctx, &headers, subject, &seen, &client);
        return Some(mac);
    }
    if headers.part == Part::First && seen.address != client.address {
        fragments::remember(&headers.fragment_key(), |now_ns| {
            FragmentValue::answer(now_ns, mac).with_client(client.address)
        });
    }
    replace(ctx, &headers, End::Destination, &seen, &client);
    Some(mac)
}

/// An error from outside about what a task has sent to a client.
#[inline(always)]
fn error_inward(
    ctx: &TcContext,
    headers: &Headers,
    subject: &Subject,
    mac: &Mac,
    scratch: &mut Scratch,
) -> i32 {
    scratch.key = TranslationKey {
        flow: FlowKey::from_wire(
            (subject.destination, subject.ports.1),
            (subject.source, subject.ports.0),
            subject.protocol,
        ),
        mac: *mac,
    };
    // SAFETY: plain integers; an entry replaced meanwhile is as good.
    if let Some(seen) = unsafe { XLAT_IN.get(&scratch.key) } {
        let (client, seen) = (scratch.key.flow.client(), *seen);
        replace_inside(ctx, headers, subject, End::Destination, &client, &seen);
    }
    NEXT
}

/// A task's error about what it has got from what it sees instead of a client.
#[inline(always)]
fn error_outward(
    ctx: &TcContext,
    headers: &Headers,
    subject: &Subject,
    seen: &Endpoint,
    client: &Endpoint,
) {
    replace_inside(ctx, headers, subject, End::Source, seen, client);
    if headers.destination == client.address {
        return;
    }
    if !client.address.is_ipv4() {
        let checksum = headers.transport + ICMP_CHECKSUM;
        sum_address(ctx, checksum, &headers.destination, &client.address, PSEUDO);
    }
    readdress(ctx, End::Destination, headers.destination, client.address);
}

/// Which end of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

impl End {
    /// Offset of its port in a transport header.
    const fn port(self) -> usize {
        match self {
            Self::Source => 0,
            Self::Destination => 2,
        }
    }
}

const PSEUDO: u64 = BPF_F_PSEUDO_HDR as u64;

/// Writes another address and port into a packet with a transport header.
#[inline(always)]
fn replace(ctx: &TcContext, headers: &Headers, end: End, old: &Endpoint, new: &Endpoint) {
    let (checksum, mangled) = match headers.protocol {
        PROTOCOL_TCP => (headers.transport + 16, 0),
        PROTOCOL_UDP => (headers.transport + 6, u64::from(BPF_F_MARK_MANGLED_0)),
        _ => return,
    };
    if old.address != new.address {
        sum_address(ctx, checksum, &old.address, &new.address, PSEUDO | mangled);
        readdress(ctx, end, old.address, new.address);
    }
    if old.port_be != new.port_be {
        let _ = ctx.skb.l4_csum_replace(
            checksum,
            u64::from(old.port_be),
            u64::from(new.port_be),
            mangled | 2,
        );
        let _ = ctx.store(headers.transport + end.port(), &new.port_be, 0);
    }
}

/// Writes another address into the outer IP header, with that header's checksum.
#[inline(always)]
fn readdress(ctx: &TcContext, end: End, old: Address, new: Address) {
    write_address(ctx, ETHERNET_LEN, end, &old, &new);
}

/// Writes another address into the IP header at `ip`, with that header's checksum.
#[inline(always)]
fn write_address(ctx: &TcContext, ip: usize, end: End, old: &Address, new: &Address) {
    if let (Some(old), Some(new)) = (old.ipv4_word(), new.ipv4_word()) {
        let _ = ctx
            .skb
            .l3_csum_replace(ip + CHECKSUM4, u64::from(old), u64::from(new), 4);
        let at = match end {
            End::Source => SOURCE4,
            End::Destination => DESTINATION4,
        };
        let _ = ctx.store(ip + at, &new, 0);
    } else {
        let at = match end {
            End::Source => SOURCE6,
            End::Destination => DESTINATION6,
        };
        // IPv6 has no checksum of its own that would make up for the change in what a card has
        // summed: the helper has to.
        let _ = ctx.store(ip + at, &new.words(), u64::from(BPF_F_RECOMPUTE_CSUM));
    }
}

/// Takes another address into a transport checksum.
#[inline(always)]
fn sum_address(ctx: &TcContext, checksum: usize, old: &Address, new: &Address, flags: u64) {
    if let (Some(old), Some(new)) = (old.ipv4_word(), new.ipv4_word()) {
        let _ = ctx
            .skb
            .l4_csum_replace(checksum, u64::from(old), u64::from(new), flags | 4);
        return;
    }
    let (old, new) = (old.words(), new.words());
    for at in 0..4 {
        let (old, new) = (u64::from(old[at]), u64::from(new[at]));
        let _ = ctx.skb.l4_csum_replace(checksum, old, new, flags | 4);
    }
}

/// Writes another address and port into the packet inside an ICMP error.
#[inline(always)]
fn replace_inside(
    ctx: &TcContext,
    headers: &Headers,
    subject: &Subject,
    end: End,
    old: &Endpoint,
    new: &Endpoint,
) {
    let ip = headers.transport + ERROR_LEN;
    let checksum = headers.transport + ICMP_CHECKSUM;
    if old.address != new.address {
        // Of IPv4 the header inside keeps its sum, and with it the error.
        if !new.address.is_ipv4() {
            sum_address(ctx, checksum, &old.address, &new.address, 0);
        }
        write_address(ctx, ip, end, &old.address, &new.address);
    }
    if old.port_be != new.port_be {
        let (old_port, new_port) = (u64::from(old.port_be), u64::from(new.port_be));
        let _ = ctx.skb.l4_csum_replace(checksum, old_port, new_port, 2);
        let _ = ctx.store(subject.transport + end.port(), &new.port_be, 0);
    }
}
