//! A watch, and what a restart leaves of it.

use swarm_api::v1;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::watch_event::Object;
use tonic::Streaming;

use super::host::{Host, PATIENCE};

async fn watch(host: &Host, resume_from: Option<u64>) -> Streaming<v1::WatchResponse> {
    let request = v1::WatchRequest {
        resume_from,
        kinds: vec![v1::ObjectKind::Service.into()],
    };
    let mut control = ControlClient::new(host.local().await);
    control.watch(request).await.unwrap().into_inner()
}

async fn create(host: &Host, name: &str) {
    let container = v1::ContainerSpec {
        image: "nginx:latest".to_owned(),
        ..v1::ContainerSpec::default()
    };
    let spec = v1::ServiceSpec {
        name: name.to_owned(),
        task: Some(v1::TaskSpec {
            container: Some(container),
            ..v1::TaskSpec::default()
        }),
        ..v1::ServiceSpec::default()
    };
    let request = v1::CreateServiceRequest { spec: Some(spec) };
    let mut control = ControlClient::new(host.local().await);
    control.create_service(request).await.unwrap();
}

/// The name and the version of the next service that is made.
async fn next_created(watched: &mut Streaming<v1::WatchResponse>) -> (String, u64) {
    let look = async {
        loop {
            let message = watched.message().await.unwrap().unwrap();
            for event in message.events {
                if let (v1::WatchAction::Create, Some(Object::Service(service))) =
                    (event.action(), event.object)
                {
                    return (service.spec.unwrap().name, message.version);
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_after_a_restart() {
    let host = Host::new();
    let mut first = host.bootstrap();
    let mut watched = watch(&host, None).await;
    create(&host, "one").await;
    let (name, version) = next_created(&mut watched).await;
    assert_eq!(name, "one");
    create(&host, "two").await;
    first.child.kill().unwrap();
    first.end();

    let mut second = host.start(&[]);
    create(&host, "three").await;
    let mut again = watch(&host, Some(version)).await;
    assert_eq!(next_created(&mut again).await.0, "two");
    assert_eq!(next_created(&mut again).await.0, "three");
    drop(again);
    assert!(second.close_stdin().0.success());
}
