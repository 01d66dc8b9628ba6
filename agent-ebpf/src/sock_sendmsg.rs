//! `sendmsg4`, `sendmsg6`: a datagram to a service, from a socket that is not connected, goes
//! straight to one of its tasks.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::socket::{ALLOW, Answer, refuse, send};
use crate::socket_context::{asked4, asked6, replace4, replace6};

/// Entry point, IPv4; also IPv4 given as v4-mapped.
#[cgroup_sock_addr(sendmsg4)]
pub fn sock_sendmsg4(ctx: SockAddrContext) -> i32 {
    match send(&ctx, asked4(&ctx)) {
        None => return ALLOW,
        Some(Answer::Refuse) => return refuse(),
        Some(Answer::Peer(peer)) => replace4(&ctx, &peer),
    }
    ALLOW
}

/// Entry point, IPv6. The kernel cannot turn it into IPv4 here (`ENOTSUPP`), so that a service
/// without an IPv6 task is as good as none.
#[cgroup_sock_addr(sendmsg6)]
pub fn sock_sendmsg6(ctx: SockAddrContext) -> i32 {
    match send(&ctx, asked6(&ctx)) {
        None => return ALLOW,
        Some(Answer::Refuse) => return refuse(),
        Some(Answer::Peer(peer)) if peer.address.ipv4_word().is_some() => return refuse(),
        Some(Answer::Peer(peer)) => replace6(&ctx, &peer),
    }
    ALLOW
}
