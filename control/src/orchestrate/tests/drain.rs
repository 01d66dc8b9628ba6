//! Nodes that are drained, paused and active again.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use swarm_model::{
    Availability, DesiredState, RestartCondition, ServiceId, ServiceSpec, Task, TaskState,
    UpdateConfig, UpdateOrder,
};

use crate::orchestrate::scenario::{Scenario, published};

fn set(swarm: &mut Scenario, node: &str, availability: Availability) {
    swarm.edit_node(node, |node| node.spec.availability = availability);
}

/// Running tasks of the service that are wanted, and are on the node.
fn on(swarm: &Scenario, service: &ServiceId, node: &str) -> Vec<Task> {
    let id = swarm.node_id(node);
    let mut tasks = swarm.running(service);
    tasks.retain(|task| task.node_id.as_ref() == Some(&id));
    tasks
}

/// Passes and agents in turn until both rest; at every step every slot has a running task.
fn runs_all_the_time(swarm: &mut Scenario, service: &ServiceId, replicas: usize) {
    loop {
        swarm.settle();
        let slots: BTreeSet<_> = swarm.running(service).iter().map(|it| it.slot).collect();
        assert_eq!(slots.len(), replicas, "{}", swarm.show(service));
        if !swarm.agents() {
            return;
        }
    }
}

#[test]
fn a_task_leaves_when_another_runs_elsewhere_whatever_the_order_of_updates() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut swarm = Scenario::with_nodes(&["h1"]);
        let web = swarm.add_service("web", 1, |spec| {
            published(spec);
            spec.update.order = order;
        });
        swarm.run();
        swarm.add_node("h2");
        swarm.advance(Duration::from_millis(100));
        set(&mut swarm, "h1", Availability::Drain);
        for expected in [
            "1 web:1 running>running@h1\n1 web:1 assigned>running@h2",
            "1 web:1 running>draining@h1\n1 web:1 running>running@h2",
            "1 web:1 running>shutdown@h1\n1 web:1 running>running@h2",
            "1 web:1 shutdown>shutdown@h1\n1 web:1 running>running@h2",
        ] {
            swarm.settle();
            assert_eq!(swarm.show(&web), expected, "{order:?}");
            swarm.agents();
        }
    }
}

#[test]
fn as_many_move_at_a_time_as_the_services_updates_take_and_as_slowly() {
    for (parallelism, at_once) in [(1, 1), (2, 2), (0, 5)] {
        let mut swarm = Scenario::with_nodes(&["h1"]);
        let web = swarm.add_service("web", 5, |spec| {
            published(spec);
            spec.update.parallelism = parallelism;
            spec.update.delay = Duration::from_secs(10);
        });
        swarm.run();
        swarm.add_node("h2");
        swarm.advance(Duration::from_secs(60));
        set(&mut swarm, "h1", Availability::Drain);
        let mut left = 5;
        while left > 0 {
            runs_all_the_time(&mut swarm, &web, 5);
            left -= at_once.min(left);
            assert_eq!(on(&swarm, &web, "h1").len(), left);
            assert_eq!(swarm.wake_at.is_some(), left > 0);
            swarm.advance(Duration::from_millis(9_999));
            assert_eq!(swarm.step(), 0);
            swarm.advance(Duration::from_millis(1));
        }
        assert_eq!(on(&swarm, &web, "h2").len(), 5);
    }
}

#[test]
fn without_another_place_a_task_stays_and_moves_once_there_is_one() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 2, published);
    swarm.run();
    let before = swarm.running(&web);
    set(&mut swarm, "h1", Availability::Drain);
    swarm.run();
    swarm.advance(Duration::from_secs(3600));
    swarm.run();
    assert_eq!(swarm.running(&web), before);
    let waiting: Vec<_> = swarm
        .tasks(&web)
        .into_iter()
        .filter(|task| task.status.state == TaskState::Pending)
        .collect();
    assert_eq!(waiting.len(), 1, "{}", swarm.show(&web));
    assert_eq!(
        waiting[0].status.error,
        "no suitable node: 1 node is drained"
    );
    swarm.add_node("h2");
    runs_all_the_time(&mut swarm, &web, 2);
    assert_eq!(on(&swarm, &web, "h2").len(), 2);
}

#[test]
fn a_replacement_that_fails_leaves_the_old_task_serving() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 2, |spec| {
        published(spec);
        spec.task.restart.max_attempts = 2;
    });
    swarm.run();
    let before = swarm.running(&web);
    swarm.add_node("h2");
    set(&mut swarm, "h1", Availability::Drain);
    for _ in 0..6 {
        swarm.settle();
        assert_eq!(swarm.running(&web), before, "{}", swarm.show(&web));
        for task in swarm.tasks(&web) {
            if task.status.state == TaskState::Assigned {
                swarm.report(&task.id, TaskState::Rejected);
            }
        }
        swarm.advance(Duration::from_secs(5));
    }
}

#[test]
fn a_slot_that_fails_elsewhere_holds_up_no_drain() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 3, published);
    swarm.run();
    swarm.add_node("h2");
    set(&mut swarm, "h1", Availability::Pause);
    let failing = swarm.wanted(&web, 1).id;
    swarm.report(&failing, TaskState::Failed);
    swarm.settle();
    assert_eq!(swarm.wanted(&web, 1).status.state, TaskState::Pending);
    set(&mut swarm, "h1", Availability::Drain);
    swarm.run();
    assert_eq!(on(&swarm, &web, "h1").len(), 0, "{}", swarm.show(&web));
    assert_eq!(on(&swarm, &web, "h2").len(), 2);
}

#[test]
fn a_node_that_is_active_again_keeps_what_it_still_has_and_gets_nothing_back() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 3, published);
    swarm.run();
    swarm.add_node("h2");
    set(&mut swarm, "h1", Availability::Drain);
    // The first has moved, the replacement of the second is on its way.
    while on(&swarm, &web, "h2").is_empty() {
        swarm.settle();
        swarm.agents();
    }
    swarm.settle();
    let moved = on(&swarm, &web, "h2");
    let stayed = on(&swarm, &web, "h1");
    assert_eq!(stayed.len(), 2);
    set(&mut swarm, "h1", Availability::Active);
    runs_all_the_time(&mut swarm, &web, 3);
    assert_eq!(on(&swarm, &web, "h1"), stayed);
    assert_eq!(on(&swarm, &web, "h2"), moved);
    assert_eq!(
        swarm
            .tasks(&web)
            .iter()
            .filter(|it| !it.status.state.is_terminal())
            .count(),
        3
    );
    swarm.scale(&web, 4);
    swarm.run();
    assert_eq!(
        on(&swarm, &web, "h1").len() + on(&swarm, &web, "h2").len(),
        4
    );
}

#[test]
fn a_paused_node_keeps_its_tasks_and_gets_no_more() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 2, published);
    swarm.run();
    let before = swarm.running(&web);
    set(&mut swarm, "h1", Availability::Pause);
    assert_eq!(swarm.step(), 0);
    swarm.scale(&web, 3);
    swarm.run();
    assert_eq!(swarm.running(&web), before);
    assert_eq!(
        swarm.wanted(&web, 3).status.error,
        "no suitable node: 1 node is paused"
    );
    set(&mut swarm, "h1", Availability::Active);
    swarm.run();
    assert_eq!(on(&swarm, &web, "h1").len(), 3);
}

fn once(spec: &mut ServiceSpec) {
    spec.task.restart.condition = RestartCondition::None;
}

#[test]
fn what_must_run_only_once_is_not_started_again_by_a_drain() {
    for (condition, end) in [
        (RestartCondition::None, None),
        (RestartCondition::None, Some(TaskState::Complete)),
        (RestartCondition::None, Some(TaskState::Failed)),
        (RestartCondition::OnFailure, Some(TaskState::Complete)),
    ] {
        let mut swarm = Scenario::with_nodes(&["h1"]);
        let job = swarm.add_service("job", 1, |spec| {
            once(spec);
            spec.task.restart.condition = condition;
        });
        swarm.run();
        let task = swarm.wanted(&job, 1);
        if let Some(end) = end {
            swarm.report(&task.id, end);
        }
        swarm.run();
        swarm.add_node("h2");
        set(&mut swarm, "h1", Availability::Drain);
        swarm.run();
        assert_eq!(swarm.tasks(&job).len(), 1, "{}", swarm.show(&job));
        assert_eq!(swarm.wanted(&job, 1).id, task.id);
    }
}

#[test]
fn what_leaves_anyway_goes_first_when_there_are_too_many() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    let web = swarm.add_service("web", 4, published);
    swarm.run();
    assert_eq!(on(&swarm, &web, "h1").len(), 2);
    let stays = on(&swarm, &web, "h2");
    set(&mut swarm, "h1", Availability::Drain);
    swarm.scale(&web, 2);
    swarm.run();
    assert_eq!(swarm.running(&web), stays);
}

#[test]
fn an_update_during_a_drain_goes_by_its_own_order() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 1, published);
    swarm.run();
    swarm.set_image(&web, "web:2");
    set(&mut swarm, "h1", Availability::Drain);
    swarm.add_node("h2");
    swarm.settle();
    assert_eq!(swarm.show(&web), "1 web:1 running>draining@h1");
    swarm.run();
    assert_eq!(on(&swarm, &web, "h2").len(), 1, "{}", swarm.show(&web));
}

const NODES: [&str; 3] = ["h1", "h2", "h3"];

#[derive(Clone, Copy, Debug)]
enum Event {
    /// Some node is wanted for this from now on.
    Set(usize, Availability),
    /// One of those tasks that have something to do does it.
    Task(u8),
    /// A new leader: nothing is remembered but the store.
    NewLeader,
}

fn event() -> impl Strategy<Value = Event> {
    let availability = prop::sample::select(vec![
        Availability::Active,
        Availability::Pause,
        Availability::Drain,
        Availability::Drain,
    ]);
    prop_oneof![
        2 => (0..NODES.len(), availability).prop_map(|(node, to)| Event::Set(node, to)),
        8 => any::<u8>().prop_map(Event::Task),
        1 => Just(Event::NewLeader),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever nodes are drained and active again, in whatever order agents work: every slot has
    /// a running task at every moment, no more move at a time than the update's parallelism says,
    /// and in the end drained nodes are empty where there is another place.
    #[test]
    fn a_drain_takes_nothing_away(
        replicas in 1..6u64,
        parallelism in 0..4u64,
        start_first: bool,
        events in prop::collection::vec(event(), 1..80),
    ) {
        let order = if start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        let mut swarm = Scenario::with_nodes(&NODES);
        let web = swarm.add_service("web", replicas, |spec| {
            published(spec);
            spec.update = UpdateConfig { parallelism, delay: Duration::ZERO, order };
        });
        swarm.run();
        let bound = if parallelism == 0 { replicas } else { parallelism.min(replicas) };
        for event in events {
            match event {
                Event::Set(node, to) => set(&mut swarm, NODES[node], to),
                Event::NewLeader => swarm.forget(),
                Event::Task(choice) => {
                    let tasks = swarm.tasks(&web);
                    let busy: Vec<_> = tasks.iter().filter(|task| {
                        swarm.next_report(task).is_some()
                            || task.desired_state == DesiredState::Draining
                    }).collect();
                    if let Some(task) = busy.get(usize::from(choice) % busy.len().max(1)) {
                        match swarm.next_report(task) {
                            Some(next) => swarm.report(&task.id.clone(), next),
                            None => { swarm.drained.insert(task.id.clone()); }
                        }
                    }
                }
            }
            swarm.settle();
            swarm.advance(Duration::from_millis(10));
            let mut slots: Vec<_> = swarm.running(&web).iter().map(|task| task.slot).collect();
            slots.dedup();
            prop_assert_eq!(slots.len() as u64, replicas, "{}", swarm.show(&web));
            let wanted = swarm.tasks(&web).into_iter().filter(|task| {
                task.desired_state == DesiredState::Running && !task.status.state.is_terminal()
            });
            prop_assert!(wanted.count() as u64 <= replicas + bound, "{}", swarm.show(&web));
        }
        swarm.run();
        let nodes: Vec<_> = swarm.state.nodes().cloned().collect();
        let has_place = nodes.iter().any(|it| it.spec.availability == Availability::Active);
        for node in nodes {
            let name = &node.description.hostname;
            if has_place && node.spec.availability == Availability::Drain {
                prop_assert!(on(&swarm, &web, name).is_empty(), "{}", swarm.show(&web));
            }
        }
    }
}
