//! The network side: accepts, finishes TLS, finds out who is there.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use swarm_model::ClusterId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::connection::{Connection, Stream};
use super::lease::Lease;
use super::leases::Leases;
use super::{Identity, Peer};
use crate::ca::validity;
use crate::clock;
use crate::store::Store;

/// Handshakes under way at a time. Each costs a signature; more would only queue for the processor.
const MAX_HANDSHAKES: usize = 256;

/// Time for a handshake: three round trips of a very bad link, and no shelter for who sends nothing.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Connections of nodes at a time; several for each host of a swarm of a thousand.
const MAX_NODE_CONNECTIONS: usize = 4096;

/// Connections without a certificate at a time: hosts in the middle of joining. Apart from the
/// nodes', so that strangers cannot use up the nodes' places.
const MAX_ANONYMOUS_CONNECTIONS: usize = 256;

/// Life of a connection without a certificate; joining takes two calls.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(60);

/// Finished connections that wait for the server.
pub(super) const QUEUE: usize = 16;

/// Pause after a failed accept. It fails when the process is out of file descriptors; without a
/// pause the loop would spin until one is free.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a handshake needs.
#[derive(Clone)]
struct Gate {
    cluster_id: ClusterId,
    tls: watch::Receiver<Arc<ServerConfig>>,
    store: Store,
    leases: Leases,
    nodes: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    ready: mpsc::Sender<io::Result<Connection>>,
}

/// Accepts on `listener` until the receiving end of `ready` is gone. Each connection is served with
/// the newest configuration in `tls`; those of nodes that are removed from `store` are ended. What does not become a connection is dropped with a line in
/// the debug log: garbage on an open port is the peer's trouble.
pub(super) async fn accept(
    listener: TcpListener,
    cluster_id: ClusterId,
    tls: watch::Receiver<Arc<ServerConfig>>,
    store: Store,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let leases = Leases::default();
    let gate = Gate {
        cluster_id,
        tls,
        store: store.clone(),
        leases: leases.clone(),
        nodes: Arc::new(Semaphore::new(MAX_NODE_CONNECTIONS)),
        strangers: Arc::new(Semaphore::new(MAX_ANONYMOUS_CONNECTIONS)),
        ready: ready.clone(),
    };
    let mut handshakes = JoinSet::new();
    let mut end_removed = pin!(leases.end_removed(store));
    loop {
        while handshakes.try_join_next().is_some() {}
        if handshakes.len() >= MAX_HANDSHAKES {
            tokio::select! {
                _ = handshakes.join_next() => {}
                () = &mut end_removed => return,
            }
        }
        let accepted = tokio::select! {
            () = ready.closed() => return,
            () = &mut end_removed => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                handshakes.spawn(admit(gate.clone(), stream, address));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Takes one connection through TLS and hands it on.
async fn admit(gate: Gate, stream: TcpStream, address: SocketAddr) {
    match timeout(HANDSHAKE_DEADLINE, shake_hands(&gate, stream, address)).await {
        Err(_elapsed) => tracing::debug!(%address, "no TLS handshake in time"),
        Ok(Err(error)) => tracing::debug!(%address, %error, "no connection"),
        Ok(Ok(connection)) => {
            // Fails only when the server is stopping.
            let _ = gate.ready.send(Ok(connection)).await;
        }
    }
}

async fn shake_hands(
    gate: &Gate,
    stream: TcpStream,
    address: SocketAddr,
) -> io::Result<Connection> {
    // Assignments are small and urgent.
    stream.set_nodelay(true)?;
    let config = Arc::clone(&gate.tls.borrow());
    let stream = TlsAcceptor::from(config).accept(stream).await?;
    let chain = stream.get_ref().1.peer_certificates();
    let identity = Identity::from_chain(chain, &gate.cluster_id).map_err(io::Error::other)?;
    let (place, lease, places) = match (&identity, chain.and_then(<[_]>::first)) {
        (Identity::Node { id, .. }, Some(leaf)) => {
            let left = validity(leaf).map_err(io::Error::other)?.left(clock::now());
            // Both in one: a node that is removed after this look is known to have been there.
            let (place, lease, known) = gate.store.read(|state| {
                let known = state.node(id).is_some();
                // Else it was removed and is to be told so, or has just joined by another manager.
                let life = if known {
                    left
                } else {
                    left.min(ANONYMOUS_LIFE)
                };
                let lease = Lease::new(Some(life));
                (gate.leases.enter(id, &lease, known), lease, known)
            });
            let place =
                place.ok_or_else(|| io::Error::other("too many connections of one node"))?;
            let places = if known { &gate.nodes } else { &gate.strangers };
            (Some(place), lease, places)
        }
        _ => (None, Lease::new(Some(ANONYMOUS_LIFE)), &gate.strangers),
    };
    let permit = Arc::clone(places)
        .try_acquire_owned()
        .map_err(|_| io::Error::other("too many connections of its kind"))?;
    let peer = Peer {
        identity,
        address: Some(address.ip().to_canonical()),
        forwarded_by: None,
    };
    let stream = Stream::Tls(Box::new(stream));
    Ok(Connection::new(stream, peer, lease, (permit, place)))
}
