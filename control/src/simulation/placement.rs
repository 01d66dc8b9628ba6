//! The scheduler alone, for what it costs.

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng as _;
use swarm_model::{
    Availability, DesiredState, Meta, Node, NodeDescription, NodeId, NodeSpec, NodeState,
    NodeStatus, Placement as Constraints, Platform, Role, ServiceId, Task, TaskId, TaskSpec,
    TaskState, TaskStatus, Timestamp,
};

use crate::orchestrate::Batch;
use crate::schedule;
use crate::store::{Change, State};

/// Zones that nodes are labelled with, in turn.
const ZONES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Services that the waiting tasks are of, in turn. Each may run in one zone.
const SERVICES: usize = 10;

/// A state in which tasks wait for a node.
#[derive(Debug)]
pub struct Placement {
    state: State,
    waiting: usize,
}

impl Placement {
    /// A swarm of `nodes` nodes, each with one task, and `waiting` tasks of several services without
    /// a node. Every task has constraints, on a label and on the platform, that a fifth of the nodes
    /// satisfy. The same every time.
    #[must_use]
    pub fn new(nodes: usize, waiting: usize) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(1);
        let services: Vec<_> = (0..=SERVICES)
            .map(|_| ServiceId::random(&mut rng))
            .collect();
        let mut changes = Vec::<Change>::new();
        for number in 0..nodes {
            let node = node(NodeId::random(&mut rng), number);
            let mut resident = task(TaskId::random(&mut rng), &services[SERVICES], 0, number);
            resident.node_id = Some(node.id.clone());
            resident.status.state = TaskState::Running;
            changes.extend([node.into(), resident.into()]);
        }
        changes.extend((0..waiting).map(|number| {
            let service = number % SERVICES;
            task(
                TaskId::random(&mut rng),
                &services[service],
                service,
                number,
            )
            .into()
        }));
        let mut state = State::default();
        state.apply(1, changes);
        Self { state, waiting }
    }

    /// One pass of the scheduler over all of them; gives how many tasks got a node. Changes nothing:
    /// the next pass does the same.
    #[must_use]
    pub fn pass(&self) -> usize {
        let mut batch = Batch::new(Timestamp(1000), self.waiting);
        schedule::pass(&self.state, &mut batch);
        let (changes, _) = batch.into_parts();
        let is_placed = |change: &&Change| match change {
            Change::Put(crate::store::Object::Task(task)) => task.node_id.is_some(),
            _ => false,
        };
        changes.iter().filter(is_placed).count()
    }
}

fn node(id: NodeId, number: usize) -> Node {
    let zone = ("zone".to_owned(), ZONES[number % ZONES.len()].to_owned());
    Node {
        id,
        meta: Meta::default(),
        spec: NodeSpec {
            labels: [zone].into(),
            availability: Availability::Active,
        },
        role: Role::Worker,
        description: NodeDescription {
            hostname: format!("h{number}"),
            platform: Platform {
                os: "linux".to_owned(),
                architecture: "x86_64".to_owned(),
            },
            nano_cpus: 64_000_000_000,
            memory_bytes: 256 << 30,
            ..NodeDescription::default()
        },
        status: NodeStatus {
            state: NodeState::Ready,
            ..NodeStatus::default()
        },
        manager: None,
        ingress_address: None,
    }
}

fn task(id: TaskId, service: &ServiceId, zone: usize, slot: usize) -> Task {
    let constraints = vec![
        format!("node.labels.zone == {}", ZONES[zone % ZONES.len()]),
        "node.platform.os == linux".to_owned(),
    ];
    Task {
        id,
        meta: Meta::default(),
        service_id: service.clone(),
        service_name: "web".to_owned(),
        slot: slot as u64,
        node_id: None,
        spec: TaskSpec {
            placement: Constraints { constraints },
            ..TaskSpec::default()
        },
        template_version: 1,
        desired_state: DesiredState::Running,
        desired_since: Timestamp::default(),
        not_before: Timestamp::default(),
        status: TaskStatus {
            state: TaskState::Pending,
            ..TaskStatus::default()
        },
        ingress_address: None,
        attachments: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_waiting_task_gets_a_node() {
        let placement = Placement::new(50, 300);
        assert_eq!(placement.pass(), 300);
        assert_eq!(placement.pass(), 300);
    }
}
