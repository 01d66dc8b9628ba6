//! How a node is admitted (swarmkit `ca/config.go`): fetch the root certificate from a manager that
//! is not trusted yet, check its digest against the token, then ask that root's manager to certify a
//! new key.

use std::time::Duration;

use swarm_api::v1;
use swarm_api::v1::node_ca_client::NodeCaClient;
use swarm_model::{ClusterId, JoinToken, NodeId, Role};

use super::tls::{Connector, Credentials, KeyRequest, TlsError};

/// A manager may be electing or busy: each request gets a few tries (swarmkit's numbers).
const ATTEMPTS_MAX: u32 = 5;
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(2);

/// One request is a signature and a commit; longer means that nobody is at work there.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a node was not admitted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    #[error(transparent)]
    Token(#[from] swarm_model::InvalidToken),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(
        "the manager at {address} is not of the swarm this token is for: its root certificate does \
         not have the token's digest; check the address, and get the token again with `swarmctl \
         swarm join-token worker` on a manager"
    )]
    WrongSwarm { address: String },
    #[error("{}", .0.message())]
    Refused(tonic::Status),
    #[error("manager {address} did not answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Silent { address: String },
    #[error("the manager's answer has an invalid {0}")]
    Answer(&'static str),
}

impl JoinError {
    /// Whether the same request may succeed a moment later.
    fn is_passing(&self) -> bool {
        match self {
            Self::Tls(TlsError::Connect { .. }) | Self::Silent { .. } => true,
            Self::Refused(status) => matches!(
                status.code(),
                tonic::Code::Unavailable | tonic::Code::DeadlineExceeded
            ),
            Self::Tls(_) | Self::Token(_) | Self::WrongSwarm { .. } | Self::Answer(_) => false,
        }
    }
}

/// A node's admission.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) node_id: NodeId,
    pub(crate) cluster_id: ClusterId,
    pub(crate) role: Role,
    pub(crate) credentials: Credentials,
}

/// Asks the manager at `address` (host:port) for admission with `token`.
pub(crate) async fn join(address: &str, token: &str) -> Result<Joined, JoinError> {
    let token: JoinToken = token.parse()?;
    let root_pem = retry(|| fetch_root(address)).await?;
    if !token.matches_root(&root_pem) {
        return Err(JoinError::WrongSwarm {
            address: address.to_owned(),
        });
    }
    let request = KeyRequest::new()?;
    let answer = retry(|| issue(address, &root_pem, &token, &request)).await?;
    let role = match answer.role() {
        v1::Role::Worker => Role::Worker,
        v1::Role::Manager => Role::Manager,
        v1::Role::Unspecified => return Err(JoinError::Answer("role")),
    };
    Ok(Joined {
        node_id: answer
            .node_id
            .parse()
            .map_err(|_| JoinError::Answer("node id"))?,
        cluster_id: answer
            .cluster_id
            .parse()
            .map_err(|_| JoinError::Answer("cluster id"))?,
        role,
        credentials: Credentials {
            key_pem: request.key_pem,
            certificate_pem: answer.certificate_chain_pem,
            // While the root is being changed there is another beside the token's, which vouches for it.
            root_pem: match answer.root_ca_pem {
                none if none.is_empty() => root_pem,
                roots => roots,
            },
        },
    })
}

async fn fetch_root(address: &str) -> Result<String, JoinError> {
    let channel = Connector::unverified()?.connect(address).await?;
    let mut client = NodeCaClient::new(channel);
    let answer = in_time(
        address,
        client.get_root_certificate(v1::GetRootCertificateRequest {}),
    );
    Ok(answer.await?.certificate_pem)
}

async fn issue(
    address: &str,
    root_pem: &str,
    token: &JoinToken,
    request: &KeyRequest,
) -> Result<v1::IssueNodeCertificateResponse, JoinError> {
    let channel = Connector::without_certificate(root_pem)?
        .connect(address)
        .await?;
    let mut client = NodeCaClient::new(channel);
    let request = v1::IssueNodeCertificateRequest {
        token: token.to_string(),
        csr: request.csr_der.clone(),
    };
    in_time(address, client.issue_node_certificate(request)).await
}

async fn in_time<T>(
    address: &str,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, JoinError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(JoinError::Refused(status)),
        Err(_) => Err(JoinError::Silent {
            address: address.to_owned(),
        }),
    }
}

async fn retry<T, F>(attempt: impl Fn() -> F) -> Result<T, JoinError>
where
    F: Future<Output = Result<T, JoinError>>,
{
    let mut tries = 1;
    loop {
        match attempt().await {
            Err(error) if error.is_passing() && tries < ATTEMPTS_MAX => {
                tracing::info!(%error, tries, "joining: trying again");
                tries += 1;
                tokio::time::sleep(ATTEMPT_INTERVAL).await;
            }
            result => return result,
        }
    }
}
