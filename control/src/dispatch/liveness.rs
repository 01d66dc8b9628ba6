//! Which nodes were heard, and what follows from silence.

use std::collections::BTreeMap;
use std::time::Duration;

use swarm_model::{ClusterSpec, Node, NodeId, NodeState, Timestamp};

use crate::store::State;

/// A gap between two checks by which this manager itself must have stood still (a paused machine,
/// a stalled disk). Heartbeats that came meanwhile are not read yet, so the gap is nobody's silence.
const STALL: Duration = Duration::from_secs(1);

/// When each node was heard last. Times are the leader's own and never go back.
#[derive(Debug)]
pub(crate) struct Liveness {
    /// When this manager began to lead: who was not heard yet is silent since then.
    started: Timestamp,
    checked: Timestamp,
    heard: BTreeMap<NodeId, Timestamp>,
}

/// A node whose state is to change, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Which.
    pub(crate) node: NodeId,
    /// Its new state.
    pub(crate) state: NodeState,
    /// Why, in a few words; empty when all is well.
    pub(crate) message: String,
}

impl Liveness {
    /// Nobody was heard before `now`.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self {
            started: now,
            checked: now,
            heard: BTreeMap::new(),
        }
    }

    /// Notes a sign of life.
    pub(crate) fn heard(&mut self, node: &NodeId, now: Timestamp) {
        self.heard.insert(node.clone(), now);
    }

    /// What follows at `now`. To be asked several times a second.
    pub(crate) fn check(&mut self, state: &State, now: Timestamp) -> Vec<Verdict> {
        let gap = now.since(self.checked);
        if gap >= STALL {
            self.started = self.started.after(gap).min(now);
            for heard in self.heard.values_mut() {
                *heard = heard.after(gap).min(now);
            }
        }
        self.checked = now;
        self.heard.retain(|node, _| state.node(node).is_some());
        let default = ClusterSpec::default();
        let spec = state.cluster().map_or(&default, |cluster| &cluster.spec);
        state
            .nodes()
            .filter_map(|node| self.verdict(node, spec, now))
            .collect()
    }

    fn verdict(&self, node: &Node, spec: &ClusterSpec, now: Timestamp) -> Option<Verdict> {
        let heard = self.heard.get(&node.id).copied();
        // A node that was admitted a moment ago has had no time to be heard.
        let expected = self.started.max(node.meta.created_at);
        let silent = now.since(heard.unwrap_or(expected));
        let before = node.status.state;
        let state = if silent >= spec.down_after {
            NodeState::Down
        } else if heard.is_none() {
            before
        } else if silent < spec.suspect_after {
            NodeState::Ready
        } else if before == NodeState::Ready {
            NodeState::Suspect
        } else {
            before
        };
        let message = match state {
            NodeState::Suspect => format!("not heard for {:?}", spec.suspect_after),
            NodeState::Down => format!("not heard for {:?}", spec.down_after),
            NodeState::Ready | NodeState::Unknown => String::new(),
        };
        (state != before).then(|| Verdict {
            node: node.id.clone(),
            state,
            message,
        })
    }
}
