//! What only managers may say, and in whose name.

use swarm_api::v1;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::managers_client::ManagersClient;
use swarm_api::v1::raft_client::RaftClient;
use swarm_model::{NodeId, Role};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::harness::{HOUR, Manager};

async fn speak(channel: &Channel) -> [Result<(), Status>; 3] {
    let nothing = tokio_stream::empty::<v1::RaftDelivery>();
    let no_parts = tokio_stream::empty::<v1::RaftSnapshotPart>();
    let join = v1::JoinManagersRequest::default();
    [
        RaftClient::new(channel.clone())
            .deliver(nothing)
            .await
            .map(drop),
        RaftClient::new(channel.clone())
            .deliver_snapshot(no_parts)
            .await
            .map(drop),
        ManagersClient::new(channel.clone())
            .join(join)
            .await
            .map(drop),
    ]
}

fn codes(outcomes: [Result<(), Status>; 3]) -> [Code; 3] {
    outcomes.map(|outcome| outcome.map_or_else(|status| status.code(), |()| Code::Ok))
}

#[tokio::test]
async fn only_managers_speak_for_raft() {
    let manager = Manager::start().await;
    let worker = manager.add_node(Role::Worker, "h2").await;
    let peer = manager.add_node(Role::Manager, "h3").await;
    let nobody = NodeId::random(&mut rand::rng());
    let long = 100 * HOUR;
    let none = codes(speak(&manager.channel(None)).await);
    assert_eq!(none, [Code::Unauthenticated; 3]);
    let local = codes(speak(&manager.local()).await);
    assert_eq!(local, [Code::Unauthenticated; 3]);
    for (id, role) in [
        (&worker, Role::Worker),
        (&worker, Role::Manager),
        (&peer, Role::Worker),
        (&nobody, Role::Manager),
    ] {
        let credentials = manager.credentials(id, role, long);
        let refused = codes(speak(&manager.channel(Some(&credentials))).await);
        assert_eq!(refused, [Code::PermissionDenied; 3], "{id} as {role:?}");
    }
    let credentials = manager.credentials(&peer, Role::Manager, long);
    let heard = codes(speak(&manager.channel(Some(&credentials))).await);
    assert_eq!(heard, [Code::Ok, Code::Ok, Code::InvalidArgument]);
}

#[tokio::test]
async fn nobody_but_a_manager_calls_in_anothers_name() {
    let manager = Manager::start().await;
    let worker = manager.add_node(Role::Worker, "h2").await;
    let peer = manager.add_node(Role::Manager, "h3").await;
    let call = async |channel: Channel, caller: &'static str| {
        let mut request = Request::new(v1::ListNodesRequest {});
        let words = caller.parse().unwrap();
        request.metadata_mut().insert("swarm-caller", words);
        let answer = ControlClient::new(channel).list_nodes(request).await;
        answer.map(|answer| answer.into_inner().self_id)
    };
    let as_worker = manager.credentials(&worker, Role::Worker, HOUR * 2);
    let demoted = manager.credentials(&worker, Role::Manager, HOUR * 2);
    let forgers = [
        manager.channel(None),
        manager.local(),
        manager.channel(Some(&as_worker)),
        manager.channel(Some(&demoted)),
    ];
    for forger in forgers {
        let refused = call(forger, "local").await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (
                Code::PermissionDenied,
                "only a manager may call in another's name"
            )
        );
    }
    let credentials = manager.credentials(&peer, Role::Manager, HOUR * 2);
    let channel = manager.channel(Some(&credentials));
    // `self` is then the manager that was asked first.
    assert_eq!(call(channel.clone(), "local").await.unwrap(), peer.as_str());
    // A worker that asks another manager is not let in there either.
    let words: String = format!("worker {worker}");
    let refused = call(channel.clone(), Box::leak(words.into_boxed_str()))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = call(channel, "anonymous").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}
