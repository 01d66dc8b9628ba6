//! Every method from every kind of caller.

use prost::Message as _;
use prost_types::FileDescriptorSet;
use swarm_model::Role;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::codegen::http::Request;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::harness::{HOUR, Manager, credentials, new_cluster};

/// Who is meant to call a method; said here once more, apart from the table that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meant {
    Anyone,
    Nodes,
    Managers,
    /// Managers by certificate; not the local socket.
    Peers,
    Local,
    /// Not a manager's to answer.
    Nobody,
}

/// Every method of every service, from the protocol files. Whoever adds one says here who may call
/// it.
pub(in crate::serve) fn methods() -> Vec<String> {
    let files = FileDescriptorSet::decode(swarm_api::FILE_DESCRIPTOR_SET).unwrap();
    let mut methods = Vec::new();
    for file in files.file {
        for service in &file.service {
            for method in &service.method {
                let (package, service) = (file.package(), service.name());
                methods.push(format!("/{package}.{service}/{}", method.name()));
            }
        }
    }
    methods.sort();
    assert!(methods.len() > 20, "{methods:?}");
    methods
}

fn meant(method: &str) -> Meant {
    match method.trim_start_matches('/').split_once('/').unwrap() {
        ("swarm.v1.NodeCa", "GetRootCertificate" | "IssueNodeCertificate") => Meant::Anyone,
        ("swarm.v1.NodeCa", "RenewNodeCertificate") | ("swarm.v1.Dispatcher", _) => Meant::Nodes,
        ("swarm.v1.Control", _) => Meant::Managers,
        ("swarm.v1.Raft" | "swarm.v1.Managers", _) => Meant::Peers,
        ("swarm.v1.LocalControl", _) => Meant::Local,
        // The agent's own socket; then what no protocol file has.
        ("swarm.v1.LocalAgent", _) | ("grpc.health.v1.Health", _) => Meant::Nobody,
        _ => panic!("{method}: say here who is meant to call it"),
    }
}

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

async fn check(caller: &str, channel: &Channel, expected: impl Fn(Meant) -> Verdict) {
    let unknown = ["/swarm.v1.Control/", "/grpc.health.v1.Health/Check"];
    let methods = methods();
    for method in methods.iter().map(String::as_str).chain(unknown) {
        let meant = if method.ends_with('/') {
            Meant::Nobody
        } else {
            meant(method)
        };
        let verdict = call(channel, method).await;
        assert_eq!(verdict, expected(meant), "{caller}: {method}");
    }
}

#[tokio::test]
async fn every_method_from_every_kind_of_caller() {
    let manager = Manager::start().await;
    let worker_id = manager.add_node(Role::Worker, "h2").await;
    let peer_id = manager.add_node(Role::Manager, "h3").await;
    let nobody = swarm_model::NodeId::random(&mut rand::rng());
    let elsewhere = new_cluster();
    let mut impostor = new_cluster();
    impostor.id = manager.cluster.id.clone();
    let long = 100 * HOUR;
    let short = HOUR / 2;

    let denied = Refused(Code::PermissionDenied);
    let anonymous = Refused(Code::Unauthenticated);
    let unknown = Refused(Code::Unimplemented);
    let row = |nodes, managers, local| {
        move |meant| match meant {
            Meant::Anyone => Passed,
            Meant::Nodes => nodes,
            Meant::Managers | Meant::Peers => managers,
            Meant::Local => local,
            Meant::Nobody => unknown,
        }
    };
    let callers = [
        ("no certificate", None, row(anonymous, anonymous, anonymous)),
        (
            "worker",
            Some(manager.credentials(&worker_id, Role::Worker, long)),
            row(Passed, denied, denied),
        ),
        (
            "manager",
            Some(manager.credentials(&peer_id, Role::Manager, long)),
            row(Passed, Passed, denied),
        ),
        (
            "manager that was demoted",
            Some(manager.credentials(&worker_id, Role::Manager, long)),
            row(Passed, denied, denied),
        ),
        (
            "worker that was promoted but has its old certificate",
            Some(manager.credentials(&peer_id, Role::Worker, long)),
            row(Passed, denied, denied),
        ),
        (
            "worker that was removed",
            Some(manager.credentials(&nobody, Role::Worker, long)),
            row(denied, denied, denied),
        ),
        (
            "manager that was removed",
            Some(manager.credentials(&nobody, Role::Manager, long)),
            row(denied, denied, denied),
        ),
    ];
    for (caller, certificate, expected) in callers {
        let channel = manager.channel(certificate.as_ref());
        check(caller, &channel, expected).await;
    }
    for (caller, certificate) in [
        (
            "expired certificate",
            manager.credentials(&peer_id, Role::Manager, short),
        ),
        (
            "certificate of another swarm",
            credentials(&elsewhere, &peer_id, Role::Manager, long),
        ),
        (
            "certificate of another swarm that says it is this one's",
            credentials(&impostor, &peer_id, Role::Manager, long),
        ),
    ] {
        let channel = manager.channel(Some(&certificate));
        check(caller, &channel, |_| NoConnection).await;
    }
    // What is for the network is not served there, whoever asks.
    check("local operator", &manager.local(), |meant| match meant {
        Meant::Nodes | Meant::Peers => anonymous,
        Meant::Managers | Meant::Local => Passed,
        Meant::Anyone | Meant::Nobody => unknown,
    })
    .await;
}
