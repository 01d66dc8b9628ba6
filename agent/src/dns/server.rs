//! The name servers of all tasks of this node: opened, kept, closed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use swarm_model::{Task, TaskId};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::kept::SocketStore;
use super::records::{Asker, Records};
use super::serve::{Answers, serve};
use super::socket::{OpenError, Sockets};
use super::upstream::Upstream;
use crate::error_text;
use crate::network::{Netns, task_netns};
use crate::session::Assigned;

/// How often servers that are missing are looked for without anything having changed.
const ADOPT_INTERVAL: Duration = Duration::from_secs(2);

/// Where things are on this host.
#[derive(Clone, Debug)]
pub(crate) struct NameServerConfig {
    /// Directory with the tasks' network namespaces.
    pub(crate) run_dir: PathBuf,
    /// The file that names the servers to forward to.
    pub(crate) resolv_conf: PathBuf,
    /// Who keeps sockets between two agents.
    pub(crate) sockets: Arc<SocketStore>,
}

/// The name servers of this node's tasks. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct NameServers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: NameServerConfig,
    upstream: Arc<Upstream>,
    /// What the answers are from, and what that was made of.
    published: watch::Sender<Published>,
    tasks: Mutex<BTreeMap<TaskId, State>>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Published {
    assigned: Arc<Assigned>,
    pub(super) records: Arc<Records>,
}

/// Whether `one` was said after `other`.
fn follows(one: &Arc<Assigned>, other: &Arc<Assigned>) -> bool {
    let time = |assigned: &Assigned| (assigned.session, assigned.generation);
    !Arc::ptr_eq(one, other) && time(one) >= time(other)
}

/// How the server of a task is.
#[derive(Debug)]
enum State {
    /// Open, unless it failed.
    Open(Open),
    /// Closed for good; not to be opened again because the manager still lists the task.
    Closed,
}

#[derive(Debug)]
struct Open {
    netns: Netns,
    asker: watch::Sender<Asker>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Open {
    fn runs(&self) -> bool {
        !self.serving.is_finished()
    }
}

impl NameServers {
    /// None are open yet. All end with `stop`; `tracker` waits for them.
    pub(crate) fn new(
        config: NameServerConfig,
        stop: CancellationToken,
        tracker: TaskTracker,
    ) -> Self {
        let upstream = Arc::new(Upstream::new(config.resolv_conf.clone()));
        Self {
            shared: Arc::new(Shared {
                config,
                upstream,
                published: watch::Sender::default(),
                tasks: Mutex::default(),
                stop,
                tracker,
            }),
        }
    }

    /// Answers from what `assigned` says, as it changes, and takes over the tasks that run already.
    /// For as long as the node is in the swarm.
    pub(crate) async fn follow(self, mut assigned: watch::Receiver<Arc<Assigned>>) {
        let mut interval = tokio::time::interval(ADOPT_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        assigned.mark_changed();
        loop {
            tokio::select! {
                changed = assigned.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = assigned.borrow_and_update().clone();
                    self.publish(&now);
                }
                _ = interval.tick() => {}
            }
            let assigned = self.shared.published.borrow().assigned.clone();
            self.adopt(&assigned).await;
        }
    }

    /// From now on the answers are what `now` says, or something later. Repeatable.
    pub(crate) fn publish(&self, now: &Arc<Assigned>) {
        let before = self.shared.published.borrow().clone();
        if !follows(now, &before.assigned) {
            return;
        }
        // Outside the lock, which queries take: this takes milliseconds for thousands of tasks.
        let records = Records::after(&before.records, &before.assigned, now);
        let records = Arc::new(records);
        self.shared.published.send_if_modified(|published| {
            let later = follows(now, &published.assigned);
            if later {
                *published = Published {
                    assigned: now.clone(),
                    records,
                };
            }
            later
        });
    }

    /// From now on the answers are from `records`.
    #[cfg(test)]
    pub(super) fn answer_from(&self, records: Records) {
        self.shared
            .published
            .send_modify(|published| published.records = Arc::new(records));
    }

    /// Opens the servers of tasks that have a namespace and were neither opened nor closed by this
    /// agent: those that an earlier one started. Also those that failed.
    async fn adopt(&self, assigned: &Assigned) {
        // What was kept on disk may not list a task that runs: only a manager's own word counts.
        if assigned.session > 0 {
            let mut left = self.shared.config.sockets.left();
            left.retain(|task| !assigned.tasks.contains_key(task));
            if !left.is_empty() {
                self.forget(left).await;
            }
        }
        let tasks: Vec<&Task> = {
            let mut known = self.shared.tasks.lock().await;
            known.retain(|id, state| match state {
                State::Open(_) => true,
                State::Closed => assigned.tasks.contains_key(id),
            });
            let tasks = assigned.tasks.values();
            tasks
                .filter(|task| match known.get(&task.id) {
                    Some(State::Open(open)) => !open.runs(),
                    Some(State::Closed) => false,
                    None => !task.status.state.is_terminal(),
                })
                .collect()
        };
        for task in tasks {
            match self.open(&task.id, Asker::of(task)).await {
                // None yet: its worker makes it, and asks for its server then.
                Ok(()) | Err(OpenError::NoNetns) => {}
                Err(error) => tracing::warn!(
                    task = %task.id,
                    error = error_text(&error),
                    "the task cannot resolve names; this is tried again"
                ),
            }
        }
    }

    /// Opens the server of a task in its network namespace. Repeatable; then `asker` counts.
    pub(crate) async fn open(&self, task: &TaskId, asker: Asker) -> Result<(), OpenError> {
        let mut tasks = self.shared.tasks.lock().await;
        let (config, id) = (self.shared.config.clone(), task.clone());
        let running = match tasks.get(task) {
            Some(State::Open(open)) if open.runs() => Some(open.netns.clone()),
            _ => None,
        };
        let opened = tokio::task::spawn_blocking(move || {
            let netns = task_netns(&config.run_dir, &id)?.ok_or(OpenError::NoNetns)?;
            if running.as_ref() == Some(&netns) {
                return Ok(None);
            }
            let sockets = match config.sockets.take(&id) {
                Some(kept) => kept,
                None => Sockets::open(&netns)?,
            };
            config.sockets.keep(&id, &sockets);
            Ok::<_, OpenError>(Some((netns, sockets)))
        });
        let opened = opened
            .await
            .map_err(|error| OpenError::Listen(std::io::Error::other(error)))??;
        let Some((netns, sockets)) = opened else {
            if let Some(State::Open(open)) = tasks.get(task) {
                open.asker.send_replace(asker);
            }
            return Ok(());
        };
        let asker = watch::Sender::new(asker);
        let stop = self.shared.stop.child_token();
        let answers = Answers::new(
            self.shared.published.subscribe(),
            asker.subscribe(),
            self.shared.upstream.clone(),
        );
        let (id, until) = (task.clone(), stop.clone());
        let serving = self.shared.tracker.spawn(async move {
            if let Err(error) = serve(sockets, answers, until).await {
                tracing::warn!(task = %id, %error, "the task's name server has ended");
            }
        });
        let open = Open {
            netns,
            asker,
            stop,
            serving,
        };
        if let Some(State::Open(before)) = tasks.insert(task.clone(), State::Open(open)) {
            before.stop.cancel();
        }
        Ok(())
    }

    /// Closes the server of a task; its sockets are closed afterwards, and it is not opened again.
    pub(crate) async fn close(&self, task: &TaskId) {
        let before = {
            let mut tasks = self.shared.tasks.lock().await;
            tasks.insert(task.clone(), State::Closed)
        };
        if let Some(State::Open(open)) = before {
            open.stop.cancel();
            // It ends when it is told to; a panic in it was logged.
            let _ = open.serving.await;
        }
        self.forget(vec![task.clone()]).await;
    }

    /// Closes all of them.
    pub(crate) async fn close_all(&self) {
        let tasks: Vec<TaskId> = {
            let tasks = self.shared.tasks.lock().await;
            tasks.keys().cloned().collect()
        };
        for task in tasks {
            self.close(&task).await;
        }
        self.forget(self.shared.config.sockets.left()).await;
    }

    async fn forget(&self, tasks: Vec<TaskId>) {
        let store = self.shared.config.sockets.clone();
        let work = move || tasks.iter().for_each(|task| store.forget(task));
        // It does not panic, and nobody cancels it.
        let _ = tokio::task::spawn_blocking(work).await;
    }
}
