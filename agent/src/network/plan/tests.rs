//! The planner against a model of the kernel.

mod check;
mod convergence;
mod damage;
mod egress;
mod increment;
mod ingress;
mod overlay;
mod publish;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv6Net};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use swarm_ipvs::ServiceKey;
use swarm_model::{NetworkId, NodeId, PortConfig, Protocol, Scheduler, ServiceId, TaskId};

use super::super::desired::{
    Attachment, Backend, BackendState, Desired, IngressNetwork, LocalNode, LocalTask, Overlay,
    Peer, Service, Task,
};
use super::super::listeners::Listener;
use super::super::model::{
    Device, FirewallState, IpvsTable, Link, LinkKind, Mac, MeshMaps, Namespace, Observed, Obstacle,
    Place, Program, Published, Route, SocketPrograms, Tables,
};
use super::super::op::Op;
use super::{Plan, plan, teardown};
use crate::network::wanted::{Problem, wanted};

fn id<T: std::str::FromStr>(kind: char, number: u8) -> T {
    // What differs is at the front: names of links are made of that.
    let text = format!("{kind}{number:03}{:021}", 0);
    text.parse().unwrap_or_else(|_| panic!("{text} is an id"))
}

fn ip(a: u8, b: u8) -> IpAddr {
    Ipv4Addr::new(10, 255, a, b).into()
}

fn link(mtu: u32, up: bool) -> Link {
    Link {
        kind: LinkKind::Other,
        mac: None,
        mtu: Some(mtu),
        up,
        master: None,
        port: None,
    }
}

/// A host with an uplink, a link of somebody else's and one that is down.
fn host() -> Observed {
    let mut namespace = Namespace::default();
    for (name, up) in [
        ("lo", true),
        ("eth0", true),
        ("docker0", true),
        ("eth1", false),
    ] {
        namespace.links.insert(name.to_owned(), link(1500, up));
    }
    for (name, address) in [
        ("eth0", "192.168.1.1/24"),
        ("docker0", "172.17.0.1/16"),
        ("eth1", "192.168.2.1/24"),
        ("eth0", "2001:db8::1/64"),
    ] {
        namespace
            .addresses
            .insert((name.to_owned(), address.parse().unwrap()));
        let forwarding = format!("ipv4/conf/{name}/forwarding");
        namespace.sysctls.insert(forwarding, Some("0".to_owned()));
    }
    for key in [
        "ipv4/ip_forward",
        "ipv6/conf/all/forwarding",
        "ipv6/conf/default/forwarding",
    ] {
        let value = Some("0".to_owned());
        namespace.sysctls.insert(key.to_owned(), value);
    }
    Observed {
        namespaces: BTreeMap::from([(Place::Host, namespace)]),
        ipvs: Ok(IpvsTable::new()),
        ipvs_timeouts: None,
        mesh: Ok(MeshMaps::default()),
        default_uplink: Some("eth0".to_owned()),
        listeners: BTreeSet::new(),
        firewall: Ok(FirewallState::default()),
        ipv6: true,
        tables: Tables::ALL,
    }
}

/// The same on a network that has IPv6.
fn over_ipv6(mut desired: Desired) -> Desired {
    desired.network.subnet6 = Some("fd00:a::/64".parse().unwrap());
    for task in desired.local_tasks.values_mut() {
        for attachment in &mut task.attachments {
            attachment.overlay.subnet6 = Some(subnet6_of(&attachment.overlay));
        }
    }
    desired
}

/// The IPv6 addresses of a user's network.
fn subnet6_of(overlay: &Overlay) -> Ipv6Net {
    format!("fd00:{:x}::/64", overlay.vni).parse().unwrap()
}

fn over(ipv6: bool, desired: Desired) -> Desired {
    if ipv6 { over_ipv6(desired) } else { desired }
}

/// Node 1 of a swarm of `nodes`, with task `n` on node `tasks[n]` and services of the tasks given.
fn desired(nodes: u8, tasks: &[u8], services: &[(u16, Vec<usize>, bool)]) -> Desired {
    let node = |number| id::<NodeId>('n', number);
    let vtep = |number| IpAddr::from([192, 168, 1, number]);
    let address = |task: usize| ip(1, u8::try_from(task).unwrap());
    let task_id = |task: usize| id::<TaskId>('t', u8::try_from(task).unwrap());
    let on = |task: usize| tasks[task].clamp(1, nodes);
    Desired {
        local: LocalNode {
            id: node(1),
            vtep: vtep(1),
            ingress: ip(0, 1),
        },
        network: IngressNetwork {
            vni: 4096,
            subnet: "10.255.0.0/16".parse().unwrap(),
            subnet6: None,
        },
        peers: (2..=nodes)
            .map(|number| {
                (
                    node(number),
                    Peer {
                        ingress: ip(0, number),
                        vtep: vtep(number),
                    },
                )
            })
            .collect(),
        tasks: (0..tasks.len())
            .map(|task| {
                (
                    task_id(task),
                    Task {
                        address: address(task),
                        node: node(on(task)),
                    },
                )
            })
            .collect(),
        members: BTreeMap::new(),
        local_tasks: (0..tasks.len())
            .filter(|task| on(*task) == 1)
            .map(|task| {
                let local = LocalTask {
                    address: address(task),
                    egress: task % 3 != 2,
                    attachments: Vec::new(),
                };
                (task_id(task), local)
            })
            .collect(),
        task_sockets: BTreeMap::new(),
        virtual_services: BTreeMap::new(),
        services: services
            .iter()
            .enumerate()
            .map(|(index, (published, members, draining))| {
                let state = if *draining {
                    BackendState::Draining
                } else {
                    BackendState::Ready
                };
                let service = Service {
                    index: u32::try_from(index).unwrap() + 1,
                    ports: vec![PortConfig {
                        published: *published,
                        target: 80,
                        ..PortConfig::default()
                    }],
                    backends: members
                        .iter()
                        .map(|task| Backend {
                            address: address(*task),
                            local: on(*task) == 1,
                            state,
                        })
                        .collect(),
                };
                (id::<ServiceId>('s', u8::try_from(index).unwrap()), service)
            })
            .collect(),
    }
}

/// The same with every task on the networks whose bits are set for it.
fn on_networks(mut desired: Desired, networks: &[u8]) -> Desired {
    for (number, bits) in (0..).zip(networks) {
        let task = id::<TaskId>('t', number);
        let Some(node) = desired.tasks.get(&task).map(|task| task.node.clone()) else {
            continue;
        };
        let of_task = (0..3).filter(|network| bits & (1 << network) != 0);
        for (interface, network) in (1..).zip(of_task) {
            let address = IpAddr::from([10, 0, network, 10 + number]);
            let key = id::<NetworkId>('k', network);
            let node = node.clone();
            let members = desired.members.entry(key.clone()).or_default();
            members.insert(task.clone(), Task { address, node });
            if let Some(local) = desired.local_tasks.get_mut(&task) {
                local.attachments.push(Attachment {
                    interface,
                    network: key,
                    overlay: Overlay {
                        vni: 4097 + u32::from(network),
                        subnet: IpNet::new(IpAddr::from([10, 0, network, 0]), 24).unwrap(),
                        subnet6: None,
                        gateway: IpAddr::from([10, 0, network, 1]),
                        mtu: [None, Some(1300), Some(9000)][usize::from(network)],
                    },
                    address,
                });
            }
        }
    }
    desired
}

/// Applies a plan and returns it.
fn settle(observed: &mut Observed, desired: &Desired) -> Vec<Op> {
    let ops = plan(observed, desired).ops;
    ops.iter().for_each(|op| observed.apply(op));
    ops
}

fn texts(ops: &[Op]) -> Vec<String> {
    ops.iter().map(Op::to_string).collect()
}

/// Those that are about neither sockets nor isolation.
fn mesh_texts(ops: &[Op]) -> Vec<String> {
    let of_mesh = |op: &&Op| !matches!(op, Op::SetSockets(_) | Op::SetIsolation(_));
    ops.iter().filter(of_mesh).map(Op::to_string).collect()
}

/// `desired` with its ports balanced by Maglev, and restricted to these sources.
fn by_maglev(mut desired: Desired, sources: &[&str]) -> Desired {
    for service in desired.services.values_mut() {
        for port in &mut service.ports {
            port.scheduler = Scheduler::Mh;
            port.sources = sources.iter().map(|net| net.parse().unwrap()).collect();
        }
    }
    desired
}
