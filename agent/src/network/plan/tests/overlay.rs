//! Networks of users.

use super::*;
use crate::network::model::NetworkName;

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
fn a_network_with_ipv6_has_the_twin_of_every_address() {
    let mut observed = host();
    let v4 = on_networks(desired(2, &[1, 2], &[]), &[2, 2]);
    settle(&mut observed, &v4);
    // Such as an earlier agent has left it: what is there already stays.
    let expected = "\
set net/ipv6/conf/all/disable_ipv6 to 0 in net-k00100000000
set net/ipv6/conf/default/disable_ipv6 to 0 in net-k00100000000
set net/ipv6/conf/all/forwarding to 0 in net-k00100000000
set net/ipv6/conf/default/addr_gen_mode to 1 in net-k00100000000
set net/ipv6/conf/default/accept_ra to 0 in net-k00100000000
set net/ipv6/conf/default/autoconf to 0 in net-k00100000000
set bridge port flags of tt00000000000 in net-k00100000000
add address fd00:1002::a00:101/64 to br0 in net-k00100000000
add address fd00:1002::a00:10a/64 to eth1 in task-t000000000000000000000000
set neighbour fd00:1002::a00:10a at 02:42:0a:00:01:0a on br0 in net-k00100000000
set neighbour fd00:1002::a00:10b at 02:42:0a:00:01:0b on br0 in net-k00100000000";
    let mut v6 = over_ipv6(v4.clone());
    v6.network.subnet6 = None;
    assert_eq!(texts(&settle(&mut observed, &v6)).join("\n"), expected);
    let overlay = &observed.namespaces[&Place::Overlay(NetworkName::of(&id('k', 1)))];
    assert!(overlay.links["tt00000000000"].port.unwrap().multicast_flood);

    // A container that wants none on one of its interfaces gets none there.
    let task = Place::Task(id('t', 0));
    let content = observed.namespaces.get_mut(&task).unwrap();
    let twin = content
        .addresses
        .iter()
        .find(|(_, net)| net.addr().is_ipv6());
    let twin = twin.cloned().unwrap();
    content.addresses.remove(&twin);
    let refused = "ipv6/conf/eth1/disable_ipv6".to_owned();
    content
        .sysctls
        .insert(refused.clone(), Some("1".to_owned()));
    assert_eq!(texts(&settle(&mut observed, &v6)), Vec::<String>::new());
    let content = observed.namespaces.get_mut(&task).unwrap();
    content.sysctls.insert(refused, Some("0".to_owned()));
    let expected = "add address fd00:1002::a00:10a/64 to eth1 in task-t000000000000000000000000";
    assert_eq!(texts(&settle(&mut observed, &v6)), [expected]);
}

#[test]
fn no_ipv6_where_the_kernel_has_none_or_the_underlay_is_too_narrow() {
    let mut v6 = over_ipv6(on_networks(desired(2, &[1, 2], &[]), &[2, 2]));
    v6.network.subnet6 = None;
    let of_ipv6 = |text: &String| text.contains("fd00:") || text.contains("ipv6");
    let mut without = host();
    without.ipv6 = false;
    let Plan { ops, problems } = plan(&without, &v6);
    assert_eq!(problems, []);
    assert!(!texts(&ops).iter().any(of_ipv6), "{ops:#?}");

    let mut narrow = host();
    let uplink = narrow.namespaces.get_mut(&Place::Host).unwrap();
    uplink.links.get_mut("eth0").unwrap().mtu = Some(1300);
    let Plan { ops, problems } = plan(&narrow, &v6);
    assert_eq!(problems, [Problem::TooNarrowForIpv6 { mtu: 1250 }]);
    assert!(!texts(&ops).iter().any(of_ipv6), "{ops:#?}");
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
