//! With a thread and a clock.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use swarm_model::NodeId;
use tempfile::TempDir;

use super::super::error::StartError;
use super::super::log::Log;
use super::super::{Config, LogError, Node};
use crate::store::testing::{node, node_id};
use crate::store::{State, Store, Unavailable, UpdateError};

/// Far beyond what any step here takes.
const DEADLINE: Duration = Duration::from_secs(20);

fn config(dir: &TempDir) -> Config {
    Config {
        dir: dir.path().join("raft"),
        unlock: None,
    }
}

fn led_term(store: &Store) -> u64 {
    let leadership = *store.leadership().borrow();
    assert!(leadership.leader);
    leadership.term
}

async fn put_node(store: &Store, number: u8) -> Result<NodeId, UpdateError<Infallible>> {
    let update = store.update(|_| Ok((vec![node(number).into()], node_id(number))));
    update.await
}

#[tokio::test]
async fn a_lone_node_leads_at_once_updates_and_restarts() {
    let dir = TempDir::new().unwrap();
    let (store, running) = Node::bootstrap(&config(&dir), 42, vec![node(0).into()]).unwrap();
    assert_eq!(running.raft_id(), 42);
    assert!(store.read(|state| state.node(&node_id(0)).is_some()));
    let term = led_term(&store);

    let mut watch = store.watch();
    for number in 1..4 {
        watch.mark_unchanged();
        assert_eq!(put_node(&store, number).await, Ok(node_id(number)));
        assert!(watch.has_changed().unwrap());
    }
    let state = store.read(State::clone);
    assert_eq!(state.nodes().count(), 4);
    running.stop().await.unwrap();
    assert!(!store.leadership().borrow().leader);
    // The disk knows how far the state was.
    let recovered = Log::open(&config(&dir).dir, None)
        .unwrap()
        .recover()
        .unwrap();
    assert_eq!(recovered.hard_state.commit, state.index());
    let refused = put_node(&store, 9).await;
    assert_eq!(refused, Err(UpdateError::NotLeader { leader: None }));

    let (store, mut running) = Node::open(&config(&dir)).unwrap();
    assert_eq!(running.raft_id(), 42);
    assert!(store.read(|again| again.nodes().eq(state.nodes())));
    assert!(led_term(&store) > term);
    put_node(&store, 9).await.unwrap();

    // While it runs nobody else may.
    let error = Node::open(&config(&dir)).unwrap_err();
    assert!(
        matches!(error, StartError::Log(LogError::Locked { .. })),
        "{error:?}"
    );
    let still = tokio::time::timeout(Duration::from_millis(1), running.ended()).await;
    assert!(still.is_err());
}

#[tokio::test]
async fn updates_from_many_tasks_all_happen() {
    let dir = TempDir::new().unwrap();
    let (store, running) = Node::bootstrap(&config(&dir), 1, Vec::new()).unwrap();
    led_term(&store);
    let updates: Vec<_> = (0..50)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                // Each sees the one before.
                let update = store.update(|state| {
                    let count = state.nodes().count();
                    Ok::<_, Infallible>((vec![node(number).into()], count))
                });
                update.await.unwrap()
            })
        })
        .collect();
    let mut counts = Vec::new();
    for update in updates {
        counts.push(update.await.unwrap());
    }
    counts.sort_unstable();
    assert!(counts.into_iter().eq(0..50));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn bootstrap_and_open_each_refuse_the_other_ones_case() {
    let dir = TempDir::new().unwrap();
    let error = Node::open(&config(&dir)).unwrap_err();
    assert!(
        matches!(error, StartError::Log(LogError::Missing { .. })),
        "{error:?}"
    );
    let (_store, running) = Node::bootstrap(&config(&dir), 1, Vec::new()).unwrap();
    running.stop().await.unwrap();
    let error = Node::bootstrap(&config(&dir), 1, Vec::new()).unwrap_err();
    assert!(
        matches!(error, StartError::Log(LogError::Exists { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_dropped_node_stops_and_lets_go_of_the_log() {
    let dir = TempDir::new().unwrap();
    let (store, running) = Node::bootstrap(&config(&dir), 1, Vec::new()).unwrap();
    let mut leadership = store.leadership();
    led_term(&store);
    drop(running);
    let stopped = leadership.wait_for(|it| !it.leader);
    tokio::time::timeout(DEADLINE, stopped)
        .await
        .unwrap()
        .unwrap();
    let open = async {
        loop {
            match Node::open(&config(&dir)) {
                Err(StartError::Log(LogError::Locked { .. })) => tokio::task::yield_now().await,
                opened => return opened,
            }
        }
    };
    tokio::time::timeout(DEADLINE, open).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_update_of_a_thread_that_ended_is_an_error() {
    let dir = TempDir::new().unwrap();
    let (store, running) = Node::bootstrap(&config(&dir), 1, Vec::new()).unwrap();
    led_term(&store);
    let update = store.update(|_| {
        // Between the look at who leads and the proposal.
        running.request_stop();
        let begun = Instant::now();
        while store.leadership().borrow().leader {
            assert!(begun.elapsed() < DEADLINE, "the thread did not end");
            std::thread::yield_now();
        }
        Ok::<_, Infallible>((vec![node(1).into()], ()))
    });
    let outcome = tokio::time::timeout(DEADLINE, update).await.unwrap();
    assert_eq!(outcome, Err(UpdateError::Unavailable(Unavailable::Stopped)));
}
