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

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use swarm_model::{
    Constraint, DesiredState, Node, Protocol, PublishMode, Resources, ServiceId, Task, TaskState,
    Timestamp,
};

use crate::orchestrate::Batch;
use crate::store::State;

use filter::{Refusals, Rule, is_full, refusal};

/// A node with this many failures of a service within [`FAILURE_WINDOW`] is taken last (swarmkit
/// `scheduler/nodeinfo.go`).
const FAILURES_MAX: usize = 5;
const FAILURE_WINDOW: Duration = Duration::from_secs(5 * 60);

/// A template: tasks of the same one fail for the same reasons.
type Template<'a> = (&'a ServiceId, u64);

/// A port of a node that a task is published on in mode host.
type HostPort = (Protocol, u16);

/// How good a place a node is: few recent failures, few tasks of the service, few tasks.
type Rank = (usize, usize, usize);

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

    /// Lower is better. Grows only, as more is placed on the node.
    fn rank(&self, task: &Task) -> Rank {
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
        let created = task.meta.created_at;
        let due = created.due(task.not_before.since(created), now);
        if due > now {
            batch.wake_at(due);
        }
        due <= now
    });
    if waiting.is_empty() {
        return;
    }
    waiting.sort_by_key(|task| (task.meta.created_at, task.slot, &task.id));

    let mut candidates = candidates(state, now);
    let mut queues = BTreeMap::<(Template<'_>, bool), Queue<'_>>::new();
    for task in waiting {
        if batch.is_full() {
            return;
        }
        let template = (&task.service_id, task.template_version);
        let queue = queues
            .entry((template, task.ingress_address.is_some()))
            .or_insert_with(|| Queue::new(&candidates, task));
        match queue.best(&candidates, task) {
            Some(place) => {
                let candidate = &mut candidates[place];
                candidate.count(task, now);
                batch.put_task(assigned(task, candidate.node, now));
            }
            None => {
                let error = queue
                    .error
                    .get_or_insert_with(|| refusals(&candidates, task, &queue.rules).to_string());
                if let Some(task) = unplaced(task, error) {
                    batch.put_task(task);
                }
            }
        }
    }
}

/// The nodes on which the tasks of one template may run, the best first.
///
/// All tasks of a template ask for the same, and within a pass nodes only get fuller: a node that
/// refuses one of them refuses the rest, and the rank of a node only grows. So nodes are asked once
/// for each template, not for each task, and one whose rank has grown since it was put here is put
/// back when it comes up.
struct Queue<'a> {
    rules: Vec<Rule<'a>>,
    /// Ranks with places among the candidates, which are in the order of ids.
    nodes: BinaryHeap<Reverse<(Rank, usize)>>,
    /// Why there is no node, once there is none.
    error: Option<String>,
}

impl<'a> Queue<'a> {
    fn new(candidates: &[Candidate<'a>], task: &'a Task) -> Self {
        let rules = read_constraints(task);
        let nodes = candidates.iter().enumerate();
        let nodes = nodes.filter(|(_, candidate)| refusal(candidate, task, &rules).is_none());
        let nodes = nodes.map(|(place, candidate)| Reverse((candidate.rank(task), place)));
        Self {
            nodes: nodes.collect(),
            rules,
            error: None,
        }
    }

    /// The place among `candidates` of the best node for `task`.
    fn best(&mut self, candidates: &[Candidate<'a>], task: &Task) -> Option<usize> {
        while let Some(Reverse((was, place))) = self.nodes.pop() {
            let candidate = &candidates[place];
            if is_full(candidate, task) {
                continue;
            }
            let rank = candidate.rank(task);
            self.nodes.push(Reverse((rank, place)));
            if rank == was {
                return Some(place);
            }
        }
        None
    }
}

/// Why no node takes `task`.
fn refusals(candidates: &[Candidate<'_>], task: &Task, rules: &[Rule<'_>]) -> Refusals {
    let mut refusals = Refusals::default();
    for refusal in candidates
        .iter()
        .filter_map(|candidate| refusal(candidate, task, rules))
    {
        refusals.add(refusal);
    }
    refusals
}

/// Every node with what is on it, by id.
fn candidates(state: &State, now: Timestamp) -> Vec<Candidate<'_>> {
    let candidates = state.nodes().map(|node| {
        let mut candidate = Candidate::new(state, node);
        for task in state.tasks_of_node(&node.id) {
            candidate.count(task, now);
        }
        candidate
    });
    candidates.collect()
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
fn unplaced(task: &Task, error: &str) -> Option<Task> {
    if task.status.error == error {
        return None;
    }
    let mut task = task.clone();
    task.status.message = "waiting for a suitable node".to_owned();
    error.clone_into(&mut task.status.error);
    Some(task)
}
