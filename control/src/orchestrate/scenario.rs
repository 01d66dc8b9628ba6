//! A swarm in memory that tests script: the passes as the leader runs them, agents that do as they
//! are told, a clock that moves when told.

use std::collections::BTreeSet;
use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng as _;
use swarm_model::{
    Cluster, ClusterId, ClusterSpec, DesiredState, Endpoint, Meta, Network, NetworkAttachmentSpec,
    NetworkId, NetworkSpec, Node, NodeDescription, NodeId, NodeSpec, NodeState, NodeStatus,
    Platform, PortConfig, Role, Service, ServiceId, ServiceMode, ServiceSpec, Task, TaskId,
    TaskState, Timestamp,
};

use crate::allocate::make_network;
use crate::leader::{Planner, Round};
use crate::store::{Change, Object, ObjectKey, State};

/// Rounds of passes within which the store must come to rest. Each pass makes up to 200 changes.
const ROUNDS_MAX: usize = 200;

pub(crate) struct Scenario {
    pub(crate) state: State,
    pub(crate) now: Timestamp,
    /// What the dispatcher would say is drained.
    pub(crate) drained: BTreeSet<TaskId>,
    /// When a pass asked to be run again.
    pub(crate) wake_at: Option<Timestamp>,
    planner: Planner,
    rng: ChaCha12Rng,
}

impl Scenario {
    /// A swarm without nodes.
    pub(crate) fn new() -> Self {
        let mut scenario = Self {
            state: State::default(),
            now: Timestamp(1_000_000),
            drained: BTreeSet::new(),
            wake_at: None,
            planner: Planner::new(2),
            rng: ChaCha12Rng::seed_from_u64(1),
        };
        let cluster = Cluster {
            id: ClusterId::random(&mut scenario.rng),
            meta: Meta::default(),
            spec: ClusterSpec::default(),
            root_ca_pem: String::new(),
            root_key_pem: String::new().into(),
            worker_secret: String::new().into(),
            manager_secret: String::new().into(),
            networks_made: swarm_model::NetworkCursor::default(),
            epoch: 0,
            lock: swarm_model::ManagerLock::default(),
            rotation: None,
        };
        scenario.put(cluster);
        scenario
    }

    /// A swarm with ready nodes of these names.
    pub(crate) fn with_nodes(names: &[&str]) -> Self {
        let mut scenario = Self::new();
        for name in names {
            scenario.add_node(name);
        }
        scenario.settle();
        scenario
    }

    pub(crate) fn put(&mut self, object: impl Into<Object>) {
        self.apply(vec![Change::Put(object.into())]);
    }

    pub(crate) fn remove(&mut self, key: impl Into<ObjectKey>) {
        self.apply(vec![Change::Remove(key.into())]);
    }

    fn apply(&mut self, changes: Vec<Change>) {
        self.state.apply(self.state.index() + 1, changes);
    }

    fn meta(&self) -> Meta {
        Meta {
            version: 0,
            created_at: self.now,
            updated_at: self.now,
        }
    }

    pub(crate) fn add_node(&mut self, name: &str) -> NodeId {
        let id = NodeId::random(&mut self.rng);
        let address = std::net::IpAddr::from([192, 0, 2, self.state.nodes().count() as u8 + 1]);
        self.put(Node {
            id: id.clone(),
            meta: self.meta(),
            spec: NodeSpec::default(),
            role: Role::Worker,
            description: NodeDescription {
                hostname: name.to_owned(),
                platform: Platform {
                    os: "linux".to_owned(),
                    architecture: "x86_64".to_owned(),
                },
                nano_cpus: 4_000_000_000,
                memory_bytes: 1 << 30,
                data_path_address: Some(address),
                ..NodeDescription::default()
            },
            status: NodeStatus {
                state: NodeState::Ready,
                address: Some(address),
                ..NodeStatus::default()
            },
            manager: None,
            ingress_address: None,
        });
        id
    }

    pub(crate) fn node_id(&self, name: &str) -> NodeId {
        let mut nodes = self.state.nodes();
        let node = nodes.find(|node| node.description.hostname == name);
        node.expect(name).id.clone()
    }

    pub(crate) fn edit_node(&mut self, name: &str, edit: impl FnOnce(&mut Node)) {
        let id = self.node_id(name);
        let mut node = Node::clone(self.state.node(&id).expect("found by name"));
        edit(&mut node);
        self.put(node);
    }

    pub(crate) fn set_node_state(&mut self, name: &str, state: NodeState) {
        self.edit_node(name, |node| node.status.state = state);
    }

    /// A service, its spec as `edit` makes it.
    pub(crate) fn add_service(
        &mut self,
        name: &str,
        replicas: u64,
        edit: impl FnOnce(&mut ServiceSpec),
    ) -> ServiceId {
        let mut spec = ServiceSpec {
            name: name.to_owned(),
            mode: ServiceMode::Replicated { replicas },
            ..ServiceSpec::default()
        };
        spec.task.container.image = "web:1".to_owned();
        edit(&mut spec);
        let id = ServiceId::random(&mut self.rng);
        self.put(Service {
            id: id.clone(),
            meta: self.meta(),
            spec,
            previous_spec: None,
            template_version: 1,
            endpoint: Endpoint::default(),
            pending_delete: false,
        });
        id
    }

    /// A network of a user, its spec as `edit` makes it, as the API makes it.
    pub(crate) fn add_network(
        &mut self,
        name: &str,
        edit: impl FnOnce(&mut NetworkSpec),
    ) -> NetworkId {
        let mut spec = NetworkSpec {
            name: name.to_owned(),
            ..NetworkSpec::default()
        };
        edit(&mut spec);
        let cluster = self.state.cluster().expect("there is a swarm");
        let made = make_network(&self.state, cluster, spec, self.now, &mut self.rng);
        let (network, cluster) = made.expect(name);
        let id = network.id.clone();
        self.put(network);
        self.put(cluster);
        id
    }

    pub(crate) fn network(&self, id: &NetworkId) -> &Network {
        self.state.network(id).expect("the network is there")
    }

    pub(crate) fn service(&self, id: &ServiceId) -> &Service {
        self.state.service(id).expect("the service is there")
    }

    /// Changes a spec, as the API does.
    pub(crate) fn edit_service(&mut self, id: &ServiceId, edit: impl FnOnce(&mut ServiceSpec)) {
        let mut service = self.service(id).clone();
        let before = service.spec.task.clone();
        edit(&mut service.spec);
        if service.spec.task != before {
            service.template_version += 1;
        }
        self.put(service);
    }

    pub(crate) fn scale(&mut self, id: &ServiceId, replicas: u64) {
        self.edit_service(id, |spec| spec.mode = ServiceMode::Replicated { replicas });
    }

    pub(crate) fn set_image(&mut self, id: &ServiceId, image: &str) {
        self.edit_service(id, |spec| spec.task.container.image = image.to_owned());
    }

    pub(crate) fn remove_service(&mut self, id: &ServiceId) {
        let mut service = self.service(id).clone();
        service.pending_delete = true;
        self.put(service);
    }

    /// Tasks of a service, by slot, the oldest first.
    pub(crate) fn tasks(&self, id: &ServiceId) -> Vec<Task> {
        let tasks = self.state.tasks_of_service(id);
        let mut tasks: Vec<_> = tasks.map(|task| Task::clone(task)).collect();
        tasks.sort_by_key(|task| (task.slot, task.meta.created_at, task.id.clone()));
        tasks
    }

    /// The tasks of a slot, the oldest first.
    pub(crate) fn slot(&self, id: &ServiceId, slot: u64) -> Vec<Task> {
        let mut tasks = self.tasks(id);
        tasks.retain(|task| task.slot == slot);
        tasks
    }

    /// The wanted task of a slot.
    pub(crate) fn wanted(&self, id: &ServiceId, slot: u64) -> Task {
        let mut tasks = self.slot(id, slot);
        tasks.retain(|task| task.desired_state == DesiredState::Running);
        assert_eq!(tasks.len(), 1, "slot {slot}: {}", self.show(id));
        tasks.remove(0)
    }

    /// One line a task: `slot image state>desired@node`.
    pub(crate) fn show(&self, id: &ServiceId) -> String {
        let lines = self.tasks(id).into_iter().map(|task| {
            let node = task.node_id.as_ref().map_or("-", |id| {
                let node = self.state.node(id);
                node.map_or("gone", |node| node.description.hostname.as_str())
            });
            format!(
                "{} {} {}>{}@{node}",
                task.slot,
                task.spec.container.image,
                task.status.state.as_str(),
                task.desired_state.as_str(),
            )
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Slots whose wanted task runs, with its node and image.
    pub(crate) fn running(&self, id: &ServiceId) -> Vec<Task> {
        let mut tasks = self.tasks(id);
        tasks.retain(|task| {
            task.status.state == TaskState::Running && task.desired_state == DesiredState::Running
        });
        tasks
    }

    pub(crate) fn edit_task(&mut self, id: &TaskId, edit: impl FnOnce(&mut Task)) {
        let mut task = Task::clone(self.state.task(id).expect("the task is there"));
        edit(&mut task);
        self.put(task);
    }

    /// What an agent would report.
    pub(crate) fn report(&mut self, id: &TaskId, state: TaskState) {
        let now = self.now;
        self.edit_task(id, |task| {
            assert!(task.status.state.may_become(state), "{task:?} -> {state:?}");
            task.status.state = state;
            task.status.since = now;
        });
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.now = self.now.after(by);
    }

    /// Runs every pass once; gives how many changes they made.
    pub(crate) fn step(&mut self) -> usize {
        let Round { changes, wake_at } =
            self.planner
                .round(&self.state, &self.drained, self.now, 200);
        self.wake_at = wake_at;
        let mut keys = BTreeSet::new();
        for change in &changes {
            assert!(
                keys.insert(change.key()),
                "a round changes an object once: {change:?}"
            );
        }
        let count = changes.len();
        if !changes.is_empty() {
            self.apply(changes);
        }
        count
    }

    /// Runs the passes until they rest.
    pub(crate) fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            if self.step() == 0 {
                return;
            }
        }
        panic!("the passes do not come to rest");
    }

    /// What the agent of a task's node would report next; none when the task is where it should
    /// be, or its node is down.
    pub(crate) fn next_report(&self, task: &Task) -> Option<TaskState> {
        let node = self.state.node(task.node_id.as_ref()?)?;
        let state = task.status.state;
        if node.status.state == NodeState::Down || state.is_terminal() {
            None
        } else if task.desired_state >= DesiredState::Shutdown {
            Some(TaskState::Shutdown)
        } else {
            (state < TaskState::Running).then_some(TaskState::Running)
        }
    }

    /// Lets every agent do what it is told, and every drain end; gives whether anything happened.
    pub(crate) fn agents(&mut self) -> bool {
        let tasks: Vec<Task> = self.state.tasks().map(|task| Task::clone(task)).collect();
        let mut any = false;
        for task in tasks {
            if let Some(next) = self.next_report(&task) {
                self.report(&task.id, next);
                any = true;
            }
            if task.desired_state == DesiredState::Draining {
                any |= self.drained.insert(task.id);
            }
        }
        any
    }

    /// Passes and agents in turn until both rest.
    pub(crate) fn run(&mut self) {
        for _ in 0..ROUNDS_MAX {
            self.settle();
            if !self.agents() {
                return;
            }
        }
        panic!("the swarm does not come to rest");
    }
}

/// A TCP port of a service.
pub(crate) fn port(published: u16, target: u16) -> PortConfig {
    PortConfig {
        target,
        published,
        ..PortConfig::default()
    }
}

/// Attaches a service to a network.
pub(crate) fn on(network: &NetworkId) -> impl Fn(&mut ServiceSpec) + use<> {
    let target = network.to_string();
    move |spec| {
        spec.task.networks.push(NetworkAttachmentSpec {
            target: target.clone(),
            aliases: Vec::new(),
        });
    }
}

/// Publishes 8080.
pub(crate) fn published(spec: &mut ServiceSpec) {
    spec.endpoint.ports = vec![port(8080, 80)];
}

impl Scenario {
    /// What a change of leaders does: nothing is remembered but the store.
    pub(crate) fn forget(&mut self) {
        self.planner = Planner::new(self.state.index());
        self.drained.clear();
    }

    /// Running tasks of all services.
    pub(crate) fn running_in_total(&self) -> u64 {
        let tasks = self.state.tasks();
        tasks
            .filter(|task| task.status.state == TaskState::Running)
            .count() as u64
    }

    /// Tasks that all services ask for.
    pub(crate) fn wanted_in_total(&self) -> u64 {
        let services = self.state.services();
        services.map(|service| service.spec.mode.replicas()).sum()
    }
}
