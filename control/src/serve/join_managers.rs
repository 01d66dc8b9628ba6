//! How a node with a manager's certificate becomes a member of the log.

use std::net::SocketAddr;
use std::time::Duration;

use swarm_api::v1;
use swarm_api::v1::managers_server::Managers;
use tokio::time::sleep;
use tonic::{Request, Response, Status};

use super::refusal::{Refusal, outcome};
use super::{Dialer, Identity, Peer, managers};
use crate::clock;
use crate::store::{MemberChange, Store, Unavailable, UpdateError};

/// How often a change of members is tried while another one is on its way, or while a new leader has not
/// heard from the others, and the pause between: a member has its vote after a few round trips, and one
/// that has not been heard for 4 s is taken for unreachable.
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(250);

/// Most characters of a key identifier.
const ISSUER_MAX: usize = 128;

/// Makes nodes members.
#[derive(Debug)]
pub(super) struct ManagersService {
    pub(super) store: Store,
    pub(super) dialer: Dialer,
}

#[tonic::async_trait]
impl Managers for ManagersService {
    async fn join(
        &self,
        request: Request<v1::JoinManagersRequest>,
    ) -> Result<Response<v1::JoinManagersResponse>, Status> {
        let Some(Peer {
            identity: Identity::Node { id, .. },
            ..
        }) = request.extensions().get::<Peer>().cloned()
        else {
            return Err(Status::unauthenticated("a manager's certificate is needed"));
        };
        let v1::JoinManagersRequest {
            raft_id,
            address,
            certificate_issuer,
        } = request.into_inner();
        // A key identifier, which is kept.
        if certificate_issuer.len() > ISSUER_MAX {
            return Err(Refusal::Missing("certificate_issuer").into());
        }
        let address: SocketAddr = address
            .parse()
            .ok()
            .filter(|address: &SocketAddr| !address.ip().is_unspecified() && address.port() != 0)
            .ok_or(Refusal::Missing("address"))?;
        // A member that the others cannot reach would never catch up.
        if let Err(error) = self.dialer.connect(address).await {
            tracing::info!(node_id = %id, %error, "a new manager is not reached");
            return Err(Refusal::NotDialable(address).into());
        }
        // The first time a member that was this node's before may have to go.
        for _ in 0..2 {
            let now = clock::now();
            let joined = reconfigure(&self.store, |state, members| {
                let member = (raft_id, address, certificate_issuer.as_str());
                managers::join(state, members, &id, member, now)
            });
            if joined.await? {
                tracing::info!(node_id = %id, raft_id, %address, "a manager joined");
                return Ok(Response::new(v1::JoinManagersResponse {}));
            }
        }
        Err(Refusal::NotReady.into())
    }
}

/// Changes the store and its members, waiting for another such change to end, and for the others' first
/// word where this manager has just begun to lead.
pub(super) async fn reconfigure<R>(
    store: &Store,
    decide: impl Fn(
        &crate::store::State,
        &crate::store::Members,
    ) -> Result<(Vec<crate::store::Change>, Option<MemberChange>, R), Refusal>,
) -> Result<R, Status> {
    let mut tries = 1;
    loop {
        let update = store.reconfigure(|state| {
            let members = store.members().borrow().clone();
            decide(state, &members)
        });
        match update.await {
            Err(
                UpdateError::Unavailable(Unavailable::Busy)
                | UpdateError::Refused(Refusal::NotHeardYet),
            ) if tries < BUSY_TRIES => {
                tries += 1;
                sleep(BUSY_PAUSE).await;
            }
            result => return outcome(result),
        }
    }
}
