//! What nodes are told of networks of users.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use swarm_model::{
    DesiredState, EndpointMode, NetworkId, NodeId, NodeState, ServiceId, SessionId, TaskState,
};

use super::assigned::follow;
use crate::dispatch::assignment::{AssignmentKey, Assignments, EndpointState, Item, assignments};
use crate::dispatch::overlay::networks;
use crate::dispatch::session::Sessions;
use crate::orchestrate::scenario::{Scenario, on};

/// A service on `network` and its tasks there.
fn add_service(swarm: &mut Scenario, name: &str, replicas: u64, network: &NetworkId) -> ServiceId {
    let service = swarm.add_service(name, replicas, |spec| {
        on(network)(spec);
        spec.task.networks[0].aliases = vec![format!("{name}-alias")];
    });
    swarm.run();
    service
}

/// Moves tasks of `service` to `network` by hand, which no update does.
fn move_to(swarm: &mut Scenario, service: &ServiceId, network: &NetworkId) {
    for task in swarm.tasks(service) {
        swarm.edit_task(&task.id, |edited| {
            edited.spec.networks[0].target = network.to_string();
            edited.attachments[0].network = network.clone();
        });
    }
}

fn of_networks(known: &Assignments) -> Vec<&AssignmentKey> {
    let keys = known.iter().filter(|(_, item)| match item {
        Item::Network(network) => !network.spec.ingress,
        Item::NetworkEndpoint(_) | Item::NetworkService(_) => true,
        _ => false,
    });
    keys.map(|(key, _)| key).collect()
}

#[test]
fn only_nodes_with_a_task_on_a_network_hear_of_it() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    let front = swarm.add_network("front", |_| {});
    let back = swarm.add_network("back", |_| {});
    let web = add_service(&mut swarm, "web", 1, &front);
    let idle = add_service(&mut swarm, "idle", 0, &front);
    add_service(&mut swarm, "lonely", 0, &back);
    let task = swarm.wanted(&web, 1);
    let home = task.node_id.clone().expect("placed");
    for node in ["h1", "h2"].map(|name| swarm.node_id(name)) {
        let known = assignments(&swarm.state, &node);
        let expected = if node == home {
            vec![
                AssignmentKey::Network(front.clone()),
                AssignmentKey::NetworkEndpoint(front.clone(), task.id.clone()),
                AssignmentKey::NetworkService(front.clone(), web.clone().min(idle.clone())),
                AssignmentKey::NetworkService(front.clone(), web.clone().max(idle.clone())),
            ]
        } else {
            Vec::new()
        };
        assert_eq!(of_networks(&known), expected.iter().collect::<Vec<_>>());
    }

    let known = assignments(&swarm.state, &home);
    let key = AssignmentKey::NetworkEndpoint(front.clone(), task.id.clone());
    let Some(Item::NetworkEndpoint(endpoint)) = known.get(&key) else {
        panic!("{known:?}");
    };
    assert_eq!(endpoint.task_name, format!("web.1.{}", task.id));
    assert_eq!(endpoint.service_name, "web");
    assert_eq!(endpoint.aliases, ["web-alias"]);
    assert_eq!(endpoint.state, EndpointState::Ready);
    let key = AssignmentKey::NetworkService(front.clone(), web.clone());
    let Some(Item::NetworkService(service)) = known.get(&key) else {
        panic!("{known:?}");
    };
    assert_eq!(service.name, "web");
    assert_eq!(service.aliases, ["web-alias"]);
    assert_eq!(service.vip, Some(Ipv4Addr::new(10, 0, 0, 2)));
    assert_eq!(service.mode, EndpointMode::Vip);

    // Its last task there ends.
    swarm.edit_task(&task.id, |task| task.status.state = TaskState::Failed);
    assert!(of_networks(&assignments(&swarm.state, &home)).is_empty());
}

#[test]
fn endpoints_drain_as_those_of_the_mesh() {
    use EndpointState::{Draining, Ready, Starting};
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    let front = swarm.add_network("front", |_| {});
    let web = add_service(&mut swarm, "web", 2, &front);
    let h1 = swarm.node_id("h1");
    let states = |swarm: &Scenario| {
        let known = assignments(&swarm.state, &h1);
        let mut states: BTreeMap<NodeId, EndpointState> = BTreeMap::new();
        for item in known.into_values() {
            if let Item::NetworkEndpoint(endpoint) = item {
                states.insert(endpoint.node, endpoint.state);
            }
        }
        ["h1", "h2"].map(|name| states[&swarm.node_id(name)])
    };
    for (first, second, expected) in [
        (NodeState::Ready, NodeState::Ready, [Ready, Ready]),
        (NodeState::Ready, NodeState::Suspect, [Ready, Draining]),
        (NodeState::Suspect, NodeState::Suspect, [Ready, Ready]),
        (NodeState::Down, NodeState::Unknown, [Draining, Ready]),
    ] {
        swarm.set_node_state("h1", first);
        swarm.set_node_state("h2", second);
        assert_eq!(states(&swarm), expected, "{first:?} {second:?}");
    }
    swarm.set_node_state("h1", NodeState::Ready);
    let on_h1 = |swarm: &Scenario| {
        let tasks = swarm.tasks(&web);
        let task = tasks.iter().find(|task| task.node_id.as_ref() == Some(&h1));
        task.expect("spread").id.clone()
    };
    let task = on_h1(&swarm);
    swarm.edit_task(&task, |task| task.desired_state = DesiredState::Draining);
    assert_eq!(states(&swarm), [Draining, Ready]);
    swarm.edit_task(&task, |task| {
        task.desired_state = DesiredState::Running;
        task.status.state = TaskState::Starting;
    });
    assert_eq!(states(&swarm), [Starting, Ready]);
}

#[test]
fn increments_lead_where_the_complete_set_would() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    let front = swarm.add_network("front", |_| {});
    let back = swarm.add_network("back", |_| {});
    let web = add_service(&mut swarm, "web", 2, &front);
    let data = add_service(&mut swarm, "data", 1, &back);
    let mut sessions = Sessions::new(&swarm.state);
    let nodes = ["h1", "h2"].map(|name| swarm.node_id(name));
    let mut known = BTreeMap::new();
    for node in &nodes {
        let id = SessionId::random(&mut rand::rng());
        let first = sessions.open(&swarm.state, node, id);
        let mut own = Assignments::new();
        follow(&mut own, first.delta);
        assert_eq!(own, assignments(&swarm.state, node));
        known.insert(node.clone(), own);
    }
    for step in 0..8 {
        match step {
            0 => swarm.set_node_state("h2", NodeState::Suspect),
            1 => move_to(&mut swarm, &data, &front),
            2 => move_to(&mut swarm, &data, &back),
            3 => {
                let task = swarm.tasks(&web).remove(0).id;
                swarm.edit_task(&task, |task| task.status.state = TaskState::Failed);
            }
            4 => {
                let task = swarm.tasks(&web).remove(1).id;
                swarm.edit_task(&task, |task| task.status.state = TaskState::Failed);
            }
            5 => {
                let task = swarm.tasks(&web).remove(0).id;
                swarm.edit_task(&task, |task| task.status.state = TaskState::Running);
            }
            6 => swarm.remove(front.clone()),
            _ => {}
        }
        for (node, outgoing) in sessions.round(&swarm.state) {
            let own = known.get_mut(&node).expect("has a session");
            follow(own, outgoing.delta);
        }
        for node in &nodes {
            assert_eq!(known[node], assignments(&swarm.state, node), "step {step}");
        }
    }
}

#[test]
fn a_node_that_is_not_on_the_network_holds_up_no_drain() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    let front = swarm.add_network("front", |_| {});
    let web = add_service(&mut swarm, "web", 1, &front);
    let task = swarm.wanted(&web, 1);
    let home = task.node_id.clone().expect("placed");
    let mut sessions = Sessions::new(&swarm.state);
    let mut at_home = None;
    for name in ["h1", "h2"] {
        let node = swarm.node_id(name);
        let id = SessionId::random(&mut rand::rng());
        let first = sessions.open(&swarm.state, &node, id.clone());
        sessions.applied(&node, &id, first.generation);
        if node == home {
            at_home = Some(id);
        }
    }
    // The network alone tells of it: no port is published.
    swarm.edit_task(&task.id, |task| task.desired_state = DesiredState::Draining);
    let told = sessions.round(&swarm.state);
    let [(node, outgoing)] = told.as_slice() else {
        panic!("one node has to know: {told:?}");
    };
    assert_eq!(*node, home);
    assert!(sessions.drained(&swarm.state).is_empty());
    let session = at_home.expect("opened");
    sessions.applied(&home, &session, outgoing.generation);
    assert!(sessions.drained(&swarm.state).contains(&task.id));
}

#[test]
fn what_did_not_change_is_not_made_again() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    let front = swarm.add_network("front", |_| {});
    let back = swarm.add_network("back", |_| {});
    let web = add_service(&mut swarm, "web", 2, &front);
    let data = add_service(&mut swarm, "data", 1, &back);
    let mut known = networks(&swarm.state, &BTreeMap::new());
    let mut remade = |swarm: &Scenario| {
        let now = networks(&swarm.state, &known);
        let same = |id: &NetworkId| Arc::ptr_eq(&known[id], &now[id]);
        let remade = [!same(&front), !same(&back)];
        // Whatever was kept is what would have been made.
        let anew = networks(&swarm.state, &BTreeMap::new());
        for (id, kept) in &now {
            assert_eq!(kept.items, anew[id].items);
        }
        known = now;
        remade
    };
    assert_eq!(remade(&swarm), [false, false]);
    let task = swarm.tasks(&web).remove(0).id;
    swarm.edit_task(&task, |task| task.desired_state = DesiredState::Draining);
    assert_eq!(remade(&swarm), [true, false]);
    swarm.remove(task);
    assert_eq!(remade(&swarm), [true, false]);
    swarm.edit_service(&data, |spec| spec.endpoint.mode = EndpointMode::Dnsrr);
    assert_eq!(remade(&swarm), [false, true]);
    let mut without = swarm.service(&data).clone();
    without.endpoint.vips.clear();
    swarm.put(without);
    assert_eq!(remade(&swarm), [false, true]);
    // A service that has left a network by its spec, and has a task there still.
    swarm.edit_service(&data, |spec| spec.task.networks.clear());
    assert_eq!(remade(&swarm), [false, true]);
    swarm.edit_service(&data, |spec| spec.endpoint.mode = EndpointMode::Vip);
    assert_eq!(remade(&swarm), [false, true]);
    swarm.set_node_state("h2", NodeState::Suspect);
    assert_eq!(remade(&swarm), [true, true]);
    assert_eq!(remade(&swarm), [false, false]);
}
