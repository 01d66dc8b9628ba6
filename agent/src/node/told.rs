//! What a node tells of itself in numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_api::v1;
use swarm_model::{ServiceId, TaskId};

use crate::network::{NetworkError, NodeStats, Reconciler, ServiceTally, TaskTally};
use crate::selftest::Found;
use crate::session::Assigned;

/// How a member stands, and what names the things that are counted.
pub(super) struct Standing {
    /// Whether the session with a manager is open.
    pub(super) connected: bool,
    /// How many problems the node has.
    pub(super) problems: usize,
    /// What it was told.
    pub(super) assigned: Arc<Assigned>,
    /// Who reads the counters.
    pub(super) network: Arc<Reconciler>,
    /// What its test of itself has found.
    pub(super) found: Found,
}

/// What a node tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Whether the host is in a swarm.
    pub(crate) member: bool,
    /// Whether its session with a manager is open.
    pub(crate) connected: bool,
    /// How many problems it has.
    pub(crate) problems: usize,
    /// Services with a published port or a task here, by name.
    pub(crate) services: Vec<ToldService>,
    /// Their tasks, by service and then by name.
    pub(crate) tasks: Vec<ToldTask>,
    /// What the mesh's programs have counted, by event.
    pub(crate) events: BTreeMap<&'static str, u64>,
    /// Published ports that do not answer here, by the node's test of itself.
    pub(crate) failing_ports: usize,
    /// That test's questions: answered, and not.
    pub(crate) probes: [u64; 2],
}

/// What was counted of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToldService {
    /// Its id.
    pub(crate) id: ServiceId,
    /// Its name.
    pub(crate) name: String,
    /// The numbers.
    pub(crate) tally: ServiceTally,
}

/// What was counted of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToldTask {
    /// Its id.
    pub(crate) id: TaskId,
    /// `service.slot`; of a task of another node, whose slot is not known here, the service and the
    /// beginning of its id.
    pub(crate) name: String,
    /// Its service's id.
    pub(crate) service_id: ServiceId,
    /// Its service's name.
    pub(crate) service: String,
    /// The numbers.
    pub(crate) tally: TaskTally,
}

impl Standing {
    /// All of it. The counters are missing when nobody has told this node of its networks yet.
    pub(super) async fn told(&self) -> Result<Told, NetworkError> {
        let stats = match self.network.stats().await {
            Err(NetworkError::NothingDesired) => Arc::default(),
            stats => stats?,
        };
        let mut told = named(&self.assigned, &stats);
        told.connected = self.connected;
        told.problems = self.problems;
        told.failing_ports = self.found.failing.len();
        told.probes = [self.found.answered, self.found.unanswered];
        Ok(told)
    }
}

/// The numbers with the names of what they are of. What has no name here any more is left out.
fn named(assigned: &Assigned, stats: &NodeStats) -> Told {
    let mut services = BTreeMap::new();
    for (id, service) in assigned.services.iter() {
        let tally = stats.services.get(id).cloned().unwrap_or_default();
        services.insert(id, (service.name.clone(), tally));
    }
    for task in assigned.tasks.values() {
        let name = || (task.service_name.clone(), ServiceTally::default());
        services.entry(&task.service_id).or_insert_with(name);
    }
    let mut tasks = Vec::new();
    for (id, tally) in &stats.tasks {
        let here = assigned.tasks.get(id);
        let there = || Some(&assigned.endpoints.get(id)?.service_id);
        let Some(service_id) = here.map(|task| &task.service_id).or_else(there) else {
            continue;
        };
        let Some((service, _)) = services.get(service_id) else {
            continue;
        };
        tasks.push(ToldTask {
            id: id.clone(),
            name: match here {
                Some(task) => task.name(),
                None => format!("{service}.{}", id.short()),
            },
            service_id: service_id.clone(),
            service: service.clone(),
            tally: tally.clone(),
        });
    }
    let mut services: Vec<_> = services
        .into_iter()
        .map(|(id, (name, tally))| ToldService {
            id: id.clone(),
            name,
            tally,
        })
        .collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    tasks.sort_by(|a, b| (&a.service, &a.name).cmp(&(&b.service, &b.name)));
    Told {
        member: true,
        connected: false,
        problems: 0,
        services,
        tasks,
        events: stats.events.clone(),
        failing_ports: 0,
        probes: [0; 2],
    }
}

impl From<Told> for v1::GetStatsResponse {
    fn from(told: Told) -> Self {
        let services = told.services.into_iter().map(|service| v1::ServiceStats {
            id: service.id.to_string(),
            name: service.name,
            connections: service.tally.connections,
            packets: service.tally.packets,
            bytes: service.tally.bytes,
            drops: counts(service.tally.drops),
        });
        let tasks = told.tasks.into_iter().map(|task| v1::TaskStats {
            id: task.id.to_string(),
            name: task.name,
            service_id: task.service_id.to_string(),
            connections: task.tally.connections,
            active: task.tally.active,
            traffic: task.tally.traffic.map(|traffic| v1::TaskTraffic {
                in_packets: traffic.in_packets,
                in_bytes: traffic.in_bytes,
                out_packets: traffic.out_packets,
                out_bytes: traffic.out_bytes,
            }),
            drops: counts(task.tally.drops),
        });
        Self {
            services: services.collect(),
            tasks: tasks.collect(),
            events: counts(told.events),
        }
    }
}

fn counts(counts: BTreeMap<&'static str, u64>) -> Vec<v1::EventCount> {
    let counts = counts.into_iter();
    counts
        .map(|(name, count)| v1::EventCount {
            name: name.to_owned(),
            count,
        })
        .collect()
}
