//! A runtime without containers: a node's runtime in a simulated cluster.
//!
//! It keeps the same promises as the real driver, obeys a script (how long an image takes, whether
//! it fails, when its process ends), and runs on tokio's clock, so that a paused clock makes hours
//! of it take no time. Clones share one node: hand a clone to the next agent to simulate a restart
//! of the agent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use swarm_model::TaskId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    Cause, ContainerState, ExitStatus, ImageName, ObservedContainer, PulledImage, Runtime,
    RuntimeError, Signal, TaskContainer,
};

/// Exit code of a process that `SIGKILL` ended.
const KILLED: u32 = 128 + 9;
/// Process ids start here: no test mistakes one for init.
const FIRST_PID: u32 = 1000;

/// What becomes of tasks of one image. The default: everything succeeds at once, the process runs
/// until it is told to stop and then ends with 0.
#[derive(Clone, Debug, Default)]
pub(crate) struct ImageScript {
    /// How long a pull takes.
    pub(crate) pull_takes: Duration,
    /// How a pull ends, unless well.
    pub(crate) pull_fails: Option<RuntimeError>,
    /// How long a start takes.
    pub(crate) start_takes: Duration,
    /// How a start ends, unless well.
    pub(crate) start_fails: Option<RuntimeError>,
    /// The process ends by itself: after how long, with which code.
    pub(crate) exits: Option<(Duration, u32)>,
    /// How long after [`Signal::Stop`] the process ends.
    pub(crate) stop_takes: Duration,
    /// Exit code after [`Signal::Stop`].
    pub(crate) stop_code: u32,
}

/// The in-memory driver.
#[derive(Clone, Debug)]
pub(crate) struct FakeRuntime {
    node: Arc<Mutex<Node>>,
    /// Raised whenever a process may have ended or got a new end.
    changed: Arc<watch::Sender<()>>,
    epoch: Instant,
}

#[derive(Debug)]
struct Node {
    scripts: BTreeMap<String, ImageScript>,
    pulled: BTreeMap<String, PulledImage>,
    containers: BTreeMap<TaskId, Container>,
    unreachable: Option<RuntimeError>,
    next_pid: u32,
}

#[derive(Debug)]
struct Container {
    spec: TaskContainer,
    script: ImageScript,
    process: Process,
}

#[derive(Debug)]
enum Process {
    None,
    Runs {
        pid: u32,
        ends: Option<(Instant, u32)>,
    },
    Lost,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeRuntime {
    /// An empty node, on which every image exists.
    pub(crate) fn new() -> Self {
        Self {
            node: Arc::new(Mutex::new(Node {
                scripts: BTreeMap::new(),
                pulled: BTreeMap::new(),
                containers: BTreeMap::new(),
                unreachable: None,
                next_pid: FIRST_PID,
            })),
            changed: Arc::new(watch::Sender::new(())),
            epoch: Instant::now(),
        }
    }

    /// From now on tasks of `image` go by `script`; containers already made keep theirs.
    ///
    /// # Panics
    /// When `image` is no image name.
    pub(crate) fn script(&self, image: &str, script: ImageScript) {
        let name: ImageName = image.parse().expect("the test names a valid image");
        self.node().scripts.insert(name.to_string(), script);
    }

    /// Ends a running process with `code`, as a crash would. Nothing happens to others.
    pub(crate) fn exit(&self, task_id: &TaskId, code: u32) {
        let now = Instant::now();
        if let Some(container) = self.node().containers.get_mut(task_id) {
            container.end_by(now, now, code);
        }
        self.changed.send_replace(());
    }

    /// The host restarts: processes and their exit statuses are lost, containers stay.
    pub(crate) fn reboot(&self) {
        for container in self.node().containers.values_mut() {
            if let Process::Runs { .. } = container.process {
                container.process = Process::Lost;
            }
        }
        self.changed.send_replace(());
    }

    /// While `error` is given every call fails with it, as if the daemon were down.
    pub(crate) fn set_unreachable(&self, error: Option<RuntimeError>) {
        self.node().unreachable = error;
        self.changed.send_replace(());
    }

    /// What the container of a task was made of.
    pub(crate) fn container(&self, task_id: &TaskId) -> Option<TaskContainer> {
        self.node()
            .containers
            .get(task_id)
            .map(|container| container.spec.clone())
    }

    fn node(&self) -> MutexGuard<'_, Node> {
        self.node
            .lock()
            .expect("nothing panics while it holds the node")
    }

    fn reachable(&self) -> Result<MutexGuard<'_, Node>, RuntimeError> {
        let node = self.node();
        match &node.unreachable {
            Some(error) => Err(error.clone()),
            None => Ok(node),
        }
    }

    fn exit_status(&self, ended: Instant, code: u32) -> ExitStatus {
        let finished_at = SystemTime::UNIX_EPOCH + ended.duration_since(self.epoch);
        ExitStatus {
            code,
            finished_at,
            oom_killed: false,
        }
    }
}

impl Node {
    fn script_of(&self, image: &ImageName) -> ImageScript {
        self.scripts
            .get(&image.to_string())
            .cloned()
            .unwrap_or_default()
    }
}

impl Container {
    /// The process ends at `when`, unless it has ended by `now` or will end sooner.
    fn end_by(&mut self, now: Instant, when: Instant, code: u32) {
        if let Process::Runs { ends, .. } = &mut self.process
            && ends.is_none_or(|(end, _)| end > now && end > when)
        {
            *ends = Some((when, code));
        }
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn pull(&self, image: &str) -> Result<PulledImage, RuntimeError> {
        let name: ImageName = image.parse()?;
        let script = self.reachable()?.script_of(&name);
        tokio::time::sleep(script.pull_takes).await;
        let mut node = self.reachable()?;
        if let Some(error) = script.pull_fails {
            let mut local = node
                .pulled
                .get(&name.to_string())
                .cloned()
                .ok_or(error.clone())?;
            local.stale = Some(error);
            return Ok(local);
        }
        let pulled = PulledImage {
            name,
            digest: format!("sha256:{}", "0".repeat(64)),
            stale: None,
        };
        node.pulled.insert(pulled.name.to_string(), pulled.clone());
        Ok(pulled)
    }

    async fn create(&self, container: &TaskContainer) -> Result<(), RuntimeError> {
        let name: ImageName = container.image.parse()?;
        let mut node = self.reachable()?;
        if !node.pulled.contains_key(&name.to_string()) {
            return Err(RuntimeError::ImageNotFound {
                image: name.to_string(),
                cause: Cause::new("it was not pulled"),
            });
        }
        let script = node.script_of(&name);
        node.containers
            .entry(container.task_id.clone())
            .or_insert_with(|| Container {
                spec: container.clone(),
                script,
                process: Process::None,
            });
        Ok(())
    }

    async fn start(&self, task_id: &TaskId) -> Result<u32, RuntimeError> {
        let no_container = || RuntimeError::Failed {
            action: "start task",
            subject: task_id.to_string(),
            cause: Cause::new("no such container"),
        };
        let script = {
            let node = self.reachable()?;
            let container = node.containers.get(task_id).ok_or_else(no_container)?;
            match container.process {
                Process::Runs { pid, .. } => return Ok(pid),
                Process::Lost => {
                    return Err(RuntimeError::ProcessLost {
                        task_id: task_id.clone(),
                    });
                }
                Process::None => container.script.clone(),
            }
        };
        tokio::time::sleep(script.start_takes).await;
        if let Some(error) = script.start_fails {
            return Err(error);
        }
        let mut node = self.reachable()?;
        let pid = node.next_pid;
        node.next_pid += 1;
        let container = node.containers.get_mut(task_id).ok_or_else(no_container)?;
        let ends = script
            .exits
            .map(|(after, code)| (Instant::now() + after, code));
        container.process = Process::Runs { pid, ends };
        Ok(pid)
    }

    async fn wait(&self, task_id: &TaskId) -> Result<ExitStatus, RuntimeError> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let ends = match self
                .reachable()?
                .containers
                .get(task_id)
                .map(|c| &c.process)
            {
                Some(Process::Runs { ends, .. }) => *ends,
                Some(Process::None | Process::Lost) | None => {
                    return Err(RuntimeError::ProcessLost {
                        task_id: task_id.clone(),
                    });
                }
            };
            let end = async {
                match ends {
                    Some((when, _)) => tokio::time::sleep_until(when).await,
                    None => std::future::pending().await,
                }
            };
            match ends {
                Some((when, code)) if when <= Instant::now() => {
                    return Ok(self.exit_status(when, code));
                }
                _ => tokio::select! {
                    () = end => {}
                    // The sender lives in `self`: this is a change, never the end of changes.
                    _ = changed.changed() => {}
                },
            }
        }
    }

    async fn signal(&self, task_id: &TaskId, signal: Signal) -> Result<(), RuntimeError> {
        let now = Instant::now();
        if let Some(container) = self.reachable()?.containers.get_mut(task_id) {
            match signal {
                Signal::Kill => container.end_by(now, now, KILLED),
                Signal::Stop => {
                    let (takes, code) = (container.script.stop_takes, container.script.stop_code);
                    container.end_by(now, now + takes, code);
                }
            }
        }
        self.changed.send_replace(());
        Ok(())
    }

    async fn remove(&self, task_id: &TaskId) -> Result<(), RuntimeError> {
        self.reachable()?.containers.remove(task_id);
        self.changed.send_replace(());
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ObservedContainer>, RuntimeError> {
        let now = Instant::now();
        let observe = |(task_id, container): (&TaskId, &Container)| ObservedContainer {
            task_id: task_id.clone(),
            state: match container.process {
                Process::None => ContainerState::Created,
                Process::Lost => ContainerState::Lost,
                Process::Runs {
                    ends: Some((when, code)),
                    ..
                } if when <= now => ContainerState::Stopped(self.exit_status(when, code)),
                Process::Runs { pid, .. } => ContainerState::Running { pid },
            },
        };
        Ok(self.reachable()?.containers.iter().map(observe).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(task_id: &TaskId, image: &str) -> TaskContainer {
        TaskContainer {
            task_id: task_id.clone(),
            image: image.to_owned(),
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            hostname: "h".to_owned(),
            working_dir: None,
            user: None,
            stop_signal: None,
            labels: BTreeMap::new(),
            memory_limit_bytes: None,
            cpu_limit_nanos: None,
            netns_path: "/run/netns/x".into(),
            resolv_conf: String::new(),
            hosts: String::new(),
        }
    }

    async fn running(runtime: &FakeRuntime, image: &str) -> TaskId {
        let task_id = TaskId::random(&mut rand::rng());
        runtime.pull(image).await.unwrap();
        runtime.create(&spec(&task_id, image)).await.unwrap();
        runtime.start(&task_id).await.unwrap();
        task_id
    }

    #[tokio::test(start_paused = true)]
    async fn a_life_without_script() {
        let runtime = FakeRuntime::new();
        let task_id = running(&runtime, "app").await;
        let pid = runtime.start(&task_id).await.unwrap();
        let list = runtime.clone().list().await.unwrap();
        assert_eq!(list[0].state, ContainerState::Running { pid });

        let waiter = tokio::spawn({
            let (runtime, task_id) = (runtime.clone(), task_id.clone());
            async move { runtime.wait(&task_id).await }
        });
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(!waiter.is_finished());
        runtime.signal(&task_id, Signal::Stop).await.unwrap();
        let status = waiter.await.unwrap().unwrap();
        assert_eq!(status.code, 0);
        assert_eq!(runtime.wait(&task_id).await.unwrap(), status);
        assert_eq!(
            runtime.list().await.unwrap()[0].state,
            ContainerState::Stopped(status)
        );

        runtime.signal(&task_id, Signal::Kill).await.unwrap();
        assert_eq!(
            runtime.wait(&task_id).await.unwrap(),
            status,
            "a second end"
        );
        runtime.remove(&task_id).await.unwrap();
        runtime.remove(&task_id).await.unwrap();
        runtime.signal(&task_id, Signal::Kill).await.unwrap();
        assert!(runtime.list().await.unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn scripts_are_obeyed() {
        let runtime = FakeRuntime::new();
        let slow = ImageScript {
            pull_takes: Duration::from_secs(5),
            start_takes: Duration::from_secs(2),
            exits: Some((Duration::from_secs(60), 7)),
            stop_takes: Duration::from_secs(100),
            ..ImageScript::default()
        };
        runtime.script("slow", slow);
        let begin = Instant::now();
        let task_id = running(&runtime, "slow:latest").await;
        assert_eq!(begin.elapsed().as_secs(), 7);
        runtime.signal(&task_id, Signal::Stop).await.unwrap();
        assert_eq!(
            runtime.wait(&task_id).await.unwrap().code,
            7,
            "its own end comes first"
        );
        assert_eq!(begin.elapsed().as_secs(), 67);

        let killed = running(&runtime, "slow").await;
        runtime.signal(&killed, Signal::Kill).await.unwrap();
        assert_eq!(runtime.wait(&killed).await.unwrap().code, KILLED);

        let crashed = running(&runtime, "slow").await;
        runtime.exit(&crashed, 139);
        assert_eq!(runtime.wait(&crashed).await.unwrap().code, 139);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_obeyed() {
        let runtime = FakeRuntime::new();
        let error = RuntimeError::ImageNotFound {
            image: "x".to_owned(),
            cause: Cause::new("y"),
        };
        let failing = ImageScript {
            pull_fails: Some(error.clone()),
            ..ImageScript::default()
        };
        runtime.script("app", failing.clone());
        assert_eq!(runtime.pull("app").await, Err(error.clone()));
        let task_id = TaskId::random(&mut rand::rng());
        assert!(
            runtime.create(&spec(&task_id, "app")).await.is_err(),
            "created without an image"
        );

        runtime.script("app", ImageScript::default());
        runtime.pull("app").await.unwrap();
        runtime.script("app", failing);
        assert_eq!(
            runtime.pull("app").await.unwrap().stale,
            Some(error.clone())
        );

        runtime.create(&spec(&task_id, "app")).await.unwrap();
        runtime.set_unreachable(Some(error.clone()));
        assert_eq!(runtime.start(&task_id).await, Err(error));
        runtime.set_unreachable(None);
        runtime.start(&task_id).await.unwrap();
        runtime.reboot();
        assert_eq!(runtime.list().await.unwrap()[0].state, ContainerState::Lost);
        let lost = Err(RuntimeError::ProcessLost {
            task_id: task_id.clone(),
        });
        assert_eq!(runtime.wait(&task_id).await, lost);
        assert!(runtime.start(&task_id).await.is_err(), "ran twice");
    }
}
