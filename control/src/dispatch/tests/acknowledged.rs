//! When a task is drained.

use swarm_model::{NodeId, NodeState, ServiceId, SessionId};

use crate::dispatch::session::Sessions;
use crate::orchestrate::scenario::{Scenario, published};

/// A swarm of two nodes with a session each, and a service whose one task is draining.
struct Draining {
    swarm: Scenario,
    web: ServiceId,
    sessions: Sessions,
    nodes: [(NodeId, SessionId); 2],
    /// The generation that told of the drain, the same in both sessions.
    generation: u64,
}

impl Draining {
    fn new() -> Self {
        let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
        let web = swarm.add_service("web", 1, published);
        swarm.run();
        let mut sessions = Sessions::new(&swarm.state);
        let nodes = ["h1", "h2"].map(|name| {
            let node = swarm.node_id(name);
            let id = SessionId::random(&mut rand::rng());
            let first = sessions.open(&swarm.state, &node, id.clone());
            sessions.applied(&node, &id, first.generation);
            (node, id)
        });
        swarm.scale(&web, 0);
        swarm.settle();
        let generation = sessions.round(&swarm.state)[0].1.generation;
        Self {
            swarm,
            web,
            sessions,
            nodes,
            generation,
        }
    }

    fn apply(&mut self, node: usize, generation: u64) {
        let (node, id) = self.nodes[node].clone();
        self.sessions.applied(&node, &id, generation);
    }

    fn reopen(&mut self, node: usize) -> u64 {
        let id = SessionId::random(&mut rand::rng());
        self.nodes[node].1 = id.clone();
        let node = self.nodes[node].0.clone();
        self.sessions.open(&self.swarm.state, &node, id).generation
    }

    fn is_drained(&self) -> bool {
        let task = &self.swarm.tasks(&self.web)[0].id;
        self.sessions.drained(&self.swarm.state).contains(task)
    }
}

#[test]
fn once_every_node_has_applied_it() {
    let mut case = Draining::new();
    assert!(!case.is_drained());
    case.apply(0, case.generation);
    assert!(!case.is_drained());
    case.apply(1, case.generation - 1);
    assert!(!case.is_drained(), "an older generation says nothing");
    case.apply(1, case.generation);
    assert!(case.is_drained());
}

#[test]
fn a_later_generation_says_so_too() {
    let mut case = Draining::new();
    let other = case.swarm.add_service("other", 1, published);
    case.swarm.settle();
    case.sessions.round(&case.swarm.state);
    assert!(!case.is_drained(), "{}", case.swarm.show(&other));
    for node in 0..2 {
        case.apply(node, case.generation + 1);
    }
    assert!(case.is_drained());
}

#[test]
fn a_dead_node_is_not_waited_for_and_a_silent_one_is() {
    for (state, drained) in [
        (NodeState::Unknown, false),
        (NodeState::Suspect, false),
        (NodeState::Down, true),
    ] {
        let mut case = Draining::new();
        case.apply(0, case.generation);
        case.swarm.set_node_state("h2", state);
        assert_eq!(case.is_drained(), drained, "{state:?}");
    }
}

#[test]
fn a_new_session_begins_anew() {
    let mut case = Draining::new();
    case.apply(0, case.generation);
    case.apply(1, case.generation);
    assert!(case.is_drained());
    let (node, old) = case.nodes[1].clone();
    let first = case.reopen(1);
    assert!(
        !case.is_drained(),
        "the agent may have restarted with other ideas"
    );
    case.sessions.applied(&node, &old, 99);
    case.sessions.close(&node, &old);
    assert!(!case.is_drained(), "the old session is over");
    case.apply(1, first);
    assert!(case.is_drained(), "the complete set has the drain in it");
}

#[test]
fn a_new_leader_begins_anew() {
    let mut case = Draining::new();
    case.apply(0, case.generation);
    case.apply(1, case.generation);
    case.sessions = Sessions::new(&case.swarm.state);
    assert!(!case.is_drained());
    for node in 0..2 {
        let first = case.reopen(node);
        case.apply(node, first);
    }
    assert!(case.is_drained());
}

#[test]
fn an_agent_far_behind_only_counts_as_further_behind() {
    let mut case = Draining::new();
    case.apply(0, case.generation);
    for change in 0..3000u32 {
        case.swarm.edit_node("h1", |node| {
            node.description.data_path_address = Some(std::net::Ipv4Addr::from(change).into());
        });
        case.sessions.round(&case.swarm.state);
    }
    case.apply(1, case.generation);
    assert!(!case.is_drained());
    case.apply(1, case.generation + 3000);
    assert!(case.is_drained());
}
