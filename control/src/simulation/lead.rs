//! What only a leader has: the passes' place in their round, and the conversation with agents.

use std::collections::{BTreeMap, BTreeSet};

use swarm_api::v1;
use swarm_api::v1::agent_message::Message;
use swarm_model::{NodeId, SessionId, TaskId, TaskStatus, Timestamp};

use super::manager::{Output, ToAgent};
use crate::dispatch::{Liveness, Report, Sessions, welcome};
use crate::leader::Planner;
use crate::store::State;

/// Where the passes stand.
#[derive(Clone, Copy, Debug)]
enum Planning {
    /// The last round wanted no change of the state at this index; asked again when something is news, or at
    /// this time.
    Rests(u64, Option<Timestamp>),
    /// A round waits for its turn, or for its outcome. It began at this index.
    Runs(u64),
    /// The last round made changes: the next is to follow.
    Goes,
}

/// One leader's time.
pub(super) struct Lead {
    pub(super) planner: Planner,
    pub(super) drained: BTreeSet<TaskId>,
    pub(super) liveness: Liveness,
    /// Reports that wait to be written down.
    pub(super) reports: Vec<Report>,
    /// Whether an update that writes reports down waits or is on its way.
    pub(super) is_recording: bool,
    /// When it may be tried again, after it failed.
    pub(super) record_at: Option<Timestamp>,
    /// Whether an update that writes verdicts down waits or is on its way.
    pub(super) is_judging: bool,
    sessions: Sessions,
    /// The sessions by node, each with the number of its stream.
    streams: BTreeMap<NodeId, (SessionId, u64)>,
    planning: Planning,
    /// What was drained when the passes came to rest.
    seen_drained: BTreeSet<TaskId>,
    published: u64,
}

impl Lead {
    pub(super) fn new(state: &State, seed: u64, now: Timestamp) -> Self {
        Self {
            planner: Planner::new(seed),
            drained: BTreeSet::new(),
            liveness: Liveness::new(now),
            reports: Vec::new(),
            is_recording: false,
            record_at: None,
            is_judging: false,
            sessions: Sessions::new(state),
            streams: BTreeMap::new(),
            planning: Planning::Goes,
            seen_drained: BTreeSet::new(),
            published: state.index(),
        }
    }

    /// Sends every session what is new in `state`.
    pub(super) fn publish(&mut self, state: &State, output: &mut Output) {
        if state.index() != self.published {
            self.published = state.index();
            for (node, outgoing) in self.sessions.round(state) {
                if let Some((_, stream)) = self.streams.get(&node) {
                    let message = ToAgent::Message(Box::new(outgoing.into()));
                    output.to_agents.push((node, *stream, message));
                }
            }
        }
        self.drained = self.sessions.drained(state);
    }

    /// Opens a session of `node` in place of any other.
    pub(super) fn open(
        &mut self,
        state: &State,
        node: &NodeId,
        own: &NodeId,
        (session, stream): (SessionId, u64),
        now: Timestamp,
        output: &mut Output,
    ) {
        self.close(node, output);
        let Some(object) = state.node(node) else {
            let closed = (node.clone(), stream, ToAgent::Closed);
            output.to_agents.push(closed);
            return;
        };
        self.liveness.heard(node, now);
        let first = self.sessions.open(state, node, session.clone());
        for message in [welcome(state, &session, object, own), first.into()] {
            let message = ToAgent::Message(Box::new(message));
            output.to_agents.push((node.clone(), stream, message));
        }
        self.streams.insert(node.clone(), (session, stream));
    }

    /// Closes the session of `node`, if there is one.
    pub(super) fn close(&mut self, node: &NodeId, output: &mut Output) {
        if let Some((session, stream)) = self.streams.remove(node) {
            self.sessions.close(node, &session);
            let closed = (node.clone(), stream, ToAgent::Closed);
            output.to_agents.push(closed);
        }
    }

    /// Closes all sessions.
    pub(super) fn end(mut self, output: &mut Output) {
        let nodes: Vec<_> = self.streams.keys().cloned().collect();
        for node in nodes {
            self.close(&node, output);
        }
    }

    /// Takes what `node` says on its stream number `stream`; false when that is not its session.
    pub(super) fn hear(
        &mut self,
        node: &NodeId,
        stream: u64,
        message: Message,
        now: Timestamp,
    ) -> bool {
        let Some((session, _)) = self.streams.get(node).filter(|it| it.1 == stream) else {
            return false;
        };
        self.liveness.heard(node, now);
        match message {
            Message::Applied(v1::Applied { generation }) => {
                self.sessions.applied(node, session, generation);
            }
            Message::Status(update) => {
                let reports = update.entries.into_iter().filter_map(|entry| {
                    Some(Report {
                        node: node.clone(),
                        task: entry.task_id.parse().ok()?,
                        status: TaskStatus::try_from(entry.status?).ok()?,
                    })
                });
                self.reports.extend(reports);
            }
            Message::Hello(_)
            | Message::Heartbeat(_)
            | Message::Problems(_)
            | Message::Certificate(_) => {}
        }
        true
    }

    /// Whether a round of the passes is to run now. Who is told so runs it.
    pub(super) fn begins_round(&mut self, index: u64, now: Timestamp) -> bool {
        match &self.planning {
            Planning::Rests(seen, wake_at) => {
                let is_due = wake_at.is_some_and(|at| at <= now);
                if *seen == index && !is_due && self.seen_drained == self.drained {
                    return false;
                }
            }
            Planning::Runs(_) => return false,
            Planning::Goes => {}
        }
        self.seen_drained.clone_from(&self.drained);
        self.planning = Planning::Runs(index);
        true
    }

    /// Takes note that a round has made `count` changes and asked for a time.
    pub(super) fn passed(&mut self, count: usize, asked: Option<Timestamp>) {
        if let Planning::Runs(since) = self.planning {
            self.planning = if count == 0 {
                Planning::Rests(since, asked)
            } else {
                Planning::Goes
            };
        }
    }

    /// Takes note that a round's changes are not known to be made: asked again at `at`.
    pub(super) fn interrupted(&mut self, at: Timestamp) {
        self.planning = Planning::Rests(self.published, Some(at));
    }
}
