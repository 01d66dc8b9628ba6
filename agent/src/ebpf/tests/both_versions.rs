//! What the programs say to packets of both IP versions that are more than an IPv4 header and ports:
//! IPv6, extension headers, fragments, ICMP errors. By `BPF_PROG_TEST_RUN`, as in `verdicts`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::frame::{ACK, RST, SYN};
use super::packet::{ICMP, ICMP6, Packet};
use super::sandbox::{ifindex, run, sandboxed, sysctl};
use super::verdicts::{DROP, MAC_A, NEXT, REDIRECT, counter, run_on};
use crate::ebpf::{Config, Counter, Mesh, Program, Protocol, PublishedKey, PublishedValue};

/// The parties to a conversation in one IP version.
#[derive(Clone, Copy, Debug)]
struct Parties {
    client: IpAddr,
    router: IpAddr,
    node: IpAddr,
    task: IpAddr,
    /// The error "packet too big" or what stands for it.
    too_big: u8,
}

fn both() -> [Parties; 2] {
    let of = |client: &str, router: &str, node: &str, task: &str, too_big| Parties {
        client: client.parse().unwrap(),
        router: router.parse().unwrap(),
        node: node.parse().unwrap(),
        task: task.parse().unwrap(),
        too_big,
    };
    [
        of("203.0.113.9", "198.51.100.1", "192.0.2.10", "10.255.0.9", 3),
        of(
            "2001:db8:9::9",
            "2001:db8:5::1",
            "2001:db8::10",
            "fd00:a::aff:9",
            2,
        ),
    ]
}

/// The verdict on a packet that must come out as it went in.
fn verdict(mesh: &Mesh, program: Program, packet: &Packet) -> i32 {
    let before = packet.bytes();
    let (verdict, after) = run_on(mesh, program, &before, ifindex("lo"));
    assert_eq!(before, after, "{program} changed the packet");
    verdict
}

fn publish(mesh: &mut Mesh) {
    let value = PublishedValue {
        service: 7,
        flags: 0,
    };
    let entries = both().into_iter().flat_map(|parties| {
        [Protocol::Tcp, Protocol::Udp]
            .map(|protocol| (PublishedKey::new(parties.node, 8080, protocol), value))
    });
    mesh.set_published(&entries.collect()).unwrap();
    mesh.set_config(Config {
        e1h_ifindex: 1,
        uplink_ifindex: 0,
        ..Config::default()
    })
    .unwrap();
}

fn requests(parties: &Parties) -> [Packet; 2] {
    let (from, to) = ((parties.client, 40_000), (parties.node, 8080));
    [Packet::tcp(from, to, SYN), Packet::udp(from, to)]
}

#[test]
fn uplink_takes_published_ports_of_both_ip_versions() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        publish(&mut mesh);
        let uplink = |packet: &Packet| verdict(&mesh, Program::MeshUplink, packet);
        for parties in both() {
            for request in requests(&parties) {
                assert_eq!(uplink(&request), REDIRECT, "{parties:?}");
                let elsewhere = Packet {
                    destination: parties.router,
                    ..request.clone()
                };
                assert_eq!(uplink(&elsewhere), NEXT, "{parties:?}");
            }
            let (from, to) = ((parties.client, 40_000), (parties.node, 8081));
            assert_eq!(uplink(&Packet::udp(from, to)), NEXT, "another port");
            let sctp = Packet {
                protocol: 132,
                ..Packet::udp(from, (parties.node, 8080))
            };
            assert_eq!(uplink(&sctp), NEXT);
        }
        let stats = mesh.service_stats().unwrap();
        assert_eq!(stats[&7].packets, 4);
    });
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// An extension header of that many times eight bytes.
fn extension(kind: u8, eights: u8) -> (u8, Vec<u8>) {
    let mut content = vec![0; usize::from(eights) * 8 - 1];
    content[0] = eights - 1;
    (kind, content)
}

#[test]
fn ports_are_found_behind_a_bounded_number_of_extension_headers() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        publish(&mut mesh);
        let with = |request: &Packet, extensions: &[(u8, Vec<u8>)]| {
            let packet = Packet {
                extensions: extensions.to_vec(),
                ..request.clone()
            };
            verdict(&mesh, Program::MeshUplink, &packet)
        };
        let options = |eights| extension(DESTINATION_OPTIONS, eights);
        let visited = extension(ROUTING, 3);
        let mut on_its_way = visited.clone();
        on_its_way.1[2] = 1;
        for request in requests(&both()[1]) {
            for taken in [
                vec![extension(HOP_BY_HOP, 1)],
                vec![options(1)],
                vec![options(32)],
                vec![visited.clone()],
                vec![extension(HOP_BY_HOP, 1), options(2), visited.clone()],
            ] {
                assert_eq!(with(&request, &taken), REDIRECT, "{taken:?}");
            }
            assert_eq!(with(&request, &[on_its_way.clone()]), NEXT);
            let before = counter(&mesh, Counter::Extensions);
            assert_eq!(with(&request, &vec![options(1); 4]), NEXT);
            assert_eq!(counter(&mesh, Counter::Extensions), before + 1);
            // Encrypted, and nothing after it.
            for kind in [50, 59] {
                assert_eq!(with(&request, &[extension(kind, 2)]), NEXT, "{kind}");
            }
        }
    });
}

#[test]
fn ipv6_cut_short_anywhere_passes_untouched() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        publish(&mut mesh);
        mesh.set_ingress_macs(&BTreeMap::from([(MAC_A, 1)]))
            .unwrap();
        let parties = both()[1];
        let [request, _] = requests(&parties);
        let error = Packet::error(
            parties.router,
            2,
            &Packet::tcp((parties.node, 8080), (parties.client, 1), ACK),
        );
        let plain = Packet {
            source_mac: MAC_A,
            ..request.clone()
        };
        let extended = Packet {
            extensions: vec![extension(HOP_BY_HOP, 2)],
            ..plain.clone()
        };
        let fragment = plain.fragment(9, 0, true);
        for (packet, end) in [
            // Up to the flags of TCP; up to the ports in the packet that the error is about.
            (plain, 14),
            (extended, 14),
            (fragment, 14),
            (error, 4),
        ] {
            let whole = packet.bytes();
            let needed = whole.len() - packet.body.len()
                + match end {
                    14 => 14,
                    _ => 8 + 40 + end,
                };
            for program in Program::ALL {
                for len in 14 + 40..needed {
                    let (verdict, after) = run_on(&mesh, program, &whole[..len], ifindex("lo"));
                    assert_eq!(
                        (verdict, &after[..]),
                        (NEXT, &whole[..len]),
                        "{program}, {len}"
                    );
                }
            }
        }
        assert!(counter(&mesh, Counter::Malformed) > 0);
    });
}

#[test]
fn later_fragments_follow_the_first_one() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        publish(&mut mesh);
        let uplink = |packet: &Packet| verdict(&mesh, Program::MeshUplink, packet);
        for parties in both() {
            for request in requests(&parties) {
                let before = counter(&mesh, Counter::Fragments);
                let later = request.fragment(77, 185, false);
                assert_eq!(uplink(&later), NEXT, "before the first one: {parties:?}");
                assert_eq!(counter(&mesh, Counter::Fragments), before + 1);
                assert_eq!(uplink(&request.fragment(77, 0, true)), REDIRECT);
                assert_eq!(uplink(&request.fragment(77, 92, true)), REDIRECT);
                assert_eq!(uplink(&later), REDIRECT);
                assert_eq!(
                    uplink(&request.fragment(78, 185, false)),
                    NEXT,
                    "another packet's"
                );
                let from_elsewhere = Packet {
                    source: parties.router,
                    ..later.clone()
                };
                assert_eq!(uplink(&from_elsewhere), NEXT);

                // The number is used again, for a packet that is the host's.
                let mut hosts = request.clone();
                hosts.body[2..4].copy_from_slice(&8081_u16.to_be_bytes());
                assert_eq!(uplink(&hosts.fragment(77, 0, true)), NEXT);
                assert_eq!(uplink(&later), NEXT);
            }
        }
    });
}

#[test]
fn errors_about_answers_are_taken_in() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        publish(&mut mesh);
        let uplink = |packet: &Packet| verdict(&mesh, Program::MeshUplink, packet);
        for parties in both() {
            let (from, to) = ((parties.node, 8080), (parties.client, 40_000));
            for answer in [Packet::tcp(from, to, ACK), Packet::udp(from, to)] {
                let error = |kind| Packet::error(parties.router, kind, &answer);
                let (taken, left): (&[u8], &[u8]) = match parties.node {
                    IpAddr::V4(_) => (&[3, 11], &[0, 5, 8, 12]),
                    IpAddr::V6(_) => (&[1, 2, 3], &[4, 128, 135, 136]),
                };
                for kind in taken {
                    assert_eq!(uplink(&error(*kind)), REDIRECT, "{kind} {parties:?}");
                }
                for kind in left {
                    assert_eq!(uplink(&error(*kind)), NEXT, "{kind} {parties:?}");
                }
                let first = answer.fragment(5, 0, true);
                let about = |packet: &Packet| {
                    uplink(&Packet::error(parties.router, parties.too_big, packet))
                };
                assert_eq!(about(&first), REDIRECT, "about a fragment with ports");
                assert_eq!(about(&answer.fragment(5, 100, false)), NEXT);
                let mut others = answer.clone();
                others.body[..2].copy_from_slice(&8081_u16.to_be_bytes());
                assert_eq!(about(&others), NEXT, "about the host's own connection");
                let forged = Packet {
                    destination: parties.router,
                    ..error(parties.too_big)
                };
                assert_eq!(uplink(&forged), NEXT, "sent to somebody else");
            }
        }
    });
}

fn mesh_with_a_flow(
    sandbox: &super::sandbox::Sandbox,
    parties: &Parties,
    request: &Packet,
) -> Mesh {
    let mut mesh = sandbox.load();
    mesh.set_ingress_macs(&BTreeMap::from([(MAC_A, 1)]))
        .unwrap();
    let request = Packet {
        source_mac: MAC_A,
        destination: parties.task,
        ..request.clone()
    };
    assert_eq!(verdict(&mesh, Program::FlowLearn, &request), NEXT);
    mesh
}

/// Where a packet from a task is sent: the ingress node, or nothing when it is left alone.
fn sent_to(mesh: &Mesh, packet: &Packet) -> Option<[u8; 6]> {
    let before = packet.bytes();
    let (verdict, after) = run_on(mesh, Program::FlowReturn, &before, ifindex("lo"));
    assert_eq!(verdict, NEXT);
    assert_eq!(before[6..], after[6..], "more than the destination changed");
    (before[..6] != after[..6]).then(|| after[..6].try_into().unwrap())
}

#[test]
fn answers_of_both_ip_versions_go_back_whole_and_in_fragments() {
    sandboxed(|sandbox| {
        for parties in both() {
            for request in requests(&parties) {
                let mesh = mesh_with_a_flow(sandbox, &parties, &request);
                let (from, to) = ((parties.task, 8080), (parties.client, 40_000));
                let answer = if request.protocol == super::packet::TCP {
                    Packet::tcp(from, to, ACK)
                } else {
                    Packet::udp(from, to)
                };
                assert_eq!(sent_to(&mesh, &answer), Some(MAC_A), "{parties:?}");
                assert_eq!(sent_to(&mesh, &answer.fragment(3, 185, false)), None);
                for (offset, more) in [(0, true), (90, true), (185, false)] {
                    let fragment = answer.fragment(3, offset, more);
                    assert_eq!(
                        sent_to(&mesh, &fragment),
                        Some(MAC_A),
                        "{offset} {parties:?}"
                    );
                }
                let elsewhere = Packet {
                    destination: parties.router,
                    ..answer
                };
                assert_eq!(sent_to(&mesh, &elsewhere), None);
                // The same number for a packet that takes the ordinary way out.
                assert_eq!(sent_to(&mesh, &elsewhere.fragment(3, 0, true)), None);
                assert_eq!(sent_to(&mesh, &elsewhere.fragment(3, 185, false)), None);
            }
        }
    });
}

#[test]
fn a_flow_is_learned_from_a_first_fragment() {
    sandboxed(|sandbox| {
        for parties in both() {
            let [_, request] = requests(&parties);
            let mesh = mesh_with_a_flow(sandbox, &parties, &request.fragment(1, 0, true));
            let answer = Packet::udp((parties.task, 8080), (parties.client, 40_000));
            assert_eq!(sent_to(&mesh, &answer), Some(MAC_A), "{parties:?}");
        }
    });
}

#[test]
fn a_tasks_errors_go_back_to_where_the_request_came_from() {
    sandboxed(|sandbox| {
        for parties in both() {
            for request in requests(&parties) {
                let mesh = mesh_with_a_flow(sandbox, &parties, &request);
                let seen = Packet {
                    destination: parties.task,
                    ..request.clone()
                };
                let error = |kind, about: &Packet| Packet::error(parties.task, kind, about);
                let refused = if parties.task.is_ipv4() { 3 } else { 1 };
                assert_eq!(
                    sent_to(&mesh, &error(refused, &seen)),
                    Some(MAC_A),
                    "{parties:?}"
                );
                assert_eq!(sent_to(&mesh, &error(parties.too_big, &seen)), Some(MAC_A));
                let another = Packet {
                    source: parties.router,
                    ..seen.clone()
                };
                assert_eq!(sent_to(&mesh, &error(refused, &another)), None);
                let protocol = if parties.task.is_ipv4() { ICMP } else { ICMP6 };
                let ping = Packet {
                    protocol,
                    body: vec![if protocol == ICMP { 8 } else { 128 }; 64],
                    ..Packet::udp((parties.task, 0), (parties.client, 0))
                };
                assert_eq!(sent_to(&mesh, &ping), None, "the task's own traffic");
            }
        }
    });
}

#[test]
fn a_reset_over_ipv6_ends_the_flow() {
    sandboxed(|sandbox| {
        let parties = both()[1];
        let [request, _] = requests(&parties);
        let mut mesh = mesh_with_a_flow(sandbox, &parties, &request);
        let other = [0x02, 0x42, 10, 255, 0, 3];
        mesh.set_ingress_macs(&BTreeMap::from([(MAC_A, 1), (other, 2)]))
            .unwrap();
        let reset = Packet::tcp((parties.task, 8080), (parties.client, 40_000), RST);
        assert_eq!(sent_to(&mesh, &reset), Some(MAC_A));
        let again = Packet {
            source_mac: other,
            destination: parties.task,
            ..request
        };
        assert_eq!(verdict(&mesh, Program::FlowLearn, &again), NEXT);
        assert_eq!(sent_to(&mesh, &reset), Some(other));
        assert_eq!(counter(&mesh, Counter::Collisions), 0);
    });
}

#[test]
fn out_sends_ipv6_replies_by_the_route_to_the_client() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        let parties = both()[1];
        run("ip", "link add up0 type veth peer name up0p");
        run("ip", "link set up0 up");
        run("ip", "link set up0p up");
        run("ip", "addr add 2001:db8::10/64 dev up0 nodad");
        let up0 = ifindex("up0");
        let reply = Packet::tcp((parties.node, 8080), (parties.client, 40_000), ACK);
        let out =
            |mesh: &Mesh, packet: &Packet| run_on(mesh, Program::MeshOut, &packet.bytes(), up0).0;
        assert_eq!(out(&mesh, &reply), NEXT, "not a node address yet");
        mesh.set_node_addresses(&BTreeSet::from([parties.node]))
            .unwrap();
        sysctl("net.ipv6.conf.up0.forwarding", "1");
        assert_eq!(out(&mesh, &reply), DROP, "no route and no uplink");
        assert_eq!(counter(&mesh, Counter::OutUnroutable), 1);
        run("ip", "route add ::/0 via fe80::1 dev up0");
        assert_eq!(out(&mesh, &reply), REDIRECT);
        assert_eq!(
            out(&mesh, &reply.fragment(1, 100, false)),
            REDIRECT,
            "any fragment"
        );
        let error = Packet::error(parties.node, 2, &requests(&parties)[0]);
        assert_eq!(out(&mesh, &error), REDIRECT, "an error of the balancer's");
        assert_eq!(counter(&mesh, Counter::OutByUplink), 0);
        let tasks = Packet {
            source: parties.task,
            ..reply.clone()
        };
        assert_eq!(out(&mesh, &tasks), NEXT, "a task's own traffic");

        sysctl("net.ipv6.conf.up0.forwarding", "0");
        mesh.set_config(Config {
            e1h_ifindex: 0,
            uplink_ifindex: up0,
            ..Config::default()
        })
        .unwrap();
        // Once the route is forgotten.
        let deadline = Instant::now() + Duration::from_secs(5);
        while counter(&mesh, Counter::OutByUplink) == 0 {
            assert!(Instant::now() < deadline, "the old route is still used");
            assert_eq!(out(&mesh, &reply), REDIRECT);
        }
    });
}
