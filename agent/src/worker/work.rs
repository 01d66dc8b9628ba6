//! Owns the runners.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use swarm_model::{DesiredState, Task, TaskId, TaskState, TaskStatus};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::runner::{Progress, Runner, TaskNetwork, now};
use crate::runtime::{ContainerState, Runtime, RuntimeError};
use crate::session::Assigned;

/// Runners wait here for the worker, which only notes what they say.
const PROGRESS_MAX: usize = 256;

/// Runs the tasks assigned to this node.
pub(crate) struct Worker {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) network: Arc<dyn TaskNetwork>,
    /// What the manager wants.
    pub(crate) assigned: watch::Receiver<Arc<Assigned>>,
    /// What is reported of the tasks.
    pub(crate) statuses: watch::Sender<Arc<BTreeMap<TaskId, TaskStatus>>>,
}

/// Why the worker ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerEnd {
    #[error("cannot see which containers run on this node")]
    Runtime(#[from] RuntimeError),
}

/// A task with a runner.
struct Held {
    task: watch::Sender<Arc<Task>>,
}

impl Worker {
    /// Until `stop`; containers run on.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), WorkerEnd> {
        let mut containers: BTreeMap<TaskId, ContainerState> = self
            .runtime
            .list()
            .await?
            .into_iter()
            .map(|container| (container.task_id, container.state))
            .collect();
        let (sender, mut progress) = mpsc::channel(PROGRESS_MAX);
        let mut held: BTreeMap<TaskId, Held> = BTreeMap::new();
        let mut statuses: BTreeMap<TaskId, TaskStatus> = BTreeMap::new();
        // Ended tasks keep their status until the manager drops the task.
        let mut runners = JoinSet::new();
        self.assigned.mark_changed();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = self.assigned.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let assigned = self.assigned.borrow_and_update().clone();
                    if assigned.generation == 0 {
                        continue;
                    }
                    self.take(&assigned, &mut held, &mut statuses, &mut containers,
                        &sender, &mut runners);
                    self.publish(&statuses);
                }
                Some(message) = progress.recv() => {
                    match message {
                        Progress::Status(id, status) => {
                            statuses.insert(id, status);
                        }
                        Progress::Gone(id) => {
                            held.remove(&id);
                            let assigned = self.assigned.borrow().tasks.contains_key(&id);
                            if !assigned {
                                statuses.remove(&id);
                            }
                        }
                    }
                    self.publish(&statuses);
                }
                Some(_) = runners.join_next() => {}
            }
        }
    }

    fn publish(&self, statuses: &BTreeMap<TaskId, TaskStatus>) {
        self.statuses.send_if_modified(|published| {
            let changed = **published != *statuses;
            if changed {
                *published = Arc::new(statuses.clone());
            }
            changed
        });
    }

    /// Tells runners what is wanted now, and starts those that are missing.
    fn take(
        &self,
        assigned: &Assigned,
        held: &mut BTreeMap<TaskId, Held>,
        statuses: &mut BTreeMap<TaskId, TaskStatus>,
        containers: &mut BTreeMap<TaskId, ContainerState>,
        sender: &mpsc::Sender<Progress>,
        runners: &mut JoinSet<()>,
    ) {
        for (id, task) in &assigned.tasks {
            if let Some(runner) = held.get(id) {
                runner.task.send_replace(Arc::new(task.clone()));
                continue;
            }
            let container = containers.remove(id);
            let known = statuses.contains_key(id);
            if known || (task.status.state.is_terminal() && container.is_none()) {
                // It has ended, and what it left is gone.
                continue;
            }
            let status = adopted_status(task, container);
            statuses.insert(id.clone(), status.clone());
            self.spawn(task.clone(), container, status, held, sender, runners);
        }
        let assigned_ids: BTreeSet<_> = assigned.tasks.keys().cloned().collect();
        // Tasks that the manager has forgotten: those with a runner, and containers left by them.
        for (id, runner) in held.iter() {
            if !assigned_ids.contains(id) {
                runner.task.send_if_modified(|task| {
                    let changed = task.desired_state != DesiredState::Remove;
                    if changed {
                        let mut removed = Task::clone(task);
                        removed.desired_state = DesiredState::Remove;
                        *task = Arc::new(removed);
                    }
                    changed
                });
            }
        }
        statuses.retain(|id, _| assigned_ids.contains(id) || held.contains_key(id));
        for (id, _) in std::mem::take(containers) {
            let (runtime, network) = (self.runtime.clone(), self.network.clone());
            tracing::info!(task = %id, "removing the container of a task that is not ours any more");
            runners.spawn(async move {
                if let Err(error) = runtime.remove(&id).await {
                    tracing::warn!(task = %id, %error, "cannot remove a forgotten container");
                }
                if let Err(error) = network.release(&id).await {
                    tracing::warn!(task = %id, error, "cannot release a forgotten network");
                }
            });
        }
    }

    fn spawn(
        &self,
        task: Task,
        container: Option<ContainerState>,
        status: TaskStatus,
        held: &mut BTreeMap<TaskId, Held>,
        sender: &mpsc::Sender<Progress>,
        runners: &mut JoinSet<()>,
    ) {
        let id = task.id.clone();
        let (task, receiver) = watch::channel(Arc::new(task));
        let runner = Runner {
            runtime: self.runtime.clone(),
            network: self.network.clone(),
            task: receiver,
            progress: sender.clone(),
            container,
            status,
        };
        held.insert(id, Held { task });
        runners.spawn(runner.run());
    }
}

/// The status that a task starts with here: what the manager last heard, and at least `accepted`.
fn adopted_status(task: &Task, container: Option<ContainerState>) -> TaskStatus {
    if task.status.state > TaskState::Accepted
        && (container.is_some() || {
            // It ran and its container is gone: the runner finds that out from the state.
            task.status.state >= TaskState::Running
        })
    {
        return task.status.clone();
    }
    TaskStatus {
        state: TaskState::Accepted,
        since: now(),
        message: "accepted".to_owned(),
        ..TaskStatus::default()
    }
}
