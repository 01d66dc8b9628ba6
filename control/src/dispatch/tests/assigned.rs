//! What nodes are told.

use swarm_model::{DesiredState, NodeState, SessionId, TaskState};

use crate::dispatch::assignment::{
    AssignmentKey, Assignments, Delta, EndpointState, Item, assignments,
};
use crate::dispatch::session::Sessions;
use crate::orchestrate::scenario::{Scenario, published};

fn endpoint_states(swarm: &Scenario) -> Vec<(String, EndpointState)> {
    let node = swarm.node_id("h1");
    let mut states: Vec<_> = assignments(&swarm.state, &node)
        .into_values()
        .filter_map(|item| {
            let Item::Endpoint(endpoint) = item else {
                return None;
            };
            let node = swarm
                .state
                .node(&endpoint.node)
                .expect("an endpoint has a node");
            Some((node.description.hostname.clone(), endpoint.state))
        })
        .collect();
    states.sort_by(|a, b| a.0.cmp(&b.0));
    states
}

#[test]
fn an_endpoint_lives_as_its_task_does() {
    use EndpointState::{Draining, Ready, Starting};
    for (state, desired, expected) in [
        (TaskState::Assigned, DesiredState::Running, Some(Starting)),
        (TaskState::Starting, DesiredState::Running, Some(Starting)),
        (TaskState::Running, DesiredState::Running, Some(Ready)),
        (TaskState::Running, DesiredState::Draining, Some(Draining)),
        (TaskState::Running, DesiredState::Shutdown, Some(Draining)),
        (TaskState::Starting, DesiredState::Remove, Some(Draining)),
        (TaskState::Failed, DesiredState::Running, None),
        (TaskState::Shutdown, DesiredState::Shutdown, None),
        (TaskState::Orphaned, DesiredState::Shutdown, None),
    ] {
        let mut swarm = Scenario::with_nodes(&["h1"]);
        let web = swarm.add_service("web", 1, published);
        swarm.settle();
        assert!(endpoint_states(&swarm).len() == 1, "placed, so known");
        let task = swarm.wanted(&web, 1).id;
        swarm.edit_task(&task, |task| {
            task.status.state = state;
            task.desired_state = desired;
        });
        let expected: Vec<_> = expected
            .into_iter()
            .map(|one| ("h1".to_owned(), one))
            .collect();
        assert_eq!(endpoint_states(&swarm), expected, "{state:?} {desired:?}");
    }
}

#[test]
fn a_silent_node_gets_no_new_connections_unless_there_is_no_other() {
    use EndpointState::{Draining, Ready};
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    swarm.add_service("web", 2, published);
    swarm.run();
    for (first, second, expected) in [
        (NodeState::Ready, NodeState::Ready, [Ready, Ready]),
        (NodeState::Ready, NodeState::Unknown, [Ready, Ready]),
        (NodeState::Ready, NodeState::Suspect, [Ready, Draining]),
        (NodeState::Suspect, NodeState::Suspect, [Ready, Ready]),
        (NodeState::Suspect, NodeState::Down, [Ready, Draining]),
        (NodeState::Down, NodeState::Down, [Draining, Draining]),
    ] {
        swarm.set_node_state("h1", first);
        swarm.set_node_state("h2", second);
        let states: Vec<_> = endpoint_states(&swarm)
            .into_iter()
            .map(|(_, one)| one)
            .collect();
        assert_eq!(states, expected, "{first:?} {second:?}");
    }
}

#[test]
fn a_node_knows_the_mesh_and_its_own_tasks() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    let web = swarm.add_service("web", 2, published);
    swarm.add_service("hidden", 1, |_| {});
    swarm.run();
    let h1 = swarm.node_id("h1");
    let known = assignments(&swarm.state, &h1);
    let own = swarm.state.tasks_of_node(&h1).count();
    let count = |wanted: fn(&AssignmentKey) -> bool| known.keys().filter(|key| wanted(key)).count();
    assert_eq!(count(|key| matches!(key, AssignmentKey::Task(_))), own);
    assert_eq!(count(|key| matches!(key, AssignmentKey::Network(_))), 1);
    assert_eq!(count(|key| matches!(key, AssignmentKey::Peer(_))), 2);
    assert_eq!(count(|key| matches!(key, AssignmentKey::Service(_))), 1);
    assert_eq!(count(|key| matches!(key, AssignmentKey::Endpoint(_))), 2);

    // A task is sent until the store forgets it.
    swarm.scale(&web, 0);
    swarm.settle();
    swarm.agents();
    swarm.settle();
    let known = assignments(&swarm.state, &h1);
    let removed = known
        .values()
        .any(|item| matches!(item, Item::Task(task) if task.desired_state == DesiredState::Remove));
    assert!(removed, "{known:?}");
}

/// A node's own idea of what it was told.
pub(super) fn follow(known: &mut Assignments, delta: Delta) {
    for key in delta.remove {
        assert!(known.remove(&key).is_some(), "{key:?} was not there");
    }
    for item in delta.put {
        let key = match &item {
            Item::Task(task) => AssignmentKey::Task(task.id.clone()),
            Item::Network(network) => AssignmentKey::Network(network.id.clone()),
            Item::Peer(peer) => AssignmentKey::Peer(peer.node.clone()),
            Item::Service(service) => AssignmentKey::Service(service.service.clone()),
            Item::Endpoint(endpoint) => AssignmentKey::Endpoint(endpoint.task.clone()),
            Item::NetworkEndpoint(it) => {
                AssignmentKey::NetworkEndpoint(it.network.clone(), it.task.clone())
            }
            Item::NetworkService(it) => {
                AssignmentKey::NetworkService(it.network.clone(), it.service.clone())
            }
        };
        known.insert(key, item);
    }
}

#[test]
fn increments_lead_where_the_complete_set_would() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    let mut sessions = Sessions::new(&swarm.state);
    let h1 = swarm.node_id("h1");
    let id = SessionId::random(&mut rand::rng());
    let first = sessions.open(&swarm.state, &h1, id);
    assert!(first.complete && first.generation == 1);
    let mut known = Assignments::new();
    follow(&mut known, first.delta);
    let mut generation = 1;

    let web = swarm.add_service("web", 3, published);
    for step in 0..40 {
        match step {
            10 => swarm.set_image(&web, "web:2"),
            20 => swarm.set_node_state("h2", NodeState::Down),
            25 => swarm.remove_service(&web),
            30 => swarm.remove(swarm.node_id("h2")),
            _ => {}
        }
        swarm.step();
        swarm.agents();
        for (node, outgoing) in sessions.round(&swarm.state) {
            assert_eq!(node, h1);
            generation += 1;
            assert!(!outgoing.complete);
            assert_eq!(outgoing.generation, generation, "without gaps");
            follow(&mut known, outgoing.delta);
        }
        assert_eq!(known, assignments(&swarm.state, &h1), "step {step}");
        assert!(
            sessions.round(&swarm.state).is_empty(),
            "nothing is told twice"
        );
    }
    assert!(generation > 5);
}

#[test]
fn a_status_alone_is_not_echoed() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let hidden = swarm.add_service("hidden", 1, |_| {});
    swarm.settle();
    let mut sessions = Sessions::new(&swarm.state);
    let id = SessionId::random(&mut rand::rng());
    sessions.open(&swarm.state, &swarm.node_id("h1"), id);
    let task = swarm.wanted(&hidden, 1).id;
    swarm.report(&task, TaskState::Preparing);
    assert!(sessions.round(&swarm.state).is_empty());
    swarm.scale(&hidden, 0);
    swarm.settle();
    assert_eq!(sessions.round(&swarm.state).len(), 1);
}
