//! Who may become a manager, and who may stop being one. Pure.
//!
//! | from | to | when |
//! |---|---|---|
//! | worker | manager, no member | `node promote`, or it joined with the manager token |
//! | manager, no member | learner | its process has asked (`Managers/Join`) |
//! | learner | voter | it has caught up (`raft`) |
//! | any manager | worker | `node demote`; the last one, and one without which no majority is heard, stay |

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use swarm_model::{ManagerStatus, Node, NodeId, Role, Timestamp};

use super::lookup::{self, display_name};
use super::refusal::Refusal;
use crate::store::{Change, MemberChange, Members, State};

/// Most managers: each one more makes every change slower and withstands half a failure more.
pub(super) const MAX_MANAGERS: usize = 7;

/// What became of a wish for another role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RoleOutcome {
    /// It has it.
    Changed(NodeId),
    /// It had it.
    Unchanged(NodeId),
    /// The node leads: another manager has to lead first, and to do it.
    HandOver,
}

type Decision = (Vec<Change>, Option<MemberChange>, RoleOutcome);

/// Gives the node that `reference` means the role `role`. `caller` is the node that `self` means,
/// `leader` the one that decides.
pub(super) fn set_role(
    state: &State,
    members: &Members,
    reference: &str,
    role: Role,
    (caller, leader): (&NodeId, &NodeId),
    now: Timestamp,
) -> Result<Decision, Refusal> {
    let node = lookup::node(state, reference, caller)?;
    if node.role == role {
        return Ok((Vec::new(), None, RoleOutcome::Unchanged(node.id.clone())));
    }
    let mut next = Node::clone(node);
    next.role = role;
    next.meta.updated_at = now;
    let changed = RoleOutcome::Changed(node.id.clone());
    if role == Role::Manager {
        check_room(state)?;
        return Ok((vec![next.into()], None, changed));
    }
    let member = match &node.manager {
        // Its process has not started yet.
        None => None,
        Some(manager) => {
            check_removal(node, manager.raft_id, members)?;
            if node.id == *leader {
                return Ok((Vec::new(), None, RoleOutcome::HandOver));
            }
            let known = members.contains(manager.raft_id);
            known.then_some(MemberChange::Remove(manager.raft_id))
        }
    };
    next.manager = None;
    Ok((vec![next.into()], member, changed))
}

/// Whether there may be one manager more.
pub(super) fn check_room(state: &State) -> Result<(), Refusal> {
    let managers = state.nodes().filter(|node| node.role == Role::Manager);
    if managers.count() >= MAX_MANAGERS {
        return Err(Refusal::TooManyManagers(MAX_MANAGERS));
    }
    Ok(())
}

/// Whether the others can go on without the member `raft_id`.
fn check_removal(node: &Node, raft_id: u64, members: &Members) -> Result<(), Refusal> {
    let name = display_name(node).to_owned();
    let left: BTreeSet<u64> = (members.voters.iter().copied())
        .filter(|id| *id != raft_id)
        .collect();
    if left.is_empty() {
        return Err(Refusal::LastManager(name));
    }
    let reachable = left.intersection(&members.reachable).count();
    let needed = Members::quorum(left.len());
    if reachable < needed {
        let unheard = left.intersection(&members.unheard).count();
        if reachable + unheard >= needed {
            return Err(Refusal::NotHeardYet);
        }
        return Err(Refusal::QuorumLoss {
            name,
            left: left.len(),
            reachable,
            needed,
        });
    }
    Ok(())
}

/// What makes the manager `id`, reached at `address` with a certificate of `issuer`, the member `raft_id`. When it was another member
/// before, whose log is lost, that one goes first: then nothing is returned for the new one yet.
pub(super) fn join(
    state: &State,
    members: &Members,
    id: &NodeId,
    (raft_id, address, issuer): (u64, SocketAddr, &str),
    now: Timestamp,
) -> Result<(Vec<Change>, Option<MemberChange>, bool), Refusal> {
    let node = state.node(id).ok_or_else(|| Refusal::NotFound {
        kind: "node",
        reference: id.to_string(),
    })?;
    if node.role != Role::Manager {
        return Err(Refusal::NotAManager(display_name(node).to_owned()));
    }
    let taken = |other: &&Arc<Node>| {
        let manager = other.manager.as_ref();
        manager.is_some_and(|it| other.id != *id && it.raft_id == raft_id)
    };
    if raft_id == 0 || state.nodes().any(|other| taken(&other)) {
        return Err(Refusal::RaftIdTaken(raft_id));
    }
    let mut next = Node::clone(node);
    next.meta.updated_at = now;
    let status = ManagerStatus {
        raft_id,
        address,
        leader: false,
        certificate_issuer: issuer.to_owned(),
    };
    match &node.manager {
        Some(manager) if manager.raft_id != raft_id => {
            check_removal(node, manager.raft_id, members)?;
            let known = members.contains(manager.raft_id);
            let member = known.then_some(MemberChange::Remove(manager.raft_id));
            next.manager = None;
            Ok((vec![next.into()], member, false))
        }
        Some(manager)
            if manager.address == address
                && manager.certificate_issuer == issuer
                && members.contains(raft_id) =>
        {
            Ok((Vec::new(), None, true))
        }
        _ => {
            next.manager = Some(status);
            let known = members.contains(raft_id);
            let member = (!known).then_some(MemberChange::Add(raft_id));
            Ok((vec![next.into()], member, true))
        }
    }
}

/// Why nothing can be changed just now.
pub(super) fn no_leader(state: &State, members: &Members) -> Refusal {
    if state.cluster().is_none() {
        return Refusal::NotReady;
    }
    let needed = Members::quorum(members.voters.len());
    let reachable = members.voters.intersection(&members.reachable).count();
    if reachable >= needed {
        return Refusal::Electing;
    }
    let missing = members.voters.difference(&members.reachable);
    let names = missing.map(|raft_id| {
        let is_it = |node: &&Arc<Node>| {
            let manager = node.manager.as_ref();
            manager.is_some_and(|manager| manager.raft_id == *raft_id)
        };
        let address = |node: &Arc<Node>| node.manager.as_ref().map(|it| it.address);
        match state.nodes().find(is_it).map(|node| (node, address(node))) {
            Some((node, Some(address))) => format!("{} ({address})", display_name(node)),
            _ => format!("member {raft_id}"),
        }
    });
    Refusal::NoQuorum {
        managers: members.voters.len(),
        needed,
        reachable,
        missing: names.collect(),
    }
}

#[cfg(test)]
#[path = "tests/managers.rs"]
mod tests;
