//! The records that follow from what the manager said. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use swarm_model::{EndpointMode, Network, NetworkId, ServiceId, Task};

use super::records::{Asker, Mode, Records, ServiceRecord, Subnets, Zone};
use crate::SharedMap;
use crate::session::{Assigned, Balanced, NetworkEndpoint};

impl Asker {
    /// `task`, on the networks that it is attached to.
    pub(crate) fn of(task: &Task) -> Self {
        let attachments = task.attachments.iter();
        Self {
            networks: attachments
                .map(|attachment| attachment.network.clone())
                .collect(),
        }
    }
}

impl Records {
    /// What `assigned` names. Networks that are as they were in `before`, from which `records` were
    /// made, are taken over from there.
    pub(super) fn after(records: &Self, before: &Assigned, assigned: &Assigned) -> Self {
        let mut after = Self::default();
        for (id, network) in &assigned.networks {
            if network.spec.ingress {
                after.nameless.push(subnets(network));
                continue;
            }
            let unchanged = before.networks.get(id) == Some(network)
                && before.network_services.get(id) == assigned.network_services.get(id)
                && before.network_endpoints.get(id) == assigned.network_endpoints.get(id);
            let kept = records.zones.get(id).filter(|_| unchanged).cloned();
            let zone = kept.unwrap_or_else(|| Arc::new(zone(id, network, assigned)));
            after.zones.insert(id.clone(), zone);
        }
        after
    }
}

fn subnets(network: &Network) -> Subnets {
    let v6 = network
        .subnet6
        .filter(|subnet| subnet.prefix_len() <= Network::PREFIX6_LEN_MAX);
    Subnets {
        v4: network.subnet,
        v6,
    }
}

fn zone(id: &NetworkId, network: &Network, assigned: &Assigned) -> Zone {
    let mut zone = Zone::new(&network.spec.name, subnets(network), network.spec.internal);
    let nothing = SharedMap::new();
    let mut of_service: BTreeMap<&ServiceId, Vec<&NetworkEndpoint>> = BTreeMap::new();
    for (task, endpoint) in assigned
        .network_endpoints
        .get(id)
        .unwrap_or(&nothing)
        .iter()
    {
        zone.add_task(&endpoint.task_name, task.short(), endpoint.address);
        let tasks = of_service.entry(&endpoint.service_id).or_default();
        tasks.push(endpoint);
    }
    let nothing = SharedMap::new();
    for (id, service) in assigned.network_services.get(id).unwrap_or(&nothing).iter() {
        let tasks = of_service.remove(id).unwrap_or_default();
        // An alias that an update takes away stays until the last task that was started with it.
        let aliases: BTreeSet<&String> = tasks
            .iter()
            .flat_map(|task| &task.aliases)
            .chain(&service.aliases)
            .collect();
        let aliases: Vec<String> = aliases.into_iter().cloned().collect();
        let ready: Vec<_> = tasks
            .iter()
            .filter(|task| task.balanced == Balanced::Yes)
            .map(|task| task.address)
            .collect();
        zone.add_service(&ServiceRecord {
            name: &service.name,
            aliases: &aliases,
            mode: match service.mode {
                EndpointMode::Vip => Mode::Vip(service.vip),
                EndpointMode::Dnsrr => Mode::Tasks,
            },
            ready: &ready,
        });
    }
    zone
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use swarm_model::{Meta, NetworkSpec, NodeId, TaskId, Vni};

    use super::*;
    use crate::session::NetworkService;

    fn network(name: &str, subnet: &str) -> Network {
        Network {
            id: NetworkId::random(&mut rand::rng()),
            meta: Meta::default(),
            spec: NetworkSpec {
                name: name.to_owned(),
                ingress: name == "ingress",
                ..NetworkSpec::default()
            },
            subnet: subnet.parse().unwrap(),
            gateway: Ipv4Addr::new(10, 1, 0, 1),
            subnet6: None,
            vni: Vni::FIRST,
            error: String::new(),
        }
    }

    #[test]
    fn records_follow_what_is_assigned() {
        let mut rng = rand::rng();
        let mut assigned = Assigned::default();
        let back = network("back", "10.1.0.0/24");
        let id = back.id.clone();
        for network in [back, network("ingress", "10.255.0.0/16")] {
            assigned.networks.insert(network.id.clone(), network);
        }
        let address = |last| Ipv4Addr::new(10, 1, 0, last);
        let mut tasks = Vec::new();
        for (name, mode, base) in [
            ("web", EndpointMode::Vip, 10),
            ("db", EndpointMode::Dnsrr, 20),
        ] {
            let service_id = ServiceId::random(&mut rng);
            let service = NetworkService {
                name: name.to_owned(),
                aliases: vec![format!("new-{name}")],
                vip: (mode == EndpointMode::Vip).then(|| address(base)),
                mode,
            };
            let services = assigned.network_services.entry(id.clone()).or_default();
            services.insert(service_id.clone(), service);
            let states = [Balanced::NotYet, Balanced::Yes, Balanced::NoMore];
            for (slot, balanced) in (1..).zip(states) {
                let task_id = TaskId::random(&mut rng);
                let endpoint = NetworkEndpoint {
                    task_name: format!("{name}.{slot}.{task_id}"),
                    service_id: service_id.clone(),
                    service_name: name.to_owned(),
                    node_id: NodeId::random(&mut rng),
                    address: address(base + slot),
                    aliases: vec![format!("old-{name}")],
                    balanced,
                };
                let endpoints = assigned.network_endpoints.entry(id.clone()).or_default();
                endpoints.insert(task_id.clone(), endpoint);
                tasks.push((task_id, format!("{name}.{slot}"), address(base + slot)));
            }
        }
        let empty = (Records::default(), Assigned::default());
        let records = Records::after(&empty.0, &empty.1, &assigned);
        let asker = Asker {
            networks: vec![id.clone()],
        };
        let found = |name: &str| {
            records
                .find(&asker, name)
                .map(|found| found.addresses.to_vec())
        };
        for name in ["web", "new-web", "old-web", "web.back"] {
            assert_eq!(found(name), Some(vec![address(10)]), "{name}");
        }
        for name in ["db", "new-db", "old-db", "tasks.db", "tasks.old-db"] {
            assert_eq!(found(name), Some(vec![address(22)]), "{name}");
        }
        assert_eq!(found("tasks.web"), Some(vec![address(12)]));
        for (task, name, address) in tasks {
            assert_eq!(found(&format!("{name}.{task}")), Some(vec![address]));
            assert_eq!(found(task.short()), Some(vec![address]));
        }
        assert_eq!(records.nameless.len(), 1);

        // Nothing changed: nothing is built again.
        let again = Records::after(&records, &assigned, &assigned);
        assert!(Arc::ptr_eq(&again.zones[&id], &records.zones[&id]));
        let mut changed = assigned.clone();
        changed.network_endpoints.remove(&id);
        let again = Records::after(&records, &assigned, &changed);
        let found = again.find(&asker, "tasks.web");
        assert_eq!(found.map(|found| found.addresses), Some(&[][..]));
    }
}
