//! Whose the counts are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use swarm_ipvs::{
    Destination, DestinationConfig, DestinationEntry, DestinationKey, Name, Service as IpvsService,
    ServiceEntry, ServiceKey, Stats,
};
use swarm_model::{PortConfig, Protocol, ServiceId, TaskId};

use super::{Counted, Drops, NodeStats, ServiceTally, TaskTally, Traffic, node_stats};
use crate::ebpf::{Counter, ServiceStats};
use crate::network::desired::{Desired, IngressNetwork, LocalNode, LocalTask, Service, Task};
use crate::network::model::{Published, PublishedAs};

fn id<T: std::str::FromStr>(kind: char, number: u8) -> T {
    let text = format!("{kind}{number:03}{:021}", 0);
    text.parse().unwrap_or_else(|_| panic!("{text} is an id"))
}

fn address(number: u8) -> IpAddr {
    [10, 255, 1, number].into()
}

/// Services 1 and 2 on ports 8081 and 8082, with task 1 here and task 2 there, both of service 1.
fn desired() -> Desired {
    let service = |index: u32| Service {
        index,
        ports: vec![PortConfig {
            published: 8080 + u16::try_from(index).unwrap(),
            target: 80,
            ..PortConfig::default()
        }],
        backends: Vec::new(),
    };
    let task = |number| Task {
        address: address(number),
        node: id('n', number),
    };
    let local = LocalTask {
        address: address(1),
        egress: true,
        attachments: Vec::new(),
    };
    Desired {
        local: LocalNode {
            id: id('n', 1),
            vtep: [192, 0, 2, 1].into(),
            ingress: [10, 255, 0, 1].into(),
        },
        network: IngressNetwork {
            vni: 4096,
            subnet: "10.255.0.0/16".parse().unwrap(),
            subnet6: Some("fd00:a::/64".parse().unwrap()),
        },
        peers: BTreeMap::new(),
        members: BTreeMap::new(),
        tasks: [1, 2].map(|number| (id('t', number), task(number))).into(),
        local_tasks: [(id('t', 1), local)].into(),
        services: [(id('s', 1), service(1)), (id('s', 2), service(2))].into(),
        task_sockets: BTreeMap::new(),
        virtual_services: BTreeMap::new(),
    }
}

fn balanced(
    at: IpAddr,
    port: u16,
    connections: u64,
    tasks: &[(IpAddr, u64)],
) -> (ServiceEntry, Vec<DestinationEntry>) {
    let key = ServiceKey::Address {
        protocol: swarm_ipvs::Protocol::TCP,
        address: at,
        port,
    };
    let stats = |connections| Stats {
        connections,
        // Not told: most packets take the shortcut.
        in_packets: 1,
        ..Stats::default()
    };
    let service = ServiceEntry {
        service: IpvsService::new(key, Name::RR),
        stats: stats(connections),
    };
    let destinations = tasks.iter().map(|(address, connections)| DestinationEntry {
        destination: Destination {
            key: DestinationKey {
                address: *address,
                port: 80,
            },
            config: DestinationConfig::default(),
        },
        active_connections: 1,
        inactive_connections: 5,
        persistent_connections: 0,
        stats: stats(*connections),
    });
    (service, destinations.collect())
}

fn published(at: IpAddr, service: u32) -> (Published, PublishedAs) {
    let port = Published {
        address: at,
        port: 8080 + u16::try_from(service).unwrap(),
        protocol: Protocol::Tcp,
    };
    let published = PublishedAs {
        service,
        restricted: false,
        answered: true,
    };
    (port, published)
}

#[test]
fn counts_of_all_addresses_and_versions_are_one_services_and_one_tasks() {
    let (v4, v6): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), "2001:db8::1".parse().unwrap());
    let twin: IpAddr = "fd00:a::aff:101".parse().unwrap();
    let counted = Counted {
        published: [published(v4, 1), published(v6, 1), published(v4, 2)].into(),
        services: [(1, of(10)), (7, of(99))].into(),
        drops: [
            ((Counter::SourceRefused, 1), 2),
            // The same number, of a port.
            ((Counter::Spoofed, 1), 9),
            ((Counter::Isolated, 31), 3),
            // Of a service, a port and a task that are gone.
            ((Counter::NoTask, 7), 5),
            ((Counter::Isolated, 33), 6),
            ((Counter::Isolated, 39), 7),
        ]
        .into(),
        task_ports: [(31, address(1)), (39, address(9))].into(),
        events: [(Counter::SourceRefused, 2)].into(),
        balanced: vec![
            balanced(v4, 8081, 30, &[(address(1), 20), (address(2), 10)]),
            balanced(v6, 8081, 4, &[(twin, 4)]),
            // Nobody's: left from before.
            balanced(v4, 9999, 1000, &[(address(9), 1000)]),
        ],
        traffic: [(id('t', 1), traffic()), (id('t', 9), traffic())].into(),
    };
    let task = |connections, active, traffic, drops| TaskTally {
        connections,
        active,
        traffic,
        drops,
    };
    let of_service = |source_refused| [("no_task", 0), ("source_refused", source_refused)].into();
    let of_task = [
        ("isolated", 3),
        ("return_failed", 0),
        ("spoofed", 0),
        ("translation_failed", 0),
    ];
    let expected = NodeStats {
        services: [
            (
                id::<ServiceId>('s', 1),
                ServiceTally {
                    packets: 10,
                    bytes: 1000,
                    connections: 34,
                    drops: of_service(2),
                },
            ),
            (
                id('s', 2),
                ServiceTally {
                    drops: of_service(0),
                    ..ServiceTally::default()
                },
            ),
        ]
        .into(),
        tasks: [
            (
                id::<TaskId>('t', 1),
                task(24, 2, Some(traffic()), of_task.into()),
            ),
            (id('t', 2), task(10, 1, None, Drops::new())),
        ]
        .into(),
        events: [("source_refused", 2)].into(),
    };
    assert_eq!(node_stats(&desired(), &counted), expected);
}

fn of(packets: u64) -> ServiceStats {
    ServiceStats {
        packets,
        bytes: packets * 100,
    }
}

fn traffic() -> Traffic {
    Traffic {
        in_packets: 1,
        in_bytes: 2,
        out_packets: 3,
        out_bytes: 4,
    }
}
