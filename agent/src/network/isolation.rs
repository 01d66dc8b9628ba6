//! Isolation on the ingress network, in the words of the model: who is behind each port of the
//! bridge, and what tasks may reach of each other. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::Ipv6Net;
use swarm_model::Protocol;

use crate::ebpf::{Protocol as EbpfProtocol, PublishedKey, TaskPort, target_flag};

use super::desired::{Desired, address6};
use super::model::Mac;
use super::names::task_port;

/// Addresses and ports of tasks with what is special about them; shared, as there are tens of
/// thousands.
pub(super) type Targets = Arc<BTreeMap<PublishedKey, u32>>;

/// What the programs at the tasks' ports know of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Isolation {
    /// The task behind a link of the ingress namespace.
    pub(super) ports: BTreeMap<String, TaskPort>,
    /// Addresses and ports of tasks, wherever they are, that a port is published of.
    /// With what is special about them.
    pub(super) targets: Targets,
}

/// What `desired` means for isolation, where the network's IPv6 addresses in use are of `subnet6`.
/// A target is open from before its task takes connections until the task is gone: those that run
/// on are no less wanted.
pub(super) fn wanted_isolation(desired: &Desired, subnet6: Option<Ipv6Net>) -> Isolation {
    let prefix_len = desired.network.subnet.prefix_len();
    let twin = |address| address6(subnet6?, address);
    let mut isolation = Isolation::default();
    for (task, local) in &desired.local_tasks {
        let IpAddr::V4(address) = local.address else {
            continue;
        };
        let mac = Mac::of(local.address).0;
        let ipv6 = match (twin(local.address), subnet6) {
            (Some(IpAddr::V6(address)), Some(subnet6)) => Some((address, subnet6.prefix_len())),
            _ => None,
        };
        let port = TaskPort::new(mac, (address, prefix_len), ipv6);
        isolation.ports.insert(task_port(task), port);
    }
    let mut targets: BTreeMap<PublishedKey, u32> = BTreeMap::new();
    for service in desired.services.values() {
        for port in &service.ports {
            let protocol = match port.protocol {
                Protocol::Tcp => EbpfProtocol::Tcp,
                Protocol::Udp => EbpfProtocol::Udp,
                Protocol::Sctp => EbpfProtocol::Sctp,
            };
            let snat = if port.snat { target_flag::SNAT } else { 0 };
            for backend in &service.backends {
                let addresses = [Some(backend.address), twin(backend.address)];
                let addresses = addresses.into_iter().flatten();
                for address in addresses {
                    let target = PublishedKey::new(address, port.target, protocol);
                    *targets.entry(target).or_default() |= target_flag::PUBLISHED | snat;
                }
            }
        }
    }
    isolation.targets = targets.into();
    isolation
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use swarm_model::PortConfig;

    use super::super::desired::{Backend, BackendState, IngressNetwork, LocalNode, Service};
    use super::*;
    use crate::SharedMap;

    #[test]
    fn a_target_published_with_snat_says_so() {
        let node = [10, 255, 0, 1].into();
        let (first, second) = (Ipv4Addr::new(10, 255, 1, 1), Ipv4Addr::new(10, 255, 1, 2));
        let service = |index, task: Ipv4Addr, snat| Service {
            index,
            ports: vec![PortConfig {
                published: 8080,
                target: 80,
                snat,
                ..PortConfig::default()
            }],
            backends: vec![Backend {
                address: task.into(),
                local: true,
                state: BackendState::Ready,
            }],
        };
        let id = |kind: char, number: u32| format!("{kind}{number:03}{:021}", 0);
        let desired = Desired {
            local: LocalNode {
                id: id('n', 1).parse().unwrap(),
                vtep: node,
                ingress: node,
            },
            network: IngressNetwork {
                vni: 4096,
                subnet: "10.255.0.0/16".parse().unwrap(),
                subnet6: None,
            },
            peers: BTreeMap::new(),
            members: BTreeMap::new(),
            tasks: SharedMap::new(),
            local_tasks: BTreeMap::new(),
            services: SharedMap::from([
                (id('s', 1).parse().unwrap(), service(1, first, true)),
                (id('s', 2).parse().unwrap(), service(2, second, false)),
            ]),
            task_sockets: BTreeMap::new(),
            virtual_services: BTreeMap::new(),
        };
        let subnet6: Ipv6Net = "fd00:a::/64".parse().unwrap();
        let targets = wanted_isolation(&desired, Some(subnet6)).targets;
        for (task, flags) in [
            (first, target_flag::PUBLISHED | target_flag::SNAT),
            (second, target_flag::PUBLISHED),
        ] {
            for address in [task.into(), address6(subnet6, task.into()).unwrap()] {
                let target = PublishedKey::new(address, 80, EbpfProtocol::Tcp);
                assert_eq!(targets.get(&target), Some(&flags), "{target:?}");
            }
        }
        assert_eq!(targets.len(), 4);
    }
}
