//! What reports change.

use swarm_model::{NodeProblem, TaskId, TaskState, TaskStatus, Timestamp};

use crate::dispatch::observe::{Report, greet, note_problems, observe};
use crate::orchestrate::scenario::Scenario;
use crate::store::{Change, Object};

const NOW: Timestamp = Timestamp(77);

fn status(state: TaskState) -> TaskStatus {
    TaskStatus {
        state,
        since: Timestamp(1),
        ..TaskStatus::default()
    }
}

/// A swarm with a task in `state`, and a report on it.
fn case(state: TaskState, reported: TaskStatus) -> (Scenario, Report) {
    let mut swarm = Scenario::with_nodes(&["h1", "h2"]);
    let web = swarm.add_service("web", 1, |_| {});
    swarm.settle();
    let task = swarm.wanted(&web, 1);
    swarm.edit_task(&task.id, |task| task.status = status(state));
    let node = task.node_id.expect("placed");
    (
        swarm,
        Report {
            node,
            task: task.id,
            status: reported,
        },
    )
}

fn statuses(swarm: &Scenario, reports: &[Report]) -> Vec<TaskStatus> {
    let changes = observe(&swarm.state, reports, NOW).into_iter();
    changes
        .map(|change| match change {
            Change::Put(Object::Task(task)) => task.status,
            other => panic!("not a task: {other:?}"),
        })
        .collect()
}

#[test]
fn states_only_move_forward() {
    use TaskState::{Assigned, Complete, Failed, New, Orphaned, Preparing, Running, Shutdown};
    for (from, to, accepted) in [
        (Assigned, Preparing, true),
        (Assigned, Running, true),
        (Preparing, Preparing, false),
        (Running, Preparing, false),
        (Running, Failed, true),
        (Running, Complete, true),
        (Failed, Running, false),
        (Failed, Shutdown, false),
        (Orphaned, Running, false),
        (Running, Orphaned, false),
        (Assigned, New, false),
        (Assigned, Assigned, false),
    ] {
        let (swarm, report) = case(from, status(to));
        let states = statuses(&swarm, &[report]);
        assert_eq!(states.len(), usize::from(accepted), "{from:?} -> {to:?}");
        if let Some(after) = states.first() {
            assert_eq!(after.state, to);
            assert_eq!(after.since, NOW, "by this manager's clock");
        }
    }
}

#[test]
fn news_of_the_same_state_keeps_its_time() {
    let pulling = TaskStatus {
        error: "the registry does not answer".to_owned(),
        ..status(TaskState::Preparing)
    };
    let (swarm, report) = case(TaskState::Preparing, pulling);
    let before = swarm.state.task(&report.task).expect("placed").status.since;
    let after = statuses(&swarm, &[report]);
    assert_eq!(after[0].error, "the registry does not answer");
    assert_eq!(after[0].since, before);
}

#[test]
fn a_node_reports_on_its_own_tasks_only() {
    let (swarm, report) = case(TaskState::Assigned, status(TaskState::Running));
    let other = swarm
        .state
        .nodes()
        .find(|node| node.id != report.node)
        .expect("two nodes");
    let stranger = Report {
        node: other.id.clone(),
        ..report.clone()
    };
    assert!(statuses(&swarm, &[stranger]).is_empty());
    let unknown = Report {
        task: TaskId::random(&mut rand::rng()),
        ..report
    };
    assert!(statuses(&swarm, &[unknown]).is_empty());
}

#[test]
fn reports_of_one_batch_follow_each_other() {
    let (swarm, report) = case(TaskState::Assigned, status(TaskState::Running));
    let then = |state| Report {
        status: status(state),
        ..report.clone()
    };
    let reports = [
        report.clone(),
        then(TaskState::Preparing),
        then(TaskState::Failed),
    ];
    let after = statuses(&swarm, &reports);
    assert_eq!(after.len(), 1, "one change a task");
    assert_eq!(after[0].state, TaskState::Failed);
}

#[test]
fn long_texts_are_cut() {
    let endless = TaskStatus {
        error: "ä".repeat(100_000),
        ..status(TaskState::Rejected)
    };
    let (swarm, report) = case(TaskState::Assigned, endless);
    assert_eq!(statuses(&swarm, &[report])[0].error.chars().count(), 1024);
}

#[test]
fn a_greeting_that_changes_nothing_is_not_written() {
    let swarm = Scenario::with_nodes(&["h1"]);
    let node = swarm.state.nodes().next().expect("one node");
    let same = greet(
        node,
        node.description.clone(),
        (node.status.address, ""),
        NOW,
    );
    assert_eq!(same, None);
    assert_eq!(greet(node, node.description.clone(), (None, ""), NOW), None);
    let mut description = node.description.clone();
    description.hostname = "renamed".to_owned();
    let after = greet(node, description, (None, "0a"), NOW).expect("news");
    assert_eq!(after.description.hostname, "renamed");
    assert_eq!(after.meta.updated_at, NOW);
}

#[test]
fn problems_are_kept_as_they_are_and_bounded() {
    let swarm = Scenario::with_nodes(&["h1"]);
    let node = swarm.state.nodes().next().expect("one node");
    assert_eq!(note_problems(node, &[], NOW), None, "no news");
    let problem = NodeProblem {
        service: None,
        text: "ä".repeat(100_000),
    };
    let after = note_problems(node, &vec![problem; 1000], NOW).expect("news");
    assert_eq!(after.status.problems.len(), 64);
    assert_eq!(after.status.problems[0].text.chars().count(), 1024);
    let same = after.status.problems.clone();
    assert_eq!(note_problems(&after, &same, NOW), None);
    let well = note_problems(&after, &[], NOW).expect("news");
    assert!(well.status.problems.is_empty());
}
