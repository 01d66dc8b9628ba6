//! `connect4`, `connect6`: a connection to a service goes straight to one of its tasks.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::socket::{ALLOW, Answer, connect, refuse};
use crate::socket_context::{asked4, asked6, replace4, replace6};

/// Entry point, IPv4.
#[cgroup_sock_addr(connect4)]
pub fn sock_connect4(ctx: SockAddrContext) -> i32 {
    match connect(&ctx, asked4(&ctx)) {
        None => return ALLOW,
        Some(Answer::Refuse) => return refuse(),
        Some(Answer::Peer(peer)) => replace4(&ctx, &peer),
    }
    ALLOW
}

/// Entry point, IPv6; also IPv4 given as v4-mapped.
#[cgroup_sock_addr(connect6)]
pub fn sock_connect6(ctx: SockAddrContext) -> i32 {
    match connect(&ctx, asked6(&ctx)) {
        None => return ALLOW,
        Some(Answer::Refuse) => return refuse(),
        Some(Answer::Peer(peer)) => replace6(&ctx, &peer),
    }
    ALLOW
}
