//! Owns the runners.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use swarm_model::{DesiredState, Task, TaskId, TaskState, TaskStatus, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::runner::{Progress, Runner, TaskNetwork};
use crate::error_text;
use crate::runtime::{ContainerState, Runtime};
use crate::session::Assigned;

/// Runners wait here for the worker, which only notes what they say.
const PROGRESS_MAX: usize = 256;

/// Pause before the runtime is asked again which containers there are.
const LIST_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the tasks assigned to this node.
pub(crate) struct Worker {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) network: Arc<dyn TaskNetwork>,
    /// What the manager wants.
    pub(crate) assigned: watch::Receiver<Arc<Assigned>>,
    /// What is reported of the tasks.
    pub(crate) statuses: watch::Sender<Arc<BTreeMap<TaskId, TaskStatus>>>,
}

impl Worker {
    /// Until `stop`; containers run on.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let containers = tokio::select! {
            containers = self.containers() => containers,
            () = stop.cancelled() => return,
        };
        let (sender, mut progress) = mpsc::channel(PROGRESS_MAX);
        let mut roster = Roster {
            runtime: self.runtime,
            network: self.network,
            clock: Clock::start(),
            containers,
            runners: BTreeMap::new(),
            statuses: BTreeMap::new(),
            progress: sender,
            tasks: JoinSet::new(),
        };
        self.assigned.mark_changed();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.assigned.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let assigned = self.assigned.borrow_and_update().clone();
                    // Nothing was ever heard: what runs is left alone.
                    if assigned.generation > 0 {
                        roster.take(&assigned);
                    }
                }
                Some(message) = progress.recv() => match message {
                    Progress::Status(id, status) => {
                        roster.statuses.insert(id, status);
                    }
                    Progress::Gone(id) => {
                        roster.runners.remove(&id);
                        if !self.assigned.borrow().tasks.contains_key(&id) {
                            roster.statuses.remove(&id);
                        }
                    }
                },
                Some(_) = roster.tasks.join_next() => continue,
            }
            self.statuses.send_if_modified(|published| {
                let changed = **published != roster.statuses;
                if changed {
                    *published = Arc::new(roster.statuses.clone());
                }
                changed
            });
        }
    }

    /// What an earlier agent left running; waits for a runtime that is not there yet.
    async fn containers(&self) -> BTreeMap<TaskId, ContainerState> {
        loop {
            match self.runtime.list().await {
                Ok(containers) => {
                    let pairs = containers
                        .into_iter()
                        .map(|found| (found.task_id, found.state));
                    return pairs.collect();
                }
                Err(error) => {
                    tracing::error!(error = error_text(&error), "no tasks can run on this node");
                    tokio::time::sleep(LIST_INTERVAL).await;
                }
            }
        }
    }
}

/// The tasks of this node and who carries them.
struct Roster {
    runtime: Arc<dyn Runtime>,
    network: Arc<dyn TaskNetwork>,
    clock: Clock,
    /// Found at the start and not taken over yet.
    containers: BTreeMap<TaskId, ContainerState>,
    /// What each runner is told of its task.
    runners: BTreeMap<TaskId, watch::Sender<Arc<Task>>>,
    /// Kept for an ended task until the manager forgets it.
    statuses: BTreeMap<TaskId, TaskStatus>,
    progress: mpsc::Sender<Progress>,
    tasks: JoinSet<()>,
}

impl Roster {
    /// Tells runners what is wanted now, starts those that are missing, ends what is not wanted.
    fn take(&mut self, assigned: &Assigned) {
        for (id, task) in &assigned.tasks {
            match self.runners.get(id) {
                Some(runner) => {
                    runner.send_replace(Arc::new(task.clone()));
                }
                None => self.start(task),
            }
        }
        for (id, runner) in &self.runners {
            if !assigned.tasks.contains_key(id) {
                runner.send_if_modified(remove);
            }
        }
        let (runners, statuses) = (&self.runners, &mut self.statuses);
        statuses.retain(|id, _| assigned.tasks.contains_key(id) || runners.contains_key(id));
        // What was kept on disk from an earlier start may be older than what runs: only a manager's
        // own word ends it.
        if assigned.session > 0 {
            for (id, _) in std::mem::take(&mut self.containers) {
                self.clean_up(id);
            }
        }
    }

    fn start(&mut self, task: &Task) {
        let container = self.containers.remove(&task.id);
        let known = self.statuses.contains_key(&task.id);
        if known || (task.status.state.is_terminal() && container.is_none()) {
            // It has ended, and what it left is gone.
            return;
        }
        let status = adopted_status(task, container, self.clock.now());
        self.statuses.insert(task.id.clone(), status.clone());
        let (sender, receiver) = watch::channel(Arc::new(task.clone()));
        let runner = Runner {
            clock: self.clock,
            runtime: self.runtime.clone(),
            network: self.network.clone(),
            task: receiver,
            progress: self.progress.clone(),
            container,
            status,
            listens: false,
            connected: true,
        };
        self.runners.insert(task.id.clone(), sender);
        self.tasks.spawn(runner.run());
    }

    /// Removes what a task left that no manager knows any more.
    fn clean_up(&mut self, id: TaskId) {
        let (runtime, network) = (self.runtime.clone(), self.network.clone());
        tracing::info!(task = %id, "removing what a forgotten task left");
        self.tasks.spawn(async move {
            if let Err(error) = runtime.remove(&id).await {
                tracing::warn!(task = %id, error = error_text(&error), "its container is left");
            }
            if let Err(error) = network.release(&id).await {
                tracing::warn!(task = %id, error, "its network is left");
            }
        });
    }
}

/// Marks a task as to be removed; false when it is already.
fn remove(task: &mut Arc<Task>) -> bool {
    let changed = task.desired_state != DesiredState::Remove;
    if changed {
        Arc::make_mut(task).desired_state = DesiredState::Remove;
    }
    changed
}

/// The status that a task starts with here: what the manager last heard while that can still be
/// true, else `accepted`.
fn adopted_status(task: &Task, container: Option<ContainerState>, now: Timestamp) -> TaskStatus {
    // A task that ran and has no container is lost; the runner sees that by its status.
    let begun = container.is_some() || task.status.state >= TaskState::Running;
    if begun && task.status.state > TaskState::Accepted {
        return task.status.clone();
    }
    TaskStatus {
        state: TaskState::Accepted,
        since: now,
        message: "accepted".to_owned(),
        ..TaskStatus::default()
    }
}
