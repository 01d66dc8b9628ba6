//! Keys, certificates and the TLS connections made with them: TLS 1.3 only, one provider (ring).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use swarm_model::{Role, Secret};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer as _;

/// The DNS name that every manager's certificate carries, whatever its address.
const MANAGER_NAME: &str = "swarm-manager";

/// A manager that does not answer within this is tried no longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// HTTP/2 pings find a connection whose other end is gone without a word.
/// Soon enough to be with the next leader before it takes this node for down.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// What can go wrong with keys and connections.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("cannot make a key pair and a certificate request")]
    Request(#[source] rcgen::Error),
    #[error("cannot read {0}")]
    Pem(&'static str, #[source] rustls::pki_types::pem::Error),
    #[error("cannot use the {0}")]
    Rustls(&'static str, #[source] rustls::Error),
    #[error(
        "this node's certificate has ended, by this host's clock: set the clock if it is wrong; else \
         leave with `swarmctl swarm leave --force` and join again"
    )]
    Ended,
    #[error("the swarm's root certificate is missing")]
    NoRoot,
    #[error("{0:?} is not a manager's address: write HOST:PORT")]
    Address(String),
    #[error("cannot reach manager {address}")]
    Connect {
        address: String,
        #[source]
        source: tonic::transport::Error,
    },
}

/// A node's key and certificates, PEM.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) key_pem: Secret,
    pub(crate) certificate_pem: String,
    /// Every root that is trusted: two while the swarm changes its root.
    pub(crate) root_pem: String,
}

/// What a manager says of roots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Roots {
    /// Those to trust, PEM.
    pub(crate) pem: String,
    /// Key identifier of the one that this node's certificate is to come from, hexadecimal; empty: any of
    /// them.
    pub(crate) issuer: String,
}

/// Where the certificates begin in a file that holds key and chain.
const CERTIFICATE_BEGIN: &str = "-----BEGIN CERTIFICATE-----";

impl Credentials {
    /// Key and chain in one text, the key first.
    pub(crate) fn to_pem(&self) -> Secret {
        // In one piece: a text that grows leaves copies behind.
        [&*self.key_pem, &self.certificate_pem].concat().into()
    }

    /// From the text that [`Self::to_pem`] makes; none when it lacks one of the two.
    pub(super) fn from_pem(mut text: String, root_pem: String) -> Option<Self> {
        let begin = text.find(CERTIFICATE_BEGIN).filter(|begin| *begin > 0)?;
        let certificate_pem = text.split_off(begin);
        Some(Self {
            key_pem: text.into(),
            certificate_pem,
            root_pem,
        })
    }
}

impl std::fmt::Debug for Credentials {
    /// Leaves the key out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// A new key pair (ECDSA P-256) and the request to certify it. The names in the request are empty:
/// the CA writes its own.
pub(crate) struct KeyRequest {
    pub(crate) key_pem: Secret,
    pub(crate) csr_der: Vec<u8>,
}

impl KeyRequest {
    /// Makes both.
    pub(crate) fn new() -> Result<Self, TlsError> {
        let key = rcgen::KeyPair::generate().map_err(TlsError::Request)?;
        let mut params =
            rcgen::CertificateParams::new(Vec::<String>::new()).map_err(TlsError::Request)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        let csr = params.serialize_request(&key).map_err(TlsError::Request)?;
        Ok(Self {
            key_pem: key.serialize_pem().into(),
            csr_der: csr.der().to_vec(),
        })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem(what, source))
}

/// Makes connections to managers.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    config: Arc<ClientConfig>,
    /// When the certificate it shows ends; none where it shows none.
    not_after: Option<SystemTime>,
    /// The role that the certificate says.
    role: Option<Role>,
    /// Key identifier of the root that has signed the certificate, hexadecimal; empty where none is shown.
    issuer: String,
}

impl Connector {
    /// With this node's certificate, to managers whose certificate the swarm's root signed.
    pub(crate) fn with_certificate(credentials: &Credentials) -> Result<Self, TlsError> {
        let key = PrivateKeyDer::from_pem_slice(credentials.key_pem.as_bytes())
            .map_err(|source| TlsError::Pem("this node's key", source))?;
        let chain = certificates("this node's certificate", &credentials.certificate_pem)?;
        let not_after = chain.first().and_then(|leaf| not_after(leaf));
        let role = chain.first().and_then(|leaf| role(leaf));
        let issuer = chain.first().and_then(|leaf| issuer(leaf));
        let config = rooted(&credentials.root_pem)?
            .with_client_auth_cert(chain, key)
            .map_err(|source| TlsError::Rustls("certificate and key of this node", source))?;
        let mut connector = Self::new(config);
        connector.not_after = not_after;
        connector.role = role;
        connector.issuer = issuer.unwrap_or_default();
        Ok(connector)
    }

    /// Without a certificate, to managers of the swarm with this root: for the request to join.
    pub(crate) fn without_certificate(root_pem: &str) -> Result<Self, TlsError> {
        Ok(Self::new(rooted(root_pem)?.with_no_client_auth()))
    }

    /// To anyone at all: for the one question whose answer is checked against the join token.
    pub(crate) fn unverified() -> Result<Self, TlsError> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|source| TlsError::Rustls("TLS 1.3 provider", source))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer {
                provider: provider(),
            }))
            .with_no_client_auth();
        Ok(Self::new(config))
    }

    fn new(mut config: ClientConfig) -> Self {
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would outlive the certificate it was made with.
        config.resumption = rustls::client::Resumption::disabled();
        Self {
            config: Arc::new(config),
            not_after: None,
            role: None,
            issuer: String::new(),
        }
    }

    /// Key identifier of the root that has signed the certificate it shows, in hexadecimal digits; empty
    /// where it shows none.
    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The role that the certificate it shows says; none where it shows none.
    pub(crate) fn role(&self) -> Option<Role> {
        self.role
    }

    /// Opens a channel to the manager at `address` (host:port).
    pub(crate) async fn connect(&self, address: &str) -> Result<Channel, TlsError> {
        // The manager would only break the connection off.
        if self.not_after.is_some_and(|end| end <= SystemTime::now()) {
            return Err(TlsError::Ended);
        }
        // The scheme is plain because TLS is put in by the connector below.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| TlsError::Address(address.to_owned()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let tls = TlsConnector::from(self.config.clone());
        let target = address.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let (tls, target) = (tls.clone(), target.clone());
            async move {
                let name = ServerName::try_from(MANAGER_NAME).map_err(std::io::Error::other)?;
                let handshake = async {
                    let stream = TcpStream::connect(&target).await?;
                    stream.set_nodelay(true)?;
                    tls.connect(name, stream).await
                };
                let stream = tokio::time::timeout(CONNECT_TIMEOUT, handshake).await??;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|source| TlsError::Connect {
                address: address.to_owned(),
                source,
            })
    }
}

/// When a certificate ends.
fn not_after(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The role that a certificate says.
fn role(certificate: &CertificateDer<'_>) -> Option<Role> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let unit = certificate.subject().iter_organizational_unit().next()?;
    Role::from_organizational_unit(unit.as_str().ok()?)
}

/// The key identifier that a certificate names as its issuer's (RFC 5280, 4.2.1.1).
fn issuer(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let mut extensions = certificate.extensions().iter();
    let id = extensions.find_map(|it| match it.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.clone(),
        _ => None,
    })?;
    Some(id.0.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn rooted(
    root_pem: &str,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("the swarm's root certificate", root_pem)? {
        roots
            .add(certificate)
            .map_err(|source| TlsError::Rustls("swarm's root certificate", source))?;
    }
    if roots.is_empty() {
        return Err(TlsError::NoRoot);
    }
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|source| TlsError::Rustls("TLS 1.3 provider", source))?
        .with_root_certificates(roots))
}

/// Accepts any certificate, since none can be known before the root is; the holder must still prove
/// that it has the key.
#[derive(Debug)]
struct AnyServer {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
