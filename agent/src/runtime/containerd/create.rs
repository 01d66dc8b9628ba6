//! From a pulled image to a running process.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use containerd_client::services::v1 as containerd;
use containerd_client::services::v1::snapshots::{MountsRequest, PrepareSnapshotRequest};
use containerd_client::types::Mount;
use containerd_client::types::v1::Status as ProcessStatus;
use prost_types::{Any, FieldMask, Timestamp};
use swarm_model::TaskId;
use tonic::Code;
use tonic::metadata::{Ascii, MetadataValue};

use super::classify::start_failure;
use super::image::ImageConfig;
use super::pull::not_on_this_node;
use super::rpc::{CallError, done_if, under_lease};
use super::signal::{SIGTERM, parse_signal};
use super::spec::runtime_spec;
use super::user::{User, find_user};
use super::{
    ContainerdRuntime, LABEL_STARTED, LABEL_STOP_SIGNAL, PROCESS, QUICK, RUNTIME, SNAPSHOTTER,
    files,
};
use crate::runtime::{Cause, ImageName, LABEL_TASK_ID, Runtime as _, RuntimeError, TaskContainer};

/// How long the lease of an unfinished creation keeps its snapshot: many times what one takes.
const CREATE_LEASE: Duration = Duration::from_secs(600);
/// Type of the container's specification, by containerd's convention.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

impl ContainerdRuntime {
    /// See [`crate::runtime::Runtime::create`].
    pub(super) async fn create_container(&self, task: &TaskContainer) -> Result<(), RuntimeError> {
        let task_id = &task.task_id;
        let failure = |error| {
            self.connection
                .failure("make container of task", task_id, error)
        };
        if self.container(task_id).await.map_err(failure)?.is_some() {
            return Ok(());
        }
        let result = self.make_container(task).await;
        if result.is_err() {
            // What was made so far is in no list: nobody else would remove it.
            if let Err(error) = self.remove(task_id).await {
                tracing::warn!(%error, "remains of a failed creation are left behind");
            }
        }
        result
    }

    async fn make_container(&self, task: &TaskContainer) -> Result<(), RuntimeError> {
        let task_id = &task.task_id;
        let failure = |error| {
            self.connection
                .failure("make container of task", task_id, error)
        };
        let image_name: ImageName = task.image.parse()?;
        let image = self.local_image(&image_name).await?;
        let image = image.ok_or_else(|| not_on_this_node(&image_name))?.config;
        let stop_signal = stop_signal(task, &image).map_err(|cause| invalid(task_id, cause))?;
        files::write(self.task_dir(task_id), task)
            .await
            .map_err(|error| RuntimeError::Failed {
                action: "write files of task",
                subject: task_id.to_string(),
                cause: Cause::new(error.to_string()),
            })?;
        let lease = self.make_lease(task_id).await.map_err(failure)?;
        let mounts = match self
            .prepare_snapshot(task_id, &image.chain_id, &lease)
            .await
        {
            Err(error) if error.is(Code::NotFound) => {
                return Err(RuntimeError::ImageUnusable {
                    image: image_name.to_string(),
                    cause: Cause::new("its layers are not unpacked on this node"),
                });
            }
            other => other.map_err(failure)?,
        };
        let user = find_user_of(task, &image, mounts).await?;
        let spec = runtime_spec(
            task,
            &image,
            &user,
            &self.task_dir(task_id),
            &self.cgroup(task_id),
        )
        .map_err(|error| invalid(task_id, error))?;
        let mut labels: HashMap<String, String> = task.labels.clone().into_iter().collect();
        labels.insert(LABEL_TASK_ID.to_owned(), task_id.to_string());
        labels.insert(LABEL_STOP_SIGNAL.to_owned(), stop_signal.to_string());
        let container = containerd::Container {
            id: task_id.to_string(),
            labels,
            image: image_name.to_string(),
            runtime: Some(containerd::container::Runtime {
                name: RUNTIME.to_owned(),
                options: None,
            }),
            spec: Some(Any {
                type_url: SPEC_TYPE.to_owned(),
                value: spec.to_string().into(),
            }),
            snapshotter: SNAPSHOTTER.to_owned(),
            snapshot_key: task_id.to_string(),
            ..Default::default()
        };
        let request = containerd::CreateContainerRequest {
            container: Some(container),
        };
        let result = self
            .connection
            .call(QUICK, request, |request| {
                let mut client = self.connection.containers();
                async move { client.create(request).await }
            })
            .await;
        done_if(result, Code::AlreadyExists).map_err(failure)?;
        self.end_lease(task_id).await.map_err(failure)
    }

    async fn make_lease(&self, task_id: &TaskId) -> Result<MetadataValue<Ascii>, CallError> {
        let id = lease_id(task_id);
        let expire = Timestamp::from(SystemTime::now() + CREATE_LEASE).to_string();
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expire)]);
        let request = containerd::CreateRequest {
            id: id.clone(),
            labels,
        };
        let result = self
            .connection
            .call(QUICK, request, |request| {
                let mut client = self.connection.leases();
                async move { client.create(request).await }
            })
            .await;
        done_if(result, Code::AlreadyExists)?;
        Ok(id.parse().expect("a task id is letters and digits"))
    }

    pub(super) async fn end_lease(&self, task_id: &TaskId) -> Result<(), CallError> {
        let request = containerd::DeleteRequest {
            id: lease_id(task_id),
            sync: false,
        };
        let result = self
            .connection
            .call(QUICK, request, |request| {
                let mut client = self.connection.leases();
                async move { client.delete(request).await }
            })
            .await;
        done_if(result, Code::NotFound)
    }

    /// The container's writable file system above the image's layers.
    async fn prepare_snapshot(
        &self,
        task_id: &TaskId,
        parent: &str,
        lease: &MetadataValue<Ascii>,
    ) -> Result<Vec<Mount>, CallError> {
        let request = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: task_id.to_string(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        let result = self
            .connection
            .call(PROCESS, request, |request| {
                let mut client = self.connection.snapshots();
                let request = under_lease(request, lease);
                async move { client.prepare(request).await }
            })
            .await;
        match result {
            Err(error) if error.is(Code::AlreadyExists) => self.snapshot_mounts(task_id).await,
            other => Ok(other?.mounts),
        }
    }

    async fn snapshot_mounts(&self, task_id: &TaskId) -> Result<Vec<Mount>, CallError> {
        let request = MountsRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: task_id.to_string(),
        };
        let answer = self
            .connection
            .call(QUICK, request, |request| {
                let mut client = self.connection.snapshots();
                async move { client.mounts(request).await }
            })
            .await?;
        Ok(answer.mounts)
    }

    /// See [`crate::runtime::Runtime::start`].
    pub(super) async fn start_process(&self, task_id: &TaskId) -> Result<u32, RuntimeError> {
        let failure = |error: CallError| {
            error
                .status()
                .and_then(|status| start_failure(status.message(), task_id))
                .unwrap_or_else(|| self.connection.failure("start task", task_id, error))
        };
        match self.process(task_id).await.map_err(failure)? {
            Some(process) if process.status() != ProcessStatus::Created => return Ok(process.pid),
            Some(_) => {}
            None => {
                let container = self.container(task_id).await.map_err(failure)?;
                let container = container.ok_or_else(|| RuntimeError::Failed {
                    action: "start task",
                    subject: task_id.to_string(),
                    cause: Cause::new("no such container"),
                })?;
                if container.labels.contains_key(LABEL_STARTED) {
                    return Err(RuntimeError::ProcessLost {
                        task_id: task_id.clone(),
                    });
                }
                self.mark_started(task_id).await.map_err(failure)?;
                self.create_process(task_id).await.map_err(failure)?;
            }
        }
        let container_id = task_id.to_string();
        let request = containerd::StartRequest {
            container_id,
            ..Default::default()
        };
        let result = self
            .connection
            .call(PROCESS, request, |request| {
                let mut client = self.connection.tasks();
                async move { client.start(request).await }
            })
            .await;
        match result {
            Ok(answer) => Ok(answer.pid),
            Err(error) => {
                // What is left of it would look like a process that waits to be started.
                if let Err(error) = self.delete_process(task_id).await {
                    let error = self
                        .connection
                        .failure("delete process of task", task_id, error);
                    tracing::warn!(%error, "process that failed to start is left behind");
                }
                Err(failure(error))
            }
        }
    }

    async fn mark_started(&self, task_id: &TaskId) -> Result<(), CallError> {
        let request = containerd::UpdateContainerRequest {
            container: Some(containerd::Container {
                id: task_id.to_string(),
                labels: HashMap::from([(LABEL_STARTED.to_owned(), "true".to_owned())]),
                ..Default::default()
            }),
            update_mask: Some(FieldMask {
                paths: vec![format!("labels.{LABEL_STARTED}")],
            }),
        };
        self.connection
            .call(QUICK, request, |request| {
                let mut client = self.connection.containers();
                async move { client.update(request).await }
            })
            .await
            .map(drop)
    }

    /// Has runc make everything up to the command, which then waits for the start.
    async fn create_process(&self, task_id: &TaskId) -> Result<(), CallError> {
        // The shim writes both streams there itself: nothing is lost while the agent restarts.
        let [stdout, stderr] = files::log_paths(&self.task_dir(task_id));
        let request = containerd::CreateTaskRequest {
            container_id: task_id.to_string(),
            rootfs: self.snapshot_mounts(task_id).await?,
            stdout,
            stderr,
            ..Default::default()
        };
        let result = self
            .connection
            .call(PROCESS, request, |request| {
                let mut client = self.connection.tasks();
                async move { client.create(request).await }
            })
            .await;
        done_if(result, Code::AlreadyExists).map(drop)
    }
}

fn lease_id(task_id: &TaskId) -> String {
    format!("swarm-create-{task_id}")
}

fn invalid(task_id: &TaskId, cause: impl ToString) -> RuntimeError {
    RuntimeError::InvalidContainer {
        task_id: task_id.clone(),
        cause: Cause::new(cause.to_string()),
    }
}

fn stop_signal(task: &TaskContainer, image: &ImageConfig) -> Result<u32, String> {
    match task.stop_signal.as_ref().or(image.stop_signal.as_ref()) {
        Some(text) => parse_signal(text).ok_or_else(|| format!("stop signal {text:?} is none")),
        None => Ok(SIGTERM),
    }
}

async fn find_user_of(
    task: &TaskContainer,
    image: &ImageConfig,
    mounts: Vec<Mount>,
) -> Result<User, RuntimeError> {
    let text = task.user.clone().unwrap_or_else(|| image.user.clone());
    tokio::task::spawn_blocking(move || find_user(&text, &mounts))
        .await
        .expect("looking up a user does not panic, and nobody cancels it")
        .map_err(|error| {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            invalid(
                &task.task_id,
                format!("{error}{}", source.unwrap_or_default()),
            )
        })
}
