//! What each program says to made-up packets, by `BPF_PROG_TEST_RUN`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use aya::programs::{TestRun as _, TestRunOptions};

use super::frame::{ACK, CLIENT, Frame, NODE, RST, SYN, TASK};
use super::sandbox::{ifindex, run, sandboxed, sysctl};
use crate::ebpf::bench::stay_on_one_processor;
use crate::ebpf::{
    Changed, Config, Counter, FlowKey, Mesh, Program, Protocol, PublishedKey, PublishedValue,
    ServiceStats, SourceKey, published_flag,
};

pub(super) const NEXT: i32 = -1;
pub(super) const DROP: i32 = 2;
pub(super) const REDIRECT: i32 = 7;

pub(super) const MAC_A: [u8; 6] = [0x02, 0x42, 10, 255, 0, 2];
const MAC_B: [u8; 6] = [0x02, 0x42, 10, 255, 0, 3];

/// Verdict, and the packet afterwards. `interface` plays the one the packet is on.
pub(crate) fn run_on(
    mesh: &Mesh,
    program: Program,
    frame: &[u8],
    interface: u32,
) -> (i32, Vec<u8>) {
    // `__sk_buff::ifindex` is the 11th word of the context (linux/bpf.h).
    let mut context = [0_u8; 192];
    context[40..44].copy_from_slice(&interface.to_ne_bytes());
    let mut output = vec![0; frame.len() + 256];
    let result = mesh
        .classifier(program)
        .unwrap()
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut output),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        })
        .unwrap();
    output.truncate(result.data_size_out as usize);
    (result.return_value.cast_signed(), output)
}

fn verdict(mesh: &Mesh, program: Program, frame: &Frame) -> i32 {
    let frame = frame.bytes();
    let (verdict, after) = run_on(mesh, program, &frame, ifindex("lo"));
    assert_eq!(frame, after, "{program} changed the packet");
    verdict
}

pub(super) fn counter(mesh: &Mesh, counter: Counter) -> u64 {
    mesh.counters().unwrap()[&counter]
}

fn publish(mesh: &mut Mesh) {
    let value = PublishedValue {
        service: 7,
        flags: 0,
    };
    let key = |protocol| PublishedKey::new(NODE.into(), 8080, protocol);
    let both = BTreeMap::from([(key(Protocol::Tcp), value), (key(Protocol::Udp), value)]);
    mesh.set_published(&both).unwrap();
    mesh.set_config(Config {
        e1h_ifindex: 1,
        uplink_ifindex: 0,
        ..Config::default()
    })
    .unwrap();
}

fn to_node() -> Frame {
    Frame::tcp((CLIENT, 40_000), (NODE, 8080))
}

#[test]
fn uplink_takes_published_ports_and_nothing_else() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        let uplink = |mesh: &Mesh, frame: &Frame| verdict(mesh, Program::MeshUplink, frame);
        assert_eq!(uplink(&mesh, &to_node()), NEXT, "nothing is published yet");

        publish(&mut mesh);
        assert_eq!(uplink(&mesh, &to_node()), REDIRECT);
        assert_eq!(
            uplink(&mesh, &Frame::udp((CLIENT, 1), (NODE, 8080))),
            REDIRECT
        );

        assert_eq!(
            uplink(
                &mesh,
                &Frame {
                    destination_port: 8081,
                    ..to_node()
                }
            ),
            NEXT
        );
        assert_eq!(
            uplink(
                &mesh,
                &Frame {
                    destination: CLIENT,
                    ..to_node()
                }
            ),
            NEXT
        );
        let mirrored = Frame::tcp((NODE, 8080), (CLIENT, 40_000));
        assert_eq!(
            uplink(&mesh, &mirrored),
            NEXT,
            "source and destination mixed up"
        );
        const SCTP: u8 = 132;
        assert_eq!(
            uplink(
                &mesh,
                &Frame {
                    protocol: SCTP,
                    ..to_node()
                }
            ),
            NEXT
        );
        const IPV6: u16 = 0x86dd;
        assert_eq!(
            uplink(
                &mesh,
                &Frame {
                    ether_type: IPV6,
                    ..to_node()
                }
            ),
            NEXT
        );

        mesh.set_published(&BTreeMap::new()).unwrap();
        assert_eq!(uplink(&mesh, &to_node()), NEXT, "no longer published");
    });
}

#[test]
fn uplink_takes_a_published_sctp_port() {
    const SCTP: u8 = 132;
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        publish(&mut mesh);
        let frame = Frame {
            protocol: SCTP,
            ..to_node()
        };
        assert_eq!(verdict(&mesh, Program::MeshUplink, &frame), NEXT);
        let value = PublishedValue {
            service: 7,
            flags: 0,
        };
        let key = PublishedKey::new(NODE.into(), 8080, Protocol::Sctp);
        mesh.set_published(&BTreeMap::from([(key, value)])).unwrap();
        assert_eq!(verdict(&mesh, Program::MeshUplink, &frame), REDIRECT);
        assert_eq!(verdict(&mesh, Program::MeshUplink, &to_node()), NEXT);
    });
}

#[test]
fn uplink_drops_and_counts_clients_outside_the_source_ranges() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        publish(&mut mesh);
        let key = |protocol| PublishedKey::new(NODE.into(), 8080, protocol);
        let value = |flags| PublishedValue { service: 7, flags };
        let ports = BTreeMap::from([
            (key(Protocol::Tcp), value(published_flag::SOURCES)),
            (key(Protocol::Udp), value(0)),
        ]);
        mesh.set_published(&ports).unwrap();
        let from = |source: [u8; 4]| Frame {
            source: source.into(),
            ..to_node()
        };
        let uplink = |mesh: &Mesh, frame: &Frame| verdict(mesh, Program::MeshUplink, frame);
        assert_eq!(uplink(&mesh, &to_node()), DROP, "nobody is allowed yet");

        let allowed = |net: [u8; 4], length, port, protocol| {
            let (key, bits) = SourceKey::new(port, protocol, net.into(), length);
            (bits, key)
        };
        let everybody_v6 = {
            let (key, bits) = SourceKey::new(
                8080,
                Protocol::Tcp,
                std::net::Ipv6Addr::UNSPECIFIED.into(),
                0,
            );
            (bits, key)
        };
        let sources = BTreeSet::from([
            allowed([203, 0, 113, 8], 30, 8080, Protocol::Tcp),
            // Another port, another protocol, another family: none of them lets anybody in here.
            allowed([0, 0, 0, 0], 0, 8081, Protocol::Tcp),
            allowed([0, 0, 0, 0], 0, 8080, Protocol::Udp),
            everybody_v6,
        ]);
        mesh.set_sources(&sources).unwrap();
        assert_eq!(mesh.set_sources(&sources).unwrap(), Changed::default());
        for (client, expected) in [
            ([203, 0, 113, 8], REDIRECT),
            ([203, 0, 113, 11], REDIRECT),
            ([203, 0, 113, 12], DROP),
            ([10, 0, 0, 1], DROP),
        ] {
            assert_eq!(uplink(&mesh, &from(client)), expected, "{client:?}");
        }
        assert_eq!(counter(&mesh, Counter::SourceRefused), 3);
        let stats = mesh.service_stats().unwrap()[&7];
        assert_eq!(stats.packets, 2);
        let drops = BTreeMap::from([((Counter::SourceRefused, 7), 3)]);
        assert_eq!(mesh.drops().unwrap(), drops, "told of the service");
        // Ports without the flag do not look.
        let udp = Frame::udp(([10, 0, 0, 1].into(), 1), (NODE, 8080));
        assert_eq!(uplink(&mesh, &udp), REDIRECT);

        let changed = mesh.set_sources(&BTreeSet::new()).unwrap();
        assert_eq!((changed.written, changed.removed), (0, 4));
        assert_eq!(uplink(&mesh, &to_node()), DROP);
    });
}

#[test]
fn what_no_task_answers_is_taken_in_to_be_refused_and_counted() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        publish(&mut mesh);
        let key = PublishedKey::new(NODE.into(), 8080, Protocol::Tcp);
        let with = |mesh: &mut Mesh, flags| {
            let value = PublishedValue { service: 7, flags };
            mesh.set_published(&BTreeMap::from([(key, value)])).unwrap();
            verdict(mesh, Program::MeshUplink, &to_node())
        };
        assert_eq!(with(&mut mesh, 0), REDIRECT);
        assert_eq!(mesh.drops().unwrap(), BTreeMap::new());
        assert_eq!(with(&mut mesh, published_flag::NO_TASK), REDIRECT);
        let drops = BTreeMap::from([((Counter::NoTask, 7), 1)]);
        assert_eq!(mesh.drops().unwrap(), drops);
        assert_eq!(counter(&mesh, Counter::NoTask), 1);
        // The index may be another service's next.
        mesh.forget_service(7).unwrap();
        assert_eq!(mesh.drops().unwrap(), BTreeMap::new());
        assert_eq!(mesh.service_stats().unwrap(), BTreeMap::new());
        // Who may not ask is told nothing.
        let both = published_flag::NO_TASK | published_flag::SOURCES;
        assert_eq!(with(&mut mesh, both), DROP);
        assert_eq!(counter(&mesh, Counter::NoTask), 1);
        assert_eq!(mesh.drops().unwrap().len(), 1);
        mesh.set_published(&BTreeMap::new()).unwrap();
        assert_eq!(mesh.drops().unwrap(), BTreeMap::new());
    });
}

#[test]
fn uplink_leaves_traffic_to_the_host_until_configured() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        publish(&mut mesh);
        mesh.set_config(Config::default()).unwrap();
        assert_eq!(verdict(&mesh, Program::MeshUplink, &to_node()), NEXT);
        assert_eq!(counter(&mesh, Counter::UplinkUnconfigured), 1);
        assert_eq!(mesh.service_stats().unwrap(), BTreeMap::new());
    });
}

#[test]
fn uplink_counts_requests_by_service() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        publish(&mut mesh);
        let long = Frame {
            payload: vec![0; 1000],
            ..to_node()
        };
        for frame in [
            &to_node(),
            &long,
            &Frame {
                destination_port: 9,
                ..to_node()
            },
        ] {
            verdict(&mesh, Program::MeshUplink, frame);
        }
        let bytes = (to_node().bytes().len() + long.bytes().len()) as u64;
        let stats = ServiceStats { packets: 2, bytes };
        let stats = BTreeMap::from([(7, stats)]);
        assert_eq!(mesh.service_stats().unwrap(), stats);

        mesh.set_published(&BTreeMap::new()).unwrap();
        assert_eq!(
            mesh.service_stats().unwrap(),
            BTreeMap::new(),
            "a removed service's"
        );
    });
}

#[test]
fn ports_are_found_behind_ip_options() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        publish(&mut mesh);
        for header_words in 5..=15 {
            for frame in [to_node(), Frame::udp((CLIENT, 1), (NODE, 8080))] {
                let frame = Frame {
                    header_words,
                    ..frame
                };
                let verdict = verdict(&mesh, Program::MeshUplink, &frame);
                assert_eq!(verdict, REDIRECT, "{header_words} words");
            }
        }
    });
}

#[test]
fn truncated_and_nonsensical_headers_pass_untouched() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        publish(&mut mesh);
        mesh.set_ingress_macs(&BTreeMap::from([(MAC_A, 1)]))
            .unwrap();
        mesh.set_node_addresses(&BTreeSet::from([IpAddr::from(NODE)]))
            .unwrap();
        let whole = Frame {
            source_mac: MAC_A,
            header_words: 6,
            ..to_node()
        }
        .bytes();
        // From where the kernel no longer refuses to try, to where the ports and flags are whole.
        const IPV4_END: usize = 14 + 20;
        const PORTS_END: usize = 14 + 24 + 16;
        for program in Program::ALL {
            for len in IPV4_END..PORTS_END {
                let (verdict, after) = run_on(&mesh, program, &whole[..len], ifindex("lo"));
                assert_eq!(
                    (verdict, &after[..]),
                    (NEXT, &whole[..len]),
                    "{program}, {len} bytes"
                );
            }
            for header_words in 0..5 {
                let mut frame = whole.clone();
                frame[14] = 0x40 | header_words;
                assert_eq!(
                    run_on(&mesh, program, &frame, ifindex("lo")).0,
                    NEXT,
                    "{program}"
                );
            }
            let mut frame = whole.clone();
            frame[14] = 0x66;
            assert_eq!(
                run_on(&mesh, program, &frame, ifindex("lo")).0,
                NEXT,
                "version 6"
            );
        }
        assert!(counter(&mesh, Counter::Malformed) > 0);
    });
}

/// A veth pair `up0` with the node's address and a route through a gateway.
fn uplink() -> u32 {
    run("ip", "link add up0 type veth peer name up0p");
    run("ip", "link set up0 up");
    run("ip", "link set up0p up");
    run("ip", "addr add 192.0.2.10/24 dev up0");
    sysctl("net.ipv4.ip_forward", "1");
    ifindex("up0")
}

#[test]
fn out_redirects_replies_and_leaves_the_rest_to_the_stack() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        let up0 = uplink();
        run("ip", "route add default via 192.0.2.1");
        let reply = Frame::tcp((NODE, 8080), (CLIENT, 40_000));
        assert_eq!(
            verdict(&mesh, Program::MeshOut, &reply),
            NEXT,
            "not a node address yet"
        );
        mesh.set_node_addresses(&BTreeSet::from([IpAddr::from(NODE)]))
            .unwrap();
        let out = |frame: &Frame| run_on(&mesh, Program::MeshOut, &frame.bytes(), up0).0;
        assert_eq!(out(&reply), REDIRECT);
        assert_eq!(
            out(&Frame {
                fragment_offset: 100,
                ..reply.clone()
            }),
            REDIRECT,
            "any fragment"
        );
        assert_eq!(
            out(&Frame {
                protocol: 1,
                ..reply.clone()
            }),
            REDIRECT,
            "any protocol"
        );
        assert_eq!(
            out(&Frame {
                source: TASK,
                ..reply
            }),
            NEXT,
            "a task's own traffic"
        );
        assert_eq!(counter(&mesh, Counter::OutByUplink), 0);
    });
}

#[test]
fn out_remembers_a_route_for_its_client_and_not_for_long() {
    sandboxed(|sandbox| {
        // Each remembers its own.
        stay_on_one_processor().unwrap();
        let mut mesh = sandbox.load();
        let up0 = uplink();
        mesh.set_node_addresses(&BTreeSet::from([IpAddr::from(NODE)]))
            .unwrap();
        run("ip", &format!("route add {CLIENT} via 192.0.2.1"));
        let out = |client: Ipv4Addr| {
            let reply = Frame::tcp((NODE, 8080), (client, 40_000));
            run_on(&mesh, Program::MeshOut, &reply.bytes(), up0).0
        };
        assert_eq!(out(CLIENT), REDIRECT);
        // More clients than there are places to remember routes in: some share the first one's.
        for client in 0..1_024_u32 {
            let client = Ipv4Addr::from_bits(Ipv4Addr::new(172, 16, 0, 0).to_bits() + client);
            assert_eq!(out(client), DROP, "{client} has no route");
        }
        assert_eq!(out(CLIENT), REDIRECT);

        run("ip", &format!("route replace unreachable {CLIENT}"));
        let deadline = Instant::now() + Duration::from_secs(5);
        while out(CLIENT) == REDIRECT {
            assert!(Instant::now() < deadline, "the old route is still used");
        }
    });
}

#[test]
fn out_without_a_route_takes_the_uplink_or_drops() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        let up0 = uplink();
        mesh.set_node_addresses(&BTreeSet::from([IpAddr::from(NODE)]))
            .unwrap();
        let reply = Frame::tcp((NODE, 8080), (CLIENT, 40_000)).bytes();
        assert_eq!(run_on(&mesh, Program::MeshOut, &reply, up0).0, DROP);
        assert_eq!(counter(&mesh, Counter::OutUnroutable), 1);
        mesh.set_config(Config {
            e1h_ifindex: 0,
            uplink_ifindex: up0,
            ..Config::default()
        })
        .unwrap();
        assert_eq!(run_on(&mesh, Program::MeshOut, &reply, up0).0, REDIRECT);
        assert_eq!(counter(&mesh, Counter::OutByUplink), 1);
    });
}

fn flow_key() -> FlowKey {
    FlowKey::new((CLIENT.into(), 40_000), (TASK.into(), 80), Protocol::Tcp)
}

/// From a client, through the ingress node with this MAC address, to the task.
fn request(source_mac: [u8; 6], tcp_flags: u8) -> Frame {
    let frame = Frame::tcp((CLIENT, 40_000), (TASK, 80));
    Frame {
        source_mac,
        tcp_flags,
        ..frame
    }
}

fn answer(tcp_flags: u8) -> Frame {
    Frame {
        tcp_flags,
        ..Frame::tcp((TASK, 80), (CLIENT, 40_000))
    }
}

/// Where an answer is sent: the ingress node, or nothing when it is left alone.
fn sent_to(mesh: &Mesh, answer: &Frame) -> Option<[u8; 6]> {
    let before = answer.bytes();
    let (verdict, after) = run_on(mesh, Program::FlowReturn, &before, ifindex("lo"));
    assert_eq!(verdict, NEXT);
    assert_eq!(before[6..], after[6..], "more than the destination changed");
    (before[..6] != after[..6]).then(|| after[..6].try_into().unwrap())
}

fn learn(mesh: &Mesh, frame: &Frame) {
    assert_eq!(verdict(mesh, Program::FlowLearn, frame), NEXT);
}

fn mesh_with_ingress_nodes(sandbox: &super::sandbox::Sandbox) -> Mesh {
    let mut mesh = sandbox.load();
    mesh.set_ingress_macs(&BTreeMap::from([(MAC_A, 1), (MAC_B, 2)]))
        .unwrap();
    mesh
}

#[test]
fn answers_go_back_through_the_ingress_node() {
    sandboxed(|sandbox| {
        let mesh = mesh_with_ingress_nodes(sandbox);
        assert_eq!(sent_to(&mesh, &answer(ACK)), None, "nothing learned yet");
        learn(&mesh, &request(MAC_A, SYN));
        assert_eq!(sent_to(&mesh, &answer(SYN | ACK)), Some(MAC_A));
        assert_eq!(mesh.flow(&flow_key()).unwrap().unwrap().node, 1);

        let other_port = Frame {
            source_port: 81,
            ..answer(ACK)
        };
        let other_client = Frame {
            destination_port: 40_001,
            ..answer(ACK)
        };
        let udp = Frame::udp((TASK, 80), (CLIENT, 40_000));
        for frame in [other_port, other_client, udp] {
            assert_eq!(sent_to(&mesh, &frame), None, "another flow");
        }
        assert_eq!(counter(&mesh, Counter::FlowLearned), 1);
    });
}

#[test]
fn only_ingress_nodes_are_learned() {
    sandboxed(|sandbox| {
        let mesh = mesh_with_ingress_nodes(sandbox);
        let neighbour = [0x02, 0x42, 10, 255, 0, 77];
        learn(&mesh, &request(neighbour, SYN));
        assert_eq!(mesh.flow(&flow_key()).unwrap(), None);
        assert_eq!(sent_to(&mesh, &answer(SYN | ACK)), None);
    });
}

#[test]
fn a_reset_connection_yields_its_tuple_at_once() {
    sandboxed(|sandbox| {
        let mesh = mesh_with_ingress_nodes(sandbox);
        // Whether the client or the task resets.
        for from_client in [true, false] {
            learn(&mesh, &request(MAC_B, ACK));
            learn(&mesh, &request(MAC_A, ACK));
            learn(&mesh, &request(MAC_A, SYN));
            if from_client {
                learn(&mesh, &request(MAC_A, RST));
            } else {
                assert_eq!(sent_to(&mesh, &answer(RST | ACK)), Some(MAC_A));
            }
            learn(&mesh, &request(MAC_B, SYN));
            assert_eq!(sent_to(&mesh, &answer(SYN | ACK)), Some(MAC_B));
        }
        assert_eq!(counter(&mesh, Counter::Collisions), 0);
    });
}

#[test]
fn a_connection_in_flight_moves_with_its_packets() {
    sandboxed(|sandbox| {
        let mesh = mesh_with_ingress_nodes(sandbox);
        learn(&mesh, &request(MAC_A, SYN));
        learn(&mesh, &request(MAC_B, ACK));
        assert_eq!(
            sent_to(&mesh, &answer(ACK)),
            Some(MAC_B),
            "another node took over"
        );
        assert_eq!(counter(&mesh, Counter::FlowMoved), 1);
        assert_eq!(counter(&mesh, Counter::Collisions), 0);
    });
}

#[test]
fn an_established_flow_is_rarely_written() {
    sandboxed(|sandbox| {
        let mesh = mesh_with_ingress_nodes(sandbox);
        learn(&mesh, &request(MAC_A, SYN));
        let first = mesh.flow(&flow_key()).unwrap().unwrap();
        learn(&mesh, &request(MAC_A, ACK));
        assert_eq!(
            mesh.flow(&flow_key()).unwrap().unwrap(),
            first,
            "within the clock's grain"
        );
        sleep(Duration::from_millis(120));
        learn(&mesh, &request(MAC_A, ACK));
        let later = mesh.flow(&flow_key()).unwrap().unwrap();
        assert!(later.last_seen_ns > first.last_seen_ns);
        assert_eq!(counter(&mesh, Counter::FlowLearned), 1);
    });
}
