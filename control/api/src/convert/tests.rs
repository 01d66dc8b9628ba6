//! Every model value survives the trip through bytes; nothing read from bytes panics.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use prost::Message;
use swarm_model::*;

use super::ConvertError;
use crate::v1;

fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..8).prop_map(String::from_iter)
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    vec(text(), 0..3)
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(text(), text(), 0..3)
}

fn id<T: TryFrom<String, Error = InvalidId> + Debug>() -> impl Strategy<Value = T> {
    let digits: Vec<char> = ('0'..='9').chain('a'..='z').collect();
    vec(select(digits), ID_LEN).prop_map(|digits| {
        let text = String::from_iter(digits);
        T::try_from(text).unwrap_or_else(|error| panic!("{error}"))
    })
}

fn duration() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_millis)
}

fn timestamp() -> impl Strategy<Value = Timestamp> {
    any::<u64>().prop_map(Timestamp)
}

fn ipv4() -> impl Strategy<Value = Ipv4Addr> {
    any::<[u8; 4]>().prop_map(Ipv4Addr::from)
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from)
    ]
}

fn meta() -> impl Strategy<Value = Meta> {
    (any::<u64>(), timestamp(), timestamp()).prop_map(|(version, created_at, updated_at)| Meta {
        version,
        created_at,
        updated_at,
    })
}

fn cluster_spec() -> impl Strategy<Value = ClusterSpec> {
    let times = (duration(), duration(), duration(), duration());
    let ca = (text(), text()).prop_map(|(url, root_ca_pem)| ExternalCa { url, root_ca_pem });
    let rest = (any::<u64>(), any::<bool>(), vec(ca, 0..3));
    (rest, times).prop_map(|((task_history_limit, autolock, external_cas), times)| {
        let (heartbeat_period, suspect_after, down_after, certificate_expiry) = times;
        ClusterSpec {
            task_history_limit,
            heartbeat_period,
            suspect_after,
            down_after,
            certificate_expiry,
            autolock,
            external_cas,
        }
    })
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let lock =
        (any::<u64>(), option::of(any::<[u8; 32]>())).prop_map(|(version, key)| ManagerLock {
            version,
            key: key.map(UnlockKey::new),
        });
    let cursor = (option::of(1..=Vni::LAST.0), option::of(subnet())).prop_map(|(vni, subnet)| {
        NetworkCursor {
            vni: vni.map(Vni),
            subnet,
        }
    });
    (
        id(),
        meta(),
        cluster_spec(),
        text(),
        text(),
        (text(), text()),
        (cursor, any::<u64>(), lock),
        option::of(root_rotation()),
    )
        .prop_map(
            |(
                id,
                meta,
                spec,
                root_ca_pem,
                root_key_pem,
                (worker_secret, manager_secret),
                (networks_made, epoch, lock),
                rotation,
            )| Cluster {
                id,
                meta,
                spec,
                root_ca_pem,
                root_key_pem: root_key_pem.into(),
                worker_secret: worker_secret.into(),
                manager_secret: manager_secret.into(),
                networks_made,
                epoch,
                lock,
                rotation,
            },
        )
}

fn root_rotation() -> impl Strategy<Value = RootRotation> {
    let texts = [text(), text(), text(), text(), text()];
    (texts, vec(text(), 0..3)).prop_map(
        |(
            [
                root_ca_pem,
                root_key_pem,
                cross_signed_pem,
                worker_secret,
                manager_secret,
            ],
            given_up,
        )| RootRotation {
            root_ca_pem,
            root_key_pem: root_key_pem.into(),
            cross_signed_pem,
            worker_secret: worker_secret.into(),
            manager_secret: manager_secret.into(),
            given_up,
        },
    )
}

fn node_spec() -> impl Strategy<Value = NodeSpec> {
    use Availability::{Active, Drain, Pause};
    (labels(), select(vec![Active, Pause, Drain])).prop_map(|(labels, availability)| NodeSpec {
        labels,
        availability,
    })
}

fn description() -> impl Strategy<Value = NodeDescription> {
    (
        (text(), text(), text(), text()),
        any::<u64>(),
        any::<u64>(),
        labels(),
        option::of(ip()),
        vec(subnet(), 0..3),
    )
        .prop_map(
            |(
                (hostname, os, architecture, agent_version),
                nano_cpus,
                memory_bytes,
                engine_labels,
                data_path_address,
                host_networks,
            )| NodeDescription {
                hostname,
                platform: Platform { os, architecture },
                nano_cpus,
                memory_bytes,
                agent_version,
                engine_labels,
                data_path_address,
                host_networks,
            },
        )
}

fn node_status() -> impl Strategy<Value = NodeStatus> {
    use NodeState::{Down, Ready, Suspect, Unknown};
    (
        select(vec![Unknown, Ready, Suspect, Down]),
        timestamp(),
        text(),
        option::of(ip()),
        vec((option::of(id()), text()), 0..3),
        text(),
    )
        .prop_map(
            |(state, since, message, address, problems, certificate_issuer)| NodeStatus {
                state,
                since,
                message,
                address,
                problems: problems
                    .into_iter()
                    .map(|(service, text)| NodeProblem { service, text })
                    .collect(),
                certificate_issuer,
            },
        )
}

fn manager_status() -> impl Strategy<Value = ManagerStatus> {
    (any::<u64>(), ip(), any::<u16>(), any::<bool>(), text()).prop_map(
        |(raft_id, ip, port, leader, certificate_issuer)| ManagerStatus {
            raft_id,
            address: SocketAddr::new(ip, port),
            leader,
            certificate_issuer,
        },
    )
}

fn node() -> impl Strategy<Value = Node> {
    (
        id(),
        meta(),
        node_spec(),
        select(vec![Role::Worker, Role::Manager]),
        description(),
        node_status(),
        option::of(manager_status()),
        option::of(ipv4()),
    )
        .prop_map(
            |(id, meta, spec, role, description, status, manager, ingress_address)| Node {
                id,
                meta,
                spec,
                role,
                description,
                status,
                manager,
                ingress_address,
            },
        )
}

fn port() -> impl Strategy<Value = PortConfig> {
    use RoutingPolicy::{Cluster, Local, PreferLocal};
    let networks = || {
        let net = (any::<IpAddr>(), 0..=32_u8);
        vec(net, 0..3).prop_map(|nets| {
            let net = |(address, length)| IpNet::new(address, length).unwrap();
            nets.into_iter().map(net).collect::<Vec<_>>()
        })
    };
    (
        select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]),
        (any::<u16>(), any::<u16>()),
        select(vec![PublishMode::Ingress, PublishMode::Host]),
        (networks(), texts()),
        select(vec![Cluster, Local, PreferLocal]),
        select(Scheduler::ALL.to_vec()),
        option::of((1..1_000_000_u64).prop_map(Duration::from_secs)),
        (networks(), any::<bool>()),
    )
        .prop_map(
            |(protocol, (target, published), mode, bound, policy, scheduler, affinity, from)| {
                let (addresses, interfaces) = bound;
                let (sources, snat) = from;
                PortConfig {
                    protocol,
                    target,
                    published,
                    mode,
                    addresses,
                    interfaces,
                    policy,
                    scheduler,
                    affinity,
                    sources,
                    snat,
                }
            },
        )
}

fn container() -> impl Strategy<Value = ContainerSpec> {
    (
        (text(), text(), text(), text()),
        texts(),
        texts(),
        texts(),
        labels(),
        option::of(duration()),
    )
        .prop_map(
            |((image, hostname, dir, user), command, args, env, labels, stop_grace_period)| {
                ContainerSpec {
                    image,
                    command,
                    args,
                    env,
                    labels,
                    hostname,
                    dir,
                    user,
                    stop_grace_period,
                }
            },
        )
}

fn resources() -> impl Strategy<Value = Resources> {
    any::<[u64; 4]>().prop_map(|[a, b, c, d]| Resources {
        limit_nano_cpus: a,
        limit_memory_bytes: b,
        reserve_nano_cpus: c,
        reserve_memory_bytes: d,
    })
}

fn restart() -> impl Strategy<Value = RestartPolicy> {
    use RestartCondition::{Any, None, OnFailure};
    (
        select(vec![None, OnFailure, Any]),
        duration(),
        any::<u64>(),
        duration(),
    )
        .prop_map(|(condition, delay, max_attempts, window)| RestartPolicy {
            condition,
            delay,
            max_attempts,
            window,
        })
}

fn task_spec() -> impl Strategy<Value = TaskSpec> {
    (
        container(),
        resources(),
        restart(),
        texts(),
        vec(attachment_spec(), 0..3),
        any::<u64>(),
    )
        .prop_map(
            |(container, resources, restart, constraints, networks, force_update)| TaskSpec {
                container,
                resources,
                restart,
                placement: Placement { constraints },
                networks,
                force_update,
            },
        )
}

fn attachment_spec() -> impl Strategy<Value = NetworkAttachmentSpec> {
    (text(), texts()).prop_map(|(target, aliases)| NetworkAttachmentSpec { target, aliases })
}

fn attachment() -> impl Strategy<Value = Attachment> {
    (id(), ipv4(), texts()).prop_map(|(network, address, aliases)| Attachment {
        network,
        address,
        aliases,
    })
}

fn endpoint_mode() -> impl Strategy<Value = EndpointMode> {
    select(vec![EndpointMode::Vip, EndpointMode::Dnsrr])
}

fn update() -> impl Strategy<Value = UpdateConfig> {
    use UpdateOrder::{StartFirst, StopFirst};
    (
        any::<u64>(),
        duration(),
        select(vec![StopFirst, StartFirst]),
    )
        .prop_map(|(parallelism, delay, order)| UpdateConfig {
            parallelism,
            delay,
            order,
        })
}

fn service_spec() -> impl Strategy<Value = ServiceSpec> {
    (
        text(),
        labels(),
        any::<u64>(),
        task_spec(),
        (vec(port(), 0..3), endpoint_mode()),
        update(),
    )
        .prop_map(
            |(name, labels, replicas, task, (ports, mode), update)| ServiceSpec {
                name,
                labels,
                mode: ServiceMode::Replicated { replicas },
                task,
                endpoint: EndpointSpec { ports, mode },
                update,
            },
        )
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let vip = (id(), ipv4()).prop_map(|(network, address)| Vip { network, address });
    (any::<u32>(), vec(port(), 0..3), vec(vip, 0..3), text()).prop_map(
        |(index, ports, vips, error)| Endpoint {
            index,
            ports,
            vips,
            error,
        },
    )
}

fn service() -> impl Strategy<Value = Service> {
    (
        id(),
        meta(),
        service_spec(),
        option::of(service_spec().prop_map(Box::new)),
        any::<u64>(),
        endpoint(),
        any::<bool>(),
    )
        .prop_map(
            |(id, meta, spec, previous_spec, template_version, endpoint, pending_delete)| Service {
                id,
                meta,
                spec,
                previous_spec,
                template_version,
                endpoint,
                pending_delete,
            },
        )
}

const TASK_STATES: [TaskState; 12] = [
    TaskState::New,
    TaskState::Pending,
    TaskState::Assigned,
    TaskState::Accepted,
    TaskState::Preparing,
    TaskState::Starting,
    TaskState::Running,
    TaskState::Complete,
    TaskState::Shutdown,
    TaskState::Failed,
    TaskState::Rejected,
    TaskState::Orphaned,
];

fn task_status() -> impl Strategy<Value = TaskStatus> {
    (
        select(TASK_STATES.to_vec()),
        timestamp(),
        text(),
        text(),
        any::<Option<i32>>(),
    )
        .prop_map(|(state, since, message, error, exit_code)| TaskStatus {
            state,
            since,
            message,
            error,
            exit_code,
        })
}

fn desired_state() -> impl Strategy<Value = DesiredState> {
    use DesiredState::{Draining, Remove, Running, Shutdown};
    select(vec![Running, Draining, Shutdown, Remove])
}

fn task() -> impl Strategy<Value = Task> {
    (
        (id(), id(), option::of(id())),
        meta(),
        (text(), any::<u64>(), any::<u64>()),
        task_spec(),
        (desired_state(), timestamp(), timestamp()),
        task_status(),
        option::of(ipv4()),
        vec(attachment(), 0..3),
    )
        .prop_map(
            |(
                (id, service_id, node_id),
                meta,
                (service_name, slot, template_version),
                spec,
                (desired_state, desired_since, not_before),
                status,
                ingress_address,
                attachments,
            )| Task {
                id,
                meta,
                service_id,
                service_name,
                slot,
                node_id,
                spec,
                template_version,
                desired_state,
                desired_since,
                not_before,
                status,
                ingress_address,
                attachments,
            },
        )
}

fn subnet() -> impl Strategy<Value = Ipv4Net> {
    (ipv4(), 0..=32u8).prop_map(|(address, prefix)| Ipv4Net::new(address, prefix).unwrap())
}

fn subnet6() -> impl Strategy<Value = Ipv6Net> {
    (any::<[u8; 16]>(), 0..=128u8)
        .prop_map(|(address, prefix)| Ipv6Net::new(address.into(), prefix).unwrap())
}

fn network_spec() -> impl Strategy<Value = NetworkSpec> {
    (
        (text(), labels()),
        option::of(subnet()),
        option::of(ipv4()),
        option::of(subnet()),
        option::of(subnet6()),
        any::<[bool; 4]>(),
        any::<Option<u16>>(),
    )
        .prop_map(
            |(
                (name, labels),
                subnet,
                gateway,
                ip_range,
                subnet6,
                [ipv6, internal, attachable, ingress],
                mtu,
            )| NetworkSpec {
                name,
                labels,
                subnet,
                gateway,
                ip_range,
                subnet6,
                ipv6,
                internal,
                attachable,
                mtu,
                ingress,
            },
        )
}

fn network() -> impl Strategy<Value = Network> {
    (
        (id(), meta()),
        network_spec(),
        subnet(),
        ipv4(),
        option::of(subnet6()),
        1..=Vni::LAST.0,
        text(),
    )
        .prop_map(
            |((id, meta), spec, subnet, gateway, subnet6, vni, error)| Network {
                id,
                meta,
                spec,
                subnet,
                gateway,
                subnet6,
                vni: Vni(vni),
                error,
            },
        )
}

/// `value` through the bytes of `W` and back.
fn survives<W, M>(value: &M) -> Result<(), TestCaseError>
where
    W: Message + Default + for<'a> From<&'a M>,
    M: TryFrom<W, Error = ConvertError> + Debug + PartialEq,
{
    let bytes = W::from(value).encode_to_vec();
    let back = M::try_from(W::decode(bytes.as_slice()).unwrap());
    prop_assert_eq!(back.as_ref(), Ok(value));
    Ok(())
}

proptest! {
    #[test]
    fn a_cluster_survives(value in cluster()) {
        survives::<v1::Cluster, _>(&value)?;
    }

    #[test]
    fn a_node_survives(value in node()) {
        survives::<v1::Node, _>(&value)?;
    }

    #[test]
    fn a_service_survives(value in service()) {
        survives::<v1::Service, _>(&value)?;
    }

    #[test]
    fn a_task_survives(value in task()) {
        survives::<v1::Task, _>(&value)?;
    }

    #[test]
    fn a_network_survives(value in network()) {
        survives::<v1::Network, _>(&value)?;
    }

    #[test]
    fn bytes_never_panic(bytes in vec(any::<u8>(), 0..256)) {
        read_all(&bytes);
    }

    /// Most random bytes are no message at all; damaged messages get further.
    #[test]
    fn damaged_messages_never_panic(
        task in task(),
        node in node(),
        service in service(),
        network in network(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for mut bytes in [
            v1::Task::from(&task).encode_to_vec(),
            v1::Node::from(&node).encode_to_vec(),
            v1::Service::from(&service).encode_to_vec(),
            v1::Network::from(&network).encode_to_vec(),
        ] {
            for (at, byte) in &damage {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            read_all(&bytes);
        }
    }
}

fn read_all(bytes: &[u8]) {
    fn read<W: Message + Default, M: TryFrom<W>>(bytes: &[u8]) {
        if let Ok(message) = W::decode(bytes) {
            let _ = M::try_from(message);
        }
    }
    read::<v1::Cluster, Cluster>(bytes);
    read::<v1::Node, Node>(bytes);
    read::<v1::Service, Service>(bytes);
    read::<v1::Task, Task>(bytes);
    read::<v1::Network, Network>(bytes);
}

const ID: &str = "0123456789abcdefghijklmno";

#[test]
fn what_is_not_said_takes_the_default() {
    let service = Service::try_from(v1::Service {
        id: ID.to_owned(),
        ..v1::Service::default()
    })
    .unwrap();
    assert_eq!(service.spec, ServiceSpec::default());
    assert_eq!(service.spec.update.parallelism, 1);
    assert_eq!(service.spec.task.restart.delay, Duration::from_secs(5));

    let spec = v1::RestartPolicy::default();
    let policy = RestartPolicy::try_from(spec).unwrap();
    assert_eq!(policy.condition, RestartCondition::Any);
    let port = PortConfig::try_from(v1::PortConfig::default()).unwrap();
    assert_eq!(port.protocol, Protocol::Tcp);
}

#[test]
fn a_network_from_before_there_were_specs_is_read() {
    let network = Network::try_from(v1::Network {
        id: ID.to_owned(),
        name: "ingress".to_owned(),
        ingress: true,
        subnet: "10.255.0.0/16".to_owned(),
        vni: 4096,
        ..v1::Network::default()
    })
    .unwrap();
    assert_eq!(network.spec.name, "ingress");
    assert!(network.spec.ingress);
    assert_eq!(network.gateway, Ipv4Addr::new(10, 255, 0, 1));
    assert_eq!(network.subnet6, None);
}

#[test]
fn ids_and_addresses_are_read_strictly() {
    let task = || v1::Task {
        id: ID.to_owned(),
        service_id: ID.to_owned(),
        ..v1::Task::default()
    };
    assert!(Task::try_from(task()).is_ok());
    let refused = |task: v1::Task| Task::try_from(task).unwrap_err();

    let error = refused(v1::Task {
        id: String::new(),
        ..task()
    });
    assert_eq!(error, ConvertError::Missing { field: "task.id" });
    let error = refused(v1::Task {
        node_id: "../../etc/passwd".to_owned(),
        ..task()
    });
    assert!(matches!(
        error,
        ConvertError::Id {
            field: "task.node_id",
            ..
        }
    ));
    let error = refused(v1::Task {
        ingress_address: "10.0.0.01".to_owned(),
        ..task()
    });
    assert_eq!(
        error.to_string(),
        "task.ingress_address \"10.0.0.01\" is not an IPv4 address"
    );
    let error = refused(v1::Task {
        desired_state: 99,
        ..task()
    });
    assert_eq!(
        error,
        ConvertError::UnknownValue {
            field: "task.desired_state",
            value: 99
        }
    );
}

#[test]
fn numbers_out_of_range_are_refused() {
    let port = v1::PortConfig {
        published: 65_536,
        ..v1::PortConfig::default()
    };
    assert_eq!(
        PortConfig::try_from(port).unwrap_err().to_string(),
        "port.published 65536 is not within 0 to 65535"
    );
    for vni in [0, 1 << 24] {
        let network = v1::Network {
            id: ID.to_owned(),
            subnet: "10.255.0.0/16".to_owned(),
            vni,
            ..v1::Network::default()
        };
        assert!(matches!(
            Network::try_from(network),
            Err(ConvertError::Range {
                field: "network.vni",
                ..
            })
        ));
    }
    let manager = v1::ManagerStatus {
        address: "h1:2377".to_owned(),
        ..v1::ManagerStatus::default()
    };
    assert!(matches!(
        ManagerStatus::try_from(manager),
        Err(ConvertError::Address {
            field: "node.manager.address",
            ..
        })
    ));
}
