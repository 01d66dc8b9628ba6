//! Waiting for the kernel to say that something changed.
//!
//! What changed is not looked at: the next pass reads everything. So nothing is queued but in the
//! socket, whose overflow is an event like any other.

use std::fmt;
use std::future::poll_fn;
use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket as _, SocketAddr, TokioSocket};
use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use tokio::runtime::Handle;

use super::netns::{Netns, NetnsError};

/// Longest datagram of interest: none is, the rest is cut off.
const BUFFER_BYTES: usize = 4096;

/// Datagrams taken out at once, so that a storm of them cannot hold the loop.
const MAX_DRAINED: usize = 1024;

/// Why a namespace cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MonitorError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// No socket that receives notifications.
    #[error("subscribe to netlink notifications")]
    Subscribe(#[source] io::Error),
}

/// A subscription to the changes in one namespace.
pub(super) struct Monitor {
    netns: Netns,
    socket: TokioSocket,
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor")
            .field("netns", &self.netns)
            .finish_non_exhaustive()
    }
}

impl Monitor {
    /// Subscribes in `netns`. Must be called within a tokio runtime.
    pub(super) fn open(netns: &Netns, groups: &[MulticastGroup]) -> Result<Self, MonitorError> {
        let runtime = Handle::current();
        let subscribe = || {
            // The thread that is in the namespace is none of the runtime's.
            let _entered = runtime.enter();
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            for group in groups {
                socket.socket_ref().add_membership(*group as u32)?;
            }
            Ok(socket)
        };
        let socket = netns.run(subscribe)?.map_err(MonitorError::Subscribe)?;
        Ok(Self {
            netns: netns.clone(),
            socket,
        })
    }

    /// Whether this is the monitor of `netns`.
    pub(super) fn watches(&self, netns: &Netns) -> bool {
        self.netns == *netns
    }

    /// Waits for a change and takes out the notifications there are.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        let received = poll_fn(|context| self.socket.poll_recv(context, &mut buffer)).await;
        lost_is_news(received)?;
        self.drain().map(drop)
    }

    /// Takes out the notifications there are, and says whether there were any.
    pub(super) fn drain(&mut self) -> io::Result<bool> {
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        for taken in 0..MAX_DRAINED {
            buffer.clear();
            match self.socket.socket_ref().recv(&mut buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(taken > 0),
                received => lost_is_news(received.map(drop))?,
            }
        }
        Ok(true)
    }
}

/// An overflow (`ENOBUFS`): notifications were lost, so something changed.
fn lost_is_news(received: io::Result<()>) -> io::Result<()> {
    match received {
        Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(()),
        received => received,
    }
}
