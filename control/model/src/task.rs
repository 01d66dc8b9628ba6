//! How a task lives.
//!
//! Observed states only move forward, in the order of [`TaskState`] (swarmkit `task_model.md`);
//! desired states likewise, in the order of [`DesiredState`]. A task is never moved and never
//! started twice: its replacement is another task in the same slot.
//!
//! | observed | written by | next |
//! |---|---|---|
//! | new | orchestrator | pending (addresses allocated) |
//! | pending | allocator | assigned (a node chosen) |
//! | assigned | scheduler | accepted, rejected |
//! | accepted | agent | preparing |
//! | preparing | agent | starting, rejected |
//! | starting | agent | running, failed |
//! | running | agent | complete, shutdown, failed |
//! | complete, shutdown, failed, rejected | agent | end |
//! | orphaned | manager, for a node that is gone | end |

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// What a task is doing, in the order in which a task can come to do it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Made by the orchestrator.
    #[default]
    New,
    /// Addresses allocated, waiting for a node.
    Pending,
    /// Given to a node.
    Assigned,
    /// The node's agent has it.
    Accepted,
    /// Image being pulled, namespace and container being made.
    Preparing,
    /// Container being started.
    Starting,
    /// Container running.
    Running,
    /// Ended by itself with exit code 0.
    Complete,
    /// Ended because the swarm asked.
    Shutdown,
    /// Ended by itself with an error.
    Failed,
    /// The node could not run it.
    Rejected,
    /// Its node is gone; nobody knows how it ended.
    Orphaned,
}

impl TaskState {
    /// Whether the task has ended, one way or another.
    pub fn is_terminal(self) -> bool {
        self >= Self::Complete
    }

    /// Whether a task in this state can be observed in `next` later.
    pub fn may_become(self, next: Self) -> bool {
        next > self && !self.is_terminal()
    }

    /// The state's name, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Orphaned => "orphaned",
        }
    }
}

/// What the managers want of a task, in the order in which they can come to want it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum DesiredState {
    /// To run.
    #[default]
    Running,
    /// To run on, but to get no new connections: the step before `Shutdown`.
    Draining,
    /// To stop.
    Shutdown,
    /// To stop and be forgotten.
    Remove,
}

impl DesiredState {
    /// The state's name, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Shutdown => "shutdown",
            Self::Remove => "remove",
        }
    }
}

/// What an agent, or the manager before a node is chosen, observed of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    /// The state.
    pub state: TaskState,
    /// When it was entered.
    pub since: Timestamp,
    /// What is happening, in a few words ("started", "no suitable node").
    pub message: String,
    /// What went wrong, in words that name the remedy; empty when nothing did.
    pub error: String,
    /// The container's exit code, once it has ended.
    pub exit_code: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::TaskState::{self, *};

    const ALL: [TaskState; 12] = [
        New, Pending, Assigned, Accepted, Preparing, Starting, Running, Complete, Shutdown, Failed,
        Rejected, Orphaned,
    ];

    #[test]
    fn states_only_move_forward_and_end_once() {
        for from in ALL {
            for to in ALL {
                let ended = matches!(from, Complete | Shutdown | Failed | Rejected | Orphaned);
                let forward = (to as u8) > (from as u8);
                assert_eq!(from.may_become(to), forward && !ended, "{from:?} -> {to:?}");
            }
        }
    }
}
