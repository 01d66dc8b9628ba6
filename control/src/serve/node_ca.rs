//! How hosts become nodes.

use std::sync::{Mutex, PoisonError};

use swarm_api::v1;
use swarm_api::v1::node_ca_server::NodeCa;
use swarm_model::{NodeId, Role, Timestamp};
use tonic::{Request, Response, Status};

use super::join_rate::JoinRate;
use super::refusal::{Refusal, outcome};
use super::{Peer, nodes};
use crate::ca::{Authority, Subject, Term, admit};
use crate::clock;
use crate::store::Store;

/// Answers callers that have no certificate yet.
#[derive(Debug)]
pub(super) struct NodeCaService {
    store: Store,
    rate: Mutex<JoinRate>,
}

impl NodeCaService {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            rate: Mutex::default(),
        }
    }

    /// A certificate for a new node. Says nothing to the store yet.
    fn issue(
        &self,
        request: &v1::IssueNodeCertificateRequest,
        now: Timestamp,
    ) -> Result<(Subject, String), Refusal> {
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
        if role == Role::Manager {
            return Err(Refusal::ManagerJoin);
        }
        let mut rng = rand::rng();
        let subject = Subject {
            node_id: NodeId::random(&mut rng),
            role,
            cluster_id: cluster.id.clone(),
        };
        let term = Term {
            now,
            life: cluster.spec.certificate_expiry,
        };
        let chain = Authority::new(&cluster)?.issue(&request.csr, &subject, term, &mut rng)?;
        Ok((subject, chain))
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
        let (subject, chain) = self.issue(&request, now).inspect_err(|refusal| {
            // What is beyond the rate is beyond the log's, too.
            if !matches!(refusal, Refusal::TooManyJoins) {
                tracing::info!(?from, %refusal, "refused a host that wanted to join");
            }
        })?;
        let added = self
            .store
            .update(|state| {
                // The token may have been rotated since.
                admit(state.cluster().ok_or(Refusal::NotReady)?, &request.token)?;
                let node = nodes::admit(state, subject.node_id.clone(), now)?;
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
        }))
    }
}
