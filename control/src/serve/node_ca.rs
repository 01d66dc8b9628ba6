//! How hosts become nodes, and how nodes get their next certificate.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use swarm_api::v1;
use swarm_api::v1::node_ca_server::NodeCa;
use swarm_model::{Cluster, Node, NodeId, Role, Timestamp};
use tonic::{Request, Response, Status};

use super::connection::Caller;
use super::rate::TokenBucket;
use super::refusal::{Refusal, outcome};
use super::{Identity, Peer, nodes};
use crate::ca::{Signer, Subject, Term, admit, rotation};
use crate::clock;
use crate::store::Store;

/// Requests to join that may come at once: a rack of hosts started together.
const JOINS_BURST: u64 = 100;

/// Time after which one more may come. Bounds what wrong tokens cost in signatures and log lines.
const JOINS_INTERVAL_MS: u64 = 100;

/// Answers callers that have no certificate yet, and those that need another.
#[derive(Debug)]
pub(super) struct NodeCaService {
    store: Store,
    signer: Signer,
    rate: Mutex<TokenBucket>,
}

impl NodeCaService {
    pub(super) fn new(store: Store, signer: Signer) -> Self {
        Self {
            store,
            signer,
            rate: Mutex::new(TokenBucket::new(JOINS_BURST, JOINS_INTERVAL_MS)),
        }
    }

    /// A certificate for a new node, and the swarm as it was then. Says nothing to the store yet.
    async fn issue(
        &self,
        request: &v1::IssueNodeCertificateRequest,
        now: Timestamp,
    ) -> Result<(Subject, String, Arc<Cluster>), Refusal> {
        let free = self
            .rate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(now);
        if !free {
            return Err(Refusal::TooManyJoins);
        }
        let cluster = self
            .store
            .read(|state| state.cluster().cloned())
            .ok_or(Refusal::NotReady)?;
        let role = admit(&cluster, &request.token)?;
        let subject = Subject {
            node_id: NodeId::random(&mut rand::rng()),
            role,
            cluster_id: cluster.id.clone(),
        };
        let term = Term {
            now,
            life: cluster.spec.certificate_expiry,
        };
        let issued = self.signer.issue(&cluster, &request.csr, &subject, term);
        let chain = issued.await?.chain_pem;
        Ok((subject, chain, cluster))
    }

    /// A certificate for `caller` in place of the one that it has, and how long it is good. The
    /// store says the role ([`agent_role`]).
    async fn renew(
        &self,
        caller: &Caller,
        csr: &[u8],
        now: Timestamp,
    ) -> Result<(v1::RenewNodeCertificateResponse, Duration), Refusal> {
        let Identity::Node { id, .. } = &caller.peer.identity else {
            return Err(Refusal::NotNode);
        };
        if !caller.lease.may_renew(now) {
            return Err(Refusal::TooManyRenewals);
        }
        let (cluster, role) = self.store.read(|state| {
            let cluster = state.cluster().cloned().ok_or(Refusal::NotReady)?;
            let node = state.node(id).ok_or(Refusal::NotNode)?;
            Ok::<_, Refusal>((cluster, agent_role(node)))
        })?;
        let subject = Subject {
            node_id: id.clone(),
            role,
            cluster_id: cluster.id.clone(),
        };
        let life = cluster.spec.certificate_expiry;
        let term = Term { now, life };
        let issued = self.signer.issue(&cluster, csr, &subject, term).await?;
        let answer = v1::RenewNodeCertificateResponse {
            role: v1::Role::from(role).into(),
            certificate_chain_pem: issued.chain_pem,
            root_ca_pem: rotation::trusted_roots(&cluster),
        };
        Ok((answer, issued.life))
    }
}

/// The role in the certificate of the agent on `node`. A manager's is only for a node that is to become
/// one: its new manager is shown to the others by it. A manager that is one of those that hold the log
/// makes certificates of its own, and what lies in the clear in the agent's state directory is then no
/// more than a worker's.
fn agent_role(node: &Node) -> Role {
    match node.manager {
        Some(_) => Role::Worker,
        None => node.role,
    }
}

#[tonic::async_trait]
impl NodeCa for NodeCaService {
    async fn get_root_certificate(
        &self,
        _: Request<v1::GetRootCertificateRequest>,
    ) -> Result<Response<v1::GetRootCertificateResponse>, Status> {
        let cluster = self
            .store
            .read(|state| state.cluster().cloned())
            .ok_or(Refusal::NotReady)?;
        Ok(Response::new(v1::GetRootCertificateResponse {
            certificate_pem: cluster.root_ca_pem.clone(),
        }))
    }

    async fn issue_node_certificate(
        &self,
        request: Request<v1::IssueNodeCertificateRequest>,
    ) -> Result<Response<v1::IssueNodeCertificateResponse>, Status> {
        let now = clock::now();
        let from = request
            .extensions()
            .get()
            .and_then(|peer: &Peer| peer.address);
        let request = request.into_inner();
        let issued = self.issue(&request, now).await;
        let (subject, chain, before) = issued.inspect_err(|refusal| {
            // What is beyond the rate is beyond the log's, too.
            if !matches!(refusal, Refusal::TooManyJoins) {
                tracing::info!(?from, %refusal, "refused a host that wanted to join");
            }
        })?;
        let added = self
            .store
            .update(|state| {
                // Both may have changed since.
                let cluster = state.cluster().ok_or(Refusal::NotReady)?;
                admit(cluster, &request.token)?;
                if rotation::target(cluster) != rotation::target(&before) {
                    return Err(Refusal::OutOfSequence("swarm's root"));
                }
                let node = nodes::admit(state, subject.node_id.clone(), subject.role, now)?;
                Ok((vec![node.into()], ()))
            })
            .await;
        outcome(added)?;
        tracing::info!(node_id = %subject.node_id, ?from, "a node joined");
        Ok(Response::new(v1::IssueNodeCertificateResponse {
            node_id: subject.node_id.to_string(),
            cluster_id: subject.cluster_id.to_string(),
            role: v1::Role::from(subject.role).into(),
            certificate_chain_pem: chain,
            root_ca_pem: rotation::trusted_roots(&before),
        }))
    }

    async fn renew_node_certificate(
        &self,
        request: Request<v1::RenewNodeCertificateRequest>,
    ) -> Result<Response<v1::RenewNodeCertificateResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or(Refusal::NotNode)?;
        let (answer, life) = self
            .renew(&caller, &request.into_inner().csr, clock::now())
            .await
            .inspect_err(|refusal| {
                tracing::info!(identity = ?caller.peer.identity, %refusal, "refused a renewal");
            })?;
        // Whoever is at the other end holds the key of the new certificate: the request was signed
        // with it, and only this connection could carry the answer.
        caller.lease.extend(life);
        tracing::info!(identity = ?caller.peer.identity, "renewed a node's certificate");
        Ok(Response::new(answer))
    }
}
