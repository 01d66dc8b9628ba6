//! The way out of the ingress network, and the ways in that there are not.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use swarm_model::TaskId;

use super::world::{
    DEADLINE, World, address_of, address6_of, as_root, command, connect, hand_over, listen,
    listen_both, local, task_id, within,
};
use crate::network::desired::LocalTask;
use crate::network::netns::Netns;

/// The client, which stands for the outside.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100);

/// A node's address outside.
fn node6(number: u8) -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()])
}

fn setting(netns: &Netns, key: &str) -> String {
    let path = format!("/proc/sys/net/{key}");
    let value = netns.run(|| std::fs::read_to_string(path)).unwrap();
    value.unwrap().trim().to_owned()
}

fn set(netns: &Netns, key: &str, value: &str) {
    let path = format!("/proc/sys/net/{key}");
    netns.run(|| std::fs::write(path, value)).unwrap().unwrap();
}

/// How long something is waited for that must not happen.
const REFUSAL: Duration = Duration::from_millis(700);

/// A port that no test has used: a listener lives on for a moment in a process that is just being
/// started.
fn fresh_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(2000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Connects and returns as whom the other side sees that.
pub(super) fn seen_as(from: &Netns, to: &Netns, address: IpAddr) -> IpAddr {
    let address = SocketAddr::new(address, fresh_port());
    let listener = listen_both(to, address.port());
    let mut stream = connect(from, address).unwrap();
    let (mut accepted, peer) = listener.accept().unwrap();
    stream.write_all(b"there").unwrap();
    accepted.read_exact(&mut [0; 5]).unwrap();
    accepted.write_all(b"and back").unwrap();
    drop(accepted);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "and back");
    peer.ip().to_canonical()
}

pub(super) fn cannot_connect(from: &Netns, to: &Netns, address: IpAddr) {
    let address = SocketAddr::new(address, fresh_port());
    let _listener = listen_both(to, address.port());
    let outcome = from
        .run(|| TcpStream::connect_timeout(&address, REFUSAL))
        .unwrap();
    assert!(outcome.is_err(), "{address} was reached");
}

async fn two_nodes() -> (World, TaskId, TaskId) {
    let world = World::new(2);
    world.place(&[(1, 1), (2, 2)], &[]).await;
    (world, task_id(1), task_id(2))
}

#[tokio::test]
async fn a_task_reaches_the_outside_in_its_hosts_name() {
    let Some(_root) = as_root() else { return };
    let (world, first, second) = two_nodes().await;
    for (node, task) in [(1_u8, &first), (2, &second)] {
        let from = world.node(node.into()).task(task);
        let seen = seen_as(&from, &world.client, OUTSIDE.into());
        assert_eq!(seen, IpAddr::from([192, 0, 2, node]));
        let seen = seen_as(&from, &world.client, OUTSIDE6.into());
        assert_eq!(seen, node6(node));
    }
    // The tables may go; the connections do not.
    let from = world.node(1).task(&first);
    let listener = listen_both(&world.client, 81);
    let mut stream = connect(&from, (OUTSIDE, 81).into()).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    let mut stream6 = connect(&from, (OUTSIDE6, 81).into()).unwrap();
    let (mut accepted6, _) = listener.accept().unwrap();
    command(&world.node(1).host, "nft flush ruleset");
    let rules = |text: &str| command(&world.node(1).host, "nft list ruleset").contains(text);
    assert!(within(DEADLINE, || rules("masquerade")), "not put right");
    stream.write_all(b"x").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    stream6.write_all(b"x").unwrap();
    accepted6.read_exact(&mut [0]).unwrap();
}

#[tokio::test]
async fn a_host_that_forwards_ipv6_for_tasks_alone_is_no_router_and_hears_routers() {
    let Some(_root) = as_root() else { return };
    let world = World::new(1);
    let host = &world.node(1).host;
    assert_eq!(setting(host, "ipv6/conf/all/forwarding"), "0");
    assert_eq!(setting(host, "ipv6/conf/eth0/accept_ra"), "1");
    world.place(&[(1, 1)], &[]).await;
    let task = world.node(1).task(&task_id(1));
    assert_eq!(setting(host, "ipv6/conf/eth0/accept_ra"), "2");
    assert_eq!(setting(host, "ipv6/conf/all/forwarding"), "1");

    // Nobody gets in, by whatever way.
    command(&world.client, "ip route add fd00:a::/64 via 2001:db8::1");
    cannot_connect(&world.client, &task, address6_of(&task_id(1)));
    // Another network of the host's: tasks get there, others do not.
    let behind = Netns::anonymous().unwrap();
    command(host, "ip link add eth9 type veth peer name far");
    hand_over(host, "far", &behind);
    command(host, "ip addr add 2001:db8:9::1/64 dev eth9 nodad");
    command(host, "ip link set eth9 up");
    command(&behind, "ip addr add 2001:db8:9::2/64 dev far nodad");
    command(&behind, "ip link set far up");
    command(&behind, "ip route add default via 2001:db8:9::1");
    command(
        &world.client,
        "ip route add 2001:db8:9::/64 via 2001:db8::1",
    );
    let far: IpAddr = "2001:db8:9::2".parse().unwrap();
    seen_as(host, &behind, far);
    let there = seen_as(&task, &behind, far);
    assert_eq!(there, "2001:db8:9::1".parse::<IpAddr>().unwrap());
    cannot_connect(&world.client, &behind, far);

    // Its owner makes it one: by what is set already.
    set(host, "ipv6/conf/all/forwarding", "1");
    let listener = listen_both(&behind, 80);
    let through = within(DEADLINE, || {
        let connect = || TcpStream::connect_timeout(&(far, 80).into(), REFUSAL);
        world.client.run(connect).unwrap().is_ok()
    });
    assert!(through, "the host's own forwarding was taken away");
    drop(listener);
    cannot_connect(&world.client, &task, address6_of(&task_id(1)));
    let reconciler = world.node(1).reconciler();
    reconciler.teardown().await.unwrap();
    assert_eq!(setting(host, "ipv6/conf/all/forwarding"), "1");
}

#[tokio::test]
async fn connection_tracking_sees_what_goes_out_and_nothing_of_the_overlay() {
    let Some(_root) = as_root() else { return };
    let (world, first, second) = two_nodes().await;
    world.place(&[(1, 1), (2, 2)], &[(8080, &[2])]).await;
    let (one, two) = (world.node(1).task(&first), world.node(2).task(&second));
    let listener = listen(&two, 80);
    let _connected = connect(&one, (address_of(&second), 80).into()).unwrap();
    listener.accept().unwrap();
    seen_as(&one, &world.client, OUTSIDE.into());
    let host = &world.node(1).host;
    let tracked = host
        .run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"))
        .unwrap()
        .unwrap();
    assert!(tracked.contains("dst=192.0.2.100"), "{tracked}");
    assert!(!tracked.contains("dport=4789"), "{tracked}");
}

#[tokio::test]
async fn the_host_talks_to_tasks_of_all_nodes_by_an_address_of_its_own() {
    let Some(_root) = as_root() else { return };
    let (world, first, second) = two_nodes().await;
    for node in [1_u8, 2] {
        for (at, task) in [(1, &first), (2, &second)] {
            let host = &world.node(node.into()).host;
            let to = address_of(task);
            let seen = seen_as(host, &world.node(at).task(task), to);
            assert_eq!(seen, IpAddr::from([169, 254, 0, node]));
            // Nor do errors go astray: nobody listens there.
            let socket = host.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
            socket.connect((address_of(task), 9)).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket.send(b"?").unwrap();
            let refused = socket.recv(&mut [0]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        }
    }
    let route = command(&world.node(1).host, "ip route get 10.255.1.2");
    assert!(route.contains("via 169.254.255.2 dev sw-e1h"), "{route}");
}

#[tokio::test]
async fn a_task_without_egress_stays_inside_and_can_be_talked_to() {
    let Some(_root) = as_root() else { return };
    let world = World::new(2);
    world.place(&[(1, 1)], &[]).await;
    let node = world.node(1);
    let inside = task_id(3);
    let connected = LocalTask {
        egress: false,
        ..local(&inside)
    };
    let reconciler = node.reconciler();
    reconciler.prepare_task(&inside, connected).await.unwrap();
    let netns = node.task(&inside);
    cannot_connect(&netns, &world.client, OUTSIDE.into());
    cannot_connect(&netns, &world.client, OUTSIDE6.into());
    // Not even to its own host, nor in the name of one that may.
    let host_address = Ipv4Addr::new(169, 254, 0, 1);
    cannot_connect(&netns, &node.host, host_address.into());
    let to = address_of(&inside);
    let seen = seen_as(&node.host, &netns, to);
    assert_eq!(seen, IpAddr::V4(host_address));
    // By another node there is no way either.
    command(
        &netns,
        "ip route replace default via 10.255.0.2 dev eth0 onlink",
    );
    cannot_connect(&netns, &world.client, OUTSIDE.into());
    command(
        &netns,
        "ip -6 route replace default via fd00:a::aff:2 dev eth0 onlink",
    );
    cannot_connect(&netns, &world.client, OUTSIDE6.into());

    // The same task with egress.
    reconciler
        .prepare_task(&inside, local(&inside))
        .await
        .unwrap();
    let seen = seen_as(&netns, &world.client, OUTSIDE.into());
    assert_eq!(seen, IpAddr::from([192, 0, 2, 1]));
    let seen = seen_as(&netns, &world.client, OUTSIDE6.into());
    assert_eq!(seen, node6(1));
}

#[tokio::test]
async fn the_outside_finds_no_way_in_and_the_host_becomes_no_router() {
    let Some(_root) = as_root() else { return };
    let (world, first, _second) = two_nodes().await;
    let host = &world.node(1).host;
    command(&world.client, "ip route add 10.255.0.0/16 via 192.0.2.1");
    let task = world.node(1).task(&first);
    cannot_connect(&world.client, &task, address_of(&first));

    // Another network of the host's.
    let behind = Netns::anonymous().unwrap();
    command(host, "ip link add eth9 type veth peer name far");
    hand_over(host, "far", &behind);
    command(host, "ip addr add 198.51.100.1/24 dev eth9");
    command(host, "ip link set eth9 up");
    command(&behind, "ip addr add 198.51.100.2/24 dev far");
    command(&behind, "ip link set far up");
    command(&behind, "ip route add default via 198.51.100.1");
    command(&world.client, "ip route add 198.51.100.0/24 via 192.0.2.1");
    let forwards = |name: &str, value: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/forwarding");
        let read = || {
            host.run(|| std::fs::read_to_string(&path))
                .unwrap()
                .unwrap()
        };
        assert!(within(DEADLINE, || read().trim() == value), "{name}");
    };
    forwards("eth9", "1");
    let address = IpAddr::from([198, 51, 100, 2]);
    cannot_connect(&world.client, &behind, address);
    // Tasks do get there.
    assert_eq!(
        seen_as(&task, &behind, address),
        IpAddr::from([198, 51, 100, 1])
    );

    // A router by its owner's will is left to be one.
    host.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))
        .unwrap()
        .unwrap();
    let listener = listen(&behind, 80);
    let address = SocketAddr::new(address, 80);
    let through = within(DEADLINE, || {
        let connect = || TcpStream::connect_timeout(&address, REFUSAL);
        world.client.run(connect).unwrap().is_ok()
    });
    assert!(through, "the host's own forwarding was taken away");
    drop(listener);
    cannot_connect(&world.client, &task, address_of(&first));
}

#[tokio::test]
async fn an_answer_that_is_too_big_for_the_overlay_is_told_so() {
    let Some(_root) = as_root() else { return };
    let (world, first, _second) = two_nodes().await;
    let bind = |netns: &Netns, port: u16| {
        let socket = netns.run(|| UdpSocket::bind(("::", port)));
        let socket = socket.unwrap().unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    };
    let inside = bind(&world.node(1).task(&first), 0);
    let outside = bind(&world.client, 5353);
    let mut buffer = [0; 2000];
    // As much as the wire takes, less headers. Sockets forbid fragmentation until they know better.
    for (to, size, node) in [
        (OUTSIDE.to_ipv6_mapped(), 1472, "192.0.2.1"),
        (OUTSIDE6, 1452, "2001:db8::1"),
    ] {
        inside.send_to(b"ask", (to, 5353)).unwrap();
        let (_, from) = outside.recv_from(&mut buffer).unwrap();
        let learned = within(DEADLINE, || {
            let _ = outside.send_to(&vec![1; size], from);
            command(&world.client, &format!("ip route get {node}")).contains("mtu 1450")
        });
        assert!(learned, "nobody said to {node} that it was too big");
        outside.send_to(&vec![2; size], from).unwrap();
        let arrived = within(DEADLINE, || {
            inside.recv(&mut buffer).unwrap() == size && buffer[0] == 2
        });
        assert!(arrived);
    }
}

#[tokio::test]
async fn teardown_leaves_no_table_and_no_forwarding() {
    let Some(_root) = as_root() else { return };
    let world = World::new(1);
    let node = world.node(1);
    let forwarding = || {
        let read = || std::fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/forwarding");
        node.host.run(read).unwrap().unwrap()
    };
    let before = forwarding();
    let before6 = setting(&node.host, "ipv6/conf/all/forwarding");
    command(&node.host, "nft add table inet other");
    world.place(&[(1, 1)], &[]).await;
    assert_eq!(forwarding().trim(), "1");
    node.reconciler().teardown().await.unwrap();
    assert_eq!(forwarding(), before);
    assert_eq!(setting(&node.host, "ipv6/conf/all/forwarding"), before6);
    let tables = command(&node.host, "nft list tables");
    assert_eq!(tables.trim(), "table inet other");
}
