//! Networks of users: their subnets and ids, and who gets which address on them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::Ipv4Net;
use proptest::prelude::*;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng as _;
use swarm_model::{
    EndpointMode, NetworkCursor, NetworkId, NetworkSpec, NodeState, ServiceId, TaskState,
    Timestamp, Vni,
};

use crate::allocate::{NoNetwork, make_network};
use crate::orchestrate::scenario::{Scenario, on, published};
use crate::store::State;

fn try_make(state: &State, spec: NetworkSpec) -> Result<Vec<crate::store::Change>, NoNetwork> {
    let cluster = state.cluster().expect("there is a swarm");
    let mut rng = rand::rng();
    let (network, cluster) = make_network(state, cluster, spec, Timestamp(5), &mut rng)?;
    Ok(vec![network.into(), cluster.into()])
}

fn subnet(swarm: &Scenario, id: &NetworkId) -> String {
    swarm.network(id).subnet.to_string()
}

#[test]
fn subnets_and_ids_are_given_serially() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let first = swarm.add_network("first", |_| {});
    let second = swarm.add_network("second", |_| {});
    assert_eq!(subnet(&swarm, &first), "10.0.0.0/24");
    assert_eq!(subnet(&swarm, &second), "10.0.1.0/24");
    assert_eq!(swarm.network(&first).gateway, Ipv4Addr::new(10, 0, 0, 1));
    assert_eq!(swarm.network(&first).vni, Vni(4097));
    assert_eq!(swarm.network(&second).vni, Vni(4098));
    assert_eq!(swarm.network(&second).subnet6, None);
    // What was freed comes round last, whoever leads.
    swarm.remove(first);
    swarm.remove(second);
    swarm.forget();
    let third = swarm.add_network("third", |spec| spec.ipv6 = true);
    assert_eq!(subnet(&swarm, &third), "10.0.2.0/24");
    assert_eq!(swarm.network(&third).vni, Vni(4099));
    let subnet6 = swarm.network(&third).subnet6.expect("asked for");
    assert_eq!(subnet6.network().segments()[0] >> 8, 0xfd);
    assert_eq!(subnet6.prefix_len(), 64);
}

#[test]
fn what_is_named_is_kept() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let id = swarm.add_network("mine", |spec| {
        spec.subnet = "172.20.0.0/16".parse().ok();
        spec.gateway = "172.20.0.254".parse().ok();
        spec.ip_range = "172.20.7.0/30".parse().ok();
        spec.subnet6 = "fd00:7::/64".parse().ok();
        spec.ipv6 = true;
    });
    let network = swarm.network(&id);
    assert_eq!(network.gateway, Ipv4Addr::new(172, 20, 0, 254));
    assert_eq!(network.subnet6, "fd00:7::/64".parse().ok());
    // All of the range: it is neither the network's beginning nor its end.
    let web = swarm.add_service("web", 3, on(&id));
    swarm.run();
    assert_eq!(vip(&swarm, &web), [Ipv4Addr::new(172, 20, 7, 0)]);
    let addresses: BTreeSet<_> = addresses(&swarm, &web).into_iter().flatten().collect();
    let expected = [1, 2, 3].map(|last| Ipv4Addr::new(172, 20, 7, last));
    assert_eq!(addresses, expected.into());
}

#[test]
fn an_overlap_is_refused_and_named() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    swarm.add_network("front", |spec| spec.subnet6 = "fd00:7::/64".parse().ok());
    for (subnet, subnet6, told) in [
        ("10.0.0.128/25", "", "overlaps 10.0.0.0/24 of network front"),
        ("10.0.0.0/16", "", "overlaps 10.0.0.0/24 of network front"),
        (
            "10.255.9.0/24",
            "",
            "overlaps 10.255.0.0/16 of network ingress",
        ),
        (
            "192.0.2.0/24",
            "",
            "contains 192.0.2.1, the address of node h1",
        ),
        ("", "fd00:7::/48", "overlaps fd00:7::/64 of network front"),
    ] {
        let spec = NetworkSpec {
            name: "back".to_owned(),
            subnet: subnet.parse().ok(),
            subnet6: subnet6.parse().ok(),
            ..NetworkSpec::default()
        };
        let refused = try_make(&swarm.state, spec).expect_err("it overlaps");
        assert!(refused.to_string().contains(told), "{refused}");
    }
}

/// Sets what was chosen last.
fn chosen_last(swarm: &mut Scenario, subnet: &str, vni: u32) {
    let mut cluster = swarm_model::Cluster::clone(swarm.state.cluster().expect("there is one"));
    cluster.networks_made = NetworkCursor {
        vni: Some(Vni(vni)),
        subnet: subnet.parse().ok(),
    };
    swarm.put(cluster);
}

#[test]
fn subnets_keep_off_the_hosts_own_network() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let at = |address: [u8; 4]| Some(IpAddr::from(address));
    swarm.edit_node("h1", |node| {
        node.description.data_path_address = at([10, 0, 3, 7])
    });
    let first = swarm.add_network("first", |_| {});
    assert_eq!(subnet(&swarm, &first), "10.1.0.0/24");
    // With nothing else left, what the nodes themselves are not in is better than nothing.
    for (name, subnet) in [
        ("a", "10.128.0.0/10"),
        ("b", "10.192.0.0/11"),
        ("c", "10.224.0.0/12"),
        ("d", "10.240.0.0/13"),
        ("e", "10.248.0.0/14"),
        ("f", "10.252.0.0/15"),
        ("g", "10.254.0.0/16"),
        ("h", "10.64.0.0/10"),
        ("i", "10.32.0.0/11"),
        ("j", "10.16.0.0/12"),
        ("k", "10.8.0.0/13"),
        ("l", "10.4.0.0/14"),
        ("m", "10.2.0.0/15"),
        ("n", "10.1.128.0/17"),
        ("o", "10.1.64.0/18"),
        ("p", "10.1.32.0/19"),
        ("q", "10.1.16.0/20"),
        ("r", "10.1.8.0/21"),
        ("s", "10.1.4.0/22"),
        ("t", "10.1.2.0/23"),
        ("u", "10.1.1.0/24"),
    ] {
        swarm.add_network(name, |spec| spec.subnet = subnet.parse().ok());
    }
    let last: Vec<_> = ["v", "w", "x", "y"]
        .map(|name| {
            let id = swarm.add_network(name, |_| {});
            subnet(&swarm, &id)
        })
        .into();
    assert_eq!(
        last,
        ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24", "10.0.4.0/24"]
    );
    swarm.add_network("z", |spec| spec.subnet = "10.0.128.0/17".parse().ok());
    for (name, subnet) in [
        ("z1", "10.0.64.0/18"),
        ("z2", "10.0.32.0/19"),
        ("z3", "10.0.16.0/20"),
        ("z4", "10.0.8.0/21"),
        ("z5", "10.0.6.0/23"),
        ("z6", "10.0.5.0/24"),
    ] {
        swarm.add_network(name, |spec| spec.subnet = subnet.parse().ok());
    }
    let full = try_make(&swarm.state, NetworkSpec::default());
    assert_eq!(full, Err(NoNetwork::NoSubnet));
}

#[test]
fn subnets_keep_off_the_networks_that_hosts_are_on() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    swarm.edit_node("h1", |node| {
        let networks = ["172.17.0.0/16", "10.0.0.0/12", "10.16.7.0/24"];
        let networks = networks.map(|text| text.parse().expect("a network"));
        node.description.host_networks = networks.into();
    });
    let first = swarm.add_network("first", |_| {});
    assert_eq!(subnet(&swarm, &first), "10.16.0.0/24");
    // Whoever asks for it knows what it hides.
    swarm.add_network("named", |spec| spec.subnet = "10.1.0.0/24".parse().ok());
    // A host on the whole of the pool leaves no other choice.
    swarm.edit_node("h1", |node| {
        node.description.host_networks = vec!["10.0.0.0/8".parse().expect("a network")];
    });
    let next = swarm.add_network("next", |_| {});
    assert_eq!(subnet(&swarm, &next), "10.16.1.0/24");
}

#[test]
fn ids_and_subnets_come_round() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let first = swarm.add_network("first", |_| {});
    chosen_last(&mut swarm, "10.255.255.0/24", Vni::LAST.0);
    let next = swarm.add_network("next", |_| {});
    assert_eq!(swarm.network(&first).vni, Vni(4097));
    assert_eq!(swarm.network(&next).vni, Vni(4098));
    assert_eq!(subnet(&swarm, &next), "10.0.1.0/24");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever is made and removed in whatever order: no two networks share an address or an id,
    /// none has the address of a node, and what was freed is not given at once.
    #[test]
    fn no_two_networks_are_alike(
        steps in prop::collection::vec(
            (any::<u8>(), prop::option::of((any::<[u8; 2]>(), 8..=29u8)), any::<bool>()),
            1..80,
        ),
        node in any::<[u8; 3]>(),
    ) {
        let mut swarm = Scenario::with_nodes(&["h1"]);
        let node = Ipv4Addr::new(10, node[0], node[1], node[2]);
        swarm.edit_node("h1", |edited| {
            edited.description.data_path_address = Some(IpAddr::V4(node));
        });
        let mut rng = ChaCha12Rng::seed_from_u64(1);
        let mut freed: Option<(Ipv4Net, Vni)> = None;
        for (choice, named, remove) in steps {
            let made: Vec<_> = swarm.state.networks().filter(|it| !it.spec.ingress).cloned().collect();
            if remove && !made.is_empty() {
                let network = &made[usize::from(choice) % made.len()];
                freed = Some((network.subnet, network.vni));
                swarm.remove(network.id.clone());
                continue;
            }
            let subnet = named.map(|([a, b], len)| {
                Ipv4Net::new(Ipv4Addr::new(10, a, b, 0), len).expect("a length").trunc()
            });
            let spec = NetworkSpec { subnet, ..NetworkSpec::default() };
            let cluster = swarm.state.cluster().expect("there is one").clone();
            let Ok((network, cluster)) =
                make_network(&swarm.state, &cluster, spec, swarm.now, &mut rng)
            else {
                continue;
            };
            prop_assert!(!network.subnet.contains(&node));
            for other in swarm.state.networks() {
                prop_assert_ne!(other.vni, network.vni);
                prop_assert!(!other.subnet.contains(&network.subnet));
                prop_assert!(!network.subnet.contains(&other.subnet));
            }
            if let Some((subnet, vni)) = freed {
                prop_assert_ne!(vni, network.vni);
                prop_assert!(named.is_some() || subnet != network.subnet);
            }
            swarm.put(network);
            swarm.put(cluster);
        }
    }
}

fn vip(swarm: &Scenario, service: &ServiceId) -> Vec<Ipv4Addr> {
    let vips = &swarm.service(service).endpoint.vips;
    vips.iter().map(|vip| vip.address).collect()
}

/// The addresses of each wanted task on networks of users.
fn addresses(swarm: &Scenario, service: &ServiceId) -> Vec<Vec<Ipv4Addr>> {
    let running = swarm.running(service);
    let of = |task: &swarm_model::Task| task.attachments.iter().map(|it| it.address).collect();
    running.iter().map(of).collect()
}

#[test]
fn services_and_tasks_get_an_address_on_each_network() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let front = swarm.add_network("front", |_| {});
    let back = swarm.add_network("back", |_| {});
    let web = swarm.add_service("web", 1, |spec| {
        published(spec);
        on(&back)(spec);
        on(&front)(spec);
        spec.task.networks[1].aliases = vec!["www".to_owned()];
    });
    swarm.run();
    let task = swarm.wanted(&web, 1);
    assert!(task.ingress_address.is_some());
    let networks: Vec<_> = task.attachments.iter().map(|it| &it.network).collect();
    assert_eq!(networks, [&back, &front], "in the order of the spec");
    assert_eq!(task.attachments[1].aliases, ["www"]);
    assert_eq!(
        vip(&swarm, &web),
        [[10, 0, 1, 2], [10, 0, 0, 2]].map(Ipv4Addr::from)
    );
    assert_eq!(
        addresses(&swarm, &web),
        [[[10, 0, 1, 3], [10, 0, 0, 3]].map(Ipv4Addr::from)]
    );
    // The same after another leader came.
    let before = swarm.service(&web).clone();
    swarm.forget();
    swarm.run();
    assert_eq!(swarm.service(&web), &before);
}

#[test]
fn freed_addresses_come_round_last() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let front = swarm.add_network("front", |_| {});
    let web = swarm.add_service("web", 1, on(&front));
    swarm.run();
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        let [address] = addresses(&swarm, &web).remove(0)[..] else {
            panic!("one network");
        };
        assert!(seen.insert(address), "{address:?} was given again at once");
        swarm.edit_service(&web, |spec| spec.task.force_update += 1);
        swarm.run();
        swarm.forget();
        swarm.advance(Duration::from_millis(10));
    }
}

#[test]
fn running_out_of_addresses_is_told() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    // .0 network, .1 gateway, .2 to .6, .7 broadcast.
    let narrow = swarm.add_network("narrow", |spec| {
        spec.subnet = "10.9.0.0/29".parse().ok();
    });
    let web = swarm.add_service("web", 6, on(&narrow));
    swarm.run();
    assert_eq!(swarm.running(&web).len(), 4);
    let told = "all 5 addresses of network narrow (10.9.0.0/29) are in use: scale services on it \
                down, or make a larger network with `swarmctl network create --subnet` and move \
                services there";
    for slot in [5, 6] {
        let waiting = swarm.wanted(&web, slot);
        assert_eq!(waiting.status.state, TaskState::New);
        assert_eq!(waiting.status.error, told);
        assert_eq!(waiting.ingress_address, None, "all or nothing");
    }
    assert_eq!(swarm.network(&narrow).error, told);
    // A service that finds no room for its VIP is told as well, and starts nothing.
    swarm.advance(Duration::from_secs(1));
    let late = swarm.add_service("late", 1, on(&narrow));
    swarm.run();
    assert_eq!(swarm.service(&late).endpoint.error, told);
    assert_eq!(swarm.wanted(&late, 1).status.error, told);

    swarm.scale(&web, 1);
    swarm.run();
    assert_eq!(swarm.network(&narrow).error, "");
    assert_eq!(swarm.service(&late).endpoint.error, "");
    assert_eq!(swarm.wanted(&late, 1).status.state, TaskState::Running);
}

#[test]
fn the_endpoint_mode_can_be_changed() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let front = swarm.add_network("front", |_| {});
    let web = swarm.add_service("web", 2, |spec| {
        on(&front)(spec);
        spec.endpoint.mode = EndpointMode::Dnsrr;
    });
    swarm.run();
    assert!(vip(&swarm, &web).is_empty());
    let before = addresses(&swarm, &web);
    swarm.edit_service(&web, |spec| spec.endpoint.mode = EndpointMode::Vip);
    swarm.run();
    let [first] = vip(&swarm, &web)[..] else {
        panic!("one network, one address");
    };
    assert_eq!(
        addresses(&swarm, &web),
        before,
        "no task has to move for it"
    );
    swarm.edit_service(&web, |spec| spec.endpoint.mode = EndpointMode::Dnsrr);
    swarm.run();
    assert!(vip(&swarm, &web).is_empty());
    swarm.edit_service(&web, |spec| spec.endpoint.mode = EndpointMode::Vip);
    swarm.run();
    assert_ne!(vip(&swarm, &web), [first], "names may be cached still");
}

#[test]
fn a_service_leaves_a_network_with_its_last_task_there() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let front = swarm.add_network("front", |_| {});
    let back = swarm.add_network("back", |_| {});
    let web = swarm.add_service("web", 2, on(&front));
    swarm.run();
    let old = vip(&swarm, &web);
    swarm.edit_service(&web, |spec| {
        spec.task.networks.clear();
        on(&back)(spec);
    });
    swarm.settle();
    let networks = |swarm: &Scenario| {
        let vips = swarm.service(&web).endpoint.vips.iter();
        vips.map(|vip| vip.network.clone()).collect::<Vec<_>>()
    };
    assert_eq!(networks(&swarm), [back.clone(), front.clone()]);
    assert_eq!(
        vip(&swarm, &web)[1],
        old[0],
        "those that stay are still found"
    );
    swarm.run();
    assert_eq!(networks(&swarm), std::slice::from_ref(&back));
    let on_back = swarm.running(&web).into_iter();
    let on_back: BTreeMap<_, _> = on_back
        .flat_map(|task| task.attachments)
        .map(|it| (it.address, it.network))
        .collect();
    assert_eq!(on_back.len(), 2);
    assert!(on_back.into_values().all(|network| network == back));

    swarm.remove_service(&web);
    swarm.settle();
    assert_eq!(networks(&swarm), [back], "until its last task is gone");
    swarm.run();
    assert_eq!(swarm.state.services().count(), 0);
}

#[test]
fn a_lost_task_holds_no_service_on_a_network() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    let front = swarm.add_network("front", |_| {});
    let web = swarm.add_service("web", 2, on(&front));
    swarm.run();
    swarm.set_node_state("h2", NodeState::Down);
    swarm.run();
    let states: Vec<_> = swarm
        .tasks(&web)
        .iter()
        .map(|task| task.status.state)
        .collect();
    assert!(states.contains(&TaskState::Orphaned), "{states:?}");
    swarm.edit_service(&web, |spec| spec.task.networks.clear());
    swarm.run();
    assert!(vip(&swarm, &web).is_empty());
    // What it was given is not another's, since it may still run.
    let lost = swarm.tasks(&web).into_iter();
    let lost: Vec<_> = lost
        .filter(|task| task.status.state == TaskState::Orphaned)
        .flat_map(|task| task.attachments)
        .map(|attachment| attachment.address)
        .collect();
    assert!(!lost.is_empty());
    let many = swarm.add_service("many", 252 - lost.len() as u64, on(&front));
    swarm.run();
    assert_eq!(swarm.running(&many).len() + lost.len(), 252);
    assert!(
        addresses(&swarm, &many)
            .iter()
            .flatten()
            .all(|address| !lost.contains(address))
    );
}
