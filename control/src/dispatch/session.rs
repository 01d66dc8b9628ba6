//! Which sessions there are, what each was sent, and what it has acknowledged.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use swarm_model::{DesiredState, NetworkId, NodeId, NodeState, SessionId, TaskId};

use super::assignment::{Assignments, Delta, own, shared};
use super::overlay;
use crate::store::State;

/// Generations of one session that wait for their acknowledgement. An agent further behind loses
/// the oldest, which only makes it count as further behind than it is.
const UNACKNOWLEDGED_MAX: usize = 1024;

/// What one session is to be sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outgoing {
    /// Counts up by one within the session, from 1.
    pub(crate) generation: u64,
    /// Whether this is everything, or what changed since the generation before.
    pub(crate) complete: bool,
    /// The assignments.
    pub(crate) delta: Delta,
}

/// One agent's session.
#[derive(Debug)]
struct Session {
    id: SessionId,
    generation: u64,
    /// The node's own assignments as last sent.
    own: Assignments,
    /// How many tasks these and the networks were made from, and the newest version among them: where
    /// both are as before, so is all that follows from them.
    made_from: (usize, u64),
    /// The networks of users that the node was last told of.
    networks: BTreeSet<NetworkId>,
    /// The newest revision that is in the node's kernel; none before the first acknowledgement.
    applied: Option<u64>,
    /// Generations sent and not acknowledged, each with its revision.
    unacknowledged: VecDeque<(u64, u64)>,
}

impl Session {
    fn next(&mut self, revision: u64, complete: bool, delta: Delta) -> Outgoing {
        self.generation += 1;
        if self.unacknowledged.len() == UNACKNOWLEDGED_MAX {
            self.unacknowledged.pop_front();
        }
        self.unacknowledged.push_back((self.generation, revision));
        Outgoing {
            generation: self.generation,
            complete,
            delta,
        }
    }

    /// Notes that nothing of `revision` is news to this node: what it was sent last stands for
    /// that revision as well.
    fn stand_for(&mut self, revision: u64) {
        match self.unacknowledged.back_mut() {
            Some((_, newest)) => *newest = revision,
            None => self.applied = self.applied.map(|_| revision),
        }
    }
}

/// Every session of one leader's time.
///
/// What is the same for all nodes, or for all nodes on a network, is compared once per round. Each
/// state of it has a revision, and every session is at the newest: so a generation of any session
/// stands for a revision.
#[derive(Debug)]
pub(crate) struct Sessions {
    shared: Assignments,
    networks: overlay::ByNetwork,
    revision: u64,
    by_node: BTreeMap<NodeId, Session>,
    /// Draining tasks, each with the revision since which its endpoint is draining.
    draining: BTreeMap<TaskId, u64>,
}

impl Sessions {
    /// No session yet. `state` is complete: a new session must never be told less than there is.
    pub(crate) fn new(state: &State) -> Self {
        let mut sessions = Self {
            shared: shared(state),
            networks: overlay::networks(state, &BTreeMap::new()),
            revision: 1,
            by_node: BTreeMap::new(),
            draining: BTreeMap::new(),
        };
        sessions.note_draining(state);
        sessions
    }

    /// Opens the session `id` of `node` in place of any other, and gives its first message.
    pub(crate) fn open(&mut self, state: &State, node: &NodeId, id: SessionId) -> Outgoing {
        let own = own(state, node);
        let networks = overlay::present(state, node);
        let of_networks = networks
            .iter()
            .filter_map(|network| self.networks.get(network))
            .flat_map(|known| known.items.values());
        let everything = Delta {
            put: (self.shared.values().chain(own.values()))
                .chain(of_networks)
                .cloned()
                .collect(),
            remove: Vec::new(),
        };
        let mut session = Session {
            id,
            generation: 0,
            own,
            made_from: made_from(state, node),
            networks,
            applied: None,
            unacknowledged: VecDeque::new(),
        };
        let first = session.next(self.revision, true, everything);
        self.by_node.insert(node.clone(), session);
        first
    }

    /// Ends the session `id` of `node`, unless another took its place.
    pub(crate) fn close(&mut self, node: &NodeId, id: &SessionId) {
        if self.is_open(node, id) {
            self.by_node.remove(node);
        }
    }

    /// Whether `id` is the present session of `node`.
    pub(crate) fn is_open(&self, node: &NodeId, id: &SessionId) -> bool {
        let session = self.by_node.get(node);
        session.is_some_and(|session| session.id == *id)
    }

    /// Notes that everything up to `generation` of the session `id` is in the kernel of `node`.
    pub(crate) fn applied(&mut self, node: &NodeId, id: &SessionId, generation: u64) {
        let Some(session) = self
            .by_node
            .get_mut(node)
            .filter(|session| session.id == *id)
        else {
            return;
        };
        while let Some((sent, revision)) = session.unacknowledged.front().copied()
            && sent <= generation
        {
            session.applied = Some(revision);
            session.unacknowledged.pop_front();
        }
    }

    /// What each session is to be sent, now that the store is at `state`.
    pub(crate) fn round(&mut self, state: &State) -> Vec<(NodeId, Outgoing)> {
        let shared = shared(state);
        let news = Delta::between(&self.shared, &shared);
        self.shared = shared;
        let networks = overlay::networks(state, &self.networks);
        let network_news = overlay::news(&self.networks, &networks);
        if !news.is_empty() || !network_news.is_empty() {
            self.revision += 1;
        }
        self.note_draining(state);
        let mut outgoing = Vec::new();
        for (node, session) in &mut self.by_node {
            let made_from = made_from(state, node);
            let before = std::mem::take(&mut session.networks);
            let mut delta = Delta::default();
            if session.made_from == made_from {
                session.networks.clone_from(&before);
            } else {
                let own = own(state, node);
                delta = Delta::between(&session.own, &own);
                session.own = own;
                session.networks = overlay::present(state, node);
                session.made_from = made_from;
            }
            let of_networks = overlay::changes(
                &before,
                &session.networks,
                &self.networks,
                &networks,
                &network_news,
            );
            let delta = delta.with(&news).with(&of_networks);
            if delta.is_empty() {
                session.stand_for(self.revision);
            } else {
                outgoing.push((node.clone(), session.next(self.revision, false, delta)));
            }
        }
        self.networks = networks;
        outgoing
    }

    fn note_draining(&mut self, state: &State) {
        let draining: BTreeSet<&TaskId> = state
            .tasks()
            .filter(|task| task.desired_state == DesiredState::Draining)
            .map(|task| &task.id)
            .collect();
        self.draining.retain(|task, _| draining.contains(task));
        for task in draining {
            if !self.draining.contains_key(task) {
                self.draining.insert(task.clone(), self.revision);
            }
        }
    }

    /// The draining tasks that no reachable node sends new connections to any more. A node counts
    /// as reachable until it is down, whether or not it has a session.
    pub(crate) fn drained(&self, state: &State) -> BTreeSet<TaskId> {
        let applied_everywhere = state
            .nodes()
            .filter(|node| node.ingress_address.is_some() && node.status.state != NodeState::Down)
            .map(|node| {
                let session = self.by_node.get(&node.id);
                session.and_then(|session| session.applied).unwrap_or(0)
            })
            .min()
            .unwrap_or(u64::MAX);
        self.draining
            .iter()
            .filter(|(_, since)| **since <= applied_everywhere)
            .map(|(task, _)| task.clone())
            .collect()
    }
}

/// How many tasks `node` has, and the newest version among them. A task that is put has a version that
/// none had before.
fn made_from(state: &State, node: &NodeId) -> (usize, u64) {
    overlay::count(state.tasks_of_node(node).map(|task| task.meta.version))
}
