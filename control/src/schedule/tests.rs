//! Where tasks go, and what those are told that go nowhere.

use std::time::Duration;

use swarm_model::{
    Availability, NodeState, PortConfig, Protocol, PublishMode, ServiceId, TaskState,
};

use crate::orchestrate::scenario::{Scenario, port, published};

/// How many running tasks of the service each node has.
fn spread<const N: usize>(swarm: &Scenario, service: &ServiceId, nodes: [&str; N]) -> [usize; N] {
    nodes.map(|name| {
        let node = swarm.node_id(name);
        let running = swarm.running(service);
        running
            .iter()
            .filter(|task| task.node_id.as_ref() == Some(&node))
            .count()
    })
}

#[test]
fn a_service_is_spread_over_the_nodes() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2", "h3"]);
    let web = swarm.add_service("web", 6, |_| {});
    swarm.run();
    assert_eq!(spread(&swarm, &web, ["h1", "h2", "h3"]), [2, 2, 2]);
}

#[test]
fn the_service_counts_before_the_total() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 1, |_| {});
    swarm.run();
    swarm.add_node("h2");
    let other = swarm.add_service("other", 3, |_| {});
    swarm.run();
    // h2 is emptier, so it gets the first and the third.
    assert_eq!(spread(&swarm, &other, ["h1", "h2"]), [1, 2]);
    // h2 has more tasks by now, but none of this service.
    swarm.scale(&web, 2);
    swarm.run();
    assert_eq!(spread(&swarm, &web, ["h1", "h2"]), [1, 1]);
}

#[test]
fn a_node_where_it_keeps_failing_comes_last() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    swarm.edit_node("h2", |node| node.spec.availability = Availability::Pause);
    let web = swarm.add_service("web", 1, |spec| spec.task.restart.delay = Duration::ZERO);
    let mut failures = 0;
    while failures < 5 {
        swarm.run();
        let task = swarm.wanted(&web, 1).id;
        swarm.report(&task, TaskState::Failed);
        failures += 1;
        swarm.advance(Duration::from_secs(1));
    }
    // h2 is fuller, and would be chosen last otherwise.
    swarm.edit_node("h2", |node| node.spec.availability = Availability::Active);
    swarm.edit_node("h1", |node| node.spec.availability = Availability::Pause);
    let other = swarm.add_service("other", 2, |_| {});
    swarm.run();
    assert_eq!(spread(&swarm, &other, ["h1", "h2"]), [0, 2]);
    swarm.edit_node("h1", |node| node.spec.availability = Availability::Active);
    assert_eq!(spread(&swarm, &web, ["h1", "h2"]), [0, 1]);

    let task = swarm.wanted(&web, 1).id;
    swarm.report(&task, TaskState::Failed);
    swarm.run();
    assert_eq!(
        spread(&swarm, &web, ["h1", "h2"]),
        [0, 1],
        "h1 has failed five times"
    );
    // Five minutes later that is forgotten.
    swarm.advance(Duration::from_secs(301));
    let task = swarm.wanted(&web, 1).id;
    swarm.report(&task, TaskState::Failed);
    swarm.run();
    assert_eq!(spread(&swarm, &web, ["h1", "h2"]), [1, 0]);
}

#[test]
fn reservations_are_kept_until_a_task_has_ended() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let big = swarm.add_service("big", 2, |spec| {
        spec.task.resources.reserve_memory_bytes = 600 << 20;
    });
    swarm.run();
    assert_eq!(swarm.running(&big).len(), 1);
    let waiting = swarm.wanted(&big, 2);
    assert_eq!(
        waiting.status.error,
        "no suitable node: 1 node has less than the reserved 600 MiB of memory free"
    );
    assert_eq!(waiting.status.state, TaskState::Pending);

    let cpu = swarm.add_service("cpu", 1, |spec| {
        spec.task.resources.reserve_nano_cpus = 4_500_000_000;
    });
    swarm.run();
    assert_eq!(
        swarm.wanted(&cpu, 1).status.error,
        "no suitable node: 1 node has less than the reserved 4.5 CPUs free"
    );

    let first = swarm.wanted(&big, 1).id;
    swarm.report(&first, TaskState::Failed);
    swarm.settle();
    assert_eq!(swarm.wanted(&big, 2).status.state, TaskState::Assigned);
    assert_eq!(swarm.wanted(&big, 2).status.error, "");
}

#[test]
fn what_is_missing_is_told() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2", "h3", "h4", "h5", "h6"]);
    swarm.edit_node("h1", |node| node.spec.availability = Availability::Drain);
    swarm.edit_node("h2", |node| node.spec.availability = Availability::Pause);
    swarm.set_node_state("h3", NodeState::Down);
    swarm.set_node_state("h4", NodeState::Suspect);
    let web = swarm.add_service("web", 1, |spec| {
        published(spec);
        let constraints = ["node.role!=manager", "node.labels.zone==east"];
        spec.task.placement.constraints = constraints.map(str::to_owned).to_vec();
    });
    swarm.settle();
    assert_eq!(
        swarm.wanted(&web, 1).status.error,
        "no suitable node: 2 nodes do not satisfy node.labels.zone==east, 1 node is down, 1 node \
         does not answer, 1 node is paused, 1 node is drained"
    );
    assert_eq!(swarm.step(), 0, "it is told once");

    swarm.edit_node("h6", |node| {
        node.spec
            .labels
            .insert("zone".to_owned(), "east".to_owned());
    });
    swarm.run();
    assert_eq!(spread(&swarm, &web, ["h6"]), [1]);
}

#[test]
fn a_swarm_without_nodes_says_so() {
    let mut swarm = Scenario::new();
    let web = swarm.add_service("web", 1, |_| {});
    swarm.settle();
    let error = swarm.wanted(&web, 1).status.error;
    assert_eq!(error, "no suitable node: the swarm has no nodes");
}

#[test]
fn a_constraint_that_cannot_be_read_is_satisfied_by_no_node() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 1, |spec| {
        spec.task.placement.constraints = vec!["nonsense".to_owned()];
    });
    swarm.settle();
    let error = swarm.wanted(&web, 1).status.error;
    assert_eq!(error, "no suitable node: 1 node does not satisfy nonsense");
}

/// Publishes `published` on the nodes that have a task.
fn host_port(published: u16) -> PortConfig {
    PortConfig {
        mode: PublishMode::Host,
        ..port(published, 80)
    }
}

#[test]
fn a_host_mode_port_has_one_task_a_node_and_the_next_is_told_why_it_waits() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    let web = swarm.add_service("web", 3, |spec| {
        spec.endpoint.ports = vec![host_port(8080)];
    });
    swarm.run();
    assert_eq!(spread(&swarm, &web, ["h1", "h2"]), [1, 1]);
    let told = "no suitable node: 2 nodes have host-mode port 8080/tcp in use already";
    assert_eq!(swarm.wanted(&web, 3).status.error, told);

    // Another service's tasks are as much in the way; another port and protocol are not.
    swarm.advance(Duration::from_secs(1));
    let other = swarm.add_service("other", 1, |spec| {
        spec.endpoint.ports = vec![host_port(8080)];
    });
    let free = swarm.add_service("free", 2, |spec| {
        let udp = PortConfig {
            protocol: Protocol::Udp,
            ..host_port(8080)
        };
        spec.endpoint.ports = vec![host_port(8081), udp];
    });
    swarm.run();
    assert_eq!(spread(&swarm, &free, ["h1", "h2"]), [1, 1]);
    assert_eq!(swarm.wanted(&other, 1).status.error, told);

    // A third node takes the task that has waited longest.
    swarm.add_node("h3");
    swarm.run();
    assert_eq!(spread(&swarm, &web, ["h1", "h2", "h3"]), [1, 1, 1]);
    let told = "no suitable node: 3 nodes have host-mode port 8080/tcp in use already";
    assert_eq!(swarm.wanted(&other, 1).status.error, told);
}

#[test]
fn an_update_takes_the_port_over_from_the_task_that_leaves() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    let web = swarm.add_service("web", 2, |spec| {
        spec.endpoint.ports = vec![host_port(8080)];
        spec.task.restart.delay = Duration::ZERO;
    });
    swarm.run();
    swarm.edit_service(&web, |spec| spec.task.force_update += 1);
    swarm.run();
    assert_eq!(spread(&swarm, &web, ["h1", "h2"]), [1, 1]);
    assert!(
        swarm
            .running(&web)
            .iter()
            .all(|task| task.spec.force_update == 1)
    );
}
