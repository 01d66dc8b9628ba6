//! The loop on a store that refuses at times.

use std::sync::Arc;

use swarm_model::{DesiredState, NodeState, ServiceId, TaskState};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::orchestrate::scenario::{Scenario, published};
use crate::store::{Backend, Proposal, ProposeError, Replica};

/// Longest that anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Applies at once what is at most `changes_max` changes.
struct Narrow {
    replica: Arc<Replica>,
    changes_max: usize,
}

impl Backend for Narrow {
    fn propose(&self, mut proposal: Proposal) {
        let size = proposal.changes.len();
        if size > self.changes_max {
            let limit = self.changes_max;
            proposal.finish(Err(ProposeError::TooLarge { size, limit }));
            return;
        }
        let index = self.replica.read(State::index) + 1;
        self.replica
            .apply(index, std::mem::take(&mut proposal.changes), 0);
        proposal.finish(Ok(()));
    }
}

/// A store with a node and a service of `replicas`, and where its leadership is set.
fn narrow(changes_max: usize, replicas: u64) -> (Store, Arc<Replica>, ServiceId) {
    let mut scenario = Scenario::with_nodes(&["h1"]);
    let web = scenario.add_service("web", replicas, published);
    let replica = Arc::new(Replica::default());
    replica.install(scenario.state);
    let backend = Narrow {
        replica: Arc::clone(&replica),
        changes_max,
    };
    (
        Store::new(Arc::clone(&replica), Arc::new(backend)),
        replica,
        web,
    )
}

fn leads(term: u64, leader: bool) -> Leadership {
    Leadership {
        leader,
        term,
        leader_id: Some(1),
    }
}

/// Waits until `done`.
async fn until(store: &Store, done: impl Fn(&State) -> bool) {
    let mut changed = store.watch();
    let wait = async {
        while !store.read(&done) {
            changed.changed().await.expect("the store stays");
        }
    };
    timeout(PATIENCE, wait).await.expect("in time");
}

#[tokio::test]
async fn what_is_too_large_is_done_in_parts() {
    let (store, replica, web) = narrow(3, 20);
    replica.set_leadership(leads(1, true));
    let mut planner = Planner::new(1);
    let asked = settle(&store, &mut planner, &BTreeSet::new()).await;
    assert_eq!(asked, Ok(None));
    let assigned = |state: &State| {
        let tasks = state.tasks_of_service(&web);
        tasks
            .filter(|task| task.status.state == TaskState::Assigned)
            .count()
    };
    assert_eq!(store.read(assigned), 20);
}

#[tokio::test]
async fn only_the_leader_plans() {
    let (store, replica, web) = narrow(100, 2);
    let node = store.read(|state| state.nodes().next().expect("one").id.clone());
    let dispatcher = Dispatcher::new(store.clone(), node.clone());
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(store.clone(), dispatcher, node.clone(), stop.clone()));

    replica.set_leadership(leads(1, false));
    tokio::task::yield_now().await;
    assert_eq!(store.read(|state| state.tasks().count()), 0);

    // Nodes are told from heard ones only by their sessions, and there is none yet.
    replica.set_leadership(leads(2, true));
    until(&store, |state| {
        let unknown = state.node(&node).expect("there").status.state == NodeState::Unknown;
        unknown && state.tasks_of_service(&web).count() == 2
    })
    .await;

    replica.set_leadership(leads(3, false));
    let mut service =
        store.read(|state| swarm_model::Service::clone(state.service(&web).expect("there")));
    service.pending_delete = true;
    replica.apply(store.read(State::index) + 1, vec![Change::from(service)], 0);
    tokio::task::yield_now().await;
    let wanted = |state: &State| {
        let mut tasks = state.tasks_of_service(&web);
        tasks.all(|task| task.desired_state == DesiredState::Running)
    };
    assert!(store.read(wanted), "another leader's business");

    replica.set_leadership(leads(4, true));
    until(&store, |state| state.service(&web).is_none()).await;
    stop.cancel();
    timeout(PATIENCE, running)
        .await
        .expect("in time")
        .expect("no panic");
}

#[tokio::test]
async fn a_task_is_written_down_once_with_its_address_and_its_node() {
    let (store, replica, web) = narrow(CHANGES_MAX, 20);
    replica.set_leadership(leads(1, true));
    let before = store.read(State::index);
    let mut planner = Planner::new(1);
    let asked = settle(&store, &mut planner, &BTreeSet::new()).await;
    assert_eq!(asked, Ok(None));
    store.read(|state| {
        let tasks: Vec<_> = state.tasks_of_service(&web).collect();
        assert_eq!(tasks.len(), 20);
        for task in tasks {
            assert_eq!(task.status.state, TaskState::Assigned);
            assert!(task.ingress_address.is_some() && task.node_id.is_some());
        }
        // The service's ports first, which tasks wait for.
        assert_eq!(state.index(), before + 2);
    });
}
