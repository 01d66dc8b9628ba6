//! Tasks on the ingress network reach published targets of each other and nothing else.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use super::world::{
    DEADLINE, World, address_of, address6_of, as_root, command, connect, listen_both, task_id,
    within,
};
use crate::network::netns::Netns;

/// How long something is waited for that must not happen.
const REFUSAL: Duration = Duration::from_millis(700);

fn is_closed(from: &Netns, to: SocketAddr) {
    let outcome = from
        .run(|| TcpStream::connect_timeout(&to, REFUSAL))
        .unwrap();
    assert!(outcome.is_err(), "{to} was reached");
}

#[tokio::test]
async fn only_published_targets_of_other_tasks_are_reached() {
    let Some(_root) = as_root() else { return };
    let world = World::new(2);
    world
        .place(&[(1, 1), (2, 1), (3, 2)], &[(8080, &[2, 3])])
        .await;
    let attacker = world.node(1).task(&task_id(1));
    for (node, number) in [(1, 2), (2, 3)] {
        let task = task_id(number);
        let netns = world.node(node).task(&task);
        let (open, _closed) = (listen_both(&netns, 80), listen_both(&netns, 81));
        // Over IPv6 the two find each other by neighbour discovery, which isolation lets through.
        for address in [address_of(&task), address6_of(&task)] {
            connect(&attacker, (address, 80).into()).unwrap();
            open.accept().unwrap();
            is_closed(&attacker, (address, 81).into());
        }
        // The host is no task: it may look.
        connect(&world.node(1).host, (address_of(&task), 81).into()).unwrap();
    }
    // No longer published, it is closed.
    world.place(&[(1, 1), (2, 1), (3, 2)], &[]).await;
    let netns = world.node(1).task(&task_id(2));
    let _open = listen_both(&netns, 82);
    for address in [address_of(&task_id(2)), address6_of(&task_id(2))] {
        is_closed(&attacker, (address, 82).into());
    }
}

#[tokio::test]
async fn a_task_is_not_heard_under_a_false_name() {
    let Some(_root) = as_root() else { return };
    let world = World::new(2);
    world
        .place(&[(1, 1), (2, 1), (3, 2)], &[(8080, &[2, 3])])
        .await;
    let attacker = world.node(1).task(&task_id(1));
    let own = "02:42:0a:ff:01:01";
    let forged: [IpAddr; 3] = [
        // Nobody, for the receiver would be the sender; an ingress node, a client.
        [10, 255, 1, 4].into(),
        [10, 255, 0, 2].into(),
        [203, 0, 113, 9].into(),
    ];
    for address in forged {
        command(&attacker, &format!("ip addr add {address}/32 dev lo"));
    }
    for (node, number) in [(1, 2), (2, 3)] {
        let address = address_of(&task_id(number));
        let netns = world.node(node).task(&task_id(number));
        let bind = |port| {
            let receiver = netns.run(|| UdpSocket::bind(("0.0.0.0", port)));
            receiver.unwrap().unwrap()
        };
        let (open, closed) = (bind(80), bind(81));
        let mac = format!("02:42:0a:ff:01:{number:02x}");
        command(
            &attacker,
            &format!("ip neigh replace {address} lladdr {mac} dev eth0 nud permanent"),
        );
        let send = |source: IpAddr, port| {
            // Refused is as well as lost, as is having no address for a moment.
            if let Ok(socket) = attacker.run(|| UdpSocket::bind((source, 0))).unwrap() {
                let _ = socket.send_to(b"boo!", (address, port));
            }
        };
        for mac in [
            own,
            "02:42:0a:ff:00:01",
            "02:42:0a:ff:00:02",
            "02:42:0a:ff:01:03",
        ] {
            command(&attacker, &format!("ip link set eth0 address {mac}"));
            for source in forged {
                send(source, 80);
                send(source, 81);
            }
            if mac != own {
                send(address_of(&task_id(1)), 80);
            }
        }
        command(&attacker, &format!("ip link set eth0 address {own}"));
        for receiver in [&open, &closed] {
            receiver.set_read_timeout(Some(REFUSAL)).unwrap();
            assert!(receiver.recv(&mut [0; 64]).is_err(), "task {number} heard");
        }
        // Under its own name it is, once its interface is as it was.
        let interval = Some(Duration::from_millis(100));
        open.set_read_timeout(interval).unwrap();
        let heard = within(DEADLINE, || {
            send(address_of(&task_id(1)), 80);
            open.recv(&mut [0; 64]).is_ok()
        });
        assert!(heard, "task {number} does not hear");
    }
}
