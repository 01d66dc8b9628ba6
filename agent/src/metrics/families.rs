//! What is told, under which names. Pure.

use std::collections::BTreeMap;

use super::text::{Family, Kind, Label};
use crate::network::Drops;
use crate::node::{Told, ToldTask};

/// What this node can tell, as families; of a host in no swarm that it is in none.
pub(super) fn families(told: &Told) -> Vec<Family> {
    let flag = |value: bool| vec![(Vec::new(), u64::from(value))];
    let mut families = vec![
        Family {
            name: "swarm_member",
            help: "Whether this host is in a swarm.",
            kind: Kind::Gauge,
            samples: flag(told.member),
        },
        Family {
            name: "swarm_session_connected",
            help: "Whether the session with a manager is open.",
            kind: Kind::Gauge,
            samples: flag(told.connected),
        },
        Family {
            name: "swarm_node_problems",
            help: "Problems of this node, as swarmctl service ps shows them.",
            kind: Kind::Gauge,
            samples: vec![(Vec::new(), told.problems as u64)],
        },
    ];
    families.push(Family {
        name: "swarm_selftest_failing_ports",
        help: "Published ports that do not answer at this node, by its test of itself.",
        kind: Kind::Gauge,
        samples: vec![(Vec::new(), told.failing_ports as u64)],
    });
    let results = ["answered", "unanswered"].into_iter().zip(told.probes);
    families.push(Family {
        name: "swarm_selftest_probes_total",
        help: "Questions of this node to its own published ports.",
        kind: Kind::Counter,
        samples: results
            .map(|(result, count)| (vec![("result", result.to_owned())], count))
            .collect(),
    });
    let services = |name, help, value: fn(&crate::network::ServiceTally) -> u64| Family {
        name,
        help,
        kind: Kind::Counter,
        samples: told
            .services
            .iter()
            .map(|service| {
                (
                    vec![("service", service.name.clone())],
                    value(&service.tally),
                )
            })
            .collect(),
    };
    families.extend([
        services(
            "swarm_service_packets_total",
            "Packets from clients taken in at this node for published ports.",
            |tally| tally.packets,
        ),
        services(
            "swarm_service_bytes_total",
            "Bytes from clients taken in at this node for published ports.",
            |tally| tally.bytes,
        ),
        services(
            "swarm_service_connections_total",
            "Connections to published ports that this node has balanced.",
            |tally| tally.connections,
        ),
    ]);
    families.push(Family {
        name: "swarm_service_dropped_packets_total",
        help: "Packets from clients dropped or refused at this node, by why.",
        kind: Kind::Counter,
        samples: told
            .services
            .iter()
            .flat_map(|service| {
                let labels = vec![("service", service.name.clone())];
                dropped(&service.tally.drops, labels)
            })
            .collect(),
    });
    families.extend(of_tasks(told));
    let events: BTreeMap<_, _> = told.events.iter().collect();
    families.push(Family {
        name: "swarm_mesh_events_total",
        help: "What the mesh's programs on this node have counted, drops among them, by kind.",
        kind: Kind::Counter,
        samples: events
            .into_iter()
            .map(|(event, count)| (vec![("event", (*event).to_owned())], *count))
            .collect(),
    });
    families
}

/// A sample for each reason.
fn dropped(drops: &Drops, labels: Vec<Label>) -> impl Iterator<Item = (Vec<Label>, u64)> {
    drops.iter().map(move |(reason, packets)| {
        let reason = ("reason", (*reason).to_owned());
        (labels.iter().cloned().chain([reason]).collect(), *packets)
    })
}

fn labels(task: &ToldTask) -> Vec<Label> {
    vec![
        ("service", task.service.clone()),
        ("task", task.name.clone()),
        ("task_id", task.id.to_string()),
    ]
}

fn of_tasks(told: &Told) -> Vec<Family> {
    let tasks = |name, help, kind, value: fn(&crate::network::TaskTally) -> Option<u64>| Family {
        name,
        help,
        kind,
        samples: told
            .tasks
            .iter()
            .filter_map(|task| Some((labels(task), value(&task.tally)?)))
            .collect(),
    };
    vec![
        tasks(
            "swarm_task_connections_total",
            "Connections to published ports that this node has balanced to the task.",
            Kind::Counter,
            |tally| Some(tally.connections),
        ),
        tasks(
            "swarm_task_active_connections",
            "Those of them that are established now.",
            Kind::Gauge,
            |tally| Some(tally.active),
        ),
        tasks(
            "swarm_task_receive_packets_total",
            "Packets to a task of this node on the ingress network.",
            Kind::Counter,
            |tally| Some(tally.traffic?.in_packets),
        ),
        tasks(
            "swarm_task_receive_bytes_total",
            "Bytes to a task of this node on the ingress network.",
            Kind::Counter,
            |tally| Some(tally.traffic?.in_bytes),
        ),
        tasks(
            "swarm_task_transmit_packets_total",
            "Packets from a task of this node on the ingress network.",
            Kind::Counter,
            |tally| Some(tally.traffic?.out_packets),
        ),
        tasks(
            "swarm_task_transmit_bytes_total",
            "Bytes from a task of this node on the ingress network.",
            Kind::Counter,
            |tally| Some(tally.traffic?.out_bytes),
        ),
        Family {
            name: "swarm_task_dropped_packets_total",
            help: "Packets to and from a task of this node dropped on the ingress network, by why.",
            kind: Kind::Counter,
            samples: told
                .tasks
                .iter()
                .flat_map(|task| dropped(&task.tally.drops, labels(task)))
                .collect(),
        },
    ]
}
