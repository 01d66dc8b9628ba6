//! Containers of tasks: images, processes and their exits, behind one trait.
//!
//! [`Runtime`] has two drivers: [`containerd`] for a real node, and the in-memory `fake` that
//! whole simulated clusters run on. Nothing here decides whether a task should run: the worker
//! does, and the runtime obeys.
//!
//! Invariants:
//! * Every operation is idempotent: creating what exists, starting what runs, signalling what has
//!   ended and removing what is gone all succeed. A worker repeats an operation freely.
//! * Containers belong to the node, not to the agent: they outlive it, [`Runtime::list`] finds them
//!   again after a restart, and [`Runtime::wait`] attaches to them again.
//! * A task's container is named by the task id, and everything the runtime writes for it lies in
//!   one directory, so removal needs nothing but the id.
//! * No call waits for ever on another process: [`RuntimeError::Deadline`] names what did not
//!   answer. Only [`Runtime::wait`] lasts as long as the container does.
//!
//! Deliberately absent: networks (the caller hands over a finished network namespace), restarts
//! (a task is one attempt; the orchestrator makes another), volumes, exec, registry credentials
//! and seccomp profiles.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use async_trait::async_trait;
use swarm_model::TaskId;

pub(crate) mod containerd;
mod error;
#[cfg(test)]
pub(crate) mod fake;
mod image_name;

pub(crate) use error::{Cause, RuntimeError};
pub(crate) use image_name::{ImageName, InvalidImageName};

/// Label of a container that holds its task's id.
pub(crate) const LABEL_TASK_ID: &str = "swarm.task.id";
/// Label of a container that holds its service's name.
pub(crate) const LABEL_SERVICE_NAME: &str = "swarm.service.name";

/// One node's container runtime.
///
/// Calls for different tasks may run at the same time; calls for one task come from one worker,
/// one after the other, except that [`Runtime::wait`] may run beside any of them.
#[async_trait]
pub(crate) trait Runtime: Send + Sync {
    /// Brings `image` (any name Docker accepts, such as `nginx`) onto this node, for this node's
    /// platform.
    ///
    /// When the registry does not give it but the node has an image of that name, that one is
    /// used: swarm semantics, and what keeps tasks starting while a registry is down.
    ///
    /// # Errors
    /// [`RuntimeError`] naming what a person can do; nothing half-pulled is kept.
    async fn pull(&self, image: &str) -> Result<PulledImage, RuntimeError>;

    /// Makes a task's container from a pulled image, without a process yet.
    ///
    /// # Errors
    /// The image is not on this node, is for another platform, or has nothing to run; the user
    /// does not exist in it; a name is invalid; the runtime fails.
    async fn create(&self, container: &TaskContainer) -> Result<(), RuntimeError>;

    /// Starts a created container and gives the process id of its first process, in the agent's
    /// pid namespace. One that already ran is not run again.
    ///
    /// # Errors
    /// The command is not in the image or cannot be executed; no such container; the process ran
    /// before and is lost; the runtime fails.
    async fn start(&self, task_id: &TaskId) -> Result<u32, RuntimeError>;

    /// Waits until a started container's process has ended. Cancel-safe, and any number of callers
    /// may wait, before or after the exit.
    ///
    /// # Errors
    /// [`RuntimeError::ProcessLost`] when there is neither a process nor an exit status;
    /// [`RuntimeError::Unreachable`] when the runtime stays away longer than a restart takes.
    async fn wait(&self, task_id: &TaskId) -> Result<ExitStatus, RuntimeError>;

    /// Sends a signal to a container's first process.
    ///
    /// # Errors
    /// The runtime fails. A process that has ended is no error.
    async fn signal(&self, task_id: &TaskId, signal: Signal) -> Result<(), RuntimeError>;

    /// Removes every trace of a task: its process (killed if need be), container, file system,
    /// log and files.
    ///
    /// # Errors
    /// The runtime fails; calling again goes on where this call stopped.
    async fn remove(&self, task_id: &TaskId) -> Result<(), RuntimeError>;

    /// Every container of this node's tasks, in order of task id. What others keep in the same
    /// runtime is not shown.
    ///
    /// # Errors
    /// The runtime fails.
    async fn list(&self) -> Result<Vec<ObservedContainer>, RuntimeError>;
}

/// What a task's container is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TaskContainer {
    /// The task; also the container's name.
    pub(crate) task_id: TaskId,
    /// Image name as the person gave it; normalised by the runtime.
    pub(crate) image: String,
    /// Replaces the image's entrypoint, and drops its command, when not empty.
    pub(crate) command: Vec<String>,
    /// Replaces the image's command when not empty.
    pub(crate) args: Vec<String>,
    /// `NAME=VALUE`, over the image's own.
    pub(crate) env: Vec<String>,
    /// Host name inside, at most 64 bytes (Linux `__NEW_UTS_LEN`).
    pub(crate) hostname: String,
    /// Directory of the first process; else the image's, else `/`.
    pub(crate) working_dir: Option<String>,
    /// `user[:group]`, names or numbers; else the image's, else root.
    pub(crate) user: Option<String>,
    /// Signal of [`Signal::Stop`], such as `SIGQUIT` or `3`; else the image's, else `SIGTERM`.
    pub(crate) stop_signal: Option<String>,
    /// Labels of the container, such as [`LABEL_SERVICE_NAME`]; [`LABEL_TASK_ID`] is added.
    pub(crate) labels: BTreeMap<String, String>,
    /// Most memory of all processes together, in bytes, swap not counted. None: no limit.
    pub(crate) memory_limit_bytes: Option<u64>,
    /// Most processor time, in billionths of one processor. None: no limit.
    pub(crate) cpu_limit_nanos: Option<u64>,
    /// The network namespace, made by the caller.
    pub(crate) netns_path: PathBuf,
    /// Content of `/etc/resolv.conf` inside.
    pub(crate) resolv_conf: String,
    /// Content of `/etc/hosts` inside.
    pub(crate) hosts: String,
}

/// An image that is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PulledImage {
    /// Its full name, such as `docker.io/library/nginx:latest`.
    pub(crate) name: ImageName,
    /// Digest of what the name stands for on this node: an index or a manifest.
    pub(crate) digest: String,
    /// Why the registry's image was not taken and the node's own copy is used instead.
    pub(crate) stale: Option<RuntimeError>,
}

/// How a container's first process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExitStatus {
    /// Exit code, or 128 plus the number of the signal that ended it.
    pub(crate) code: u32,
    /// When it ended, by the node's clock.
    pub(crate) finished_at: SystemTime,
    /// Whether the kernel killed a process in it for exceeding the memory limit.
    pub(crate) oom_killed: bool,
}

/// What to send to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Please end: [`TaskContainer::stop_signal`].
    Stop,
    /// `SIGKILL`.
    Kill,
}

/// A container found on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ObservedContainer {
    /// Its task.
    pub(crate) task_id: TaskId,
    /// How far it is.
    pub(crate) state: ContainerState,
}

/// How far a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContainerState {
    /// Made (perhaps not completely: create it again), never started.
    Created,
    /// Running.
    Running {
        /// Process id of its first process.
        pid: u32,
    },
    /// Its process ended.
    Stopped(ExitStatus),
    /// It was started, and neither the process nor its exit status exists any more: the host was
    /// restarted.
    Lost,
}
