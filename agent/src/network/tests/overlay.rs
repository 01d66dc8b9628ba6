//! Networks of users: there while a task is, and nothing from one to another.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::egress::{cannot_connect, seen_as};
use super::snapshot::{differences, settled, snapshot};
use super::world::{
    DEADLINE, IPV4_ALONE, World, as_root, command, connect, hand_over, listen, on_network,
    on_network6, task_id, within,
};
use crate::network::netns::Netns;

/// Tasks 1 and 3 on node 1, 2 and 4 on node 2; 1, 2 and 3 are on network 1, 3 and 4 on network 2.
async fn world() -> World {
    let world = World::new(2);
    world.attach(1, &[1]);
    world.attach(2, &[1]);
    world.attach(3, &[1, 2]);
    world.attach(4, &[2]);
    world.place(&[(1, 1), (2, 2), (3, 1), (4, 2)], &[]).await;
    world
}

fn task(world: &World, number: u8) -> Netns {
    let node = if number % 2 == 1 { 1 } else { 2 };
    world.node(node).task(&task_id(number))
}

fn refuses(from: &Netns, address: IpAddr) {
    let any = match address {
        IpAddr::V4(_) => "0.0.0.0:0",
        IpAddr::V6(_) => "[::]:0",
    };
    let socket = from.run(|| UdpSocket::bind(any)).unwrap().unwrap();
    socket.connect((address, 9)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.send(b"?").unwrap();
    let refused = socket.recv(&mut [0]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{address}");
}

#[tokio::test]
async fn tasks_on_a_users_network_reach_each_other_on_all_nodes() {
    let Some(_root) = as_root() else { return };
    let world = world().await;
    for (network, from, to) in [
        (1, 1, 2),
        (1, 2, 1),
        (1, 1, 3),
        (1, 2, 3),
        (2, 3, 4),
        (2, 4, 3),
    ] {
        let (source, target) = (task(&world, from), task(&world, to));
        let seen = seen_as(&source, &target, on_network(network, to));
        assert_eq!(seen, on_network(network, from));
        let seen = seen_as(&source, &target, on_network6(network, to));
        assert_eq!(seen, on_network6(network, from));
    }
    // The gateway is on every node, with one MAC address, and answers.
    for (number, node) in [(1, 1), (2, 2)] {
        refuses(&task(&world, number), IpAddr::from([10, 0, 1, 1]));
        refuses(&task(&world, number), "fd00:b:1::a00:101".parse().unwrap());
        let overlay = world.node(node).overlay(1).unwrap();
        let bridge = command(&overlay, "ip link show br0");
        assert!(bridge.contains("02:42:0a:00:01:01"), "{bridge}");
    }
    // As much as the underlay carries, and the interfaces in the order of the networks.
    let links = command(&task(&world, 3), "ip -br addr");
    for part in ["eth1", "10.0.1.13/24", "eth2", "10.0.2.13/24"] {
        assert!(links.contains(part), "{part} not in {links}");
    }
    let link = command(&task(&world, 1), "ip link show eth1");
    assert!(link.contains("mtu 1450"), "{link}");
    // The way out is not theirs.
    let route = command(&task(&world, 1), "ip route show default");
    assert!(route.contains("dev eth0"), "{route}");
}

#[tokio::test]
async fn a_users_network_has_ipv6_where_it_was_asked_for() {
    let Some(_root) = as_root() else { return };
    let world = World::new(2);
    world.attach(1, &[1, IPV4_ALONE]);
    world.attach(2, &[1, IPV4_ALONE]);
    let tasks = [(1, 1), (2, 2)];
    world.place(&tasks, &[]).await;
    let (one, two) = (task(&world, 1), task(&world, 2));
    // Each address is who it is from the start, and nobody has to ask where it is.
    let addresses = command(&one, "ip -6 -br addr show dev eth1 scope global");
    assert!(addresses.contains("fd00:b:1::a00:10b/64"), "{addresses}");
    let tentative = command(&one, "ip -6 addr show tentative");
    assert_eq!(tentative, "");
    let overlay = world.node(1).overlay(1).unwrap();
    let neighbours = command(&overlay, "ip -6 neigh show dev br0 nud permanent");
    for line in [
        "fd00:b:1::a00:10b lladdr 02:42:0a:00:01:0b",
        "fd00:b:1::a00:10c lladdr 02:42:0a:00:01:0c",
    ] {
        assert!(neighbours.contains(line), "{line} not in {neighbours}");
    }
    let forwarding = "/proc/sys/net/ipv6/conf/all/forwarding";
    let forwarding = overlay.run(|| std::fs::read_to_string(forwarding));
    assert_eq!(forwarding.unwrap().unwrap().trim(), "0");
    // A datagram as large as the overlay takes: 1450 less IPv6 and UDP headers.
    let bind = |netns: &Netns| {
        let socket = netns.run(|| UdpSocket::bind("[::]:0"));
        let socket = socket.unwrap().unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    };
    let (sender, receiver) = (bind(&one), bind(&two));
    let to = (on_network6(1, 2), receiver.local_addr().unwrap().port());
    sender.send_to(&[1; 1402], to).unwrap();
    assert_eq!(receiver.recv(&mut [0; 2000]).unwrap(), 1402);

    // Network 9 is of IPv4 alone.
    seen_as(&one, &two, on_network(IPV4_ALONE, 2));
    let addresses = command(&one, "ip -6 addr show dev eth2 scope global");
    assert_eq!(addresses, "");

    // A container may do without on this interface alone, and later have it after all.
    let disable = |value| {
        let path = "/proc/sys/net/ipv6/conf/eth1/disable_ipv6";
        one.run(|| std::fs::write(path, value)).unwrap().unwrap();
    };
    disable("1");
    for _ in 0..2 {
        world.place(&tasks, &[]).await;
    }
    assert_eq!(command(&one, "ip -6 addr show dev eth1"), "");
    let applied = world.node(1).reconciler().applied();
    assert!(applied.borrow().failures.is_empty(), "{applied:?}");
    seen_as(&one, &two, on_network(1, 2));
    disable("0");
    world.place(&tasks, &[]).await;
    let seen = seen_as(&two, &one, on_network6(1, 1));
    assert_eq!(seen, on_network6(1, 2));
}

#[tokio::test]
async fn a_users_network_is_on_a_node_only_while_a_task_is() {
    let Some(_root) = as_root() else { return };
    let mut world = world().await;
    let there = |world: &World| {
        [(1, 1), (1, 2), (2, 1), (2, 2)]
            .map(|(node, number)| world.node(node).overlay(number).is_some())
    };
    assert_eq!(there(&world), [true; 4]);
    world.place(&[(1, 1), (2, 2), (4, 2)], &[]).await;
    assert_eq!(there(&world), [true, false, true, true]);
    // At once again: the network identifier is free.
    world.place(&[(1, 1), (2, 2), (3, 1), (4, 2)], &[]).await;
    seen_as(&task(&world, 4), &task(&world, 3), on_network(2, 3));
    // What an earlier agent has left goes as well.
    world.stop(1);
    world.start(1);
    world.place(&[(2, 2), (4, 2)], &[]).await;
    assert_eq!(there(&world), [false, false, true, true]);
    // A task that is only prepared brings its networks along, and takes them with it.
    let node = world.node(1);
    let local = world.local(3);
    node.reconciler()
        .prepare_task(&task_id(3), local)
        .await
        .unwrap();
    assert_eq!(there(&world), [true; 4]);
    node.reconciler().release_task(&task_id(3)).await.unwrap();
    assert_eq!(there(&world), [false, false, true, true]);
    node.reconciler().teardown().await.unwrap();
    let names = std::fs::read_dir(node.config.run_dir.join("netns")).unwrap();
    assert_eq!(names.count(), 0);
}

#[tokio::test]
async fn a_restart_adopts_users_networks_and_a_connection_goes_on() {
    let Some(_root) = as_root() else { return };
    let mut world = world().await;
    let listener = listen(&task(&world, 2), 80);
    let to = SocketAddr::new(on_network(1, 2), 80);
    let mut stream = connect(&task(&world, 1), to).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    let tasks = [&task_id(1), &task_id(3)];
    let whole = settled(world.node(1), &tasks);
    let indexes = |world: &World| command(&world.node(1).overlay(1).unwrap(), "ip -o -br link");
    let before = indexes(&world);
    for number in [1, 2] {
        world.stop(number);
        world.start(number);
    }
    world.place(&[(1, 1), (2, 2), (3, 1), (4, 2)], &[]).await;
    stream.write_all(b"still there?").unwrap();
    accepted.read_exact(&mut [0; 12]).unwrap();
    assert_eq!(indexes(&world), before);
    let left = differences(&whole, &snapshot(world.node(1), &tasks));
    assert!(left.is_empty(), "{left:#?}");
}

#[tokio::test]
async fn links_with_the_same_indexes_elsewhere_are_told_apart() {
    let Some(_root) = as_root() else { return };
    let world = World::new(1);
    world.attach(2, &[1]);
    world.place(&[(1, 1), (2, 1)], &[]).await;
    let node = world.node(1);
    let overlay = node.overlay(1).unwrap();
    let port = format!("t{}", task_id(2).short());
    let index = |netns: &Netns, name: &str| -> u32 {
        let line = command(netns, &format!("ip -o link show {name}"));
        line.split(':').next().unwrap().parse().unwrap()
    };
    // Task 1 gets a link that has the indexes of task 2's, its other end somewhere else.
    let (inner, outer) = (
        index(&node.task(&task_id(2)), "eth1"),
        index(&overlay, &port),
    );
    let elsewhere = Netns::anonymous().unwrap();
    command(
        &elsewhere,
        &format!("ip link add other index {inner} type veth peer name far index {outer}"),
    );
    hand_over(&elsewhere, "other", &node.task(&task_id(1)));
    assert_eq!(index(&node.task(&task_id(1)), "other"), inner);
    for _ in 0..2 {
        world.place(&[(1, 1), (2, 1)], &[]).await;
        assert_eq!(index(&overlay, &port), outer, "the link was made anew");
    }
}

#[tokio::test]
async fn whatever_is_broken_in_a_users_network_is_put_right() {
    let Some(_root) = as_root() else { return };
    let world = world().await;
    let node = world.node(1);
    let tasks = [&task_id(1), &task_id(3)];
    let whole = settled(node, &tasks);
    let port = format!("t{}", task_id(1).short());
    for line in [
        "ip link del vx0",
        "ip link del br0",
        "ip link del PORT",
        "ip link set br0 down",
        "ip link set PORT nomaster",
        "ip link set vx0 mtu 1300",
        "ip addr del 10.0.1.1/24 dev br0",
        "ip addr add 10.0.9.1/24 dev br0",
        "ip route add 10.0.2.0/24 via 10.0.1.13",
        "ip neigh flush dev br0 nud permanent",
        "ip neigh add 10.0.1.99 lladdr 02:00:00:00:00:99 dev br0 nud permanent",
        "bridge fdb del 02:42:0a:00:01:0c dev vx0 self",
        "bridge fdb add 02:42:0a:00:01:63 dev vx0 self dst 192.0.2.99",
        "bridge fdb add 02:42:0a:00:01:63 dev vx0 master static",
        "bridge link set dev vx0 learning on flood on",
        "ip addr del fd00:b:1::a00:101/64 dev br0",
        "ip addr add fd00:b:9::1/64 dev br0 nodad",
        "ip -6 route add fd00:b:2::/64 via fd00:b:1::a00:10b",
        "ip -6 neigh flush dev br0 nud permanent",
        "ip neigh add fd00:b:1::63 lladdr 02:00:00:00:00:99 dev br0 nud permanent",
        "bridge link set dev PORT mcast_flood off",
        "write ipv4/ip_forward 1",
        "write ipv6/conf/all/forwarding 1",
        "write ipv6/conf/all/disable_ipv6 1",
    ] {
        let overlay = node.overlay(1).unwrap();
        match line.strip_prefix("write ") {
            Some(setting) => {
                let (key, value) = setting.split_once(' ').unwrap();
                let path = format!("/proc/sys/net/{key}");
                overlay
                    .run(|| std::fs::write(path, value))
                    .unwrap()
                    .unwrap();
            }
            None => drop(command(&overlay, &line.replace("PORT", &port))),
        }
        let mut left = Vec::new();
        let repaired = within(DEADLINE, || {
            left = differences(&whole, &snapshot(node, &tasks));
            left.is_empty()
        });
        assert!(repaired, "{line} was not put right: {left:#?}");
    }
    seen_as(&task(&world, 2), &task(&world, 1), on_network(1, 1));
    seen_as(&task(&world, 2), &task(&world, 1), on_network6(1, 1));
}

/// Task 1 is on network 1, task 4 on network 2, each with one of its own beside it.
#[tokio::test]
async fn no_task_gets_into_a_network_not_its_own() {
    let Some(_root) = as_root() else { return };
    let world = world().await;
    let from = task(&world, 1);
    // Task 3 is on network 2 on the same node, 4 on the other one.
    for (number, last) in [(3, 13), (4, 14)] {
        let target = task(&world, number);
        let gateways = [
            "via 10.0.1.1 dev eth1",
            "via 10.255.0.1 dev eth0",
            "via 10.255.0.2 dev eth0 onlink",
        ];
        let gateways6 = [
            "via fd00:b:1::a00:101 dev eth1",
            "via fd00:a::aff:1 dev eth0",
            "via fd00:a::aff:2 dev eth0 onlink",
        ];
        for (address, gateways) in [
            (on_network(2, number), gateways),
            (on_network6(2, number), gateways6),
        ] {
            cannot_connect(&from, &target, address);
            for route in gateways.into_iter().chain(["dev eth0", "dev eth1"]) {
                command(&from, &format!("ip route replace {address} {route}"));
                // As if somebody had answered who it is.
                for device in ["eth0", "eth1"] {
                    let mac = format!("02:42:0a:00:02:{last:02x}");
                    let neighbour = format!("{address} lladdr {mac} dev {device}");
                    command(
                        &from,
                        &format!("ip neigh replace {neighbour} nud permanent"),
                    );
                }
                cannot_connect(&from, &target, address);
            }
            command(&from, &format!("ip route del {address}"));
        }
    }
    seen_as(&task(&world, 3), &task(&world, 4), on_network(2, 4));
    seen_as(&task(&world, 3), &task(&world, 4), on_network6(2, 4));
}

/// Who is not answered may still be heard.
#[tokio::test]
async fn nothing_gets_into_another_network_whoever_it_says_it_is_from() {
    let Some(_root) = as_root() else { return };
    let world = world().await;
    let from = task(&world, 1);
    let send = |source: [u8; 4], to: IpAddr| {
        let socket = from.run(|| UdpSocket::bind((Ipv4Addr::from(source), 0)));
        // Refused is as well as lost.
        let _ = socket.unwrap().unwrap().send_to(b"boo!", (to, 5353));
    };
    // Addresses of network 2: nobody's, its gateway's, another task's.
    let sources = [[10, 0, 2, 99], [10, 0, 2, 1], [10, 0, 2, 15]];
    for [a, b, c, d] in sources {
        command(&from, &format!("ip addr add {a}.{b}.{c}.{d}/32 dev lo"));
    }
    let mut buffer = [0; 64];
    for number in [3, 4] {
        let address = on_network(2, number);
        let target = task(&world, number);
        let receiver = target.run(|| UdpSocket::bind((address, 5353)));
        let receiver = receiver.unwrap().unwrap();
        for (device, own) in [("eth0", "02:42:0a:ff:01:01"), ("eth1", "02:42:0a:00:01:0b")] {
            let last = 10 + number;
            for (mac, via) in [
                (own, ""),
                // As the gateway, or another task.
                ("02:42:0a:00:02:01", ""),
                ("02:42:0a:00:02:0e", ""),
                (own, "via 10.0.1.1 onlink"),
                (own, "via 10.255.0.2 onlink"),
            ] {
                command(&from, &format!("ip link set {device} address {mac}"));
                command(
                    &from,
                    &format!("ip route replace {address} {via} dev {device}"),
                );
                let theirs = format!("02:42:0a:00:02:{last:02x}");
                command(
                    &from,
                    &format!(
                        "ip neigh replace {address} lladdr {theirs} dev {device} nud permanent"
                    ),
                );
                for source in sources.into_iter().chain([[0; 4]]) {
                    send(source, address);
                }
            }
            command(&from, &format!("ip link set {device} address {own}"));
        }
        receiver
            .set_read_timeout(Some(Duration::from_millis(700)))
            .unwrap();
        assert!(receiver.recv(&mut buffer).is_err(), "task {number} heard");
        // Who is on the network is heard.
        let friend = task(&world, 7 - number);
        let friend = friend
            .run(|| UdpSocket::bind("0.0.0.0:0"))
            .unwrap()
            .unwrap();
        receiver.set_read_timeout(Some(DEADLINE)).unwrap();
        friend.send_to(b"hello", (address, 5353)).unwrap();
        assert_eq!(receiver.recv(&mut buffer).unwrap(), 5);
    }
}

/// A task with a way out could make the packets of another network itself.
#[tokio::test]
async fn no_task_sends_vxlan() {
    let Some(_root) = as_root() else { return };
    let world = world().await;
    let (inside, outside) = (task(&world, 1), &world.client);
    let target = task(&world, 4);
    let receiver = target
        .run(|| UdpSocket::bind(("0.0.0.0", 5353)))
        .unwrap()
        .unwrap();
    let packet = vxlan_packet(
        4098,
        Ipv4Addr::new(10, 0, 2, 99),
        Ipv4Addr::new(10, 0, 2, 14),
    );
    let send = |from: &Netns, to: [u8; 4]| {
        let socket = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        // Refused is as well as lost.
        let _ = socket.send_to(&packet, (Ipv4Addr::from(to), 4789));
    };
    let mut buffer = [0; 64];
    receiver
        .set_read_timeout(Some(Duration::from_millis(700)))
        .unwrap();
    for to in [[192, 0, 2, 2], [169, 254, 0, 2], [169, 254, 0, 1]] {
        send(&inside, to);
        assert!(receiver.recv(&mut buffer).is_err(), "by {to:?}");
    }
    // The packet is as it has to be: from somewhere that we have no hand in, it arrives.
    receiver.set_read_timeout(Some(DEADLINE)).unwrap();
    send(outside, [192, 0, 2, 2]);
    assert_eq!(receiver.recv(&mut buffer).unwrap(), 4);
}

/// A datagram of four bytes to port 5353, as VXLAN carries it (RFC 7348).
fn vxlan_packet(vni: u32, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mac = |address: Ipv4Addr| [&[0x02, 0x42][..], &address.octets()].concat();
    let mut ip = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend(from.octets());
    ip.extend(to.octets());
    let sum: u32 = ip
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&(!folded).to_be_bytes());
    let [_, a, b, c] = vni.to_be_bytes();
    [
        &[8, 0, 0, 0, a, b, c, 0][..],
        &mac(to),
        &mac(from),
        &[8, 0],
        &ip,
        // Ports, length, no checksum.
        &[0x14, 0xe9, 0x14, 0xe9, 0, 12, 0, 0],
        b"boo!",
    ]
    .concat()
}
