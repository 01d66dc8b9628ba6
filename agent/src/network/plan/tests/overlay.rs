//! Networks of users.

use super::*;

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
