//! The dispatcher's shell: streams, clock, store.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message as _;
use swarm_api::v1;
use swarm_api::v1::agent_message::Message;
use swarm_api::v1::dispatcher_server::Dispatcher as DispatcherRpc;
use swarm_model::{
    Node, NodeDescription, NodeId, NodeProblem, NodeState, SessionId, TaskId, TaskStatus, Timestamp,
};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::liveness::Liveness;
use super::observe::{Report, greet, judge, note_issuer, note_problems, observe};
use super::reports::Reports;
use super::session::Sessions;
use super::stream::{Outbound, Outlet};
use super::wire::{common_standing, standing, standing_message, welcome};
use crate::clock;
use crate::serve::{Identity, Peer, TokenBucket};
use crate::store::{State, Store, UpdateError};

/// How long after a change of the store its consequences are sent at least, so that changes that come
/// together travel together.
const PUBLISH_DELAY: Duration = Duration::from_millis(20);

/// How many times as long as the last round took the next one waits: in a large swarm a round looks at
/// much, and what it holds up meanwhile are the changes themselves.
const PUBLISH_REST: u32 = 3;

/// Longest wait for the next round.
const PUBLISH_DELAY_MAX: Duration = Duration::from_millis(250);

/// How long reports are gathered before they become one update of the store.
const GATHER_DELAY: Duration = Duration::from_millis(20);

/// Reports in one update. Each may put a whole task, and an update is bounded in bytes.
const REPORTS_PER_UPDATE: usize = 512;

/// How often silence is looked for; a fifth of the shortest sensible `heartbeat_period`.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(100);

/// Time until an update that could not be made is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// Time an agent has to say who it is, after it has opened a stream.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// Sessions that one node may open at once, and the time after which it may open one more: each may
/// cost an update of the store, and a message to be read before there is a session.
const SESSIONS_BURST: u64 = 10;
const SESSIONS_INTERVAL_MS: u64 = 500;

/// Most bytes a node may say of itself: it is kept in the store of every manager.
const DESCRIPTION_BYTES_MAX: usize = 64 * 1024;

/// The metadata in which a manager that does not lead names the one that does, host:port.
const LEADER_METADATA: &str = "swarm-leader";

/// Talks with every agent while this manager leads; refuses with a hint while another does.
#[derive(Clone, Debug)]
pub(crate) struct Dispatcher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    self_id: NodeId,
    /// Some while this manager leads. Taken after the store's lock, never before.
    live: Mutex<Option<Live>>,
    drained: watch::Sender<BTreeSet<TaskId>>,
    readers: TaskTracker,
}

/// One leader's time.
#[derive(Debug)]
struct Live {
    sessions: Sessions,
    liveness: Liveness,
    outlets: BTreeMap<NodeId, Outlet>,
    /// How often each node may open a session.
    openings: BTreeMap<NodeId, TokenBucket>,
    /// What each open session was told of its node's standing.
    told: BTreeMap<NodeId, v1::Standing>,
    reports: Arc<Reports>,
    clock: SteadyClock,
}

/// Time that never goes back or leaps: silence is measured by it.
#[derive(Debug)]
struct SteadyClock {
    wall: Timestamp,
    at: Instant,
}

impl SteadyClock {
    fn start() -> Self {
        Self {
            wall: clock::now(),
            at: Instant::now(),
        }
    }

    fn now(&self) -> Timestamp {
        self.wall.after(self.at.elapsed())
    }
}

impl Live {
    fn new(state: &State, reports: Arc<Reports>) -> Self {
        let clock = SteadyClock::start();
        Self {
            sessions: Sessions::new(state),
            liveness: Liveness::new(clock.now()),
            outlets: BTreeMap::new(),
            openings: BTreeMap::new(),
            told: BTreeMap::new(),
            reports,
            clock,
        }
    }

    /// Whether `node` may open one more session.
    fn may_open(&mut self, node: &NodeId) -> bool {
        let now = self.clock.now();
        self.openings
            .entry(node.clone())
            .or_insert_with(|| TokenBucket::new(SESSIONS_BURST, SESSIONS_INTERVAL_MS))
            .take(now)
    }

    /// Opens a session of `node` in place of any other.
    fn open(
        &mut self,
        state: &State,
        node: &Node,
        self_id: &NodeId,
        session: &SessionId,
    ) -> Result<(ReceiverStream<Outbound>, CancellationToken), Status> {
        let replaced = Status::aborted("another session of this node was opened");
        self.close(&node.id, replaced);
        self.liveness.heard(&node.id, self.clock.now());
        let (outlet, stream) = Outlet::new(session.clone());
        outlet.send(welcome(state, session, node, self_id))?;
        let now = standing(node, &common_standing(state, self_id));
        outlet.send(standing_message(now.clone()))?;
        self.told.insert(node.id.clone(), now);
        let first = self.sessions.open(state, &node.id, session.clone());
        outlet.send(first.into())?;
        let ended = outlet.ended();
        self.outlets.insert(node.id.clone(), outlet);
        Ok((stream, ended))
    }

    fn close(&mut self, node: &NodeId, reason: Status) {
        self.told.remove(node);
        if let Some(outlet) = self.outlets.remove(node) {
            tracing::info!(%node, reason = reason.message(), "closed a session");
            self.sessions.close(node, &outlet.session);
            outlet.close(reason);
        }
    }

    /// Sends every session what is new in `state`.
    fn publish(&mut self, state: &State, self_id: &NodeId) {
        let common = common_standing(state, self_id);
        let news = |(id, told): (&NodeId, &v1::Standing)| {
            let node = state.node(id)?;
            let role = i32::from(v1::Role::from(node.role));
            let is_news = told.role != role
                || told.managers != common.managers
                || told.root_ca_pem != common.root_ca_pem
                || told.certificate_issuer != common.certificate_issuer;
            is_news.then(|| (id.clone(), standing(node, &common)))
        };
        for (id, now) in self.told.iter().filter_map(news).collect::<Vec<_>>() {
            let outlet = self.outlets.get(&id);
            if let Some(Err(reason)) =
                outlet.map(|outlet| outlet.send(standing_message(now.clone())))
            {
                self.close(&id, reason);
                continue;
            }
            self.told.insert(id, now);
        }
        for (node, outgoing) in self.sessions.round(state) {
            let outlet = self.outlets.get(&node);
            if let Some(Err(reason)) = outlet.map(|outlet| outlet.send(outgoing.into())) {
                self.close(&node, reason);
            }
        }
        self.openings.retain(|node, _| state.node(node).is_some());
        let gone = self
            .outlets
            .keys()
            .filter(|node| state.node(node).is_none());
        for node in gone.cloned().collect::<Vec<_>>() {
            let reason = "this node was removed from the swarm";
            self.close(&node, Status::permission_denied(reason));
        }
    }
}

/// Ends every session when this manager stops leading, however that comes about.
struct EndOfLead<'a>(&'a Inner);

impl Drop for EndOfLead<'_> {
    fn drop(&mut self) {
        if let Some(mut live) = self.0.live().take() {
            let nodes: Vec<_> = live.outlets.keys().cloned().collect();
            for node in nodes {
                let reason = "this manager does not lead the swarm any more";
                live.close(&node, Status::unavailable(reason));
            }
        }
        self.0.drained.send_replace(BTreeSet::new());
    }
}

impl Inner {
    fn live(&self) -> MutexGuard<'_, Option<Live>> {
        // What is held is whole between any two statements that could panic.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes known which tasks are drained, if that is news.
    fn tell_drained(&self) {
        let drained = self.store.read(|state| {
            let live = self.live();
            live.as_ref().map(|live| live.sessions.drained(state))
        });
        let drained = drained.unwrap_or_default();
        self.drained.send_if_modified(|before| {
            let news = *before != drained;
            *before = drained;
            news
        });
    }

    fn not_leader(&self) -> Status {
        let leader_id = self.store.leadership().borrow().leader_id;
        let leader = self.store.read(|state| {
            let managers = || state.nodes().filter_map(|node| node.manager.as_ref());
            managers()
                .find(|manager| Some(manager.raft_id) == leader_id)
                .map(|manager| manager.address)
        });
        let Some(address) = leader else {
            return Status::unavailable("the swarm has no leader just now: try again in a moment");
        };
        let text = format!("this manager does not lead the swarm: ask the leader at {address}");
        let mut status = Status::unavailable(text);
        if let Ok(address) = address.to_string().parse() {
            status.metadata_mut().insert(LEADER_METADATA, address);
        }
        status
    }
}

impl Dispatcher {
    /// The dispatcher of the manager on node `self_id`. Refuses every session until [`Self::lead`]
    /// runs.
    pub(crate) fn new(store: Store, self_id: NodeId) -> Self {
        Self(Arc::new(Inner {
            store,
            self_id,
            live: Mutex::new(None),
            drained: watch::Sender::new(BTreeSet::new()),
            readers: TaskTracker::new(),
        }))
    }

    /// The draining tasks that get no new connections any more, changing when that set does.
    pub(crate) fn drained(&self) -> watch::Receiver<BTreeSet<TaskId>> {
        self.0.drained.subscribe()
    }

    /// Serves agents until it is dropped, or until an update finds that another manager leads. To
    /// be run while this manager does.
    pub(crate) async fn lead(&self) {
        let reports = Arc::<Reports>::default();
        self.0.store.read(|state| {
            *self.0.live() = Some(Live::new(state, Arc::clone(&reports)));
        });
        let _end = EndOfLead(&self.0);
        tokio::select! {
            () = self.publish() => {}
            () = self.watch_nodes() => {}
            () = self.record(&reports) => {}
        }
    }

    /// Sends sessions what changes in the store.
    async fn publish(&self) {
        let mut changed = self.0.store.watch();
        loop {
            changed.borrow_and_update();
            let begun = Instant::now();
            self.0.store.read(|state| {
                if let Some(live) = self.0.live().as_mut() {
                    live.publish(state, &self.0.self_id);
                }
            });
            self.0.tell_drained();
            let rest = begun.elapsed() * PUBLISH_REST;
            if changed.changed().await.is_err() {
                return;
            }
            sleep(rest.clamp(PUBLISH_DELAY, PUBLISH_DELAY_MAX)).await;
        }
    }

    /// Writes down which nodes fall silent and which are back.
    async fn watch_nodes(&self) {
        let check = |state: &State| {
            let mut live = self.0.live();
            live.as_mut().map_or_else(Vec::new, |live| {
                let now = live.clock.now();
                live.liveness.check(state, now)
            })
        };
        let mut ticks = interval(LIVENESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.0.store.read(check).is_empty() {
                continue;
            }
            // Asked again inside: a node may have been heard while this update waited its turn.
            let update = self.0.store.update(|state| {
                let verdicts = check(state);
                let changes = judge(state, verdicts.clone(), clock::now());
                Ok::<_, Infallible>((changes, verdicts))
            });
            match update.await {
                Ok(verdicts) => {
                    for verdict in verdicts {
                        let state = verdict.state.as_str();
                        tracing::info!(node = %verdict.node, state, "a node's state changed");
                        if verdict.state == NodeState::Down {
                            self.end_silent(&verdict.node, &verdict.message);
                        }
                    }
                }
                Err(UpdateError::NotLeader { .. }) => return,
                Err(error) => {
                    tracing::warn!(%error, "could not write the state of nodes down");
                    sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    /// Ends the session of a node that is down. One that came back meanwhile has opened another, and
    /// is not down any more.
    fn end_silent(&self, node: &NodeId, message: &str) {
        self.0.store.read(|state| {
            let is_down = |node: &Arc<Node>| node.status.state == NodeState::Down;
            if state.node(node).is_some_and(is_down)
                && let Some(live) = self.0.live().as_mut()
            {
                live.close(node, Status::deadline_exceeded(message));
            }
        });
    }

    /// Writes down what agents report.
    async fn record(&self, reports: &Reports) {
        loop {
            reports.wait().await;
            sleep(GATHER_DELAY).await;
            for part in reports.take().chunks(REPORTS_PER_UPDATE) {
                if self.write(part).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Writes `reports` down, in parts when they are too much for one update. Fails when this
    /// manager leads no more: the agents then report to the next leader.
    async fn write(&self, reports: &[Report]) -> Result<(), ()> {
        let mut parts = vec![reports];
        while let Some(part) = parts.pop() {
            let update = self.0.store.update(|state| {
                let changes = observe(state, part, clock::now());
                Ok::<_, Infallible>((changes, ()))
            });
            match update.await {
                Ok(()) => {}
                Err(UpdateError::NotLeader { .. }) => return Err(()),
                Err(error @ UpdateError::TooLarge { .. }) => match part {
                    [one] => tracing::error!(task = %one.task, %error, "dropped a report"),
                    _ => {
                        let (first, second) = part.split_at(part.len() / 2);
                        parts.extend([second, first]);
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "could not write reports down");
                    sleep(RETRY_DELAY).await;
                    parts.push(part);
                }
            }
        }
        Ok(())
    }

    /// Makes `node` known as heard, with what it says of itself.
    async fn register(
        &self,
        node: &NodeId,
        description: NodeDescription,
        address: Option<IpAddr>,
        issuer: &str,
    ) -> Result<(), Status> {
        let update = self.0.store.update(|state| {
            let before = state.node(node).ok_or_else(|| {
                Status::permission_denied("this node is not in the swarm: let it join again")
            })?;
            let after = greet(before, description, (address, issuer), clock::now());
            Ok((after.into_iter().map(Into::into).collect(), ()))
        });
        update.await.map_err(|error| match error {
            UpdateError::Refused(status) => status,
            UpdateError::NotLeader { .. } => self.0.not_leader(),
            error => Status::unavailable(error.to_string()),
        })
    }

    /// Reads what the agent sends, until either side ends the session.
    async fn read(
        self,
        node: NodeId,
        session: SessionId,
        mut incoming: Streaming<v1::AgentMessage>,
        ended: CancellationToken,
    ) {
        loop {
            // Silence is bounded: a node that is down has its session closed.
            let message = tokio::select! {
                () = ended.cancelled() => return,
                message = incoming.message() => message,
            };
            let reason = match message {
                Ok(Some(message)) => match self.heed(&node, &session, message).await {
                    Ok(()) => continue,
                    Err(reason) => reason,
                },
                Ok(None) => Status::cancelled("the agent ended the session"),
                Err(status) => status,
            };
            let mut live = self.0.live();
            if let Some(live) = live
                .as_mut()
                .filter(|live| live.sessions.is_open(&node, &session))
            {
                live.close(&node, reason);
            }
            return;
        }
    }

    async fn heed(
        &self,
        node: &NodeId,
        session: &SessionId,
        message: v1::AgentMessage,
    ) -> Result<(), Status> {
        let reports = {
            let mut live = self.0.live();
            let Some(live) = live
                .as_mut()
                .filter(|live| live.sessions.is_open(node, session))
            else {
                return Err(Status::aborted("this session has ended"));
            };
            live.liveness.heard(node, live.clock.now());
            Arc::clone(&live.reports)
        };
        match message.message {
            // None is a message that a newer agent knows and this manager does not.
            Some(Message::Heartbeat(v1::Heartbeat {})) | None => Ok(()),
            Some(Message::Hello(_)) => Err(Status::invalid_argument("only one hello is expected")),
            Some(Message::Applied(v1::Applied { generation })) => {
                if let Some(live) = self.0.live().as_mut() {
                    live.sessions.applied(node, session, generation);
                }
                self.0.tell_drained();
                Ok(())
            }
            Some(Message::Status(update)) => {
                let mut heard = Vec::with_capacity(update.entries.len());
                for entry in update.entries {
                    match report(node, entry) {
                        Some(report) => heard.push(report),
                        None => tracing::warn!(%node, "a status that cannot be read was left out"),
                    }
                }
                // Of other tasks there is nothing to write down, however many are named.
                self.0.store.read(|state| {
                    heard.retain(|report| {
                        let task = state.task(&report.task);
                        task.is_some_and(|task| task.node_id.as_ref() == Some(node))
                    });
                });
                reports.add(heard);
                Ok(())
            }
            Some(Message::Problems(v1::NodeProblems { problems })) => {
                let problems = problems.into_iter().map(NodeProblem::try_from);
                match problems.collect::<Result<Vec<_>, _>>() {
                    Ok(problems) => {
                        let noted = |node: &Node| note_problems(node, &problems, clock::now());
                        self.note(node, noted).await
                    }
                    Err(error) => {
                        tracing::warn!(%node, %error, "problems that cannot be read were left out");
                        Ok(())
                    }
                }
            }
            Some(Message::Certificate(v1::CertificateInUse { issuer })) => {
                let noted = |node: &Node| note_issuer(node, &issuer, clock::now());
                self.note(node, noted).await
            }
        }
    }

    /// Writes down what `node` says of itself, `noted` being what becomes of it. Its next message waits
    /// for that.
    async fn note(
        &self,
        node: &NodeId,
        noted: impl Fn(&Node) -> Option<Node>,
    ) -> Result<(), Status> {
        let update = self.0.store.update(|state| {
            let noted = state.node(node).and_then(|node| noted(node));
            Ok::<_, Infallible>((noted.into_iter().map(Into::into).collect(), ()))
        });
        match update.await {
            Err(UpdateError::NotLeader { .. }) => Err(self.0.not_leader()),
            Err(error) => {
                // The agent says it again in its next session, or when it changes.
                tracing::warn!(%node, %error, "could not write down what a node says of itself");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

fn report(node: &NodeId, entry: v1::TaskStatusEntry) -> Option<Report> {
    let v1::TaskStatusEntry { task_id, status } = entry;
    Some(Report {
        node: node.clone(),
        task: task_id.parse().ok()?,
        status: TaskStatus::try_from(status?).ok()?,
    })
}

/// Who opens a session, and from where.
fn caller(
    request: &Request<Streaming<v1::AgentMessage>>,
) -> Result<(NodeId, Option<IpAddr>), Status> {
    match request.extensions().get::<Peer>() {
        Some(Peer {
            identity: Identity::Node { id, .. },
            address,
            forwarded_by: None,
        }) => Ok((id.clone(), *address)),
        _ => Err(Status::unauthenticated("a node's certificate is needed")),
    }
}

fn description(hello: v1::Hello) -> Result<NodeDescription, Status> {
    let description = hello.description.unwrap_or_default();
    if description.encoded_len() > DESCRIPTION_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "the node's description is larger than {DESCRIPTION_BYTES_MAX} bytes: it has too many \
             labels"
        )));
    }
    NodeDescription::try_from(description)
        .map_err(|error| Status::invalid_argument(error.to_string()))
}

#[tonic::async_trait]
impl DispatcherRpc for Dispatcher {
    type SessionStream = ReceiverStream<Outbound>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (node, address) = caller(&request)?;
        let may_open = self.0.live().as_mut().map(|live| live.may_open(&node));
        match may_open {
            Some(true) => {}
            Some(false) => {
                let text = "this node opens sessions too often; try again in a second";
                return Err(Status::resource_exhausted(text));
            }
            None => return Err(self.0.not_leader()),
        }
        let mut incoming = request.into_inner();
        let first = timeout(HELLO_DEADLINE, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the agent did not say hello"))??;
        let Some(Message::Hello(hello)) = first.and_then(|message| message.message) else {
            return Err(Status::invalid_argument("a session begins with a hello"));
        };
        let issuer = hello.certificate_issuer.clone();
        let description = description(hello)?;
        self.register(&node, description, address, &issuer).await?;
        let session = SessionId::random(&mut rand::rng());
        let opened = self.0.store.read(|state| {
            let mut live = self.0.live();
            let live = live.as_mut().ok_or(())?;
            let node = state.node(&node).ok_or(())?;
            Ok(live.open(state, node, &self.0.self_id, &session))
        });
        let (stream, ended) = opened.map_err(|()| self.0.not_leader())??;
        tracing::info!(%node, %session, "opened a session");
        let reader = self.clone().read(node, session, incoming, ended);
        self.0.readers.spawn(reader);
        Ok(Response::new(stream))
    }
}
