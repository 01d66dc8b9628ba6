//! Forgets tasks that are over.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_model::{ClusterSpec, DesiredState, ServiceId, Task};

use super::{Batch, is_lost};
use crate::store::State;

/// Removes tasks that were to be removed and have ended, and the oldest ended tasks of each slot
/// beyond the history limit.
///
/// The slot's own task does not count as history, ended or not. A restart policy that counts
/// attempts keeps as many ended tasks as it has to count, as swarm does.
pub(crate) fn pass(state: &State, batch: &mut Batch) {
    let default_limit = ClusterSpec::default().task_history_limit;
    let limit = state
        .cluster()
        .map_or(default_limit, |cluster| cluster.spec.task_history_limit);
    let mut history = BTreeMap::<(&ServiceId, u64), Vec<&Arc<Task>>>::new();
    for task in state.tasks() {
        if batch.is_full() {
            return;
        }
        let ended = task.status.state.is_terminal();
        match task.desired_state {
            DesiredState::Remove if ended || task.node_id.is_none() || is_lost(state, task) => {
                batch.remove_task(task.id.clone());
            }
            DesiredState::Shutdown if ended => {
                let slot = history.entry((&task.service_id, task.slot)).or_default();
                slot.push(task);
            }
            _ => {}
        }
    }
    for mut tasks in history.into_values() {
        tasks.sort_by_key(|task| (task.status.since, task.meta.created_at, &task.id));
        let counted = tasks
            .last()
            .map_or(0, |newest| newest.spec.restart.max_attempts);
        let kept = if counted > 0 {
            limit.max(counted.saturating_add(1))
        } else {
            limit
        };
        let kept = usize::try_from(kept).unwrap_or(usize::MAX);
        let surplus = tasks.len().saturating_sub(kept);
        for task in &tasks[..surplus] {
            if batch.is_full() {
                return;
            }
            batch.remove_task(task.id.clone());
        }
    }
}
