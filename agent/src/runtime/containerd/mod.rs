//! The driver for containerd, 1.7 or newer, over its gRPC socket.
//!
//! A node has a containerd namespace of its own (`ctr -n swarm` shows it). A task is a container,
//! a writable snapshot and a containerd task, all named by the task's id, and a directory
//! `<tasks dir>/<task id>/` with the generated files of its /etc and its `log`.
//!
//! Who keeps what alive in containerd's garbage collection: image names keep their layers, a
//! container keeps its snapshot and so the layers below it, and until there is a container a lease
//! with an end does. A pull runs under a lease of containerd's own; what a failed one fetched goes
//! with it.
//!
//! The process exists from [`Runtime::start`] on, not from [`Runtime::create`]: a task that waits
//! for its turn in a rolling update costs no memory and outlives a restart of the host. A label
//! records that a start was tried; a container that has it but no process is
//! [`ContainerState::Lost`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use containerd_client::services::v1 as containerd;
use containerd_client::types::v1::{Process, Status as ProcessStatus};
use swarm_model::TaskId;
use tonic::Code;
use tonic::metadata::{Ascii, MetadataValue};

use self::image::Platform;
use self::rpc::{CallError, Connection, done_if};
use super::{
    Cause, ContainerState, ExitStatus, LABEL_TASK_ID, ObservedContainer, PulledImage, Runtime,
    RuntimeError, Signal, TaskContainer,
};

mod classify;
mod create;
mod files;
mod image;
mod pull;
mod rpc;
mod signal;
mod spec;
#[cfg(test)]
mod tests;
mod user;

/// Bound of a call that only reads or writes containerd's database. Its disk may be busy with a
/// pull; it is answered in milliseconds otherwise.
const QUICK: Duration = Duration::from_secs(15);
/// Bound of making, starting or deleting a process: containerd starts a shim and that starts runc.
const PROCESS: Duration = Duration::from_secs(30);
/// Bound of the wait for a killed process: only one in an uninterruptible system call lasts longer.
const KILLED: Duration = Duration::from_secs(10);
/// One round of waiting for an exit. The question is put again as long as the process runs, so
/// that a lost answer costs one round, not the exit.
const WAIT_ROUND: Duration = Duration::from_secs(60);
/// How long containerd may stay away while an exit is waited for: an upgrade of the package, with
/// time to spare.
const CONTAINERD_ABSENCE_MAX: Duration = Duration::from_secs(120);
/// Pause before asking again after a failed wait.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// The Transfer service begins with this version.
const OLDEST: (u32, u32) = (1, 7);
/// From this version on the Transfer service reads the registry hosts directory that a pull names.
/// Earlier ones ignore it, pull over HTTPS only and trust the system's authorities only
/// (containerd `transfer/registry/registry.go`, `UnmarshalAny`).
const READS_REGISTRY_HOSTS: (u32, u32) = (2, 0);
const NEWEST: (u32, u32) = (u32::MAX, 0);

/// The snapshotter that every Linux has.
const SNAPSHOTTER: &str = "overlayfs";
/// containerd's shim for runc.
const RUNTIME: &str = "io.containerd.runc.v2";
/// Label (as nerdctl writes it) that holds the number of the signal that stops the container.
const LABEL_STOP_SIGNAL: &str = "io.containerd.image.config.stop-signal";
/// Label that says that a start was tried.
const LABEL_STARTED: &str = "swarm.task.started";
/// Mount point of the cgroup hierarchy (v2).
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Where the driver finds what it needs.
#[derive(Clone, Debug)]
pub(crate) struct ContainerdConfig {
    /// containerd's socket.
    pub(crate) socket: PathBuf,
    /// containerd namespace of this node's containers and images.
    pub(crate) namespace: String,
    /// Directory for the files of tasks, absolute; made when missing.
    pub(crate) tasks_dir: PathBuf,
    /// Directory with one directory per registry that holds its `hosts.toml`. containerd before
    /// 2.0 does not look at it.
    pub(crate) registry_hosts_dir: PathBuf,
}

/// The driver.
#[derive(Clone, Debug)]
pub(crate) struct ContainerdRuntime {
    connection: Connection,
    namespace: String,
    tasks_dir: PathBuf,
    registry_hosts_dir: PathBuf,
    /// This containerd reads that directory.
    reads_registry_hosts: bool,
    platform: Platform,
}

impl ContainerdRuntime {
    /// Connects, checks the version and makes the namespace.
    ///
    /// # Errors
    /// [`RuntimeError::Unreachable`], [`RuntimeError::TooOld`], or the namespace is refused.
    pub(crate) async fn connect(config: ContainerdConfig) -> Result<Self, RuntimeError> {
        let ContainerdConfig {
            socket,
            namespace,
            tasks_dir,
            registry_hosts_dir,
        } = config;
        let header: MetadataValue<Ascii> = namespace.parse().map_err(|_| RuntimeError::Failed {
            action: "use containerd namespace",
            subject: format!("{namespace:?}"),
            cause: Cause::new("it has characters that no header may have"),
        })?;
        check_tasks_dir(&tasks_dir)?;
        let connection = Connection::new(&socket, header);
        let version = ask_version(&connection).await?;
        let number = parse_version(&version);
        if number < OLDEST {
            return Err(RuntimeError::TooOld {
                socket: connection.socket(),
                version,
            });
        }
        tracing::info!(version, socket = connection.socket(), "using containerd");
        let runtime = Self {
            connection,
            namespace,
            tasks_dir,
            registry_hosts_dir,
            reads_registry_hosts: number >= READS_REGISTRY_HOSTS,
            platform: Platform::host(),
        };
        runtime.make_namespace().await?;
        Ok(runtime)
    }

    async fn make_namespace(&self) -> Result<(), RuntimeError> {
        let connection = &self.connection;
        let name = self.namespace.clone();
        let namespace = containerd::Namespace {
            name,
            labels: HashMap::new(),
        };
        let request = containerd::CreateNamespaceRequest {
            namespace: Some(namespace),
        };
        let result = connection
            .call(QUICK, request, |request| {
                let mut client = connection.namespaces();
                async move { client.create(request).await }
            })
            .await;
        done_if(result, Code::AlreadyExists)
            .map(drop)
            .map_err(|error| {
                connection.failure("make containerd namespace", &self.namespace, error)
            })
    }

    fn task_dir(&self, task_id: &TaskId) -> PathBuf {
        self.tasks_dir.join(task_id.as_str())
    }

    /// Path of a task's cgroup below the hierarchy's root.
    fn cgroup(&self, task_id: &TaskId) -> String {
        format!("/swarm/{}/{task_id}", self.namespace)
    }

    /// The container's record, or none.
    async fn container(
        &self,
        task_id: &TaskId,
    ) -> Result<Option<containerd::Container>, CallError> {
        let request = containerd::GetContainerRequest {
            id: task_id.to_string(),
        };
        let result = self
            .connection
            .call(QUICK, request, |request| {
                let mut client = self.connection.containers();
                async move { client.get(request).await }
            })
            .await;
        Ok(done_if(result, Code::NotFound)?.container)
    }

    /// The container's first process, or none.
    async fn process(&self, task_id: &TaskId) -> Result<Option<Process>, CallError> {
        let container_id = task_id.to_string();
        let request = containerd::GetRequest {
            container_id,
            ..Default::default()
        };
        let result = self
            .connection
            .call(QUICK, request, |request| {
                let mut client = self.connection.tasks();
                async move { client.get(request).await }
            })
            .await;
        Ok(done_if(result, Code::NotFound)?.process)
    }

    async fn kill(&self, task_id: &TaskId, signal: u32) -> Result<(), CallError> {
        let container_id = task_id.to_string();
        let request = containerd::KillRequest {
            container_id,
            signal,
            ..Default::default()
        };
        let result = self
            .connection
            .call(PROCESS, request, |request| {
                let mut client = self.connection.tasks();
                async move { client.kill(request).await }
            })
            .await;
        // Not found: no process yet, or it has ended.
        done_if(result, Code::NotFound)
    }

    async fn wait_round(
        &self,
        task_id: &TaskId,
        deadline: Duration,
    ) -> Result<containerd::WaitResponse, CallError> {
        let container_id = task_id.to_string();
        let request = containerd::WaitRequest {
            container_id,
            ..Default::default()
        };
        self.connection
            .call(deadline, request, |request| {
                let mut client = self.connection.tasks();
                async move { client.wait(request).await }
            })
            .await
    }

    async fn delete_process(&self, task_id: &TaskId) -> Result<(), CallError> {
        let request = containerd::DeleteTaskRequest {
            container_id: task_id.to_string(),
        };
        let result = self
            .connection
            .call(PROCESS, request, |request| {
                let mut client = self.connection.tasks();
                async move { client.delete(request).await }
            })
            .await;
        done_if(result, Code::NotFound).map(drop)
    }

    async fn remove_process(&self, task_id: &TaskId) -> Result<(), CallError> {
        let Some(process) = self.process(task_id).await? else {
            return Ok(());
        };
        if process.status() != ProcessStatus::Stopped {
            self.kill(task_id, signal::SIGKILL).await?;
            done_if(self.wait_round(task_id, KILLED).await, Code::NotFound)?;
        }
        self.delete_process(task_id).await
    }

    async fn remove_container(&self, task_id: &TaskId) -> Result<(), CallError> {
        let request = containerd::DeleteContainerRequest {
            id: task_id.to_string(),
        };
        let result = self
            .connection
            .call(QUICK, request, |request| {
                let mut client = self.connection.containers();
                async move { client.delete(request).await }
            })
            .await;
        done_if(result, Code::NotFound)
    }

    async fn remove_snapshot(&self, task_id: &TaskId) -> Result<(), CallError> {
        let request = containerd::snapshots::RemoveSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: task_id.to_string(),
        };
        let result = self
            .connection
            .call(PROCESS, request, |request| {
                let mut client = self.connection.snapshots();
                async move { client.remove(request).await }
            })
            .await;
        done_if(result, Code::NotFound)
    }

    async fn exit_status(
        &self,
        task_id: &TaskId,
        code: u32,
        exited_at: Option<prost_types::Timestamp>,
    ) -> ExitStatus {
        let finished_at = exited_at.and_then(|at| at.try_into().ok());
        ExitStatus {
            code,
            finished_at: finished_at.unwrap_or_else(std::time::SystemTime::now),
            oom_killed: was_oom_killed(&self.cgroup(task_id)).await,
        }
    }

    async fn state(
        &self,
        task_id: &TaskId,
        started: bool,
        process: Option<Process>,
    ) -> ContainerState {
        let Some(process) = process else {
            return if started {
                ContainerState::Lost
            } else {
                ContainerState::Created
            };
        };
        match process.status() {
            ProcessStatus::Created => ContainerState::Created,
            ProcessStatus::Stopped => ContainerState::Stopped(
                self.exit_status(task_id, process.exit_status, process.exited_at)
                    .await,
            ),
            // Somebody paused it, or its shim is slow to answer: it has not ended.
            ProcessStatus::Running
            | ProcessStatus::Paused
            | ProcessStatus::Pausing
            | ProcessStatus::Unknown => ContainerState::Running { pid: process.pid },
        }
    }

    async fn containers_and_processes(
        &self,
    ) -> Result<(Vec<containerd::Container>, HashMap<String, Process>), CallError> {
        let filters = vec![format!("labels.\"{LABEL_TASK_ID}\"")];
        let request = containerd::ListContainersRequest { filters };
        let containers = self
            .connection
            .call(QUICK, request, |request| {
                let mut client = self.connection.containers();
                async move { client.list(request).await }
            })
            .await?
            .containers;
        let processes = self
            .connection
            .call(
                PROCESS,
                containerd::ListTasksRequest::default(),
                |request| {
                    let mut client = self.connection.tasks();
                    async move { client.list(request).await }
                },
            )
            .await?
            .tasks;
        let by_container = processes
            .into_iter()
            .map(|process| (process.id.clone(), process));
        Ok((containers, by_container.collect()))
    }
}

#[async_trait]
impl Runtime for ContainerdRuntime {
    async fn pull(&self, image: &str) -> Result<PulledImage, RuntimeError> {
        self.pull_image(image).await
    }

    async fn create(&self, container: &TaskContainer) -> Result<(), RuntimeError> {
        self.create_container(container).await
    }

    async fn start(&self, task_id: &TaskId) -> Result<u32, RuntimeError> {
        self.start_process(task_id).await
    }

    async fn wait(&self, task_id: &TaskId) -> Result<ExitStatus, RuntimeError> {
        let mut last_answer = tokio::time::Instant::now();
        loop {
            match self.wait_round(task_id, WAIT_ROUND).await {
                Ok(answer) => {
                    let status = self.exit_status(task_id, answer.exit_status, answer.exited_at);
                    return Ok(status.await);
                }
                Err(CallError::Deadline(_)) => last_answer = tokio::time::Instant::now(),
                Err(error) if error.is(Code::NotFound) => {
                    return Err(RuntimeError::ProcessLost {
                        task_id: task_id.clone(),
                    });
                }
                Err(error) if last_answer.elapsed() > CONTAINERD_ABSENCE_MAX => {
                    return Err(self.connection.failure("wait for task", task_id, error));
                }
                // containerd is being restarted; the process does not notice.
                Err(_) => tokio::time::sleep(RECONNECT_PAUSE).await,
            }
        }
    }

    async fn signal(&self, task_id: &TaskId, signal: Signal) -> Result<(), RuntimeError> {
        let send = async {
            let number = match signal {
                Signal::Kill => signal::SIGKILL,
                Signal::Stop => {
                    let labels = self.container(task_id).await?.unwrap_or_default().labels;
                    let label = labels.get(LABEL_STOP_SIGNAL);
                    label
                        .and_then(|text| text.parse().ok())
                        .unwrap_or(signal::SIGTERM)
                }
            };
            self.kill(task_id, number).await
        };
        send.await
            .map_err(|error| self.connection.failure("signal task", task_id, error))
    }

    async fn remove(&self, task_id: &TaskId) -> Result<(), RuntimeError> {
        let remove = async {
            self.remove_process(task_id).await?;
            self.remove_container(task_id).await?;
            self.remove_snapshot(task_id).await?;
            self.end_lease(task_id).await
        };
        remove
            .await
            .map_err(|error| self.connection.failure("remove task", task_id, error))?;
        files::remove(self.task_dir(task_id))
            .await
            .map_err(|error| RuntimeError::Failed {
                action: "remove files of task",
                subject: task_id.to_string(),
                cause: Cause::new(error.to_string()),
            })
    }

    async fn list(&self) -> Result<Vec<ObservedContainer>, RuntimeError> {
        let failure = |error| self.connection.failure("list", "containers", error);
        let (containers, mut processes) = self.containers_and_processes().await.map_err(failure)?;
        let mut observed = Vec::with_capacity(containers.len());
        for container in containers {
            let Ok(task_id) = container.id.parse::<TaskId>() else {
                tracing::warn!(id = container.id, "container with our label but no task id");
                continue;
            };
            let started = container.labels.contains_key(LABEL_STARTED);
            let mut process = processes.remove(&container.id);
            if process.is_none() && started {
                // The list leaves out a process whose shim did not answer: only a direct question
                // tells that from a process that is gone.
                process = self.process(&task_id).await.map_err(failure)?;
            }
            let state = self.state(&task_id, started, process).await;
            observed.push(ObservedContainer { task_id, state });
        }
        observed.sort_by(|a, b| a.task_id.cmp(&b.task_id));
        Ok(observed)
    }
}

/// The path ends up in the container's specification and, as a log's, in the hands of the shim,
/// which takes it for a URI first.
fn check_tasks_dir(dir: &Path) -> Result<(), RuntimeError> {
    let usable = dir.is_absolute() && dir.to_str().is_some_and(|text| !text.contains('%'));
    if usable {
        return Ok(());
    }
    Err(RuntimeError::Failed {
        action: "keep files of tasks in",
        subject: dir.display().to_string(),
        cause: Cause::new("it must be an absolute path in UTF-8 without percent signs"),
    })
}

async fn ask_version(connection: &Connection) -> Result<String, RuntimeError> {
    let answer = connection
        .call(QUICK, (), |request| {
            let mut client = connection.version();
            async move { client.version(request).await }
        })
        .await;
    match answer {
        Ok(answer) => Ok(answer.version),
        Err(error) => Err(connection.failure("ask the version of", "containerd", error)),
    }
}

/// Major and minor number of a version; one that cannot be read, as of a build from source, is
/// taken for new.
fn parse_version(version: &str) -> (u32, u32) {
    let mut numbers = version
        .trim_start_matches('v')
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor),
        _ => NEWEST,
    }
}

/// Whether the kernel killed a process of the cgroup for want of memory (cgroup-v2.rst,
/// `memory.events`). The cgroup exists until the process is deleted.
async fn was_oom_killed(cgroup: &str) -> bool {
    let path = Path::new(CGROUP_ROOT)
        .join(cgroup.trim_start_matches('/'))
        .join("memory.events");
    let events = tokio::fs::read_to_string(path).await.unwrap_or_default();
    oom_kills(&events) > 0
}

fn oom_kills(memory_events: &str) -> u64 {
    memory_events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        .unwrap_or(0)
}
