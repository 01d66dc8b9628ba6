//! Whole managers in one process, over real TLS on the loopback, each with a log of its own on disk.

mod alone;
mod external;
mod locked;
mod members;
mod rotation;

use std::collections::BTreeSet;

use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use swarm_api::v1;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::local_control_client::LocalControlClient;
use swarm_api::v1::node_ca_client::NodeCaClient;
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use super::*;

/// Longest that anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// TLS of someone who trusts `roots`, and shows a chain with its key or nothing.
fn tls(roots: &str, own: Option<(&str, &str)>) -> TlsConnector {
    let certificates = |pem: &str| -> Vec<_> {
        let found = CertificateDer::pem_slice_iter(pem.as_bytes());
        found.map(Result::unwrap).collect()
    };
    let mut store = RootCertStore::empty();
    for root in certificates(roots) {
        store.add(root).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(store);
    let mut tls = match own {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder
                .with_client_auth_cert(certificates(chain), key)
                .unwrap()
        }
    };
    tls.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(tls))
}

/// A connection to the manager at `address`.
async fn secured(
    tls: TlsConnector,
    address: SocketAddr,
) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("swarm-manager").unwrap();
    Ok(TokioIo::new(tls.connect(name, stream).await?))
}

struct Manager {
    config: Config,
    _directory: TempDir,
    stop: CancellationToken,
    running: Option<JoinHandle<Result<(), Failure>>>,
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

impl Manager {
    fn new(node_id: NodeId, remote: Option<SocketAddr>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = free_address();
        let config = Config {
            state_dir: directory.path().join("state"),
            socket: directory.path().join("control.sock"),
            listen_address: address,
            advertise_address: address,
            bootstrap: remote.is_none(),
            force_new_cluster: false,
            autolock: false,
            join: remote,
            node_id: Some(node_id),
            data_path_address: None,
            certificate_expiry_ms: None,
        };
        Self {
            config,
            _directory: directory,
            stop: CancellationToken::new(),
            running: None,
        }
    }

    /// The first of a swarm.
    async fn found() -> Self {
        let mut manager = Self::new(NodeId::random(&mut rand::rng()), None);
        manager.start();
        until("the first manager", || manager.nodes()).await;
        manager
    }

    /// Another of the swarm of `of`, as its agent would start it.
    async fn join(of: &Manager) -> Self {
        let (csr, key) = request();
        // A new manager answers for itself once it has been sent the swarm's state.
        let root = until("the root certificate", || {
            let csr = csr.clone();
            let mut control = LocalControlClient::new(of.local());
            async move {
                let request = v1::IssueManagerCertificateRequest { csr };
                let answer = control.issue_manager_certificate(request).await?;
                Ok(answer.into_inner().root_ca_pem)
            }
        })
        .await;
        let role = v1::Role::Manager.into();
        let token = v1::GetJoinTokenRequest {
            role,
            rotate: false,
        };
        let mut control = ControlClient::new(of.local());
        let token = control.get_join_token(token).await.unwrap().into_inner();
        let answer = NodeCaClient::new(of.stranger(&root))
            .issue_node_certificate(v1::IssueNodeCertificateRequest {
                token: token.token,
                csr,
            })
            .await
            .unwrap()
            .into_inner();
        let remote = token.manager_address.parse().unwrap();
        let mut manager = Self::new(answer.node_id.parse().unwrap(), Some(remote));
        let path = own_path(&manager.config);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, key + &answer.certificate_chain_pem).unwrap();
        manager.start();
        manager
    }

    fn start(&mut self) {
        self.stop = CancellationToken::new();
        let run = run_until(self.config.clone(), self.stop.clone());
        self.running = Some(tokio::spawn(run));
    }

    /// Ends it in order.
    async fn end(&mut self) {
        self.stop.cancel();
        let running = self.running.take().unwrap();
        timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
    }

    /// Ends it as a crash would.
    fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }

    fn id(&self) -> String {
        self.config.node_id.as_ref().unwrap().to_string()
    }

    fn local(&self) -> Channel {
        let socket = self.config.socket.clone();
        let connect = move |_: Uri| {
            let socket = socket.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        };
        Endpoint::from_static("http://local")
            .timeout(PATIENCE)
            .connect_with_connector_lazy(tower::service_fn(connect))
    }

    /// A channel of someone without a certificate.
    fn stranger(&self, root_pem: &str) -> Channel {
        let (tls, address) = (tls(root_pem, None), self.config.advertise_address);
        let connect = move |_: Uri| secured(tls.clone(), address);
        Endpoint::from_static("http://manager")
            .connect_with_connector_lazy(tower::service_fn(connect))
    }

    async fn nodes(&self) -> Result<v1::ListNodesResponse, Status> {
        let list = v1::ListNodesRequest {};
        let answer = ControlClient::new(self.local()).list_nodes(list).await;
        answer.map(tonic::Response::into_inner)
    }

    /// Waits until as many managers as this are members and heard.
    async fn until_managers(&self, count: usize) {
        until("the managers", || async {
            let nodes = self.nodes().await?;
            let found = nodes.reachable_managers.len();
            let members = nodes.nodes.iter().filter(|node| node.manager.is_some());
            if found == count && members.count() == count {
                return Ok(());
            }
            Err(Status::unavailable(format!("{found} managers")))
        })
        .await;
    }

    async fn create(&self, name: &str) -> Result<(), Status> {
        let spec = v1::ServiceSpec {
            name: name.to_owned(),
            mode: Some(v1::service_spec::Mode::Replicated(v1::Replicated {
                replicas: 1,
            })),
            task: Some(v1::TaskSpec {
                container: Some(v1::ContainerSpec {
                    image: "web".to_owned(),
                    ..v1::ContainerSpec::default()
                }),
                ..v1::TaskSpec::default()
            }),
            ..v1::ServiceSpec::default()
        };
        let create = v1::CreateServiceRequest { spec: Some(spec) };
        let created = ControlClient::new(self.local())
            .create_service(create)
            .await;
        created.map(drop)
    }

    async fn services(&self) -> Result<BTreeSet<String>, Status> {
        let list = v1::ListServicesRequest {};
        let listed = ControlClient::new(self.local()).list_services(list).await?;
        let services = listed.into_inner().services.into_iter();
        Ok(services
            .map(|it| it.service.unwrap().spec.unwrap().name)
            .collect())
    }

    /// As [`Self::services`], asked of a majority first.
    async fn services_consistently(&self) -> Result<BTreeSet<String>, Status> {
        let mut request = tonic::Request::new(v1::ListServicesRequest {});
        let value = swarm_api::LINEARIZABLE.parse().unwrap();
        (request.metadata_mut()).insert(swarm_api::CONSISTENCY_METADATA, value);
        let mut control = ControlClient::new(self.local());
        let services = control.list_services(request).await?.into_inner().services;
        let names = services.into_iter().filter_map(|it| it.service?.spec);
        Ok(names.map(|spec| spec.name).collect())
    }

    async fn set_role(&self, reference: &str, role: v1::Role) -> Result<bool, Status> {
        let set = v1::SetNodeRoleRequest {
            reference: reference.to_owned(),
            role: role.into(),
        };
        let answer = ControlClient::new(self.local()).set_node_role(set).await;
        answer.map(|answer| answer.into_inner().changed)
    }

    /// What the swarm must not lose: its id, settings and root, both join tokens.
    async fn lasting(&self) -> Result<(v1::GetClusterResponse, [String; 2]), Status> {
        let mut control = ControlClient::new(self.local());
        let get = v1::GetClusterRequest {};
        let mut cluster = control.get_cluster(get).await?.into_inner();
        cluster.version = 0;
        cluster.node_id = String::new();
        let mut tokens = [String::new(), String::new()];
        for (token, role) in tokens.iter_mut().zip([v1::Role::Worker, v1::Role::Manager]) {
            let get = v1::GetJoinTokenRequest {
                role: role.into(),
                rotate: false,
            };
            *token = control.get_join_token(get).await?.into_inner().token;
        }
        Ok((cluster, tokens))
    }

    async fn set_autolock(&self, autolock: bool) {
        let mut control = ControlClient::new(self.local());
        let get = v1::GetClusterRequest {};
        let cluster = control.get_cluster(get).await.unwrap().into_inner();
        let spec = v1::ClusterSpec {
            autolock,
            ..cluster.spec.unwrap()
        };
        let update = v1::UpdateClusterRequest {
            version: cluster.version,
            spec: Some(spec),
        };
        control.update_cluster(update).await.unwrap();
    }

    async fn unlock_key(&self, rotate: bool) -> Result<String, Status> {
        let get = v1::GetUnlockKeyRequest { rotate };
        let got = ControlClient::new(self.local()).get_unlock_key(get).await?;
        Ok(got.into_inner().unlock_key)
    }

    async fn is_locked(&self) -> Result<bool, Status> {
        let get = v1::GetManagerStateRequest {};
        let mut local = LocalControlClient::new(self.local());
        let state = local.get_manager_state(get).await?;
        Ok(state.into_inner().locked)
    }

    async fn unlock(&self, unlock_key: &str) -> Result<(), Status> {
        let unlock_key = unlock_key.to_owned();
        let unlock = v1::UnlockRequest { unlock_key };
        let unlocked = LocalControlClient::new(self.local()).unlock(unlock).await;
        unlocked.map(drop)
    }

    /// Waits until its keys are kept on disk so that `key` opens them; in the clear when there is none.
    async fn until_kept_under(&self, key: Option<&str>) {
        let log = log_of(&self.config);
        let key: Option<UnlockKey> = key.map(|key| key.parse().unwrap());
        until("the keys on disk", || async {
            let sealed = Node::sealed_key(&log).unwrap();
            let log_key = match (&sealed, &key) {
                (Some(sealed), Some(key)) => sealed.is_opened_by(key),
                (None, None) => true,
                _ => false,
            };
            let pem = std::fs::read(own_path(&self.config)).unwrap();
            let clear = pem.windows(11).any(|words| words == b"PRIVATE KEY");
            let as_wanted = log_key && clear == key.is_none();
            as_wanted
                .then_some(())
                .ok_or_else(|| Status::unavailable("not yet"))
        })
        .await;
    }

    /// Starts it, and waits until it says that it is locked.
    async fn start_locked(&mut self) {
        self.start();
        until("the locked manager", || async {
            match self.nodes().await {
                Err(status) if status.code() == Code::FailedPrecondition => Ok(()),
                Err(status) => Err(status),
                Ok(_) => panic!("it is not locked"),
            }
        })
        .await;
    }

    /// Starts it as the only manager of its swarm.
    async fn force_new_cluster(&mut self) {
        self.config.bootstrap = false;
        self.config.join = None;
        self.config.force_new_cluster = true;
        self.start();
        until("the manager alone", || self.nodes()).await;
        self.config.force_new_cluster = false;
    }

    /// Why it ended by itself.
    async fn failure(&mut self) -> Failure {
        let running = self.running.take().unwrap();
        let ended = timeout(PATIENCE, running).await.unwrap().unwrap();
        ended.unwrap_err()
    }

    /// The id of the node that leads.
    async fn leader(&self) -> String {
        until("a leader", || async {
            let nodes = self.nodes().await?.nodes;
            let leads = |node: &&v1::Node| node.manager.as_ref().is_some_and(|it| it.leader);
            let mut leaders = nodes.iter().filter(leads).map(|node| node.id.clone());
            leaders
                .next()
                .ok_or_else(|| Status::unavailable("no leader is written down"))
        })
        .await
    }
}

fn request() -> (Vec<u8>, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    (csr.der().to_vec(), key.serialize_pem())
}

async fn until<R, F>(what: &str, look: impl Fn() -> F) -> R
where
    F: Future<Output = Result<R, Status>>,
{
    let begun = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(status) => assert!(begun.elapsed() < PATIENCE, "{what}: {status}"),
        }
        sleep(LOOK).await;
    }
}

/// Three managers that all vote.
async fn three() -> [Manager; 3] {
    // `SWARM_LOG=debug` and `--nocapture` show what the managers did.
    let filter = tracing_subscriber::EnvFilter::from_env("SWARM_LOG");
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_test_writer();
    let _ = log.try_init();
    let first = Manager::found().await;
    let second = Manager::join(&first).await;
    first.until_managers(2).await;
    // Through a manager that does not lead.
    let third = Manager::join(&second).await;
    first.until_managers(3).await;
    [first, second, third]
}

/// The manager that leads, and the others.
async fn split(managers: [Manager; 3]) -> (Manager, Vec<Manager>) {
    let leader = managers[1].leader().await;
    let (mut leads, follow): (Vec<_>, Vec<_>) = managers
        .into_iter()
        .partition(|manager| manager.id() == leader);
    (leads.pop().unwrap(), follow)
}

fn log_of(config: &Config) -> LogConfig {
    LogConfig {
        dir: config.state_dir.join("raft"),
        unlock: None,
    }
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}
