//! Chooses a node for every task that waits for one.
//!
//! First the nodes on which a task may run ([`filter`]), then the best of them: few recent
//! failures of the same service, few tasks of the same service, few tasks, and last the id, so that
//! the same store always gives the same answer. A task for which there is none stays pending, and
//! says what is missing.
//!
//! Invariants:
//! * A task gets a node once and never another.
//! * A node has at most one task that stays for each port published in mode host.
//! * A placed task is never moved: what moves is its slot, by the orchestrator.
//!
//! Deliberately absent: placement preferences, pre-emption, rebalancing.

mod filter;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use swarm_model::{
    Constraint, DesiredState, Node, NodeId, Protocol, PublishMode, Resources, ServiceId, Task,
    TaskState, Timestamp,
};

use crate::orchestrate::Batch;
use crate::store::State;

use filter::{Refusals, Rule, refusal};

/// A node with this many failures of a service within [`FAILURE_WINDOW`] is taken last (swarmkit
/// `scheduler/nodeinfo.go`).
const FAILURES_MAX: usize = 5;
const FAILURE_WINDOW: Duration = Duration::from_secs(5 * 60);

/// A template: tasks of the same one fail for the same reasons.
type Template<'a> = (&'a ServiceId, u64);

/// A port of a node that a task is published on in mode host.
type HostPort = (Protocol, u16);

/// A node and what is placed on it, decisions of this pass included.
struct Candidate<'a> {
    state: &'a State,
    node: &'a Arc<Node>,
    /// Each with the service whose task has it, and whether the task is there to stay.
    host_ports: BTreeSet<(HostPort, &'a ServiceId, bool)>,
    reserved_nano_cpus: u64,
    reserved_memory_bytes: u64,
    tasks: usize,
    tasks_of_service: BTreeMap<&'a ServiceId, usize>,
    recent_failures: BTreeMap<Template<'a>, usize>,
}

impl<'a> Candidate<'a> {
    fn new(state: &'a State, node: &'a Arc<Node>) -> Self {
        Self {
            state,
            node,
            host_ports: BTreeSet::new(),
            reserved_nano_cpus: 0,
            reserved_memory_bytes: 0,
            tasks: 0,
            tasks_of_service: BTreeMap::new(),
            recent_failures: BTreeMap::new(),
        }
    }

    /// Counts a task that is on the node, or was.
    fn count(&mut self, task: &'a Task, now: Timestamp) {
        let state = task.status.state;
        if matches!(state, TaskState::Failed | TaskState::Rejected)
            && now.since(task.status.since) <= FAILURE_WINDOW
        {
            let template = (&task.service_id, task.template_version);
            *self.recent_failures.entry(template).or_default() += 1;
        }
        if !state.is_terminal() {
            self.reserve(task);
            let stays = task.desired_state == DesiredState::Running;
            for port in host_ports(self.state, task) {
                self.host_ports.insert((port, &task.service_id, stays));
            }
            if task.desired_state == DesiredState::Running {
                self.tasks += 1;
                *self.tasks_of_service.entry(&task.service_id).or_default() += 1;
            }
        }
    }

    /// A host-mode port of `task` that the node has no more. A task of the same service that is
    /// leaving is no hindrance: its connections run on, new ones go to the new task.
    fn host_port_in_use(&self, task: &Task) -> Option<HostPort> {
        let mut wanted = host_ports(self.state, task);
        wanted.find(|wanted| {
            let mut used = self.host_ports.iter();
            used.any(|(port, service, stays)| {
                port == wanted && (*stays || **service != task.service_id)
            })
        })
    }

    fn reserve(&mut self, task: &Task) {
        let Resources {
            reserve_nano_cpus,
            reserve_memory_bytes,
            ..
        } = task.spec.resources;
        self.reserved_nano_cpus = self.reserved_nano_cpus.saturating_add(reserve_nano_cpus);
        self.reserved_memory_bytes = self
            .reserved_memory_bytes
            .saturating_add(reserve_memory_bytes);
    }

    /// Lower is better.
    fn rank(&self, task: &Task) -> (usize, usize, usize, &'a NodeId) {
        let template = (&task.service_id, task.template_version);
        let failures = self.recent_failures.get(&template).copied().unwrap_or(0);
        let of_service = self.tasks_of_service.get(&task.service_id);
        (
            if failures >= FAILURES_MAX {
                failures
            } else {
                0
            },
            of_service.copied().unwrap_or(0),
            self.tasks,
            &self.node.id,
        )
    }
}

/// Gives a node to every pending task whose time has come, oldest first.
pub(crate) fn pass(state: &State, batch: &mut Batch) {
    let now = batch.now();
    let mut waiting: Vec<&Arc<Task>> = state
        .tasks()
        .filter(|task| {
            task.status.state == TaskState::Pending
                && task.desired_state == DesiredState::Running
                && task.node_id.is_none()
        })
        .collect();
    waiting.retain(|task| {
        let due = task.not_before <= now;
        if !due {
            batch.wake_at(task.not_before);
        }
        due
    });
    if waiting.is_empty() {
        return;
    }
    waiting.sort_by_key(|task| (task.meta.created_at, task.slot, &task.id));

    let mut candidates = candidates(state, now);
    let mut constraints = BTreeMap::<Template<'_>, Vec<Rule<'_>>>::new();
    for task in waiting {
        if batch.is_full() {
            return;
        }
        let template = (&task.service_id, task.template_version);
        let constraints = constraints
            .entry(template)
            .or_insert_with(|| read_constraints(task));
        let mut refusals = Refusals::default();
        let mut best: Option<&mut Candidate<'_>> = None;
        for candidate in candidates.values_mut() {
            if let Some(refusal) = refusal(candidate, task, constraints) {
                refusals.add(refusal);
            } else if best
                .as_ref()
                .is_none_or(|best| candidate.rank(task) < best.rank(task))
            {
                best = Some(candidate);
            }
        }
        match best {
            Some(candidate) => {
                candidate.count(task, now);
                batch.put_task(assigned(task, candidate.node, now));
            }
            None => {
                if let Some(task) = unplaced(task, &refusals) {
                    batch.put_task(task);
                }
            }
        }
    }
}

fn candidates(state: &State, now: Timestamp) -> BTreeMap<&NodeId, Candidate<'_>> {
    let mut candidates: BTreeMap<_, _> = state
        .nodes()
        .map(|node| (&node.id, Candidate::new(state, node)))
        .collect();
    for task in state.tasks() {
        let node = task.node_id.as_ref();
        if let Some(candidate) = node.and_then(|id| candidates.get_mut(id)) {
            candidate.count(task, now);
        }
    }
    candidates
}

/// The ports of the nodes that `task` takes for itself.
fn host_ports(state: &State, task: &Task) -> impl Iterator<Item = HostPort> {
    let service = state.service(&task.service_id);
    let ports = service.map(|service| service.endpoint.ports.as_slice());
    let ports = ports.unwrap_or_default().iter();
    ports
        .filter(|port| port.mode == PublishMode::Host)
        .map(|port| (port.protocol, port.published))
}

fn read_constraints(task: &Task) -> Vec<Rule<'_>> {
    let texts = &task.spec.placement.constraints;
    texts
        .iter()
        .map(|text| Rule {
            text,
            constraint: Constraint::parse(text).ok(),
        })
        .collect()
}

fn assigned(task: &Task, node: &Node, now: Timestamp) -> Task {
    let mut task = task.clone();
    task.node_id = Some(node.id.clone());
    // Waited for already, by this clock; the node's may be behind.
    task.not_before = Timestamp::default();
    task.status.state = TaskState::Assigned;
    task.status.since = now;
    task.status.message = "assigned to a node".to_owned();
    task.status.error.clear();
    task
}

/// `task` with the reason why it has to wait; none when that is told already.
fn unplaced(task: &Task, refusals: &Refusals) -> Option<Task> {
    let error = refusals.to_string();
    if task.status.error == error {
        return None;
    }
    let mut task = task.clone();
    task.status.message = "waiting for a suitable node".to_owned();
    task.status.error = error;
    Some(task)
}
