//! What changes in the store when one manager goes on without the others, which are lost. Pure.
//!
//! Nobody but that manager is a manager then. The others' nodes become workers: should they come back,
//! their agents end their managers and remove what these kept. Until then the epoch tells them that they
//! count no more ([`crate::serve::EPOCH_HEADER`]).

use std::net::SocketAddr;

use swarm_model::{Cluster, ManagerStatus, Node, NodeId, Role, Timestamp};

use crate::store::{Change, State};

/// Why a manager cannot go on alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CannotGoOn {
    /// It joined, and never got the log.
    #[error(
        "this manager had not been sent the swarm's state yet: there is nothing to go on with here; \
         try it on another manager"
    )]
    Empty,
    /// The log is another node's.
    #[error(
        "the state here belongs to node {found}, not to {wanted}: put back the whole state directory, \
         node.json and certificates with it"
    )]
    OtherNode {
        /// Whose it is.
        found: NodeId,
        /// Whose it should be.
        wanted: NodeId,
    },
    /// The others have gone on without it.
    #[error(
        "node {0} had been demoted: the swarm's newest state is on another manager, try it there"
    )]
    Demoted(NodeId),
}

/// What makes node `self_id`, which was the member `was` of Raft, the only manager: as the member
/// `raft_id`, reached at `address`.
pub(crate) fn go_on_alone(
    state: &State,
    self_id: &NodeId,
    (was, raft_id): (u64, u64),
    address: SocketAddr,
    now: Timestamp,
) -> Result<Vec<Change>, CannotGoOn> {
    let cluster = state.cluster().ok_or(CannotGoOn::Empty)?;
    let mut managers = state.nodes().filter(|node| node.manager.is_some());
    let own = managers.find(|node| node.manager.as_ref().is_some_and(|it| it.raft_id == was));
    match own {
        Some(own) if own.id == *self_id => {}
        Some(own) => {
            return Err(CannotGoOn::OtherNode {
                found: own.id.clone(),
                wanted: self_id.clone(),
            });
        }
        None => return Err(CannotGoOn::Demoted(self_id.clone())),
    }
    let mut cluster = Cluster::clone(cluster);
    cluster.epoch += 1;
    cluster.meta.updated_at = now;
    let mut changes = vec![cluster.into()];
    for node in state.nodes().filter(|node| node.manager.is_some()) {
        let mut node = Node::clone(node);
        node.meta.updated_at = now;
        if node.id == *self_id {
            node.role = Role::Manager;
            let before = node.manager.take();
            let issuer = before.map_or_else(String::new, |it| it.certificate_issuer);
            node.manager = Some(ManagerStatus {
                raft_id,
                address,
                leader: true,
                certificate_issuer: issuer,
            });
        } else {
            node.role = Role::Worker;
            node.manager = None;
        }
        changes.push(node.into());
    }
    Ok(changes)
}
