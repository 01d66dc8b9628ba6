//! A manager's two servers on an in-memory store, and clients for them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use swarm_api::v1;
use swarm_api::v1::dispatcher_server::Dispatcher;
use swarm_api::v1::raft_server::Raft;
use swarm_model::{
    Cluster, ClusterId, ClusterSpec, ManagerStatus, Meta, Node, NodeDescription, NodeId, NodeSpec,
    NodeState, NodeStatus, Role, Timestamp, random_base36,
};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status, Streaming};

use crate::ca::{Authority, CredentialsFile, OwnCertificate, Signer, Subject, Term, new_root};
use crate::clock;
use crate::serve::{Dialer, Network, bind_socket, serve_local, serve_network};
use crate::store::{Change, Store};

pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// Longest that anything here may take on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A running manager. Stops when dropped.
pub(super) struct Manager {
    pub(super) store: Store,
    pub(super) cluster: Cluster,
    pub(super) self_id: NodeId,
    pub(super) address: SocketAddr,
    pub(super) socket: PathBuf,
    pub(super) tls: watch::Sender<Arc<ServerConfig>>,
    pub(super) directory: TempDir,
    _stop: DropGuard,
    _tasks: JoinSet<Result<(), tonic::transport::Error>>,
}

impl Manager {
    pub(super) async fn start() -> Self {
        let cluster = new_cluster();
        let store = Store::in_memory();
        let self_id = NodeId::random(&mut rand::rng());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut own = node(self_id.clone(), Role::Manager, "h1");
        own.manager = Some(ManagerStatus {
            raft_id: 1,
            address,
            leader: true,
            certificate_issuer: String::new(),
        });
        put(&store, vec![cluster.clone().into(), own.into()]).await;

        let directory = tempfile::tempdir().unwrap();
        let certificate = OwnCertificate::load_or_issue(
            &CredentialsFile::new(directory.path().join("tls/manager.pem"), None, false),
            &cluster,
            &self_id,
            clock::now(),
            &mut rand::rng(),
        )
        .unwrap();
        let (tls, tls_receiver) = watch::channel(Arc::new(certificate.server));
        let client = watch::channel(Arc::new(certificate.client)).1;
        let (dialer, signer) = (Dialer::new(client.clone()), Signer::new(Some(client)));
        let socket = directory.path().join("control.sock");
        let local = bind_socket(&socket).unwrap();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let network = Network {
            listener,
            tls: tls_receiver,
            cluster_id: cluster.id.clone(),
            self_id: self_id.clone(),
            dispatcher: Silent,
            raft: Deaf,
            dialer: dialer.clone(),
            signer: signer.clone(),
        };
        tasks.spawn(serve_network(network, store.clone(), stop.clone()));
        tasks.spawn(serve_local(
            local,
            self_id.clone(),
            store.clone(),
            dialer,
            signer,
            stop.clone(),
        ));
        Self {
            store,
            cluster,
            self_id,
            address,
            socket,
            tls,
            directory,
            _stop: stop.drop_guard(),
            _tasks: tasks,
        }
    }

    /// Adds a node to the store.
    pub(super) async fn add_node(&self, role: Role, hostname: &str) -> NodeId {
        let id = NodeId::random(&mut rand::rng());
        put(&self.store, vec![node(id.clone(), role, hostname).into()]).await;
        id
    }

    /// Credentials of a node that joined an hour ago, good for `life` from then.
    pub(super) fn credentials(&self, id: &NodeId, role: Role, life: Duration) -> Credentials {
        credentials(&self.cluster, id, role, life)
    }

    /// A gRPC channel over TLS, opened by the first call.
    pub(super) fn channel(&self, credentials: Option<&Credentials>) -> Channel {
        let tls = client_config(&self.cluster.root_ca_pem, credentials);
        let address = self.address;
        let connect = move |_: Uri| {
            let tls = tls.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(dial(address, tls).await?)) }
        };
        Endpoint::from_static("http://swarm-manager")
            .timeout(PATIENCE)
            .connect_with_connector_lazy(tower::service_fn(connect))
    }

    /// A gRPC channel over the local socket.
    pub(super) fn local(&self) -> Channel {
        let socket = self.socket.clone();
        let connect = move |_: Uri| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        };
        Endpoint::from_static("http://local")
            .timeout(PATIENCE)
            .connect_with_connector_lazy(tower::service_fn(connect))
    }

    /// The worker join token.
    pub(super) fn token(&self, role: Role) -> String {
        let secret = match role {
            Role::Worker => &self.cluster.worker_secret,
            Role::Manager => &self.cluster.manager_secret,
        };
        swarm_model::JoinToken::new(&self.cluster.root_ca_pem, secret).to_string()
    }
}

pub(super) async fn put(store: &Store, changes: Vec<Change>) {
    store
        .update(|_| Ok::<_, std::convert::Infallible>((changes, ())))
        .await
        .unwrap();
}

pub(super) fn new_cluster() -> Cluster {
    let mut rng = rand::rng();
    // Old enough that credentials from the past are under a root that was valid then.
    let root = new_root(Timestamp(clock::now().0 - 1000 * 24 * 3600 * 1000)).unwrap();
    Cluster {
        id: ClusterId::random(&mut rng),
        meta: Meta::default(),
        spec: ClusterSpec::default(),
        root_ca_pem: root.certificate_pem,
        root_key_pem: root.key_pem,
        worker_secret: random_base36(&mut rng, 25).into(),
        manager_secret: random_base36(&mut rng, 25).into(),
        networks_made: swarm_model::NetworkCursor::default(),
        epoch: 0,
        lock: swarm_model::ManagerLock::default(),
        rotation: None,
    }
}

pub(super) fn node(id: NodeId, role: Role, hostname: &str) -> Node {
    Node {
        id,
        meta: Meta::default(),
        spec: NodeSpec::default(),
        role,
        description: NodeDescription {
            hostname: hostname.to_owned(),
            ..NodeDescription::default()
        },
        status: NodeStatus {
            state: NodeState::Ready,
            ..NodeStatus::default()
        },
        manager: None,
        ingress_address: None,
    }
}

/// A certificate with its key.
pub(super) struct Credentials {
    chain_pem: String,
    key_pem: String,
}

/// Issued an hour ago by `cluster`, good for `life` from then.
pub(super) fn credentials(
    cluster: &Cluster,
    id: &NodeId,
    role: Role,
    life: Duration,
) -> Credentials {
    let (csr, key_pem) = request();
    let subject = Subject {
        node_id: id.clone(),
        role,
        cluster_id: cluster.id.clone(),
    };
    let term = Term {
        now: Timestamp(clock::now().0 - HOUR.as_millis() as u64),
        life,
    };
    let chain_pem = Authority::new(cluster)
        .unwrap()
        .issue(&csr, &subject, term, &mut rand::rng())
        .unwrap();
    Credentials { chain_pem, key_pem }
}

/// A certificate request (DER) and its key (PEM).
pub(super) fn request() -> (Vec<u8>, String) {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    (csr.der().to_vec(), key.serialize_pem())
}

pub(super) fn client_config(root_pem: &str, credentials: Option<&Credentials>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(root_pem.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some(Credentials { chain_pem, key_pem }) => {
            let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .unwrap();
            let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A TLS connection to the name that managers answer to.
pub(super) async fn dial(
    address: SocketAddr,
    tls: ClientConfig,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("swarm-manager").unwrap();
    TlsConnector::from(Arc::new(tls))
        .connect(name, stream)
        .await
}

/// A dispatcher whose sessions never say anything; the real one is tested where it is.
pub(super) struct Silent;

#[tonic::async_trait]
impl Dispatcher for Silent {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::ManagerMessage, Status>> + Send>>;

    async fn session(
        &self,
        _: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::pending())))
    }
}

/// Takes no message of other managers; the real one is tested where it is.
pub(super) struct Deaf;

#[tonic::async_trait]
impl Raft for Deaf {
    type DeliverStream = Pin<Box<dyn Stream<Item = Result<v1::RaftReceipt, Status>> + Send>>;
    type DeliverSnapshotStream = Self::DeliverStream;

    async fn deliver(
        &self,
        _: Request<Streaming<v1::RaftDelivery>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::pending())))
    }

    async fn deliver_snapshot(
        &self,
        _: Request<Streaming<v1::RaftSnapshotPart>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::pending())))
    }
}
