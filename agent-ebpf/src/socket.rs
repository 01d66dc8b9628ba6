//! Balancing where a socket is connected, shared by the socket programs.
//!
//! The programs are attached to the root of the cgroup tree, so that every socket of the machine
//! passes here; a socket whose network namespace is not listed in `sock_scope` is left alone after
//! that one look-up. What a listed one asks for is looked up first as a virtual address of the
//! networks it is on, then as a published port, and the address of a task takes its place. Nothing
//! happens to the packets.
//!
//! The choice is random, evenly among the tasks of the slot. An unconnected UDP socket stays with
//! the task it was given for what it asked for, until that task leaves the slot: the datagrams of
//! one socket are one conversation more often than not.
//!
//! Loopback addresses belong to the host's processes first: where one listens, it is asked. At the
//! node's other addresses the published port is meant, as it is for clients outside, whose packets
//! never reach the host's stack.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_ANY, BPF_F_CURRENT_NETNS, BPF_F_NO_PREALLOC, bpf_sock_tuple};
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval,
    bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap};
use aya_ebpf::programs::SockAddrContext;
use swarm_ebpf_common::{
    Address, Counter, Protocol, SocketBackend, SocketFlow, SocketPeer, SocketScope, SocketService,
    SocketTarget, capacity, scope, scope_flag,
};

use crate::count::count;

#[map(name = "sock_scope")]
static SCOPES: HashMap<u64, SocketScope> = HashMap::pinned(capacity::SOCK_SCOPE, BPF_F_NO_PREALLOC);

#[map(name = "sock_service")]
static SERVICES: HashMap<SocketService, SocketTarget> =
    HashMap::pinned(capacity::SOCK_SERVICE, BPF_F_NO_PREALLOC);

#[map(name = "sock_slot")]
static SLOTS: HashMap<u64, u32> = HashMap::pinned(capacity::SOCK_SLOT, BPF_F_NO_PREALLOC);

#[map(name = "sock_backend")]
static BACKENDS: HashMap<SocketBackend, Address> =
    HashMap::pinned(capacity::SOCK_BACKEND, BPF_F_NO_PREALLOC);

#[map(name = "sock_flow")]
static FLOWS: LruHashMap<SocketFlow, SocketPeer> = LruHashMap::pinned(capacity::SOCK_FLOW, 0);

/// Verdicts of a socket program.
pub const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

/// `ECONNREFUSED` on every architecture the kernel gives Linux's generic numbers.
const ECONNREFUSED: i32 = 111;

/// What a socket is about to talk to.
#[derive(Clone, Copy)]
pub struct Asked {
    pub address: Address,
    pub port_be: u16,
    pub protocol: u8,
}

/// What becomes of it.
pub enum Answer {
    /// It is told that nobody is there.
    Refuse,
    /// It talks to this one instead.
    Peer(SocketPeer),
}

/// `connect` of a socket; nothing when it is none of our business.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, asked: Asked) -> Option<Answer> {
    let asked = named(asked);
    let target = find(ctx, &asked)?;
    let Some(peer) = choose(&target, asked.port_be) else {
        return Some(Answer::Refuse);
    };
    remember(
        &SocketFlow::answers(socket(ctx), peer.address, peer.port_be),
        &asked,
    );
    Some(Answer::Peer(peer))
}

/// A datagram with a destination of its own; nothing when it is none of our business.
#[inline(always)]
pub fn send(ctx: &SockAddrContext, asked: Asked) -> Option<Answer> {
    let asked = named(asked);
    let target = find(ctx, &asked)?;
    let socket = socket(ctx);
    let flow = SocketFlow::asked(socket, asked.address, asked.port_be);
    let known = known(&flow, &target, asked.port_be);
    let Some(peer) = known.or_else(|| choose(&target, asked.port_be)) else {
        return Some(Answer::Refuse);
    };
    if known.is_none() {
        // Refused when the table is being made room in: the next datagram chooses again.
        let _ = FLOWS.insert(flow, peer, u64::from(BPF_ANY));
    }
    let answers = SocketFlow::answers(socket, peer.address, peer.port_be);
    if known.is_none() || FLOWS.get_ptr(answers).is_none() {
        remember(&answers, &asked);
    }
    Some(Answer::Peer(peer))
}

/// What the owner of a socket asked for when `from` answers; nothing when that very one.
#[inline(always)]
pub fn asked_for(ctx: &SockAddrContext, from: Address, port_be: u16) -> Option<SocketPeer> {
    scope_of(ctx)?;
    // SAFETY: the value is plain integers; an entry replaced meanwhile is as good.
    unsafe { FLOWS.get(SocketFlow::answers(socket(ctx), from, port_be)) }.copied()
}

/// The verdict that makes the system call fail with `ECONNREFUSED`.
#[inline(always)]
pub fn refuse() -> i32 {
    count(Counter::SocketNoBackend);
    // SAFETY: a helper without pointers. Without it, or if it fails, the error is `EPERM`.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    REFUSE
}

#[inline(always)]
fn socket(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the kernel gives every program a valid context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn scope_of(ctx: &SockAddrContext) -> Option<SocketScope> {
    // SAFETY: the kernel gives every program a valid context; the value is two integers, and an
    // entry replaced meanwhile is as good.
    unsafe { SCOPES.get(bpf_get_netns_cookie(ctx.as_ptr())) }.copied()
}

/// The kernel takes the unspecified address for the loopback's.
#[inline(always)]
fn named(asked: Asked) -> Asked {
    let address = if asked.address == Address::UNSPECIFIED_V4 {
        Address::LOOPBACK_V4
    } else if asked.address == Address::UNSPECIFIED_V6 {
        Address::LOOPBACK_V6
    } else {
        asked.address
    };
    Asked { address, ..asked }
}

#[inline(always)]
fn find(ctx: &SockAddrContext, asked: &Asked) -> Option<SocketTarget> {
    if asked.protocol != Protocol::Tcp as u8 && asked.protocol != Protocol::Udp as u8 {
        return None;
    }
    let scope = scope_of(ctx)?;
    if scope.networks != scope::NONE {
        let key = SocketService::any_port_of(scope.networks, asked.address);
        // SAFETY: the value is plain integers; an entry replaced meanwhile is as good.
        if let Some(target) = unsafe { SERVICES.get(key) } {
            return Some(*target);
        }
    }
    let loopback = asked.address.is_loopback();
    let needed = if loopback {
        scope_flag::LOOPBACK
    } else {
        scope_flag::PUBLISHED
    };
    if scope.flags & needed == 0 {
        return None;
    }
    let key = SocketService::from_wire(
        scope::PUBLISHED,
        asked.address,
        asked.port_be,
        asked.protocol,
    );
    // SAFETY: as above.
    let target = *unsafe { SERVICES.get(key) }?;
    if loopback && somebody_listens(ctx, asked) {
        return None;
    }
    Some(target)
}

/// Whether a socket of the asker's namespace takes what is sent there.
#[inline(always)]
fn somebody_listens(ctx: &SockAddrContext, asked: &Asked) -> bool {
    // SAFETY: all zero is a valid value of a union of structures of integers.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if let Some(word) = asked.address.ipv4_word() {
        tuple.__bindgen_anon_1.ipv4.daddr = word;
        tuple.__bindgen_anon_1.ipv4.dport = asked.port_be;
        // SAFETY: a member of a union of structures of integers.
        size_of_val(unsafe { &tuple.__bindgen_anon_1.ipv4 })
    } else {
        tuple.__bindgen_anon_1.ipv6.daddr = asked.address.words();
        tuple.__bindgen_anon_1.ipv6.dport = asked.port_be;
        // SAFETY: as above.
        size_of_val(unsafe { &tuple.__bindgen_anon_1.ipv6 })
    };
    let (context, tuple, size) = (ctx.as_ptr(), &raw mut tuple, size as u32);
    let here = BPF_F_CURRENT_NETNS as u64;
    // SAFETY: context and tuple are valid, the size is that of the tuple's member in use; what is
    // found is released.
    unsafe {
        let found = if asked.protocol == Protocol::Tcp as u8 {
            bpf_sk_lookup_tcp(context, tuple, size, here, 0)
        } else {
            bpf_sk_lookup_udp(context, tuple, size, here, 0)
        };
        if found.is_null() {
            return false;
        }
        bpf_sk_release(found.cast());
    }
    true
}

/// A backend of a slot at random; nothing when it has none.
#[inline(always)]
fn choose(target: &SocketTarget, asked_port_be: u16) -> Option<SocketPeer> {
    // SAFETY: one integer; an entry replaced meanwhile is as good.
    let backends = *unsafe { SLOTS.get(target.slot) }?;
    if backends == 0 {
        return None;
    }
    // SAFETY: a helper without arguments.
    let index = unsafe { bpf_get_prandom_u32() } % backends;
    // While the agent shortens the slot its last backend may be gone already; the first is the last
    // to go.
    backend(target, index, asked_port_be).or_else(|| backend(target, 0, asked_port_be))
}

#[inline(always)]
fn backend(target: &SocketTarget, index: u32, asked_port_be: u16) -> Option<SocketPeer> {
    // SAFETY: plain integers; an entry replaced meanwhile is as good.
    let address = *unsafe { BACKENDS.get(SocketBackend::new(target.slot, index)) }?;
    let port_be = if target.port_be == 0 {
        asked_port_be
    } else {
        target.port_be
    };
    Some(SocketPeer::new(address, port_be, index))
}

/// The backend that a UDP socket was given before, while it is in its place in the slot.
#[inline(always)]
fn known(flow: &SocketFlow, target: &SocketTarget, asked_port_be: u16) -> Option<SocketPeer> {
    // SAFETY: plain integers; an entry replaced meanwhile is as good.
    let before = *unsafe { FLOWS.get(flow) }?;
    let now = backend(target, before.index, asked_port_be)?;
    (now == before).then_some(now)
}

#[inline(always)]
fn remember(answers: &SocketFlow, asked: &Asked) {
    let asked = SocketPeer::new(asked.address, asked.port_be, 0);
    // Refused when the table is being made room in: the socket is then shown the task's address.
    let _ = FLOWS.insert(answers, asked, u64::from(BPF_ANY));
}
