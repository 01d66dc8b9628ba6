//! Objects and random changes for tests.

use proptest::collection::vec;
use proptest::prelude::*;
use swarm_api::v1;
use swarm_model::{
    Cluster, Network, NetworkAttachmentSpec, NetworkId, Node, NodeId, Service, ServiceId, Task,
    TaskId, Vip,
};

use super::{Change, Object};

/// The id that ends in `number`.
fn id(number: u8) -> String {
    format!("{number:0>25}")
}

pub(crate) fn node_id(number: u8) -> NodeId {
    id(number).try_into().unwrap()
}

pub(crate) fn service_id(number: u8) -> ServiceId {
    id(number).try_into().unwrap()
}

pub(crate) fn task_id(number: u8) -> TaskId {
    id(number).try_into().unwrap()
}

pub(crate) fn cluster(number: u8) -> Cluster {
    let message = v1::Cluster {
        id: id(number),
        ..v1::Cluster::default()
    };
    message.try_into().unwrap()
}

pub(crate) fn node(number: u8) -> Node {
    let message = v1::Node {
        id: id(number),
        ..v1::Node::default()
    };
    message.try_into().unwrap()
}

pub(crate) fn service(number: u8, name: &str) -> Service {
    let message = v1::Service {
        id: id(number),
        spec: Some(v1::ServiceSpec {
            name: name.to_owned(),
            ..v1::ServiceSpec::default()
        }),
        ..v1::Service::default()
    };
    message.try_into().unwrap()
}

/// On `networks` as well.
fn attached(mut service: Service, mut task: Task, networks: &[u8]) -> (Service, Task) {
    let specs: Vec<_> = (networks.iter())
        .map(|&number| NetworkAttachmentSpec {
            target: id(number),
            aliases: Vec::new(),
        })
        .collect();
    service.spec.task.networks.clone_from(&specs);
    service.endpoint.vips = (networks.iter().take(1))
        .map(|&number| Vip {
            network: network_id(number + 1),
            address: [10, 0, 0, number].into(),
        })
        .collect();
    task.spec.networks = specs;
    (service, task)
}

pub(crate) fn network_id(number: u8) -> NetworkId {
    id(number).try_into().unwrap()
}

pub(crate) fn task(number: u8, service: u8, node: Option<u8>) -> Task {
    let message = v1::Task {
        id: id(number),
        service_id: id(service),
        node_id: node.map(id).unwrap_or_default(),
        ..v1::Task::default()
    };
    message.try_into().unwrap()
}

pub(crate) fn network(number: u8, ingress: bool) -> Network {
    let message = v1::Network {
        id: id(number),
        spec: Some(v1::NetworkSpec {
            name: format!("network-{number}"),
            ingress,
            ..v1::NetworkSpec::default()
        }),
        subnet: "10.255.0.0/16".to_owned(),
        vni: 4096,
        ..v1::Network::default()
    };
    message.try_into().unwrap()
}

/// Few enough ids that objects are replaced and removed.
fn object() -> impl Strategy<Value = Object> {
    prop_oneof![
        (0..2u8).prop_map(|number| cluster(number).into()),
        (0..4u8).prop_map(|number| node(number).into()),
        (0..4u8, 0..3u8)
            .prop_map(|(number, name)| service(number, &format!("service-{name}")).into()),
        (0..8u8, 0..3u8, prop::option::of(0..3u8))
            .prop_map(|(number, service, node)| task(number, service, node).into()),
        (0..4u8, 0..3u8, vec(0..3u8, 0..3)).prop_map(|(number, name, networks)| {
            let service = service(number, &format!("service-{name}"));
            attached(service, task(0, 0, None), &networks).0.into()
        }),
        (0..8u8, 0..3u8, vec(0..3u8, 0..3)).prop_map(|(number, service_number, networks)| {
            let task = task(number, service_number, None);
            attached(service(0, ""), task, &networks).1.into()
        }),
        (0..2u8, any::<bool>()).prop_map(|(number, ingress)| network(number, ingress).into()),
    ]
}

/// A few random changes of a few objects.
pub(crate) fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        3 => object().prop_map(Change::Put),
        1 => object().prop_map(|object| Change::Remove(object.key())),
    ];
    vec(change, 1..6)
}
