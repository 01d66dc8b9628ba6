//! What the programs tell of packets, and when they are silent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use aya::maps::{Array, Map, MapData};

use super::frame::{ACK, SYN};
use super::packet::Packet;
use super::sandbox::{Sandbox, ifindex, overlay_mac, sandboxed};
use super::shortcut::stay_on_this_cpu;
use super::verdicts::{DROP, MAC_A, NEXT, REDIRECT, run_on};
use crate::ebpf::{
    Config, Counter, Mesh, Program, Protocol, PublishedKey, PublishedValue, TaskPort, TraceEvent,
    TraceFilter, TraceRequest, TraceStep, Tracer, published_flag, target_flag,
};

const PORT: u16 = 8080;
const TARGET: u16 = 80;
const CLIENT_PORT: u16 = 40_000;
const TASK: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 9);
const NODE_A: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 2);
const LONG: Duration = Duration::from_secs(600);

/// The parties in one IP version.
#[derive(Clone, Copy, Debug)]
struct Parties {
    client: IpAddr,
    node: IpAddr,
    task: IpAddr,
}

fn task6() -> Ipv6Addr {
    let prefix = Ipv6Addr::new(0xfd00, 0, 0, 5, 0, 0, 0, 0).to_bits();
    Ipv6Addr::from_bits(prefix | u128::from(TASK.to_bits()))
}

fn both() -> [Parties; 2] {
    [
        Parties {
            client: "203.0.113.9".parse().unwrap(),
            node: "192.0.2.10".parse().unwrap(),
            task: TASK.into(),
        },
        Parties {
            client: "2001:db8:9::9".parse().unwrap(),
            node: "2001:db8::10".parse().unwrap(),
            task: task6().into(),
        },
    ]
}

impl Parties {
    fn request(&self) -> Packet {
        Packet::tcp((self.client, CLIENT_PORT), (self.node, PORT), SYN)
    }

    fn balanced(&self) -> Packet {
        Packet {
            source_mac: MAC_A,
            ..Packet::tcp((self.client, CLIENT_PORT), (self.task, TARGET), SYN)
        }
    }

    fn answer(&self) -> Packet {
        Packet {
            source_mac: overlay_mac(TASK),
            ..Packet::tcp((self.task, TARGET), (self.client, CLIENT_PORT), SYN | ACK)
        }
    }

    fn reply(&self) -> Packet {
        Packet::tcp((self.node, PORT), (self.client, CLIENT_PORT), SYN | ACK)
    }
}

/// A node with the port published, and with the task behind `lo`.
fn mesh(sandbox: &Sandbox, published: u32, target: u32) -> Mesh {
    let mut mesh = sandbox.load();
    mesh.set_config(Config {
        e1h_ifindex: ifindex("lo"),
        ..Config::default()
    })
    .unwrap();
    let value = PublishedValue {
        service: 1,
        flags: published,
    };
    let ports = both().map(|parties| {
        let key = PublishedKey::new(parties.node, PORT, Protocol::Tcp);
        (key, value)
    });
    mesh.set_published(&BTreeMap::from(ports)).unwrap();
    mesh.set_ingress_macs(&BTreeMap::from([(MAC_A, 1)]))
        .unwrap();
    let task = TaskPort::new(overlay_mac(TASK), (TASK, 16), Some((task6(), 64)));
    mesh.set_task_ports(&BTreeMap::from([(ifindex("lo"), task)]))
        .unwrap();
    let targets = both().map(|parties| {
        let key = PublishedKey::new(parties.task, TARGET, Protocol::Tcp);
        (key, target_flag::PUBLISHED | target)
    });
    mesh.set_targets(&BTreeMap::from(targets)).unwrap();
    mesh
}

fn asked() -> TraceRequest {
    let mut ports = [0; TraceFilter::PORTS];
    ports[..2].copy_from_slice(&[PORT, TARGET]);
    TraceRequest {
        ports,
        client: None,
        one_in: 1,
    }
}

fn start(sandbox: &Sandbox, request: &TraceRequest) -> Tracer {
    Tracer::start(&sandbox.bpffs_dir(), request, LONG).unwrap()
}

/// What the programs are asked for now.
fn filter(sandbox: &Sandbox) -> TraceFilter {
    let map = MapData::from_pin(sandbox.pin("trace")).unwrap();
    let filter: Array<_, TraceFilter> = Map::Array(map).try_into().unwrap();
    filter.get(&0, 0).unwrap()
}

fn run(mesh: &Mesh, program: Program, packet: &Packet) -> i32 {
    run_on(mesh, program, &packet.bytes(), ifindex("lo")).0
}

fn sender(packet: &Packet) -> (IpAddr, u16) {
    let port = u16::from_be_bytes([packet.body[0], packet.body[1]]);
    (packet.source, port)
}

fn told(tracer: &mut Tracer) -> Vec<TraceEvent> {
    let told = tracer.read().unwrap();
    assert_eq!(told.lost, 0);
    told.events
}

fn source(event: &TraceEvent) -> (IpAddr, u16) {
    (event.source.to_ip(), u16::from_be(event.source_port_be))
}

fn destination(event: &TraceEvent) -> (IpAddr, u16) {
    let port = u16::from_be(event.destination_port_be);
    (event.destination.to_ip(), port)
}

#[test]
fn every_program_tells_of_a_packet_while_a_trace_lasts_and_no_longer() {
    sandboxed(|sandbox| {
        // A shortcut is learned on the one that saw both packets.
        stay_on_this_cpu();
        let mesh = mesh(sandbox, 0, 0);
        let walk = |parties: &Parties| {
            [
                (Program::MeshUplink, TraceStep::Uplink, parties.request()),
                (
                    Program::ShortcutIn,
                    TraceStep::ShortcutIn,
                    parties.request(),
                ),
                (
                    Program::ShortcutLearn,
                    TraceStep::Tunnel,
                    parties.balanced(),
                ),
                (
                    Program::ShortcutOut,
                    TraceStep::ShortcutOut,
                    parties.answer(),
                ),
                (Program::FlowLearn, TraceStep::ToTask, parties.balanced()),
                (Program::FlowReturn, TraceStep::FromTask, parties.answer()),
                (Program::MeshOut, TraceStep::Out, parties.reply()),
            ]
        };
        for parties in both() {
            for (program, ..) in walk(&parties) {
                run(&mesh, program, &parties.request());
            }
        }
        let mut tracer = start(sandbox, &asked());
        assert_eq!(told(&mut tracer), [], "nobody was looking");
        for parties in both() {
            let mut last_ns = 0;
            for (program, step, packet) in walk(&parties) {
                let verdict = run(&mesh, program, &packet);
                let [event] = told(&mut tracer)[..] else {
                    panic!("{program} {parties:?}");
                };
                assert_eq!(event.step(), Some(step));
                assert_eq!(event.verdict, verdict, "{step:?}");
                assert_eq!((event.protocol, event.seen_port_be), (6, 0));
                // The answer takes the shortcut, which there is over IPv4.
                let is_rewritten = step == TraceStep::ShortcutOut && packet.source.is_ipv4();
                let sender = match is_rewritten {
                    true => (parties.node, PORT),
                    false => sender(&packet),
                };
                assert_eq!(source(&event), sender, "{step:?}");
                assert_eq!(destination(&event).0, packet.destination, "{step:?}");
                assert_eq!(event.source_mac, packet.source_mac, "{step:?}");
                assert_eq!(event.len as usize, packet.bytes().len());
                let flags = if event.step() == Some(TraceStep::Out) || packet.source == parties.task
                {
                    SYN | ACK
                } else {
                    SYN
                };
                assert_eq!(event.tcp_flags, flags);
                assert!(event.time_ns >= last_ns);
                last_ns = event.time_ns;
            }
        }
        assert_ne!(filter(sandbox), TraceFilter::OFF);
        drop(tracer);
        assert_eq!(filter(sandbox), TraceFilter::OFF);
    });
}

#[test]
fn a_trace_whose_agent_was_killed_ends_with_its_time() {
    sandboxed(|sandbox| {
        let mesh = mesh(sandbox, 0, 0);
        let mut tracer = Tracer::start(&sandbox.bpffs_dir(), &asked(), Duration::ZERO).unwrap();
        run(&mesh, Program::MeshUplink, &both()[0].request());
        assert_eq!(told(&mut tracer), []);
        // Nobody switches it off, and what it told is nobody's.
        let tracer = start(sandbox, &asked());
        run(&mesh, Program::MeshUplink, &both()[0].request());
        std::mem::forget(tracer);
        let mut next = start(sandbox, &asked());
        assert_eq!(told(&mut next), []);
    });
}

#[test]
fn only_packets_of_the_ports_and_of_the_client_are_told_of() {
    sandboxed(|sandbox| {
        let mesh = mesh(sandbox, 0, 0);
        for parties in both() {
            let mut tracer = start(
                sandbox,
                &TraceRequest {
                    client: Some(parties.client),
                    ..asked()
                },
            );
            let from = |source: (IpAddr, u16), port| Packet::tcp(source, (parties.node, port), SYN);
            let other: IpAddr = match parties.client {
                IpAddr::V4(_) => [203, 0, 113, 10].into(),
                IpAddr::V6(_) => "2001:db8:9::a".parse().unwrap(),
            };
            for packet in [
                from((parties.client, CLIENT_PORT), PORT + 1),
                from((other, CLIENT_PORT), PORT),
                Packet::tcp((parties.node, PORT), (other, CLIENT_PORT), ACK),
                parties.request().fragment(7, 1, false),
                Packet::error(other, 3, &parties.reply()),
            ] {
                run(&mesh, Program::MeshUplink, &packet);
                assert_eq!(told(&mut tracer), [], "{:?}", packet.bytes());
            }
            run(&mesh, Program::MeshUplink, &parties.request());
            run(&mesh, Program::MeshOut, &parties.reply());
            assert_eq!(told(&mut tracer).len(), 2);
            let other = TraceRequest {
                client: Some(other),
                ..asked()
            };
            tracer.ask(&other).unwrap();
            run(&mesh, Program::MeshUplink, &parties.request());
            assert_eq!(told(&mut tracer), []);
        }
    });
}

#[test]
fn a_client_is_told_by_its_own_address_whatever_the_task_sees() {
    sandboxed(|sandbox| {
        let mesh = mesh(sandbox, 0, target_flag::SNAT);
        for parties in both() {
            let mut tracer = start(
                sandbox,
                &TraceRequest {
                    client: Some(parties.client),
                    ..asked()
                },
            );
            let client = (parties.client, CLIENT_PORT);
            assert_eq!(run(&mesh, Program::FlowLearn, &parties.balanced()), NEXT);
            let [event] = told(&mut tracer)[..] else {
                panic!("{parties:?}");
            };
            assert_eq!(source(&event), client);
            assert_eq!(destination(&event), (parties.task, TARGET));
            let seen = (event.seen.to_ip(), u16::from_be(event.seen_port_be));
            let node = match parties.client {
                IpAddr::V4(_) => IpAddr::V4(NODE_A),
                IpAddr::V6(_) => {
                    let prefix = task6().to_bits() & !u128::from(u32::MAX);
                    Ipv6Addr::from_bits(prefix | u128::from(NODE_A.to_bits())).into()
                }
            };
            assert_eq!(seen, (node, CLIENT_PORT));
            let answer = Packet {
                source_mac: overlay_mac(TASK),
                ..Packet::tcp((parties.task, TARGET), seen, SYN | ACK)
            };
            run(&mesh, Program::FlowReturn, &answer);
            let [event] = told(&mut tracer)[..] else {
                panic!("{parties:?}");
            };
            assert_eq!(
                destination(&event),
                client,
                "as it goes to the ingress node"
            );
            assert_eq!(event.destination_mac, MAC_A);
        }
    });
}

#[test]
fn a_drop_says_why() {
    sandboxed(|sandbox| {
        let mut mesh = mesh(sandbox, published_flag::SOURCES, 0);
        let parties = both()[0];
        let mut tracer = start(sandbox, &asked());
        let mut reason = |mesh: &Mesh, program, packet: &Packet| {
            let verdict = run(mesh, program, packet);
            let [event] = told(&mut tracer)[..] else {
                panic!("{program}");
            };
            (verdict, event.reason())
        };
        assert_eq!(
            reason(&mesh, Program::MeshUplink, &parties.request()),
            (DROP, Some(Counter::SourceRefused))
        );
        let spoofed = Packet {
            source_mac: MAC_A,
            ..parties.answer()
        };
        assert_eq!(
            reason(&mesh, Program::FlowReturn, &spoofed),
            (DROP, Some(Counter::Spoofed))
        );
        let stranger: IpAddr = [10, 255, 0, 77].into();
        let isolated = Packet::tcp((stranger, TARGET), (parties.task, 22), SYN);
        assert_eq!(
            reason(&mesh, Program::FlowLearn, &isolated),
            (DROP, Some(Counter::Isolated))
        );
        mesh.set_node_addresses(&BTreeSet::from([parties.node]))
            .unwrap();
        assert_eq!(
            reason(&mesh, Program::MeshOut, &parties.reply()),
            (DROP, Some(Counter::OutUnroutable))
        );
        mesh.set_published(&BTreeMap::new()).unwrap();
        assert_eq!(
            reason(&mesh, Program::MeshUplink, &parties.request()),
            (NEXT, None),
            "what is not dropped has no reason"
        );
    });
}

#[test]
fn more_than_is_read_is_counted_as_lost() {
    sandboxed(|sandbox| {
        let mesh = mesh(sandbox, 0, 0);
        let mut tracer = start(sandbox, &asked());
        let packet = both()[0].request();
        for round in 0..2 {
            for _ in 0..1_000 {
                assert_eq!(run(&mesh, Program::MeshUplink, &packet), REDIRECT);
            }
            let told = tracer.read().unwrap();
            assert!((600..800).contains(&told.events.len()), "round {round}");
            assert_eq!(told.events.len() as u64 + told.lost, 1_000, "round {round}");
        }
        // The next trace begins at nothing.
        run(&mesh, Program::MeshUplink, &packet);
        drop(tracer);
        assert_eq!(told(&mut start(sandbox, &asked())), []);
    });
}

#[test]
fn a_sample_has_whole_flows() {
    sandboxed(|sandbox| {
        let mesh = mesh(sandbox, 0, 0);
        let parties = both()[0];
        let one_in_eight = TraceRequest {
            one_in: 7,
            ..asked()
        };
        let mut tracer = start(sandbox, &one_in_eight);
        let mut flows = 0;
        for port in (32_768..34_816).step_by(2) {
            let client = (parties.client, port);
            let request = Packet::tcp(client, (parties.node, PORT), SYN);
            let balanced = Packet::tcp(client, (parties.task, TARGET), SYN);
            let reply = Packet::tcp((parties.node, PORT), client, SYN | ACK);
            run(&mesh, Program::MeshUplink, &request);
            run(&mesh, Program::ShortcutLearn, &balanced);
            run(&mesh, Program::MeshOut, &reply);
            match told(&mut tracer).len() {
                0 => {}
                3 => flows += 1,
                some => panic!("{some} of three packets of port {port}"),
            }
        }
        assert!((96..160).contains(&flows), "{flows} of 1,024");
    });
}
