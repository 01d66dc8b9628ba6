//! The networks of whole nodes on this machine's kernel, each node in namespaces of its own;
//! checked with `ip`, `bridge` and `tc`.
//!
//! They need root and are skipped without, loudly; `SWARM_TEST_REQUIRE_KERNEL=1` makes a skip a
//! failure. What needs IPVS is skipped where the kernel has none; `SWARM_TEST_REQUIRE_IPVS=1`
//! likewise.

mod check;
mod egress;
mod increment;
mod isolation;
mod overlay;
mod snapshot;
mod sockets;
pub(in crate::network) mod world;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;

use swarm_model::TaskId;

use super::kernel::Kernel;
use super::model::Tables;
use super::netns::Netns;
use super::observe::{Look, observe};
use super::op::Op;
use super::plan::plan;
use super::reconcile::NetworkError;
use snapshot::{differences, settled, snapshot};
use world::{
    DEADLINE, Node, World, address_of, address6_of, as_root, command, connect, listen, listen_both,
    local, task_id, try_command, within,
};

/// Two nodes with a task each, connected.
async fn two_nodes() -> (World, TaskId, TaskId) {
    let world = World::new(2);
    let (first, second) = (task_id(1), task_id(2));
    world.place(&[(1, 1), (2, 2)], &[(8080, &[1, 2])]).await;
    for (node, task) in [(1, &first), (2, &second)] {
        let node = world.node(node);
        let path = node
            .reconciler()
            .prepare_task(task, local(task))
            .await
            .unwrap();
        assert_eq!(path, node.netns_path(&format!("task-{task}")));
        assert!(path.exists());
    }
    (world, first, second)
}

#[tokio::test]
async fn tasks_of_two_nodes_reach_each_other() {
    let Some(_root) = as_root() else { return };
    let (world, first, second) = two_nodes().await;
    let (one, two) = (world.node(1).task(&first), world.node(2).task(&second));

    let listener = listen(&two, 80);
    let mut stream = connect(&one, (address_of(&second), 80).into()).unwrap();
    let (mut accepted, peer) = listener.accept().unwrap();
    assert_eq!(
        peer.ip(),
        address_of(&first),
        "nothing on the way translates addresses"
    );
    let sent = vec![0x5a_u8; 1 << 20];
    let expected = sent.len();
    let writer = std::thread::spawn(move || stream.write_all(&sent).map(|()| stream));
    let mut received = vec![0; expected];
    accepted.read_exact(&mut received).unwrap();
    writer.join().unwrap().unwrap();

    // A datagram as large as the overlay takes: 1450 less IP and UDP headers.
    let bind = |netns: &Netns| {
        netns
            .run(|| UdpSocket::bind("0.0.0.0:80"))
            .unwrap()
            .unwrap()
    };
    let (from, to) = (bind(&one), bind(&two));
    to.set_read_timeout(Some(DEADLINE)).unwrap();
    from.send_to(&[7; 1422], (address_of(&second), 80)).unwrap();
    let mut buffer = [0; 2000];
    assert_eq!(to.recv(&mut buffer).unwrap(), 1422);

    // The gateway is the node's own, and answers.
    let neighbours = command(&one, "ip -j neigh show dev eth0");
    assert!(neighbours.contains("02:42:0a:ff:00:01"), "{neighbours}");
    assert!(neighbours.contains("PERMANENT"), "{neighbours}");
}

#[tokio::test]
async fn tasks_of_one_node_reach_each_other() {
    let Some(_root) = as_root() else { return };
    let world = World::new(1);
    world.place(&[(1, 1), (2, 1)], &[(8080, &[2])]).await;
    let (one, two) = (
        world.node(1).task(&task_id(1)),
        world.node(1).task(&task_id(2)),
    );
    let listener = listen_both(&two, 80);
    for address in [address_of, address6_of] {
        connect(&one, (address(&task_id(2)), 80).into()).unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip().to_canonical(), address(&task_id(1)));
    }
}

#[tokio::test]
async fn tasks_of_two_nodes_reach_each_other_by_ipv6() {
    let Some(_root) = as_root() else { return };
    let (world, first, second) = two_nodes().await;
    let (one, two) = (world.node(1).task(&first), world.node(2).task(&second));
    let addresses = command(&one, "ip -6 addr show dev eth0");
    assert!(addresses.contains("fd00:a::aff:101/64"), "{addresses}");
    assert!(
        !addresses.contains("tentative"),
        "nothing waits: {addresses}"
    );

    let listener = listen_both(&two, 80);
    connect(&one, (address6_of(&second), 80).into()).unwrap();
    assert_eq!(listener.accept().unwrap().1.ip(), address6_of(&first));

    // A datagram as large as the overlay takes: 1450 less IPv6 and UDP headers.
    let bind = |netns: &Netns| netns.run(|| UdpSocket::bind("[::]:80")).unwrap().unwrap();
    let (from, to) = (bind(&one), bind(&two));
    to.set_read_timeout(Some(DEADLINE)).unwrap();
    from.send_to(&[7; 1402], (address6_of(&second), 80))
        .unwrap();
    assert_eq!(to.recv(&mut [0; 2000]).unwrap(), 1402);

    // The other node's bridge has answered for its task: no solicitation crosses the wire.
    let found = command(
        &one,
        &format!("ip neigh show {} dev eth0", address6_of(&second)),
    );
    assert!(found.contains("02:42:0a:ff:01:02"), "{found}");
    let gateway = command(&one, "ip neigh show fd00:a::aff:1 dev eth0");
    assert!(gateway.contains("02:42:0a:ff:00:01 PERMANENT"), "{gateway}");
    let route = command(&one, "ip -6 route show default");
    assert!(route.contains("via fd00:a::aff:1 dev eth0"), "{route}");
}

#[tokio::test]
async fn the_underlay_may_be_ipv6() {
    let Some(_root) = as_root() else { return };
    let mut world = World::new(2);
    world.underlay_ipv6 = true;
    world.place(&[(1, 1), (2, 2)], &[(8080, &[1, 2])]).await;
    let (first, second) = (task_id(1), task_id(2));
    let vxlan = command(&world.node(1).ingress(), "ip -d link show vx0");
    assert!(vxlan.contains("local 2001:db8::1 "), "{vxlan}");
    assert!(vxlan.contains("mtu 1430"), "{vxlan}");
    let (one, two) = (world.node(1).task(&first), world.node(2).task(&second));
    let listener = listen_both(&two, 80);
    for address in [address_of, address6_of] {
        let mut stream = connect(&one, (address(&second), 80).into()).unwrap();
        let (mut accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip().to_canonical(), address(&first));
        // Whole packets of the overlay's size.
        let sent = vec![0x5a_u8; 1 << 18];
        let expected = sent.len();
        let writer = std::thread::spawn(move || stream.write_all(&sent).map(|()| stream));
        accepted.read_exact(&mut vec![0; expected]).unwrap();
        writer.join().unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_container_may_do_without_ipv6() {
    let Some(_root) = as_root() else { return };
    let (world, first, _second) = two_nodes().await;
    let task = world.node(1).task(&first);
    let disable = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
    task.run(|| std::fs::write(disable, "1")).unwrap().unwrap();
    // A later pass leaves it so, and has nothing to complain of.
    for _ in 0..2 {
        world.place(&[(1, 1), (2, 2)], &[(8080, &[1, 2])]).await;
    }
    assert_eq!(command(&task, "ip -6 addr show dev eth0"), "");
    let applied = world.node(1).reconciler().applied();
    assert!(applied.borrow().failures.is_empty(), "{applied:?}");
}

#[tokio::test]
async fn the_structure_is_what_the_design_says() {
    let Some(_root) = as_root() else { return };
    let (world, first, _second) = two_nodes().await;
    let node = world.node(1);
    let ingress = node.ingress();

    // Newer versions of the tool write the word so.
    let vxlan = command(&ingress, "ip -d link show vx0").replace("udp_csum", "udpcsum");
    for part in [
        "vxlan id 4096",
        "local 192.0.2.1",
        "dstport 4789",
        "nolearning",
        "noudpcsum",
        "mtu 1450",
    ] {
        assert!(vxlan.contains(part), "{part} not in {vxlan}");
    }
    // Its underlay is another namespace than its own: the host's.
    assert!(vxlan.contains("link-netnsid"), "{vxlan}");
    assert!(
        !command(&node.host, "ip -j link").contains("vx"),
        "nothing of it is in the host"
    );

    let port = format!("t{}", first.short());
    let fdb = command(&ingress, "bridge fdb show");
    for line in [
        "02:42:0a:ff:01:02 dev vx0 dst 192.0.2.2 link-netnsid 0 self permanent".to_owned(),
        "02:42:0a:ff:01:02 dev vx0 master br0 static".to_owned(),
        "02:42:0a:ff:00:02 dev vx0 dst 192.0.2.2 link-netnsid 0 self permanent".to_owned(),
        format!("02:42:0a:ff:01:01 dev {port} master br0 static"),
    ] {
        let found = fdb.lines().any(|found| found.trim() == line);
        assert!(found, "{line} not in {fdb}");
    }
    for (netns, device, hook, program) in [
        (&node.host, "eth0", "ingress", "mesh_uplink"),
        (&node.host, "sw-e1h", "ingress", "mesh_out"),
        (&ingress, port.as_str(), "egress", "flow_learn"),
        (&ingress, port.as_str(), "ingress", "flow_return"),
    ] {
        let filters = command(netns, &format!("tc filter show dev {device} {hook}"));
        assert!(
            filters.contains(program),
            "{program} not on {device}: {filters}"
        );
    }
    assert_eq!(
        command(&ingress, "cat /proc/sys/net/ipv4/ip_forward").trim(),
        "1"
    );
    let route = command(&ingress, "ip route show default");
    assert!(
        route.contains("via 169.254.255.1 dev e1") && route.contains("onlink"),
        "{route}"
    );
}

#[tokio::test]
async fn a_second_pass_finds_nothing_to_do() {
    let Some(_root) = as_root() else { return };
    let world = World::bare(1);
    let node = world.node(1);
    let desired = world.desired(1, &[(1, 1)], &[(8080, &[1])]);
    let config = node.config.clone();
    let mut kernel = node
        .host
        .run(move || Kernel::new(config.run_dir.join("netns"), config.bpffs_dir).unwrap())
        .unwrap();
    let mut pass = || {
        let (observed, unreadable) =
            observe(&mut kernel, Look::AndRepair, Tables::ALL, &|| false).unwrap();
        assert!(unreadable.is_empty(), "{unreadable:?}");
        let ops = plan(&observed, &desired).ops;
        let failures = super::execute::execute(&mut kernel, &ops);
        assert!(failures.is_empty(), "{failures:?}");
        ops.iter().map(Op::to_string).collect::<Vec<_>>()
    };
    assert!(!pass().is_empty());
    assert_eq!(pass(), Vec::<String>::new());
}

/// Ways to break something in the host's (`h`), the ingress (`i`) or the task's namespace (`t`).
const DAMAGES: &[(&str, &str)] = &[
    ("i", "ip link del vx0"),
    ("i", "ip link del br0"),
    ("i", "ip link del e1"),
    ("i", "ip link del PORT"),
    ("i", "ip link set lo down"),
    ("i", "ip link set br0 down"),
    ("i", "ip link set vx0 down"),
    ("i", "ip link set e1 down"),
    ("i", "ip link set vx0 nomaster"),
    ("i", "ip link set PORT nomaster"),
    ("i", "ip link set br0 address 02:00:00:00:00:99"),
    ("i", "ip link set vx0 mtu 1300"),
    ("i", "ip addr del 10.255.0.1/16 dev br0"),
    ("i", "ip addr del 192.0.2.1/32 dev lo"),
    ("i", "ip addr add 192.0.2.77/32 dev lo"),
    ("i", "ip route del default"),
    ("i", "ip route del 10.255.0.0/16"),
    ("i", "ip route replace default dev br0"),
    ("i", "ip addr del fd00:a::aff:1/64 dev br0"),
    ("i", "ip addr del 2001:db8::1/128 dev lo"),
    ("i", "ip addr add 2001:db8::77/128 dev lo nodad"),
    ("i", "ip -6 route del default"),
    ("i", "ip -6 route del fd00:a::/64"),
    ("i", "ip -6 route replace default dev br0"),
    ("i", "ip neigh del fe80::a9fe:ff01 dev e1"),
    (
        "i",
        "ip neigh replace fd00:a::aff:102 lladdr 02:00:00:00:00:99 dev br0 nud permanent",
    ),
    ("i", "write 1 /proc/sys/net/ipv6/conf/all/disable_ipv6"),
    ("i", "write 0 /proc/sys/net/ipv6/conf/all/forwarding"),
    ("i", "ip link set br0 mtu 1000"),
    ("i", "ip neigh del 169.254.255.1 dev e1"),
    ("i", "ip neigh flush dev br0 nud permanent"),
    (
        "i",
        "ip neigh replace 10.255.1.2 lladdr 02:00:00:00:00:99 dev br0 nud permanent",
    ),
    ("i", "bridge fdb del 02:42:0a:ff:01:02 dev vx0 self"),
    (
        "i",
        "bridge fdb replace 02:42:0a:ff:01:02 dev vx0 self dst 192.0.2.99",
    ),
    ("i", "bridge fdb del 02:42:0a:ff:01:02 dev vx0 master"),
    (
        "i",
        "bridge fdb add 02:42:0a:ff:09:09 dev vx0 master static",
    ),
    ("i", "bridge link set dev vx0 learning on flood on"),
    ("i", "bridge link set dev vx0 neigh_suppress off"),
    ("i", "write 0 /proc/sys/net/ipv4/ip_forward"),
    ("i", "write 1 /proc/sys/net/ipv4/conf/br0/rp_filter"),
    ("i", "tc filter del dev PORT egress"),
    ("i", "tc qdisc del dev PORT clsact"),
    ("h", "ip link del sw-e1h"),
    ("h", "ip link set sw-e1h down"),
    ("h", "tc filter del dev eth0 ingress"),
    ("h", "tc qdisc del dev sw-e1h clsact"),
    ("h", "ip addr del 169.254.0.1/32 dev sw-e1h"),
    ("h", "ip addr add 169.254.7.7/32 dev sw-e1h"),
    ("h", "ip route del 10.255.0.0/16"),
    ("h", "ip route add 10.250.0.0/16 dev sw-e1h"),
    ("h", "ip neigh del 169.254.255.2 dev sw-e1h"),
    ("h", "write 0 /proc/sys/net/ipv4/conf/eth0/forwarding"),
    ("h", "write 0 /proc/sys/net/ipv4/conf/sw-e1h/forwarding"),
    ("h", "nft flush ruleset"),
    ("h", "nft delete chain inet swarm postrouting"),
    ("h", "nft flush set inet swarm egress"),
    ("i", "ip route del 169.254.0.2"),
    ("i", "ip route add 169.254.7.7 via 10.255.0.2 dev br0"),
    ("t", "ip link del eth0"),
    ("t", "ip link set eth0 down"),
    ("t", "ip addr flush dev eth0"),
    ("t", "ip route del default"),
    ("t", "ip neigh del 10.255.0.1 dev eth0"),
    ("t", "ip -6 addr flush dev eth0 scope global"),
    ("t", "ip -6 route del default"),
    ("t", "ip neigh del fd00:a::aff:1 dev eth0"),
    ("t", "ip link set eth0 address 02:00:00:00:00:99"),
];

fn damage(node: &Node, task: &TaskId, place: &str, line: &str) {
    let netns = match place {
        "h" => node.host.clone(),
        "i" => node.ingress(),
        _ => node.task(task),
    };
    match line
        .strip_prefix("write ")
        .and_then(|rest| rest.split_once(' '))
    {
        Some((value, path)) => netns.run(|| std::fs::write(path, value)).unwrap().unwrap(),
        None => drop(command(
            &netns,
            &line.replace("PORT", &format!("t{}", task.short())),
        )),
    }
}

#[tokio::test]
async fn whatever_breaks_while_no_agent_runs_is_put_right_by_the_next() {
    let Some(_root) = as_root() else { return };
    let (mut world, first, _second) = two_nodes().await;
    let whole = settled(world.node(1), &[&first]);
    for (place, line) in DAMAGES {
        world.stop(1);
        damage(world.node(1), &first, place, line);
        let broken = differences(&whole, &snapshot(world.node(1), &[&first]));
        assert!(!broken.is_empty(), "{line} in {place} does not show");
        world.start(1);
        world.place(&[(1, 1), (2, 2)], &[(8080, &[1, 2])]).await;
        let left = differences(&whole, &snapshot(world.node(1), &[&first]));
        assert!(
            left.is_empty(),
            "{line} in {place} was not put right at once: {left:#?}"
        );
    }
}

#[tokio::test]
async fn whatever_is_broken_by_hand_is_put_right() {
    let Some(_root) = as_root() else { return };
    let (world, first, second) = two_nodes().await;
    let node = world.node(1);
    let whole = settled(node, &[&first]);
    for (place, line) in DAMAGES {
        damage(node, &first, place, line);
        let mut left = Vec::new();
        let repaired = within(DEADLINE, || {
            left = differences(&whole, &snapshot(node, &[&first]));
            left.is_empty()
        });
        assert!(repaired, "{line} in {place} was not put right: {left:#?}");
    }
    // And traffic passes.
    let listener = listen(&node.task(&first), 80);
    connect(
        &world.node(2).task(&second),
        (address_of(&first), 80).into(),
    )
    .unwrap();
    listener.accept().unwrap();
}

#[tokio::test]
async fn a_lost_ingress_namespace_is_made_anew() {
    let Some(_root) = as_root() else { return };
    let (world, first, second) = two_nodes().await;
    let node = world.node(1);
    let whole = settled(node, &[&first]);
    let old = node.ingress();
    command(
        &node.host,
        &format!("umount -l {}", node.netns_path("ingress").display()),
    );
    drop(old);
    let mut left = Vec::new();
    let repaired = within(DEADLINE, || {
        left = differences(&whole, &snapshot(node, &[&first]));
        left.is_empty()
    });
    assert!(repaired, "{left:#?}");
    let listener = listen(&node.task(&first), 80);
    connect(
        &world.node(2).task(&second),
        (address_of(&first), 80).into(),
    )
    .unwrap();
    listener.accept().unwrap();
}

#[tokio::test]
async fn a_restart_adopts_everything_and_a_connection_goes_on() {
    let Some(_root) = as_root() else { return };
    let (mut world, first, second) = two_nodes().await;
    let listener = listen(&world.node(2).task(&second), 80);
    let target = SocketAddr::from((address_of(&second), 80));
    let mut stream = connect(&world.node(1).task(&first), target).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    let echo = |stream: &mut TcpStream, accepted: &mut TcpStream| {
        stream.write_all(b"still there?").unwrap();
        let mut buffer = [0; 12];
        accepted.read_exact(&mut buffer).unwrap();
    };
    echo(&mut stream, &mut accepted);
    let indexes = |world: &World| {
        let lines = command(&world.node(1).ingress(), "ip -o link");
        lines
            .lines()
            .map(|line| line.split(": ").take(2).collect())
            .collect::<Vec<String>>()
    };
    let before = indexes(&world);
    let whole = settled(world.node(1), &[&first]);

    for number in [1, 2] {
        world.stop(number);
        world.start(number);
    }
    echo(&mut stream, &mut accepted);
    // The task is in the desired state alone: nobody has prepared it in this process.
    world.place(&[(1, 1), (2, 2)], &[(8080, &[1, 2])]).await;
    echo(&mut stream, &mut accepted);

    assert_eq!(indexes(&world), before, "no link was made anew");
    let left = differences(&whole, &snapshot(world.node(1), &[&first]));
    assert!(left.is_empty(), "{left:#?}");
}

#[tokio::test]
async fn a_released_task_leaves_nothing_and_the_other_stays() {
    let Some(_root) = as_root() else { return };
    let world = World::new(1);
    let node = world.node(1);
    // Task 1 is desired, task 2 only prepared.
    world.place(&[(1, 1)], &[]).await;
    let whole = settled(node, &[&task_id(1)]);
    let second = task_id(2);
    node.reconciler()
        .prepare_task(&second, local(&second))
        .await
        .unwrap();
    node.reconciler()
        .prepare_task(&second, local(&second))
        .await
        .expect("repeatable");
    // A desired state that was put together before task 2 leaves it alone.
    world.place(&[(1, 1)], &[]).await;
    assert!(node.netns_path(&format!("task-{second}")).exists());

    node.reconciler().release_task(&second).await.unwrap();
    node.reconciler()
        .release_task(&second)
        .await
        .expect("repeatable");
    assert!(!node.netns_path(&format!("task-{second}")).exists());
    let left = differences(&whole, &snapshot(node, &[&task_id(1)]));
    assert!(left.is_empty(), "{left:#?}");

    // Task 1 goes although the desired state still lists it.
    node.reconciler().release_task(&task_id(1)).await.unwrap();
    world.place(&[(1, 1)], &[]).await;
    assert!(!node.netns_path(&format!("task-{}", task_id(1))).exists());
}

#[tokio::test]
async fn names_left_by_a_host_that_went_down_are_no_hindrance() {
    let Some(_root) = as_root() else { return };
    let world = World::new(1);
    let node = world.node(1);
    let gone = node.netns_path(&format!("task-{}", task_id(9)));
    std::fs::create_dir_all(gone.parent().unwrap()).unwrap();
    for path in [
        &gone,
        &node.netns_path("ingress"),
        &node.netns_path("somebody-elses"),
    ] {
        std::fs::write(path, "").unwrap();
    }
    world.place(&[(1, 1)], &[]).await;
    assert!(command(&node.ingress(), "ip -br link").contains("br0"));
    assert!(!gone.exists());
    assert!(node.netns_path("somebody-elses").exists());
}

#[tokio::test]
async fn no_task_is_connected_before_the_node_is() {
    let Some(_root) = as_root() else { return };
    let world = World::new(1);
    let task = task_id(1);
    let outcome = world
        .node(1)
        .reconciler()
        .prepare_task(&task, local(&task))
        .await;
    assert!(
        matches!(outcome, Err(NetworkError::NotConnected(_))),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn teardown_leaves_the_host_as_it_was() {
    let Some(_root) = as_root() else { return };
    let world = World::new(1);
    let node = world.node(1);
    command(&node.host, "ip link add other type veth peer name other2");
    // Names and MAC addresses: whether there is a carrier may take a moment to show.
    let links = |node: &Node| {
        let lines = command(&node.host, "ip -br link");
        let words = |line: &str| {
            line.split_whitespace()
                .step_by(2)
                .take(2)
                .collect::<String>()
        };
        lines.lines().map(words).collect::<Vec<_>>()
    };
    let before = links(node);
    world.place(&[(1, 1)], &[(8080, &[1])]).await;
    assert_eq!(links(node).len(), before.len() + 1);

    node.reconciler().teardown().await.unwrap();
    assert_eq!(links(node), before);
    assert_eq!(command(&node.host, "tc filter show dev eth0 ingress"), "");
    assert_eq!(
        std::fs::read_dir(node.config.run_dir.join("netns"))
            .unwrap()
            .count(),
        0
    );
    assert!(
        !node.config.bpffs_dir.join("maps").exists(),
        "pins are gone"
    );
    // Nothing comes back by itself, and the swarm can be joined again.
    world.place(&[(1, 1)], &[]).await;
    assert_eq!(links(node).len(), before.len() + 1);
}

#[tokio::test]
async fn an_error_names_what_and_why() {
    let Some(_root) = as_root() else { return };
    let world = World::new(1);
    let node = world.node(1);
    // Somebody else has the network identifier.
    command(
        &node.host,
        "ip link add vxlan9 type vxlan id 4096 dstport 4789 local 192.0.2.1",
    );
    let desired = Arc::new(world.desired(1, &[], &[]));
    node.reconciler().apply(desired, 1);
    let mut applied = node.reconciler().applied();
    let failed = applied.wait_for(|applied| !applied.failures.is_empty());
    let failed = tokio::time::timeout(DEADLINE, failed)
        .await
        .unwrap()
        .unwrap()
        .clone();
    let text = crate::error_text(failed.failures[0].as_ref());
    assert!(
        text.starts_with("create vxlan device vx0 with vni 4096 in ingress"),
        "{text}"
    );
    assert!(text.contains("exists"), "{text}");
    assert_eq!(failed.generation, None);
    let checked = node.reconciler().check().await.unwrap();
    let lines = checked.differences.iter();
    let vxlan = lines.filter(|line| line.text.starts_with("vxlan device vx0 is missing"));
    let texts: Vec<_> = vxlan.map(|line| line.text.as_str()).collect();
    assert_eq!(texts.len(), 1, "{:#?}", checked.differences);
    assert!(
        texts[0].contains("putting it right has failed") && texts[0].contains("exists"),
        "{texts:?}"
    );
    // It heals by itself once the other is gone.
    command(&node.host, "ip link del vxlan9");
    let healed = applied.wait_for(|applied| applied.generation == Some(1));
    tokio::time::timeout(DEADLINE, healed)
        .await
        .unwrap()
        .unwrap();
}

/// A client outside the swarm reaches a task on node 2 by node 1, and the task sees the client.
#[tokio::test]
async fn a_published_port_answers_on_every_node_and_the_task_sees_the_client() {
    let Some(_root) = as_root() else { return };
    let (world, first, second) = two_nodes().await;
    if !world.has_ipvs() {
        return;
    }
    for (task, node) in [(&first, 1), (&second, 2)] {
        let listener = listen_both(&world.node(node).task(task), 80);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let peer = stream.peer_addr();
                let peer = peer.map(|peer| peer.ip().to_canonical().to_string());
                let _ = stream.write_all(peer.unwrap_or_default().as_bytes());
            }
        });
    }
    for (entry, client) in [
        ("192.0.2.1:8080", "192.0.2.100"),
        ("192.0.2.2:8080", "192.0.2.100"),
        ("[2001:db8::1]:8080", "2001:db8::100"),
        ("[2001:db8::2]:8080", "2001:db8::100"),
    ] {
        // Twice: round robin, so that both tasks answer.
        for _ in 0..2 {
            let mut stream = connect(&world.client, entry.parse().unwrap()).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut seen = String::new();
            stream.read_to_string(&mut seen).unwrap();
            assert_eq!(seen, client);
        }
    }
    // Withdrawn, it refuses at once.
    world.place(&[(1, 1), (2, 2)], &[]).await;
    let refused = connect(&world.client, "192.0.2.1:8080".parse().unwrap());
    assert!(refused.is_err(), "{refused:?}");

    // A table cleared by hand comes back.
    world.place(&[(1, 1), (2, 2)], &[(8080, &[1, 2])]).await;
    if try_command(&world.node(1).ingress(), "ipvsadm -C").is_some() {
        let back = within(DEADLINE, || {
            connect(&world.client, "192.0.2.1:8080".parse().unwrap()).is_ok()
        });
        assert!(back, "the table did not come back");
    }
}
