//! Connections of nodes: renewed under way, ended with the node.

use std::time::{Duration, Instant};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use swarm_api::v1;
use swarm_api::v1::dispatcher_client::DispatcherClient;
use swarm_api::v1::node_ca_client::NodeCaClient;
use swarm_model::{NodeId, Role};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::harness::{HOUR, Manager, PATIENCE, client_config, dial, put, request};
use crate::ca::{Subject, validity};
use crate::clock;
use crate::store::Change;

async fn renew(channel: Channel, csr: Vec<u8>) -> Result<v1::RenewNodeCertificateResponse, Status> {
    let request = v1::RenewNodeCertificateRequest { csr };
    let mut client = NodeCaClient::new(channel);
    let answer = client.renew_node_certificate(request).await;
    answer.map(tonic::Response::into_inner)
}

/// A session, which says nothing, on `channel`.
async fn session(channel: Channel) -> Streaming<v1::ManagerMessage> {
    let nothing = tokio_stream::pending::<v1::AgentMessage>();
    let session = DispatcherClient::new(channel).session(nothing).await;
    session.unwrap().into_inner()
}

/// Waits for the session's end.
async fn ended(session: &mut Streaming<v1::ManagerMessage>) -> Status {
    let end = timeout(PATIENCE, session.message()).await;
    end.expect("the session ends").unwrap_err()
}

async fn remove(manager: &Manager, node: &NodeId) {
    put(&manager.store, vec![Change::remove(node.clone())]).await;
}

#[tokio::test]
async fn a_node_gets_a_new_certificate_with_its_role_of_now() {
    let manager = Manager::start().await;
    let worker = manager.add_node(Role::Worker, "h2").await;
    for certified in [Role::Worker, Role::Manager] {
        let old = manager.credentials(&worker, certified, 100 * HOUR);
        let before = clock::now();
        let answer = renew(manager.channel(Some(&old)), request().0)
            .await
            .unwrap();
        let leaf = CertificateDer::from_pem_slice(answer.certificate_chain_pem.as_bytes()).unwrap();
        let expected = Subject {
            node_id: worker.clone(),
            role: Role::Worker,
            cluster_id: manager.cluster.id.clone(),
        };
        assert_eq!(Subject::from_der(&leaf).unwrap(), expected);
        assert_eq!(answer.role(), v1::Role::Worker);
        assert_eq!(answer.root_ca_pem, manager.cluster.root_ca_pem);
        let life = validity(&leaf).unwrap().left(before);
        let expiry = manager.cluster.spec.certificate_expiry;
        assert!(
            life + Duration::from_secs(1) >= expiry && life < expiry + PATIENCE,
            "{life:?}"
        );
    }
}

#[tokio::test]
async fn the_agent_beside_a_manager_needs_no_managers_certificate() {
    let manager = Manager::start().await;
    let id = manager.add_node(Role::Manager, "h2").await;
    let old = manager.credentials(&id, Role::Manager, 100 * HOUR);
    let given = async || {
        let answer = renew(manager.channel(Some(&old)), request().0).await;
        let answer = answer.unwrap();
        let leaf = CertificateDer::from_pem_slice(answer.certificate_chain_pem.as_bytes());
        let subject = Subject::from_der(&leaf.unwrap()).unwrap();
        assert_eq!(v1::Role::from(subject.role), answer.role());
        answer.role()
    };
    // Its manager will show it to the others.
    assert_eq!(given().await, v1::Role::Manager);
    let mut node = manager
        .store
        .read(|state| (**state.node(&id).unwrap()).clone());
    node.manager = Some(swarm_model::ManagerStatus {
        raft_id: 2,
        address: "10.0.0.2:2377".parse().unwrap(),
        leader: false,
        certificate_issuer: String::new(),
    });
    put(&manager.store, vec![node.into()]).await;
    assert_eq!(given().await, v1::Role::Worker);
}

#[tokio::test]
async fn a_bad_request_renews_nothing_and_too_many_are_refused() {
    let manager = Manager::start().await;
    let worker = manager.add_node(Role::Worker, "h2").await;
    let old = manager.credentials(&worker, Role::Worker, 100 * HOUR);
    let channel = manager.channel(Some(&old));
    for _ in 0..4 {
        let error = renew(channel.clone(), b"garbage".to_vec())
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    let error = renew(channel, request().0).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (
            Code::ResourceExhausted,
            "this node renews its certificate too often; try again in half a minute"
        )
    );
}

#[tokio::test]
async fn a_stream_outlives_the_certificate_that_was_renewed_on_its_connection() {
    let manager = Manager::start().await;
    let worker = manager.add_node(Role::Worker, "h2").await;
    let left = Duration::from_secs(3);
    let old = manager.credentials(&worker, Role::Worker, HOUR + left);
    let issued = Instant::now();
    let (renewed, other) = (manager.channel(Some(&old)), manager.channel(Some(&old)));
    let mut kept = session(renewed.clone()).await;
    let mut lost = session(other).await;
    renew(renewed.clone(), request().0).await.unwrap();
    assert!(
        issued.elapsed() < left,
        "this machine is too slow for the test"
    );
    // The connection that was not renewed ends with the old certificate; only then is it sure that
    // its end was noticed, and that the other one's was not.
    ended(&mut lost).await;
    assert!(
        timeout(Duration::from_secs(2), kept.message())
            .await
            .is_err()
    );
    renew(renewed, request().0).await.unwrap();
}

#[tokio::test]
async fn the_connections_of_a_removed_node_end_at_once() {
    let manager = Manager::start().await;
    let worker = manager.add_node(Role::Worker, "h2").await;
    let other = manager.add_node(Role::Worker, "h3").await;
    let credentials = manager.credentials(&worker, Role::Worker, 100 * HOUR);
    let channel = manager.channel(Some(&credentials));
    let mut session_of_worker = session(channel.clone()).await;
    let of_other = manager.credentials(&other, Role::Worker, 100 * HOUR);
    let mut session_of_other = session(manager.channel(Some(&of_other))).await;
    let tls = client_config(&manager.cluster.root_ca_pem, Some(&credentials));
    let mut idle = dial(manager.address, tls).await.unwrap();

    remove(&manager, &worker).await;
    // Calls are refused from that moment, also on the connection that is still there.
    for _ in 0..2 {
        let error = renew(channel.clone(), request().0).await.unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied, "{error}");
        assert!(
            error.message().contains("was removed from the swarm"),
            "{error}"
        );
    }
    let before = Instant::now();
    ended(&mut session_of_worker).await;
    super::network::closed(&mut idle).await;
    assert!(
        before.elapsed() < Duration::from_secs(5),
        "{:?}",
        before.elapsed()
    );
    assert!(
        timeout(Duration::from_secs(1), session_of_other.message())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn one_node_cannot_take_the_places_of_others() {
    let manager = Manager::start().await;
    let greedy = manager.add_node(Role::Worker, "h2").await;
    let other = manager.add_node(Role::Worker, "h3").await;
    let of_greedy = manager.credentials(&greedy, Role::Worker, 100 * HOUR);
    let mut sessions = Vec::new();
    for _ in 0..32 {
        sessions.push(session(manager.channel(Some(&of_greedy))).await);
    }
    let tls = client_config(&manager.cluster.root_ca_pem, Some(&of_greedy));
    super::network::closed(&mut dial(manager.address, tls).await.unwrap()).await;
    let of_other = manager.credentials(&other, Role::Worker, 100 * HOUR);
    renew(manager.channel(Some(&of_other)), request().0)
        .await
        .unwrap();
}
