//! Connections to managers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

/// The name in every manager's certificate.
const MANAGER_NAME: &str = "swarm-manager";

/// As the agent has it (`agent/src/identity/tls.rs`).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Longest wait for an answer over the local socket.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A key and the request to certify it.
pub(crate) struct KeyRequest {
    pub(crate) key_pem: String,
    pub(crate) csr_der: Vec<u8>,
}

impl KeyRequest {
    pub(crate) fn new() -> Result<Self> {
        let key = KeyPair::generate().context("cannot make a key")?;
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .context("cannot make a certificate request")?;
        Ok(Self {
            key_pem: key.serialize_pem(),
            csr_der: csr.der().to_vec(),
        })
    }
}

/// How a node shows itself.
pub(crate) struct Credentials {
    pub(crate) chain_pem: String,
    pub(crate) key_pem: String,
}

/// What a TLS connection to a manager takes: the swarm's root, and who calls, if anybody in particular.
pub(crate) fn tls(root_pem: &str, own: Option<&Credentials>) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(
        CertificateDer::from_pem_slice(root_pem.as_bytes()).context("cannot read the root")?,
    )?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let chain = CertificateDer::pem_slice_iter(own.chain_pem.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .context("cannot read a certificate")?;
            let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes())
                .context("cannot read a key")?;
            builder.with_client_auth_cert(chain, key)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// A channel over TLS to the manager at `address`.
pub(crate) async fn dial(
    address: SocketAddr,
    tls: &Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    let tls = TlsConnector::from(Arc::clone(tls));
    let connect = move |_: Uri| {
        let tls = tls.clone();
        async move {
            let name = ServerName::try_from(MANAGER_NAME).map_err(std::io::Error::other)?;
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    };
    Endpoint::from_static("http://manager")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(tower::service_fn(connect))
        .await
}

/// A channel over the local socket `socket`, opened by the first call.
pub(crate) fn local(socket: PathBuf) -> Channel {
    let connect = move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    };
    Endpoint::from_static("http://local")
        .timeout(ANSWER_TIMEOUT)
        .connect_with_connector_lazy(tower::service_fn(connect))
}
