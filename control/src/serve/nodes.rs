//! What becomes of the store when nodes come and go. Pure.

use std::net::SocketAddr;

use rand::Rng;
use swarm_model::{
    Cluster, JOIN_SECRET_LEN, Meta, Node, NodeDescription, NodeId, NodeSpec, NodeState, NodeStatus,
    Role, Timestamp, random_base36,
};

use super::lookup::{self, display_name};
use super::managers::check_room;
use super::refusal::Refusal;
use crate::store::{Change, State};

/// Most nodes: ten times what is meant, and a bound on what a leaked token can fill the store with.
const MAX_NODES: usize = 10_000;

/// A node that has just been given its certificate.
pub(crate) fn admit(
    state: &State,
    id: NodeId,
    role: Role,
    now: Timestamp,
) -> Result<Node, Refusal> {
    if state.nodes().count() >= MAX_NODES {
        return Err(Refusal::TooManyNodes(MAX_NODES));
    }
    if state.node(&id).is_some() {
        return Err(Refusal::NodeIdTaken(id));
    }
    if role == Role::Manager {
        check_room(state)?;
    }
    Ok(Node {
        id,
        meta: Meta {
            version: 0,
            created_at: now,
            updated_at: now,
        },
        spec: NodeSpec::default(),
        role,
        description: NodeDescription::default(),
        status: NodeStatus {
            state: NodeState::Unknown,
            since: now,
            ..NodeStatus::default()
        },
        manager: None,
        ingress_address: None,
    })
}

/// Forgets the node that `reference` means: one that is down, or any with `force`, unless it is a member
/// of the log. Its certificate is refused from then on.
pub(crate) fn remove(
    state: &State,
    reference: &str,
    force: bool,
    self_id: &NodeId,
) -> Result<(Vec<Change>, NodeId), Refusal> {
    let node = lookup::node(state, reference, self_id)?;
    let name = display_name(node).to_owned();
    if node.manager.is_some() {
        return Err(Refusal::NodeIsManager(name));
    }
    if node.status.state != NodeState::Down && !force {
        return Err(Refusal::NodeNotDown {
            name,
            state: node.status.state.as_str(),
        });
    }
    Ok((vec![Change::remove(node.id.clone())], node.id.clone()))
}

/// The swarm with a new secret for joining as `role`, drawn from `rng`.
pub(super) fn rotate_secret(
    cluster: &Cluster,
    role: Role,
    now: Timestamp,
    rng: &mut impl Rng,
) -> Cluster {
    let mut cluster = cluster.clone();
    cluster.meta.updated_at = now;
    *match role {
        Role::Worker => &mut cluster.worker_secret,
        Role::Manager => &mut cluster.manager_secret,
    } = random_base36(rng, JOIN_SECRET_LEN).into();
    cluster
}

/// Where joiners reach manager `id`.
pub(super) fn manager_address(state: &State, id: &NodeId) -> Option<SocketAddr> {
    Some(state.node(id)?.manager.as_ref()?.address)
}
