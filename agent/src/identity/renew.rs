//! The next certificate: asked for in time, with a new key, and taken up without a pause.
//!
//! It is asked for on the connection of the open session, whose end the manager moves with it: the
//! session goes on, and connections that are opened from then on show the new certificate. It is on
//! disk before it is used.
//!
//! When the swarm changes its root, a manager says so on the session: which roots are trusted from then on,
//! and which of them certificates are to come from. A node with a certificate of another one has it
//! renewed within seconds.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::RngExt as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use swarm_api::v1;
use swarm_api::v1::node_ca_client::NodeCaClient;
use swarm_model::{NodeId, Renewal, Timestamp, Validity};
use tokio::sync::{Notify, watch};
use tokio::task::JoinError;
use tonic::transport::Channel;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use super::state::{StateError, StateStore};
use super::tls::{Connector, Credentials, KeyRequest, Roots, TlsError};

/// A manager signs in a moment; longer means that nobody is at work there.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Time over which the nodes of a swarm that changes its root come for their certificates: a thousand
/// at once would keep a manager from everything else.
const ROTATION_SPREAD: Duration = Duration::from_secs(2);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("there is no session with a manager")]
    NoSession,
    #[error("this node has left the swarm")]
    NotMember,
    #[error("the manager did not answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Silent,
    #[error("the manager refused: {}", .0.message())]
    Refused(Box<tonic::Status>),
    #[error("the manager's answer is not a certificate of this node")]
    Answer,
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the certificate could not be kept")]
    Task(#[from] JoinError),
}

/// Whose certificate is renewed, and who has to know.
#[derive(Debug)]
pub(crate) struct Renewer {
    /// Where it is kept.
    pub(crate) state: StateStore,
    /// This node.
    pub(crate) node_id: NodeId,
    /// The connection of the open session; none while there is none.
    pub(crate) channel: watch::Receiver<Option<Channel>>,
    /// What new connections are made with.
    pub(crate) connector: watch::Sender<Connector>,
    /// A certificate is wanted before it is due: the node has another role.
    pub(crate) now: Arc<Notify>,
    /// What the managers say of roots; none before they have.
    pub(crate) roots: watch::Receiver<Option<Roots>>,
}

impl Renewer {
    /// Replaces `credentials`, and whatever comes after them, whenever that is due; never ends.
    pub(crate) async fn run(mut self, credentials: Credentials) {
        let mut renewal = match validity(&credentials.certificate_pem, &self.node_id) {
            Some(validity) => Renewal::of(&validity, &mut rand::rng()),
            // Damaged, or nothing that a swarm makes: the next one will be better.
            None => Renewal::of(
                &Validity {
                    not_before: Timestamp(0),
                    not_after: Timestamp(0),
                },
                &mut rand::rng(),
            ),
        };
        let mut trusted = credentials.root_pem;
        let mut hastened: Option<String> = None;
        loop {
            let told = self.roots.borrow_and_update().clone();
            if let Some(told) = told.as_ref().filter(|told| told.pem != trusted) {
                match self.trust(told.pem.clone()).await {
                    Ok(()) => {
                        trusted.clone_from(&told.pem);
                        tracing::info!("this node trusts other root certificates");
                    }
                    Err(error) => {
                        let error = crate::error_text(&error);
                        tracing::warn!(error, "cannot trust other root certificates yet");
                    }
                }
            }
            let wanted = self.wanted_issuer(told);
            if wanted.is_some() && wanted != hastened {
                let spread = ROTATION_SPREAD.mul_f64(rand::rng().random_range(0.0..1.0));
                renewal.hasten(now().after(spread));
            }
            hastened = wanted;
            let asked = tokio::select! {
                () = tokio::time::sleep(renewal.wait(now())) => false,
                () = self.now.notified() => true,
                Ok(()) = self.roots.changed() => false,
            };
            if now() < renewal.due() && !asked {
                continue;
            }
            match self.renew().await {
                Ok((validity, roots)) => {
                    trusted = roots;
                    renewal = Renewal::of(&validity, &mut rand::rng());
                    let told = self.roots.borrow().clone();
                    if self.wanted_issuer(told).is_some() {
                        // The manager that signed has not heard yet.
                        renewal.failed(now(), &mut rand::rng());
                    }
                    tracing::info!(
                        good_for_seconds = validity.left(now()).as_secs(),
                        "renewed this node's certificate"
                    );
                }
                Err(error) => {
                    renewal.failed(now(), &mut rand::rng());
                    tracing::warn!(
                        error = crate::error_text(&error),
                        "cannot renew this node's certificate; trying again"
                    );
                }
            }
        }
    }

    /// Who is to sign this node's certificate, where somebody else has.
    fn wanted_issuer(&self, told: Option<Roots>) -> Option<String> {
        let wanted = told?.issuer;
        (!wanted.is_empty() && self.connector.borrow().issuer() != wanted).then_some(wanted)
    }

    /// Trusts the roots in `root_pem` and no others from now on.
    async fn trust(&self, root_pem: String) -> Result<(), RenewError> {
        let state = self.state.clone();
        let trusting = tokio::task::spawn_blocking(move || {
            let (_, credentials) = state.load()?.ok_or(RenewError::NotMember)?;
            let credentials = Credentials {
                root_pem,
                ..credentials
            };
            let connector = Connector::with_certificate(&credentials)?;
            state.save_credentials(&credentials)?;
            Ok::<_, RenewError>(connector)
        });
        self.connector.send_replace(trusting.await??);
        Ok(())
    }

    /// One new certificate; gives when it is good, and which roots came with it.
    async fn renew(&mut self) -> Result<(Validity, String), RenewError> {
        let channel = self.channel.borrow_and_update().clone();
        let mut client = NodeCaClient::new(channel.ok_or(RenewError::NoSession)?);
        let KeyRequest { key_pem, csr_der } = KeyRequest::new()?;
        let request = v1::RenewNodeCertificateRequest { csr: csr_der };
        let answer = client.renew_node_certificate(request);
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, answer)
            .await
            .map_err(|_| RenewError::Silent)?
            .map_err(|status| RenewError::Refused(Box::new(status)))?
            .into_inner();
        let credentials = Credentials {
            key_pem,
            certificate_pem: answer.certificate_chain_pem,
            root_pem: answer.root_ca_pem,
        };
        let validity =
            validity(&credentials.certificate_pem, &self.node_id).ok_or(RenewError::Answer)?;
        // Also sees that key and certificate are of one pair.
        let connector = Connector::with_certificate(&credentials)?;
        let roots = credentials.root_pem.clone();
        let state = self.state.clone();
        tokio::task::spawn_blocking(move || state.save_credentials(&credentials)).await??;
        self.connector.send_replace(connector);
        Ok((validity, roots))
    }
}

/// When the first certificate of `chain_pem` is good, if it is one of `node`.
fn validity(chain_pem: &str, node: &NodeId) -> Option<Validity> {
    let leaf = CertificateDer::from_pem_slice(chain_pem.as_bytes()).ok()?;
    let (_, leaf) = X509Certificate::from_der(&leaf).ok()?;
    let mut names = leaf.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?;
    if name != node.as_str() || names.next().is_some() {
        return None;
    }
    let moment = |seconds: i64| Some(Timestamp(u64::try_from(seconds).ok()?.checked_mul(1000)?));
    Some(Validity {
        not_before: moment(leaf.validity().not_before.timestamp())?,
        not_after: moment(leaf.validity().not_after.timestamp())?,
    })
}

/// By this host's clock, which certificates are judged by.
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Timestamp::default().after(since.unwrap_or_default())
}

#[cfg(test)]
mod tests;
