//! The data plane's programs, one or one family per file: the routing mesh's at tc hooks, and those
//! at socket hooks of the cgroup root (`sock_*`), which [`socket`] says more about.
//!
//! The mesh's are attached with clsact in direct-action mode. A packet that is none of their business
//! leaves with `TC_ACT_UNSPEC`: the next filter on the interface, then the stack, gets it
//! untouched. TCP, UDP and SCTP over IPv4 and IPv6 on Ethernet, whole or in fragments, and the ICMP
//! errors about them; kernels from 6.1.
//!
//! Deliberately absent: balancing of packets (IPVS does it), conntrack.
#![no_std]
#![no_main]

mod count;
mod flow_learn;
mod flow_return;
mod fragments;
mod headers;
mod isolation;
mod mesh_out;
mod mesh_uplink;
mod packet;
mod route;
mod shortcut;
mod shortcut_in;
mod shortcut_learn;
mod shortcut_out;
mod sock_connect;
mod sock_getpeername;
mod sock_recvmsg;
mod sock_sendmsg;
mod socket;
mod socket_context;
mod trace;
mod translation;
mod tunnel;

use aya_ebpf::bindings::TC_ACT_UNSPEC;

/// Not ours: on to the next filter.
const NEXT: i32 = TC_ACT_UNSPEC;

/// The helpers used are open to every licence; the kernel still wants to be told.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
