//! One simulated agent: it holds a session, beats, acknowledges what it is told, and says of its tasks
//! that they start and run. Sessions are opened, lost and opened again as the agent does it
//! (`agent/src/session/run.rs`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use rand::RngExt as _;
use rustls::ClientConfig;
use swarm_api::v1;
use swarm_api::v1::agent_message::Message as FromAgent;
use swarm_api::v1::dispatcher_client::DispatcherClient;
use swarm_api::v1::manager_message::Message as FromManager;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;

use crate::client::dial;
use crate::fleet::Seen;

/// Time that a container takes to start.
const START_TIME: Duration = Duration::from_millis(500);

/// As the agent has them.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(4);
const OUTGOING_MAX: usize = 64;
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
const STATUSES_PER_MESSAGE: usize = 256;
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
const LEADER_METADATA: &str = "swarm-leader";

/// An agent.
pub(crate) struct Agent {
    /// What it calls its host.
    pub(crate) hostname: String,
    /// Managers to try.
    pub(crate) managers: Vec<SocketAddr>,
    /// How it shows itself.
    pub(crate) tls: Arc<ClientConfig>,
    /// Where it notes what it saw.
    pub(crate) seen: Arc<Seen>,
    /// Its tasks, and what it last observed of them.
    tasks: BTreeMap<String, v1::TaskState>,
    /// Those that run by a time.
    starting: BTreeMap<String, Instant>,
}

/// Why a session ended, and who leads, where the manager named it.
struct End {
    error: anyhow::Error,
    leader: Option<SocketAddr>,
}

impl<E: Into<anyhow::Error>> From<E> for End {
    fn from(error: E) -> Self {
        let error = error.into();
        let status = error.downcast_ref::<tonic::Status>();
        let leader = status.and_then(|status| status.metadata().get(LEADER_METADATA));
        let leader = leader.and_then(|leader| leader.to_str().ok()?.parse().ok());
        Self { error, leader }
    }
}

impl Agent {
    pub(crate) fn new(
        hostname: String,
        managers: Vec<SocketAddr>,
        tls: Arc<ClientConfig>,
        seen: Arc<Seen>,
    ) -> Self {
        Self {
            hostname,
            managers,
            tls,
            seen,
            tasks: BTreeMap::new(),
            starting: BTreeMap::new(),
        }
    }

    /// Keeps a session open until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        let mut next = 0;
        let mut leader = None;
        loop {
            let turn = self.managers[next % self.managers.len()];
            let mut opened = false;
            let Err(end) = self.hold(leader.take().unwrap_or(turn), &mut opened).await;
            if opened {
                self.seen.closed(&end.error);
            }
            leader = end.leader;
            if opened || leader.is_some() {
                backoff = BACKOFF_MIN;
            }
            next += 1;
            let pause = backoff.mul_f64(rand::rng().random_range(0.5..1.0));
            sleep(pause).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn hold(
        &mut self,
        address: SocketAddr,
        opened: &mut bool,
    ) -> Result<std::convert::Infallible, End> {
        let channel = dial(address, &self.tls).await?;
        let mut client =
            DispatcherClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
        send(&outgoing, FromAgent::Hello(self.hello()))?;
        let call = client.session(ReceiverStream::new(messages));
        let mut incoming = timeout(WELCOME_TIMEOUT, call).await??.into_inner();
        let first = timeout(WELCOME_TIMEOUT, incoming.message()).await??;
        let Some(FromManager::Welcome(welcome)) = first.and_then(|first| first.message) else {
            return Err(anyhow::anyhow!("no welcome").into());
        };
        self.know(&welcome.managers);
        *opened = true;
        self.seen.opened();

        let mut heartbeat = interval(Duration::from_millis(welcome.heartbeat_period_ms.max(1)));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Skip);
        // A new manager knows nothing of what was said to another.
        self.report(&outgoing, self.tasks.clone())?;
        let mut applied = None;
        loop {
            let due = self.starting.values().min().copied();
            tokio::select! {
                message = incoming.message() => match message?.context("the stream ended")?.message {
                    Some(FromManager::Assignments(change)) => {
                        let generation = change.generation;
                        let news = self.assigned(change);
                        self.report(&outgoing, news)?;
                        // The newest stands for all before it.
                        applied = Some(generation);
                    }
                    Some(FromManager::Standing(standing)) => self.know(&standing.managers),
                    Some(FromManager::Welcome(_)) | None => {}
                },
                _ = heartbeat.tick() => send(&outgoing, FromAgent::Heartbeat(v1::Heartbeat {}))?,
                Ok(room) = outgoing.reserve(), if applied.is_some() => {
                    if let Some(generation) = applied.take() {
                        let message = Some(FromAgent::Applied(v1::Applied { generation }));
                        room.send(v1::AgentMessage { message });
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let news = self.started(Instant::now());
                    self.report(&outgoing, news)?;
                }
            }
        }
    }

    fn hello(&self) -> v1::Hello {
        v1::Hello {
            description: Some(v1::NodeDescription {
                hostname: self.hostname.clone(),
                os: "linux".to_owned(),
                architecture: "x86_64".to_owned(),
                nano_cpus: 64_000_000_000,
                memory_bytes: 256 << 30,
                agent_version: env!("CARGO_PKG_VERSION").to_owned(),
                ..v1::NodeDescription::default()
            }),
            ..v1::Hello::default()
        }
    }

    fn know(&mut self, managers: &[String]) {
        let managers: Vec<_> = managers.iter().filter_map(|it| it.parse().ok()).collect();
        if !managers.is_empty() {
            self.managers = managers;
        }
    }

    /// Takes assignments; gives what there is to report of tasks.
    fn assigned(&mut self, change: v1::Assignments) -> BTreeMap<String, v1::TaskState> {
        let now_ms = now_ms();
        let mut news = BTreeMap::new();
        let mut named = Vec::new();
        for put in change.put {
            let Some(v1::assignment::Item::Task(task)) = put.item else {
                continue;
            };
            if change.complete {
                named.push(task.id.clone());
            }
            self.seen.assigned(&task, now_ms);
            let wanted = matches!(
                task.desired_state(),
                v1::DesiredState::Running | v1::DesiredState::Draining
            );
            let state = self.tasks.get(&task.id).copied();
            let next = match (wanted, state) {
                (true, None) => {
                    self.starting
                        .insert(task.id.clone(), Instant::now() + START_TIME);
                    v1::TaskState::Preparing
                }
                (false, Some(v1::TaskState::Shutdown)) | (true, Some(_)) => continue,
                (false, _) => {
                    self.starting.remove(&task.id);
                    v1::TaskState::Shutdown
                }
            };
            news.insert(task.id.clone(), next);
            self.tasks.insert(task.id, next);
        }
        for key in change.remove {
            if let Some(v1::assignment_key::Key::TaskId(id)) = key.key {
                self.tasks.remove(&id);
                self.starting.remove(&id);
            }
        }
        if change.complete {
            self.tasks.retain(|id, _| named.contains(id));
            self.starting.retain(|id, _| named.contains(id));
        }
        news
    }

    /// The tasks that run by `now`.
    fn started(&mut self, now: Instant) -> BTreeMap<String, v1::TaskState> {
        let mut news = BTreeMap::new();
        self.starting.retain(|id, due| {
            if *due <= now {
                news.insert(id.clone(), v1::TaskState::Running);
            }
            *due > now
        });
        self.tasks.extend(news.clone());
        news
    }

    fn report(
        &self,
        outgoing: &mpsc::Sender<v1::AgentMessage>,
        news: BTreeMap<String, v1::TaskState>,
    ) -> Result<()> {
        let since_ms = now_ms();
        let entries = news
            .into_iter()
            .map(|(task_id, state)| v1::TaskStatusEntry {
                task_id,
                status: Some(v1::TaskStatus {
                    state: state.into(),
                    since_ms,
                    ..v1::TaskStatus::default()
                }),
            });
        let entries: Vec<_> = entries.collect();
        for entries in entries.chunks(STATUSES_PER_MESSAGE) {
            let update = v1::TaskStatusUpdate {
                entries: entries.to_vec(),
            };
            send(outgoing, FromAgent::Status(update))?;
        }
        Ok(())
    }
}

/// This host's clock, which is the managers', too.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

fn send(outgoing: &mpsc::Sender<v1::AgentMessage>, message: FromAgent) -> Result<()> {
    let message = Some(message);
    if outgoing.try_send(v1::AgentMessage { message }).is_err() {
        bail!("the manager does not read what this agent says");
    }
    Ok(())
}
