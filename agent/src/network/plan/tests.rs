//! The planner against a model of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use swarm_ipvs::ServiceKey;
use swarm_model::{NetworkId, NodeId, PortConfig, Protocol, Scheduler, ServiceId, TaskId};

use super::super::desired::{
    Attachment, Backend, BackendState, Desired, IngressNetwork, LocalNode, LocalTask, Overlay,
    Peer, Service, Task,
};
use super::super::listeners::Listener;
use super::super::model::{
    Device, FirewallState, IpvsTable, Link, LinkKind, Mac, MeshMaps, Namespace, Observed, Obstacle,
    Place, Program, Published, Route, SocketPrograms,
};
use super::super::op::Op;
use super::{Plan, plan, teardown};
use crate::network::wanted::{Problem, wanted};

fn id<T: std::str::FromStr>(kind: char, number: u8) -> T {
    // What differs is at the front: names of links are made of that.
    let text = format!("{kind}{number:03}{:021}", 0);
    text.parse().unwrap_or_else(|_| panic!("{text} is an id"))
}

fn ip(a: u8, b: u8) -> IpAddr {
    Ipv4Addr::new(10, 255, a, b).into()
}

fn link(mtu: u32, up: bool) -> Link {
    Link {
        kind: LinkKind::Other,
        mac: None,
        mtu: Some(mtu),
        up,
        master: None,
        port: None,
    }
}

/// A host with an uplink, a link of somebody else's and one that is down.
fn host() -> Observed {
    let mut namespace = Namespace::default();
    for (name, up) in [
        ("lo", true),
        ("eth0", true),
        ("docker0", true),
        ("eth1", false),
    ] {
        namespace.links.insert(name.to_owned(), link(1500, up));
    }
    for (name, address) in [
        ("eth0", "192.168.1.1/24"),
        ("docker0", "172.17.0.1/16"),
        ("eth1", "192.168.2.1/24"),
        ("eth0", "2001:db8::1/64"),
    ] {
        namespace
            .addresses
            .insert((name.to_owned(), address.parse().unwrap()));
        let forwarding = format!("ipv4/conf/{name}/forwarding");
        namespace.sysctls.insert(forwarding, Some("0".to_owned()));
    }
    let router = "ipv4/ip_forward".to_owned();
    namespace.sysctls.insert(router, Some("0".to_owned()));
    Observed {
        namespaces: BTreeMap::from([(Place::Host, namespace)]),
        ipvs: Ok(IpvsTable::new()),
        mesh: Ok(MeshMaps::default()),
        default_uplink: Some("eth0".to_owned()),
        listeners: BTreeSet::new(),
        firewall: Ok(FirewallState::default()),
        ipv6: true,
    }
}

/// The same on a network that has IPv6.
fn over_ipv6(mut desired: Desired) -> Desired {
    desired.network.subnet6 = Some("fd00:a::/64".parse().unwrap());
    desired
}

fn over(ipv6: bool, desired: Desired) -> Desired {
    if ipv6 { over_ipv6(desired) } else { desired }
}

/// Node 1 of a swarm of `nodes`, with task `n` on node `tasks[n]` and services of the tasks given.
fn desired(nodes: u8, tasks: &[u8], services: &[(u16, Vec<usize>, bool)]) -> Desired {
    let node = |number| id::<NodeId>('n', number);
    let vtep = |number| IpAddr::from([192, 168, 1, number]);
    let address = |task: usize| ip(1, u8::try_from(task).unwrap());
    let task_id = |task: usize| id::<TaskId>('t', u8::try_from(task).unwrap());
    let on = |task: usize| tasks[task].clamp(1, nodes);
    Desired {
        local: LocalNode {
            id: node(1),
            vtep: vtep(1),
            ingress: ip(0, 1),
        },
        network: IngressNetwork {
            vni: 4096,
            subnet: "10.255.0.0/16".parse().unwrap(),
            subnet6: None,
        },
        peers: (2..=nodes)
            .map(|number| {
                (
                    node(number),
                    Peer {
                        ingress: ip(0, number),
                        vtep: vtep(number),
                    },
                )
            })
            .collect(),
        tasks: (0..tasks.len())
            .map(|task| {
                (
                    task_id(task),
                    Task {
                        address: address(task),
                        node: node(on(task)),
                    },
                )
            })
            .collect(),
        members: BTreeMap::new(),
        local_tasks: (0..tasks.len())
            .filter(|task| on(*task) == 1)
            .map(|task| {
                let local = LocalTask {
                    address: address(task),
                    egress: task % 3 != 2,
                    attachments: Vec::new(),
                };
                (task_id(task), local)
            })
            .collect(),
        task_sockets: BTreeMap::new(),
        virtual_services: BTreeMap::new(),
        services: services
            .iter()
            .enumerate()
            .map(|(index, (published, members, draining))| {
                let state = if *draining {
                    BackendState::Draining
                } else {
                    BackendState::Ready
                };
                let service = Service {
                    index: u32::try_from(index).unwrap() + 1,
                    ports: vec![PortConfig {
                        published: *published,
                        target: 80,
                        ..PortConfig::default()
                    }],
                    backends: members
                        .iter()
                        .map(|task| Backend {
                            address: address(*task),
                            local: on(*task) == 1,
                            state,
                        })
                        .collect(),
                };
                (id::<ServiceId>('s', u8::try_from(index).unwrap()), service)
            })
            .collect(),
    }
}

/// The same with every task on the networks whose bits are set for it.
fn on_networks(mut desired: Desired, networks: &[u8]) -> Desired {
    for (number, bits) in (0..).zip(networks) {
        let task = id::<TaskId>('t', number);
        let Some(node) = desired.tasks.get(&task).map(|task| task.node.clone()) else {
            continue;
        };
        let of_task = (0..3).filter(|network| bits & (1 << network) != 0);
        for (interface, network) in (1..).zip(of_task) {
            let address = IpAddr::from([10, 0, network, 10 + number]);
            let key = id::<NetworkId>('k', network);
            let node = node.clone();
            let members = desired.members.entry(key.clone()).or_default();
            members.insert(task.clone(), Task { address, node });
            if let Some(local) = desired.local_tasks.get_mut(&task) {
                local.attachments.push(Attachment {
                    interface,
                    network: key,
                    overlay: Overlay {
                        vni: 4097 + u32::from(network),
                        subnet: IpNet::new(IpAddr::from([10, 0, network, 0]), 24).unwrap(),
                        gateway: IpAddr::from([10, 0, network, 1]),
                        mtu: [None, Some(1300), Some(9000)][usize::from(network)],
                    },
                    address,
                });
            }
        }
    }
    desired
}

/// Applies a plan and returns it.
fn settle(observed: &mut Observed, desired: &Desired) -> Vec<Op> {
    let ops = plan(observed, desired).ops;
    ops.iter().for_each(|op| observed.apply(op));
    ops
}

fn texts(ops: &[Op]) -> Vec<String> {
    ops.iter().map(Op::to_string).collect()
}

/// Those that are about neither sockets nor isolation.
fn mesh_texts(ops: &[Op]) -> Vec<String> {
    let of_mesh = |op: &&Op| !matches!(op, Op::SetSockets(_) | Op::SetIsolation(_));
    ops.iter().filter(of_mesh).map(Op::to_string).collect()
}

#[test]
fn a_bare_host_is_built_from_the_bottom_and_published_last() {
    let mut observed = host();
    let ops = settle(
        &mut observed,
        &desired(2, &[1, 2], &[(8080, vec![0, 1], false)]),
    );
    let text = texts(&ops);
    let expected = "\
create network namespace ingress
create network namespace task-t000000000000000000000000
make nf_tables table inet swarm: 1 addresses have egress, 2 links are guarded
set net/ipv4/ip_forward to 1 in ingress
set net/ipv4/conf/all/rp_filter to 0 in ingress
set net/ipv4/conf/default/rp_filter to 0 in ingress
set net/ipv4/conf/all/send_redirects to 0 in ingress
set net/ipv4/conf/default/send_redirects to 0 in ingress
set net/bridge/bridge-nf-call-iptables to 0 in ingress
set net/ipv4/icmp_ratelimit to 0 in ingress
set net/ipv4/vs/conntrack to 0 in ingress
set net/ipv4/vs/expire_nodest_conn to 1 in ingress
set net/ipv4/vs/expire_quiescent_template to 1 in ingress
set net/ipv4/vs/conn_reuse_mode to 1 in ingress
set net/ipv4/vs/sloppy_tcp to 1 in ingress
set net/ipv4/vs/snat_reroute to 0 in ingress
set net/ipv4/ip_early_demux to 0 in ingress
set net/ipv4/conf/docker0/forwarding to 1 in host
set net/ipv4/conf/eth0/forwarding to 1 in host
create veth pair sw-e1h in host and e1 in ingress
create bridge br0 in ingress
create vxlan device vx0 with vni 4096 in ingress
make vx0 a port of br0 in ingress
set bridge port flags of vx0 in ingress
create veth pair tt00000000000 in ingress and eth0 in task-t000000000000000000000000
make tt00000000000 a port of br0 in ingress
set bridge port flags of tt00000000000 in ingress
set net/ipv4/conf/br0/rp_filter to 0 in ingress
set net/ipv4/conf/br0/send_redirects to 0 in ingress
set net/ipv4/conf/e1/rp_filter to 0 in ingress
set net/ipv4/conf/sw-e1h/forwarding to 1 in host
set sw-e1h up in host
set lo up in ingress
set br0 up in ingress
set vx0 up in ingress
set e1 up in ingress
set lo up in task-t000000000000000000000000
set tt00000000000 up in ingress
set eth0 up in task-t000000000000000000000000
add address 169.254.0.1/32 to sw-e1h in host
add address 10.255.0.1/16 to br0 in ingress
add address 172.17.0.1/32 to lo in ingress
add address 192.168.1.1/32 to lo in ingress
add address 10.255.1.0/16 to eth0 in task-t000000000000000000000000
set route to 10.255.0.0/16 by sw-e1h in host
set route to 169.254.0.2/32 by br0 in ingress
set route to 0.0.0.0/0 by e1 in ingress
set route to 0.0.0.0/0 by eth0 in task-t000000000000000000000000
set neighbour 169.254.255.2 at 02:42:a9:fe:ff:02 on sw-e1h in host
set neighbour 10.255.0.2 at 02:42:0a:ff:00:02 on br0 in ingress
set neighbour 10.255.1.0 at 02:42:0a:ff:01:00 on br0 in ingress
set neighbour 10.255.1.1 at 02:42:0a:ff:01:01 on br0 in ingress
set neighbour 169.254.255.1 at 02:42:a9:fe:ff:01 on e1 in ingress
set forwarding of 02:42:0a:ff:00:02 to node 192.168.1.2 on vx0 in ingress
set forwarding of 02:42:0a:ff:01:01 to node 192.168.1.2 on vx0 in ingress
set forwarding of 02:42:0a:ff:00:02 to port vx0 in ingress
set forwarding of 02:42:0a:ff:01:00 to port tt00000000000 in ingress
set forwarding of 02:42:0a:ff:01:01 to port vx0 in ingress
set neighbour 10.255.0.1 at 02:42:0a:ff:00:01 on eth0 in task-t000000000000000000000000
attach program mesh_uplink to docker0 in host
attach program mesh_uplink to eth0 in host
attach program mesh_out to sw-e1h in host
attach program shortcut_in to e1 in ingress
attach program flow_learn to tt00000000000 in ingress
attach program flow_return to tt00000000000 in ingress
attach program shortcut_learn to vx0 in ingress
attach program shortcut_out to vx0 in ingress
write the links of the mesh programs
write the node addresses of the mesh
write the ingress nodes of the mesh
isolate 1 tasks but for 2 published targets
ipvs: add service tcp 172.17.0.1:8080
ipvs: add destination 10.255.1.0:80 to service tcp 172.17.0.1:8080
ipvs: add destination 10.255.1.1:80 to service tcp 172.17.0.1:8080
ipvs: add service tcp 192.168.1.1:8080
ipvs: add destination 10.255.1.0:80 to service tcp 192.168.1.1:8080
ipvs: add destination 10.255.1.1:80 to service tcp 192.168.1.1:8080
balance sockets of 1 namespaces to 1 services
attach the socket programs to the cgroup root
write 0 source ranges of published ports
publish 2 ports on the mesh";
    assert_eq!(text.join("\n"), expected);
}

/// What a plan does about IPv6, and how the ports of tasks are treated.
fn of_ipv6(ops: &[Op]) -> Vec<String> {
    let texts = texts(ops).into_iter();
    texts
        .filter(|text| {
            text.contains("ipv6")
                || text.contains("fd00:")
                || text.contains("fe80:")
                || text.contains("2001:")
        })
        .collect()
}

#[test]
fn with_ipv6_everything_has_a_twin_with_the_same_mac_address() {
    let mut observed = host();
    let desired = over_ipv6(desired(2, &[1, 2], &[(8080, vec![0, 1], false)]));
    let ops = settle(&mut observed, &desired);
    let expected = "\
set net/ipv6/conf/all/disable_ipv6 to 0 in ingress
set net/ipv6/conf/default/disable_ipv6 to 0 in ingress
set net/ipv6/conf/all/forwarding to 1 in ingress
set net/ipv6/conf/default/addr_gen_mode to 1 in ingress
set net/ipv6/conf/default/accept_ra to 0 in ingress
set net/ipv6/conf/default/autoconf to 0 in ingress
set net/ipv6/conf/all/disable_ipv6 to 0 in task-t000000000000000000000000
set net/ipv6/conf/default/disable_ipv6 to 0 in task-t000000000000000000000000
set net/ipv6/conf/all/accept_dad to 0 in task-t000000000000000000000000
set net/ipv6/conf/default/accept_dad to 0 in task-t000000000000000000000000
set net/ipv6/conf/default/accept_ra to 0 in task-t000000000000000000000000
set net/ipv6/conf/default/autoconf to 0 in task-t000000000000000000000000
set net/ipv6/conf/default/router_solicitations to 0 in task-t000000000000000000000000
set net/ipv6/conf/sw-e1h/forwarding to 1 in host
set net/ipv6/conf/sw-e1h/addr_gen_mode to 1 in host
add address fd00:a::aff:1/64 to br0 in ingress
add address 2001:db8::1/128 to lo in ingress
add address fd00:a::aff:100/64 to eth0 in task-t000000000000000000000000
set neighbour fd00:a::aff:2 at 02:42:0a:ff:00:02 on br0 in ingress
set neighbour fd00:a::aff:100 at 02:42:0a:ff:01:00 on br0 in ingress
set neighbour fd00:a::aff:101 at 02:42:0a:ff:01:01 on br0 in ingress
set neighbour fe80::a9fe:ff01 at 02:42:a9:fe:ff:01 on e1 in ingress
set neighbour fd00:a::aff:1 at 02:42:0a:ff:00:01 on eth0 in task-t000000000000000000000000
ipvs: add service tcp [2001:db8::1]:8080
ipvs: add destination [fd00:a::aff:100]:80 to service tcp [2001:db8::1]:8080
ipvs: add destination [fd00:a::aff:101]:80 to service tcp [2001:db8::1]:8080";
    assert_eq!(of_ipv6(&ops).join("\n"), expected);
    let text = texts(&ops);
    for line in [
        "set route to ::/0 by e1 in ingress",
        "set route to ::/0 by eth0 in task-t000000000000000000000000",
        "publish 3 ports on the mesh",
    ] {
        assert!(text.contains(&line.to_owned()), "{line} not in {text:#?}");
    }
    let port = observed.link(&(Place::Ingress, "tt00000000000".to_owned()));
    let flags = port.and_then(|port| port.port).unwrap();
    assert!(
        flags.multicast_flood,
        "neighbour solicitations are multicast"
    );
}

#[test]
fn a_network_that_gets_ipv6_keeps_what_it_has() {
    let mut observed = host();
    let desired = desired(2, &[1, 2], &[(8080, vec![0, 1], false)]);
    settle(&mut observed, &desired);
    let ops = settle(&mut observed, &over_ipv6(desired.clone()));
    let builds = |op: &&Op| matches!(op, Op::DeleteLink(_) | Op::CreateVeth { .. });
    assert!(!ops.iter().any(|op| builds(&op)), "{:#?}", texts(&ops));
    assert!(plan(&observed, &over_ipv6(desired)).ops.is_empty());
}

#[test]
fn a_kernel_without_ipv6_gets_what_ipv4_needs_and_nothing_else() {
    let mut observed = host();
    observed.ipv6 = false;
    let with = over_ipv6(desired(2, &[1, 2], &[(8080, vec![0, 1], false)]));
    let mut without = with.clone();
    without.network.subnet6 = None;
    assert_eq!(plan(&observed, &with), plan(&observed, &without));
    observed.ipv6 = true;
    assert_ne!(plan(&observed, &with), plan(&observed, &without));
}

#[test]
fn a_container_may_do_without_ipv6() {
    let mut observed = host();
    let desired = over_ipv6(desired(1, &[1], &[]));
    settle(&mut observed, &desired);
    let task = observed
        .namespaces
        .get_mut(&Place::Task(id('t', 0)))
        .unwrap();
    let disabled = "ipv6/conf/eth0/disable_ipv6".to_owned();
    task.sysctls.insert(disabled, Some("1".to_owned()));
    task.addresses
        .retain(|(_, address)| address.addr().is_ipv4());
    task.routes.retain(|to, _| to.addr().is_ipv4());
    task.neighbours.retain(|(_, address), _| address.is_ipv4());
    assert_eq!(texts(&plan(&observed, &desired).ops), Vec::<String>::new());
}

#[test]
fn links_too_narrow_for_ipv6_are_a_problem_with_a_remedy_and_ipv4_goes_on() {
    let mut observed = host();
    let host = observed.namespaces.get_mut(&Place::Host).unwrap();
    host.links.get_mut("eth0").unwrap().mtu = Some(1300);
    let Plan { ops, problems } = plan(&observed, &over_ipv6(desired(1, &[1], &[])));
    assert_eq!(problems, [Problem::TooNarrowForIpv6 { mtu: 1250 }]);
    assert_eq!(of_ipv6(&ops), Vec::<String>::new());
}

#[test]
fn an_ipv6_underlay_takes_more_of_every_packet_and_does_without_ipv4_nodes() {
    let mut observed = host();
    let mut desired = desired(3, &[1, 2, 3], &[]);
    desired.local.vtep = "2001:db8::1".parse().unwrap();
    let theirs = "2001:db8::2".parse().unwrap();
    desired.peers.get_mut(&id::<NodeId>('n', 2)).unwrap().vtep = theirs;
    let problems = plan(&observed, &desired).problems;
    let [Problem::OtherDataPathVersion { count: 1, .. }] = problems[..] else {
        panic!("{problems:?}")
    };
    settle(&mut observed, &desired);
    let ingress = &observed.namespaces[&Place::Ingress];
    assert_eq!(ingress.links["br0"].mtu, Some(1430));
    let LinkKind::Vxlan(vxlan) = &ingress.links["vx0"].kind else {
        panic!("vx0 is no VXLAN device")
    };
    assert_eq!(vxlan.local, Some(desired.local.vtep));
    assert_eq!(
        ingress.tunnels.values().copied().collect::<BTreeSet<_>>(),
        BTreeSet::from([theirs])
    );
}

#[test]
fn a_service_that_goes_refuses_first_and_its_task_leaves_the_tables_last() {
    let mut observed = host();
    settle(&mut observed, &desired(2, &[2], &[(8080, vec![0], false)]));
    let ops = settle(&mut observed, &desired(2, &[], &[]));
    let expected = "\
publish 0 ports on the mesh
balance sockets of 1 namespaces to 1 services
isolate 0 tasks but for 0 published targets
balance sockets of 1 namespaces to 0 services
ipvs: delete service tcp 172.17.0.1:8080
ipvs: delete service tcp 192.168.1.1:8080
delete neighbour 10.255.1.0 from br0 in ingress
delete forwarding of 02:42:0a:ff:01:00 to a node from vx0 in ingress
delete forwarding of 02:42:0a:ff:01:00 to port vx0 in ingress";
    assert_eq!(texts(&ops).join("\n"), expected);
}

#[test]
fn draining_changes_a_weight_and_nothing_else() {
    let mut observed = host();
    settle(
        &mut observed,
        &desired(2, &[2, 2], &[(8080, vec![0, 1], false)]),
    );
    let ops = settle(
        &mut observed,
        &desired(2, &[2, 2], &[(8080, vec![0, 1], true)]),
    );
    let (sockets, ops): (Vec<_>, Vec<_>) = ops
        .into_iter()
        .partition(|op| matches!(op, Op::SetSockets(_)));
    assert!(
        ops.iter()
            .all(|op| op.to_string().starts_with("ipvs: update destination")),
        "{ops:?}"
    );
    assert_eq!(ops.len(), 4, "two tasks at two addresses");
    // Sockets have no connections to keep: there a weight of 0 is no task.
    assert_eq!(sockets.len(), 1);
}

#[test]
fn a_deleted_vxlan_device_comes_back_with_its_table() {
    let desired = desired(2, &[2], &[]);
    let mut observed = host();
    settle(&mut observed, &desired);
    observed.apply(&Op::DeleteLink((Place::Ingress, "vx0".to_owned())));
    let ops = settle(&mut observed, &desired);
    let expected = "\
create vxlan device vx0 with vni 4096 in ingress
make vx0 a port of br0 in ingress
set bridge port flags of vx0 in ingress
set vx0 up in ingress
set forwarding of 02:42:0a:ff:00:02 to node 192.168.1.2 on vx0 in ingress
set forwarding of 02:42:0a:ff:01:00 to node 192.168.1.2 on vx0 in ingress
set forwarding of 02:42:0a:ff:00:02 to port vx0 in ingress
set forwarding of 02:42:0a:ff:01:00 to port vx0 in ingress
attach program shortcut_learn to vx0 in ingress
attach program shortcut_out to vx0 in ingress";
    assert_eq!(texts(&ops).join("\n"), expected);
}

#[test]
fn without_ipvs_the_remedy_is_named_nothing_is_published_and_the_rest_is_built() {
    let mut observed = host();
    observed.ipvs = Err("the kernel has no IPVS: load it with `modprobe ip_vs`".to_owned());
    let desired = desired(2, &[1, 2], &[(8080, vec![0, 1], false)]);
    let Plan { ops, problems } = plan(&observed, &desired);
    assert!(
        matches!(&problems[..], [Problem::IpvsMissing { .. }]),
        "{problems:?}"
    );
    assert!(problems[0].to_string().contains("modprobe ip_vs"));
    ops.iter().for_each(|op| observed.apply(op));
    let maps = observed.mesh.as_ref().unwrap();
    assert_eq!(maps.published, Some(BTreeMap::new()));
    assert!(
        observed.namespaces[&Place::Ingress]
            .links
            .contains_key("vx0")
    );
    assert!(plan(&observed, &desired).ops.is_empty());
}

#[test]
fn a_data_path_address_that_is_not_the_hosts_is_a_problem_with_a_remedy() {
    let mut desired = desired(2, &[1], &[]);
    desired.local.vtep = "192.168.2.1".parse().unwrap();
    let problems = plan(&host(), &desired).problems;
    let [Problem::DataPathNotHere { address }] = problems[..] else {
        panic!("{problems:?}")
    };
    assert_eq!(address, desired.local.vtep, "its link is down");
    assert!(problems[0].to_string().contains("--data-path-addr"));
}

#[test]
fn the_overlay_is_as_much_narrower_as_vxlan_takes() {
    let mut observed = host();
    let host = observed.namespaces.get_mut(&Place::Host).unwrap();
    host.links.get_mut("eth0").unwrap().mtu = Some(9000);
    settle(&mut observed, &desired(1, &[1], &[]));
    let mtu = |place: &Place, name: &str| observed.namespaces[place].links[name].mtu;
    let task = Place::Task(id('t', 0));
    for (place, name) in [
        (&Place::Ingress, "br0"),
        (&Place::Ingress, "vx0"),
        (&task, "eth0"),
    ] {
        assert_eq!(mtu(place, name), Some(8950), "{name}");
    }
    assert_eq!(mtu(&Place::Ingress, "e1"), Some(9000));
}

#[test]
fn what_an_earlier_agent_published_stays_until_it_is_known_to_be_wrong() {
    let desired = desired(2, &[2], &[(8080, vec![0], false)]);
    let mut observed = host();
    settle(&mut observed, &desired);
    // A new process knows nothing of the maps, and its programs are others.
    observed.mesh = Ok(MeshMaps::default());
    for namespace in observed.namespaces.values_mut() {
        for attached in namespace.programs.values_mut() {
            *attached = super::super::model::Attached::Outdated;
        }
    }
    let ops = settle(&mut observed, &desired);
    let published: Vec<_> = ops
        .iter()
        .filter(|op| matches!(op, Op::SetPublished(_)))
        .map(Op::to_string)
        .collect();
    assert_eq!(published, ["publish 2 ports on the mesh"]);
    let repeats = |op: &&Op| {
        matches!(
            op,
            Op::Attach { .. }
                | Op::SetMeshConfig(_)
                | Op::SetNodeAddresses(_)
                | Op::SetIngressMacs(_)
                | Op::SetPublished(_)
                | Op::SetSources(_)
                | Op::SetIsolation(_)
                | Op::SetSockets(_)
                | Op::AttachSockets
        )
    };
    assert!(
        ops.iter().all(|op| repeats(&op)),
        "nothing is rebuilt: {:?}",
        texts(&ops)
    );
}

#[test]
fn where_sockets_cannot_be_balanced_that_is_said_and_not_tried() {
    let mut observed = host();
    let reason = "no cgroups".to_owned();
    observed.mesh = Ok(MeshMaps {
        socket_programs: SocketPrograms::Impossible(reason.clone()),
        ..MeshMaps::default()
    });
    let plan = plan(&observed, &desired(1, &[], &[]));
    assert_eq!(plan.problems, [Problem::SocketsNotBalanced { reason }]);
    assert!(!plan.ops.contains(&Op::AttachSockets));
}

#[test]
fn a_link_that_is_no_uplink_any_more_loses_the_program() {
    let desired = desired(1, &[], &[]);
    let mut observed = host();
    settle(&mut observed, &desired);
    let host = observed.namespaces.get_mut(&Place::Host).unwrap();
    host.addresses.retain(|(name, _)| name != "docker0");
    let ops = texts(&settle(&mut observed, &desired));
    assert!(
        ops.contains(&"detach program mesh_uplink from docker0 in host".to_owned()),
        "{ops:?}"
    );
    assert!(
        ops.contains(&"delete address 172.17.0.1/32 from lo in ingress".to_owned()),
        "{ops:?}"
    );
}

#[test]
fn a_users_network_comes_with_its_first_task_and_goes_with_its_last() {
    let alone = desired(2, &[1, 2, 2], &[]);
    let mut observed = host();
    settle(&mut observed, &alone);
    let before = observed.clone();
    // Network 1 with tasks on both nodes, network 2 with one elsewhere.
    let with = on_networks(alone.clone(), &[2, 2, 4]);
    let expected = "\
create network namespace net-k00100000000
set net/ipv4/ip_forward to 0 in net-k00100000000
set net/bridge/bridge-nf-call-iptables to 0 in net-k00100000000
create bridge br0 in net-k00100000000
create vxlan device vx0 with vni 4098 in net-k00100000000
make vx0 a port of br0 in net-k00100000000
set bridge port flags of vx0 in net-k00100000000
create veth pair tt00000000000 in net-k00100000000 and eth1 in task-t000000000000000000000000
make tt00000000000 a port of br0 in net-k00100000000
set bridge port flags of tt00000000000 in net-k00100000000
set lo up in net-k00100000000
set br0 up in net-k00100000000
set vx0 up in net-k00100000000
set tt00000000000 up in net-k00100000000
set eth1 up in task-t000000000000000000000000
add address 10.0.1.1/24 to br0 in net-k00100000000
add address 10.0.1.10/24 to eth1 in task-t000000000000000000000000
set neighbour 10.0.1.10 at 02:42:0a:00:01:0a on br0 in net-k00100000000
set neighbour 10.0.1.11 at 02:42:0a:00:01:0b on br0 in net-k00100000000
set forwarding of 02:42:0a:00:01:0b to node 192.168.1.2 on vx0 in net-k00100000000
set forwarding of 02:42:0a:00:01:0a to port tt00000000000 in net-k00100000000
set forwarding of 02:42:0a:00:01:0b to port vx0 in net-k00100000000";
    assert_eq!(texts(&settle(&mut observed, &with)).join("\n"), expected);
    let expected = "\
delete link tt00000000000 in net-k00100000000
delete link vx0 in net-k00100000000
delete network namespace net-k00100000000";
    assert_eq!(texts(&settle(&mut observed, &alone)).join("\n"), expected);
    assert_eq!(observed, before);
}

#[test]
fn a_network_is_as_wide_as_asked_but_no_wider_than_the_underlay_carries() {
    let mut observed = host();
    let desired = on_networks(desired(1, &[1], &[]), &[0b111]);
    settle(&mut observed, &desired);
    let task = &observed.namespaces[&Place::Task(id('t', 0))];
    let mtus = ["eth1", "eth2", "eth3"].map(|name| task.links[name].mtu);
    assert_eq!(mtus, [Some(1450), Some(1300), Some(1450)]);
}

#[test]
fn a_link_forwards_for_our_tasks_alone_unless_the_host_is_a_router() {
    let desired = desired(1, &[1, 1, 1], &[]);
    let guarded = |observed: &Observed| {
        let table = observed.firewall.as_ref().unwrap().table.clone();
        table.unwrap().guarded.into_iter().collect::<Vec<_>>()
    };
    let set = |observed: &mut Observed, key: &str, value: &str| {
        let host = observed.namespaces.get_mut(&Place::Host).unwrap();
        host.sysctls.insert(key.to_owned(), Some(value.to_owned()));
    };
    let forwarding = |observed: &Observed, name: &str| {
        let host = &observed.namespaces[&Place::Host];
        host.sysctls[&format!("ipv4/conf/{name}/forwarding")].clone()
    };
    // A link that somebody lets forward is not guarded.
    let mut observed = host();
    set(&mut observed, "ipv4/conf/docker0/forwarding", "1");
    settle(&mut observed, &desired);
    assert_eq!(guarded(&observed), ["eth0"]);
    assert_eq!(forwarding(&observed, "eth0").as_deref(), Some("1"));

    // The table flushed by hand: this process knows what it has guarded.
    observed.firewall.as_mut().unwrap().table = None;
    let ops = settle(&mut observed, &desired);
    let expected = "make nf_tables table inet swarm: 2 addresses have egress, 1 links are guarded";
    assert_eq!(texts(&ops), [expected]);

    // The table flushed while no agent ran: rather too much is guarded.
    let state = observed.firewall.as_mut().unwrap();
    (state.table, state.guarded) = (None, None);
    settle(&mut observed, &desired);
    assert_eq!(guarded(&observed), ["docker0", "eth0"]);

    // The host becomes a router.
    set(&mut observed, "ipv4/ip_forward", "1");
    settle(&mut observed, &desired);
    assert_eq!(guarded(&observed), Vec::<String>::new());

    // And is none any more: the kernel has closed all its links.
    for key in [
        "ipv4/ip_forward",
        "ipv4/conf/eth0/forwarding",
        "ipv4/conf/docker0/forwarding",
    ] {
        set(&mut observed, key, "0");
    }
    let ops = texts(&settle(&mut observed, &desired));
    assert_eq!(guarded(&observed), ["docker0", "eth0"]);
    let position = |text: &str| ops.iter().position(|op| op.starts_with(text));
    let (guard, forward) = (
        position("make nf_tables table").unwrap(),
        position("set net/ipv4/conf/eth0/forwarding to 1").unwrap(),
    );
    assert!(guard < forward, "{ops:?}");

    // A link that is no uplink any more is closed before its guard goes.
    let host = observed.namespaces.get_mut(&Place::Host).unwrap();
    host.addresses.retain(|(name, _)| name != "docker0");
    let ops = texts(&settle(&mut observed, &desired));
    assert_eq!(ops[0], "set net/ipv4/conf/docker0/forwarding to 0 in host");
    assert!(ops[1].starts_with("make nf_tables table"), "{ops:?}");
}

#[test]
fn a_subnet_that_the_host_has_elsewhere_is_left_alone_and_reported() {
    let mut observed = host();
    let route = Route {
        via: None,
        device: "docker0".to_owned(),
        mtu: None,
    };
    let host = observed.namespaces.get_mut(&Place::Host).unwrap();
    let subnet = "10.255.0.0/16".parse().unwrap();
    host.routes.insert(subnet, route.clone());
    let Plan { ops, problems } = plan(&observed, &desired(1, &[1], &[]));
    let [Problem::SubnetTaken { device, .. }] = &problems[..] else {
        panic!("{problems:?}")
    };
    assert_eq!(device, "docker0");
    ops.iter().for_each(|op| observed.apply(op));
    assert_eq!(observed.namespaces[&Place::Host].routes[&subnet], route);
}

#[test]
fn a_firewall_that_drops_is_reported_with_the_remedy() {
    let mut observed = host();
    let obstacle = Obstacle {
        table: "ip filter".to_owned(),
        chain: "FORWARD".to_owned(),
    };
    observed.firewall.as_mut().unwrap().obstacles = vec![obstacle];
    let problems = plan(&observed, &desired(1, &[], &[])).problems;
    let [problem @ Problem::EgressBlocked(_)] = &problems[..] else {
        panic!("{problems:?}")
    };
    let text = problem.to_string();
    assert!(
        text.contains("chain FORWARD of the host's nf_tables table ip filter"),
        "{text}"
    );
    assert!(
        text.contains("iptables -I DOCKER-USER -i sw-e1h -j ACCEPT"),
        "{text}"
    );

    observed.firewall = Err("no such protocol".to_owned());
    let Plan { ops, problems } = plan(&observed, &desired(1, &[1], &[]));
    assert!(
        matches!(problems[..], [Problem::NoFirewall { .. }]),
        "{problems:?}"
    );
    let forwards = |op: &Op| op.to_string().contains("conf/eth0/forwarding");
    assert!(!ops.iter().any(forwards), "unguarded: {ops:?}");
}

#[test]
fn a_node_that_goes_takes_its_route_along() {
    let mut observed = host();
    settle(&mut observed, &desired(2, &[], &[]));
    let ops = texts(&settle(&mut observed, &desired(1, &[], &[])));
    let expected = "delete route to 169.254.0.2/32 by br0 in ingress".to_owned();
    assert!(ops.contains(&expected), "{ops:?}");
}

#[derive(Clone, Debug)]
enum Damage {
    DeleteLink(Index),
    DeleteNetns(Index),
    SetDown(Index),
    ChangeMac(Index),
    ChangeMtu(Index),
    Release(Index),
    ChangePortFlags(Index),
    Address(Index),
    Route(Index),
    Neighbour(Index),
    Tunnel(Index),
    Forward(Index),
    Sysctl(Index),
    Program(Index),
    ClearIpvs,
    IpvsService(Index),
    Destination(Index),
    Config,
    Firewall(bool),
    Isolation,
    Sockets,
    SocketPrograms,
}

fn damages() -> impl Strategy<Value = Damage> {
    prop_oneof![
        any::<Index>().prop_map(Damage::DeleteLink),
        any::<Index>().prop_map(Damage::DeleteNetns),
        any::<Index>().prop_map(Damage::SetDown),
        any::<Index>().prop_map(Damage::ChangeMac),
        any::<Index>().prop_map(Damage::ChangeMtu),
        any::<Index>().prop_map(Damage::Release),
        any::<Index>().prop_map(Damage::ChangePortFlags),
        any::<Index>().prop_map(Damage::Address),
        any::<Index>().prop_map(Damage::Route),
        any::<Index>().prop_map(Damage::Neighbour),
        any::<Index>().prop_map(Damage::Tunnel),
        any::<Index>().prop_map(Damage::Forward),
        any::<Index>().prop_map(Damage::Sysctl),
        any::<Index>().prop_map(Damage::Program),
        Just(Damage::ClearIpvs),
        any::<Index>().prop_map(Damage::IpvsService),
        any::<Index>().prop_map(Damage::Destination),
        Just(Damage::Config),
        any::<bool>().prop_map(Damage::Firewall),
        Just(Damage::Isolation),
        Just(Damage::Sockets),
        Just(Damage::SocketPrograms),
    ]
}

fn pick<T: Clone>(from: impl IntoIterator<Item = T>, index: &Index) -> Option<T> {
    let all: Vec<T> = from.into_iter().collect();
    (!all.is_empty()).then(|| index.get(&all).clone())
}

/// Changes one of these links.
fn change(
    observed: &mut Observed,
    from: &[Device],
    index: &Index,
    change: &dyn Fn(&mut Link),
) -> Option<Device> {
    let (place, name) = pick(from.to_vec(), index)?;
    change(observed.namespaces.get_mut(&place)?.links.get_mut(&name)?);
    Some((place, name))
}

/// Breaks something of ours.
fn damage(observed: &mut Observed, damage: &Damage) {
    let ours = |place: &Place, name: &str| *place != Place::Host || name.starts_with("sw-");
    let devices: Vec<_> = observed
        .namespaces
        .iter()
        .flat_map(|(place, namespace)| {
            namespace
                .links
                .keys()
                .map(move |name| (place.clone(), name.clone()))
        })
        .filter(|(place, name)| ours(place, name))
        .collect();
    let others: Vec<_> = devices
        .iter()
        .filter(|(_, name)| name != "lo")
        .cloned()
        .collect();
    let networks = |observed: &mut Observed, change: &dyn Fn(&mut Namespace)| {
        let all = observed.namespaces.iter_mut();
        all.filter(|(place, _)| place.is_network())
            .for_each(|(_, namespace)| change(namespace));
    };
    match damage {
        Damage::DeleteLink(index) => {
            if let Some(device) = pick(others, index) {
                observed.apply(&Op::DeleteLink(device));
            }
        }
        Damage::DeleteNetns(index) => {
            let places = observed
                .namespaces
                .keys()
                .filter(|place| **place != Place::Host);
            if let Some(place) = pick(places.cloned(), index) {
                observed.apply(&Op::DeleteNetns(place));
            }
        }
        Damage::SetDown(index) => {
            // What the kernel does when a link goes down.
            if let Some((place, name)) = change(observed, &devices, index, &|link| link.up = false)
            {
                let namespace = observed.namespaces.get_mut(&place).unwrap();
                namespace.routes.retain(|_, route| route.device != name);
                namespace.neighbours.retain(|(of, _), _| *of != name);
            }
        }
        Damage::ChangeMac(index) => {
            let wrong = Mac([2, 0, 0, 0, 0, 1]);
            let named: Vec<_> = others
                .iter()
                .filter(|device| observed.link(device).is_some_and(|link| link.mac.is_some()))
                .cloned()
                .collect();
            if let Some(device) = pick(named, index) {
                observed.apply(&Op::SetMac { device, mac: wrong });
            }
        }
        Damage::ChangeMtu(index) => {
            change(observed, &others, index, &|link| link.mtu = Some(1280));
        }
        Damage::Release(index) => {
            change(observed, &others, index, &|link| {
                link.master = None;
                link.port = None;
            });
        }
        Damage::ChangePortFlags(index) => {
            change(observed, &others, index, &|link| {
                if let Some(flags) = &mut link.port {
                    flags.learning = !flags.learning;
                }
            });
        }
        Damage::Address(index) => {
            let places = observed
                .namespaces
                .iter()
                .filter(|(place, _)| **place != Place::Host);
            let addresses: Vec<_> = places
                .flat_map(|(place, namespace)| {
                    namespace
                        .addresses
                        .iter()
                        .map(move |entry| (place.clone(), entry.clone()))
                })
                .collect();
            if let Some((place, (name, address))) = pick(addresses, index) {
                observed.apply(&Op::DeleteAddress {
                    device: (place, name),
                    address,
                });
            }
        }
        Damage::Route(index) => networks(observed, &|namespace| {
            if let Some(to) = pick(namespace.routes.keys().copied(), index) {
                namespace.routes.remove(&to);
            }
        }),
        Damage::Neighbour(index) => networks(observed, &|namespace| {
            if let Some(key) = pick(namespace.neighbours.keys().cloned(), index) {
                namespace.neighbours.remove(&key);
            }
        }),
        Damage::Tunnel(index) => networks(observed, &|namespace| {
            if let Some(mac) = pick(namespace.tunnels.keys().copied(), index) {
                namespace.tunnels.insert(mac, ip(9, 9));
            }
        }),
        Damage::Forward(index) => networks(observed, &|namespace| {
            if let Some(mac) = pick(namespace.forwards.keys().copied(), index) {
                namespace.forwards.remove(&mac);
            }
        }),
        Damage::Sysctl(index) => networks(observed, &|namespace| {
            if let Some(key) = pick(namespace.sysctls.keys().cloned(), index) {
                namespace.sysctls.insert(key, Some("7".to_owned()));
            }
        }),
        Damage::Program(index) => {
            for namespace in observed.namespaces.values_mut() {
                if let Some(key) = pick(namespace.programs.keys().cloned(), index) {
                    namespace.programs.remove(&key);
                }
            }
        }
        Damage::ClearIpvs => observed.ipvs = Ok(IpvsTable::new()),
        Damage::IpvsService(index) => {
            let table = observed.ipvs.as_mut().unwrap();
            if let Some(key) = pick(table.keys().copied(), index) {
                table.remove(&key);
            }
        }
        Damage::Destination(index) => {
            let table = observed.ipvs.as_mut().unwrap();
            if let Some(key) = pick(table.keys().copied(), index) {
                let destinations = &mut table.get_mut(&key).unwrap().destinations;
                for config in destinations.values_mut() {
                    config.weight += 7;
                }
                destinations.pop_first();
                let balanced = table.get_mut(&key).unwrap();
                let there = &balanced.destinations;
                balanced.order.retain(|to| there.contains_key(to));
            }
        }
        Damage::Config => observed.mesh.as_mut().unwrap().config = None,
        Damage::Isolation => observed.mesh.as_mut().unwrap().isolation = None,
        Damage::Sockets => observed.mesh.as_mut().unwrap().sockets = None,
        Damage::SocketPrograms => {
            observed.mesh.as_mut().unwrap().socket_programs = SocketPrograms::Outdated;
        }
        Damage::Firewall(flushed) => {
            let table = &mut observed.firewall.as_mut().unwrap().table;
            match table {
                Some(table) if !flushed => drop(table.egress.pop_first()),
                table => *table = None,
            }
        }
    }
}

fn desires() -> impl Strategy<Value = Desired> {
    (
        1..5_u8,
        vec(1..5_u8, 0..6),
        vec(
            (8080..8084_u16, vec(any::<Index>(), 0..5), any::<bool>()),
            0..4,
        ),
        vec(0..8_u8, 6),
    )
        .prop_map(|(nodes, tasks, services, networks)| {
            let services: Vec<_> = services
                .into_iter()
                .map(|(port, members, draining)| {
                    let members: BTreeSet<usize> = members
                        .iter()
                        .filter_map(|index| pick(0..tasks.len(), index))
                        .collect();
                    (port, members.into_iter().collect(), draining)
                })
                .collect();
            on_networks(desired(nodes, &tasks, &services), &networks)
        })
}

/// Whether a packet for anything published finds a balancer, and from there every task. Ports in
/// `refusing` may have none.
fn published_ports_work(observed: &Observed, refusing: &BTreeSet<Published>) -> Result<(), String> {
    let (Ok(maps), Ok(table)) = (&observed.mesh, &observed.ipvs) else {
        return Ok(());
    };
    let ingress = observed.namespaces.get(&Place::Ingress);
    for published in maps
        .published
        .iter()
        .flatten()
        .map(|(published, _)| published)
    {
        let key = ServiceKey::Address {
            protocol: swarm_ipvs::Protocol::TCP,
            address: published.address,
            port: published.port,
        };
        let Some(balanced) = table.get(&key) else {
            if refusing.contains(published) {
                continue;
            }
            return Err(format!("{published:?} has no service"));
        };
        let ingress = ingress.ok_or("no ingress namespace")?;
        for destination in balanced.destinations.keys() {
            let mac = Mac::of(destination.address);
            let neighbour = ("br0".to_owned(), destination.address);
            if !ingress.neighbours.contains_key(&neighbour) || !ingress.forwards.contains_key(&mac)
            {
                return Err(format!("{destination} of {published:?} cannot be reached"));
            }
            if ingress.forwards[&mac] == "vx0" && !ingress.tunnels.contains_key(&mac) {
                return Err(format!("{destination} of {published:?} is at no node"));
            }
        }
    }
    Ok(())
}

/// The published ports that refuse, because no task takes connections.
fn without_balancer(desired: &Desired) -> BTreeSet<Published> {
    let wanted = wanted(&host(), desired).0;
    let table = wanted.ipvs.unwrap();
    let balanced: BTreeSet<_> = table
        .keys()
        .map(|key| match *key {
            ServiceKey::Address { address, port, .. } => (address, port),
            ServiceKey::Fwmark { .. } => unreachable!("services are known by address"),
        })
        .collect();
    let published = wanted.mesh.unwrap().published.unwrap().into_keys();
    published
        .filter(|entry| !balanced.contains(&(entry.address, entry.port)))
        .collect()
}

/// `desired` with its ports balanced by Maglev, and restricted to these sources.
fn by_maglev(mut desired: Desired, sources: &[&str]) -> Desired {
    for service in desired.services.values_mut() {
        for port in &mut service.ports {
            port.scheduler = Scheduler::Mh;
            port.sources = sources.iter().map(|net| net.parse().unwrap()).collect();
        }
    }
    desired
}

#[test]
fn a_process_that_listens_on_a_published_port_is_reported_and_changes_nothing() {
    let desired = desired(1, &[1], &[(8080, vec![0], false)]);
    let mut observed = host();
    settle(&mut observed, &desired);
    let listener = |protocol, port, address: &str| Listener {
        protocol,
        port,
        address: address.parse().unwrap(),
    };
    observed.listeners = BTreeSet::from([
        listener(Protocol::Tcp, 8080, "127.0.0.1"),
        listener(Protocol::Tcp, 80, "0.0.0.0"),
        listener(Protocol::Udp, 8080, "0.0.0.0"),
    ]);
    assert_eq!(plan(&observed, &desired).problems, []);
    observed
        .listeners
        .insert(listener(Protocol::Tcp, 8080, "0.0.0.0"));
    observed
        .listeners
        .insert(listener(Protocol::Tcp, 8080, "192.168.1.1"));
    let Plan { ops, problems } = plan(&observed, &desired);
    assert_eq!(texts(&ops), [""; 0]);
    let [problem] = &problems[..] else {
        panic!("{problems:?}")
    };
    assert_eq!(problem.service(), desired.services.keys().next());
    assert_eq!(
        problem.to_string(),
        "a process of this node listens on port 8080/tcp at every address, and gets no connections \
         from outside while the port is published: stop it (`ss -lntup 'sport = :8080'` names it) \
         or publish another port"
    );
}

#[test]
fn what_maglev_lacks_in_the_middle_moves_what_is_behind_it() {
    let members = |members: &[usize]| {
        by_maglev(
            desired(1, &[1, 1, 1], &[(8080, members.to_vec(), false)]),
            &[],
        )
    };
    let mut observed = host();
    settle(&mut observed, &members(&[0, 2]));
    let ops = mesh_texts(&settle(&mut observed, &members(&[0, 1, 2])));
    let at_first: Vec<_> = ops
        .iter()
        .filter(|op| op.ends_with("172.17.0.1:8080"))
        .collect();
    assert_eq!(
        at_first,
        [
            "ipvs: add destination 10.255.1.1:80 to service tcp 172.17.0.1:8080",
            "ipvs: delete destination 10.255.1.2:80 of service tcp 172.17.0.1:8080",
            "ipvs: add destination 10.255.1.2:80 to service tcp 172.17.0.1:8080",
        ]
    );
    // Nothing moves for what is added at the end, or goes.
    settle(&mut observed, &members(&[0, 1]));
    let ops = mesh_texts(&settle(&mut observed, &members(&[0, 1, 2])));
    assert!(
        ops.iter().all(|op| op.starts_with("ipvs: add destination")),
        "{ops:?}"
    );
    let ops = mesh_texts(&settle(&mut observed, &members(&[0, 2])));
    assert!(
        ops.iter()
            .all(|op| op.starts_with("ipvs: delete destination")),
        "{ops:?}"
    );
}

#[test]
fn a_restriction_is_written_before_its_port_and_goes_after_it() {
    let port = |sources: &[&str]| by_maglev(desired(1, &[1], &[(8080, vec![0], false)]), sources);
    let mut observed = host();
    settle(&mut observed, &port(&[]));
    let ops = mesh_texts(&settle(&mut observed, &port(&["10.0.0.0/8"])));
    assert_eq!(
        ops,
        [
            "write 1 source ranges of published ports",
            "publish 2 ports on the mesh"
        ]
    );
    let ops = mesh_texts(&settle(&mut observed, &port(&["192.0.2.0/24"])));
    assert_eq!(
        ops,
        [
            "write 2 source ranges of published ports",
            "write 1 source ranges of published ports"
        ]
    );
    let ops = mesh_texts(&settle(&mut observed, &port(&[])));
    assert_eq!(
        ops,
        [
            "publish 2 ports on the mesh",
            "write 0 source ranges of published ports"
        ]
    );
}

proptest! {
    #[test]
    fn maglev_has_its_destinations_in_one_order_whatever_was_before(
        before in desires(),
        after in desires(),
        damages in vec(damages(), 0..3),
    ) {
        let mut observed = host();
        settle(&mut observed, &by_maglev(before, &[]));
        for item in &damages {
            damage(&mut observed, item);
        }
        settle(&mut observed, &by_maglev(after, &[]));
        for balanced in observed.ipvs.unwrap().values() {
            prop_assert!(balanced.order.is_sorted(), "{:?}", balanced.order);
            prop_assert_eq!(balanced.order.len(), balanced.destinations.len());
        }
    }

    #[test]
    fn any_state_leads_to_any_other_in_one_pass(
        before in desires(),
        after in desires(),
        ipv6 in any::<bool>(),
    ) {
        let (before, after) = (over(ipv6, before), over(ipv6, after));
        let mut observed = host();
        settle(&mut observed, &before);
        prop_assert_eq!(texts(&plan(&observed, &before).ops), Vec::<String>::new());
        settle(&mut observed, &after);
        prop_assert_eq!(texts(&plan(&observed, &after).ops), Vec::<String>::new());
        // What was before leaves no trace.
        let mut fresh = host();
        settle(&mut fresh, &after);
        prop_assert_eq!(observed, fresh);
    }

    #[test]
    fn at_every_step_what_is_published_works(
        before in desires(),
        after in desires(),
        ipv6 in any::<bool>(),
    ) {
        let (before, after) = (over(ipv6, before), over(ipv6, after));
        let mut observed = host();
        let mut refusing = BTreeSet::new();
        for desired in [&before, &after] {
            refusing.extend(without_balancer(desired));
            for op in plan(&observed, desired).ops {
                observed.apply(&op);
                let works = published_ports_work(&observed, &refusing);
                prop_assert!(works.is_ok(), "after {}: {:?}", op, works);
            }
        }
    }

    #[test]
    fn any_damage_is_put_right_in_one_pass(
        desired in desires(),
        damages in vec(damages(), 1..6),
        ipv6 in any::<bool>(),
    ) {
        let desired = over(ipv6, desired);
        let mut observed = host();
        settle(&mut observed, &desired);
        let whole = observed.clone();
        for item in &damages {
            damage(&mut observed, item);
        }
        settle(&mut observed, &desired);
        prop_assert_eq!(texts(&plan(&observed, &desired).ops), Vec::<String>::new());
        // Settings that were not looked at count as made; everything else is as it was.
        prop_assert_eq!(observed, whole);
    }

    #[test]
    fn teardown_leaves_what_is_not_ours_and_nothing_else(desired in desires(), ipv6 in any::<bool>()) {
        let desired = over(ipv6, desired);
        let mut observed = host();
        settle(&mut observed, &desired);
        for op in teardown(&observed) {
            observed.apply(&op);
        }
        let mut expected = host();
        // The host's settings of our link are gone with it.
        expected.ipvs = Ok(IpvsTable::new());
        prop_assert_eq!(observed, expected);
    }

    #[test]
    fn links_of_others_are_not_touched(
        before in desires(),
        after in desires(),
        ipv6 in any::<bool>(),
    ) {
        let (before, after) = (over(ipv6, before), over(ipv6, after));
        let mut observed = host();
        let mut ops = settle(&mut observed, &before);
        ops.extend(settle(&mut observed, &after));
        ops.extend(teardown(&observed));
        for op in ops {
            match &op {
                Op::Attach { program: Program::MeshUplink, .. }
                | Op::Detach { program: Program::MeshUplink, .. } => {}
                Op::SetSysctl { place: Place::Host, key, .. } => {
                    let ours = key.ends_with("/forwarding") || key.contains("/sw-e1h/");
                    prop_assert!(ours, "{}", op);
                }
                op => {
                    let text = op.to_string();
                    let ours = !text.contains("in host") || text.contains("sw-");
                    prop_assert!(ours, "{}", op);
                }
            }
        }
    }
}
