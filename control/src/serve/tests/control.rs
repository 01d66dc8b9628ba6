//! Services, as a person works with them.

use swarm_api::v1;
use swarm_api::v1::control_client::ControlClient;
use swarm_model::{
    DesiredState, NodeProblem, NodeState, PortConfig, Protocol, Role, Service, ServiceId, Task,
    TaskId, TaskState, TaskStatus, Timestamp,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::harness::{Manager, put};

struct Client(ControlClient<Channel>);

impl Client {
    fn new(manager: &Manager) -> Self {
        Self(ControlClient::new(manager.local()))
    }

    async fn create(&mut self, spec: v1::ServiceSpec) -> Result<v1::Service, Status> {
        let request = v1::CreateServiceRequest { spec: Some(spec) };
        let answer = self.0.create_service(request).await?;
        Ok(answer.into_inner().service.unwrap())
    }

    async fn update(
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

    async fn get(&mut self, reference: &str) -> Result<v1::Service, Status> {
        let reference = reference.to_owned();
        let answer = self
            .0
            .get_service(v1::GetServiceRequest { reference })
            .await?;
        Ok(answer.into_inner().service.unwrap())
    }

    async fn remove(&mut self, reference: &str) -> Result<String, Status> {
        let reference = reference.to_owned();
        let answer = self
            .0
            .remove_service(v1::RemoveServiceRequest { reference })
            .await?;
        Ok(answer.into_inner().id)
    }
}

fn spec(name: &str, published: &[u32]) -> v1::ServiceSpec {
    v1::ServiceSpec {
        name: name.to_owned(),
        mode: Some(v1::service_spec::Mode::Replicated(v1::Replicated {
            replicas: 2,
        })),
        task: Some(v1::TaskSpec {
            container: Some(v1::ContainerSpec {
                image: "nginx:latest".to_owned(),
                ..v1::ContainerSpec::default()
            }),
            ..v1::TaskSpec::default()
        }),
        endpoint: Some(v1::EndpointSpec {
            ports: published
                .iter()
                .map(|&published| v1::PortConfig {
                    protocol: v1::Protocol::Tcp.into(),
                    target: 80,
                    published,
                    ..v1::PortConfig::default()
                })
                .collect(),
            ..v1::EndpointSpec::default()
        }),
        ..v1::ServiceSpec::default()
    }
}

fn with_image(mut spec: v1::ServiceSpec, image: &str) -> v1::ServiceSpec {
    let container = &mut spec.task.as_mut().unwrap().container;
    container.as_mut().unwrap().image = image.to_owned();
    spec
}

fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, text));
}

#[tokio::test]
async fn a_service_is_created_once() {
    let manager = Manager::start().await;
    let mut client = Client::new(&manager);
    let web = client.create(spec("web", &[8080])).await.unwrap();
    assert_eq!(web.template_version, 1);
    assert!(web.previous_spec.is_none() && !web.pending_delete);
    assert!(web.meta.unwrap().created_at_ms > 0);
    assert_eq!(client.get("web").await.unwrap().id, web.id);
    assert_eq!(client.get(&web.id[..6]).await.unwrap().id, web.id);

    refused(
        client.create(spec("web", &[])).await,
        Code::AlreadyExists,
        &format!(
            "name web is already taken by service {}; choose another or remove it with `swarmctl \
             service rm web`",
            web.id
        ),
    );
    refused(
        client.create(spec("api", &[9090, 8080])).await,
        Code::AlreadyExists,
        "port 8080/tcp is already published by service web; choose another or remove it with \
         `swarmctl service rm web`",
    );
    assert_eq!(manager.store.read(|state| state.services().count()), 1);

    let mut udp = spec("dns", &[8080]);
    udp.endpoint.as_mut().unwrap().ports[0].protocol = v1::Protocol::Udp.into();
    client.create(udp).await.unwrap();
}

#[tokio::test]
async fn nonsense_is_refused_with_the_reason() {
    let manager = Manager::start().await;
    let mut client = Client::new(&manager);
    let mut twice = spec("web", &[80, 80]);
    twice.endpoint.as_mut().unwrap().ports[1].target = 81;
    let mut high = spec("web", &[70_000]);
    high.endpoint.as_mut().unwrap().ports[0].target = 80;
    let mut constraint = spec("web", &[]);
    constraint.task.as_mut().unwrap().placement = Some(v1::Placement {
        constraints: vec!["node.role".to_owned()],
    });
    let mut vxlan = spec("web", &[4789]);
    vxlan.endpoint.as_mut().unwrap().ports[0].protocol = v1::Protocol::Udp.into();
    let own_port = manager.address.port();
    for (spec, text) in [
        (
            spec("-web", &[]),
            "name \"-web\" is not valid: use 1 to 63 letters and digits, with - or _ between them"
                .to_owned(),
        ),
        (
            with_image(spec("web", &[]), ""),
            "an image is needed, for example nginx:latest".to_owned(),
        ),
        (
            twice,
            "port 80/tcp is published twice by this service".to_owned(),
        ),
        (
            high,
            "the request cannot be read: port.published 70000 is not within 0 to 65535".to_owned(),
        ),
        (
            constraint,
            "constraint \"node.role\" has no operator: write KEY==VALUE or KEY!=VALUE".to_owned(),
        ),
        (
            vxlan,
            "port 4789/udp is needed by the swarm itself (overlay traffic); choose another"
                .to_owned(),
        ),
        (
            spec("web", &[u32::from(own_port)]),
            format!(
                "port {own_port}/tcp is needed by the swarm itself (nodes reach the manager there); \
                 choose another"
            ),
        ),
    ] {
        refused(client.create(spec).await, Code::InvalidArgument, &text);
    }
    let missing = v1::CreateServiceRequest { spec: None };
    refused(
        client.0.create_service(missing).await,
        Code::InvalidArgument,
        "the request has no spec",
    );
    assert_eq!(manager.store.read(|state| state.services().count()), 0);
}

#[tokio::test]
async fn an_update_counts_templates_and_keeps_the_spec_before_it() {
    let manager = Manager::start().await;
    let mut client = Client::new(&manager);
    let first = client.create(spec("web", &[8080])).await.unwrap();

    let mut scaled = spec("web", &[8080]);
    scaled.mode = Some(v1::service_spec::Mode::Replicated(v1::Replicated {
        replicas: 6,
    }));
    let second = client.update(&first, scaled.clone()).await.unwrap();
    assert_eq!(second.template_version, 1);
    assert_eq!(second.previous_spec, first.spec);
    assert_ne!(second.meta, first.meta);

    let third = client
        .update(&second, with_image(scaled.clone(), "nginx:2"))
        .await
        .unwrap();
    assert_eq!(third.template_version, 2);
    assert_eq!(third.previous_spec, second.spec);

    let mut forced = third.spec.clone().unwrap();
    forced.task.as_mut().unwrap().force_update += 1;
    let fourth = client.update(&third, forced.clone()).await.unwrap();
    assert_eq!(fourth.template_version, 3);

    // The same again changes nothing, not even the version.
    assert_eq!(client.update(&fourth, forced).await.unwrap(), fourth);

    refused(
        client.update(&third, scaled).await,
        Code::Aborted,
        "update out of sequence: the service changed since it was read; read it again and repeat",
    );
    refused(
        client.update(&fourth, spec("api", &[8080])).await,
        Code::InvalidArgument,
        "service web cannot be given another name; create one with the new name instead",
    );
    client.create(spec("api", &[9090])).await.unwrap();
    refused(
        client.update(&fourth, spec("web", &[8080, 9090])).await,
        Code::AlreadyExists,
        "port 9090/tcp is already published by service api; choose another or remove it with \
         `swarmctl service rm api`",
    );
    assert_eq!(client.get("web").await.unwrap(), fourth);
}

#[tokio::test]
async fn a_host_mode_port_is_shared_with_other_host_mode_ports_only() {
    let manager = Manager::start().await;
    let mut client = Client::new(&manager);
    let in_host_mode = |name: &str| {
        let mut spec = spec(name, &[8080]);
        spec.endpoint.as_mut().unwrap().ports[0].mode = v1::PublishMode::Host.into();
        spec
    };
    let web = client.create(in_host_mode("web")).await.unwrap();
    refused(
        client.create(spec("shop", &[8080])).await,
        Code::AlreadyExists,
        "port 8080/tcp is already published by service web in mode host; choose another or remove \
         it with `swarmctl service rm web`",
    );
    client.create(in_host_mode("api")).await.unwrap();
    client.create(spec("shop", &[9090])).await.unwrap();
    refused(
        client
            .update(&web, {
                let mut spec = in_host_mode("web");
                spec.endpoint.as_mut().unwrap().ports[0].published = 9090;
                spec
            })
            .await,
        Code::AlreadyExists,
        "port 9090/tcp is already published by service shop in mode ingress; choose another or \
         remove it with `swarmctl service rm shop`",
    );
    // Tasks are placed by host-mode ports, so another one means other tasks; another option not.
    let mut moved = in_host_mode("web");
    moved.endpoint.as_mut().unwrap().ports[0].published = 8081;
    let web = client.update(&web, moved.clone()).await.unwrap();
    assert_eq!(web.template_version, 2);
    let port = &mut moved.endpoint.as_mut().unwrap().ports[0];
    port.sources = vec!["10.0.0.0/8".to_owned()];
    let web = client.update(&web, moved).await.unwrap();
    assert_eq!(web.template_version, 2);
}

#[tokio::test]
async fn ports_that_the_swarm_chose_are_taken_as_well() {
    let manager = Manager::start().await;
    let mut client = Client::new(&manager);
    let web = client.create(spec("web", &[0])).await.unwrap();
    let id: ServiceId = web.id.parse().unwrap();
    let mut allocated = manager
        .store
        .read(|state| Service::clone(state.service(&id).unwrap()));
    allocated.endpoint.ports = vec![PortConfig {
        protocol: Protocol::Tcp,
        target: 80,
        published: 30_000,
        ..PortConfig::default()
    }];
    put(&manager.store, vec![allocated.into()]).await;
    refused(
        client.create(spec("api", &[30_000])).await,
        Code::AlreadyExists,
        "port 30000/tcp is already published by service web; choose another or remove it with \
         `swarmctl service rm web`",
    );
}

#[tokio::test]
async fn a_removed_service_is_marked_and_takes_no_more_orders() {
    let manager = Manager::start().await;
    let mut client = Client::new(&manager);
    let web = client.create(spec("web", &[])).await.unwrap();
    refused(
        client.remove("nope").await,
        Code::NotFound,
        "there is no service \"nope\"; `swarmctl service ls` lists them",
    );
    assert_eq!(client.remove("web").await.unwrap(), web.id);
    assert_eq!(client.remove("web").await.unwrap(), web.id);
    let removed = client.get("web").await.unwrap();
    assert!(removed.pending_delete);

    let text = "service web is being removed; wait until `swarmctl service ls` no longer shows it";
    refused(
        client.create(spec("web", &[])).await,
        Code::FailedPrecondition,
        text,
    );
    refused(
        client.update(&removed, spec("web", &[80])).await,
        Code::FailedPrecondition,
        text,
    );
    let list = client.0.list_services(v1::ListServicesRequest {}).await;
    assert_eq!(list.unwrap().into_inner().services[0].desired_tasks, 0);
}

fn task(service: &v1::Service, slot: u64, created_at: u64) -> Task {
    let mut task = Task {
        id: TaskId::random(&mut rand::rng()),
        meta: swarm_model::Meta::default(),
        service_id: service.id.parse().unwrap(),
        service_name: service.spec.as_ref().unwrap().name.clone(),
        slot,
        node_id: None,
        spec: swarm_model::TaskSpec::default(),
        template_version: 1,
        desired_state: DesiredState::Running,
        desired_since: Timestamp(0),
        not_before: Timestamp(0),
        status: TaskStatus {
            state: TaskState::Running,
            ..TaskStatus::default()
        },
        ingress_address: None,
        attachments: Vec::new(),
    };
    task.meta.created_at = Timestamp(created_at);
    task
}

#[tokio::test]
async fn a_services_list_of_tasks_says_what_is_wrong_with_its_ports_and_where() {
    let manager = Manager::start().await;
    let mut client = Client::new(&manager);
    let web = client.create(spec("web", &[8080])).await.unwrap();
    client.create(spec("api", &[])).await.unwrap();
    let problem = |service: &str, text: &str| NodeProblem {
        service: service.parse().ok(),
        text: text.to_owned(),
    };
    for (hostname, state, problems) in [
        (
            "h2",
            NodeState::Ready,
            vec![problem(&web.id, "taken"), problem("", "no IPVS")],
        ),
        ("h3", NodeState::Down, vec![problem(&web.id, "long ago")]),
    ] {
        let id = manager.add_node(Role::Worker, hostname).await;
        let mut node = manager
            .store
            .read(|state| swarm_model::Node::clone(state.node(&id).unwrap()));
        node.status.state = state;
        node.status.problems = problems;
        put(&manager.store, vec![node.into()]).await;
    }
    // What is about every published port is about those that are published.
    let id: ServiceId = web.id.parse().unwrap();
    let mut allocated = manager
        .store
        .read(|state| Service::clone(state.service(&id).unwrap()));
    allocated.endpoint.ports = allocated.spec.endpoint.ports.clone();
    put(&manager.store, vec![allocated.into()]).await;
    let mut problems = async |reference: &str| {
        let service_reference = reference.to_owned();
        let request = v1::ListTasksRequest { service_reference };
        client
            .0
            .list_tasks(request)
            .await
            .unwrap()
            .into_inner()
            .problems
    };
    assert_eq!(problems("web").await, ["h2: no IPVS", "h2: taken"]);
    assert_eq!(problems("api").await, [""; 0]);
}

#[tokio::test]
async fn lists_count_what_runs_and_name_the_hosts() {
    let manager = Manager::start().await;
    let mut client = Client::new(&manager);
    let web = client.create(spec("web", &[])).await.unwrap();
    let api = client.create(spec("api", &[])).await.unwrap();
    let here = manager.add_node(Role::Worker, "h2").await;
    let gone = manager.add_node(Role::Worker, "h3").await;
    let mut down = manager
        .store
        .read(|state| swarm_model::Node::clone(state.node(&gone).unwrap()));
    down.status.state = NodeState::Down;

    let mut running = task(&web, 1, 2);
    running.node_id = Some(here.clone());
    let mut before = task(&web, 1, 1);
    before.node_id = Some(here.clone());
    before.status.state = TaskState::Failed;
    let mut unheard = task(&web, 2, 1);
    unheard.node_id = Some(gone.clone());
    let mut other = task(&api, 1, 1);
    other.status.state = TaskState::Pending;
    let ids = [&other, &running, &before, &unheard].map(|task| task.id.to_string());
    let tasks = [unheard, before, other, running].map(Into::into);
    put(&manager.store, vec![down.into()]).await;
    put(&manager.store, tasks.to_vec()).await;

    let list = client.0.list_services(v1::ListServicesRequest {}).await;
    let mut counts: Vec<_> = list
        .unwrap()
        .into_inner()
        .services
        .into_iter()
        .map(|summary| {
            let name = summary.service.unwrap().spec.unwrap().name;
            (name, summary.running_tasks, summary.desired_tasks)
        })
        .collect();
    counts.sort();
    assert_eq!(counts, [("api".to_owned(), 0, 2), ("web".to_owned(), 1, 2)]);

    let mut tasks = async |reference: &str| {
        let service_reference = reference.to_owned();
        client
            .0
            .list_tasks(v1::ListTasksRequest { service_reference })
            .await
            .map(|answer| {
                let answer = answer.into_inner();
                let ids: Vec<_> = answer.tasks.into_iter().map(|task| task.id).collect();
                (ids, answer.hostnames)
            })
    };
    let (all, hostnames) = tasks("").await.unwrap();
    assert_eq!(all, ids);
    assert_eq!(hostnames.len(), 2);
    assert_eq!(hostnames[here.as_str()], "h2");
    assert_eq!(hostnames[gone.as_str()], "h3");
    let (of_web, _) = tasks("web").await.unwrap();
    assert_eq!(of_web, ids[1..]);
    refused(
        tasks("nope").await,
        Code::NotFound,
        "there is no service \"nope\"; `swarmctl service ls` lists them",
    );
}

#[tokio::test]
async fn the_swarms_settings_are_changed_if_they_are_sound_and_nobody_else_changed_them() {
    let manager = Manager::start().await;
    let mut control = ControlClient::new(manager.local());
    let mut get = async || {
        let answer = control.get_cluster(v1::GetClusterRequest {}).await;
        answer.unwrap().into_inner()
    };
    let first = get().await;
    let spec = v1::ClusterSpec {
        certificate_expiry_ms: 30 * 60 * 1000,
        ..first.spec.unwrap()
    };
    let update = async |version, spec: v1::ClusterSpec| {
        let spec = Some(spec);
        let mut control = ControlClient::new(manager.local());
        control
            .update_cluster(v1::UpdateClusterRequest { version, spec })
            .await
            .map_err(|status| (status.code(), status.message().to_owned()))
    };
    update(first.version, spec.clone()).await.unwrap();
    let second = get().await;
    assert_eq!(second.spec.as_ref(), Some(&spec));
    assert!(second.version > first.version);

    let (code, text) = update(first.version, spec.clone()).await.unwrap_err();
    assert_eq!(code, Code::Aborted);
    assert!(
        text.contains("the swarm changed since it was read"),
        "{text}"
    );
    let short = v1::ClusterSpec {
        certificate_expiry_ms: 30 * 60 * 1000 - 1,
        ..spec
    };
    let (code, text) = update(second.version, short).await.unwrap_err();
    assert_eq!(code, Code::InvalidArgument);
    assert!(
        text.starts_with("certificates can be given a life from 30 minutes"),
        "{text}"
    );
    assert_eq!(get().await, second);
}
