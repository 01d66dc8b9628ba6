//! Who gets what, and who is told why not.

mod network;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use swarm_model::{
    Meta, Network, NetworkId, NetworkSpec, NodeState, PortConfig, Protocol, PublishMode, Scheduler,
    ServiceId, TaskState, Vni,
};

use crate::orchestrate::scenario::{Scenario, port, published};

fn numbers(swarm: &Scenario, service: &ServiceId) -> Vec<u16> {
    let ports = &swarm.service(service).endpoint.ports;
    ports.iter().map(|port| port.published).collect()
}

#[test]
fn the_ingress_network_comes_first() {
    let swarm = Scenario::with_nodes(&["h1", "h2"]);
    let ingress = swarm
        .state
        .ingress_network()
        .expect("made on the first pass");
    assert_eq!(ingress.spec.name, "ingress");
    assert_eq!(ingress.subnet.to_string(), "10.255.0.0/16");
    assert_eq!(ingress.gateway, Ipv4Addr::new(10, 255, 0, 1));
    assert_eq!(ingress.vni, Vni(4096));
    let subnet6 = ingress.subnet6.expect("drawn when it is made");
    assert_eq!(
        (subnet6.network().segments()[0] >> 8, subnet6.prefix_len()),
        (0xfd, 64)
    );
    let nodes: BTreeSet<_> = swarm
        .state
        .nodes()
        .map(|node| node.ingress_address)
        .collect();
    let expected = [Ipv4Addr::new(10, 255, 0, 2), Ipv4Addr::new(10, 255, 0, 3)];
    assert_eq!(nodes, expected.map(Some).into());
}

#[test]
fn every_task_gets_an_address() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let hidden = swarm.add_service("hidden", 1, |_| {});
    let web = swarm.add_service("web", 1, published);
    swarm.run();
    let addresses = [&hidden, &web].map(|service| swarm.wanted(service, 1).ingress_address);
    let expected = [3, 4].map(|last| Some(Ipv4Addr::new(10, 255, 0, last)));
    assert_eq!(BTreeSet::from(addresses), BTreeSet::from(expected));
}

#[test]
fn freed_addresses_come_round_last() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 1, published);
    swarm.run();
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        let address = swarm.wanted(&web, 1).ingress_address;
        assert!(seen.insert(address), "{address:?} was given again at once");
        swarm.edit_service(&web, |spec| spec.task.force_update += 1);
        swarm.run();
        // A new leader finds the place to go on in the store.
        swarm.forget();
        swarm.advance(Duration::from_millis(10));
    }
}

/// A swarm whose ingress network has room for a node and two tasks.
fn narrow() -> Scenario {
    let mut swarm = Scenario::new();
    swarm.put(Network {
        id: NetworkId::random(&mut rand::rng()),
        meta: Meta::default(),
        spec: NetworkSpec {
            name: "ingress".to_owned(),
            ingress: true,
            ..NetworkSpec::default()
        },
        // .0 network, .1 reserved, .2 to .6, .7 broadcast.
        subnet: "10.255.0.0/29".parse().expect("a subnet"),
        gateway: Ipv4Addr::new(10, 255, 0, 1),
        subnet6: None,
        vni: Vni::FIRST,
        error: String::new(),
    });
    for name in ["h1", "h2", "h3"] {
        swarm.add_node(name);
    }
    swarm.settle();
    swarm
}

#[test]
fn running_out_of_addresses_is_told() {
    let mut swarm = narrow();
    let web = swarm.add_service("web", 3, published);
    swarm.run();
    assert_eq!(swarm.running(&web).len(), 2);
    let waiting = swarm.wanted(&web, 3);
    assert_eq!(waiting.status.state, TaskState::New);
    assert_eq!(
        waiting.status.error,
        "all 5 addresses of the ingress network 10.255.0.0/29 are in use: scale services that \
         publish ports down, or remove some"
    );
    // What is freed goes to who has waited longest.
    swarm.advance(Duration::from_secs(1));
    let first = swarm.wanted(&web, 1).id;
    swarm.report(&first, TaskState::Failed);
    swarm.run();
    let waiting = swarm.wanted(&web, 3);
    assert_eq!(waiting.status.state, TaskState::Running);
    assert_eq!(waiting.status.error, "");
}

#[test]
fn every_owned_address_is_claimed_before_any_is_given() {
    let mut swarm = narrow();
    let web = swarm.add_service("web", 2, published);
    swarm.run();
    // A node that comes while nothing is free waits, and takes nothing from others.
    swarm.forget();
    swarm.add_node("h4");
    swarm.settle();
    let late = swarm.node_id("h4");
    assert_eq!(
        swarm.state.node(&late).expect("added").ingress_address,
        None
    );
    swarm.scale(&web, 1);
    swarm.run();
    assert!(
        swarm
            .state
            .node(&late)
            .expect("added")
            .ingress_address
            .is_some()
    );
}

#[test]
fn a_port_belongs_to_the_oldest_that_asks() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 1, published);
    swarm.advance(Duration::from_secs(1));
    let shop = swarm.add_service("shop", 1, |spec| {
        spec.endpoint.ports = vec![port(9090, 90), port(8080, 80)];
    });
    // Another protocol is another port.
    let dns = swarm.add_service("dns", 1, |spec| {
        spec.endpoint.ports = vec![PortConfig {
            protocol: Protocol::Udp,
            ..port(8080, 53)
        }];
    });
    swarm.run();
    assert_eq!(numbers(&swarm, &web), [8080]);
    assert_eq!(numbers(&swarm, &dns), [8080]);
    assert!(numbers(&swarm, &shop).is_empty(), "all of them or none");
    let told = format!("port 8080/tcp is already published by service web ({web})");
    assert_eq!(swarm.service(&shop).endpoint.error, told);
    let waiting = swarm.wanted(&shop, 1);
    assert_eq!(
        (waiting.status.state, waiting.status.error),
        (TaskState::New, told)
    );

    // The other port was not taken on the way.
    let more = swarm.add_service("more", 1, |spec| {
        spec.endpoint.ports = vec![port(9090, 90)];
    });
    swarm.run();
    assert_eq!(numbers(&swarm, &more), [9090]);
    swarm.remove_service(&more);
    swarm.run();

    swarm.remove_service(&web);
    swarm.settle();
    let told =
        format!("port 8080/tcp is still published by service web ({web}), which is being removed");
    assert_eq!(swarm.service(&shop).endpoint.error, told);
    swarm.run();
    assert_eq!(numbers(&swarm, &shop), [9090, 8080]);
    assert_eq!(swarm.wanted(&shop, 1).status.state, TaskState::Running);
}

#[test]
fn host_mode_ports_are_shared_and_nobody_elses() {
    let host = |published| PortConfig {
        mode: PublishMode::Host,
        ..port(published, 80)
    };
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    let [first, second] = ["first", "second"]
        .map(|name| swarm.add_service(name, 1, |spec| spec.endpoint.ports = vec![host(8080)]));
    swarm.advance(Duration::from_secs(1));
    let third = swarm.add_service("third", 1, published);
    swarm.run();
    assert_eq!(numbers(&swarm, &first), [8080]);
    assert_eq!(numbers(&swarm, &second), [8080]);
    let told = &swarm.service(&third).endpoint.error;
    assert!(
        told.starts_with("port 8080/tcp is already published in mode host by service "),
        "{told}"
    );

    // A number that the swarm chooses is nobody's yet, in either mode.
    let chosen = swarm.add_service("chosen", 1, |spec| {
        spec.endpoint.ports = vec![host(0), port(0, 80)];
    });
    swarm.run();
    assert_eq!(numbers(&swarm, &chosen), [30000, 30001]);
    // Options change what is published, not its number.
    swarm.edit_service(&chosen, |spec| {
        for port in &mut spec.endpoint.ports {
            port.scheduler = Scheduler::Mh;
        }
    });
    swarm.run();
    assert_eq!(numbers(&swarm, &chosen), [30000, 30001]);
    let ports = &swarm.service(&chosen).endpoint.ports;
    assert!(ports.iter().all(|port| port.scheduler == Scheduler::Mh));
}

#[test]
fn chosen_ports_are_kept_and_given_serially() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let taken = swarm.add_service("taken", 1, |spec| {
        spec.endpoint.ports = vec![port(30001, 80)];
    });
    let web = swarm.add_service("web", 1, |spec| {
        spec.endpoint.ports = vec![port(0, 80), port(0, 443)];
    });
    swarm.run();
    assert_eq!(numbers(&swarm, &taken), [30001]);
    assert_eq!(numbers(&swarm, &web), [30000, 30002]);
    let index = swarm.service(&web).endpoint.index;

    // Another order, one port less, one more: what stays keeps its number.
    swarm.edit_service(&web, |spec| {
        spec.endpoint.ports = vec![port(0, 443), port(8080, 81)];
    });
    swarm.run();
    assert_eq!(numbers(&swarm, &web), [30002, 8080]);
    assert_eq!(swarm.service(&web).endpoint.index, index);

    // The freed number is not the next one.
    let next = swarm.add_service("next", 1, |spec| spec.endpoint.ports = vec![port(0, 80)]);
    swarm.run();
    assert_eq!(numbers(&swarm, &next), [30003]);
}

#[test]
fn running_out_of_ports_is_told() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    for name in 0..11 {
        swarm.add_service(&format!("full{name}"), 0, |spec| {
            spec.endpoint.ports = (0..250).map(|target| port(0, target + 1)).collect();
        });
    }
    swarm.settle();
    let rest = swarm.add_service("rest", 1, |spec| {
        spec.endpoint.ports = (0..19).map(|target| port(0, target + 1)).collect();
    });
    swarm.settle();
    assert_eq!(
        swarm.service(&rest).endpoint.error,
        "every tcp port from 30000 to 32767 is published: name another port, or remove a service"
    );
    swarm.edit_service(&rest, |spec| {
        spec.endpoint.ports.pop();
    });
    swarm.settle();
    assert_eq!(swarm.service(&rest).endpoint.error, "");
    assert_eq!(numbers(&swarm, &rest).len(), 18);
}

#[test]
fn a_new_number_that_is_taken_leaves_the_old_ones_alone() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 1, published);
    let shop = swarm.add_service("shop", 1, |spec| spec.endpoint.ports = vec![port(9090, 90)]);
    swarm.run();
    swarm.edit_service(&shop, |spec| spec.endpoint.ports.push(port(8080, 80)));
    swarm.run();
    assert_eq!(numbers(&swarm, &shop), [9090]);
    assert!(
        swarm
            .service(&shop)
            .endpoint
            .error
            .contains("already published by service web")
    );
    assert_eq!(swarm.running(&shop).len(), 1, "what runs goes on running");
    assert_eq!(numbers(&swarm, &web), [8080]);
}

#[test]
fn indexes_stay_small() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let ids = ["a", "b", "c"].map(|name| {
        let id = swarm.add_service(name, 0, |_| {});
        swarm.settle();
        id
    });
    let index = |swarm: &Scenario, id| swarm.service(id).endpoint.index;
    assert_eq!(ids.each_ref().map(|id| index(&swarm, id)), [1, 2, 3]);
    swarm.remove_service(&ids[1]);
    swarm.run();
    let next = swarm.add_service("d", 0, |_| {});
    swarm.settle();
    assert_eq!(index(&swarm, &next), 2);
}

#[test]
fn an_address_that_may_still_be_in_use_is_not_given_again() {
    let mut swarm = narrow();
    let web = swarm.add_service("web", 2, published);
    swarm.run();
    let node = swarm.wanted(&web, 1).node_id.expect("placed");
    let name = swarm
        .state
        .node(&node)
        .expect("there")
        .description
        .hostname
        .clone();
    swarm.set_node_state(&name, NodeState::Down);
    swarm.run();
    assert_eq!(swarm.wanted(&web, 1).status.state, TaskState::New);
    // Gone for good, as far as the swarm is concerned.
    let lost = swarm.slot(&web, 1).remove(0);
    assert_eq!(lost.status.state, TaskState::Orphaned);
    swarm.remove(lost.id);
    swarm.run();
    let next = swarm.wanted(&web, 1);
    assert_eq!(next.ingress_address, lost.ingress_address);
}

#[test]
fn a_number_that_is_named_goes_to_the_port_that_names_it() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 1, published);
    swarm.run();
    swarm.edit_service(&web, |spec| {
        spec.endpoint.ports = vec![port(0, 80), port(8080, 80)];
    });
    swarm.run();
    assert_eq!(numbers(&swarm, &web), [30000, 8080]);
}
