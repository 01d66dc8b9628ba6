//! TLS of the manager's listener, and of its connections to other managers.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why a certificate and key cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    /// Not PEM, or nothing of use in it.
    #[error("cannot read the certificate chain or its key")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// The root cannot be trusted by the TLS library.
    #[error("cannot verify callers with the swarm's root certificate")]
    Root(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The chain and the key do not fit, or are not usable.
    #[error("cannot serve the certificate")]
    Certificate(#[source] rustls::Error),
}

/// The one crypto provider of the process.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// TLS for HTTP/2 with the certificate in `chain_pem` (leaf first) and `key_pem`. Callers may come
/// without a certificate; one that is shown must come from a root in `root_pem` and be valid now.
pub(crate) fn server_config(
    chain_pem: &str,
    key_pem: &str,
    root_pem: &str,
) -> Result<ServerConfig, CredentialsError> {
    let provider = provider();
    let (chain, key) = chain_and_key(chain_pem, key_pem)?;
    let roots = Arc::new(roots(root_pem)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| CredentialsError::Root(error.into()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(CredentialsError::Certificate)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(CredentialsError::Certificate)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would carry the certificate of the first one past its end.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// TLS for HTTP/2 towards other managers, with the certificate in `chain_pem` (leaf first) and
/// `key_pem`; theirs must come from a root in `root_pem` and be valid now.
pub(crate) fn client_config(
    chain_pem: &str,
    key_pem: &str,
    root_pem: &str,
) -> Result<ClientConfig, CredentialsError> {
    let (chain, key) = chain_and_key(chain_pem, key_pem)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(CredentialsError::Certificate)?
        .with_root_certificates(roots(root_pem)?)
        .with_client_auth_cert(chain, key)
        .map_err(CredentialsError::Certificate)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would outlive the certificate it was made with.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// TLS for HTTP/1.1 towards an authority outside of the swarm, which is shown the certificate of `own` where
/// there is one; its own must come from a root in `root_pem` and be valid now.
pub(super) fn external_config(
    own: Option<&ClientConfig>,
    root_pem: &str,
) -> Result<ClientConfig, CredentialsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(CredentialsError::Certificate)?
        .with_root_certificates(roots(root_pem)?);
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(Arc::clone(&own.client_auth_cert_resolver)),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn chain_and_key(
    chain_pem: &str,
    key_pem: &str,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CredentialsError> {
    let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(CredentialsError::Pem)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(CredentialsError::Pem)?;
    Ok((chain, key))
}

pub(super) fn roots(root_pem: &str) -> Result<RootCertStore, CredentialsError> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(root_pem.as_bytes()) {
        roots
            .add(root.map_err(CredentialsError::Pem)?)
            .map_err(|error| CredentialsError::Root(error.into()))?;
    }
    if roots.is_empty() {
        let none = rustls_pki_types::pem::Error::NoItemsFound;
        return Err(CredentialsError::Pem(none));
    }
    Ok(roots)
}
