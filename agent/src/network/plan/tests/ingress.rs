//! The ingress network and what is published on it.

use super::*;

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
ipvs: set timeouts: tcp 9000 s, after a FIN 120 s, udp 300 s
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
set net/ipv6/conf/all/forwarding to 1 in host
set net/ipv6/conf/default/forwarding to 0 in host
set net/ipv6/conf/sw-e1h/forwarding to 1 in host
set net/ipv6/conf/sw-e1h/addr_gen_mode to 1 in host
add address fd00:a::aff:1/64 to br0 in ingress
add address 2001:db8::1/128 to lo in ingress
add address fd00:a::aff:100/64 to eth0 in task-t000000000000000000000000
set route to fd00:a::/64 by sw-e1h in host
set neighbour fe80::a9fe:ff02 at 02:42:a9:fe:ff:02 on sw-e1h in host
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
attach program shortcut_out to vx0 in ingress
write the links of the mesh programs";
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
            *attached = crate::network::model::Attached::Outdated;
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
fn a_node_that_goes_takes_its_route_along() {
    let mut observed = host();
    settle(&mut observed, &desired(2, &[], &[]));
    let ops = texts(&settle(&mut observed, &desired(1, &[], &[])));
    let expected = "delete route to 169.254.0.2/32 by br0 in ingress".to_owned();
    assert!(ops.contains(&expected), "{ops:?}");
}
