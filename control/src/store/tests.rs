use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::Mutex;

use proptest::collection::vec;
use proptest::prelude::*;
use swarm_model::NodeId;

use super::codec::MAX_BATCH_BYTES;
use super::testing::{
    changes, cluster, network, network_id, node, node_id, service, service_id, task, task_id,
};
use super::*;

fn tasks_of_node(state: &State, id: &NodeId) -> usize {
    state.tasks_of_node(id).count()
}

#[test]
fn indexes_follow_an_object_that_moves() {
    let mut state = State::default();
    state.apply(
        1,
        vec![
            service(1, "web").into(),
            task(1, 1, None).into(),
            task(2, 1, Some(1)).into(),
        ],
    );
    assert_eq!(state.tasks_of_service(&service_id(1)).count(), 2);
    assert_eq!(tasks_of_node(&state, &node_id(1)), 1);

    state.apply(
        2,
        vec![task(2, 1, Some(2)).into(), service(1, "www").into()],
    );
    assert_eq!(tasks_of_node(&state, &node_id(1)), 0);
    assert_eq!(tasks_of_node(&state, &node_id(2)), 1);
    assert!(state.service_by_name("web").is_none());
    assert_eq!(state.service_by_name("www").unwrap().id, service_id(1));

    state.apply(
        3,
        vec![Change::remove(task_id(2)), Change::remove(service_id(1))],
    );
    assert_eq!(tasks_of_node(&state, &node_id(2)), 0);
    assert!(state.service_by_name("www").is_none());
}

#[test]
fn a_put_sets_the_version_and_nothing_else() {
    let mut state = State::default();
    state.apply(7, vec![node(1).into()]);
    state.apply(9, vec![node(2).into()]);
    assert_eq!(state.node(&node_id(1)).unwrap().meta.version, 7);
    assert_eq!(state.node(&node_id(2)).unwrap().meta.version, 9);
    assert_eq!(state.index(), 9);
}

#[test]
fn only_the_cluster_named_is_removed() {
    let mut state = State::default();
    let (first, other) = (cluster(1), cluster(2));
    state.apply(1, vec![first.clone().into(), Change::remove(other.id)]);
    assert!(state.cluster().is_some());
    state.apply(2, vec![Change::remove(first.id)]);
    assert!(state.cluster().is_none());
}

proptest! {
    /// Against a plain map, searched through.
    #[test]
    fn a_state_is_what_its_changes_say(batches in vec(changes(), 0..12)) {
        let mut state = State::default();
        let mut model: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        for (index, batch) in (1..).zip(batches) {
            for change in batch.clone() {
                match change {
                    Change::Put(mut object) => {
                        object.meta_mut().version = index;
                        if matches!(object, Object::Cluster(_)) {
                            model.retain(|key, _| !matches!(key, ObjectKey::Cluster(_)));
                        }
                        model.insert(object.key(), object);
                    }
                    Change::Remove(key) => {
                        model.remove(&key);
                    }
                }
            }
            state.apply(index, batch);
        }

        prop_assert_eq!(&objects(&state), &model);

        for number in 0..4 {
            let of_service = state.tasks().filter(|task| task.service_id == service_id(number));
            prop_assert!(of_service.eq(state.tasks_of_service(&service_id(number))));
            let of_node = state.tasks().filter(|task| task.node_id == Some(node_id(number)));
            prop_assert!(of_node.eq(state.tasks_of_node(&node_id(number))));
            let name = format!("service-{number}");
            let named = state.services().find(|service| service.spec.name == name);
            prop_assert_eq!(named, state.service_by_name(&name));
            let network = network_id(number);
            let of_network = state.services().filter(|service| {
                service.spec.task.network_ids().any(|id| id == network)
                    || service.endpoint.vips.iter().any(|vip| vip.network == network)
            });
            prop_assert!(of_network.eq(state.services_of_network(&network)));
            let of_network = state.tasks().filter(|task| {
                task.spec.network_ids().any(|id| id == network)
            });
            prop_assert!(of_network.eq(state.tasks_of_network(&network)));
            let name = format!("network-{number}");
            let named = state.networks().find(|network| network.spec.name == name);
            prop_assert_eq!(named, state.network_by_name(&name));
        }
        let ingress = state.networks().find(|network| network.spec.ingress);
        prop_assert_eq!(ingress, state.ingress_network());
    }

    /// A watch that begins at any version and is told what the history has is where the state is.
    #[test]
    fn what_changed_after_any_version_leads_to_the_state(batches in vec(changes(), 1..12)) {
        let replica = Replica::default();
        let mut states = vec![objects(&State::default())];
        for (index, batch) in (1..).zip(batches) {
            replica.apply(index, batch, 100);
            states.push(replica.read(objects));
        }
        let store = Store::new(Arc::new(replica), Arc::new(Held::default()));
        let last = states.last().unwrap();
        for (version, state) in (0..).zip(&states) {
            let mut seen = state.clone();
            let mut told_until = version;
            store.read_history(|history| {
                for changed in history.after(version).unwrap() {
                    assert!(changed.version > told_until);
                    told_until = changed.version;
                    for event in &*changed.events {
                        let object = plain(&event.object);
                        let old = seen.insert(object.key(), object.clone());
                        let expected = match event.action {
                            Action::Create => old.is_none(),
                            Action::Update => old.is_some(),
                            Action::Remove => seen.remove(&object.key()) == old,
                        };
                        // There is one swarm, and another takes its place.
                        let is_swarm = matches!(object, Object::Cluster(_));
                        assert!(expected || is_swarm, "{event:?}");
                        if is_swarm && event.action != Action::Remove {
                            seen.retain(|key, _| {
                                !matches!(key, ObjectKey::Cluster(_)) || *key == object.key()
                            });
                        }
                    }
                }
            });
            prop_assert_eq!(&seen, last);
        }
    }

    #[test]
    fn a_snapshot_gives_the_same_state(batches in vec(changes(), 0..12)) {
        let mut state = State::default();
        for (index, batch) in (1..).zip(batches) {
            state.apply(index, batch);
        }
        let restored = decode_snapshot(state.index(), &encode_snapshot(&state));
        prop_assert_eq!(restored.as_ref(), Ok(&state));
    }

    #[test]
    fn a_batch_survives(batch in changes()) {
        let (bytes, read) = encode_batch(&batch).unwrap();
        prop_assert_eq!(&read, &batch);
        prop_assert_eq!(decode_batch(&bytes), Ok(batch));
    }

    #[test]
    fn bytes_never_panic(bytes: Vec<u8>) {
        let _ = decode_batch(&bytes);
        let _ = decode_snapshot(1, &bytes);
    }
}

fn plain(object: &SharedObject) -> Object {
    match object {
        SharedObject::Cluster(it) => Object::from((**it).clone()),
        SharedObject::Node(it) => (**it).clone().into(),
        SharedObject::Service(it) => (**it).clone().into(),
        SharedObject::Task(it) => (**it).clone().into(),
        SharedObject::Network(it) => (**it).clone().into(),
    }
}

/// Everything in `state`.
fn objects(state: &State) -> BTreeMap<ObjectKey, Object> {
    let objects = state
        .cluster()
        .map(|it| Object::from((**it).clone()))
        .into_iter()
        .chain(state.nodes().map(|it| (**it).clone().into()))
        .chain(state.services().map(|it| (**it).clone().into()))
        .chain(state.tasks().map(|it| (**it).clone().into()))
        .chain(state.networks().map(|it| (**it).clone().into()));
    objects.map(|object| (object.key(), object)).collect()
}

#[test]
fn what_changed_is_kept_up_to_a_bound_and_what_is_older_is_told_so() {
    let replica = Replica::default();
    let megabyte = 1024 * 1024;
    for index in 1..=10 {
        replica.apply(index, vec![node(1).into()], megabyte);
    }
    // Nothing changed.
    replica.apply(11, Vec::new(), 0);
    let store = Store::new(Arc::new(replica), Arc::new(Held::default()));
    let after = |version| {
        store.read_history(|history| {
            let after = history.after(version)?;
            Ok(after.map(|it| it.version).collect::<Vec<_>>())
        })
    };
    assert_eq!(after(1), Err(TooOld { oldest: 2 }));
    assert_eq!(after(2), Ok((3..=10).collect()));
    assert_eq!(after(10), Ok(Vec::new()));
    assert_eq!(after(11), Ok(Vec::new()));
}

#[test]
fn what_came_as_a_snapshot_has_no_history() {
    let replica = Replica::default();
    replica.apply(1, vec![node(1).into()], 1);
    let mut state = State::default();
    state.apply(7, vec![node(2).into()]);
    replica.install(state);
    replica.apply(8, vec![node(3).into()], 1);
    let store = Store::new(Arc::new(replica), Arc::new(Held::default()));
    let after = |version| store.read_history(|history| history.after(version).map(Iterator::count));
    assert_eq!(after(6), Err(TooOld { oldest: 7 }));
    assert_eq!(after(7), Ok(1));
}

#[test]
fn a_change_of_no_known_kind_is_refused() {
    // Field 2 (changes) holding an empty message, and one holding field 9.
    for bytes in [&[0x12, 0x00][..], &[0x12, 0x02, 0x4a, 0x00]] {
        assert_eq!(decode_batch(bytes), Err(CodecError::UnknownKind));
    }
}

async fn put_node(store: &Store, number: u8) -> Result<(), UpdateError<Infallible>> {
    store.update(|_| Ok((vec![node(number).into()], ()))).await
}

#[tokio::test]
async fn an_update_is_seen_when_it_returns() {
    let store = Store::in_memory();
    let mut watch = store.watch();
    put_node(&store, 1).await.unwrap();
    assert!(store.read(|state| state.node(&node_id(1)).is_some()));
    assert!(watch.has_changed().unwrap());
    assert_eq!(*watch.borrow_and_update(), 1);

    let count = store
        .update(|state| Ok::<_, Infallible>((Vec::new(), state.nodes().count())))
        .await;
    assert_eq!(count, Ok(1));
    assert!(!watch.has_changed().unwrap(), "nothing was proposed");
}

#[tokio::test]
async fn a_refusal_changes_nothing() {
    let store = Store::in_memory();
    let refused: Result<(), _> = store.update(|_| Err("taken")).await;
    assert_eq!(refused, Err(UpdateError::Refused("taken")));
    assert_eq!(store.read(State::index), 0);
}

#[tokio::test]
async fn what_the_log_could_not_hold_is_refused() {
    let store = Store::in_memory();
    let mut large = service(1, "large");
    large.spec.task.container.env = vec!["x".repeat(MAX_BATCH_BYTES)];
    let refused = store
        .update(|_| Ok::<_, Infallible>((vec![large.into()], ())))
        .await;
    assert!(
        matches!(refused, Err(UpdateError::TooLarge { .. })),
        "{refused:?}"
    );

    let mut unreadable = network(1, true);
    unreadable.vni = swarm_model::Vni(0);
    let unreadable = vec![unreadable.into()];
    let refused = encode_batch(&unreadable);
    assert!(
        matches!(refused, Err(ProposeError::Invalid(_))),
        "{refused:?}"
    );
    let refused = store
        .update(|_| Ok::<_, Infallible>((unreadable, ())))
        .await;
    assert!(
        matches!(refused, Err(UpdateError::Invalid(_))),
        "{refused:?}"
    );
    assert_eq!(store.read(State::index), 0);
}

/// Holds proposals until the test finishes them.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<Vec<Proposal>>>);

impl Backend for Held {
    fn propose(&self, proposal: Proposal) {
        self.0.lock().unwrap().push(proposal);
    }
}

fn held_store() -> (Store, Held, Arc<Replica>) {
    let (held, replica) = (Held::default(), Arc::new(Replica::default()));
    replica.set_leadership(Leadership {
        leader: true,
        term: 3,
        leader_id: Some(1),
    });
    let store = Store::new(Arc::clone(&replica), Arc::new(held.clone()));
    (store, held, replica)
}

/// Lets every task run that can.
async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn updates_run_one_at_a_time_even_when_a_caller_leaves() {
    let (store, held, replica) = held_store();
    let first = tokio::spawn({
        let store = store.clone();
        async move { put_node(&store, 1).await }
    });
    settle().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());

    let second = tokio::spawn({
        let store = store.clone();
        async move {
            let seen = |state: &State| Ok::<_, Infallible>((Vec::new(), state.nodes().count()));
            store.update(seen).await
        }
    });
    settle().await;
    assert!(
        !second.is_finished(),
        "read a state that is about to change"
    );

    let mut proposal = held.0.lock().unwrap().pop().unwrap();
    replica.apply(1, std::mem::take(&mut proposal.changes), 0);
    proposal.finish(Ok(()));
    assert_eq!(second.await.unwrap(), Ok(1));
}

#[tokio::test(start_paused = true)]
async fn an_update_without_an_outcome_times_out_and_keeps_the_turn() {
    let (store, held, _replica) = held_store();
    let timeout = Err(UpdateError::Unavailable(Unavailable::Timeout));
    assert_eq!(put_node(&store, 1).await, timeout);
    assert_eq!(put_node(&store, 2).await, timeout);
    let proposals = std::mem::take(&mut *held.0.lock().unwrap());
    assert_eq!(proposals.len(), 1, "the second had no turn");
    assert_eq!(proposals[0].term, 3);
    drop(proposals);
    assert_eq!(
        put_node(&store, 3).await,
        timeout,
        "the third had its turn, but no answer"
    );
    assert_eq!(held.0.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_dropped_proposal_is_an_error() {
    let (store, held, _replica) = held_store();
    let update = tokio::spawn(async move { put_node(&store, 1).await });
    settle().await;
    held.0.lock().unwrap().clear();
    let stopped = UpdateError::Unavailable(Unavailable::Stopped);
    assert_eq!(update.await.unwrap(), Err(stopped));
}

#[tokio::test]
async fn only_a_leader_updates() {
    let (store, held, replica) = held_store();
    replica.set_leadership(Leadership {
        leader: false,
        term: 4,
        leader_id: Some(2),
    });
    let refused = store
        .update(|_| -> Result<(Vec<Change>, ()), Infallible> { panic!("asked all the same") })
        .await;
    assert_eq!(refused, Err(UpdateError::NotLeader { leader: Some(2) }));
    assert!(held.0.lock().unwrap().is_empty());
}
