//! Segments as data, and on this machine's kernel.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::*;
use crate::network::tests::world::{
    DEADLINE, World, address_of, address6_of, as_root, command, listen_both, task_id, within,
};

#[test]
fn a_checksum_is_that_of_the_rfc() {
    for (source, destination) in [
        ("192.0.2.1", "198.51.100.7"),
        ("fd00::1", "2001:db8::ffff:ffff"),
    ] {
        let (source, destination): (IpAddr, IpAddr) =
            (source.parse().unwrap(), destination.parse().unwrap());
        let segment = syn((source, 40_000), (destination, 8080), 0xdead_beef);
        // Summed with itself in it, nothing is left.
        assert_eq!(checksum(source, destination, &segment), 0);
        assert_eq!(segment[13], SYN);
    }
}

#[test]
fn only_an_answer_to_what_was_asked_is_one() {
    let segment = |flags, acknowledged| Segment {
        source_port: 80,
        destination_port: 40_000,
        acknowledged,
        flags,
    };
    for (flags, acknowledged, answer) in [
        (SYN | ACK, 8, Some(Outcome::Answers)),
        (RST | ACK, 8, Some(Outcome::Refuses)),
        (SYN | ACK, 7, None),
        (SYN, 8, None),
        (ACK, 8, None),
        (RST, 8, None),
        (SYN | RST | ACK, 8, None),
    ] {
        let told = segment(flags, acknowledged).answer_to(7);
        assert_eq!(told, answer, "{flags:#x} {acknowledged}");
    }
    assert_eq!(
        segment(SYN | ACK, 0).answer_to(u32::MAX),
        Some(Outcome::Answers)
    );
}

proptest! {
    #[test]
    fn any_bytes_are_a_segment_or_none(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        prop_assert_eq!(Segment::parse(&bytes).is_some(), bytes.len() >= 14);
    }
}

/// Straight to tasks: the balancer is between only where the kernel has one.
#[tokio::test]
async fn ports_are_asked_across_nodes_and_servers_see_nothing_of_it() {
    let Some(_root) = as_root() else { return };
    let world = World::new(2);
    world.place(&[(1, 1), (2, 2)], &[(8080, &[1, 2])]).await;
    let (here, there) = (task_id(1), task_id(2));
    let server = listen_both(&world.node(2).task(&there), 80);
    server.set_nonblocking(true).unwrap();
    let own: [IpAddr; 2] = [
        "10.255.0.1".parse().unwrap(),
        "fd00:a::aff:1".parse().unwrap(),
    ];
    let targets: Vec<SocketAddr> = [
        (address_of(&there), 80),
        (address6_of(&there), 80),
        // Nobody listens there.
        (address_of(&there), 81),
        (address_of(&here), 80),
        (address6_of(&here), 80),
        // Nobody is there.
        ("10.255.9.9".parse().unwrap(), 80),
    ]
    .map(SocketAddr::from)
    .to_vec();
    let run_dir = &world.node(1).config.run_dir;
    let outcomes = probe(run_dir, &own, &targets).unwrap();
    let (yes, no) = (Some(Outcome::Answers), Some(Outcome::Refuses));
    assert_eq!(outcomes, [yes, yes, no, no, no, Some(Outcome::Silent)]);
    // What began is reset, and the server was never told of it.
    let task = world.node(2).task(&there);
    let half_open = || command(&task, "ss -H -t -n state syn-recv state established");
    assert!(
        within(DEADLINE, || half_open().is_empty()),
        "{}",
        half_open()
    );
    let accepted = server.accept().map(|(_, from)| from);
    assert_eq!(accepted.unwrap_err().kind(), io::ErrorKind::WouldBlock);

    // Without an address of that IP version it cannot be asked.
    let outcomes = probe(run_dir, &own[..1], &targets[..2]).unwrap();
    assert_eq!(outcomes, [yes, None]);
    // Without a namespace nobody can.
    let missing = probe(&run_dir.join("nowhere"), &own, &targets);
    assert!(missing.is_err(), "{missing:?}");
}

#[tokio::test]
async fn a_published_port_is_asked_by_way_of_the_balancer() {
    let Some(_root) = as_root() else { return };
    let world = World::new(2);
    world.place(&[(1, 1), (2, 2)], &[(8080, &[2])]).await;
    if !world.has_ipvs() {
        return;
    }
    let server = listen_both(&world.node(2).task(&task_id(2)), 80);
    server.set_nonblocking(true).unwrap();
    let answering = world.node(1).reconciler().answering().borrow().clone();
    let targets: Vec<SocketAddr> = answering.entries.keys().map(|entry| entry.at).collect();
    let published: Vec<SocketAddr> = ["192.0.2.1:8080", "[2001:db8::1]:8080"]
        .map(|text| text.parse().unwrap())
        .to_vec();
    assert_eq!(targets, published);
    let ask = || {
        let run_dir = &world.node(1).config.run_dir;
        probe(run_dir, &answering.own, &targets).unwrap()
    };
    assert_eq!(ask(), [Some(Outcome::Answers); 2]);
    let accepted = server.accept().map(|(_, from)| from);
    assert_eq!(accepted.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    // Nobody listens any more.
    drop(server);
    assert_eq!(ask(), [Some(Outcome::Refuses); 2]);
    // What is between loses everything.
    let vxlan = "ip link set vx0 down";
    command(&world.node(2).ingress(), vxlan);
    command(&world.node(2).host, "ip link set eth0 down");
    assert_eq!(ask(), [Some(Outcome::Silent); 2]);
}
