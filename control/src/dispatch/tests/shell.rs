//! Dispatcher and leader over real streams, on a store in memory.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use swarm_api::v1;
use swarm_api::v1::agent_message::Message as FromAgent;
use swarm_api::v1::dispatcher_client::DispatcherClient;
use swarm_api::v1::dispatcher_server::DispatcherServer;
use swarm_api::v1::manager_message::Message as FromManager;
use swarm_model::{
    Cluster, DesiredState, Node, NodeId, NodeState, Role, ServiceId, SessionId, TaskState,
    TaskStatus,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Code, Request, Status, Streaming};

use crate::dispatch::Dispatcher;
use crate::dispatch::stream::Outlet;
use crate::leader;
use crate::orchestrate::scenario::{Scenario, published};
use crate::serve::{Identity, Peer};
use crate::store::{Change, State, Store};

/// Longest that anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A leading manager.
struct Manager {
    store: Store,
    dispatcher: Dispatcher,
    nodes: Vec<NodeId>,
    tasks: JoinSet<()>,
    _stop: DropGuard,
}

impl Manager {
    /// A manager of a swarm with `nodes` workers, which takes silence for what it is.
    async fn start(nodes: &[&str]) -> Self {
        // Quick enough for a test, slow enough for a busy machine.
        Self::start_with(nodes, Duration::from_secs(2), Duration::from_secs(4)).await
    }

    async fn start_with(nodes: &[&str], suspect_after: Duration, down_after: Duration) -> Self {
        let mut scenario = Scenario::with_nodes(nodes);
        let mut cluster = Cluster::clone(scenario.state.cluster().expect("made"));
        cluster.spec.suspect_after = suspect_after;
        cluster.spec.down_after = down_after;
        scenario.put(cluster);
        let manager = Self::idle(&scenario).await;
        manager.lead()
    }

    /// One that does not lead.
    async fn idle(scenario: &Scenario) -> Self {
        let store = Store::in_memory();
        put(&store, everything(&scenario.state)).await;
        let nodes: Vec<_> = scenario.state.nodes().map(|node| node.id.clone()).collect();
        let dispatcher = Dispatcher::new(store.clone(), nodes[0].clone());
        let tasks = JoinSet::new();
        let _stop = CancellationToken::new().drop_guard();
        Self {
            store,
            dispatcher,
            nodes,
            tasks,
            _stop,
        }
    }

    fn lead(mut self) -> Self {
        let stop = CancellationToken::new();
        let (store, dispatcher) = (self.store.clone(), self.dispatcher.clone());
        self.tasks.spawn(leader::run(
            store,
            dispatcher,
            self.nodes[0].clone(),
            stop.clone(),
        ));
        self._stop = stop.drop_guard();
        self
    }

    /// A client that the manager takes for `node`.
    async fn client(&mut self, node: &NodeId) -> DispatcherClient<Channel> {
        let peer = Peer {
            identity: Identity::Node {
                id: node.clone(),
                role: Role::Worker,
            },
            address: Some([192, 0, 2, 99].into()),
            forwarded_by: None,
        };
        let identify = move |mut request: Request<()>| {
            request.extensions_mut().insert(peer.clone());
            Ok(request)
        };
        let service = DispatcherServer::with_interceptor(self.dispatcher.clone(), identify);
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(theirs));
        let incoming = incoming.chain(tokio_stream::pending());
        self.tasks.spawn(async move {
            let router = Server::builder().add_service(service);
            router
                .serve_with_incoming(incoming)
                .await
                .expect("the server runs");
        });
        let mut ours = Some(ours);
        let connect = move |_: Uri| {
            let stream = ours.take().map(TokioIo::new);
            async move { stream.ok_or(std::io::Error::from(std::io::ErrorKind::NotConnected)) }
        };
        let endpoint = Endpoint::from_static("http://manager");
        let channel = endpoint.connect_with_connector(tower::service_fn(connect));
        DispatcherClient::new(channel.await.expect("the server is there"))
    }

    /// Waits until the state is as `done` wants it.
    async fn until<R>(&self, what: &str, done: impl Fn(&State) -> Option<R>) -> R {
        let mut changed = self.store.watch();
        let wait = async {
            loop {
                changed.borrow_and_update();
                if let Some(found) = self.store.read(&done) {
                    return found;
                }
                changed.changed().await.expect("the store stays");
            }
        };
        let found = timeout(PATIENCE, wait).await;
        found
            .unwrap_or_else(|_| panic!("not in time: {what}; {:#?}", self.store.read(State::clone)))
    }

    async fn until_node(&self, node: &NodeId, state: NodeState) {
        let found = |now: &State| (now.node(node)?.status.state == state).then_some(());
        self.until(state.as_str(), found).await;
    }

    async fn until_running(&self, service: &ServiceId, count: usize) {
        let enough = |state: &State| {
            let running = |task: &&Arc<swarm_model::Task>| {
                task.status.state == TaskState::Running
                    && task.desired_state == DesiredState::Running
            };
            let tasks = state.tasks_of_service(service).filter(running);
            (tasks.count() == count).then_some(())
        };
        self.until("running tasks", enough).await;
    }

    /// Opens a session of an agent that does what it is told.
    async fn obedient(&mut self, node: &NodeId) {
        let mut agent = Agent::open(self, node).await;
        self.tasks.spawn(async move {
            let mut heartbeat = tokio::time::interval(Duration::from_millis(200));
            loop {
                tokio::select! {
                    _ = heartbeat.tick() => {
                        agent.send(FromAgent::Heartbeat(v1::Heartbeat {})).await;
                    }
                    message = agent.incoming.message() => {
                        let Ok(Some(message)) = message else { return };
                        let assignments = match message.message {
                            Some(FromManager::Assignments(assignments)) => assignments,
                            Some(FromManager::Standing(_)) => continue,
                            other => panic!("{other:?} are no assignments"),
                        };
                        agent.obey(&assignments).await;
                        agent.applied(assignments.generation).await;
                    }
                }
            }
        });
    }
}

fn everything(state: &State) -> Vec<Change> {
    let cluster = state.cluster().cloned().map(Change::from);
    let nodes = state.nodes().cloned().map(Change::from);
    let services = state.services().cloned().map(Change::from);
    let tasks = state.tasks().cloned().map(Change::from);
    let networks = state.networks().cloned().map(Change::from);
    cluster
        .into_iter()
        .chain(nodes)
        .chain(services)
        .chain(tasks)
        .chain(networks)
        .collect()
}

async fn put(store: &Store, changes: Vec<Change>) {
    let update = store.update(|_| Ok::<_, std::convert::Infallible>((changes, ())));
    update.await.expect("the store takes it");
}

struct Agent {
    outgoing: mpsc::Sender<v1::AgentMessage>,
    incoming: Streaming<v1::ManagerMessage>,
}

impl Agent {
    /// An agent whose session is open, its welcome read.
    async fn open(manager: &mut Manager, node: &NodeId) -> Self {
        let hello = FromAgent::Hello(v1::Hello {
            description: Some(description("host")),
            ..v1::Hello::default()
        });
        let mut agent = Self::call(manager, node, hello).await.expect("a session");
        let welcome = agent.next().await.expect("a welcome");
        let Some(FromManager::Welcome(welcome)) = welcome.message else {
            panic!("{welcome:?} is no welcome");
        };
        assert_eq!(welcome.node_id, node.as_str());
        assert_eq!(welcome.heartbeat_period_ms, 500);
        agent
    }

    async fn call(manager: &mut Manager, node: &NodeId, first: FromAgent) -> Result<Self, Status> {
        let mut client = manager.client(node).await;
        let (outgoing, messages) = mpsc::channel(16);
        outgoing
            .send(v1::AgentMessage {
                message: Some(first),
            })
            .await
            .expect("room");
        let call = client.session(ReceiverStream::new(messages));
        let incoming = timeout(PATIENCE, call)
            .await
            .expect("an answer")?
            .into_inner();
        Ok(Self { outgoing, incoming })
    }

    async fn send(&self, message: FromAgent) {
        // The session may have been closed meanwhile.
        let _ = self
            .outgoing
            .send(v1::AgentMessage {
                message: Some(message),
            })
            .await;
    }

    async fn applied(&self, generation: u64) {
        self.send(FromAgent::Applied(v1::Applied { generation }))
            .await;
    }

    async fn next(&mut self) -> Result<v1::ManagerMessage, Status> {
        let message = timeout(PATIENCE, self.incoming.message()).await;
        message
            .expect("a message in time")
            .map(|message| message.expect("the stream goes on"))
    }

    async fn assignments(&mut self) -> v1::Assignments {
        loop {
            match self.next().await.expect("assignments").message {
                Some(FromManager::Assignments(assignments)) => return assignments,
                Some(FromManager::Standing(_)) => {}
                other => panic!("{other:?} are no assignments"),
            }
        }
    }

    /// Reads on until an endpoint is in `state`.
    async fn until_endpoint(&mut self, state: v1::EndpointState) -> u64 {
        loop {
            let assignments = self.assignments().await;
            let found = assignments
                .put
                .iter()
                .any(|assignment| match &assignment.item {
                    Some(v1::assignment::Item::Endpoint(endpoint)) => endpoint.state() == state,
                    _ => false,
                });
            if found {
                return assignments.generation;
            }
        }
    }

    /// The reason the session ended for.
    async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }

    /// Reports of every task in `assignments` that it is where it should be.
    async fn obey(&self, assignments: &v1::Assignments) {
        for assignment in &assignments.put {
            let Some(v1::assignment::Item::Task(task)) = &assignment.item else {
                continue;
            };
            let state = match task.desired_state() {
                v1::DesiredState::Running | v1::DesiredState::Draining => TaskState::Running,
                _ => TaskState::Shutdown,
            };
            self.report(&task.id, state).await;
        }
    }

    async fn report(&self, task: &str, state: TaskState) {
        let status = TaskStatus {
            state,
            ..TaskStatus::default()
        };
        let entry = v1::TaskStatusEntry {
            task_id: task.to_owned(),
            status: Some((&status).into()),
        };
        self.send(FromAgent::Status(v1::TaskStatusUpdate {
            entries: vec![entry],
        }))
        .await;
    }
}

fn description(hostname: &str) -> v1::NodeDescription {
    v1::NodeDescription {
        hostname: hostname.to_owned(),
        os: "linux".to_owned(),
        architecture: "x86_64".to_owned(),
        data_path_address: "192.0.2.1".to_owned(),
        ..v1::NodeDescription::default()
    }
}

/// A service as the API would put it.
async fn add_service(manager: &Manager, replicas: u64) -> ServiceId {
    let mut scenario = Scenario::new();
    let id = scenario.add_service("web", replicas, published);
    let service = scenario.service(&id).clone();
    put(&manager.store, vec![service.into()]).await;
    id
}

#[tokio::test]
async fn a_service_comes_to_run_and_goes_again() {
    let mut manager = Manager::start(&["h1", "h2", "h3"]).await;
    for node in manager.nodes.clone() {
        manager.obedient(&node).await;
    }
    let web = add_service(&manager, 5).await;
    manager.until_running(&web, 5).await;
    let spread = manager.store.read(|state| {
        manager
            .nodes
            .iter()
            .map(|node| state.tasks_of_node(node).count())
            .max()
    });
    assert_eq!(spread, Some(2));

    let mut service = manager
        .store
        .read(|state| swarm_model::Service::clone(state.service(&web).expect("running")));
    service.pending_delete = true;
    put(&manager.store, vec![service.into()]).await;
    let gone = |state: &State| state.service(&web).is_none().then_some(());
    manager.until("the service is gone", gone).await;
    assert_eq!(manager.store.read(|state| state.tasks().count()), 0);
}

#[tokio::test]
async fn a_session_begins_with_everything() {
    let mut manager = Manager::start(&["h1"]).await;
    let node = manager.nodes[0].clone();
    let mut agent = Agent::open(&mut manager, &node).await;
    let first = agent.assignments().await;
    assert!(first.complete);
    assert_eq!(first.generation, 1);
    assert_eq!(first.put.len(), 2, "the network and this node: {first:?}");
    let registered = |state: &State| {
        let node = state.node(&node)?;
        let known = node.description.hostname == "host"
            && node.status.address == Some([192, 0, 2, 99].into());
        known.then_some(())
    };
    manager.until("what it said of itself", registered).await;
    manager.until_node(&node, NodeState::Ready).await;

    add_service(&manager, 1).await;
    let mut generation = 1;
    loop {
        let change = agent.assignments().await;
        generation += 1;
        assert_eq!(change.generation, generation);
        assert!(!change.complete);
        if change
            .put
            .iter()
            .any(|one| matches!(one.item, Some(v1::assignment::Item::Task(_))))
        {
            break;
        }
    }
}

#[tokio::test]
async fn a_nodes_problems_are_known_until_it_has_others() {
    let mut manager = Manager::start(&["h1"]).await;
    let node = manager.nodes[0].clone();
    let agent = Agent::open(&mut manager, &node).await;
    for texts in [vec!["no IPVS", "port taken"], vec!["port taken"], vec![]] {
        let problems = texts.iter().map(|text| v1::NodeProblem {
            service_id: String::new(),
            text: (*text).to_owned(),
        });
        let problems = problems.collect();
        agent
            .send(FromAgent::Problems(v1::NodeProblems { problems }))
            .await;
        let known = |state: &State| {
            let problems = &state.node(&node)?.status.problems;
            let known: Vec<_> = problems.iter().map(|problem| &problem.text).collect();
            (known == texts).then_some(())
        };
        manager.until("the problems it has now", known).await;
    }
}

#[tokio::test]
async fn a_task_stops_once_everyone_has_acknowledged_its_drain() {
    // Silence plays no part: it would change the store, and with it what is looked at.
    let mut manager = Manager::start_with(&["h1", "h2"], 2 * PATIENCE, 2 * PATIENCE).await;
    let (first, second) = (manager.nodes[0].clone(), manager.nodes[1].clone());
    manager.obedient(&first).await;
    let mut watcher = Agent::open(&mut manager, &second).await;
    let complete = watcher.assignments().await;
    watcher.applied(complete.generation).await;
    manager.until_node(&second, NodeState::Ready).await;

    // Only on the first node, so that the second is a mere witness.
    let mut paused = manager
        .store
        .read(|state| Node::clone(state.node(&second).expect("there")));
    paused.spec.availability = swarm_model::Availability::Pause;
    put(&manager.store, vec![paused.into()]).await;
    let web = add_service(&manager, 1).await;
    watcher.until_endpoint(v1::EndpointState::Ready).await;

    let mut service = manager
        .store
        .read(|state| swarm_model::Service::clone(state.service(&web).expect("running")));
    service.spec.mode = swarm_model::ServiceMode::Replicated { replicas: 0 };
    put(&manager.store, vec![service.into()]).await;
    let generation = watcher.until_endpoint(v1::EndpointState::Draining).await;
    let task = |state: &State| state.tasks_of_service(&web).next().cloned();
    let draining = manager
        .store
        .read(task)
        .expect("one is left to acknowledge");
    assert_eq!(draining.desired_state, DesiredState::Draining);
    watcher.applied(generation).await;
    let acknowledged = Instant::now();
    let stopping = |state: &State| {
        let drains = task(state).is_some_and(|task| task.desired_state == DesiredState::Draining);
        (!drains).then_some(())
    };
    manager.until("the drain has ended", stopping).await;
    let took = acknowledged.elapsed();
    assert!(
        took < Duration::from_secs(4),
        "by acknowledgement, not by deadline: {took:?}"
    );
}

#[tokio::test]
async fn silence_replaces_tasks() {
    let mut manager = Manager::start(&["h1", "h2"]).await;
    let (first, second) = (manager.nodes[0].clone(), manager.nodes[1].clone());
    manager.obedient(&first).await;
    let mut silent = Agent::open(&mut manager, &second).await;
    let complete = silent.assignments().await;
    silent.applied(complete.generation).await;
    manager.until_node(&second, NodeState::Ready).await;
    let web = add_service(&manager, 2).await;
    loop {
        let assignments = silent.assignments().await;
        silent.obey(&assignments).await;
        if assignments
            .put
            .iter()
            .any(|one| matches!(one.item, Some(v1::assignment::Item::Task(_))))
        {
            break;
        }
    }
    manager.until_running(&web, 2).await;
    manager.until_node(&second, NodeState::Suspect).await;
    manager.until_node(&second, NodeState::Down).await;
    assert_eq!(silent.end().await.code(), Code::DeadlineExceeded);
    let moved = |state: &State| {
        let running = state.tasks_of_node(&first).filter(|task| {
            task.status.state == TaskState::Running && task.desired_state == DesiredState::Running
        });
        (running.count() == 2).then_some(())
    };
    manager
        .until("both tasks on the node that is left", moved)
        .await;

    // Back again.
    manager.obedient(&second).await;
    manager.until_node(&second, NodeState::Ready).await;
}

#[tokio::test]
async fn a_second_session_takes_the_place_of_the_first() {
    let mut manager = Manager::start(&["h1"]).await;
    let node = manager.nodes[0].clone();
    let mut first = Agent::open(&mut manager, &node).await;
    let mut second = Agent::open(&mut manager, &node).await;
    assert_eq!(first.end().await.code(), Code::Aborted);
    assert!(second.assignments().await.complete);
    second.send(FromAgent::Hello(v1::Hello::default())).await;
    assert_eq!(second.end().await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_removed_node_loses_its_session() {
    let mut manager = Manager::start(&["h1", "h2"]).await;
    let node = manager.nodes[1].clone();
    let mut agent = Agent::open(&mut manager, &node).await;
    put(&manager.store, vec![Change::Remove(node.clone().into())]).await;
    assert_eq!(agent.end().await.code(), Code::PermissionDenied);
    let hello = FromAgent::Hello(v1::Hello {
        description: Some(description("h2")),
        ..v1::Hello::default()
    });
    let refused = Agent::call(&mut manager, &node, hello).await;
    assert_eq!(
        refused.err().map(|status| status.code()),
        Some(Code::PermissionDenied)
    );
}

#[tokio::test]
async fn what_is_no_session_is_refused() {
    let mut manager = Manager::start(&["h1"]).await;
    let node = manager.nodes[0].clone();
    manager.obedient(&node).await;
    let mut large = description("h1");
    large
        .engine_labels
        .insert("a".to_owned(), "b".repeat(100_000));
    let mut nonsense = description("h1");
    nonsense.data_path_address = "everywhere".to_owned();
    for first in [
        FromAgent::Heartbeat(v1::Heartbeat {}),
        FromAgent::Hello(v1::Hello {
            description: Some(large),
            ..v1::Hello::default()
        }),
        FromAgent::Hello(v1::Hello {
            description: Some(nonsense),
            ..v1::Hello::default()
        }),
    ] {
        let refused = Agent::call(&mut manager, &node, first).await;
        assert_eq!(
            refused.err().map(|status| status.code()),
            Some(Code::InvalidArgument)
        );
    }
}

#[tokio::test]
async fn a_manager_that_does_not_lead_refuses() {
    let scenario = Scenario::with_nodes(&["h1"]);
    let mut manager = Manager::idle(&scenario).await;
    let node = manager.nodes[0].clone();
    let hello = FromAgent::Hello(v1::Hello {
        description: Some(description("h1")),
        ..v1::Hello::default()
    });
    let refused = Agent::call(&mut manager, &node, hello.clone()).await;
    assert_eq!(
        refused.err().map(|status| status.code()),
        Some(Code::Unavailable)
    );

    let mut manager = manager.lead();
    manager.until_node(&node, NodeState::Unknown).await;
    let mut agent = loop {
        // Leading begins a moment after the first change.
        match Agent::call(&mut manager, &node, hello.clone()).await {
            Ok(agent) => break agent,
            Err(status) => assert_eq!(status.code(), Code::Unavailable),
        }
    };
    // Leadership ends: the agent is told.
    manager.tasks.spawn(std::future::pending());
    let stop = std::mem::replace(&mut manager._stop, CancellationToken::new().drop_guard());
    drop(stop);
    assert_eq!(agent.end().await.code(), Code::Unavailable);
}

#[tokio::test]
async fn an_agent_that_does_not_read_is_told_so_at_the_end() {
    let (outlet, mut stream) = Outlet::new(SessionId::random(&mut rand::rng()));
    let mut sent = 0;
    let reason = loop {
        match outlet.send(v1::ManagerMessage::default()) {
            Ok(()) => sent += 1,
            Err(reason) => break reason,
        }
        assert!(sent < 1000, "the queue is bounded");
    };
    assert_eq!(reason.code(), Code::ResourceExhausted);
    let ended = outlet.ended();
    outlet.close(reason);
    assert!(ended.is_cancelled());
    for _ in 0..sent {
        assert!(stream.next().await.expect("queued").is_ok());
    }
    let last = stream.next().await.expect("the farewell");
    assert_eq!(
        last.err().map(|status| status.code()),
        Some(Code::ResourceExhausted)
    );
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_node_that_opens_sessions_without_end_is_refused_and_others_are_not() {
    let mut manager = Manager::start(&["one", "two"]).await;
    let nodes = manager.nodes.clone();
    let hello = || {
        FromAgent::Hello(v1::Hello {
            description: Some(description("host")),
            ..v1::Hello::default()
        })
    };
    let mut opened = Vec::new();
    let refused = loop {
        match Agent::call(&mut manager, &nodes[0], hello()).await {
            Ok(session) => opened.push(session),
            Err(status) => break status,
        }
        // One every half second is allowed: a machine that is slower than that cannot be refused.
        assert!(opened.len() < 100, "never refused");
    };
    assert!(opened.len() >= 10, "{}", opened.len());
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert_eq!(
        refused.message(),
        "this node opens sessions too often; try again in a second"
    );
    // The last of its sessions goes on, and others are as before.
    let mut last = opened.pop().expect("some were opened");
    last.next().await.expect("a welcome");
    Agent::open(&mut manager, &nodes[1]).await;
}

#[tokio::test]
async fn a_session_is_told_the_nodes_role_and_the_managers_whenever_they_change() {
    let mut manager = Manager::start(&["h1", "h2"]).await;
    let [first, node] = [0, 1].map(|at| manager.nodes[at].clone());
    let mut agent = Agent::open(&mut manager, &node).await;
    let mut standing = async || loop {
        if let Some(FromManager::Standing(told)) = agent.next().await.expect("news").message {
            return told;
        }
    };
    let told = standing().await;
    assert_eq!(told.role(), v1::Role::Worker);

    let change = |id: &NodeId, change: fn(&mut Node)| {
        let mut node = manager
            .store
            .read(|state| Node::clone(state.node(id).expect("there")));
        change(&mut node);
        put(&manager.store, vec![node.into()])
    };
    change(&node, |node| node.role = Role::Manager).await;
    assert_eq!(standing().await.role(), v1::Role::Manager);
    change(&first, |node| {
        node.manager = Some(swarm_model::ManagerStatus {
            raft_id: 7,
            address: ([192, 0, 2, 7], 2377).into(),
            leader: false,
            certificate_issuer: String::new(),
        });
    })
    .await;
    let told = standing().await;
    assert_eq!(
        told.managers.first().map(String::as_str),
        Some("192.0.2.7:2377")
    );
}
