//! What a node that is drained still has, and what holds it up. Pure.
//!
//! What is done about it is `orchestrate`'s; here it is only told.

use std::sync::Arc;

use swarm_model::{DesiredState, NodeId, RestartCondition, Task, TaskId, TaskState};

use crate::store::State;

/// A task that has not ended on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leaving {
    pub(super) id: TaskId,
    /// As lists show it.
    pub(super) name: String,
    /// Why it cannot leave yet; empty while it is on its way, or waits for its turn.
    pub(super) held_up: String,
}

/// The tasks that have not ended on the node, by service and slot.
pub(super) fn leaving(state: &State, node: &NodeId) -> Vec<Leaving> {
    let mut tasks: Vec<_> = state
        .tasks_of_node(node)
        .filter(|task| !task.status.state.is_terminal())
        .collect();
    tasks.sort_by_key(|task| (&task.service_name, task.slot, &task.id));
    let leaving = tasks.into_iter().map(|task| Leaving {
        id: task.id.clone(),
        name: task.name(),
        held_up: held_up(state, task).unwrap_or_default(),
    });
    leaving.collect()
}

fn held_up(state: &State, task: &Task) -> Option<String> {
    let service = state.service(&task.service_id)?;
    if task.desired_state != DesiredState::Running || service.pending_delete {
        return None;
    }
    let current = task.template_version == service.template_version;
    if current && task.spec.restart.condition == RestartCondition::None {
        return Some(format!(
            "it is to run only once, and runs to its end here; `swarmctl service update --force {}` \
             starts it anew elsewhere",
            service.spec.name
        ));
    }
    if !service.endpoint.error.is_empty() {
        return Some(service.endpoint.error.clone());
    }
    let others: Vec<&Arc<Task>> = state
        .tasks_of_service(&service.id)
        .filter(|other| other.id != task.id && other.meta.created_at >= task.meta.created_at)
        .collect();
    let newest = |wanted: bool| {
        let of_slot = others.iter().filter(|other| {
            other.slot == task.slot && (other.desired_state == DesiredState::Running) == wanted
        });
        of_slot.max_by_key(|other| (other.meta.created_at, &other.id))
    };
    if let Some(next) = newest(true) {
        // Between two tries the last one tells.
        let waits = next.status.state < TaskState::Assigned;
        let last = newest(false).filter(|_| waits);
        return trouble(next).or_else(|| trouble(last?));
    }
    // Its turn comes after those that the service is at.
    let first = others
        .iter()
        .filter(|other| other.desired_state == DesiredState::Running)
        .find_map(|other| Some((other.name(), trouble(other)?)));
    first.map(|(name, trouble)| format!("{name} goes first, and {trouble}"))
}

/// What keeps a task that is to replace another from running.
fn trouble(task: &Task) -> Option<String> {
    let status = &task.status;
    match status.state {
        TaskState::New | TaskState::Pending if !status.error.is_empty() => {
            Some(format!("has no other place: {}", status.error))
        }
        TaskState::Failed | TaskState::Rejected => {
            let why = [&status.error, &status.message];
            let why = why.into_iter().find(|text| !text.is_empty());
            let why = why.map_or("without a word", String::as_str);
            Some(format!("its replacement failed: {why}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use swarm_model::Availability;

    use super::*;
    use crate::orchestrate::scenario::{Scenario, published};

    fn told(swarm: &Scenario) -> Vec<(String, String)> {
        let leaving = leaving(&swarm.state, &swarm.node_id("h1"));
        let told = leaving.into_iter().map(|it| (it.name, it.held_up));
        told.collect()
    }

    fn lines(lines: &[(&str, &str)]) -> Vec<(String, String)> {
        let lines = lines.iter();
        lines
            .map(|(name, held_up)| ((*name).to_owned(), (*held_up).to_owned()))
            .collect()
    }

    /// `web` with two tasks on h1, which is being drained.
    fn drained() -> Scenario {
        let mut swarm = Scenario::with_nodes(&["h1"]);
        swarm.add_service("web", 2, published);
        swarm.run();
        swarm.advance(Duration::from_millis(10));
        swarm.edit_node("h1", |node| node.spec.availability = Availability::Drain);
        swarm
    }

    #[test]
    fn tasks_without_another_place_say_so_and_the_rest_waits_for_them() {
        let mut swarm = drained();
        assert_eq!(told(&swarm), lines(&[("web.1", ""), ("web.2", "")]));
        swarm.settle();
        let why = "has no other place: no suitable node: 1 node is drained";
        let second = format!("web.1 goes first, and {why}");
        assert_eq!(told(&swarm), lines(&[("web.1", why), ("web.2", &second)]));
        swarm.add_node("h2");
        swarm.settle();
        assert_eq!(told(&swarm), lines(&[("web.1", ""), ("web.2", "")]));
        swarm.run();
        assert_eq!(told(&swarm), []);
    }

    #[test]
    fn a_replacement_that_fails_says_why_until_it_is_tried_again() {
        let mut swarm = drained();
        swarm.add_node("h2");
        swarm.settle();
        let service = swarm.state.service_by_name("web").unwrap().id.clone();
        let next = swarm.slot(&service, 1).pop().unwrap();
        assert_eq!(next.status.state, TaskState::Assigned);
        swarm.edit_task(&next.id, |task| {
            task.status.state = TaskState::Rejected;
            task.status.error = "no such image".to_owned();
        });
        for _ in 0..2 {
            let told = told(&swarm);
            assert_eq!(told[0].1, "its replacement failed: no such image");
            swarm.settle();
        }
        swarm.advance(Duration::from_secs(5));
        swarm.settle();
        assert_eq!(told(&swarm)[0].1, "");
    }

    #[test]
    fn what_is_to_run_once_says_that_it_stays() {
        let mut swarm = Scenario::with_nodes(&["h1"]);
        swarm.add_service("job", 1, |spec| {
            spec.task.restart.condition = RestartCondition::None;
        });
        swarm.run();
        swarm.edit_node("h1", |node| node.spec.availability = Availability::Drain);
        swarm.run();
        let told = told(&swarm);
        assert_eq!(told.len(), 1);
        assert!(told[0].1.contains("service update --force job"), "{told:?}");
    }
}
