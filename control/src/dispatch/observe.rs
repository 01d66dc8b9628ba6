//! What agents' reports change in the store.

use std::collections::BTreeMap;
use std::net::IpAddr;

use swarm_model::{
    Node, NodeDescription, NodeId, NodeProblem, NodeState, Task, TaskId, TaskState, TaskStatus,
    Timestamp,
};

use super::liveness::Verdict;
use crate::store::{Change, State};

/// Longest message or error of a status that is kept, in characters; more is cut off. Errors carry
/// what a registry or a container said, and one task must not fill the log.
const TEXT_CHARS_MAX: usize = 1024;

/// One agent's word on one task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// Whose word.
    pub(crate) node: NodeId,
    /// On which task.
    pub(crate) task: TaskId,
    /// What it observed.
    pub(crate) status: TaskStatus,
}

/// The changes that `reports`, oldest first, make to the tasks they are about.
///
/// Ignored: tasks that the store does not have (any more) or has on another node, states that an
/// agent cannot observe, and steps back. Times are this manager's: those of nodes may differ.
pub(crate) fn observe(state: &State, reports: &[Report], now: Timestamp) -> Vec<Change> {
    let mut changed = BTreeMap::<&TaskId, Task>::new();
    for report in reports {
        let current = match changed.get(&report.task) {
            Some(task) => task,
            None => match state.task(&report.task) {
                Some(task) => task,
                None => continue,
            },
        };
        if current.node_id.as_ref() != Some(&report.node) {
            continue;
        }
        if let Some(status) = next_status(&current.status, &report.status, now) {
            let mut task = current.clone();
            task.status = status;
            task.meta.updated_at = now;
            changed.insert(&report.task, task);
        }
    }
    changed.into_values().map(Change::from).collect()
}

/// The status after `reported`; none when it is no news.
fn next_status(current: &TaskStatus, reported: &TaskStatus, now: Timestamp) -> Option<TaskStatus> {
    let observable = (TaskState::Accepted..=TaskState::Rejected).contains(&reported.state);
    let same = reported.state == current.state && !current.state.is_terminal();
    if !observable || !(same || current.state.may_become(reported.state)) {
        return None;
    }
    let next = TaskStatus {
        state: reported.state,
        since: if same { current.since } else { now },
        message: cut(&reported.message),
        error: cut(&reported.error),
        exit_code: reported.exit_code,
    };
    (next != *current).then_some(next)
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

/// The node as it is once it has opened a session from `address`, with a certificate of `issuer`; none when
/// that changes nothing.
pub(crate) fn greet(
    node: &Node,
    description: NodeDescription,
    (address, issuer): (Option<IpAddr>, &str),
    now: Timestamp,
) -> Option<Node> {
    let mut next = node.clone();
    next.description = description;
    next.status.address = address.or(next.status.address);
    next.status.certificate_issuer = cut(issuer);
    if next.status.state != NodeState::Ready {
        next.status.state = NodeState::Ready;
        next.status.since = now;
        next.status.message.clear();
    }
    if next == *node {
        return None;
    }
    next.meta.updated_at = now;
    Some(next)
}

/// The node with a certificate of `issuer`, a key identifier; none when that changes nothing.
pub(crate) fn note_issuer(node: &Node, issuer: &str, now: Timestamp) -> Option<Node> {
    let mut next = node.clone();
    next.status.certificate_issuer = cut(issuer);
    if next == *node {
        return None;
    }
    next.meta.updated_at = now;
    Some(next)
}

/// Most problems of a node that are kept: as many as a person reads.
const PROBLEMS_MAX: usize = 64;

/// The node with these problems; none when that changes nothing.
pub(crate) fn note_problems(node: &Node, problems: &[NodeProblem], now: Timestamp) -> Option<Node> {
    let kept = problems.iter().take(PROBLEMS_MAX);
    let problems: Vec<_> = kept
        .map(|problem| NodeProblem {
            service: problem.service.clone(),
            text: cut(&problem.text),
        })
        .collect();
    if node.status.problems == problems {
        return None;
    }
    let mut next = node.clone();
    next.status.problems = problems;
    next.meta.updated_at = now;
    Some(next)
}

/// The changes that make `verdicts` known.
pub(crate) fn judge(state: &State, verdicts: Vec<Verdict>, now: Timestamp) -> Vec<Change> {
    verdicts
        .into_iter()
        .filter_map(|verdict| {
            let mut node = Node::clone(state.node(&verdict.node)?);
            node.status.state = verdict.state;
            node.status.since = now;
            node.status.message = verdict.message;
            node.meta.updated_at = now;
            Some(node.into())
        })
        .collect()
}
