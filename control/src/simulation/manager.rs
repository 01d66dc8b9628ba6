//! A manager, one step at a time.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::RngExt as _;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng as _;
use redb::StorageBackend;
use swarm_api::v1;
use swarm_api::v1::agent_message::Message;
use swarm_model::{ClusterSpec, NodeDescription, NodeId, NodeState, SessionId, Timestamp};

use super::lead::Lead;
use super::request::Request;
use super::view::View;
use crate::bootstrap::{FIRST_RAFT_ID, Founder, new_swarm};
use crate::ca::RootCa;
use crate::dispatch::{Report, Verdict, greet, judge, observe};
use crate::error_text::error_text;
use crate::leader::{CHANGES_MAX, Round, take_over};
use crate::raft::{self, Committed, Envelope, Stepped};
use crate::store::{Change, Leadership, ProposeError, State, UPDATE_DEADLINE};

/// Reports in one update (`dispatch/serve.rs`).
const REPORTS_PER_UPDATE: usize = 128;

/// Time until an update of the leader's that could not be made is tried again (`leader.rs`).
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// Why a manager stopped. It is of no more use; what its medium holds is known only after it is
/// opened again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Stopped(String);

impl Stopped {
    fn because(error: impl std::error::Error) -> Self {
        Self(error_text(&error))
    }
}

/// The first contents of a swarm: itself and its managers.
#[derive(Clone)]
pub struct Founding {
    changes: Vec<Change>,
    raft_ids: Vec<u64>,
}

impl fmt::Debug for Founding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Founding")
            .field("raft_ids", &self.raft_ids)
            .finish_non_exhaustive()
    }
}

impl Founding {
    /// A swarm of these managers, whose Raft ids count up from 1. Ids and secrets are drawn from
    /// `seed`.
    #[must_use]
    pub fn new(managers: &[NodeId], now: Timestamp, seed: u64) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let root = || RootCa {
            certificate_pem: String::new(),
            key_pem: String::new().into(),
        };
        let mut changes = Vec::new();
        let mut raft_ids = Vec::new();
        for (raft_id, node_id) in (FIRST_RAFT_ID..).zip(managers) {
            let last = u8::try_from(raft_id).unwrap_or(u8::MAX);
            let address = IpAddr::from(Ipv4Addr::new(192, 0, 2, last));
            let founder = Founder {
                node_id: node_id.clone(),
                address: SocketAddr::new(address, 2377),
                data_path_address: address,
            };
            let mut objects = new_swarm(founder, ClusterSpec::default(), root(), now, &mut rng);
            // There is one swarm; its managers' nodes differ.
            let node = objects.pop();
            if changes.is_empty() {
                changes.append(&mut objects);
            }
            changes.extend(node.map(|node| with_raft_id(node, raft_id)));
            raft_ids.push(raft_id);
        }
        Self { changes, raft_ids }
    }

    /// Makes the log of member `raft_id` on an empty medium.
    ///
    /// # Errors
    /// When the medium fails.
    pub fn format(&self, medium: impl StorageBackend, raft_id: u64) -> Result<(), Stopped> {
        raft::format(medium, raft_id, &self.raft_ids, self.changes.clone())
            .map_err(Stopped::because)
    }

    /// Makes the log of a member that joins later, and is sent everything, on an empty medium.
    ///
    /// # Errors
    /// When the medium fails.
    pub fn join(medium: impl StorageBackend, raft_id: u64) -> Result<(), Stopped> {
        raft::join(medium, raft_id).map_err(Stopped::because)
    }
}

fn with_raft_id(change: Change, raft_id: u64) -> Change {
    match change {
        Change::Put(crate::store::Object::Node(mut node)) => {
            if let Some(manager) = &mut node.manager {
                manager.raft_id = raft_id;
                manager.leader = false;
            }
            node.into()
        }
        other => other,
    }
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done, and acknowledged.
    Done,
    /// It was refused, for this reason; nothing was changed.
    Refused(String),
    /// Another manager leads, or none; nothing was changed.
    NotLeader(Option<u64>),
    /// It may be done or not, or come to be done yet.
    Unknown(String),
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The caller's number for it.
    pub call: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What one step gives.
#[derive(Debug, Default)]
pub struct Output {
    /// To other managers.
    pub envelopes: Vec<Envelope>,
    /// To who called.
    pub answers: Vec<Answer>,
    /// To who reads, by the caller's number: the state, or none where this manager is not known to lead.
    pub reads: Vec<(u64, Option<View>)>,
    /// To agents: the node, the number of the stream that it opened, and what is sent.
    pub to_agents: Vec<(NodeId, u64, ToAgent)>,
}

/// What a manager sends an agent.
#[derive(Clone, Debug, PartialEq)]
pub enum ToAgent {
    /// A message on the stream.
    Message(Box<v1::ManagerMessage>),
    /// The end of the stream.
    Closed,
}

/// What an update is for.
#[derive(Debug)]
enum Purpose {
    /// A call of the API, with its caller's number.
    Call(u64, Request),
    /// What a new leader changes first.
    TakeOver,
    /// A round of the passes.
    Round,
    /// Reports of agents.
    Record(Vec<Report>),
    /// Nodes that fell silent, or are back.
    Judge,
    /// A node that opens a session on a stream with this number.
    Register(NodeId, u64, Box<NodeDescription>),
}

/// What is known of an update once its changes are made up.
#[derive(Debug, Default)]
struct Note {
    /// How many changes it makes.
    count: usize,
    /// The time that a round asked for.
    asked: Option<Timestamp>,
    /// What was found out about nodes.
    verdicts: Vec<NodeId>,
}

/// The update that has the turn.
struct UnderWay {
    purpose: Purpose,
    note: Note,
    outcome: raft::Outcome,
    deadline: Timestamp,
    /// Whether its caller was told that it takes too long.
    given_up: bool,
}

/// A manager.
pub struct Manager {
    node_id: NodeId,
    stepped: Stepped,
    rng: ChaCha12Rng,
    waiting: VecDeque<Purpose>,
    under_way: Option<UnderWay>,
    /// Some while this manager leads, once it has taken over.
    lead: Option<Lead>,
    /// The term in which it has begun to take over.
    took_over: u64,
    /// When taking over is tried again, after it was not known to have happened.
    retry_at: Option<Timestamp>,
    /// Streams that agents opened here in vain.
    refused: Vec<(NodeId, u64)>,
    /// Reads that wait, with their callers' numbers.
    reading: Vec<(u64, raft::Reading)>,
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager")
            .field("node_id", &self.node_id)
            .finish_non_exhaustive()
    }
}

impl Manager {
    /// The manager on node `node_id` whose log is on `medium`; draws from `seed`. A snapshot is
    /// taken every `snapshot_interval` entries.
    ///
    /// # Errors
    /// When the medium holds no log, a damaged one, or fails.
    pub fn open(
        node_id: NodeId,
        medium: impl StorageBackend,
        seed: u64,
        snapshot_interval: u64,
    ) -> Result<Self, Stopped> {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let stepped = Stepped::open(medium, rng.random(), snapshot_interval);
        Ok(Self {
            node_id,
            stepped: stepped.map_err(Stopped::because)?,
            rng,
            waiting: VecDeque::new(),
            under_way: None,
            lead: None,
            took_over: 0,
            retry_at: None,
            refused: Vec::new(),
            reading: Vec::new(),
        })
    }

    /// Lets one tick of Raft pass; at `now` the leader also looks for silent nodes.
    pub fn tick(&mut self, now: Timestamp) {
        self.stepped.tick();
        let Some(lead) = &mut self.lead else {
            return;
        };
        let liveness = &mut lead.liveness;
        let verdicts = (self.stepped.replica()).read(|state| liveness.check(state, now));
        if !verdicts.is_empty() && !lead.is_judging {
            lead.is_judging = true;
            self.waiting.push_back(Purpose::Judge);
        }
    }

    /// Takes what the agent of `node` says at `now` on the stream that it gave the number `stream`.
    pub fn hear(&mut self, node: &NodeId, stream: u64, message: Message, now: Timestamp) {
        let is_heard = match (&mut self.lead, message) {
            (None, _) => false,
            (Some(_), Message::Hello(hello)) => {
                let description = hello.description.unwrap_or_default();
                match NodeDescription::try_from(description) {
                    Ok(description) => {
                        let register =
                            Purpose::Register(node.clone(), stream, Box::new(description));
                        self.waiting.push_back(register);
                        true
                    }
                    Err(_refused) => false,
                }
            }
            (Some(lead), message) => lead.hear(node, stream, message, now),
        };
        if !is_heard {
            self.refused.push((node.clone(), stream));
        }
    }

    /// Takes a message from another manager.
    pub fn receive(&mut self, envelope: Envelope) {
        self.stepped.receive(envelope);
    }

    /// Takes note that a message to `raft_id` was not delivered.
    pub fn unreachable(&mut self, raft_id: u64) {
        self.stepped.unreachable(raft_id);
    }

    /// Takes note of what became of the snapshot that was sent to `raft_id`.
    pub fn snapshot_sent(&mut self, raft_id: u64, arrived: bool) {
        self.stepped.snapshot_sent(raft_id, arrived);
    }

    /// Lets another manager lead, if this one does.
    pub fn hand_over(&mut self) {
        self.stepped.hand_over();
    }

    /// Takes a call of the API; `call` is the caller's number for it. It is answered by a later
    /// [`Manager::run`]. How many wait is the caller's to bound.
    pub fn call(&mut self, call: u64, request: Request) {
        self.waiting.push_back(Purpose::Call(call, request));
    }

    /// Begins a read that is to see everything acknowledged until now; `call` is the caller's number for
    /// it. A later [`Manager::run`] answers it, unless its caller has to give up.
    pub fn read(&mut self, call: u64) {
        self.reading.push((call, self.stepped.read_index()));
    }

    /// Answers the reads that are done.
    fn answer_reads(&mut self, output: &mut Output) {
        let replica = self.stepped.replica();
        self.reading.retain_mut(|(call, reading)| {
            let read = match reading.try_recv() {
                Ok(Ok(())) => Some(View(replica.read(State::clone))),
                Ok(Err(_refused)) => None,
                Err(_nothing_yet) => return true,
            };
            output.reads.push((*call, read));
            false
        });
    }

    /// Does all there is to do at `now`.
    ///
    /// # Errors
    /// When the medium fails, or the log says what cannot be carried out. The manager is of no more
    /// use then.
    pub fn run(&mut self, now: Timestamp) -> Result<Output, Stopped> {
        let mut output = Output::default();
        loop {
            let envelopes = self.stepped.run().map_err(Stopped::because)?;
            output.envelopes.extend(envelopes);
            self.answer_reads(&mut output);
            self.conclude(now, &mut output);
            self.follow(now, &mut output);
            if !self.begin(now, &mut output) {
                return Ok(output);
            }
        }
    }

    /// Who leads, as this manager knows it, as (whether it does itself and knows all that was
    /// committed, the term, the leader's Raft id).
    #[must_use]
    pub fn leadership(&self) -> (bool, u64, Option<u64>) {
        let Leadership {
            leader,
            term,
            leader_id,
        } = self.stepped.replica().leadership();
        (leader, term, leader_id)
    }

    /// The term, and whether this manager was elected in it.
    pub fn elected(&mut self) -> (u64, bool) {
        self.stepped.elected()
    }

    /// The Raft index of its state.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.stepped.replica().read(State::index)
    }

    /// Its state.
    #[must_use]
    pub fn view(&self) -> View {
        View(self.stepped.replica().read(State::clone))
    }

    /// The Raft ids of who votes, and of who is catching up.
    #[must_use]
    pub fn members(&self) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let members = self.stepped.replica().members();
        (members.voters, members.learners)
    }

    /// The committed entries after `index`, as far as it holds them.
    pub fn applied_after(&mut self, index: u64) -> Vec<Committed> {
        self.stepped.applied_after(index)
    }

    /// Does what follows from who leads and from what was applied.
    fn follow(&mut self, now: Timestamp, output: &mut Output) {
        for (node, stream) in self.refused.drain(..) {
            output.to_agents.push((node, stream, ToAgent::Closed));
        }
        let leadership = self.stepped.replica().leadership();
        if !leadership.leader || leadership.term != self.took_over {
            if let Some(lead) = self.lead.take() {
                lead.end(output);
            }
            if leadership.leader {
                self.took_over = leadership.term;
                self.retry_at = None;
                self.waiting.push_back(Purpose::TakeOver);
            }
        } else if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.waiting.push_back(Purpose::TakeOver);
        }
        let Some(lead) = &mut self.lead else {
            return;
        };
        let index = self.stepped.replica().read(|state| {
            lead.publish(state, output);
            state.index()
        });
        let is_due = lead.record_at.is_none_or(|at| at <= now);
        if !lead.reports.is_empty() && !lead.is_recording && is_due {
            lead.record_at = None;
            lead.is_recording = true;
            let count = lead.reports.len().min(REPORTS_PER_UPDATE);
            let reports = lead.reports.drain(..count).collect();
            self.waiting.push_back(Purpose::Record(reports));
        }
        if lead.begins_round(index, now) {
            self.waiting.push_back(Purpose::Round);
        }
    }

    /// Looks whether the update on its way has an outcome, or takes too long.
    fn conclude(&mut self, now: Timestamp, output: &mut Output) {
        let Some(mut update) = self.under_way.take() else {
            return;
        };
        match update.outcome.try_recv() {
            Ok(outcome) => {
                if !update.given_up {
                    let outcome = outcome.map_or_else(told, |()| Outcome::Done);
                    self.finish(update.purpose, update.note, outcome, now, output);
                }
            }
            Err(_nothing_yet) => {
                if now >= update.deadline && !update.given_up {
                    update.given_up = true;
                    let late = Outcome::Unknown("the update was not finished in time".to_owned());
                    let purpose = std::mem::replace(&mut update.purpose, Purpose::Judge);
                    let note = std::mem::take(&mut update.note);
                    self.finish(purpose, note, late, now, output);
                }
                self.under_way = Some(update);
            }
        }
    }

    /// Begins the next update, if there is one and it has its turn; gives whether anything was
    /// done.
    fn begin(&mut self, now: Timestamp, output: &mut Output) -> bool {
        if self.under_way.is_some() {
            return false;
        }
        let Some(turn) = self.stepped.turn() else {
            return false;
        };
        let Some(purpose) = self.waiting.pop_front() else {
            return false;
        };
        let leadership = self.stepped.replica().leadership();
        if !leadership.leader {
            let outcome = Outcome::NotLeader(leadership.leader_id);
            self.finish(purpose, Note::default(), outcome, now, output);
            return true;
        }
        let member = match &purpose {
            Purpose::Call(_, request) => request.member(),
            _ => None,
        };
        match self.changes(&purpose, now) {
            Err(refusal) => {
                let outcome = Outcome::Refused(refusal);
                self.finish(purpose, Note::default(), outcome, now, output);
            }
            Ok((changes, note)) if changes.is_empty() && member.is_none() => {
                self.finish(purpose, note, Outcome::Done, now, output);
            }
            Ok((changes, note)) => {
                let term = leadership.term;
                let outcome = (self.stepped).propose(changes, member, term, turn);
                self.under_way = Some(UnderWay {
                    purpose,
                    note,
                    outcome,
                    deadline: now.after(UPDATE_DEADLINE),
                    given_up: false,
                });
            }
        }
        true
    }

    /// The changes that an update makes.
    fn changes(
        &mut self,
        purpose: &Purpose,
        now: Timestamp,
    ) -> Result<(Vec<Change>, Note), String> {
        let Self {
            node_id,
            stepped,
            rng,
            lead,
            ..
        } = self;
        let gone = || "this manager has not taken over".to_owned();
        stepped.replica().read(|state| {
            let mut note = Note::default();
            let changes = match purpose {
                Purpose::Call(_, request) => request
                    .changes(state, node_id, now, rng)
                    .map_err(|refusal| refusal.to_string())?,
                Purpose::TakeOver => take_over(state, node_id, now),
                Purpose::Round => {
                    let lead = lead.as_mut().ok_or_else(gone)?;
                    let Round { changes, wake_at } =
                        lead.planner.round(state, &lead.drained, now, CHANGES_MAX);
                    note.asked = wake_at;
                    changes
                }
                Purpose::Record(reports) => observe(state, reports, now),
                Purpose::Judge => {
                    let lead = lead.as_mut().ok_or_else(gone)?;
                    let verdicts = lead.liveness.check(state, now);
                    let down = |it: &&Verdict| it.state == NodeState::Down;
                    let nodes = verdicts.iter().filter(down).map(|it| it.node.clone());
                    note.verdicts = nodes.collect();
                    judge(state, verdicts, now)
                }
                Purpose::Register(node, _, description) => {
                    let before = state.node(node).ok_or("this node is not in the swarm")?;
                    let address = description.data_path_address;
                    let after = greet(before, (**description).clone(), (address, ""), now);
                    after.into_iter().map(Change::from).collect()
                }
            };
            note.count = changes.len();
            Ok((changes, note))
        })
    }

    /// Does what follows from an update's outcome.
    fn finish(
        &mut self,
        purpose: Purpose,
        note: Note,
        outcome: Outcome,
        now: Timestamp,
        output: &mut Output,
    ) {
        let is_done = outcome == Outcome::Done;
        match purpose {
            Purpose::Call(call, _) => output.answers.push(Answer { call, outcome }),
            Purpose::TakeOver if is_done => {
                let seed = self.rng.random();
                let leadership = self.stepped.replica().leadership();
                if leadership.leader && leadership.term == self.took_over {
                    let lead = |state: &State| Lead::new(state, seed, now);
                    self.lead = Some(self.stepped.replica().read(lead));
                }
            }
            Purpose::TakeOver => self.retry_at = Some(now.after(RETRY_DELAY)),
            Purpose::Round => {
                let Some(lead) = &mut self.lead else {
                    return;
                };
                if is_done {
                    lead.passed(note.count, note.asked);
                } else {
                    lead.interrupted(now.after(RETRY_DELAY));
                }
            }
            Purpose::Record(reports) => {
                let Some(lead) = &mut self.lead else {
                    return;
                };
                lead.is_recording = false;
                if matches!(outcome, Outcome::Unknown(_)) {
                    lead.reports.splice(..0, reports);
                    lead.record_at = Some(now.after(RETRY_DELAY));
                }
            }
            Purpose::Judge => {
                let Some(lead) = &mut self.lead else {
                    return;
                };
                lead.is_judging = false;
                if is_done {
                    for node in note.verdicts {
                        lead.close(&node, output);
                    }
                }
            }
            Purpose::Register(node, stream, _) => match &mut self.lead {
                Some(lead) if is_done => {
                    let session = (SessionId::random(&mut self.rng), stream);
                    let own = &self.node_id;
                    let open = |state: &State| lead.open(state, &node, own, session, now, output);
                    self.stepped.replica().read(open);
                }
                _ => output.to_agents.push((node, stream, ToAgent::Closed)),
            },
        }
    }
}

fn told(error: ProposeError) -> Outcome {
    match error {
        ProposeError::NotLeader { leader } => Outcome::NotLeader(leader),
        ProposeError::Unavailable(cause) => Outcome::Unknown(cause.to_string()),
        ProposeError::TooLarge { size, limit } => {
            Outcome::Refused(format!("{size} bytes, more than {limit}"))
        }
        ProposeError::Invalid(cause) => Outcome::Refused(cause.to_string()),
        ProposeError::Members => Outcome::Refused("the managers changed meanwhile".to_owned()),
    }
}
