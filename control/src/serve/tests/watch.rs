//! Watching, over real connections.

use swarm_api::v1;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::watch_event::Object;
use swarm_model::Role;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use super::harness::{Manager, PATIENCE, node, put};
use crate::store::{Change, State};

async fn watch(
    manager: &Manager,
    resume_from: Option<u64>,
    kinds: &[v1::ObjectKind],
) -> Result<Streaming<v1::WatchResponse>, Status> {
    let request = v1::WatchRequest {
        resume_from,
        kinds: kinds.iter().map(|kind| (*kind).into()).collect(),
    };
    let mut control = ControlClient::new(manager.local());
    Ok(control.watch(request).await?.into_inner())
}

async fn next(watched: &mut Streaming<v1::WatchResponse>) -> Result<v1::WatchResponse, Status> {
    let message = timeout(PATIENCE, watched.message()).await.expect("in time");
    message.map(|message| message.expect("it goes on"))
}

/// What happened to nodes, in short.
fn nodes(message: &v1::WatchResponse) -> Vec<(v1::WatchAction, &str)> {
    fn name(event: &v1::WatchEvent) -> Option<&str> {
        match event.object.as_ref()? {
            Object::Node(node) => Some(&node.description.as_ref()?.hostname),
            _ => None,
        }
    }
    let events = message.events.iter();
    events
        .map(|event| (event.action(), name(event).unwrap_or("no node")))
        .collect()
}

#[tokio::test]
async fn changes_are_told_with_their_versions_and_a_watch_goes_on_where_another_ended() {
    let manager = Manager::start().await;
    let mut watched = watch(&manager, None, &[]).await.unwrap();
    let began = next(&mut watched).await.unwrap();
    assert_eq!(began.version, manager.store.read(State::index));
    assert!(began.events.is_empty());

    let id = manager.add_node(Role::Worker, "h2").await;
    let created = next(&mut watched).await.unwrap();
    assert_eq!(nodes(&created), [(v1::WatchAction::Create, "h2")]);
    assert_eq!(created.version, manager.store.read(State::index));
    let renamed = node(id.clone(), Role::Worker, "h3");
    put(&manager.store, vec![renamed.into()]).await;
    put(&manager.store, vec![Change::remove(id)]).await;
    let rest = [
        (v1::WatchAction::Update, "h3"),
        (v1::WatchAction::Remove, "h3"),
    ];
    for expected in rest {
        assert_eq!(nodes(&next(&mut watched).await.unwrap()), [expected]);
    }
    drop(watched);

    let mut again = watch(&manager, Some(created.version), &[]).await.unwrap();
    assert_eq!(next(&mut again).await.unwrap().version, created.version);
    for expected in rest {
        assert_eq!(nodes(&next(&mut again).await.unwrap()), [expected]);
    }
}

#[tokio::test]
async fn only_the_kinds_that_were_asked_for_are_told_and_no_secrets() {
    let manager = Manager::start().await;
    let kinds = [v1::ObjectKind::Cluster];
    let mut watched = watch(&manager, Some(0), &kinds).await.unwrap();
    next(&mut watched).await.unwrap();
    let message = next(&mut watched).await.unwrap();
    let [event] = &message.events[..] else {
        panic!("{message:?}");
    };
    assert!(
        matches!(&event.object, Some(Object::Cluster(it)) if it.id == manager.cluster.id.as_str())
    );
    let text = format!("{message:?}");
    for secret in [
        &*manager.cluster.root_key_pem,
        &*manager.cluster.worker_secret,
        &*manager.cluster.manager_secret,
    ] {
        assert!(!text.contains(secret));
    }
    let refused = watch(&manager, None, &[v1::ObjectKind::Unspecified]).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}

/// Puts a node of nearly a megabyte, `count` times.
async fn put_much(manager: &Manager, count: usize) {
    let mut much = node(manager.self_id.clone(), Role::Manager, "h1");
    let value = "x".repeat(1_000_000);
    much.spec.labels.insert("much".to_owned(), value);
    for _ in 0..count {
        put(&manager.store, vec![much.clone().into()]).await;
    }
}

#[tokio::test]
async fn what_is_not_kept_any_more_is_refused_and_says_what_to_do() {
    let manager = Manager::start().await;
    let version = manager.store.read(State::index);
    put_much(&manager, 10).await;
    let refused = watch(&manager, Some(version), &[]).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    assert!(refused.message().contains("list again"), "{refused}");
}

#[tokio::test]
async fn who_reads_too_slowly_is_told_and_holds_up_nobody() {
    let manager = Manager::start().await;
    let mut watched = watch(&manager, None, &[]).await.unwrap();
    next(&mut watched).await.unwrap();
    put_much(&manager, 60).await;
    let mut told = 0;
    let refused = loop {
        match next(&mut watched).await {
            Ok(_) => told += 1,
            Err(status) => break status,
        }
    };
    assert!(told < 60, "nothing was left out");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    assert!(refused.message().contains("more slowly"), "{refused}");
}

#[tokio::test]
async fn watches_are_bounded_and_end_with_who_watches() {
    let manager = Manager::start().await;
    // A connection may open only so many streams.
    let controls = [manager.local(), manager.local()].map(ControlClient::new);
    let mut watches = Vec::new();
    let refused = loop {
        let mut control = controls[watches.len() % 2].clone();
        match control.watch(v1::WatchRequest::default()).await {
            Ok(watched) => watches.push(watched),
            Err(refused) => break refused,
        }
    };
    assert_eq!(watches.len(), 64);
    assert_eq!(refused.code(), Code::ResourceExhausted);
    watches.clear();
    let room = async { while watch(&manager, None, &[]).await.is_err() {} };
    timeout(PATIENCE, room).await.expect("room again");
}
