//! The two servers: which services, within which bounds.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use swarm_api::v1::control_server::ControlServer;
use swarm_api::v1::dispatcher_server::{Dispatcher, DispatcherServer};
use swarm_api::v1::local_control_server::LocalControlServer;
use swarm_api::v1::managers_server::ManagersServer;
use swarm_api::v1::node_ca_server::NodeCaServer;
use swarm_api::v1::raft_server::{Raft, RaftServer};
use swarm_model::{ClusterId, NodeId};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tower::layer::util::{Identity as NoLayer, Stack};

use super::authorise::AuthoriseLayer;
use super::connection::Connection;
use super::consistent::ConsistentLayer;
use super::control::ControlService;
use super::forward::{ForwardLayer, Forwarder};
use super::join_managers::ManagersService;
use super::local_control::LocalControlService;
use super::node_ca::NodeCaService;
use super::watch::Watches;
use super::{Dialer, listen, socket};
use crate::ca::Signer;
use crate::store::Store;

/// Largest message read from a node or a person: a service spec at its bounds, or the statuses of
/// all tasks of a node after a long silence.
const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Largest message read from someone without a certificate: a token and a request to sign.
const MAX_JOIN_MESSAGE_BYTES: usize = 64 * 1024;

/// Calls of one connection that are worked on at a time; a node has one stream and a few calls.
const MAX_CONCURRENT_CALLS: usize = 32;

/// HTTP/2 streams a connection may open.
const MAX_STREAMS: u32 = 64;

/// Time until a call's answer begins; longer than an update of the store may take.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// How often an idle connection is asked for a sign of life, and how long it has to give one. The
/// dispatcher's heartbeats are faster; this is for connections without a session.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_DEADLINE: Duration = Duration::from_secs(10);

/// Time that open calls get to end once the server is told to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// What is served on the network.
pub(crate) struct Network<D, R> {
    /// Where connections arrive.
    pub(crate) listener: TcpListener,
    /// Newest TLS configuration; each connection takes the one of its moment.
    pub(crate) tls: watch::Receiver<Arc<ServerConfig>>,
    /// The swarm whose certificates are accepted.
    pub(crate) cluster_id: ClusterId,
    /// This node.
    pub(crate) self_id: NodeId,
    /// Who talks with the agents.
    pub(crate) dispatcher: D,
    /// Who takes Raft's messages.
    pub(crate) raft: R,
    /// Connects to other managers.
    pub(crate) dialer: Dialer,
    /// Who signs certificates.
    pub(crate) signer: Signer,
}

/// Serves nodes and remote managers until `stop`; then open calls get a moment to end.
pub(crate) async fn serve_network<D: Dispatcher, R: Raft>(
    network: Network<D, R>,
    store: Store,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let Network {
        listener,
        tls,
        cluster_id,
        self_id,
        dispatcher,
        raft,
        dialer,
        signer,
    } = network;
    let forwarder = Forwarder::new(store.clone(), self_id.clone(), dialer.clone());
    let control = ControlService {
        watches: Watches::new(store.clone(), self_id.clone()),
        store: store.clone(),
        self_id,
        forwarder: forwarder.clone(),
        signer: signer.clone(),
    };
    let managers = ManagersService {
        store: store.clone(),
        dialer,
    };
    let router = builder(&store, forwarder)
        .add_service(RaftServer::new(raft).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(
            ManagersServer::new(managers).max_decoding_message_size(MAX_JOIN_MESSAGE_BYTES),
        )
        .add_service(
            NodeCaServer::new(NodeCaService::new(store.clone(), signer))
                .max_decoding_message_size(MAX_JOIN_MESSAGE_BYTES),
        )
        .add_service(DispatcherServer::new(dispatcher).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(ControlServer::new(control).max_decoding_message_size(MAX_MESSAGE_BYTES));
    let (ready, connections) = mpsc::channel(listen::QUEUE);
    let accept = listen::accept(listener, cluster_id, tls, store, ready);
    serve(router, connections, accept, stop).await
}

/// Serves whoever may open `listener`, until `stop`.
pub(crate) async fn serve_local(
    listener: UnixListener,
    self_id: NodeId,
    store: Store,
    dialer: Dialer,
    signer: Signer,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let forwarder = Forwarder::new(store.clone(), self_id.clone(), dialer);
    let control = ControlService {
        watches: Watches::new(store.clone(), self_id.clone()),
        store: store.clone(),
        self_id: self_id.clone(),
        forwarder: forwarder.clone(),
        signer: signer.clone(),
    };
    let local = LocalControlService {
        store: store.clone(),
        self_id,
        signer,
    };
    let router = builder(&store, forwarder)
        .add_service(ControlServer::new(control).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(
            LocalControlServer::new(local).max_decoding_message_size(MAX_JOIN_MESSAGE_BYTES),
        );
    let (ready, connections) = mpsc::channel(listen::QUEUE);
    serve(router, connections, socket::accept(listener, ready), stop).await
}

type Layers = Stack<ConsistentLayer, Stack<ForwardLayer, Stack<AuthoriseLayer, NoLayer>>>;

fn builder(store: &Store, forwarder: Forwarder) -> Server<Layers> {
    Server::builder()
        .concurrency_limit_per_connection(MAX_CONCURRENT_CALLS)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_DEADLINE))
        .timeout(CALL_DEADLINE)
        // The outer one first.
        .layer(AuthoriseLayer(store.clone()))
        .layer(ForwardLayer(forwarder))
        .layer(ConsistentLayer(store.clone()))
}

async fn serve(
    router: Router<Layers>,
    connections: mpsc::Receiver<std::io::Result<Connection>>,
    accept: impl Future<Output = ()>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let connections = ReceiverStream::new(connections);
    let server = router.serve_with_incoming_shutdown(connections, stop.cancelled());
    let last_call = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_DEADLINE).await;
    };
    // Accepting ends by itself when the server drops the other end of its queue.
    let both = async { tokio::join!(server, accept).0 };
    tokio::select! {
        result = both => result,
        () = last_call => Ok(()),
    }
}
