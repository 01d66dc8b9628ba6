//! The shortcut of established connections: what takes it, and what becomes of it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use super::frame::{ACK, CLIENT, FIN, Frame, NODE, RST, SYN, TASK, sum};
use super::sandbox::{ifindex, overlay_mac, run, sandboxed};
use super::verdicts::{NEXT, REDIRECT, run_on};
use crate::ebpf::program::object;
use crate::ebpf::{Attached, Mesh, Program};

const INGRESS: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 2);
const TCP_CHECKSUM: usize = 34 + 16;
const UDP_CHECKSUM: usize = 34 + 6;

/// Programs of one packet run on one CPU; so do those of a test.
pub(super) fn stay_on_this_cpu() {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
}

/// The sum over the pseudo header and what follows it: 0xffff when the checksum is right.
fn transport_sum(frame: &[u8]) -> u16 {
    let mut bytes = frame[26..34].to_vec();
    bytes.extend([0, frame[23]]);
    bytes.extend(u16::try_from(frame.len() - 34).unwrap().to_be_bytes());
    bytes.extend(&frame[34..]);
    sum(&bytes)
}

/// With the right TCP or UDP checksum.
fn bytes(frame: &Frame) -> Vec<u8> {
    let mut bytes = frame.bytes();
    let at = if frame.protocol == 6 {
        TCP_CHECKSUM
    } else {
        UDP_CHECKSUM
    };
    let complement = !transport_sum(&bytes);
    bytes[at..at + 2].copy_from_slice(&complement.to_be_bytes());
    bytes
}

fn asked(tcp: bool) -> Frame {
    let (client, node) = ((CLIENT, 40_000), (NODE, 8080));
    if tcp {
        Frame::tcp(client, node)
    } else {
        Frame::udp(client, node)
    }
}

/// As IPVS and the bridge send it on.
fn balanced(asked: &Frame) -> Frame {
    Frame {
        destination: TASK,
        destination_port: 80,
        source_mac: overlay_mac(INGRESS),
        destination_mac: overlay_mac(TASK),
        ..asked.clone()
    }
}

fn answered(asked: &Frame) -> Frame {
    Frame {
        source: TASK,
        source_port: 80,
        destination: asked.source,
        destination_port: asked.source_port,
        ..asked.clone()
    }
}

fn verdict(mesh: &Mesh, program: Program, frame: &[u8]) -> i32 {
    run_on(mesh, program, frame, ifindex("lo")).0
}

/// IPVS balances a packet.
fn balance(mesh: &Mesh, asked: &Frame) {
    let inward = verdict(mesh, Program::ShortcutIn, &bytes(asked));
    assert_eq!(inward, NEXT, "left to IPVS");
    let sent = bytes(&balanced(asked));
    assert_eq!(verdict(mesh, Program::ShortcutLearn, &sent), NEXT);
}

fn in_and_out(mesh: &Mesh, asked: &Frame) -> (i32, i32) {
    (
        verdict(mesh, Program::ShortcutIn, &bytes(asked)),
        verdict(mesh, Program::ShortcutOut, &bytes(&answered(asked))),
    )
}

#[test]
fn a_balanced_connection_takes_the_shortcut_both_ways() {
    sandboxed(|sandbox| {
        stay_on_this_cpu();
        let mesh = sandbox.load();
        for tcp in [true, false] {
            let asked = asked(tcp);
            balance(&mesh, &asked);

            let (verdict, inward) =
                run_on(&mesh, Program::ShortcutIn, &bytes(&asked), ifindex("lo"));
            assert_eq!(verdict, REDIRECT);
            let mut expected = bytes(&balanced(&asked));
            expected[22] -= 1;
            assert_eq!(inward[..14], expected[..14], "Ethernet header");
            assert_eq!(inward[26..38], expected[26..38], "addresses and ports");
            assert_eq!(inward[22], 63, "a hop less to live");
            assert_eq!(sum(&inward[14..34]), 0xffff, "header checksum");
            assert_eq!(transport_sum(&inward), 0xffff, "checksum");

            let answer = bytes(&answered(&asked));
            let (verdict, outward) = run_on(&mesh, Program::ShortcutOut, &answer, ifindex("lo"));
            assert_eq!(verdict, REDIRECT);
            assert_eq!(outward[26..30], NODE.octets());
            assert_eq!(outward[34..36], 8080_u16.to_be_bytes());
            assert_eq!(outward[30..34], CLIENT.octets());
            assert_eq!(outward[22], 63, "a hop less to live");
            assert_eq!(sum(&outward[14..34]), 0xffff, "header checksum");
            assert_eq!(transport_sum(&outward), 0xffff, "checksum");
        }
    });
}

#[test]
fn udp_without_a_checksum_stays_without() {
    sandboxed(|sandbox| {
        stay_on_this_cpu();
        let mesh = sandbox.load();
        let asked = asked(false);
        balance(&mesh, &asked);
        let (verdict, inward) = run_on(&mesh, Program::ShortcutIn, &asked.bytes(), ifindex("lo"));
        assert_eq!(verdict, REDIRECT);
        assert_eq!(inward[UDP_CHECKSUM..UDP_CHECKSUM + 2], [0, 0]);
    });
}

#[test]
fn beginning_and_end_of_a_connection_go_through_the_balancer() {
    sandboxed(|sandbox| {
        stay_on_this_cpu();
        let mesh = sandbox.load();
        let with = |tcp_flags: u8| Frame {
            tcp_flags,
            ..asked(true)
        };
        // The same port again and again: what was known of it is known anew.
        for task in [TASK, Ipv4Addr::new(10, 255, 0, 77)] {
            let answer = |tcp_flags| {
                bytes(&Frame {
                    source: task,
                    ..answered(&with(tcp_flags))
                })
            };
            let inward = |tcp_flags| verdict(&mesh, Program::ShortcutIn, &bytes(&with(tcp_flags)));
            let outward = |tcp_flags| verdict(&mesh, Program::ShortcutOut, &answer(tcp_flags));
            assert_eq!(inward(SYN), NEXT);
            let sent = bytes(&Frame {
                destination: task,
                ..balanced(&with(SYN))
            });
            assert_eq!(verdict(&mesh, Program::ShortcutLearn, &sent), NEXT);
            assert_eq!(outward(SYN | ACK), REDIRECT, "IPVS does without");
            assert_eq!(inward(ACK), NEXT, "makes IPVS's connection established");
            assert_eq!((inward(ACK), outward(ACK)), (REDIRECT, REDIRECT));
            let (_, sent) = run_on(
                &mesh,
                Program::ShortcutIn,
                &bytes(&with(ACK)),
                ifindex("lo"),
            );
            assert_eq!(sent[30..34], task.octets());
            for end in [FIN | ACK, RST] {
                assert_eq!((inward(end), outward(end)), (NEXT, NEXT));
                assert_eq!((inward(ACK), outward(ACK)), (REDIRECT, REDIRECT));
            }
        }
    });
}

#[test]
fn a_handshake_that_the_balancer_let_lie_is_shown_to_it_again() {
    sandboxed(|sandbox| {
        stay_on_this_cpu();
        let mesh = sandbox.load();
        let opening = Frame {
            tcp_flags: SYN,
            ..asked(true)
        };
        assert_eq!(verdict(&mesh, Program::ShortcutIn, &bytes(&opening)), NEXT);
        let acknowledging = Frame {
            tcp_flags: ACK,
            ..asked(true)
        };
        for _ in 0..3 {
            assert_eq!(in_and_out(&mesh, &acknowledging), (NEXT, NEXT));
        }
    });
}

#[test]
fn another_packet_on_the_way_teaches_nothing() {
    sandboxed(|sandbox| {
        stay_on_this_cpu();
        let mesh = sandbox.load();
        let asked = asked(true);
        let stranger = Frame {
            source_port: 40_001,
            ..asked.clone()
        };
        let sent = bytes(&balanced(&asked));
        assert_eq!(verdict(&mesh, Program::ShortcutLearn, &sent), NEXT);
        assert_eq!(verdict(&mesh, Program::ShortcutIn, &bytes(&stranger)), NEXT);
        assert_eq!(verdict(&mesh, Program::ShortcutLearn, &sent), NEXT);
        assert_eq!(in_and_out(&mesh, &asked), (NEXT, NEXT));
        // One packet teaches once.
        balance(&mesh, &asked);
        let other = bytes(&Frame {
            destination: INGRESS,
            ..balanced(&asked)
        });
        assert_eq!(verdict(&mesh, Program::ShortcutLearn, &other), NEXT);
        let (_, inward) = run_on(&mesh, Program::ShortcutIn, &bytes(&asked), ifindex("lo"));
        assert_eq!(inward[30..34], TASK.octets());
    });
}

#[test]
fn unusual_packets_are_left_to_the_stack_as_they_are() {
    sandboxed(|sandbox| {
        stay_on_this_cpu();
        let mesh = sandbox.load();
        let plain = asked(true);
        balance(&mesh, &plain);
        let fragment = Frame {
            fragment_offset: 1,
            ..plain.clone()
        };
        let first_fragment = Frame {
            fragment_offset: 0x2000,
            ..plain.clone()
        };
        let with_options = Frame {
            header_words: 6,
            ..plain.clone()
        };
        let mut packets = [fragment, first_fragment, with_options]
            .map(|f| f.bytes())
            .to_vec();
        let mut dying = bytes(&plain);
        dying[22] = 1;
        packets.push(dying);
        run("ip", "link set lo mtu 1000");
        packets.push(bytes(&Frame {
            payload: vec![0; 1000],
            ..plain.clone()
        }));
        packets.push(bytes(&plain)[..40].to_vec());
        for packet in packets {
            let (verdict, after) = run_on(&mesh, Program::ShortcutIn, &packet, ifindex("lo"));
            assert_eq!((verdict, after), (NEXT, packet));
        }
        assert_eq!(in_and_out(&mesh, &plain), (REDIRECT, REDIRECT));
    });
}

#[test]
fn the_balancer_sees_a_flow_again_before_long() {
    sandboxed(|sandbox| {
        stay_on_this_cpu();
        let mesh = sandbox.load();
        let asked = asked(false);
        balance(&mesh, &asked);
        let deadline = Instant::now() + Duration::from_secs(5);
        let frame = bytes(&asked);
        while verdict(&mesh, Program::ShortcutIn, &frame) == REDIRECT {
            assert!(Instant::now() < deadline, "never left to IPVS again");
        }
        // IPVS has chosen another task meanwhile.
        let moved = Ipv4Addr::new(10, 255, 0, 77);
        let sent = bytes(&Frame {
            destination: moved,
            ..balanced(&asked)
        });
        assert_eq!(verdict(&mesh, Program::ShortcutLearn, &sent), NEXT);
        let (verdict, inward) = run_on(&mesh, Program::ShortcutIn, &frame, ifindex("lo"));
        assert_eq!(verdict, REDIRECT);
        assert_eq!(inward[30..34], moved.octets());
    });
}

/// The object of another build: the same programs, but that IPVS sees a packet of a connection a
/// nanosecond later.
fn another_build() -> Vec<u8> {
    let mut bytes = object().to_vec();
    let old = 5_000_000_000_u64.to_le_bytes();
    let places: Vec<usize> = (0..bytes.len() - 4)
        .filter(|at| bytes[*at..at + 4] == old[..4])
        .collect();
    assert_eq!(places.len(), 1, "the constant is in one instruction");
    bytes[places[0]] += 1;
    bytes
}

#[test]
fn connections_go_on_in_a_build_with_other_programs() {
    sandboxed(|sandbox| {
        stay_on_this_cpu();
        let programs = [Program::ShortcutIn, Program::FlowLearn];
        let tag = |mesh: &Mesh, program| mesh.classifier(program).unwrap().info().unwrap().tag();
        let lo = ifindex("lo");
        let mut first = sandbox.load();
        let ingress_macs = BTreeMap::from([(overlay_mac(INGRESS), 1)]);
        first.set_ingress_macs(&ingress_macs).unwrap();
        for program in programs {
            first.attach(program, lo).unwrap();
        }
        let asked = asked(true);
        balance(&first, &asked);
        run_on(&first, Program::FlowLearn, &bytes(&balanced(&asked)), lo);
        assert_eq!(in_and_out(&first, &asked), (REDIRECT, REDIRECT));
        let flows = first.flow_count();
        let tags = programs.map(|program| tag(&first, program));
        let ids = programs.map(|program| first.program_id(program).unwrap());
        drop(first);

        let second = Mesh::load_object(&sandbox.bpffs_dir(), &another_build()).unwrap();
        assert_ne!(
            tag(&second, Program::ShortcutIn),
            tags[0],
            "a program has changed"
        );
        // Until it is attached, the other goes on.
        let attached = Mesh::attached_program_id(Program::ShortcutIn, lo).unwrap();
        assert_eq!(attached, Some(ids[0]));
        for (program, id) in programs.into_iter().zip(ids) {
            assert_eq!(second.attach(program, lo).unwrap(), Attached::Replaced(id));
        }
        // Inward the balancer may be due again: loading takes seconds in emulation.
        let outward = verdict(&second, Program::ShortcutOut, &bytes(&answered(&asked)));
        assert_eq!(outward, REDIRECT);
        assert_eq!(second.flow_count(), flows);
        assert!(flows > 0, "the flow was learned");
    });
}
