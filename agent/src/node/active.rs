//! A node in a swarm: session, worker, network and, on a manager, the manager process.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use prost::Message as _;
use swarm_api::v1;
use swarm_model::{
    NodeDescription, NodeProblem, Platform, Protocol, Role, Task, TaskId, TaskStatus,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::control_process::{ControlProcess, Running};
use super::host_networks::host_networks;
use super::role::{RoleKeeper, Supervised};
use super::told::Standing;
use crate::config::Config;
use crate::dns::{Asker, HOST_RESOLV_CONF, NameServerConfig, NameServers, SocketStore};
use crate::identity::{Connector, Credentials, Membership, Renewer, StateStore, TlsError};
use crate::network::{NetworkConfig, NetworkError, Reconciler, task_connections, task_listens};
use crate::runtime::containerd::{ContainerdConfig, ContainerdRuntime};
use crate::runtime::{Runtime, RuntimeError};
use crate::selftest::{Found, SelfTest};
use crate::session::{Assigned, Report, Session};
use crate::worker::{NetworkFeed, TaskNetwork, Worker, local_task};

/// How many times longer than writing what was said last is the pause after it: so keeping it takes at
/// most a tenth of a processor. For a small swarm that is milliseconds.
const KEEP_SHARE: u32 = 9;

/// How long everything has to end when the agent stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a member could not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActiveError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A running member.
pub(super) struct Active {
    membership: watch::Receiver<Membership>,
    report: watch::Receiver<Report>,
    problems: watch::Receiver<Vec<NodeProblem>>,
    /// What keeps the manager on this node from running.
    control_failure: watch::Receiver<Option<String>>,
    assigned: watch::Receiver<Arc<Assigned>>,
    network: Arc<Reconciler>,
    found: watch::Receiver<Found>,
    names: NameServers,
    runtime: Arc<dyn Runtime>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Active {
    /// Starts everything; what runs already is adopted.
    pub(super) async fn start(
        config: &Config,
        state: &StateStore,
        membership: Membership,
        credentials: &Credentials,
        control: Option<(ControlProcess, Running)>,
    ) -> Result<Self, ActiveError> {
        let connector = watch::Sender::new(Connector::with_certificate(credentials)?);
        let stop = CancellationToken::new();
        let unfinished = stop.clone().drop_guard();
        let tasks = TaskTracker::new();
        let assigned = watch::Sender::new(Arc::new(last_assigned(state)));
        // Before everything that may take time: tasks that run already are without names.
        let names = NameServers::new(
            NameServerConfig {
                run_dir: config.run_dir.clone(),
                resolv_conf: PathBuf::from(HOST_RESOLV_CONF),
                sockets: SocketStore::of_process(),
            },
            stop.clone(),
            tasks.clone(),
        );
        tasks.spawn(stopping(&stop, names.clone().follow(assigned.subscribe())));
        let runtime: Arc<dyn Runtime> = Arc::new(
            ContainerdRuntime::connect(ContainerdConfig {
                socket: config.containerd_socket.clone(),
                namespace: config.containerd_namespace.clone(),
                registry_hosts_dir: config.registry_hosts_dir.clone(),
                tasks_dir: config.state_dir.join("tasks"),
            })
            .await?,
        );
        let network = Arc::new(Reconciler::start(&NetworkConfig {
            run_dir: config.run_dir.clone(),
            bpffs_dir: config.bpffs_dir.clone(),
        })?);
        let statuses = watch::Sender::new(Arc::new(BTreeMap::<TaskId, TaskStatus>::new()));
        let applied = watch::Sender::new((0, 0));
        let report = watch::Sender::new(Report {
            connected: false,
            error: "no session with a manager yet".to_owned(),
            managers: membership.managers.clone(),
            role: None,
        });
        let problems = watch::Sender::new(Vec::new());

        let feed = NetworkFeed {
            node_id: membership.node_id.clone(),
            network: network.clone(),
            names: names.clone(),
            assigned: assigned.subscribe(),
            statuses: statuses.subscribe(),
            applied: applied.clone(),
            problems: problems.clone(),
        };
        tasks.spawn(stopping(&stop, feed.run()));

        let found = watch::Sender::new(Found::default());
        let test = SelfTest {
            run_dir: config.run_dir.clone(),
            answering: network.answering(),
            assigned: assigned.subscribe(),
            found: found.clone(),
        };
        tasks.spawn(stopping(&stop, test.run()));

        let worker = Worker {
            runtime: runtime.clone(),
            network: Arc::new(TaskNetworkOf {
                run_dir: config.run_dir.clone(),
                network: network.clone(),
                names: names.clone(),
                assigned: assigned.subscribe(),
            }),
            assigned: assigned.subscribe(),
            statuses: statuses.clone(),
        };
        tasks.spawn(worker.run(stop.clone()));
        tasks.spawn(stopping(
            &stop,
            keep_assigned(state.clone(), assigned.subscribe()),
        ));
        let told = assigned.subscribe();
        let session = Session {
            managers: membership.managers.clone(),
            description: describe(config, &membership),
            assigned,
            statuses: statuses.subscribe(),
            applied: applied.subscribe(),
            problems: problems.subscribe(),
            report: report.clone(),
            channel: watch::Sender::new(None),
            roots: watch::Sender::new(None),
        };
        let renewer = Renewer {
            state: state.clone(),
            node_id: membership.node_id.clone(),
            channel: session.channel.subscribe(),
            connector: connector.clone(),
            now: Arc::default(),
            roots: session.roots.subscribe(),
        };
        let failure = watch::Sender::new(None);
        let control_failure = failure.subscribe();
        let control =
            control.map(|(process, running)| Supervised::new(process, running, &stop, &failure));
        let keeper = RoleKeeper {
            config: config.clone(),
            state: state.clone(),
            membership: watch::Sender::new(membership),
            report: report.subscribe(),
            renew: renewer.now.clone(),
            connector: connector.subscribe(),
            control,
            failure,
            stop: stop.clone(),
        };
        let membership = keeper.membership.subscribe();
        tasks.spawn(keeper.run());
        tasks.spawn(stopping(&stop, renewer.run(credentials.clone())));
        tasks.spawn(crate::session::run(
            session,
            connector.subscribe(),
            stop.clone(),
        ));
        tasks.close();
        unfinished.disarm();
        Ok(Self {
            membership,
            report: report.subscribe(),
            problems: problems.subscribe(),
            control_failure,
            assigned: told,
            network,
            found: found.subscribe(),
            names,
            runtime,
            stop,
            tasks,
        })
    }

    /// What can be told of this node in numbers, but for the counters.
    pub(super) fn standing(&self) -> Standing {
        Standing {
            connected: self.report.borrow().connected,
            problems: self.problems.borrow().len(),
            assigned: self.assigned.borrow().clone(),
            network: self.network.clone(),
            found: self.found.borrow().clone(),
        }
    }

    /// What this node's test of itself has found, in words that name the remedy.
    pub(super) fn found(&self) -> Vec<String> {
        self.found.borrow().texts(&self.assigned.borrow())
    }

    /// This node's networks.
    pub(super) fn network(&self) -> Arc<Reconciler> {
        self.network.clone()
    }

    /// What this node is told, now and later; nobody says any more when it has left.
    pub(super) fn assigned(&self) -> watch::Receiver<Arc<Assigned>> {
        self.assigned.clone()
    }

    /// This node's place in the swarm.
    pub(super) fn membership(&self) -> Membership {
        self.membership.borrow().clone()
    }

    pub(super) fn role(&self) -> Role {
        self.membership.borrow().role
    }

    /// Whether it is known to have other managers beside this node's.
    pub(super) fn has_other_managers(&self) -> bool {
        self.membership.borrow().managers.len() > 1
    }

    /// Waits for the first session; gives what stood in its way when it does not open in time.
    pub(super) async fn connected(&self, timeout: Duration) -> Result<(), String> {
        let mut report = self.report.clone();
        let opened = report.wait_for(|report| report.connected);
        match tokio::time::timeout(timeout, opened).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.report.borrow().error.clone()),
        }
    }

    pub(super) fn status(&self) -> v1::GetStatusResponse {
        let report = self.report.borrow();
        let membership = self.membership.borrow();
        let mut texts: Vec<_> = self.control_failure.borrow().iter().cloned().collect();
        if report.error.is_empty() {
            let problems = self.problems.borrow();
            texts.extend(problems.iter().map(|problem| problem.text.clone()));
        } else {
            texts.push(report.error.clone());
        }
        v1::GetStatusResponse {
            state: "active".to_owned(),
            node_id: membership.node_id.to_string(),
            cluster_id: membership.cluster_id.to_string(),
            role: match membership.role {
                Role::Worker => v1::Role::Worker.into(),
                Role::Manager => v1::Role::Manager.into(),
            },
            managers: report.managers.clone(),
            connected: report.connected,
            error: texts.join("; "),
        }
    }

    /// Ends what this process does; containers and the mesh go on.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        if tokio::time::timeout(STOP_TIMEOUT, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("not everything ended within {} s", STOP_TIMEOUT.as_secs());
        }
    }

    /// Ends everything, containers and networks included. Goes on after a failure: what is left is
    /// named in the log.
    pub(super) async fn leave(self) {
        let (runtime, network) = (self.runtime.clone(), self.network.clone());
        let names = self.names.clone();
        self.stop().await;
        names.close_all().await;
        match runtime.list().await {
            Ok(containers) => {
                for container in containers {
                    if let Err(error) = runtime.remove(&container.task_id).await {
                        tracing::error!(task = %container.task_id, %error, "left behind");
                    }
                }
            }
            Err(error) => tracing::error!(%error, "cannot see which containers are left"),
        }
        if let Err(error) = network.teardown().await {
            tracing::error!(
                error = crate::error_text(&error),
                "parts of the network are left"
            );
        }
    }
}

/// `work`, until `stop`.
fn stopping(
    stop: &CancellationToken,
    work: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let stop = stop.clone();
    async move {
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    }
}

/// What the manager said last before this start, so that its absence changes nothing here.
fn last_assigned(state: &StateStore) -> Assigned {
    let read = || -> Result<Option<Assigned>, String> {
        let Some(bytes) = state
            .load_assignments()
            .map_err(|error| error.to_string())?
        else {
            return Ok(None);
        };
        let message =
            v1::Assignments::decode(bytes.as_slice()).map_err(|error| error.to_string())?;
        Assigned::default()
            .after(message)
            .map(Some)
            .map_err(|error| error.to_string())
    };
    match read() {
        Ok(assigned) => assigned.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(
                error,
                "what the manager said last cannot be read; waiting for it"
            );
            Assigned::default()
        }
    }
}

/// Keeps what is said last on disk. All of it is written each time, so that with thousands of services
/// a change costs far more here than in the kernel: what follows a write waits
/// [`KEEP_SHARE`] times as long as that took. What a restart in that time does not know of, the
/// manager says again.
async fn keep_assigned(state: StateStore, mut assigned: watch::Receiver<Arc<Assigned>>) {
    while assigned.changed().await.is_ok() {
        let begun = tokio::time::Instant::now();
        let now = assigned.borrow_and_update().clone();
        let state = state.clone();
        let save = move || state.save_assignments(&now.to_message().encode_to_vec());
        let saved = tokio::task::spawn_blocking(save).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(
                error = crate::error_text(&error),
                "cannot keep the assignments"
            );
        }
        tokio::time::sleep(begun.elapsed() * KEEP_SHARE).await;
    }
}

fn describe(config: &Config, membership: &Membership) -> NodeDescription {
    let hostname = config.hostname.clone().unwrap_or_else(|| {
        nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    });
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    NodeDescription {
        hostname,
        platform: Platform {
            os: std::env::consts::OS.to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
        },
        nano_cpus: cpus * 1_000_000_000,
        memory_bytes: memory_bytes(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        engine_labels: config.labels.iter().cloned().collect(),
        data_path_address: Some(membership.data_path_address),
        host_networks: host_networks(),
    }
}

/// Memory of this host; 0 when `/proc/meminfo` does not say.
fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|number| number.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// A task's network is its namespace with what leads there, and the name server in it.
struct TaskNetworkOf {
    run_dir: PathBuf,
    network: Arc<Reconciler>,
    names: NameServers,
    assigned: watch::Receiver<Arc<Assigned>>,
}

#[async_trait]
impl TaskNetwork for TaskNetworkOf {
    async fn prepare(&self, task: &Task) -> Result<PathBuf, String> {
        let assigned = self.assigned.borrow().clone();
        let local = local_task(task, &assigned.networks)
            .ok_or("the task has no address on the ingress network")?;
        if local.attachments.len() < task.attachments.len() {
            return Err("this node has not been told of a network of the task".to_owned());
        }
        let netns_path = self
            .network
            .prepare_task(&task.id, local)
            .await
            .map_err(|error| crate::error_text(&error))?;
        let opened = self.names.open(&task.id, Asker::of(task)).await;
        opened.map_err(|error| crate::error_text(&error))?;
        Ok(netns_path)
    }

    async fn listens(&self, task: &Task) -> Result<bool, String> {
        let ports = published_targets(&self.assigned.borrow(), task);
        let Some(address) = task.ingress_address.filter(|_| !ports.is_empty()) else {
            return Ok(true);
        };
        let (run_dir, id) = (self.run_dir.clone(), task.id.clone());
        blocking(move || task_listens(&run_dir, &id, address.into(), &ports)).await
    }

    async fn connections(&self, task_id: &TaskId) -> Result<usize, String> {
        let (run_dir, id) = (self.run_dir.clone(), task_id.clone());
        blocking(move || task_connections(&run_dir, &id)).await
    }

    async fn release(&self, task_id: &TaskId) -> Result<(), String> {
        // First: its sockets would keep the namespace.
        self.names.close(task_id).await;
        self.network
            .release_task(task_id)
            .await
            .map_err(|error| crate::error_text(&error))
    }
}

/// Where a task is to listen: the targets of its service's published ports. Not those of SCTP, whose
/// sockets the kernel lists elsewhere.
fn published_targets(assigned: &Assigned, task: &Task) -> BTreeSet<(Protocol, u16)> {
    let service = assigned.services.get(&task.service_id);
    let ports = service.into_iter().flat_map(|service| &service.ports);
    ports
        .filter(|port| port.protocol != Protocol::Sctp)
        .map(|port| (port.protocol, port.target))
        .collect()
}

/// Reads something of the kernel, off the runtime's workers.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| crate::error_text(&error)),
        Err(error) => Err(crate::error_text(&error)),
    }
}
