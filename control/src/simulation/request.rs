//! What people and joining nodes ask for, and what it changes: the functions behind the API.

use rand::Rng;
use swarm_model::{Availability, NetworkSpec, NodeId, Role, ServiceMode, ServiceSpec, Timestamp};

use crate::serve::{Refusal, networks, nodes, services};
use crate::store::{Change, MemberChange, State};

/// One call of the API.
#[derive(Clone, Debug)]
pub enum Request {
    /// `service create`.
    CreateService(Box<ServiceSpec>),
    /// `service scale`: the service with this name, to so many tasks.
    Scale {
        /// The service's name.
        name: String,
        /// Tasks wanted.
        replicas: u64,
    },
    /// `service update --force` or `--publish-add`: the service with this name, with this spec,
    /// made from its present version.
    UpdateService(Box<ServiceSpec>),
    /// `service rm`.
    RemoveService {
        /// The service's name.
        name: String,
    },
    /// `network create`.
    CreateNetwork(Box<NetworkSpec>),
    /// `network rm`.
    RemoveNetwork {
        /// The network's name.
        name: String,
    },
    /// A node joins as a worker.
    Admit(NodeId),
    /// `node update --availability`.
    SetAvailability {
        /// The node.
        node: NodeId,
        /// What is wanted of it.
        availability: Availability,
    },
    /// `node rm --force`.
    RemoveNode(NodeId),
    /// A manager takes part in the log, from when it has caught up with a vote.
    AddMember(u64),
    /// A manager, not the one that is asked, takes part no longer.
    RemoveMember(u64),
}

impl Request {
    /// Who takes part in the log from then on, where that changes.
    pub(super) fn member(&self) -> Option<MemberChange> {
        match self {
            Self::AddMember(raft_id) => Some(MemberChange::Add(*raft_id)),
            Self::RemoveMember(raft_id) => Some(MemberChange::Remove(*raft_id)),
            _ => None,
        }
    }

    /// The changes that this makes to `state`, or why it makes none.
    pub(super) fn changes(
        &self,
        state: &State,
        self_id: &NodeId,
        now: Timestamp,
        rng: &mut impl Rng,
    ) -> Result<Vec<Change>, Refusal> {
        let not_found = |kind, reference: &str| Refusal::NotFound {
            kind,
            reference: reference.to_owned(),
        };
        let replaced = |spec: ServiceSpec| {
            let current = state.service_by_name(&spec.name);
            let current = current.ok_or_else(|| not_found("service", &spec.name))?;
            let version = current.meta.version;
            let updated = services::update(state, &current.id, version, spec, now)?;
            Ok(updated.into_iter().map(Into::into).collect())
        };
        match self {
            Self::CreateService(spec) => {
                let service = services::create(state, (**spec).clone(), now, rng)?;
                Ok(vec![service.into()])
            }
            Self::Scale { name, replicas } => {
                let current = state.service_by_name(name);
                let mut spec = current
                    .map(|service| service.spec.clone())
                    .ok_or_else(|| not_found("service", name))?;
                spec.mode = ServiceMode::Replicated {
                    replicas: *replicas,
                };
                replaced(spec)
            }
            Self::UpdateService(spec) => replaced((**spec).clone()),
            Self::RemoveService { name } => {
                services::remove(state, name, now).map(|(changes, _id)| changes)
            }
            Self::CreateNetwork(spec) => {
                networks::create(state, (**spec).clone(), now, rng).map(|(changes, _id)| changes)
            }
            Self::RemoveNetwork { name } => {
                networks::remove(state, name).map(|(changes, _id)| changes)
            }
            Self::AddMember(_) | Self::RemoveMember(_) => Ok(Vec::new()),
            Self::Admit(id) => Ok(vec![
                nodes::admit(state, id.clone(), Role::Worker, now)?.into(),
            ]),
            Self::SetAvailability { node, availability } => {
                let edit = nodes::Edit {
                    availability: Some(*availability),
                    ..nodes::Edit::default()
                };
                nodes::update(state, node.as_str(), &edit, self_id, now)
                    .map(|(changes, _id)| changes)
            }
            Self::RemoveNode(id) => {
                nodes::remove(state, id.as_str(), true, self_id).map(|(changes, _id)| changes)
            }
        }
    }
}
