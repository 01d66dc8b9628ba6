//! A host that joins over the network, works, and is removed.

use std::sync::Arc;
use std::time::Instant;

use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use swarm_api::v1;
use swarm_api::v1::agent_message::Message as FromAgent;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::dispatcher_client::DispatcherClient;
use swarm_api::v1::local_control_client::LocalControlClient;
use swarm_api::v1::manager_message::Message as FromManager;
use swarm_api::v1::node_ca_client::NodeCaClient;
use swarm_model::JoinToken;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status, Streaming};

use super::host::{GLANCE, Host, PATIENCE};

/// A channel over TLS, opened by the first call.
fn channel(host: &Host, root_pem: &str, own: Option<(&str, &KeyPair)>) -> Channel {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(root_pem.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = match own {
        None => builder.with_no_client_auth(),
        Some((chain_pem, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(tls));
    let address = host.address;
    let connect = move |_: Uri| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("swarm-manager").unwrap();
            let stream = connector.connect(name, stream).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    };
    Endpoint::from_static("http://swarm-manager")
        .connect_with_connector_lazy(tower::service_fn(connect))
}

/// An open session: where the agent speaks, and what it hears.
struct Session {
    _agent: mpsc::Sender<v1::AgentMessage>,
    manager: Streaming<v1::ManagerMessage>,
}

impl Session {
    async fn open(channel: Channel, hostname: &str) -> Result<Self, Status> {
        let (agent, messages) = mpsc::channel(1);
        let description = v1::NodeDescription {
            hostname: hostname.to_owned(),
            ..v1::NodeDescription::default()
        };
        let hello = FromAgent::Hello(v1::Hello {
            description: Some(description),
            ..v1::Hello::default()
        });
        let message = Some(hello);
        agent.send(v1::AgentMessage { message }).await.unwrap();
        let manager = DispatcherClient::new(channel)
            .session(ReceiverStream::new(messages))
            .await?
            .into_inner();
        Ok(Self {
            _agent: agent,
            manager,
        })
    }

    async fn next(&mut self) -> Result<Option<FromManager>, Status> {
        let message = timeout(PATIENCE, self.manager.message()).await.unwrap()?;
        Ok(message.map(|message| message.message.unwrap()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_works_and_is_removed() {
    let host = Host::new();
    let _process = host.bootstrap();
    let mut control = ControlClient::new(host.local().await);
    let role = v1::Role::Worker.into();
    let request = v1::GetJoinTokenRequest {
        role,
        rotate: false,
    };
    let token = control.get_join_token(request).await.unwrap();
    let token = token.into_inner().token;

    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    let csr = csr.der().to_vec();
    let request = v1::IssueManagerCertificateRequest { csr: csr.clone() };
    let root = LocalControlClient::new(host.local().await)
        .issue_manager_certificate(request)
        .await
        .unwrap()
        .into_inner()
        .root_ca_pem;
    assert!(token.parse::<JoinToken>().unwrap().matches_root(&root));

    let joined = NodeCaClient::new(channel(&host, &root, None))
        .issue_node_certificate(v1::IssueNodeCertificateRequest { token, csr })
        .await
        .unwrap()
        .into_inner();
    let own = Some((joined.certificate_chain_pem.as_str(), &key));
    let mut session = Session::open(channel(&host, &root, own), "h2")
        .await
        .unwrap();
    let Some(FromManager::Welcome(welcome)) = session.next().await.unwrap() else {
        panic!("no welcome");
    };
    assert_eq!(welcome.node_id, joined.node_id);
    assert_eq!(welcome.managers, [host.address.to_string()]);
    let Some(FromManager::Standing(standing)) = session.next().await.unwrap() else {
        panic!("no word of where it stands");
    };
    assert_eq!(standing.role(), v1::Role::Worker);
    assert_eq!(standing.managers, [host.address.to_string()]);
    let Some(FromManager::Assignments(first)) = session.next().await.unwrap() else {
        panic!("no assignments");
    };
    assert!(first.complete);
    assert_eq!(first.generation, 1);

    let deadline = Instant::now() + PATIENCE;
    loop {
        let nodes = control.list_nodes(v1::ListNodesRequest {}).await.unwrap();
        let nodes = nodes.into_inner().nodes;
        let node = nodes.iter().find(|node| node.id == joined.node_id).unwrap();
        let state = node.status.as_ref().unwrap().state();
        let hostname = &node.description.as_ref().unwrap().hostname;
        if state == v1::NodeState::Ready && hostname == "h2" {
            break;
        }
        assert!(Instant::now() < deadline, "{node:?}");
        tokio::time::sleep(GLANCE).await;
    }

    let request = v1::RemoveNodeRequest {
        reference: "h2".to_owned(),
        force: true,
    };
    control.remove_node(request).await.unwrap();
    let end = loop {
        match session.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("no reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::PermissionDenied);
    let again = Session::open(channel(&host, &root, own), "h2").await;
    let refused = again.map(|_| ()).unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (
            Code::PermissionDenied,
            format!(
                "node {} was removed from the swarm: run `swarmctl swarm leave` on it, then join \
                 again",
                joined.node_id
            )
            .as_str()
        )
    );
}
