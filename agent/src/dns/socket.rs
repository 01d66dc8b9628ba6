//! The sockets of a task's name server, opened inside its network namespace.

use std::io;
use std::net::{SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
    sockopt,
};

use super::{ADDRESS, PORT};
use crate::network::{Netns, NetnsError};

/// Connections that wait to be accepted: more than are served at one time.
const BACKLOG: i32 = 32;

/// Why a task has no name server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Its namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// It has none.
    #[error("the task has no network namespace")]
    NoNetns,
    /// The sockets cannot be opened.
    #[error("listen at {ADDRESS}:{PORT}")]
    Listen(#[source] io::Error),
}

/// Sockets that stay in the namespace they were opened in, for as long as they are open. So does
/// the namespace.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
}

impl Sockets {
    /// Opens both in `netns`, not blocking. Takes a thread for a moment: not for an asynchronous
    /// worker.
    pub(super) fn open(netns: &Netns) -> Result<Self, OpenError> {
        netns
            .run(|| {
                let udp = bound(SockType::Datagram)?;
                let tcp = bound(SockType::Stream)?;
                listen(&tcp, Backlog::new(BACKLOG)?)?;
                Ok(Self {
                    udp: udp.into(),
                    tcp: tcp.into(),
                })
            })?
            .map_err(|errno: nix::Error| OpenError::Listen(errno.into()))
    }
}

fn bound(kind: SockType) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, kind, flags, None)?;
    // A name server inside the task may want this port on all addresses: one that shares it, as
    // most do, can have it beside us. Queries to our address come to the socket bound to it.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    // Also while the loopback interface is down.
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    let address = SockaddrIn::from(SocketAddrV4::new(ADDRESS, PORT));
    bind(socket.as_raw_fd(), &address)?;
    Ok(socket)
}
