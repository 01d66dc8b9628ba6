//! Every method from every kind of caller.

use swarm_model::Role;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::codegen::http::Request;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::harness::{HOUR, Manager, credentials, new_cluster};

const NODE_CA: [&str; 2] = [
    "/swarm.v1.NodeCa/GetRootCertificate",
    "/swarm.v1.NodeCa/IssueNodeCertificate",
];
const DISPATCHER: [&str; 1] = ["/swarm.v1.Dispatcher/Session"];
const CONTROL: [&str; 16] = [
    "/swarm.v1.Control/GetCluster",
    "/swarm.v1.Control/GetJoinToken",
    "/swarm.v1.Control/ListNodes",
    "/swarm.v1.Control/GetNode",
    "/swarm.v1.Control/RemoveNode",
    "/swarm.v1.Control/CreateService",
    "/swarm.v1.Control/UpdateService",
    "/swarm.v1.Control/RemoveService",
    "/swarm.v1.Control/GetService",
    "/swarm.v1.Control/ListServices",
    "/swarm.v1.Control/CreateNetwork",
    "/swarm.v1.Control/RemoveNetwork",
    "/swarm.v1.Control/PruneNetworks",
    "/swarm.v1.Control/GetNetwork",
    "/swarm.v1.Control/ListNetworks",
    "/swarm.v1.Control/ListTasks",
];
const LOCAL: [&str; 1] = ["/swarm.v1.LocalControl/IssueManagerCertificate"];
const UNKNOWN: [&str; 3] = [
    "/swarm.v1.Control/DropEverything",
    "/swarm.v1.LocalAgent/Leave",
    "/grpc.health.v1.Health/Check",
];

/// How a call ended, as far as the right to make it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It reached the service.
    Passed,
    /// There was no connection to make it on.
    NoConnection,
    /// The manager answered that it may not be made.
    Refused(Code),
}
use Verdict::{NoConnection, Passed, Refused};

/// Calls `path` with an empty stream of messages, which no service can do anything with.
async fn call(channel: &Channel, path: &str) -> Verdict {
    let request = Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::empty())
        .unwrap();
    let mut channel = channel.clone();
    std::future::poll_fn(|context| channel.poll_ready(context))
        .await
        .unwrap();
    let Ok(response) = channel.call(request).await else {
        return NoConnection;
    };
    let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
    match code {
        Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented => Refused(code),
        _ => Passed,
    }
}

async fn check(caller: &str, channel: &Channel, expected: [(&[&str], Verdict); 5]) {
    for (methods, verdict) in expected {
        for method in methods {
            assert_eq!(call(channel, method).await, verdict, "{caller}: {method}");
        }
    }
}

#[tokio::test]
async fn every_method_from_every_kind_of_caller() {
    let manager = Manager::start().await;
    let worker_id = manager.add_node(Role::Worker, "h2").await;
    let peer_id = manager.add_node(Role::Manager, "h3").await;
    let nobody = swarm_model::NodeId::random(&mut rand::rng());
    let elsewhere = new_cluster();
    let long = 100 * HOUR;
    let short = HOUR / 2;

    let denied = Refused(Code::PermissionDenied);
    let anonymous = Refused(Code::Unauthenticated);
    let unknown = Refused(Code::Unimplemented);
    let row = |node_ca, dispatcher, control, local, unknown| {
        [
            (&NODE_CA[..], node_ca),
            (&DISPATCHER[..], dispatcher),
            (&CONTROL[..], control),
            (&LOCAL[..], local),
            (&UNKNOWN[..], unknown),
        ]
    };
    let nothing = row(
        NoConnection,
        NoConnection,
        NoConnection,
        NoConnection,
        NoConnection,
    );
    for (caller, certificate, expected) in [
        (
            "no certificate",
            None,
            row(Passed, anonymous, anonymous, anonymous, unknown),
        ),
        (
            "worker",
            Some(manager.credentials(&worker_id, Role::Worker, long)),
            row(Passed, Passed, denied, denied, unknown),
        ),
        (
            "manager",
            Some(manager.credentials(&peer_id, Role::Manager, long)),
            row(Passed, Passed, Passed, denied, unknown),
        ),
        (
            "manager that was demoted",
            Some(manager.credentials(&worker_id, Role::Manager, long)),
            row(Passed, Passed, denied, denied, unknown),
        ),
        (
            "worker that was promoted but has its old certificate",
            Some(manager.credentials(&peer_id, Role::Worker, long)),
            row(Passed, Passed, denied, denied, unknown),
        ),
        (
            "removed node",
            Some(manager.credentials(&nobody, Role::Manager, long)),
            row(Passed, denied, denied, denied, unknown),
        ),
        (
            "expired certificate",
            Some(manager.credentials(&peer_id, Role::Manager, short)),
            nothing,
        ),
        (
            "certificate of another swarm",
            Some(credentials(&elsewhere, &peer_id, Role::Manager, long)),
            nothing,
        ),
    ] {
        let channel = manager.channel(certificate.as_ref());
        check(caller, &channel, expected).await;
    }
    // Not served there, whoever asks.
    let elsewhere = unknown;
    let local = row(elsewhere, anonymous, Passed, Passed, unknown);
    check("local operator", &manager.local(), local).await;
}
