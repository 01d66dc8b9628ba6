//! The socket, and the little of it that a conversation needs.

use std::io;

use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};

/// Longest wait for one datagram of an answer, in milliseconds.
///
/// The kernel works on a request inside the `send`, so the answer is there when `send` returns; the
/// wait only ever passes when an answer is lost.
pub const RECEIVE_TIMEOUT_MS: u64 = 5_000;

/// Bytes asked for the socket's receive buffer: room for the acknowledgements of a batch (under
/// 1 KiB of accounted memory each), whatever `net.core.rmem_default` says. The kernel caps it at
/// `net.core.rmem_max`.
const SOCKET_BUFFER_BYTES: u32 = 256 * 1024;

/// Interrupted receives that are tried again: a signal now and then, not a storm of them.
const MAX_INTERRUPTIONS: usize = 64;

/// Sends and receives datagrams to and from the kernel. A trait so that tests can speak for the
/// kernel.
pub(crate) trait Transport {
    /// Sends one datagram. When it fails, the kernel has seen nothing of it.
    fn send(&mut self, datagram: &[u8]) -> io::Result<()>;

    /// Replaces the content of `datagram` by the next one, up to its capacity. `WouldBlock` when
    /// none came in time.
    fn receive(&mut self, datagram: &mut Vec<u8>) -> io::Result<()>;
}

/// A generic netlink socket connected to the kernel of the network namespace it was opened in.
#[derive(Debug)]
pub(crate) struct NetlinkSocket(Socket);

impl NetlinkSocket {
    /// Opens a socket in the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        // Connected, the socket takes messages from nobody but the kernel.
        socket.connect(&SocketAddr::new(0, 0))?;
        // Refusals then carry the header of the request, not all of it.
        socket.set_cap_ack(true)?;
        socket.set_rx_buf_sz(SOCKET_BUFFER_BYTES)?;
        setsockopt(
            &socket,
            ReceiveTimeout,
            &TimeVal::milliseconds(RECEIVE_TIMEOUT_MS as i64),
        )?;
        Ok(Self(socket))
    }
}

impl Transport for NetlinkSocket {
    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        self.0.send(datagram, 0).map(|_| ())
    }

    fn receive(&mut self, datagram: &mut Vec<u8>) -> io::Result<()> {
        for _ in 0..MAX_INTERRUPTIONS {
            datagram.clear();
            match self.0.recv(datagram, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(|_| ()),
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }
}
