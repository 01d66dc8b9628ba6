//! Whether and when a task that fell is followed by another.

use swarm_model::{RestartCondition, Task, TaskState, Timestamp};

use super::slot::Slot;

/// What follows a fallen task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restart {
    /// Another task, not to be started before this.
    At(Timestamp),
    /// Nothing: it stays the slot's task, ended.
    Never,
}

/// What follows `fallen`, a task of `slot`, by its own restart policy.
///
/// A task on a lost node did nothing wrong: it is followed at once, and is not counted. Swarm
/// applies the delay there too; it is meant for tasks that end again and again.
pub(super) fn restart(slot: &Slot<'_>, fallen: &Task, now: Timestamp) -> Restart {
    let policy = &fallen.spec.restart;
    let ended = fallen.status.state;
    let restarts = match policy.condition {
        RestartCondition::None => false,
        RestartCondition::OnFailure => ended != TaskState::Complete,
        RestartCondition::Any => true,
    };
    if !restarts {
        return Restart::Never;
    }
    if !ended_by_itself(fallen) {
        return Restart::At(now);
    }
    if policy.max_attempts > 0 {
        let counted = |task: &Task| {
            ended_by_itself(task)
                && task.template_version == fallen.template_version
                && (policy.window.is_zero()
                    || fallen.status.since.since(task.status.since) <= policy.window)
        };
        let attempts = slot.over.iter().filter(|task| counted(task)).count();
        if attempts as u64 >= policy.max_attempts {
            return Restart::Never;
        }
    }
    Restart::At(fallen.status.since.due(policy.delay, now).max(now))
}

fn ended_by_itself(task: &Task) -> bool {
    matches!(
        task.status.state,
        TaskState::Complete | TaskState::Failed | TaskState::Rejected
    )
}
