//! What sockets are to be balanced to.

use swarm_model::{NodeId, PortConfig, TaskId};

use super::super::desired::{
    Backend, BackendState, IngressNetwork, LocalNode, LocalTask, Service, TaskSockets,
    VirtualService,
};
use super::*;

fn id<T: std::str::FromStr>(kind: char, number: u8) -> T {
    let text = format!("{kind}{number:03}{:021}", 0);
    text.parse().unwrap_or_else(|_| panic!("{text} is an id"))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn backends(tasks: &[(&str, BackendState)]) -> Vec<Backend> {
    let backend = |(address, state): &(&str, BackendState)| Backend {
        address: ip(address),
        local: true,
        state: *state,
    };
    tasks.iter().map(backend).collect()
}

/// Two services that publish the same port and two with virtual addresses, one on each of two
/// networks; tasks 1 and 2 on both, 3 on the first alone, 4 on none, 5 unknown.
fn desired() -> Desired {
    let service = |target, tasks| Service {
        index: 1,
        ports: vec![PortConfig {
            published: 8080,
            target,
            ..PortConfig::default()
        }],
        backends: backends(tasks),
    };
    let ips = |addresses: &[&str]| addresses.iter().map(|address| ip(address)).collect();
    let virtual_service = |addresses, ready| VirtualService {
        addresses: ips(addresses),
        ready: ips(ready),
    };
    let first: NetworkId = id('w', 1);
    let second: NetworkId = id('w', 2);
    let sockets = |networks: &[&NetworkId], published| TaskSockets {
        networks: networks.iter().copied().cloned().collect(),
        published,
    };
    let task = id::<TaskId>;
    Desired {
        local: LocalNode {
            id: id::<NodeId>('n', 1),
            vtep: ip("192.0.2.1"),
            ingress: ip("10.255.0.1"),
        },
        network: IngressNetwork {
            vni: 4096,
            subnet: "10.255.0.0/16".parse().unwrap(),
            subnet6: None,
        },
        peers: BTreeMap::new(),
        tasks: SharedMap::new(),
        members: BTreeMap::new(),
        local_tasks: (1..=5)
            .map(|number| {
                let local = LocalTask {
                    address: ip("10.255.1.1"),
                    egress: true,
                    attachments: Vec::new(),
                };
                (task('t', number), local)
            })
            .collect(),
        services: SharedMap::from([
            (
                id('s', 1),
                service(
                    80,
                    &[
                        ("10.255.1.1", BackendState::Ready),
                        ("10.255.1.2", BackendState::Draining),
                        ("10.255.1.4", BackendState::Starting),
                    ],
                ),
            ),
            (
                id('s', 2),
                service(81, &[("10.255.1.3", BackendState::Ready)]),
            ),
        ]),
        task_sockets: BTreeMap::from([
            (task('t', 1), sockets(&[&first, &second], true)),
            (task('t', 2), sockets(&[&second, &first], true)),
            (task('t', 3), sockets(&[&first], false)),
            (task('t', 4), sockets(&[], true)),
        ]),
        virtual_services: BTreeMap::from([
            (
                first,
                SharedMap::from([(
                    id('s', 1),
                    virtual_service(
                        &["10.0.1.2", "fd00::a00:102"],
                        &["10.0.1.3", "fd00::a00:103"],
                    ),
                )]),
            ),
            (
                second,
                SharedMap::from([(id('s', 3), virtual_service(&["10.0.2.2"], &[]))]),
            ),
        ]),
    }
}

fn addresses() -> NodeAddresses {
    BTreeMap::from([(ip("192.0.2.1"), BTreeSet::from(["eth0".to_owned()]))])
}

fn wanted() -> Sockets {
    wanted_sockets(&desired(), &addresses())
}

/// Who answers at an address, and by which port.
fn answers(sockets: &Sockets, asked: &SocketService) -> Option<(Vec<IpAddr>, u16)> {
    let target = sockets.services.get(asked)?;
    let backends = sockets.slots[&target.slot].iter().copied().collect();
    Some((backends, u16::from_be(target.port_be)))
}

#[test]
fn published_ports_are_at_every_address_of_the_node_and_the_lower_id_has_them() {
    let wanted = wanted();
    let ready = vec![ip("10.255.1.1")];
    for address in ["192.0.2.1", "127.0.0.1", "::1"] {
        let asked = |protocol| SocketService::port(scope::PUBLISHED, ip(address), 8080, protocol);
        let answer = answers(&wanted, &asked(EbpfProtocol::Tcp));
        assert_eq!(answer, Some((ready.clone(), 80)), "{address}");
        assert_eq!(answers(&wanted, &asked(EbpfProtocol::Udp)), None);
    }
}

/// Where the first service's port is open with these settings.
fn open_at(change: impl FnOnce(&mut PortConfig)) -> Vec<&'static str> {
    let mut desired = desired();
    desired.services.remove(&id('s', 2));
    change(&mut desired.services.get_mut(&id('s', 1)).unwrap().ports[0]);
    let wanted = wanted_sockets(&desired, &addresses());
    let open = |address: &&str| {
        let asked = SocketService::port(scope::PUBLISHED, ip(address), 8080, EbpfProtocol::Tcp);
        wanted.services.contains_key(&asked)
    };
    ["192.0.2.1", "127.0.0.1", "::1"]
        .into_iter()
        .filter(open)
        .collect()
}

#[test]
fn a_bound_or_restricted_port_is_open_where_it_says() {
    let all = ["192.0.2.1", "127.0.0.1", "::1"];
    assert_eq!(open_at(|_| {}), all);
    let bind = |nets: &[&str]| {
        let nets = nets.iter().map(|net| net.parse().unwrap()).collect();
        open_at(|port| port.addresses = nets)
    };
    assert_eq!(bind(&["192.0.2.0/24"]), ["192.0.2.1"]);
    assert_eq!(bind(&["127.0.0.1/32"]), ["127.0.0.1"]);
    assert_eq!(
        open_at(|port| port.interfaces = vec!["eth0".to_owned()]),
        ["192.0.2.1"]
    );
    let admit = |net: &str| open_at(|port| port.sources = vec![net.parse().unwrap()]);
    assert_eq!(admit("192.0.2.0/24"), ["192.0.2.1"]);
    assert_eq!(admit("127.0.0.0/8"), ["127.0.0.1"]);
    assert!(admit("198.51.100.0/24").is_empty());
    assert!(open_at(|port| port.protocol = Protocol::Sctp).is_empty());
}

#[test]
fn virtual_addresses_are_in_the_scopes_of_the_tasks_on_their_networks() {
    let wanted = wanted();
    let scope = |number| wanted.scopes[&Place::Task(id('t', number))].networks;
    assert_eq!(scope(1), scope(2));
    assert_ne!(scope(1), scope(3));
    assert_eq!(scope(4), scope::NONE);
    assert!(!wanted.scopes.contains_key(&Place::Task(id('t', 5))));
    let at = |number, address| {
        let asked = SocketService::any_port(scope(number), ip(address));
        answers(&wanted, &asked)
    };
    assert_eq!(at(1, "10.0.1.2"), Some((vec![ip("10.0.1.3")], 0)));
    assert_eq!(at(3, "10.0.1.2"), Some((vec![ip("10.0.1.3")], 0)));
    assert_eq!(at(3, "fd00::a00:102"), Some((vec![ip("fd00::a00:103")], 0)));
    assert_eq!(at(1, "10.0.2.2"), Some((vec![], 0)));
    assert_eq!(at(3, "10.0.2.2"), None);
}

#[test]
fn only_the_host_has_published_ports_at_loopback_and_some_tasks_have_none() {
    let wanted = wanted();
    let flags = |place: &Place| wanted.scopes[place].flags;
    let task = |number| flags(&Place::Task(id('t', number)));
    let host = scope_flag::PUBLISHED | scope_flag::LOOPBACK;
    assert_eq!(flags(&Place::Host), host);
    assert_eq!((task(1), task(3)), (scope_flag::PUBLISHED, 0));
}

#[test]
fn every_agent_gives_the_same_numbers() {
    assert_eq!(wanted(), wanted());
    let number = |names: &[&str]| number(names.iter().copied());
    assert_eq!(number(&["a", "b"]), 0x8fb2_0ef6_3ced_4145, "kept for ever");
    assert_ne!(number(&["a", "b"]), number(&["ab"]));
    assert!(number(&["a"]) > scope::LAST);
}
