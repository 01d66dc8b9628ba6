//! Rolling updates.

use std::time::Duration;

use proptest::prelude::*;
use swarm_model::{
    DesiredState, NodeState, ServiceId, ServiceSpec, TaskState, UpdateConfig, UpdateOrder,
};

use crate::orchestrate::scenario::{Scenario, published};

fn order(order: UpdateOrder) -> impl FnOnce(&mut ServiceSpec) {
    move |spec| {
        published(spec);
        spec.update.order = order;
    }
}

#[test]
fn stop_first_starts_the_new_task_when_the_old_one_has_stopped() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 2, order(UpdateOrder::StopFirst));
    swarm.run();
    swarm.set_image(&web, "web:2");
    for expected in [
        "1 web:1 running>draining@h1\n2 web:1 running>running@h1",
        "1 web:1 running>shutdown@h1\n2 web:1 running>running@h1",
        "1 web:1 shutdown>shutdown@h1\n1 web:2 assigned>running@h1\n2 web:1 running>running@h1",
        "1 web:1 shutdown>shutdown@h1\n1 web:2 running>running@h1\n2 web:1 running>draining@h1",
    ] {
        swarm.settle();
        assert_eq!(swarm.show(&web), expected);
        swarm.agents();
        swarm.advance(Duration::from_millis(100));
    }
    swarm.run();
    assert_eq!(images(&swarm, &web), ["web:2", "web:2"]);
}

#[test]
fn start_first_stops_the_old_task_when_the_new_one_runs() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 1, order(UpdateOrder::StartFirst));
    swarm.run();
    swarm.advance(Duration::from_millis(100));
    swarm.set_image(&web, "web:2");
    for expected in [
        "1 web:1 running>running@h1\n1 web:2 assigned>running@h1",
        "1 web:1 running>draining@h1\n1 web:2 running>running@h1",
        "1 web:1 running>shutdown@h1\n1 web:2 running>running@h1",
        "1 web:1 shutdown>shutdown@h1\n1 web:2 running>running@h1",
    ] {
        swarm.settle();
        assert_eq!(swarm.show(&web), expected);
        swarm.agents();
    }
}

fn images(swarm: &Scenario, service: &ServiceId) -> Vec<String> {
    let running = swarm.running(service).into_iter();
    running.map(|task| task.spec.container.image).collect()
}

#[test]
fn an_update_that_fails_stops_by_itself_and_can_be_corrected() {
    for order_of_two in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
        let web = swarm.add_service("web", 3, order(order_of_two));
        swarm.run();
        swarm.set_image(&web, "bad");
        for _ in 0..10 {
            swarm.settle();
            let tasks: Vec<_> = swarm.tasks(&web);
            for task in tasks {
                match swarm.next_report(&task) {
                    Some(TaskState::Running) if task.spec.container.image == "bad" => {
                        swarm.report(&task.id, TaskState::Rejected);
                    }
                    Some(next) => swarm.report(&task.id, next),
                    None => {}
                }
                if task.desired_state == DesiredState::Draining {
                    swarm.drained.insert(task.id);
                }
            }
            swarm.advance(Duration::from_secs(5));
        }
        let serving = match order_of_two {
            UpdateOrder::StopFirst => 2,
            UpdateOrder::StartFirst => 3,
        };
        assert_eq!(
            images(&swarm, &web),
            vec!["web:1"; serving],
            "{}",
            swarm.show(&web)
        );

        swarm.set_image(&web, "web:2");
        for _ in 0..5 {
            swarm.run();
            swarm.advance(Duration::from_secs(5));
        }
        assert_eq!(images(&swarm, &web), ["web:2"; 3], "{}", swarm.show(&web));
    }
}

#[test]
fn the_delay_passes_between_two_slots() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 3, |spec| {
        spec.update.delay = Duration::from_secs(10);
    });
    swarm.run();
    swarm.set_image(&web, "web:2");
    for updated in 1..=3 {
        swarm.run();
        let new = images(&swarm, &web)
            .iter()
            .filter(|image| *image == "web:2")
            .count();
        assert_eq!(new, updated);
        assert_eq!(swarm.wake_at.is_some(), updated < 3);
        swarm.advance(Duration::from_millis(9_999));
        assert_eq!(swarm.step(), 0);
        swarm.advance(Duration::from_millis(1));
    }
}

#[test]
fn publishing_a_port_replaces_nothing() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 2, |_| {});
    swarm.run();
    let before = swarm.running(&web);
    assert_eq!(before.len(), 2);
    swarm.edit_service(&web, published);
    swarm.run();
    assert_eq!(swarm.running(&web), before);
}

#[test]
fn other_edits_replace_nothing() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 2, published);
    swarm.run();
    let before = swarm.running(&web);
    swarm.edit_service(&web, |spec| {
        spec.labels.insert("a".to_owned(), "b".to_owned());
        spec.update.parallelism = 7;
    });
    swarm.run();
    assert_eq!(swarm.running(&web), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever agents do when: an update never takes more slots than its parallelism, and ends.
    #[test]
    fn parallelism_is_kept(
        replicas in 1..6u64,
        parallelism in 0..4u64,
        start_first: bool,
        updates in 1..3usize,
        choices in prop::collection::vec(any::<u8>(), 60),
    ) {
        let order = if start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
        let web = swarm.add_service("web", replicas, |spec| {
            published(spec);
            spec.update = UpdateConfig { parallelism, delay: Duration::ZERO, order };
        });
        swarm.run();
        let bound = if parallelism == 0 { replicas } else { parallelism.min(replicas) };
        for (at, choice) in choices.iter().enumerate() {
            if at % 20 == 0 && at / 20 < updates {
                swarm.set_image(&web, &format!("web:{}", at + 2));
            }
            swarm.settle();
            swarm.advance(Duration::from_millis(10));
            let serving = swarm.running(&web);
            let mut slots: Vec<_> = serving.iter().map(|task| task.slot).collect();
            slots.dedup();
            let wanted = swarm.tasks(&web).into_iter().filter(|task| {
                task.desired_state == DesiredState::Running && !task.status.state.is_terminal()
            });
            let wanted = wanted.count() as u64;
            if start_first {
                prop_assert_eq!(slots.len() as u64, replicas, "{}", swarm.show(&web));
                prop_assert!(wanted <= replicas + bound, "{}", swarm.show(&web));
            } else {
                prop_assert!(slots.len() as u64 + bound >= replicas, "{}", swarm.show(&web));
                prop_assert!(wanted <= replicas, "{}", swarm.show(&web));
            }
            // One task of those with something to do moves.
            let tasks = swarm.tasks(&web);
            let busy: Vec<_> = tasks.iter().filter(|task| {
                swarm.next_report(task).is_some() || task.desired_state == DesiredState::Draining
            }).collect();
            if let Some(task) = busy.get(usize::from(*choice) % busy.len().max(1)) {
                match swarm.next_report(task) {
                    Some(next) => swarm.report(&task.id.clone(), next),
                    None => { swarm.drained.insert(task.id.clone()); }
                }
            }
        }
        swarm.run();
        let image = swarm.service(&web).spec.task.container.image.clone();
        prop_assert_eq!(images(&swarm, &web), vec![image; replicas as usize]);
        prop_assert!(swarm.state.nodes().all(|node| node.status.state == NodeState::Ready));
    }
}
