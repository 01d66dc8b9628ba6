//! Renewal against a manager that is one only as far as certificates go, over real TLS.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, IsCa, Issuer,
    KeyPair,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use swarm_api::v1::dispatcher_server::{Dispatcher, DispatcherServer};
use swarm_api::v1::node_ca_server::{NodeCa, NodeCaServer};
use swarm_model::{ClusterId, NodeDescription, Role};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::identity::Membership;
use crate::session::{Assigned, Report, Session};

const PATIENCE: Duration = Duration::from_secs(30);

/// Signs whatever it is asked to.
struct Authority {
    root_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        Self {
            root_pem: root.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// For `name`, issued `age` ago, good for `life` from then.
    fn params(name: &str, age: Duration, life: Duration) -> CertificateParams {
        let mut params = CertificateParams::new(vec!["swarm-manager".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let issued = time::OffsetDateTime::now_utc() - age;
        params.not_before = issued - swarm_model::CERTIFICATE_BACKDATE;
        params.not_after = issued + life;
        params.use_authority_key_identifier_extension = true;
        params
    }

    /// What its certificates say of their issuer.
    fn id(&self) -> String {
        let credentials = self.credentials("x", Duration::ZERO, PATIENCE);
        let connector = Connector::with_certificate(&credentials).unwrap();
        assert!(!connector.issuer().is_empty());
        connector.issuer().to_owned()
    }

    fn credentials(&self, name: &str, age: Duration, life: Duration) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let params = Self::params(name, age, life);
        Credentials {
            key_pem: key.serialize_pem().into(),
            certificate_pem: params.signed_by(&key, &self.issuer).unwrap().pem(),
            root_pem: self.root_pem.clone(),
        }
    }
}

/// What the manager saw, and how it answers renewals.
struct Manager {
    authority: Authority,
    /// Whose certificate it gives out.
    name: String,
    /// Certificates of the callers of renewals and sessions, in order.
    callers: Mutex<Vec<(&'static str, Vec<u8>)>>,
    /// Who signs renewals in place of `authority`, and what it says is to be trusted.
    next: Mutex<Option<(Authority, String)>>,
    /// What agents have said of their certificates.
    issuers: Arc<Mutex<Vec<String>>>,
    /// Renewals to be refused first.
    refusals: Mutex<u32>,
    sessions: Mutex<Vec<mpsc::Sender<Result<v1::ManagerMessage, Status>>>>,
}

impl Manager {
    fn note<T>(&self, what: &'static str, request: &Request<T>) {
        let info = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
        let certificates = info.unwrap().peer_certs().unwrap();
        let caller = (what, certificates[0].to_vec());
        self.callers.lock().unwrap().push(caller);
    }

    fn count(&self, what: &str) -> usize {
        let callers = self.callers.lock().unwrap();
        callers.iter().filter(|(call, _)| *call == what).count()
    }

    async fn serve(self: Arc<Self>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(self.authority.root_pem.as_bytes()).unwrap();
        roots.add(root).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let own = self
            .authority
            .credentials("manager", Duration::ZERO, PATIENCE * 10);
        let chain = CertificateDer::from_pem_slice(own.certificate_pem.as_bytes()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![chain], key.unwrap())
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let incoming =
            tokio_stream::wrappers::TcpListenerStream::new(listener).then(move |stream| {
                let acceptor = acceptor.clone();
                async move { acceptor.accept(stream?).await }
            });
        let router = Server::builder()
            .add_service(NodeCaServer::from_arc(self.clone()))
            .add_service(DispatcherServer::from_arc(self));
        tokio::spawn(router.serve_with_incoming(incoming));
        address
    }
}

#[tonic::async_trait]
impl NodeCa for Manager {
    async fn get_root_certificate(
        &self,
        _: Request<v1::GetRootCertificateRequest>,
    ) -> Result<Response<v1::GetRootCertificateResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn issue_node_certificate(
        &self,
        _: Request<v1::IssueNodeCertificateRequest>,
    ) -> Result<Response<v1::IssueNodeCertificateResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn renew_node_certificate(
        &self,
        request: Request<v1::RenewNodeCertificateRequest>,
    ) -> Result<Response<v1::RenewNodeCertificateResponse>, Status> {
        self.note("renewal", &request);
        let mut refusals = self.refusals.lock().unwrap();
        if *refusals > 0 {
            *refusals -= 1;
            return Err(Status::unavailable("not now"));
        }
        let csr = request.into_inner().csr.into();
        let request = CertificateSigningRequestParams::from_der(&csr).unwrap();
        let params = Authority::params(&self.name, Duration::ZERO, PATIENCE * 100);
        let next = self.next.lock().unwrap();
        let (authority, root_ca_pem) = match &*next {
            None => (&self.authority, self.authority.root_pem.clone()),
            Some((authority, roots)) => (authority, roots.clone()),
        };
        let certificate = params.signed_by(&request.public_key, &authority.issuer);
        Ok(Response::new(v1::RenewNodeCertificateResponse {
            role: v1::Role::Worker.into(),
            certificate_chain_pem: certificate.unwrap().pem(),
            root_ca_pem,
        }))
    }
}

#[tonic::async_trait]
impl Dispatcher for Manager {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::ManagerMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        self.note("session", &request);
        let mut incoming = request.into_inner();
        let issuers = self.issuers.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                use v1::agent_message::Message;
                let issuer = match message.message {
                    Some(Message::Hello(hello)) => hello.certificate_issuer,
                    Some(Message::Certificate(in_use)) => in_use.issuer,
                    _ => continue,
                };
                issuers.lock().unwrap().push(issuer);
            }
        });
        let (messages, stream) = mpsc::channel(4);
        let welcome = v1::Welcome {
            heartbeat_period_ms: 1000,
            ..v1::Welcome::default()
        };
        let message = Some(v1::manager_message::Message::Welcome(welcome));
        messages
            .try_send(Ok(v1::ManagerMessage { message }))
            .unwrap();
        self.sessions.lock().unwrap().push(messages);
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// A node with a session and a certificate that is issued `age` ago and good for `life`.
struct Node {
    manager: Arc<Manager>,
    state: StateStore,
    first: Credentials,
    report: watch::Receiver<Report>,
    connector: watch::Receiver<Connector>,
    _stop: tokio_util::sync::DropGuard,
    _dir: tempfile::TempDir,
}

impl Node {
    async fn start(age: Duration, life: Duration, refusals: u32, right_name: bool) -> Self {
        let node_id = NodeId::random(&mut rand::rng());
        let manager = Arc::new(Manager {
            authority: Authority::new(),
            name: if right_name {
                node_id.to_string()
            } else {
                "other".to_owned()
            },
            next: Mutex::default(),
            issuers: Arc::default(),
            callers: Mutex::default(),
            refusals: Mutex::new(refusals),
            sessions: Mutex::default(),
        });
        let address = manager.clone().serve().await;
        let dir = tempfile::tempdir().unwrap();
        let state = StateStore::new(dir.path());
        let first = manager.authority.credentials(node_id.as_str(), age, life);
        let membership = Membership::new(
            node_id.clone(),
            ClusterId::random(&mut rand::rng()),
            Role::Worker,
            vec![address.to_string()],
            address.ip(),
        );
        state.save(&membership, &first).unwrap();
        let connector = watch::Sender::new(Connector::with_certificate(&first).unwrap());
        let connectors = connector.subscribe();
        let (report, channel) = (
            watch::Sender::new(Report::default()),
            watch::Sender::new(None),
        );
        let reports = report.subscribe();
        let roots = watch::Sender::new(None);
        let stop = CancellationToken::new();
        let renewer = Renewer {
            state: state.clone(),
            node_id,
            channel: channel.subscribe(),
            connector,
            now: Arc::default(),
            roots: roots.subscribe(),
        };
        let renewals = renewer.run(first.clone());
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(renewals).await });
        let session = Session {
            managers: vec![address.to_string()],
            description: NodeDescription::default(),
            assigned: watch::Sender::new(Arc::new(Assigned::default())),
            statuses: watch::Sender::new(Arc::new(BTreeMap::new())).subscribe(),
            applied: watch::Sender::new((0, 0)).subscribe(),
            problems: watch::Sender::new(Vec::new()).subscribe(),
            report,
            channel,
            roots,
        };
        tokio::spawn(crate::session::run(
            session,
            connectors.clone(),
            stop.clone(),
        ));
        Self {
            manager,
            state,
            first,
            report: reports,
            connector: connectors,
            _stop: stop.drop_guard(),
            _dir: dir,
        }
    }

    async fn renewed(&mut self) {
        let changed = self.connector.changed();
        tokio::time::timeout(PATIENCE, changed)
            .await
            .expect("renewed in time")
            .unwrap();
    }

    fn kept(&self) -> Credentials {
        self.state.load().unwrap().unwrap().1
    }
}

fn leaf(credentials: &Credentials) -> Vec<u8> {
    CertificateDer::from_pem_slice(credentials.certificate_pem.as_bytes())
        .unwrap()
        .to_vec()
}

#[tokio::test]
async fn a_certificate_is_renewed_on_the_open_session_which_goes_on() {
    let hour = Duration::from_secs(3600);
    let mut node = Node::start(hour, hour + PATIENCE, 2, true).await;
    node.renewed().await;
    let kept = node.kept();
    assert_ne!(kept.key_pem, node.first.key_pem);
    assert_ne!(leaf(&kept), leaf(&node.first));
    // The refused tries and the renewal came on the connection of the session.
    let mut expected = vec![("session", leaf(&node.first))];
    expected.extend(vec![("renewal", leaf(&node.first)); 3]);
    assert_eq!(*node.manager.callers.lock().unwrap(), expected);
    assert!(node.report.borrow().connected);

    // The session was not touched: it ends when the manager ends it. The next one shows the new
    // certificate.
    let session = node.manager.sessions.lock().unwrap().pop().unwrap();
    assert!(!session.is_closed());
    session
        .try_send(Err(Status::unavailable("enough")))
        .unwrap();
    let opened = async {
        while node.manager.count("session") < 2 {
            node.report.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, opened).await.unwrap();
    let callers = node.manager.callers.lock().unwrap();
    assert_eq!(callers.last().unwrap(), &("session", leaf(&kept)));
}

#[tokio::test]
async fn a_young_certificate_is_left_alone() {
    let mut node = Node::start(Duration::ZERO, PATIENCE * 100, 0, true).await;
    let connected = node.report.wait_for(|report| report.connected);
    tokio::time::timeout(PATIENCE, connected)
        .await
        .unwrap()
        .unwrap();
    let early = tokio::time::timeout(Duration::from_secs(2), node.connector.changed()).await;
    assert!(early.is_err(), "renewed in the first half of its life");
    assert_eq!(node.manager.count("renewal"), 0);
}

#[tokio::test]
async fn a_certificate_of_somebody_else_is_not_taken() {
    let hour = Duration::from_secs(3600);
    let node = Node::start(hour, hour + PATIENCE, 0, false).await;
    let asked = async {
        while node.manager.count("renewal") < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap();
    assert_eq!(leaf(&node.kept()), leaf(&node.first));
    assert!(!node.connector.has_changed().unwrap());
}

#[tokio::test]
async fn who_comes_back_after_the_end_of_the_certificate_is_told_what_to_do() {
    let hour = Duration::from_secs(3600);
    let mut node = Node::start(2 * hour, hour, 0, true).await;
    let told = node.report.wait_for(|report| !report.error.is_empty());
    let report = tokio::time::timeout(PATIENCE, told)
        .await
        .unwrap()
        .unwrap()
        .clone();
    assert!(!report.connected);
    assert!(
        report.error.ends_with(
            "this node's certificate has ended, by this host's clock: set the clock if it is \
             wrong; else leave with `swarmctl swarm leave --force` and join again"
        ),
        "{}",
        report.error
    );
}

#[tokio::test]
async fn only_tls_1_3_is_offered() {
    use tokio::io::AsyncReadExt as _;
    let credentials = Authority::new().credentials("node", Duration::ZERO, PATIENCE);
    for connector in [
        Connector::with_certificate(&credentials).unwrap(),
        Connector::without_certificate(&credentials.root_pem).unwrap(),
        Connector::unverified().unwrap(),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let dialling = tokio::spawn(async move { connector.connect(&address).await });
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut header = [0; 5];
        stream.read_exact(&mut header).await.unwrap();
        let mut hello = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
        stream.read_exact(&mut hello).await.unwrap();
        // supported_versions, 3 bytes: a list of 2 bytes, TLS 1.3 (RFC 8446, 4.2.1).
        let only_1_3 = [0x00, 0x2b, 0x00, 0x03, 0x02, 0x03, 0x04];
        assert!(
            hello
                .windows(only_1_3.len())
                .any(|window| window == only_1_3)
        );
        dialling.abort();
    }
}

#[tokio::test]
async fn another_root_is_taken_up_on_the_open_session_which_goes_on() {
    let mut node = Node::start(Duration::ZERO, PATIENCE * 100, 1, true).await;
    let connected = node.report.wait_for(|report| report.connected);
    tokio::time::timeout(PATIENCE, connected)
        .await
        .unwrap()
        .unwrap();
    let old = node.manager.authority.root_pem.clone();
    let next = Authority::new();
    let (new, id) = (next.root_pem.clone(), next.id());
    let both = old.clone() + &new;
    *node.manager.next.lock().unwrap() = Some((next, both.clone()));
    let session = node.manager.sessions.lock().unwrap()[0].clone();
    let tell = |root_ca_pem: &str, certificate_issuer: &str| {
        let standing = v1::Standing {
            root_ca_pem: root_ca_pem.to_owned(),
            certificate_issuer: certificate_issuer.to_owned(),
            ..v1::Standing::default()
        };
        let message = Some(v1::manager_message::Message::Standing(standing));
        session
            .try_send(Ok(v1::ManagerMessage { message }))
            .unwrap();
    };
    let first = node.connector.borrow().issuer().to_owned();
    assert_ne!(first, id);
    // Told of what it has already, and of roots that are none: nothing is done.
    tell(&old, &first);
    tell("nonsense", &first);
    tell(&both, &id);
    let taken = node.connector.wait_for(|it| it.issuer() == id);
    tokio::time::timeout(PATIENCE, taken)
        .await
        .unwrap()
        .unwrap();
    let kept = node.kept();
    assert_eq!(kept.root_pem, both);
    assert_ne!(kept.key_pem, node.first.key_pem);
    assert_eq!(
        node.manager.count("renewal"),
        2,
        "the first one was refused"
    );
    let said = async {
        while *node.manager.issuers.lock().unwrap() != [first.clone(), id.clone()] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, said).await.unwrap();

    // The end: the old one is forgotten, the certificate stays.
    tell(&new, &id);
    let forgotten = async {
        while node.kept().root_pem != new {
            node.connector.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, forgotten).await.unwrap();
    assert_eq!(node.kept().to_pem(), kept.to_pem());
    assert_eq!(node.manager.count("renewal"), 2);
    assert_eq!(node.manager.count("session"), 1);
    assert!(!session.is_closed() && node.report.borrow().connected);
}
