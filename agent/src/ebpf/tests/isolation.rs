//! Isolation on the ingress network: what a task may send, and get from other tasks.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::frame::{ACK, Frame, SYN};
use super::sandbox::{ifindex, overlay_mac, sandboxed};
use super::verdicts::{DROP, NEXT, run_on};
use crate::ebpf::{Counter, Mesh, Program, Protocol, PublishedKey, TaskPort};

/// The task whose port it is, another task, its gateway, and clients outside.
const OWN: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// Published of both tasks.
const TARGET: u16 = 80;

fn v6(address: Ipv4Addr) -> Ipv6Addr {
    let prefix = Ipv6Addr::new(0xfd00, 0, 0, 5, 0, 0, 0, 0).to_bits();
    Ipv6Addr::from_bits(prefix | u128::from(address.to_bits()))
}

fn mesh(sandbox: &super::sandbox::Sandbox) -> Mesh {
    let mut mesh = sandbox.load();
    let port = TaskPort::new(overlay_mac(OWN), (OWN, 16), Some((v6(OWN), 64)));
    mesh.set_task_ports(&BTreeMap::from([(ifindex("lo"), port)]))
        .unwrap();
    let mut targets = BTreeMap::new();
    for task in [OWN, OTHER] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for address in [task.into(), v6(task).into()] {
                targets.insert(PublishedKey::new(address, TARGET, protocol), 1);
            }
        }
    }
    mesh.set_targets(&targets).unwrap();
    mesh.set_ingress_macs(&BTreeMap::from([(overlay_mac(GATEWAY), 1)]))
        .unwrap();
    mesh
}

/// What was dropped in all, and of the task alike.
fn counts(mesh: &Mesh) -> (u64, u64) {
    let counters = mesh.counters().unwrap();
    let of_task = mesh.drops().unwrap();
    let count = |counter| {
        let of_task = of_task.get(&(counter, ifindex("lo")));
        assert_eq!(counters[&counter], of_task.copied().unwrap_or(0));
        counters[&counter]
    };
    (count(Counter::Spoofed), count(Counter::Isolated))
}

fn verdict(mesh: &Mesh, program: Program, frame: &[u8]) -> i32 {
    run_on(mesh, program, frame, ifindex("lo")).0
}

/// Sent by the task.
fn sent(mesh: &Mesh, frame: &Frame) -> i32 {
    verdict(mesh, Program::FlowReturn, &frame.bytes())
}

fn from_own(frame: Frame) -> Frame {
    Frame {
        source_mac: overlay_mac(OWN),
        ..frame
    }
}

fn from_other(frame: Frame) -> Frame {
    Frame {
        source_mac: overlay_mac(OTHER),
        ..frame
    }
}

#[test]
fn a_task_reaches_published_targets_of_other_tasks_and_nothing_else_of_them() {
    sandboxed(|sandbox| {
        let mesh = mesh(sandbox);
        let open = [
            Frame::tcp((OWN, 40_000), (OTHER, TARGET)),
            Frame::udp((OWN, 40_000), (OTHER, TARGET)),
            // Its own target answers.
            Frame::tcp((OWN, TARGET), (OTHER, 40_000)),
            // Out of the network, to clients and anybody else.
            Frame::tcp((OWN, TARGET), (OUTSIDE, 40_000)),
            Frame::udp((OWN, 5353), (OUTSIDE, 53)),
        ];
        for frame in open {
            assert_eq!(sent(&mesh, &from_own(frame)), NEXT);
        }
        assert_eq!(counts(&mesh), (0, 0));
        let broadcast = Ipv4Addr::BROADCAST;
        let multicast = Ipv4Addr::new(239, 1, 2, 3);
        let closed = [
            Frame::tcp((OWN, 40_000), (OTHER, 22)),
            Frame::udp((OWN, 40_000), (OTHER, 53)),
            Frame::udp((OWN, 40_000), (broadcast, 5000)),
            Frame::udp((OWN, 40_000), (multicast, 5000)),
            Frame::tcp((OWN, 40_000), (GATEWAY, 22)),
            // Another protocol than the published one's.
            Frame {
                protocol: 132,
                ..Frame::udp((OWN, 40_000), (OTHER, TARGET))
            },
            // An echo request: type 8.
            icmp(8, &[]),
            // From a target of its own, which is there to be asked.
            Frame {
                tcp_flags: SYN,
                ..Frame::tcp((OWN, TARGET), (OTHER, 22))
            },
        ];
        for (number, frame) in (1..).zip(closed) {
            assert_eq!(sent(&mesh, &from_own(frame)), DROP);
            assert_eq!(counts(&mesh), (0, number));
        }
    });
}

/// ICMP of a type from the task to the other one, with `inner` in it.
fn icmp(kind: u8, inner: &[u8]) -> Frame {
    Frame {
        protocol: 1,
        source_port: u16::from(kind) << 8,
        // Takes the place of a UDP header: type, code, checksum, the rest.
        payload: inner.to_vec(),
        ..Frame::udp((OWN, 0), (OTHER, 0))
    }
}

#[test]
fn errors_about_published_targets_get_through() {
    sandboxed(|sandbox| {
        let mesh = mesh(sandbox);
        let about = |frame: Frame| icmp(3, &frame.bytes()[14..]);
        let asked = Frame::udp((OTHER, 40_000), (OWN, TARGET));
        assert_eq!(sent(&mesh, &from_own(about(asked))), NEXT);
        for other in [
            Frame::udp((OTHER, 40_000), (OWN, 53)),
            // About a packet that was somebody else's.
            Frame::udp((OUTSIDE, 40_000), (OWN, TARGET)),
        ] {
            assert_eq!(sent(&mesh, &from_own(about(other))), DROP);
        }
    });
}

#[test]
fn a_task_sends_as_itself_or_not_at_all() {
    sandboxed(|sandbox| {
        let mesh = mesh(sandbox);
        let honest = from_own(Frame::tcp((OWN, TARGET), (OUTSIDE, 40_000)));
        let lies = [
            Frame {
                source: OTHER,
                ..honest.clone()
            },
            Frame {
                source: OUTSIDE,
                ..honest.clone()
            },
            Frame {
                source_mac: overlay_mac(GATEWAY),
                ..honest.clone()
            },
        ];
        assert_eq!(sent(&mesh, &honest), NEXT);
        for (number, frame) in (1..).zip(lies) {
            assert_eq!(sent(&mesh, &frame), DROP);
            assert_eq!(counts(&mesh), (number, 0));
        }
        // ARP likewise, and nothing that is neither.
        let arp = |mac: [u8; 6], address: Ipv4Addr| {
            let mut frame = [[0xff; 6], overlay_mac(OWN)].concat();
            frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend(mac);
            frame.extend(address.octets());
            frame.extend([0; 6]);
            frame.extend(OTHER.octets());
            verdict(&mesh, Program::FlowReturn, &frame)
        };
        assert_eq!(arp(overlay_mac(OWN), OWN), NEXT);
        assert_eq!(arp(overlay_mac(OWN), GATEWAY), DROP);
        assert_eq!(arp(overlay_mac(GATEWAY), OWN), DROP);
        let unknown = Frame {
            ether_type: 0x88cc,
            ..honest
        };
        assert_eq!(sent(&mesh, &unknown), DROP);
    });
}

#[test]
fn a_task_gets_from_other_tasks_what_its_targets_are_asked() {
    sandboxed(|sandbox| {
        let mesh = mesh(sandbox);
        let got = |frame: Frame| verdict(&mesh, Program::FlowLearn, &frame.bytes());
        let asked = from_other(Frame::tcp((OTHER, 40_000), (OWN, TARGET)));
        assert_eq!(got(asked.clone()), NEXT);
        // An answer over UDP is one to a question.
        let answer = from_other(Frame::udp((OTHER, TARGET), (OWN, 40_000)));
        assert_eq!(got(answer.clone()), DROP);
        let question = from_own(Frame::udp((OWN, 40_000), (OTHER, TARGET)));
        assert_eq!(sent(&mesh, &question), NEXT);
        assert_eq!(got(answer), NEXT);
        // Over TCP a target answers, but opens nothing.
        let from_target = from_other(Frame::tcp((OTHER, TARGET), (OWN, 40_000)));
        assert_eq!(got(from_target.clone()), NEXT);
        for frame in [
            from_other(Frame::udp((OTHER, TARGET), (OWN, 40_001))),
            Frame {
                tcp_flags: SYN,
                ..from_target
            },
            from_other(Frame::tcp((OTHER, 40_000), (OWN, 22))),
            // An address of the task's on another network, by a detour.
            from_other(Frame::tcp(
                (OTHER, TARGET),
                (Ipv4Addr::new(10, 0, 1, 5), 5432),
            )),
            // A client's address by way of a task.
            from_other(Frame::tcp((OUTSIDE, 40_000), (OWN, TARGET))),
        ] {
            assert_eq!(got(frame), DROP);
        }
        assert_eq!(counts(&mesh), (0, 6));
        // Through an ingress node come clients, the host, and the way back from outside.
        for (source, port) in [
            (OUTSIDE, TARGET),
            (OUTSIDE, 40_000),
            (Ipv4Addr::new(169, 254, 0, 1), 22),
        ] {
            let frame = Frame {
                source_mac: overlay_mac(GATEWAY),
                tcp_flags: SYN,
                ..Frame::tcp((source, 40_000), (OWN, port))
            };
            assert_eq!(got(frame), NEXT);
        }
        assert_eq!(counts(&mesh), (0, 6));
        // A port that nobody has described.
        let mut mesh = mesh;
        mesh.set_task_ports(&BTreeMap::new()).unwrap();
        let frame = from_other(Frame::tcp((OTHER, 40_000), (OWN, 22)));
        assert_eq!(verdict(&mesh, Program::FlowLearn, &frame.bytes()), NEXT);
    });
}

#[test]
fn ipv6_is_isolated_by_the_same_rule() {
    sandboxed(|sandbox| {
        let mesh = mesh(sandbox);
        let frame = |source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]| {
            let mut frame = [overlay_mac(OTHER), overlay_mac(OWN)].concat();
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((payload.len() as u16).to_be_bytes());
            frame.extend([next, 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
            frame.extend(payload);
            verdict(&mesh, Program::FlowReturn, &frame)
        };
        let udp = |port: u16| {
            let mut header = 40_000_u16.to_be_bytes().to_vec();
            header.extend(port.to_be_bytes());
            header.extend([0, 8, 0, 0]);
            header
        };
        let local = |address: Ipv4Addr| {
            let prefix = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).to_bits();
            Ipv6Addr::from_bits(prefix | u128::from(address.to_bits()))
        };
        let elsewhere = "2001:db8::1".parse().unwrap();
        let all_nodes = "ff02::1".parse().unwrap();
        const UDP: u8 = 17;
        const ICMPV6: u8 = 58;
        assert_eq!(frame(v6(OWN), v6(OTHER), UDP, &udp(TARGET)), NEXT);
        assert_eq!(frame(v6(OWN), elsewhere, UDP, &udp(53)), NEXT);
        assert_eq!(
            frame(local(OWN), all_nodes, ICMPV6, &[135, 0, 0, 0, 0, 0, 0, 0]),
            NEXT
        );
        assert_eq!(counts(&mesh), (0, 0));
        assert_eq!(frame(v6(OWN), v6(OTHER), UDP, &udp(53)), DROP);
        assert_eq!(
            frame(v6(OWN), local(OTHER), UDP, &udp(53)),
            NEXT,
            "refused where it is got"
        );
        assert_eq!(frame(v6(OTHER), elsewhere, UDP, &udp(53)), DROP);
        assert_eq!(frame(local(OWN), local(OTHER), UDP, &udp(TARGET)), DROP);
        assert_eq!(frame(v6(OWN), all_nodes, UDP, &udp(53)), DROP);
        // A router advertisement.
        assert_eq!(
            frame(local(OWN), all_nodes, ICMPV6, &[134, 0, 0, 0, 0, 0, 0, 0]),
            DROP
        );
    });
}

#[test]
fn an_established_answer_is_left_to_the_flow_table() {
    sandboxed(|sandbox| {
        let mesh = mesh(sandbox);
        let request = Frame {
            source_mac: overlay_mac(GATEWAY),
            tcp_flags: SYN,
            ..Frame::tcp((OUTSIDE, 40_000), (OWN, TARGET))
        };
        assert_eq!(verdict(&mesh, Program::FlowLearn, &request.bytes()), NEXT);
        let answer = from_own(Frame {
            tcp_flags: SYN | ACK,
            ..Frame::tcp((OWN, TARGET), (OUTSIDE, 40_000))
        });
        let (verdict, after) = run_on(&mesh, Program::FlowReturn, &answer.bytes(), ifindex("lo"));
        assert_eq!(verdict, NEXT);
        assert_eq!(after[..6], overlay_mac(GATEWAY));
    });
}
