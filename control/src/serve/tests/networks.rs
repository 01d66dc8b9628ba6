//! Networks, as a person works with them.

use swarm_api::v1;
use swarm_api::v1::control_client::ControlClient;
use swarm_model::{
    Attachment, DesiredState, Meta, NetworkId, Service, ServiceId, Task, TaskId, TaskSpec,
    TaskState, TaskStatus, Timestamp,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::harness::{Manager, put};

struct Client(ControlClient<Channel>);

impl Client {
    fn new(manager: &Manager) -> Self {
        Self(ControlClient::new(manager.local()))
    }

    async fn create(&mut self, spec: v1::NetworkSpec) -> Result<v1::Network, Status> {
        let request = v1::CreateNetworkRequest { spec: Some(spec) };
        let answer = self.0.create_network(request).await?;
        Ok(answer.into_inner().network.unwrap())
    }

    async fn remove(&mut self, reference: &str) -> Result<String, Status> {
        let reference = reference.to_owned();
        let request = v1::RemoveNetworkRequest { reference };
        Ok(self.0.remove_network(request).await?.into_inner().id)
    }

    async fn inspect(&mut self, reference: &str) -> v1::GetNetworkResponse {
        let request = v1::GetNetworkRequest {
            reference: reference.to_owned(),
            verbose: true,
        };
        self.0.get_network(request).await.unwrap().into_inner()
    }

    async fn names(&mut self) -> Vec<String> {
        let list = self.0.list_networks(v1::ListNetworksRequest {}).await;
        let networks = list.unwrap().into_inner().networks.into_iter();
        networks.map(|it| it.spec.unwrap().name).collect()
    }

    async fn create_service(&mut self, spec: v1::ServiceSpec) -> Result<v1::Service, Status> {
        let request = v1::CreateServiceRequest { spec: Some(spec) };
        let answer = self.0.create_service(request).await?;
        Ok(answer.into_inner().service.unwrap())
    }

    async fn update_service(
        &mut self,
        service: &v1::Service,
        spec: v1::ServiceSpec,
    ) -> Result<v1::Service, Status> {
        let request = v1::UpdateServiceRequest {
            id: service.id.clone(),
            version: service.meta.as_ref().unwrap().version,
            spec: Some(spec),
        };
        let answer = self.0.update_service(request).await?;
        Ok(answer.into_inner().service.unwrap())
    }
}

fn named(name: &str) -> v1::NetworkSpec {
    v1::NetworkSpec {
        name: name.to_owned(),
        ..v1::NetworkSpec::default()
    }
}

fn service_on(name: &str, networks: &[&str]) -> v1::ServiceSpec {
    let networks = networks.iter().map(|target| v1::NetworkAttachmentSpec {
        target: (*target).to_owned(),
        aliases: Vec::new(),
    });
    v1::ServiceSpec {
        name: name.to_owned(),
        task: Some(v1::TaskSpec {
            container: Some(v1::ContainerSpec {
                image: "nginx:latest".to_owned(),
                ..v1::ContainerSpec::default()
            }),
            networks: networks.collect(),
            ..v1::TaskSpec::default()
        }),
        ..v1::ServiceSpec::default()
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, text));
}

#[tokio::test]
async fn a_network_is_created_once_and_removed() {
    let manager = Manager::start().await;
    let mut client = Client::new(&manager);
    let front = client.create(named("front")).await.unwrap();
    assert_eq!(front.subnet, "10.0.0.0/24");
    assert_eq!(front.gateway, "10.0.0.1");
    assert_eq!(front.vni, 4097);
    refused(
        client.create(named("front")).await,
        Code::AlreadyExists,
        &format!(
            "network front exists already ({}); choose another name, or remove it with `swarmctl \
             network rm front`",
            front.id
        ),
    );
    client.create(named("back")).await.unwrap();
    assert_eq!(client.names().await, ["back", "front"]);
    assert_eq!(client.remove(&front.id[..8]).await.unwrap(), front.id);
    refused(
        client.remove("front").await,
        Code::NotFound,
        "there is no network \"front\"; `swarmctl network ls` lists them",
    );
    // A name is free again at once, and its addresses are not.
    let again = client.create(named("front")).await.unwrap();
    assert_eq!(again.subnet, "10.0.2.0/24");
    assert_eq!(again.vni, 4099);
}

#[tokio::test]
async fn nonsense_is_refused_with_the_reason() {
    let manager = Manager::start().await;
    let mut client = Client::new(&manager);
    client.create(named("front")).await.unwrap();
    for (spec, text) in [
        (
            named("host"),
            "the network name host is reserved: choose another",
        ),
        (
            named("a b"),
            "name \"a b\" is not valid: use 1 to 63 letters and digits, with - or _ between them",
        ),
        (
            v1::NetworkSpec {
                subnet: "10.0.0.0/16".to_owned(),
                ..named("wide")
            },
            "subnet 10.0.0.0/16 overlaps 10.0.0.0/24 of network front: choose another with \
             --subnet, or leave --subnet out and the swarm chooses one",
        ),
        (
            v1::NetworkSpec {
                subnet: "everything".to_owned(),
                ..named("wide")
            },
            "the request cannot be read: network.spec.subnet \"everything\" is not an IPv4 network \
             in CIDR form",
        ),
    ] {
        refused(client.create(spec).await, Code::InvalidArgument, text);
    }
    let missing = v1::CreateNetworkRequest { spec: None };
    refused(
        client.0.create_network(missing).await,
        Code::InvalidArgument,
        "the request has no spec",
    );
    assert_eq!(client.names().await, ["front"]);
}

#[tokio::test]
async fn services_name_networks_as_people_do() {
    let manager = Manager::start().await;
    let mut client = Client::new(&manager);
    let front = client.create(named("front")).await.unwrap();
    let back = client.create(named("back")).await.unwrap();
    let spec = service_on("web", &["front", &back.id[..10]]);
    let web = client.create_service(spec).await.unwrap();
    let targets = |service: &v1::Service| {
        let networks = &service
            .spec
            .as_ref()
            .unwrap()
            .task
            .as_ref()
            .unwrap()
            .networks;
        networks
            .iter()
            .map(|it| it.target.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(targets(&web), [front.id.clone(), back.id.clone()]);
    // The same by other words is no change.
    let spec = service_on("web", &[&front.id, "back"]);
    assert_eq!(client.update_service(&web, spec).await.unwrap(), web);
    let spec = service_on("web", &["back"]);
    let moved = client.update_service(&web, spec).await.unwrap();
    assert_eq!(targets(&moved), std::slice::from_ref(&back.id));
    assert_eq!(moved.template_version, 2, "its tasks are replaced");

    for (networks, code, text) in [
        (
            ["back", &back.id],
            Code::InvalidArgument,
            "the service is attached to network back twice: name each network once",
        ),
        (
            ["back", "host"],
            Code::InvalidArgument,
            "the network host of a node cannot be used by services: make one for them with \
             `swarmctl network create`",
        ),
        (
            ["back", "nope"],
            Code::NotFound,
            "there is no network \"nope\"; `swarmctl network ls` lists them",
        ),
    ] {
        refused(
            client.create_service(service_on("api", &networks)).await,
            code,
            text,
        );
    }
}

#[tokio::test]
async fn a_network_in_use_stays() {
    let manager = Manager::start().await;
    let mut client = Client::new(&manager);
    let front = client.create(named("front")).await.unwrap();
    client.create(named("idle")).await.unwrap();
    client.create(named("gone")).await.unwrap();
    let web = client
        .create_service(service_on("web", &["front"]))
        .await
        .unwrap();
    client
        .create_service(service_on("api", &["front"]))
        .await
        .unwrap();
    let in_use = |by: &str| {
        format!(
            "network front is in use by {by}: remove these services, or take them off it with \
             `swarmctl service update --network-rm front SERVICE`, and wait until their tasks have \
             moved"
        )
    };
    refused(
        client.remove("front").await,
        Code::FailedPrecondition,
        &in_use("api, web"),
    );
    let pruned = client.0.prune_networks(v1::PruneNetworksRequest {}).await;
    assert_eq!(pruned.unwrap().into_inner().names, ["gone", "idle"]);
    assert_eq!(client.names().await, ["front"]);

    // A task there counts, whatever its service asks for by now.
    let id: ServiceId = web.id.parse().unwrap();
    let mut detached = manager
        .store
        .read(|state| Service::clone(state.service(&id).unwrap()));
    let network: NetworkId = front.id.parse().unwrap();
    let mut task = task(&detached, &network);
    task.spec = std::mem::take(&mut detached.spec.task);
    put(&manager.store, vec![detached.into(), task.clone().into()]).await;
    let members = client.inspect("front").await;
    let names = |members: &v1::GetNetworkResponse| {
        let services = members.services.iter();
        let names = services.map(|it| it.spec.as_ref().unwrap().name.clone());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(&members), ["api"]);
    assert_eq!(members.tasks.len(), 1);
    assert_eq!(members.tasks[0].attachments[0].address, "10.0.0.9");
    refused(
        client.remove("front").await,
        Code::FailedPrecondition,
        &in_use("api, web"),
    );
    task.status.state = TaskState::Shutdown;
    put(&manager.store, vec![task.into()]).await;
    refused(
        client.remove("front").await,
        Code::FailedPrecondition,
        &in_use("api"),
    );
}

fn task(service: &Service, network: &NetworkId) -> Task {
    Task {
        id: TaskId::random(&mut rand::rng()),
        meta: Meta::default(),
        service_id: service.id.clone(),
        service_name: service.spec.name.clone(),
        slot: 1,
        node_id: None,
        spec: TaskSpec::default(),
        template_version: 1,
        desired_state: DesiredState::Running,
        desired_since: Timestamp(0),
        not_before: Timestamp(0),
        status: TaskStatus {
            state: TaskState::Running,
            ..TaskStatus::default()
        },
        ingress_address: None,
        attachments: vec![Attachment {
            network: network.clone(),
            address: [10, 0, 0, 9].into(),
            aliases: Vec::new(),
        }],
    }
}
