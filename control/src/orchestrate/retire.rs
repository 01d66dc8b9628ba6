//! How a task comes to its end.
//!
//! | task | told to stop | then |
//! |---|---|---|
//! | ended, on a lost node, or without a node | shutdown or remove, at once | |
//! | not running yet, or without an address | shutdown or remove, at once | |
//! | running, with an address | draining | shutdown or remove, once drained |

use std::collections::BTreeSet;
use std::time::Duration;

use swarm_model::{DesiredState, Task, TaskId, TaskState, Timestamp};

use super::{Batch, is_lost};
use crate::store::State;

/// How long a task drains at most. A node that hears nothing for that long is nearly taken for
/// dead anyway, and holds nobody up.
pub(crate) const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// What is to become of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// What it is wanted for already.
    Keep,
    /// To end and to stay in the slot's history.
    Shutdown,
    /// To end and be forgotten.
    Remove,
}

/// `task` as it is to be next; none when nothing is to be changed now.
pub(super) fn advance(
    state: &State,
    task: &Task,
    goal: Goal,
    drained: &BTreeSet<TaskId>,
    batch: &mut Batch,
) -> Option<Task> {
    let now = batch.now();
    let lost = is_lost(state, task);
    let published = state
        .service(&task.service_id)
        .is_some_and(|service| service.is_published());
    // On a network of a user it is reached by name or virtual address.
    let balanced = published || !task.attachments.is_empty();
    let serving = task.status.state == TaskState::Running && balanced && !lost;
    let desired = next_desired(task, goal, serving, drained, batch);
    // A task without a node never was: there is nothing to remember.
    let desired = if desired == DesiredState::Shutdown && task.node_id.is_none() {
        DesiredState::Remove
    } else {
        desired
    };
    let orphan = lost && !task.status.state.is_terminal();
    if desired == task.desired_state && !orphan {
        return None;
    }
    let mut next = task.clone();
    if desired != task.desired_state {
        next.desired_state = desired;
        next.desired_since = now;
    }
    if orphan {
        orphaned(state, &mut next, now);
    }
    Some(next)
}

fn next_desired(
    task: &Task,
    goal: Goal,
    serving: bool,
    drained: &BTreeSet<TaskId>,
    batch: &mut Batch,
) -> DesiredState {
    let last = match goal {
        Goal::Keep | Goal::Shutdown => DesiredState::Shutdown,
        Goal::Remove => DesiredState::Remove,
    };
    match task.desired_state {
        DesiredState::Running if goal == Goal::Keep => DesiredState::Running,
        DesiredState::Running if serving => DesiredState::Draining,
        DesiredState::Draining if serving && !drained.contains(&task.id) => {
            let deadline = task.desired_since.due(DRAIN_DEADLINE, batch.now());
            if batch.now() >= deadline {
                last
            } else {
                batch.wake_at(deadline);
                DesiredState::Draining
            }
        }
        DesiredState::Running | DesiredState::Draining => last,
        DesiredState::Shutdown | DesiredState::Remove => task.desired_state.max(last),
    }
}

/// Writes down that nobody will report how the task ended. Swarm waits 24 h with that; here the
/// task has been replaced, and a list that shows it as running would show what nobody knows.
fn orphaned(state: &State, task: &mut Task, now: Timestamp) {
    let node = task.node_id.as_ref().and_then(|id| state.node(id));
    task.status.state = TaskState::Orphaned;
    task.status.since = now;
    task.status.message = match node {
        Some(node) => format!("node {} is down", node.description.hostname),
        None => "its node was removed from the swarm".to_owned(),
    };
}
