//! The socket programs' context: the address that a system call is about, read and written word by
//! word, because the verifier knows it by its offsets.

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use swarm_ebpf_common::{Address, SocketPeer};

use crate::socket::Asked;

/// Reads a field with one load of its own size.
macro_rules! field {
    ($ctx:expr, $($field:tt)+) => {
        // SAFETY: the kernel gives every program a valid context.
        unsafe { addr_of!((*raw($ctx)).$($field)+).read_volatile() }
    };
}

/// Writes a field with one store of its own size.
macro_rules! set_field {
    ($ctx:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: the kernel gives every program a valid context, in which the address is open to
        // writing.
        unsafe { addr_of_mut!((*raw($ctx)).$($field)+).write_volatile($value) }
    };
}

#[inline(always)]
fn raw(ctx: &SockAddrContext) -> *mut bpf_sock_addr {
    ctx.sock_addr
}

/// The address of an IPv4 system call.
#[inline(always)]
pub fn address4(ctx: &SockAddrContext) -> Address {
    Address::from_ipv4_word(field!(ctx, user_ip4))
}

/// The address of an IPv6 system call.
#[inline(always)]
pub fn address6(ctx: &SockAddrContext) -> Address {
    Address::from_words([
        field!(ctx, user_ip6[0]),
        field!(ctx, user_ip6[1]),
        field!(ctx, user_ip6[2]),
        field!(ctx, user_ip6[3]),
    ])
}

/// The port, in wire order.
#[inline(always)]
pub fn port_be(ctx: &SockAddrContext) -> u16 {
    field!(ctx, user_port) as u16
}

/// All of what an IPv4 system call asks for.
#[inline(always)]
pub fn asked4(ctx: &SockAddrContext) -> Asked {
    asked(ctx, address4(ctx))
}

/// All of what an IPv6 system call asks for.
#[inline(always)]
pub fn asked6(ctx: &SockAddrContext) -> Asked {
    asked(ctx, address6(ctx))
}

#[inline(always)]
fn asked(ctx: &SockAddrContext, address: Address) -> Asked {
    Asked {
        address,
        port_be: port_be(ctx),
        protocol: field!(ctx, protocol) as u8,
    }
}

/// Puts another address in the place of an IPv4 system call's; leaves it when that is not IPv4.
#[inline(always)]
pub fn replace4(ctx: &SockAddrContext, peer: &SocketPeer) {
    if let Some(word) = peer.address.ipv4_word() {
        set_field!(ctx, word, user_ip4);
        set_field!(ctx, u32::from(peer.port_be), user_port);
    }
}

/// Puts another address in the place of an IPv6 system call's. An IPv4 one goes in v4-mapped.
#[inline(always)]
pub fn replace6(ctx: &SockAddrContext, peer: &SocketPeer) {
    let [a, b, c, d] = peer.address.words();
    set_field!(ctx, a, user_ip6[0]);
    set_field!(ctx, b, user_ip6[1]);
    set_field!(ctx, c, user_ip6[2]);
    set_field!(ctx, d, user_ip6[3]);
    set_field!(ctx, u32::from(peer.port_be), user_port);
}
