//! Joining, tokens, and nodes that go.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use swarm_api::v1;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::local_control_client::LocalControlClient;
use swarm_api::v1::node_ca_client::NodeCaClient;
use swarm_model::{JoinToken, NodeId, NodeState, Role};
use tonic::{Code, Status};

use super::harness::{Manager, node, put, request};
use crate::ca::Subject;

async fn join(
    manager: &Manager,
    token: &str,
    csr: Vec<u8>,
) -> Result<v1::IssueNodeCertificateResponse, Status> {
    let request = v1::IssueNodeCertificateRequest {
        token: token.to_owned(),
        csr,
    };
    NodeCaClient::new(manager.channel(None))
        .issue_node_certificate(request)
        .await
        .map(tonic::Response::into_inner)
}

fn subject_of(chain_pem: &str) -> Subject {
    Subject::from_der(&CertificateDer::from_pem_slice(chain_pem.as_bytes()).unwrap()).unwrap()
}

#[tokio::test]
async fn a_worker_joins_with_the_worker_token() {
    let manager = Manager::start().await;
    let answer = join(&manager, &manager.token(Role::Worker), request().0)
        .await
        .unwrap();
    let subject = subject_of(&answer.certificate_chain_pem);
    assert_eq!(subject.node_id.as_str(), answer.node_id);
    assert_eq!(subject.role, Role::Worker);
    assert_eq!(subject.cluster_id, manager.cluster.id);
    assert_eq!(answer.cluster_id, manager.cluster.id.as_str());
    assert_eq!(answer.role(), v1::Role::Worker);
    let node = manager
        .store
        .read(|state| state.node(&subject.node_id).cloned())
        .unwrap();
    assert_eq!(node.role, Role::Worker);
    assert_eq!(node.status.state, NodeState::Unknown);
    assert!(node.meta.created_at.0 > 0);
}

#[tokio::test]
async fn whoever_may_not_join_is_told_why_and_leaves_no_trace() {
    let manager = Manager::start().await;
    let good = manager.token(Role::Worker);
    let wrong = JoinToken::new(&manager.cluster.root_ca_pem, &"z".repeat(25)).to_string();
    let foreign = JoinToken::new("another root", &manager.cluster.worker_secret).to_string();
    let csr = request().0;
    for (token, csr, code, text) in [
        (
            "SWMTKN-1-short",
            csr.clone(),
            Code::InvalidArgument,
            "the join token is not valid: it is cut short; copy the whole token that `swarmctl \
             swarm join-token worker` prints on a manager",
        ),
        (
            &wrong,
            csr.clone(),
            Code::PermissionDenied,
            "the join token was refused: it is wrong or was rotated; take the one that `swarmctl \
             swarm join-token worker` prints now",
        ),
        (
            &foreign,
            csr.clone(),
            Code::PermissionDenied,
            "the join token belongs to another swarm; take the one that `swarmctl swarm join-token \
             worker` prints on a manager of this swarm",
        ),
        (
            &good,
            b"garbage".to_vec(),
            Code::InvalidArgument,
            "the certificate request cannot be read: it must be PKCS#10 in DER",
        ),
        (
            &good,
            vec![0; 9000],
            Code::InvalidArgument,
            "the certificate request is larger than 8192 bytes",
        ),
    ] {
        let error = join(&manager, token, csr).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (code, text));
    }
    assert_eq!(manager.store.read(|state| state.nodes().count()), 1);
}

#[tokio::test]
async fn a_manager_joins_with_the_manager_token_until_there_are_seven() {
    let manager = Manager::start().await;
    let token = manager.token(Role::Manager);
    for _ in 1..7 {
        let answer = join(&manager, &token, request().0).await.unwrap();
        assert_eq!(answer.role(), v1::Role::Manager);
        let subject = subject_of(&answer.certificate_chain_pem);
        assert_eq!(subject.role, Role::Manager);
        let node = manager
            .store
            .read(|state| state.node(&subject.node_id).cloned());
        let node = node.unwrap();
        assert_eq!((node.role, &node.manager), (Role::Manager, &None));
    }
    let error = join(&manager, &token, request().0).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (
            Code::FailedPrecondition,
            "the swarm has 7 managers, the most there can be; demote one first"
        )
    );
}

#[tokio::test]
async fn joins_are_limited_in_number() {
    let manager = Manager::start().await;
    let mut client = NodeCaClient::new(manager.channel(None));
    // More than the burst and what can be refilled meanwhile.
    for _ in 0..100_000 {
        let error = client
            .issue_node_certificate(v1::IssueNodeCertificateRequest::default())
            .await
            .unwrap_err();
        if error.code() == Code::ResourceExhausted {
            assert_eq!(
                error.message(),
                "too many hosts are joining at once; try again in a few seconds"
            );
            return;
        }
    }
    panic!("never limited");
}

#[tokio::test]
async fn a_rotated_token_is_refused_and_the_new_one_works() {
    let manager = Manager::start().await;
    let mut control = ControlClient::new(manager.local());
    let mut token = async |role: v1::Role, rotate| {
        let role = role.into();
        let request = v1::GetJoinTokenRequest { role, rotate };
        control.get_join_token(request).await.unwrap().into_inner()
    };
    let old = token(v1::Role::Worker, false).await;
    assert_eq!(old.token, manager.token(Role::Worker));
    assert_eq!(old.manager_address, manager.address.to_string());
    let managers = token(v1::Role::Manager, false).await.token;
    let new = token(v1::Role::Worker, true).await.token;
    assert_ne!(new, old.token);
    assert_eq!(token(v1::Role::Worker, false).await.token, new);
    assert_eq!(token(v1::Role::Manager, false).await.token, managers);

    let refused = join(&manager, &old.token, request().0).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    join(&manager, &new, request().0).await.unwrap();
}

#[tokio::test]
async fn the_managers_agent_gets_its_certificate_locally() {
    let manager = Manager::start().await;
    let answer = LocalControlClient::new(manager.local())
        .issue_manager_certificate(v1::IssueManagerCertificateRequest { csr: request().0 })
        .await
        .unwrap()
        .into_inner();
    let subject = subject_of(&answer.certificate_chain_pem);
    assert_eq!(subject.node_id, manager.self_id);
    assert_eq!(subject.role, Role::Manager);
    assert_eq!(answer.root_ca_pem, manager.cluster.root_ca_pem);
    assert_eq!(answer.cluster_id, manager.cluster.id.as_str());
}

async fn remove(manager: &Manager, reference: &str, force: bool) -> Result<String, Status> {
    let reference = reference.to_owned();
    ControlClient::new(manager.local())
        .remove_node(v1::RemoveNodeRequest { reference, force })
        .await
        .map(|answer| answer.into_inner().id)
}

#[tokio::test]
async fn nodes_are_removed_when_they_are_down_or_by_force() {
    let manager = Manager::start().await;
    let worker = manager.add_node(Role::Worker, "h2").await;
    let error = remove(&manager, "h2", false).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (
            Code::FailedPrecondition,
            "node h2 is ready; stop its agent and wait until it is down, or remove it all the same \
             with `swarmctl node rm --force h2`"
        )
    );
    assert_eq!(remove(&manager, "h2", true).await.unwrap(), worker.as_str());

    let mut down = node(NodeId::random(&mut rand::rng()), Role::Worker, "h3");
    down.status.state = NodeState::Down;
    let id = down.id.clone();
    put(&manager.store, vec![down.into()]).await;
    assert_eq!(
        remove(&manager, &id.as_str()[..10], false).await.unwrap(),
        id.as_str()
    );
    assert_eq!(manager.store.read(|state| state.nodes().count()), 1);

    for force in [false, true] {
        let error = remove(&manager, "self", force).await.unwrap_err();
        assert_eq!(
            (error.code(), error.message()),
            (
                Code::FailedPrecondition,
                "node h1 is a manager; demote it first with `swarmctl node demote h1`"
            )
        );
    }
}

#[tokio::test]
async fn nodes_are_looked_up_by_self_id_name_and_prefix() {
    let manager = Manager::start().await;
    let worker = manager.add_node(Role::Worker, "h2").await;
    let twins = [
        manager.add_node(Role::Worker, "twin").await,
        manager.add_node(Role::Worker, "twin").await,
    ];
    let mut control = ControlClient::new(manager.local());
    let mut get = async |reference: &str| {
        let reference = reference.to_owned();
        control
            .get_node(v1::GetNodeRequest { reference })
            .await
            .map(|answer| answer.into_inner().node.unwrap().id)
    };
    assert_eq!(get("self").await.unwrap(), manager.self_id.as_str());
    assert_eq!(get("h2").await.unwrap(), worker.as_str());
    assert_eq!(get(worker.as_str()).await.unwrap(), worker.as_str());
    assert_eq!(get(&worker.as_str()[..20]).await.unwrap(), worker.as_str());

    let error = get("h9").await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (
            Code::NotFound,
            "there is no node \"h9\"; `swarmctl node ls` lists them"
        )
    );
    let error = get("").await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (
            Code::InvalidArgument,
            "say which node: by name, id, or the beginning of an id"
        )
    );
    let mut ids = twins.map(|id| format!("{id} (twin)"));
    ids.sort();
    let error = get("twin").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(
        error.message(),
        format!(
            "node \"twin\" can mean any of {}; use more of the id",
            ids.join(", ")
        )
    );
}

#[tokio::test]
async fn nodes_are_paused_drained_and_labelled() {
    let manager = Manager::start().await;
    let worker = manager.add_node(Role::Worker, "h2").await;
    let mut control = ControlClient::new(manager.local());
    let mut update = async |reference: &str, availability, add: &[(&str, &str)], rm: &[&str]| {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let message = v1::UpdateNodeRequest {
            reference: reference.to_owned(),
            availability,
            labels_add: add.iter().map(owned).collect(),
            labels_rm: rm.iter().map(|key| (*key).to_owned()).collect(),
        };
        let answer = control.update_node(message).await;
        answer
            .map(|answer| answer.into_inner().id)
            .map_err(|status| (status.code(), status.message().to_owned()))
    };
    let spec = || {
        let node = manager.store.read(|state| state.node(&worker).cloned());
        let spec = node.expect("it is in the store").spec.clone();
        let labels = spec.labels.iter();
        let labels: Vec<_> = labels
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        (spec.availability.as_str(), labels.join(" "))
    };
    let drain = Some(v1::Availability::Drain.into());
    let labels = &[("zone", "a"), ("disk", "ssd")];
    assert_eq!(
        update("h2", drain, labels, &[]).await,
        Ok(worker.to_string())
    );
    assert_eq!(spec(), ("drain", "disk=ssd zone=a".to_owned()));
    // What is not named is kept; a label that is removed and set is set.
    let done = update("h2", None, &[("zone", "b")], &["zone", "disk"]).await;
    assert_eq!(done, Ok(worker.to_string()));
    assert_eq!(spec(), ("drain", "zone=b".to_owned()));
    let index = manager.store.read(crate::store::State::index);
    let again = update("h2", drain, &[("zone", "b")], &[]).await;
    assert_eq!(again, Ok(worker.to_string()));
    assert_eq!(spec(), ("drain", "zone=b".to_owned()));
    assert_eq!(manager.store.read(crate::store::State::index), index);

    for (reference, availability, add, rm, code, text) in [
        (
            "h9",
            drain,
            &[][..],
            &[][..],
            Code::NotFound,
            "there is no node \"h9\"; `swarmctl node ls` lists them",
        ),
        (
            "h2",
            None,
            &[],
            &[],
            Code::InvalidArgument,
            "nothing is asked of the node: name an availability, or labels to add or to remove",
        ),
        (
            "h2",
            Some(0),
            &[],
            &[],
            Code::InvalidArgument,
            "the request has no availability",
        ),
        (
            "h2",
            None,
            &[("a b", "c")],
            &[],
            Code::InvalidArgument,
            "label key \"a b\" is not valid: use up to 128 letters, digits, `.`, `_` and `-`, as \
             constraints do (node.labels.KEY==VALUE)",
        ),
        (
            "h2",
            drain,
            &[],
            &["disk"],
            Code::InvalidArgument,
            "node h2 has no label \"disk\"; `swarmctl node inspect h2` shows those it has",
        ),
    ] {
        let refused = update(reference, availability, add, rm).await;
        assert_eq!(refused, Err((code, text.to_owned())));
    }
    assert_eq!(spec(), ("drain", "zone=b".to_owned()));

    let drain = ControlClient::new(manager.local())
        .get_drain(v1::GetDrainRequest {
            reference: "h2".to_owned(),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(drain.availability(), v1::Availability::Drain);
    assert!(drain.tasks.is_empty());
}
