//! What a restart keeps, and what keeps a start from succeeding.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use swarm_api::v1;
use swarm_api::v1::control_client::ControlClient;

use super::host::{Host, NODE_ID};

const OTHER_NODE_ID: &str = "onmlkjihgfedcba9876543210";

/// What must outlive a restart.
#[derive(Debug, PartialEq)]
struct Lasting {
    cluster: v1::GetClusterResponse,
    worker: v1::GetJoinTokenResponse,
    manager: v1::GetJoinTokenResponse,
    services: Vec<(String, Option<v1::ServiceSpec>)>,
    certificate: String,
}

async fn lasting(host: &Host) -> Lasting {
    let mut client = ControlClient::new(host.local().await);
    let mut token = async |role: v1::Role| {
        let role = role.into();
        let request = v1::GetJoinTokenRequest {
            role,
            rotate: false,
        };
        client.get_join_token(request).await.unwrap().into_inner()
    };
    let worker = token(v1::Role::Worker).await;
    let manager = token(v1::Role::Manager).await;
    let cluster = client.get_cluster(v1::GetClusterRequest {}).await.unwrap();
    let services = client
        .list_services(v1::ListServicesRequest {})
        .await
        .unwrap();
    Lasting {
        cluster: cluster.into_inner(),
        worker,
        manager,
        services: services
            .into_inner()
            .services
            .into_iter()
            .map(|summary| {
                let service = summary.service.unwrap();
                (service.id, service.spec)
            })
            .collect(),
        certificate: std::fs::read_to_string(host.state().join("tls/manager.pem")).unwrap(),
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

async fn create_service(host: &Host) {
    let spec = v1::ServiceSpec {
        name: "web".to_owned(),
        task: Some(v1::TaskSpec {
            container: Some(v1::ContainerSpec {
                image: "nginx:latest".to_owned(),
                ..v1::ContainerSpec::default()
            }),
            ..v1::TaskSpec::default()
        }),
        ..v1::ServiceSpec::default()
    };
    let request = v1::CreateServiceRequest { spec: Some(spec) };
    ControlClient::new(host.local().await)
        .create_service(request)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_outlives_its_manager_process() {
    let host = Host::new();
    let mut first = host.bootstrap();
    create_service(&host).await;
    let before = lasting(&host).await;
    assert_eq!(before.cluster.node_id, NODE_ID);
    assert_eq!(before.worker.manager_address, host.address.to_string());
    assert_eq!(before.services.len(), 1);
    assert_eq!(mode(&host.socket()), 0o660);
    assert_eq!(mode(&host.state().join("tls/manager.pem")), 0o600);
    let (status, log) = first.close_stdin();
    assert!(status.success(), "{log}");
    assert!(!host.socket().exists());
    for secret in [
        before.worker.token.rsplit('-').next().unwrap(),
        before.manager.token.rsplit('-').next().unwrap(),
        "PRIVATE KEY",
    ] {
        assert!(!log.contains(secret), "{log}");
    }

    // As the agent starts it again, not knowing whether the first start got as far as a log.
    let mut second = host.bootstrap();
    assert_eq!(lasting(&host).await, before);
    let killed = Command::new("kill")
        .arg(second.child.id().to_string())
        .status();
    assert!(killed.unwrap().success());
    let (status, log) = second.end();
    assert!(status.success(), "{log}");

    let mut third = host.start(&[]);
    assert_eq!(lasting(&host).await, before);
    third.child.kill().unwrap();
    third.end();
    assert!(host.socket().exists());

    let _fourth = host.start(&[]);
    assert_eq!(lasting(&host).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_waits_for_its_predecessor() {
    let host = Host::new();
    let mut first = host.bootstrap();
    let before = lasting(&host).await;
    let mut second = host.start(&[]);
    second.says("waiting for another process to let go of the log");
    assert!(first.close_stdin().0.success());
    assert_eq!(lasting(&host).await, before);
    assert!(second.close_stdin().0.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_it_from_starting_has_a_code_and_a_remedy() {
    let host = Host::new();
    let (code, text) = host.start(&[]).failure();
    assert_eq!(code, Some(13), "{text}");
    assert_eq!(
        text,
        format!(
            "swarm-control: {} holds no swarm; `swarmctl swarm init` makes one, `swarmctl swarm \
             join` joins another",
            host.state().display()
        )
    );

    let taken = TcpListener::bind(host.address).unwrap();
    let (code, text) = host.bootstrap().failure();
    assert_eq!(code, Some(10), "{text}");
    assert_eq!(
        text,
        format!(
            "swarm-control: cannot listen on {}: another process has this address; end it (`ss \
             -ltnp` shows which) or choose another listen address",
            host.address
        )
    );
    drop(taken);
    // Nothing was made.
    assert_eq!(host.start(&[]).failure().0, Some(13));

    let mut running = host.bootstrap();
    lasting(&host).await;
    assert!(running.close_stdin().0.success());
    let (code, text) = host
        .start(&["--bootstrap", "--node-id", OTHER_NODE_ID])
        .failure();
    assert_eq!(code, Some(13), "{text}");
    assert_eq!(
        text,
        format!(
            "swarm-control: {} belongs to node {NODE_ID}, not to {OTHER_NODE_ID}; leave that swarm \
             first with `swarmctl swarm leave --force`",
            host.state().display()
        )
    );
    assert_eq!(host.start(&["--bootstrap"]).failure().0, Some(2));
}
