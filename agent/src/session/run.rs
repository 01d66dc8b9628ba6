//! Keeps a session open.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use swarm_api::v1;
use swarm_api::v1::dispatcher_client::DispatcherClient;
use swarm_model::{NodeDescription, NodeProblem, Role, TaskId, TaskStatus};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{Assigned, AssignedError};
use crate::identity::{Connector, Roots, TlsError};

/// Wait after a failed session: doubles from the first to the second (swarmkit's noderunner goes to
/// 30 s; a lost manager should be found again sooner than that).
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(4);

/// Messages waiting for the network; more means that the manager does not read, and the session is
/// given up.
const OUTGOING_MAX: usize = 64;

/// A manager that answers at all answers the greeting within this.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);

/// The metadata in which a manager that does not lead names the one that does, host:port.
const LEADER_METADATA: &str = "swarm-leader";

/// The manager sends nothing while nothing changes; HTTP/2 pings (see `Connector`) find it dead.
/// Statuses per message; keeps a message below gRPC's 4 MiB bound (one status is at most 8 KiB).
const STATUSES_PER_MESSAGE: usize = 256;

/// Problems are reported this often at most: each report is a change of the swarm's log, and what
/// fails and heals by itself in the meantime is not worth one.
const PROBLEMS_SPACING: Duration = Duration::from_secs(4);

/// Most problems in a report; managers keep no more.
const PROBLEMS_MAX: usize = 64;

/// Assignments for a node of a large swarm: 20,000 endpoints at some 100 bytes, several times over.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How the session stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Whether it is open.
    pub(crate) connected: bool,
    /// Why not, in words; empty while it is.
    pub(crate) error: String,
    /// Managers last heard of, host:port.
    pub(crate) managers: Vec<String>,
    /// The role that this node has, once a manager has said it.
    pub(crate) role: Option<Role>,
}

/// What a session needs, and where it puts what it hears.
#[derive(Debug)]
pub(crate) struct Session {
    /// Managers to try, host:port.
    pub(crate) managers: Vec<String>,
    /// What this node says of itself.
    pub(crate) description: NodeDescription,
    /// What was heard.
    pub(crate) assigned: watch::Sender<Arc<Assigned>>,
    /// What to report of tasks.
    pub(crate) statuses: watch::Receiver<Arc<BTreeMap<TaskId, TaskStatus>>>,
    /// Which of this agent's sessions, and which generation of it, is in the kernel.
    pub(crate) applied: watch::Receiver<(u64, u64)>,
    /// What is wrong on this node.
    pub(crate) problems: watch::Receiver<Vec<NodeProblem>>,
    /// How the session stands.
    pub(crate) report: watch::Sender<Report>,
    /// The session's connection, for other calls to the same manager; none while it is not open.
    pub(crate) channel: watch::Sender<Option<Channel>>,
    /// What the managers say of root certificates; none before they have.
    pub(crate) roots: watch::Sender<Option<Roots>>,
}

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the manager ended the session: {}", .0.message())]
    Status(Box<tonic::Status>),
    #[error("the manager closed the session")]
    Closed,
    #[error("the manager did not answer within {} s", WELCOME_TIMEOUT.as_secs())]
    Silent,
    #[error("the manager does not read what this node reports")]
    Stalled,
    #[error("the manager's first message was no welcome")]
    NoWelcome,
    #[error(transparent)]
    Assigned(#[from] AssignedError),
}

impl SessionError {
    /// The leader, host:port, where the manager that was asked named it.
    fn leader(&self) -> Option<String> {
        let Self::Status(status) = self else {
            return None;
        };
        let address = status.metadata().get(LEADER_METADATA)?.to_str().ok()?;
        address.parse::<SocketAddr>().ok().map(|it| it.to_string())
    }
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Keeps a session open until `stop`; each is opened with the `connector` of its moment, and tells who has
/// signed the certificate of those that follow.
pub(crate) async fn run(
    mut session: Session,
    mut connector: watch::Receiver<Connector>,
    stop: CancellationToken,
) {
    let mut backoff = BACKOFF_MIN;
    let mut next = 0;
    let mut number = 0;
    let mut leader: Option<String> = None;
    while !stop.is_cancelled() {
        let turn = session.managers[next % session.managers.len()].clone();
        let address = leader.take().unwrap_or(turn);
        let mut opened = false;
        number += 1;
        let result = tokio::select! {
            result = session.hold(&mut connector, &address, number, &mut opened) => result,
            () = stop.cancelled() => return,
        };
        let Err(error) = result;
        session.channel.send_replace(None);
        let text = crate::error_text(&error);
        tracing::warn!(manager = address, error = text, "session ended");
        session.report.send_modify(|report| {
            report.connected = false;
            report.error = format!("no session with manager {address}: {text}");
        });
        leader = error.leader();
        // A manager that names the leader has answered, and the leader is to be asked at once.
        if opened || leader.is_some() {
            backoff = BACKOFF_MIN;
        }
        next += 1;
        // Jitter keeps a thousand agents from coming back in the same moment.
        let pause = backoff.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

impl Session {
    async fn hold(
        &mut self,
        connectors: &mut watch::Receiver<Connector>,
        address: &str,
        number: u64,
        opened: &mut bool,
    ) -> Result<std::convert::Infallible, SessionError> {
        let connector = connectors.borrow_and_update().clone();
        let channel: Channel = connector.connect(address).await?;
        let mut client =
            DispatcherClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
        let hello = v1::Hello {
            description: Some((&self.description).into()),
            certificate_issuer: connector.issuer().to_owned(),
        };
        send(&outgoing, v1::agent_message::Message::Hello(hello))?;
        let call = client.session(ReceiverStream::new(messages));
        let mut incoming = tokio::time::timeout(WELCOME_TIMEOUT, call)
            .await
            .map_err(|_| SessionError::Silent)??
            .into_inner();
        let first = tokio::time::timeout(WELCOME_TIMEOUT, incoming.message())
            .await
            .map_err(|_| SessionError::Silent)??
            .ok_or(SessionError::Closed)?;
        let Some(v1::manager_message::Message::Welcome(welcome)) = first.message else {
            return Err(SessionError::NoWelcome);
        };
        self.welcomed(&welcome, address);
        self.channel.send_replace(Some(channel));
        *opened = true;

        let period = Duration::from_millis(welcome.heartbeat_period_ms.clamp(100, 60_000));
        let mut heartbeat = tokio::time::interval(period);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        // What was reported in this session; a new manager knows nothing of earlier ones.
        let mut reported = BTreeMap::new();
        let mut problems_due = tokio::time::interval(PROBLEMS_SPACING);
        problems_due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut problems_reported = None;
        let mut issuer_reported = connector.issuer().to_owned();
        self.statuses.mark_changed();
        self.applied.mark_changed();
        let mut base = Assigned {
            session: number,
            ..Assigned::default()
        };
        loop {
            tokio::select! {
                message = incoming.message() => {
                    let message = message?.ok_or(SessionError::Closed)?;
                    match message.message {
                        Some(v1::manager_message::Message::Assignments(change)) => {
                            base = base.after(change)?;
                            self.assigned.send_replace(Arc::new(base.clone()));
                        }
                        Some(v1::manager_message::Message::Standing(standing)) => {
                            self.stands(&standing);
                        }
                        Some(v1::manager_message::Message::Welcome(_)) | None => {}
                    }
                }
                _ = heartbeat.tick() => {
                    send(&outgoing, v1::agent_message::Message::Heartbeat(v1::Heartbeat {}))?;
                }
                _ = problems_due.tick() => {
                    let problems = self.problems.borrow().clone();
                    if problems_reported.as_ref() != Some(&problems) {
                        let listed = problems.iter().take(PROBLEMS_MAX);
                        let update = v1::NodeProblems {
                            problems: listed.map(v1::NodeProblem::from).collect(),
                        };
                        send(&outgoing, v1::agent_message::Message::Problems(update))?;
                        problems_reported = Some(problems);
                    }
                }
                Ok(()) = connectors.changed() => {
                    let issuer = connectors.borrow_and_update().issuer().to_owned();
                    if issuer != issuer_reported {
                        issuer_reported.clone_from(&issuer);
                        let in_use = v1::CertificateInUse { issuer };
                        send(&outgoing, v1::agent_message::Message::Certificate(in_use))?;
                    }
                }
                Ok(()) = self.statuses.changed() => {
                    let statuses = self.statuses.borrow_and_update().clone();
                    for update in status_updates(&statuses, &mut reported) {
                        send(&outgoing, v1::agent_message::Message::Status(update))?;
                    }
                }
                Ok(()) = self.applied.changed() => {
                    let (session, generation) = *self.applied.borrow_and_update();
                    // A generation of an earlier session says nothing of this one.
                    if session == number {
                        let applied = v1::Applied { generation };
                        send(&outgoing, v1::agent_message::Message::Applied(applied))?;
                    }
                }
            }
        }
    }

    fn welcomed(&mut self, welcome: &v1::Welcome, address: &str) {
        tracing::info!(
            manager = address,
            session = welcome.session_id,
            "session opened"
        );
        if !welcome.managers.is_empty() {
            self.managers.clone_from(&welcome.managers);
        }
        let managers = self.managers.clone();
        self.report.send_modify(|report| {
            report.connected = true;
            report.error.clear();
            report.managers = managers;
        });
    }

    fn stands(&mut self, standing: &v1::Standing) {
        if !standing.managers.is_empty() {
            self.managers.clone_from(&standing.managers);
        }
        if !standing.root_ca_pem.is_empty() {
            let roots = Some(Roots {
                pem: standing.root_ca_pem.clone(),
                issuer: standing.certificate_issuer.clone(),
            });
            self.roots.send_if_modified(|told| {
                let is_news = *told != roots;
                *told = roots;
                is_news
            });
        }
        let managers = self.managers.clone();
        self.report.send_modify(|report| {
            report.managers = managers;
            report.role = match standing.role() {
                v1::Role::Worker => Some(Role::Worker),
                v1::Role::Manager => Some(Role::Manager),
                v1::Role::Unspecified => report.role,
            };
        });
    }
}

fn send(
    outgoing: &mpsc::Sender<v1::AgentMessage>,
    message: v1::agent_message::Message,
) -> Result<(), SessionError> {
    let message = v1::AgentMessage {
        message: Some(message),
    };
    outgoing
        .try_send(message)
        .map_err(|_| SessionError::Stalled)
}

/// What of `statuses` is not in `reported` yet, in messages of bounded size; and notes it there.
fn status_updates(
    statuses: &BTreeMap<TaskId, TaskStatus>,
    reported: &mut BTreeMap<TaskId, TaskStatus>,
) -> Vec<v1::TaskStatusUpdate> {
    let entries: Vec<_> = statuses
        .iter()
        .filter(|(id, status)| reported.get(*id) != Some(status))
        .map(|(id, status)| v1::TaskStatusEntry {
            task_id: id.to_string(),
            status: Some(status.into()),
        })
        .collect();
    reported.clone_from(statuses);
    entries
        .chunks(STATUSES_PER_MESSAGE)
        .map(|entries| v1::TaskStatusUpdate {
            entries: entries.to_vec(),
        })
        .collect()
}
