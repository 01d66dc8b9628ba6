//! What is asked on this host about its own manager.

use swarm_api::v1;
use swarm_api::v1::local_control_server::LocalControl;
use swarm_model::{NodeId, Role};
use tonic::{Request, Response, Status};

use super::refusal::Refusal;
use crate::ca::{Signer, Subject, Term, rotation};
use crate::clock;
use crate::store::Store;

/// Answers the agent that started this manager, and people on its host.
#[derive(Debug)]
pub(super) struct LocalControlService {
    pub(super) store: Store,
    pub(super) self_id: NodeId,
    pub(super) signer: Signer,
}

#[tonic::async_trait]
impl LocalControl for LocalControlService {
    async fn get_manager_state(
        &self,
        _: Request<v1::GetManagerStateRequest>,
    ) -> Result<Response<v1::GetManagerStateResponse>, Status> {
        let external_cas = self.store.read(|state| {
            let cas = state.cluster().map(|it| it.spec.external_cas.iter());
            cas.into_iter().flatten().map(|ca| ca.url.clone()).collect()
        });
        Ok(Response::new(v1::GetManagerStateResponse {
            locked: false,
            external_cas,
            external_ca_problem: self.signer.trouble(),
        }))
    }

    async fn unlock(
        &self,
        _: Request<v1::UnlockRequest>,
    ) -> Result<Response<v1::UnlockResponse>, Status> {
        Err(Refusal::NotLocked.into())
    }

    async fn get_local_unlock_key(
        &self,
        _: Request<v1::GetLocalUnlockKeyRequest>,
    ) -> Result<Response<v1::GetLocalUnlockKeyResponse>, Status> {
        let unlock_key = self.store.read(|state| {
            let key = state.cluster()?.lock.key.as_ref()?;
            Some(key.to_text())
        });
        Ok(Response::new(v1::GetLocalUnlockKeyResponse {
            unlock_key: unlock_key.unwrap_or_default(),
        }))
    }

    async fn issue_manager_certificate(
        &self,
        request: Request<v1::IssueManagerCertificateRequest>,
    ) -> Result<Response<v1::IssueManagerCertificateResponse>, Status> {
        let cluster = self
            .store
            .read(|state| state.cluster().cloned())
            .ok_or(Refusal::NotReady)?;
        let subject = Subject {
            node_id: self.self_id.clone(),
            role: Role::Manager,
            cluster_id: cluster.id.clone(),
        };
        let term = Term {
            now: clock::now(),
            life: cluster.spec.certificate_expiry,
        };
        let csr = request.into_inner().csr;
        let issued = self.signer.issue(&cluster, &csr, &subject, term).await;
        let issued = issued.map_err(Refusal::from)?;
        Ok(Response::new(v1::IssueManagerCertificateResponse {
            cluster_id: cluster.id.to_string(),
            certificate_chain_pem: issued.chain_pem,
            root_ca_pem: rotation::trusted_roots(&cluster),
        }))
    }
}
