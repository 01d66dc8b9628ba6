//! Carries one task through its life.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use swarm_model::{ContainerSpec, Task, TaskId, TaskState, TaskStatus, Timestamp};
use tokio::sync::{mpsc, watch};

use super::clock::Clock;
use super::step::{End, Step, TaskView, next_step};
use crate::dns::{HOST_RESOLV_CONF, resolv_conf_for_container};
use crate::runtime::{
    ContainerState, LABEL_SERVICE_NAME, Runtime, RuntimeError, Signal, TaskContainer,
};

/// Pause after a step that failed for no fault of the task's, before it is repeated.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How often starting, stopping or cleaning up is repeated before the task is given up. Cleaning up
/// is then left to the next start of the agent.
const RETRIES_MAX: u32 = 30;

/// How often a task is looked at that is to listen, or to lose its connections: reading two small
/// files of the kernel.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Longest error text that is reported; the rest would not be read.
const ERROR_TEXT_MAX: usize = 2048;

/// What a task without an address calls its own, as Debian does (`127.0.1.1` in `/etc/hosts`).
const OWN_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);

/// The part of the network that a task needs.
#[async_trait]
pub(crate) trait TaskNetwork: Send + Sync {
    /// Makes the task's namespace and everything that leads into it; gives its path. Repeatable.
    async fn prepare(&self, task: &Task) -> Result<PathBuf, String>;
    /// Whether its servers listen where its service is published.
    async fn listens(&self, task: &Task) -> Result<bool, String>;
    /// How many connections others have to its servers.
    async fn connections(&self, task_id: &TaskId) -> Result<usize, String>;
    /// Removes it. Repeatable.
    async fn release(&self, task_id: &TaskId) -> Result<(), String>;
}

/// What a runner says of its task.
#[derive(Debug)]
pub(super) enum Progress {
    /// A new status.
    Status(TaskId, TaskStatus),
    /// It ended and left nothing behind.
    Gone(TaskId),
}

/// Runs one task.
pub(super) struct Runner {
    pub(super) clock: Clock,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) network: Arc<dyn TaskNetwork>,
    /// The task as assigned; changes when something else is wanted of it.
    pub(super) task: watch::Receiver<Arc<Task>>,
    pub(super) progress: mpsc::Sender<Progress>,
    /// The container found when the agent started; none for a new task.
    pub(super) container: Option<ContainerState>,
    pub(super) status: TaskStatus,
    /// Whether the task was seen to listen on its published ports. False at first.
    pub(super) listens: bool,
    /// Whether it may have connections. True at first.
    pub(super) connected: bool,
}

impl Runner {
    /// Until the task has ended and left nothing behind.
    pub(super) async fn run(mut self) {
        let task = self.task.borrow().clone();
        let grace = task
            .spec
            .container
            .stop_grace_period
            .unwrap_or(ContainerSpec::DEFAULT_STOP_GRACE_PERIOD);
        let mut started = None;
        let mut unwanted = None;
        let mut asked_to_stop = None;
        let mut failures = 0;
        loop {
            let view = {
                let task = self.task.borrow_and_update();
                let now = self.clock.now();
                if matches!(self.container, Some(ContainerState::Running { .. })) {
                    started.get_or_insert(now);
                }
                if task.desired_state >= swarm_model::DesiredState::Shutdown {
                    unwanted.get_or_insert(now);
                }
                TaskView {
                    desired: task.desired_state,
                    not_before: task.not_before,
                    state: self.status.state,
                    container: self.container,
                    started,
                    listens: self.listens,
                    unwanted,
                    connected: self.connected,
                    asked_to_stop,
                    grace,
                    now,
                }
            };
            let step = next_step(&view);
            tracing::debug!(task = %task.id, ?step, "task step");
            let result = match step {
                Step::WaitUntil(time) => {
                    self.wait_until(Some(time)).await;
                    Ok(())
                }
                Step::Prepare => self.prepare(&task).await,
                Step::Start => self.start(&task).await,
                Step::AwaitListening(until) => self.await_listening(&task, until).await,
                Step::ReportRunning => {
                    let message = if self.listens {
                        "started"
                    } else {
                        "started, but does not listen on every published port"
                    };
                    self.report(TaskState::Running, message, String::new(), None)
                        .await;
                    Ok(())
                }
                Step::AwaitDisconnected(until) => self.await_disconnected(&task, until).await,
                Step::AwaitEnd(until) => self.await_end(&task, until).await,
                Step::AskToStop => {
                    asked_to_stop = Some(view.now);
                    self.runtime
                        .signal(&task.id, Signal::Stop)
                        .await
                        .map_err(words)
                }
                Step::Kill => self.kill(&task).await,
                Step::Finish(end) => {
                    self.finish(end).await;
                    Ok(())
                }
                Step::CleanUp => match self.clean_up(&task.id).await {
                    Ok(()) => {
                        let _ = self.progress.send(Progress::Gone(task.id.clone())).await;
                        return;
                    }
                    Err(error) => Err(error),
                },
            };
            match result {
                Ok(()) => failures = 0,
                Err(error) if failures < RETRIES_MAX => {
                    failures += 1;
                    tracing::warn!(task = %task.id, ?step, error, failures, "will be repeated");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
                Err(error) if self.status.state.is_terminal() => {
                    tracing::error!(task = %task.id, error, "left behind after its end");
                    return;
                }
                Err(error) => {
                    self.report(TaskState::Failed, "given up", error, None)
                        .await;
                    failures = 0;
                }
            }
        }
    }

    /// Until `time`, or until something else is wanted.
    async fn wait_until(&mut self, time: Option<Timestamp>) {
        let pause = async {
            match time {
                Some(time) => tokio::time::sleep(time.since(self.clock.now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = pause => {}
            changed = self.task.changed() => {
                if changed.is_err() {
                    // The worker is gone: the agent is stopping, and the task outlives it.
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Network, image, container. Given up as soon as the task is not wanted any more; repeated
    /// when the runtime or the network was not there for a moment.
    async fn prepare(&mut self, task: &Task) -> Result<(), String> {
        if self.status.state < TaskState::Preparing {
            self.report(TaskState::Preparing, "preparing", String::new(), None)
                .await;
        }
        let mut wanted = self.task.clone();
        let unwanted =
            wanted.wait_for(|task| task.desired_state >= swarm_model::DesiredState::Shutdown);
        let (runtime, network) = (self.runtime.clone(), self.network.clone());
        let result = tokio::select! {
            result = make_container(&*runtime, &*network, task) => result,
            _ = unwanted => return Ok(()),
        };
        match result {
            Ok(()) => {
                self.container = Some(ContainerState::Created);
                self.report(TaskState::Starting, "starting", String::new(), None)
                    .await;
                Ok(())
            }
            Err(Unprepared::ForNow(error)) => Err(error),
            Err(Unprepared::ForGood(error)) => {
                self.report(TaskState::Rejected, "preparing failed", error, None)
                    .await;
                Ok(())
            }
        }
    }

    async fn start(&mut self, task: &Task) -> Result<(), String> {
        match self.runtime.start(&task.id).await {
            Ok(pid) => {
                self.container = Some(ContainerState::Running { pid });
                Ok(())
            }
            Err(
                error @ (RuntimeError::CommandNotRunnable { .. }
                | RuntimeError::InvalidContainer { .. }
                | RuntimeError::ProcessLost { .. }),
            ) => {
                self.report(TaskState::Failed, "starting failed", words(error), None)
                    .await;
                Ok(())
            }
            Err(error) => Err(words(error)),
        }
    }

    async fn await_end(&mut self, task: &Task, until: Option<Timestamp>) -> Result<(), String> {
        let runtime = self.runtime.clone();
        tokio::select! {
            exit = runtime.wait(&task.id) => match exit {
                Ok(exit) => {
                    self.container = Some(ContainerState::Stopped(exit));
                    Ok(())
                }
                Err(RuntimeError::ProcessLost { .. }) => {
                    self.container = Some(ContainerState::Lost);
                    Ok(())
                }
                Err(error) => Err(words(error)),
            },
            () = self.wait_until(until) => Ok(()),
        }
    }

    async fn await_listening(&mut self, task: &Task, until: Timestamp) -> Result<(), String> {
        let network = self.network.clone();
        let seen = async {
            loop {
                match network.listens(task).await {
                    Ok(true) => return true,
                    Ok(false) => tokio::time::sleep(LOOK_INTERVAL).await,
                    // Whoever cannot look does not wait.
                    Err(error) => return unseen(&task.id, &error),
                }
            }
        };
        let (result, seen) = tokio::select! {
            seen = seen => (Ok(()), seen),
            result = self.await_end(task, Some(until)) => (result, false),
        };
        self.listens |= seen;
        result
    }

    async fn await_disconnected(&mut self, task: &Task, until: Timestamp) -> Result<(), String> {
        let network = self.network.clone();
        let seen = async {
            loop {
                match network.connections(&task.id).await {
                    Ok(0) => return true,
                    Ok(_) => tokio::time::sleep(LOOK_INTERVAL).await,
                    Err(error) => return unseen(&task.id, &error),
                }
            }
        };
        let (result, seen) = tokio::select! {
            seen = seen => (Ok(()), seen),
            result = self.await_end(task, Some(until)) => (result, false),
        };
        self.connected &= !seen;
        result
    }

    async fn kill(&mut self, task: &Task) -> Result<(), String> {
        self.runtime
            .signal(&task.id, Signal::Kill)
            .await
            .map_err(words)?;
        self.await_end(task, Some(self.clock.now().after(RETRY_INTERVAL)))
            .await
    }

    async fn finish(&mut self, end: End) {
        let code = |exit: u32| i32::try_from(exit).ok();
        match end {
            End::Complete => {
                self.report(TaskState::Complete, "finished", String::new(), Some(0))
                    .await;
            }
            End::Shutdown(exit) => {
                let exit = exit.and_then(|exit| code(exit.code));
                self.report(TaskState::Shutdown, "shutdown", String::new(), exit)
                    .await;
            }
            End::Failed(exit) => {
                let error = if exit.oom_killed {
                    "the kernel killed it for using more memory than its limit".to_owned()
                } else {
                    format!("task: non-zero exit ({})", exit.code)
                };
                self.report(TaskState::Failed, "finished", error, code(exit.code))
                    .await;
            }
            End::Lost => {
                let error = "its process is gone without an exit status; was the host restarted?";
                self.report(TaskState::Failed, "lost", error.to_owned(), None)
                    .await;
            }
        }
    }

    async fn clean_up(&mut self, id: &TaskId) -> Result<(), String> {
        self.runtime.remove(id).await.map_err(words)?;
        self.network.release(id).await
    }

    async fn report(
        &mut self,
        state: TaskState,
        message: &str,
        mut error: String,
        exit_code: Option<i32>,
    ) {
        if error.len() > ERROR_TEXT_MAX {
            let end = (0..=ERROR_TEXT_MAX)
                .rev()
                .find(|end| error.is_char_boundary(*end));
            error.truncate(end.unwrap_or(0));
        }
        self.status = TaskStatus {
            state,
            since: self.clock.now(),
            message: message.to_owned(),
            error,
            exit_code,
        };
        let id = self.task.borrow().id.clone();
        // The receiver is only gone when the agent is stopping.
        let _ = self
            .progress
            .send(Progress::Status(id, self.status.clone()))
            .await;
    }
}

/// Says that nobody can tell what a task's sockets do; it is not waited for then.
fn unseen(task: &TaskId, error: &str) -> bool {
    tracing::warn!(%task, error, "its sockets cannot be looked at");
    true
}

/// Why a task has no container.
enum Unprepared {
    /// The same may succeed in a moment, with nobody changing the service.
    ForNow(String),
    /// The task is at fault, or something that a person has to mend.
    ForGood(String),
}

impl From<RuntimeError> for Unprepared {
    fn from(error: RuntimeError) -> Self {
        if error.is_temporary() {
            Self::ForNow(words(error))
        } else {
            Self::ForGood(words(error))
        }
    }
}

async fn make_container(
    runtime: &dyn Runtime,
    network: &dyn TaskNetwork,
    task: &Task,
) -> Result<(), Unprepared> {
    let (netns_path, pulled) = tokio::join!(
        network.prepare(task),
        runtime.pull(&task.spec.container.image),
    );
    if let Some(stale) = pulled?.stale {
        tracing::warn!(task = %task.id, error = %stale, "using the node's own copy of the image");
    }
    // The network is this node's own affair, and level-triggered: it comes.
    let netns_path = netns_path.map_err(Unprepared::ForNow)?;
    Ok(runtime.create(&container_of(task, netns_path)).await?)
}

fn container_of(task: &Task, netns_path: PathBuf) -> TaskContainer {
    let spec = &task.spec.container;
    let resources = task.spec.resources;
    let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let hostname = filled(&spec.hostname).unwrap_or_else(|| task.id.short().to_owned());
    let mut labels = spec.labels.clone();
    labels.insert(LABEL_SERVICE_NAME.to_owned(), task.service_name.clone());
    TaskContainer {
        task_id: task.id.clone(),
        image: spec.image.clone(),
        command: spec.command.clone(),
        args: spec.args.clone(),
        env: spec.env.clone(),
        hosts: hosts(task, &hostname),
        // A host without the file has no search domains.
        resolv_conf: resolv_conf_for_container(
            &std::fs::read_to_string(HOST_RESOLV_CONF).unwrap_or_default(),
        ),
        hostname,
        working_dir: filled(&spec.dir),
        user: filled(&spec.user),
        stop_signal: None,
        labels,
        memory_limit_bytes: (resources.limit_memory_bytes > 0)
            .then_some(resources.limit_memory_bytes),
        cpu_limit_nanos: (resources.limit_nano_cpus > 0).then_some(resources.limit_nano_cpus),
        netns_path,
    }
}

/// The content of a container's `/etc/hosts`. Its own name is its address on the networks of users,
/// where others reach it at every port, in the order of attachment; without one, its address on the
/// ingress network.
fn hosts(task: &Task, hostname: &str) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let mut addresses: Vec<_> = task.attachments.iter().map(|at| at.address).collect();
    if addresses.is_empty() {
        addresses.push(task.ingress_address.unwrap_or(OWN_ADDRESS));
    }
    for address in addresses {
        let _ = writeln!(text, "{address}\t{hostname}");
    }
    text
}

fn words(error: RuntimeError) -> String {
    crate::error_text(&error)
}
