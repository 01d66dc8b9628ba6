//! One accepted connection, as the gRPC server holds it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::Peer;
use super::lease::{Lease, LeaseWatch};
use super::leases::Place;

/// Bytes to and from a known peer.
pub(super) struct Connection {
    stream: Stream,
    caller: Caller,
    /// Notices when the peer's right to be connected ends.
    watch: LeaseWatch,
    /// Its places among all connections and among those of its node; given back when it is dropped.
    _places: (OwnedSemaphorePermit, Option<Place>),
}

/// The other end, as the check before every service knows it.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// Who it is.
    pub(super) peer: Peer,
    /// Its right to be connected.
    pub(super) lease: Lease,
}

/// What carries the bytes.
pub(super) enum Stream {
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl Connection {
    pub(super) fn new(
        stream: Stream,
        peer: Peer,
        lease: Lease,
        places: (OwnedSemaphorePermit, Option<Place>),
    ) -> Self {
        Self {
            stream,
            watch: LeaseWatch::new(&lease),
            caller: Caller { peer, lease },
            _places: places,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // The server always has a read under way, so this is where the end is noticed.
        if self.watch.poll_over(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        match &mut self.stream {
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
