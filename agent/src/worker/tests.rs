//! The worker on a runtime and a network in memory, with tokio's paused clock.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use swarm_model::{
    DesiredState, Meta, NodeId, ServiceId, Task, TaskId, TaskSpec, TaskState, TaskStatus, Timestamp,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::step::LISTEN_DEADLINE;
use super::{TaskNetwork, Worker};
use crate::runtime::fake::{FakeRuntime, ImageScript};
use crate::runtime::{Cause, RuntimeError};
use crate::session::Assigned;

/// No condition here takes longer, on the paused clock.
const DEADLINE: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
struct FakeNetwork {
    prepared: Mutex<Vec<TaskId>>,
    /// Whether no task listens yet.
    deaf: AtomicBool,
    /// Connections to every task.
    connections: AtomicUsize,
}

impl FakeNetwork {
    fn has(&self, id: &TaskId) -> bool {
        self.prepared.lock().unwrap().contains(id)
    }
}

#[async_trait]
impl TaskNetwork for FakeNetwork {
    async fn prepare(&self, task: &Task) -> Result<PathBuf, String> {
        self.prepared.lock().unwrap().push(task.id.clone());
        Ok(PathBuf::from("/run/netns/task"))
    }

    async fn listens(&self, _task: &Task) -> Result<bool, String> {
        Ok(!self.deaf.load(Ordering::SeqCst))
    }

    async fn connections(&self, _task_id: &TaskId) -> Result<usize, String> {
        Ok(self.connections.load(Ordering::SeqCst))
    }

    async fn release(&self, task_id: &TaskId) -> Result<(), String> {
        self.prepared.lock().unwrap().retain(|id| id != task_id);
        Ok(())
    }
}

struct Stage {
    runtime: FakeRuntime,
    network: Arc<FakeNetwork>,
    assigned: watch::Sender<Arc<Assigned>>,
    statuses: watch::Receiver<Arc<BTreeMap<TaskId, TaskStatus>>>,
    stop: CancellationToken,
}

impl Stage {
    fn new() -> Self {
        Self::with_runtime(FakeRuntime::new(), Arc::default())
    }

    fn with_runtime(runtime: FakeRuntime, network: Arc<FakeNetwork>) -> Self {
        let assigned = watch::Sender::new(Arc::new(Assigned::default()));
        let statuses = watch::Sender::new(Arc::default());
        let stop = CancellationToken::new();
        let receiver = statuses.subscribe();
        let worker = Worker {
            runtime: Arc::new(runtime.clone()),
            network: network.clone(),
            assigned: assigned.subscribe(),
            statuses,
        };
        tokio::spawn(worker.run(stop.clone()));
        Self {
            runtime,
            network,
            assigned,
            statuses: receiver,
            stop,
        }
    }

    fn assign(&self, tasks: &[Task]) {
        self.assigned.send_modify(|assigned| {
            let mut next = Assigned::clone(assigned);
            next.generation += 1;
            next.session = 1;
            next.tasks = tasks
                .iter()
                .map(|task| (task.id.clone(), task.clone()))
                .collect();
            *assigned = Arc::new(next);
        });
    }

    async fn until(&mut self, task: &Task, state: TaskState) -> TaskStatus {
        let reached = self.statuses.wait_for(|statuses| {
            statuses
                .get(&task.id)
                .is_some_and(|status| status.state == state)
        });
        let found = tokio::time::timeout(DEADLINE, reached).await;
        let statuses = found
            .unwrap_or_else(|_| panic!("{state:?} was not reached"))
            .unwrap();
        statuses[&task.id].clone()
    }

    async fn until_clean(&self, task: &Task) {
        let clean = async {
            while self.runtime.container(&task.id).is_some() || self.network.has(&task.id) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, clean)
            .await
            .expect("nothing is left");
    }
}

fn task(image: &str) -> Task {
    let mut rng = rand::rng();
    let mut spec = TaskSpec::default();
    spec.container.image = image.to_owned();
    Task {
        id: TaskId::random(&mut rng),
        meta: Meta::default(),
        service_id: ServiceId::random(&mut rng),
        service_name: "web".to_owned(),
        slot: 1,
        node_id: Some(NodeId::random(&mut rng)),
        spec,
        template_version: 1,
        desired_state: DesiredState::Running,
        desired_since: Timestamp(0),
        not_before: Timestamp(0),
        status: TaskStatus {
            state: TaskState::Assigned,
            ..TaskStatus::default()
        },
        ingress_address: None,
        attachments: Vec::new(),
    }
}

fn unreachable() -> RuntimeError {
    RuntimeError::Unreachable {
        socket: "/run/containerd/containerd.sock".to_owned(),
        cause: Cause::new("connection refused"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_runs_and_stops_when_asked() {
    let mut stage = Stage::new();
    let mut task = task("web");
    stage.assign(std::slice::from_ref(&task));
    stage.until(&task, TaskState::Running).await;
    assert!(stage.network.has(&task.id));
    let container = stage.runtime.container(&task.id).unwrap();
    assert_eq!(container.netns_path, PathBuf::from("/run/netns/task"));

    task.desired_state = DesiredState::Draining;
    stage.assign(std::slice::from_ref(&task));
    tokio::time::sleep(Duration::from_secs(60)).await;
    stage.until(&task, TaskState::Running).await;

    task.desired_state = DesiredState::Shutdown;
    stage.assign(std::slice::from_ref(&task));
    let status = stage.until(&task, TaskState::Shutdown).await;
    assert_eq!(status.exit_code, Some(0));
    stage.until_clean(&task).await;
    // It stays known until the manager forgets it, and is not started again.
    stage.assign(std::slice::from_ref(&task));
    stage.until(&task, TaskState::Shutdown).await;
    stage.assign(&[]);
    let forgotten = stage.statuses.wait_for(|statuses| statuses.is_empty());
    tokio::time::timeout(DEADLINE, forgotten)
        .await
        .expect("forgotten")
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_task_counts_as_running_once_it_listens() {
    let mut stage = Stage::new();
    stage.network.deaf.store(true, Ordering::SeqCst);
    let slow = task("web");
    stage.assign(std::slice::from_ref(&slow));
    stage.until(&slow, TaskState::Starting).await;
    tokio::time::sleep(LISTEN_DEADLINE / 2).await;
    assert_eq!(stage.statuses.borrow()[&slow.id].state, TaskState::Starting);
    stage.network.deaf.store(false, Ordering::SeqCst);
    let status = stage.until(&slow, TaskState::Running).await;
    assert_eq!(status.message, "started");
    // One that never does is not held back for ever.
    stage.network.deaf.store(true, Ordering::SeqCst);
    let deaf = task("deaf");
    let began = tokio::time::Instant::now();
    stage.assign(&[slow, deaf.clone()]);
    let status = stage.until(&deaf, TaskState::Running).await;
    assert!(status.message.contains("does not listen"), "{status:?}");
    assert!(began.elapsed() >= LISTEN_DEADLINE, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_task_is_asked_to_stop_when_its_connections_have_ended() {
    let mut stage = Stage::new();
    let mut task = task("web");
    task.spec.container.stop_grace_period = Some(Duration::from_secs(30));
    stage.assign(std::slice::from_ref(&task));
    stage.until(&task, TaskState::Running).await;
    stage.network.connections.store(2, Ordering::SeqCst);
    task.desired_state = DesiredState::Shutdown;
    stage.assign(std::slice::from_ref(&task));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(stage.statuses.borrow()[&task.id].state, TaskState::Running);
    stage.network.connections.store(0, Ordering::SeqCst);
    let began = tokio::time::Instant::now();
    stage.until(&task, TaskState::Shutdown).await;
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn connections_that_do_not_end_hold_a_task_for_its_grace_period() {
    let mut stage = Stage::new();
    let (mut task, grace) = (task("web"), Duration::from_secs(30));
    task.spec.container.stop_grace_period = Some(grace);
    stage.assign(std::slice::from_ref(&task));
    stage.until(&task, TaskState::Running).await;
    stage.network.connections.store(1, Ordering::SeqCst);
    task.desired_state = DesiredState::Remove;
    let began = tokio::time::Instant::now();
    stage.assign(std::slice::from_ref(&task));
    stage.until(&task, TaskState::Shutdown).await;
    assert!(began.elapsed() >= grace, "{:?}", began.elapsed());
    assert!(
        began.elapsed() < grace + Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_deaf_task_is_killed_after_its_grace_period() {
    let mut stage = Stage::new();
    let deaf = ImageScript {
        stop_takes: Duration::from_secs(3600),
        ..ImageScript::default()
    };
    stage.runtime.script("web", deaf);
    let mut task = task("web");
    task.spec.container.stop_grace_period = Some(Duration::from_millis(200));
    stage.assign(std::slice::from_ref(&task));
    stage.until(&task, TaskState::Running).await;
    task.desired_state = DesiredState::Remove;
    stage.assign(std::slice::from_ref(&task));
    let status = stage.until(&task, TaskState::Shutdown).await;
    assert_eq!(status.exit_code, Some(137));
    stage.until_clean(&task).await;
}

#[tokio::test(start_paused = true)]
async fn ends_and_failures_are_told() {
    let mut stage = Stage::new();
    let exits = |code| ImageScript {
        exits: Some((Duration::from_secs(1), code)),
        ..ImageScript::default()
    };
    stage.runtime.script("good", exits(0));
    stage.runtime.script("bad", exits(7));
    let absent = RuntimeError::ImageNotFound {
        image: "docker.io/library/absent:latest".to_owned(),
        cause: Cause::new("not found"),
    };
    let script = ImageScript {
        pull_fails: Some(absent),
        ..ImageScript::default()
    };
    stage.runtime.script("absent", script);
    let tasks = [task("good"), task("bad"), task("absent")];
    stage.assign(&tasks);
    assert_eq!(
        stage.until(&tasks[0], TaskState::Complete).await.exit_code,
        Some(0)
    );
    let failed = stage.until(&tasks[1], TaskState::Failed).await;
    assert_eq!(
        (failed.exit_code, failed.error.contains("(7)")),
        (Some(7), true),
        "{failed:?}"
    );
    let rejected = stage.until(&tasks[2], TaskState::Rejected).await;
    assert!(rejected.error.contains("absent:latest"), "{rejected:?}");
    for task in &tasks {
        stage.until_clean(task).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_containerd_that_restarts_is_waited_for() {
    let mut stage = Stage::new();
    let task = task("web");
    // The worker lists containers first.
    stage.assign(&[]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    stage.runtime.set_unreachable(Some(unreachable()));
    stage.assign(std::slice::from_ref(&task));
    stage.until(&task, TaskState::Preparing).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    stage.until(&task, TaskState::Preparing).await;
    stage.runtime.set_unreachable(None);
    stage.until(&task, TaskState::Running).await;
}

#[tokio::test(start_paused = true)]
async fn the_next_agent_adopts_what_runs() {
    let mut first = Stage::new();
    let mut running = task("web");
    let forgotten = task("web");
    first.assign(&[running.clone(), forgotten.clone()]);
    running.status = first.until(&running, TaskState::Running).await;
    first.until(&forgotten, TaskState::Running).await;
    let pid_of_first = format!("{:?}", first.runtime.container(&running.id));
    first.stop.cancel();

    let mut second = Stage::with_runtime(first.runtime.clone(), first.network.clone());
    second.assign(std::slice::from_ref(&running));
    let adopted = second.until(&running, TaskState::Running).await;
    assert_eq!(adopted, running.status, "nothing happened to it");
    assert_eq!(
        pid_of_first,
        format!("{:?}", second.runtime.container(&running.id))
    );
    second.until_clean(&forgotten).await;
    // It is really watched.
    second.runtime.exit(&running.id, 3);
    assert_eq!(
        second.until(&running, TaskState::Failed).await.exit_code,
        Some(3)
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_reboot_took_is_told() {
    let mut first = Stage::new();
    let mut task = task("web");
    first.assign(std::slice::from_ref(&task));
    task.status = first.until(&task, TaskState::Running).await;
    first.stop.cancel();
    first.runtime.reboot();
    let mut second = Stage::with_runtime(first.runtime.clone(), first.network.clone());
    second.assign(std::slice::from_ref(&task));
    let status = second.until(&task, TaskState::Failed).await;
    assert!(status.error.contains("restarted"), "{status:?}");
    second.until_clean(&task).await;
}
