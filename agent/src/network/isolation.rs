//! Isolation on the ingress network, in the words of the model: who is behind each port of the
//! bridge, and what tasks may reach of each other. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::Ipv6Net;
use swarm_model::Protocol;

use crate::ebpf::{Protocol as EbpfProtocol, PublishedKey, TaskPort};

use super::desired::{Desired, address6};
use super::model::Mac;
use super::names::task_port;

/// What the programs at the tasks' ports know of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Isolation {
    /// The task behind a link of the ingress namespace.
    pub(super) ports: BTreeMap<String, TaskPort>,
    /// Addresses and ports of tasks, wherever they are, that a port is published of.
    pub(super) targets: BTreeSet<PublishedKey>,
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
    for service in desired.services.values() {
        for port in &service.ports {
            let protocol = match port.protocol {
                Protocol::Tcp => EbpfProtocol::Tcp,
                Protocol::Udp => EbpfProtocol::Udp,
                Protocol::Sctp => EbpfProtocol::Sctp,
            };
            for backend in &service.backends {
                let addresses = [Some(backend.address), twin(backend.address)];
                let addresses = addresses.into_iter().flatten();
                let targets =
                    addresses.map(|address| PublishedKey::new(address, port.target, protocol));
                isolation.targets.extend(targets);
            }
        }
    }
    isolation
}
