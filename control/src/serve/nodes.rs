//! What becomes of the store when nodes come and go. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rand::Rng;
use swarm_model::{
    Availability, Cluster, JOIN_SECRET_LEN, Meta, Node, NodeDescription, NodeId, NodeSpec,
    NodeState, NodeStatus, Role, Timestamp, random_base36, validate_node,
};

use super::lookup::{self, display_name};
use super::managers::check_room;
use super::refusal::Refusal;
use crate::store::{Change, State};

/// Most nodes: ten times what is meant, and a bound on what a leaked token can fill the store with.
const MAX_NODES: usize = 10_000;

/// Longest key of a label that an error repeats.
const MAX_SHOWN_KEY: usize = 80;

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

/// What a person wants changed of a node. Each field left empty keeps what is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Edit {
    /// Whether tasks may run there.
    pub(crate) availability: Option<Availability>,
    /// Labels to set.
    pub(crate) labels_add: BTreeMap<String, String>,
    /// Keys of labels to remove, before others are set; each must be there.
    pub(crate) labels_rm: Vec<String>,
}

/// The node that `reference` means with `edit` made; without a change when it is so already.
pub(crate) fn update(
    state: &State,
    reference: &str,
    edit: &Edit,
    self_id: &NodeId,
    now: Timestamp,
) -> Result<(Vec<Change>, NodeId), Refusal> {
    let Edit {
        availability,
        labels_add,
        labels_rm,
    } = edit;
    let node = lookup::node(state, reference, self_id)?;
    if availability.is_none() && labels_add.is_empty() && labels_rm.is_empty() {
        return Err(Refusal::NothingToUpdate);
    }
    let mut next = Node::clone(node);
    if let Some(availability) = availability {
        next.spec.availability = *availability;
    }
    for key in labels_rm {
        if next.spec.labels.remove(key).is_none() {
            return Err(Refusal::NoLabel {
                name: display_name(node).to_owned(),
                key: key.chars().take(MAX_SHOWN_KEY).collect(),
            });
        }
    }
    next.spec.labels.extend(labels_add.clone());
    validate_node(&next.spec)?;
    let id = node.id.clone();
    if next.spec == node.spec {
        return Ok((Vec::new(), id));
    }
    next.meta.updated_at = now;
    Ok((vec![next.into()], id))
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
