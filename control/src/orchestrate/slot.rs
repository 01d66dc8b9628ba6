//! The tasks of one slot, sorted by where they stand.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_model::{
    Availability, DesiredState, NodeState, RestartCondition, Service, Task, TaskState,
};

use crate::store::State;

/// One slot of a service. Every list is oldest first.
#[derive(Debug, Default)]
pub(super) struct Slot<'a> {
    /// Wanted; running, or on the way there.
    pub(super) live: Vec<&'a Arc<Task>>,
    /// Wanted, but ended by itself or on a lost node, and not replaced yet.
    pub(super) fallen: Vec<&'a Arc<Task>>,
    /// Told to drain or to stop, and not ended yet.
    pub(super) going: Vec<&'a Arc<Task>>,
    /// Stopped or replaced, and ended.
    pub(super) over: Vec<&'a Arc<Task>>,
}

impl<'a> Slot<'a> {
    /// The slots of `service` that have tasks. Tasks that are being removed are left out: their
    /// slot was given up.
    pub(super) fn of_service(state: &'a State, service: &Service) -> BTreeMap<u64, Self> {
        let mut tasks: Vec<_> = state
            .tasks_of_service(&service.id)
            .filter(|task| task.desired_state != DesiredState::Remove)
            .collect();
        tasks.sort_by_key(|task| (task.meta.created_at, &task.id));
        let mut slots = BTreeMap::<u64, Self>::new();
        for task in tasks {
            let slot = slots.entry(task.slot).or_default();
            let lost = is_lost(state, task);
            let ended = task.status.state.is_terminal() || lost;
            let list = match (task.desired_state == DesiredState::Running, ended) {
                (true, false) => &mut slot.live,
                (true, true) => &mut slot.fallen,
                (false, false) => &mut slot.going,
                (false, true) => &mut slot.over,
            };
            list.push(task);
        }
        slots
    }

    /// Whether the slot has a task that is wanted.
    pub(super) fn is_taken(&self) -> bool {
        !self.live.is_empty() || !self.fallen.is_empty()
    }

    /// Every task of the slot.
    pub(super) fn tasks(&self) -> impl Iterator<Item = &'a Arc<Task>> + use<'a, '_> {
        [&self.live, &self.fallen, &self.going, &self.over]
            .into_iter()
            .flatten()
            .copied()
    }

    /// The running task of the slot, the newest when there are two.
    pub(super) fn running(&self) -> Option<&'a Arc<Task>> {
        self.live
            .iter()
            .rev()
            .find(|task| is_running(task))
            .copied()
    }
}

/// Whether the task was last seen running.
pub(super) fn is_running(task: &Task) -> bool {
    task.status.state == TaskState::Running
}

/// Whether nobody will hear of the task again soon: its node is down or gone. A wanted task that
/// is never to be restarted is not given up while its node may come back.
pub(crate) fn is_lost(state: &State, task: &Task) -> bool {
    let Some(id) = &task.node_id else {
        return false;
    };
    let Some(node) = state.node(id) else {
        return true;
    };
    let waits = task.desired_state == DesiredState::Running
        && task.spec.restart.condition == RestartCondition::None;
    node.status.state == NodeState::Down && !waits
}

/// How a wanted task that has not ended compares with what the service asks for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// As asked for.
    Current,
    /// Made from another template.
    Outdated,
    /// Made from the current template, but on a node that is being drained.
    Misplaced,
}

/// How `task` fits. One that must not be restarted is never misplaced: moved it would run twice.
pub(super) fn fit(state: &State, service: &Service, task: &Task) -> Fit {
    if task.template_version != service.template_version {
        Fit::Outdated
    } else if is_on_drained_node(state, task)
        && task.spec.restart.condition != RestartCondition::None
    {
        Fit::Misplaced
    } else {
        Fit::Current
    }
}

/// Whether the node of `task` is being drained.
pub(super) fn is_on_drained_node(state: &State, task: &Task) -> bool {
    let node = task.node_id.as_ref().and_then(|id| state.node(id));
    node.is_some_and(|node| node.spec.availability == Availability::Drain)
}
