//! `getpeername4`, `getpeername6`: the peer of a connection is the service that was asked.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::socket::{ALLOW, asked_for};
use crate::socket_context::{address4, address6, port_be, replace4, replace6};

/// Entry point, IPv4.
#[cgroup_sock_addr(getpeername4)]
pub fn sock_peername4(ctx: SockAddrContext) -> i32 {
    if let Some(asked) = asked_for(&ctx, address4(&ctx), port_be(&ctx)) {
        replace4(&ctx, &asked);
    }
    ALLOW
}

/// Entry point, IPv6; also IPv4 at an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn sock_peername6(ctx: SockAddrContext) -> i32 {
    if let Some(asked) = asked_for(&ctx, address6(&ctx), port_be(&ctx)) {
        replace6(&ctx, &asked);
    }
    ALLOW
}
