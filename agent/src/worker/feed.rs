//! Feeds the network with what it has to look like, and learns when it does.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_model::{NodeId, NodeProblem, TaskId, TaskStatus};
use tokio::sync::watch;

use super::desired_network::{Following, local_task};
use crate::dns::NameServers;
use crate::error_text;
use crate::network::{Applied, Reconciler};
use crate::session::Assigned;

/// Couples assignments and local tasks to the network.
pub(crate) struct NetworkFeed {
    /// This node.
    pub(crate) node_id: NodeId,
    /// Who builds it.
    pub(crate) network: Arc<Reconciler>,
    /// Who answers for names.
    pub(crate) names: NameServers,
    /// What the manager wants.
    pub(crate) assigned: watch::Receiver<Arc<Assigned>>,
    /// How the node's tasks are.
    pub(crate) statuses: watch::Receiver<Arc<BTreeMap<TaskId, TaskStatus>>>,
    /// Session and generation that are in the kernel.
    pub(crate) applied: watch::Sender<(u64, u64)>,
    /// What is wrong with the network; empty when nothing is.
    pub(crate) problems: watch::Sender<Vec<NodeProblem>>,
}

impl NetworkFeed {
    /// For as long as the node is in the swarm.
    pub(crate) async fn run(mut self) {
        // Counts what was handed to the network; generations start again with every session.
        let mut revision = 0;
        let mut handed: Option<(u64, (u64, u64))> = None;
        let mut following = Following::default();
        let mut result = self.network.applied();
        self.assigned.mark_changed();
        loop {
            tokio::select! {
                changed = self.assigned.changed() => if changed.is_err() { return },
                changed = self.statuses.changed() => if changed.is_err() { return },
                changed = result.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = result.borrow_and_update().clone();
                    self.problems.send_replace(problems(&now));
                    if let Some((wanted, generation)) = handed
                        && now.generation >= Some(wanted)
                    {
                        self.applied.send_replace(generation);
                    }
                    continue;
                }
            }
            let assigned = self.assigned.borrow_and_update().clone();
            // First: whoever is told that this is applied relies on nobody being told old addresses.
            self.names.publish(&assigned);
            let statuses = self.statuses.borrow_and_update().clone();
            let mut local = BTreeMap::new();
            for (id, task) in &assigned.tasks {
                let ended = statuses.get(id).unwrap_or(&task.status).state.is_terminal();
                if let (false, Some(connected)) = (ended, local_task(task, &assigned.networks)) {
                    local.insert(id.clone(), connected);
                }
            }
            let Some(desired) = following.desired_network(&assigned, &self.node_id, local) else {
                continue;
            };
            revision += 1;
            handed = Some((revision, (assigned.session, assigned.generation)));
            self.network.apply(Arc::new(desired), revision);
        }
    }
}

/// What is wrong, the worst first.
fn problems(applied: &Applied) -> Vec<NodeProblem> {
    let failures = applied.failures.iter().map(|failure| NodeProblem {
        service: None,
        text: error_text(failure.as_ref()),
    });
    let problems = applied.problems.iter().map(|problem| NodeProblem {
        service: problem.service().cloned(),
        text: problem.to_string(),
    });
    failures.chain(problems).collect()
}
