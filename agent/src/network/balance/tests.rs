//! What each option of a published port makes of the same tasks and addresses.

use std::time::Duration;

use super::super::desired::address6;
use super::*;

const LOCAL: [u8; 4] = [10, 255, 1, 1];
const REMOTE: [u8; 4] = [10, 255, 1, 2];
const SUBNET6: &str = "fd00:a::/64";

fn task6(address: IpAddr) -> Option<IpAddr> {
    address6(SUBNET6.parse().unwrap(), address)
}

/// The IPv4 address of a task whose destination has this one, which has to be of the same IP version
/// as the address it is balanced for.
fn task_address(key: &ServiceKey, at: IpAddr) -> IpAddr {
    let ServiceKey::Address { address, .. } = key else {
        panic!("{key} has no address")
    };
    assert_eq!(address.is_ipv4(), at.is_ipv4(), "{key}: {at}");
    match at {
        IpAddr::V4(_) => at,
        IpAddr::V6(at) => {
            let [.., a, b, c, d] = at.octets();
            let twin = IpAddr::from([a, b, c, d]);
            assert_eq!(task6(twin), Some(at.into()));
            twin
        }
    }
}

fn addresses() -> NodeAddresses {
    let entry = |address: &str, links: &[&str]| {
        let links = links.iter().map(|link| (*link).to_owned());
        (address.parse().unwrap(), links.collect())
    };
    NodeAddresses::from([
        entry("192.0.2.1", &["eth0"]),
        entry("192.0.2.2", &["eth0"]),
        entry("10.0.0.1", &["eth1"]),
        entry("2001:db8::1", &["eth0"]),
    ])
}

fn backend(address: [u8; 4], state: BackendState) -> Backend {
    Backend {
        address: address.into(),
        local: address == LOCAL,
        state,
    }
}

fn port() -> PortConfig {
    PortConfig {
        target: 80,
        published: 8080,
        ..PortConfig::default()
    }
}

fn of(port: PortConfig, backends: &[Backend]) -> Balance {
    let service = Service {
        index: 7,
        ports: vec![port],
        backends: backends.to_vec(),
    };
    balance([&service], &addresses(), task6)
}

fn both() -> Vec<Backend> {
    [LOCAL, REMOTE]
        .map(|address| backend(address, BackendState::Ready))
        .to_vec()
}

/// The addresses at which the port is open.
fn open_at(balance: &Balance) -> Vec<String> {
    let addresses = balance.published.keys().map(|entry| entry.address);
    addresses.map(|address| address.to_string()).collect()
}

/// Address and weight of each destination, the same for every address of the node; nothing where
/// the port has no balancer.
fn weights(balance: &Balance) -> Option<Vec<(String, u32)>> {
    let mut all = balance.table.iter().map(|(service, balanced)| {
        let destinations = balanced.destinations.iter();
        destinations
            .map(|(key, config)| {
                let task = task_address(service, key.address);
                (task.to_string(), config.weight)
            })
            .collect::<Vec<_>>()
    });
    let first = all.next()?;
    assert!(all.all(|other| other == first));
    Some(first)
}

fn weighing(expected: &[([u8; 4], u32)]) -> Option<Vec<(String, u32)>> {
    let text = |(address, weight): &([u8; 4], u32)| (IpAddr::from(*address).to_string(), *weight);
    Some(expected.iter().map(text).collect())
}

#[test]
fn an_ordinary_port_is_open_everywhere_and_leads_to_all_tasks() {
    let balance = of(port(), &both());
    assert_eq!(open_at(&balance).len(), 4);
    assert_eq!(weights(&balance), weighing(&[(LOCAL, 1), (REMOTE, 1)]));
    assert!(balance.sources.is_empty());
    let expected = PublishedAs {
        service: 7,
        restricted: false,
        answered: true,
    };
    assert!(balance.published.values().all(|value| *value == expected));
    for balanced in balance.table.values() {
        assert_eq!(balanced.config.scheduler, Name::RR);
        assert_eq!(balanced.config.flags, ServiceFlags::empty());
        assert_eq!(balanced.config.timeout_s, 0);
    }
}

#[test]
fn a_port_can_be_bound_to_addresses_networks_and_links() {
    let bound = |addresses: &[&str], interfaces: &[&str]| {
        let port = PortConfig {
            addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
            interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
            ..port()
        };
        let balance = of(port, &both());
        assert_eq!(balance.table.len(), balance.published.len());
        open_at(&balance)
    };
    assert_eq!(bound(&["192.0.2.2/32"], &[]), ["192.0.2.2"]);
    assert_eq!(bound(&["192.0.2.0/24"], &[]), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(bound(&["::/0"], &[]), ["2001:db8::1"]);
    assert_eq!(bound(&[], &["eth1"]), ["10.0.0.1"]);
    assert_eq!(
        bound(&["192.0.2.1/32"], &["eth1"]),
        ["10.0.0.1", "192.0.2.1"]
    );
    assert_eq!(bound(&["203.0.113.1/32"], &["eth9"]), [""; 0]);
}

#[test]
fn without_a_ready_task_a_port_is_open_and_has_no_balancer() {
    let starting = [backend(REMOTE, BackendState::Starting)];
    for scheduler in Scheduler::ALL {
        let port = PortConfig {
            scheduler,
            ..port()
        };
        for backends in [&[][..], &starting] {
            let balance = of(port.clone(), backends);
            assert_eq!(balance.published.len(), 4, "{scheduler:?} {backends:?}");
            assert_eq!(weights(&balance), None, "{scheduler:?} {backends:?}");
            let mut published = balance.published.values();
            assert!(published.all(|published| !published.answered));
        }
    }
    // Connections of one that drains run on.
    let draining = [backend(REMOTE, BackendState::Draining), starting[0]];
    assert_eq!(weights(&of(port(), &draining)), weighing(&[(REMOTE, 0)]));
}

#[test]
fn udp_flows_leave_a_task_that_drains_while_there_is_another() {
    let port = || PortConfig {
        protocol: Protocol::Udp,
        ..port()
    };
    let draining = backend(REMOTE, BackendState::Draining);
    let ready = backend(LOCAL, BackendState::Ready);
    let starting = backend(LOCAL, BackendState::Starting);
    let over_udp = |backends: &[Backend]| {
        let table = of(port(), backends).table;
        let all: Vec<_> = table.into_values().map(|it| it.destinations).collect();
        assert!(all.windows(2).all(|two| two[0].len() == two[1].len()));
        all.first()
            .map(|them| them.values().map(|it| it.weight).collect::<Vec<_>>())
    };
    assert_eq!(over_udp(&[draining, ready]), Some(vec![1]));
    assert_eq!(over_udp(&[draining, starting]), Some(vec![0]));
    assert_eq!(over_udp(&[draining]), Some(vec![0]));
}

#[test]
fn mode_host_answers_only_where_the_task_is() {
    let port = || PortConfig {
        mode: PublishMode::Host,
        ..port()
    };
    let balance = of(port(), &both());
    assert_eq!(weights(&balance), weighing(&[(LOCAL, 1)]));
    let remote = [backend(REMOTE, BackendState::Ready)];
    assert_eq!(of(port(), &remote), Balance::default());
    // It refuses while its task starts: the port is its own already.
    let starting = [backend(LOCAL, BackendState::Starting)];
    let balance = of(port(), &starting);
    assert_eq!((balance.published.len(), weights(&balance)), (4, None));
}

#[test]
fn of_two_services_with_one_host_mode_port_the_one_with_a_task_has_it() {
    let service = |index, address| Service {
        index,
        ports: vec![PortConfig {
            mode: PublishMode::Host,
            ..port()
        }],
        backends: vec![backend(address, BackendState::Ready)],
    };
    let services = [service(1, REMOTE), service(2, LOCAL)];
    let balance = balance(&services, &addresses(), task6);
    assert!(balance.published.values().all(|value| value.service == 2));
    assert_eq!(weights(&balance), weighing(&[(LOCAL, 1)]));
}

#[test]
fn policy_local_leads_to_own_tasks_or_refuses() {
    let local = |backends: &[Backend]| {
        let port = PortConfig {
            policy: RoutingPolicy::Local,
            ..port()
        };
        let balance = of(port, backends);
        assert_eq!(balance.published.len(), 4);
        weights(&balance)
    };
    assert_eq!(local(&both()), weighing(&[(LOCAL, 1)]));
    assert_eq!(local(&[backend(REMOTE, BackendState::Ready)]), None);
    let draining = [
        backend(LOCAL, BackendState::Draining),
        backend(REMOTE, BackendState::Ready),
    ];
    assert_eq!(local(&draining), weighing(&[(LOCAL, 0)]));
}

#[test]
fn policy_prefer_local_leads_elsewhere_only_while_no_own_task_is_ready() {
    let weights_with = |own| {
        let port = PortConfig {
            policy: RoutingPolicy::PreferLocal,
            ..port()
        };
        let backends = [backend(LOCAL, own), backend(REMOTE, BackendState::Ready)];
        weights(&of(port, &backends))
    };
    use BackendState::{Draining, Ready, Starting};
    // Connections that the others have run on.
    assert_eq!(weights_with(Ready), weighing(&[(LOCAL, 1), (REMOTE, 0)]));
    assert_eq!(weights_with(Draining), weighing(&[(LOCAL, 0), (REMOTE, 1)]));
    assert_eq!(weights_with(Starting), weighing(&[(REMOTE, 1)]));
}

#[test]
fn schedulers_and_affinity_are_ipvs_own() {
    let config = |scheduler, affinity| {
        let port = PortConfig {
            scheduler,
            affinity,
            ..port()
        };
        let balance = of(port, &both());
        let mut configs = balance.table.into_values().map(|balanced| balanced.config);
        let config = configs.next().unwrap();
        (
            config.scheduler.to_string(),
            config.flags.bits(),
            config.timeout_s,
        )
    };
    let minute = Some(Duration::from_secs(60));
    for (scheduler, affinity, expected) in [
        (Scheduler::Rr, None, ("rr", 0, 0)),
        (Scheduler::Wrr, None, ("wrr", 0, 0)),
        (Scheduler::Lc, minute, ("lc", 1, 60)),
        (Scheduler::Sh, None, ("sh", 8, 0)),
        (Scheduler::Mh, None, ("mh", 24, 0)),
        (Scheduler::Mh, minute, ("mh", 25, 60)),
    ] {
        let (name, flags, timeout_s) = expected;
        assert_eq!(
            config(scheduler, affinity),
            (name.to_owned(), flags, timeout_s)
        );
    }
}

#[test]
fn affinity_is_by_the_whole_address_of_either_family() {
    let balance = of(
        PortConfig {
            affinity: Some(Duration::from_secs(60)),
            ..port()
        },
        &both(),
    );
    for (key, balanced) in &balance.table {
        let full = swarm_ipvs::Netmask::full(key.family());
        assert_eq!(balanced.config.netmask, full);
    }
}

#[test]
fn source_ranges_restrict_the_port_and_no_other() {
    let open = PortConfig {
        published: 9090,
        ..port()
    };
    let restricted = PortConfig {
        sources: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        ..port()
    };
    let service = Service {
        index: 7,
        ports: vec![open, restricted],
        backends: both(),
    };
    let balance = balance([&service], &addresses(), task6);
    assert_eq!(balance.published.len(), 8);
    for (entry, published) in &balance.published {
        assert_eq!(published.restricted, entry.port == 8080, "{entry:?}");
    }
    assert_eq!(balance.sources.len(), 2);
    assert!(balance.sources.iter().all(|source| source.port == 8080));
}

#[test]
fn maglev_has_starting_tasks_in_their_place() {
    let port = PortConfig {
        scheduler: Scheduler::Mh,
        ..port()
    };
    let backends = [
        backend(REMOTE, BackendState::Ready),
        backend(LOCAL, BackendState::Starting),
    ];
    let balance = of(port, &backends);
    assert_eq!(weights(&balance), weighing(&[(LOCAL, 0), (REMOTE, 1)]));
    for balanced in balance.table.values() {
        assert!(balanced.order().is_sorted());
        assert_eq!(balanced.order().len(), 2);
    }
}
