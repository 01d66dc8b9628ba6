//! Scaling, restarts, lost nodes, how tasks end, history.

use std::time::Duration;

use swarm_model::{DesiredState, NodeState, RestartCondition, ServiceSpec, Task, TaskState};

use crate::orchestrate::retire::DRAIN_DEADLINE;
use crate::orchestrate::scenario::{Scenario, on, published};

fn slots(tasks: &[Task]) -> Vec<u64> {
    tasks.iter().map(|task| task.slot).collect()
}

fn plain(_: &mut ServiceSpec) {}

#[test]
fn scaling_up_fills_the_lowest_free_slots() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    let web = swarm.add_service("web", 3, plain);
    swarm.run();
    assert_eq!(slots(&swarm.running(&web)), [1, 2, 3]);

    // Slot 2 goes because it alone does not run.
    let second = swarm.wanted(&web, 2).id;
    swarm.report(&second, TaskState::Failed);
    swarm.scale(&web, 2);
    swarm.run();
    assert_eq!(slots(&swarm.running(&web)), [1, 3]);
    assert_eq!(
        slots(&swarm.tasks(&web)),
        [1, 3],
        "its history goes with it"
    );

    swarm.scale(&web, 5);
    swarm.run();
    assert_eq!(slots(&swarm.running(&web)), [1, 2, 3, 4, 5]);
    swarm.scale(&web, 0);
    swarm.run();
    assert!(swarm.tasks(&web).is_empty(), "{}", swarm.show(&web));
}

#[test]
fn scaling_down_thins_the_fullest_nodes() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 3, plain);
    swarm.run();
    swarm.add_node("h2");
    swarm.scale(&web, 4);
    swarm.run();
    let nodes = |swarm: &Scenario| {
        let on = |name: &str| {
            let id = swarm.node_id(name);
            let running = swarm.running(&web);
            running
                .iter()
                .filter(|task| task.node_id.as_ref() == Some(&id))
                .count()
        };
        (on("h1"), on("h2"))
    };
    assert_eq!(nodes(&swarm), (3, 1));
    swarm.scale(&web, 2);
    swarm.run();
    assert_eq!(nodes(&swarm), (1, 1));
    assert_eq!(
        slots(&swarm.running(&web)),
        [1, 4],
        "the highest slot of h1 went first"
    );
}

#[test]
fn a_failed_task_is_followed_by_another_after_the_delay() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 1, plain);
    swarm.run();
    let first = swarm.wanted(&web, 1);
    swarm.advance(Duration::from_secs(1));
    swarm.report(&first.id, TaskState::Failed);
    swarm.settle();
    assert_eq!(
        swarm.show(&web),
        "1 web:1 failed>shutdown@h1\n1 web:1 pending>running@-"
    );
    let second = swarm.wanted(&web, 1);
    assert_eq!(second.not_before, swarm.now.after(Duration::from_secs(5)));
    assert_eq!(swarm.wake_at, Some(second.not_before));

    swarm.advance(Duration::from_millis(4999));
    swarm.run();
    assert_eq!(swarm.wanted(&web, 1).status.state, TaskState::Pending);
    swarm.advance(Duration::from_millis(1));
    swarm.run();
    assert_eq!(swarm.wanted(&web, 1).id, second.id);
    assert_eq!(swarm.running(&web).len(), 1);
}

#[test]
fn a_clock_that_is_set_back_or_ahead_by_hours_holds_nothing_up() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    swarm.now = swarm.now.after(Duration::from_secs(24 * 3600));
    let hours = Duration::from_secs(5 * 3600);
    let web = swarm.add_service("web", 2, |spec| {
        published(spec);
        spec.update.delay = Duration::from_secs(5);
    });
    swarm.run();
    let short = |swarm: &mut Scenario| {
        for _ in 0..60 {
            swarm.advance(Duration::from_secs(1));
            swarm.run();
        }
    };
    for back in [true, false] {
        // Both a task that fell, and one that waits to be started, and a rolling update.
        let failed = swarm.wanted(&web, 1);
        swarm.report(&failed.id, TaskState::Failed);
        swarm.settle();
        let second = swarm.wanted(&web, 2);
        swarm.report(&second.id, TaskState::Failed);
        let jump = |swarm: &mut Scenario| {
            swarm.now = if back {
                swarm_model::Timestamp(swarm.now.0 - hours.as_millis() as u64)
            } else {
                swarm.now.after(hours)
            };
        };
        jump(&mut swarm);
        short(&mut swarm);
        assert_eq!(slots(&swarm.running(&web)), [1, 2], "{}", swarm.show(&web));
        swarm.set_image(&web, if back { "web:2" } else { "web:3" });
        swarm.settle();
        jump(&mut swarm);
        short(&mut swarm);
        let running = swarm.running(&web);
        assert_eq!(slots(&running), [1, 2], "{}", swarm.show(&web));
        let image = &swarm.service(&web).spec.task.container.image;
        let all = running.iter().all(|it| it.spec.container.image == *image);
        assert!(all, "{}", swarm.show(&web));
    }
}

#[test]
fn the_condition_says_which_ends_are_followed() {
    use RestartCondition::{Any, None, OnFailure};
    for (condition, end, restarts) in [
        (Any, TaskState::Complete, true),
        (Any, TaskState::Failed, true),
        (Any, TaskState::Rejected, true),
        (OnFailure, TaskState::Complete, false),
        (OnFailure, TaskState::Failed, true),
        (OnFailure, TaskState::Rejected, true),
        (None, TaskState::Complete, false),
        (None, TaskState::Failed, false),
    ] {
        let mut swarm = Scenario::with_nodes(&["h1"]);
        let web = swarm.add_service("web", 1, |spec| spec.task.restart.condition = condition);
        swarm.settle();
        let first = swarm.wanted(&web, 1).id;
        swarm.report(&first, end);
        swarm.settle();
        let wanted = swarm.wanted(&web, 1);
        assert_eq!(wanted.id != first, restarts, "{condition:?} {end:?}");

        // An update starts the slot anew, whatever the condition.
        swarm.set_image(&web, "web:2");
        swarm.advance(Duration::from_secs(5));
        swarm.run();
        let running = swarm.running(&web);
        assert_eq!(running.len(), 1, "{condition:?} {end:?}");
        assert_eq!(running[0].spec.container.image, "web:2");
    }
}

#[test]
fn attempts_are_counted_within_the_window() {
    for (window_s, restarts) in [(0, 2), (60, 2), (7, 10)] {
        let mut swarm = Scenario::with_nodes(&["h1"]);
        let web = swarm.add_service("web", 1, |spec| {
            spec.task.restart.max_attempts = 2;
            spec.task.restart.window = Duration::from_secs(window_s);
        });
        let mut ended = Vec::new();
        for _ in 0..11 {
            swarm.run();
            let task = swarm.wanted(&web, 1);
            if task.status.state.is_terminal() {
                break;
            }
            swarm.report(&task.id, TaskState::Failed);
            ended.push(task.id);
            swarm.settle();
            swarm.advance(Duration::from_secs(5));
        }
        assert_eq!(ended.len(), restarts + 1, "window {window_s} s");
    }
}

#[test]
fn tasks_of_a_dead_node_are_replaced_at_once() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    let web = swarm.add_service("web", 2, published);
    swarm.run();
    let lost = swarm.running(&web).into_iter();
    let h1 = swarm.node_id("h1");
    let lost = lost
        .filter(|task| task.node_id.as_ref() == Some(&h1))
        .collect::<Vec<_>>();
    assert_eq!(lost.len(), 1);

    for state in [NodeState::Suspect, NodeState::Unknown, NodeState::Ready] {
        swarm.set_node_state("h1", state);
        assert_eq!(swarm.step(), 0, "{state:?} replaces nothing");
    }
    swarm.set_node_state("h1", NodeState::Down);
    swarm.run();
    let old = swarm.state.task(&lost[0].id).expect("kept as history");
    assert_eq!(old.status.state, TaskState::Orphaned);
    assert_eq!(old.status.message, "node h1 is down");
    assert_eq!(old.desired_state, DesiredState::Shutdown);
    let h2 = swarm.node_id("h2");
    let running = swarm.running(&web);
    assert_eq!(running.len(), 2);
    assert!(
        running
            .iter()
            .all(|task| task.node_id.as_ref() == Some(&h2))
    );
    let addresses: Vec<_> = running.iter().map(|task| task.ingress_address).collect();
    assert!(
        !addresses.contains(&lost[0].ingress_address),
        "it may still be in use over there"
    );

    // Back again, it is told to stop what was replaced, and nothing else changes.
    swarm.set_node_state("h1", NodeState::Ready);
    assert_eq!(swarm.step(), 0);
}

#[test]
fn a_task_that_must_not_restart_waits_for_its_node() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    let job = swarm.add_service("job", 1, |spec| {
        spec.task.restart.condition = RestartCondition::None;
    });
    swarm.run();
    let task = swarm.wanted(&job, 1);
    let name = if task.node_id == Some(swarm.node_id("h1")) {
        "h1"
    } else {
        "h2"
    };
    swarm.set_node_state(name, NodeState::Down);
    assert_eq!(swarm.step(), 0);
    swarm.set_node_state(name, NodeState::Ready);
    assert_eq!(swarm.step(), 0);
    swarm.remove(swarm.node_id(name));
    swarm.run();
    let task = swarm.wanted(&job, 1);
    assert_eq!(task.status.state, TaskState::Orphaned);
    assert_eq!(task.status.message, "its node was removed from the swarm");
}

#[test]
fn a_running_task_drains_before_it_stops() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 2, published);
    swarm.run();
    swarm.scale(&web, 1);
    swarm.settle();
    assert_eq!(
        swarm.show(&web),
        "1 web:1 running>running@h1\n2 web:1 running>draining@h1"
    );
    let deadline = swarm.now.after(DRAIN_DEADLINE);
    assert_eq!(swarm.wake_at, Some(deadline));
    // Acknowledged everywhere.
    let task = swarm.slot(&web, 2).remove(0);
    swarm.drained.insert(task.id);
    swarm.settle();
    assert_eq!(swarm.slot(&web, 2)[0].desired_state, DesiredState::Remove);
    swarm.run();
    assert_eq!(slots(&swarm.tasks(&web)), [1]);
}

#[test]
fn a_task_that_only_its_network_reaches_drains_as_well() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let network = swarm.add_network("back", |_| ());
    let hidden = swarm.add_service("hidden", 1, on(&network));
    swarm.run();
    swarm.scale(&hidden, 0);
    swarm.settle();
    assert_eq!(
        swarm.slot(&hidden, 1)[0].desired_state,
        DesiredState::Draining
    );
}

#[test]
fn a_drain_ends_with_its_deadline_or_its_node() {
    for node_dies in [false, true] {
        let mut swarm = Scenario::with_nodes(&["h1"]);
        let web = swarm.add_service("web", 1, published);
        swarm.run();
        swarm.scale(&web, 0);
        swarm.settle();
        assert_eq!(swarm.slot(&web, 1)[0].desired_state, DesiredState::Draining);
        if node_dies {
            swarm.set_node_state("h1", NodeState::Down);
            swarm.settle();
            assert!(swarm.tasks(&web).is_empty());
        } else {
            swarm.advance(DRAIN_DEADLINE - Duration::from_millis(1));
            assert_eq!(swarm.step(), 0);
            swarm.advance(Duration::from_millis(1));
            swarm.settle();
            assert_eq!(swarm.slot(&web, 1)[0].desired_state, DesiredState::Remove);
        }
    }
}

#[test]
fn what_serves_nobody_stops_without_draining() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let hidden = swarm.add_service("hidden", 1, plain);
    swarm.run();
    let web = swarm.add_service("web", 2, published);
    swarm.settle();
    let first = swarm.wanted(&web, 1).id;
    swarm.report(&first, TaskState::Preparing);
    swarm.scale(&web, 0);
    swarm.scale(&hidden, 0);
    swarm.settle();
    for task in swarm.tasks(&web).into_iter().chain(swarm.tasks(&hidden)) {
        assert_eq!(task.desired_state, DesiredState::Remove, "{task:?}");
    }
}

#[test]
fn a_removed_service_goes_after_its_last_task() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 2, published);
    swarm.run();
    swarm.remove_service(&web);
    swarm.settle();
    assert_eq!(
        swarm.show(&web),
        "1 web:1 running>draining@h1\n2 web:1 running>draining@h1"
    );
    swarm.agents();
    swarm.settle();
    assert_eq!(
        swarm.show(&web),
        "1 web:1 running>remove@h1\n2 web:1 running>remove@h1"
    );
    assert!(swarm.state.service(&web).is_some());
    swarm.run();
    assert!(swarm.state.service(&web).is_none());
    assert_eq!(swarm.state.tasks().count(), 0);
}

#[test]
fn history_is_bounded() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 1, plain);
    let mut failed = Vec::new();
    for _ in 0..8 {
        swarm.run();
        let task = swarm.wanted(&web, 1).id;
        swarm.report(&task, TaskState::Failed);
        failed.push(task);
        swarm.settle();
        swarm.advance(Duration::from_secs(5));
    }
    let kept: Vec<_> = swarm.tasks(&web).into_iter().map(|task| task.id).collect();
    assert_eq!(kept.len(), 6, "five ended ones and the present one");
    assert_eq!(kept[..5], failed[3..], "the newest ones");
}

#[test]
fn a_stuck_task_does_not_hold_its_slot_for_ever() {
    let mut swarm = Scenario::with_nodes(&["h1"]);
    let web = swarm.add_service("web", 1, plain);
    swarm.run();
    swarm.set_image(&web, "web:2");
    swarm.settle();
    assert_eq!(swarm.show(&web), "1 web:1 running>shutdown@h1");
    let wake_at = swarm.wake_at.expect("it waits for the old task");
    swarm.now = wake_at;
    swarm.settle();
    assert_eq!(
        swarm.show(&web),
        "1 web:1 running>shutdown@h1\n1 web:2 assigned>running@h1"
    );
}

#[test]
fn a_large_service_is_made_in_bounded_batches() {
    let mut swarm = Scenario::with_nodes(&["h1", "h2", "h3"]);
    let web = swarm.add_service("web", 1000, published);
    swarm.run();
    assert_eq!(swarm.running(&web).len(), 1000);
    swarm.remove_service(&web);
    swarm.run();
    assert!(swarm.state.service(&web).is_none());
}
