//! What comes by the tunnel: unpacked at the uplink, or left to the host.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::frame::{ACK, CLIENT, FIN, Frame, NODE, SYN, TASK, sum};
use super::sandbox::{Sandbox, ifindex, overlay_mac, sandboxed};
use super::verdicts::{NEXT, REDIRECT, run_on};
use crate::ebpf::{Config, Mac, Mesh, Program, TaskPort};

/// Addresses on the ingress network: this node's, and another ingress node's.
const OWN: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 3);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 99);
/// The ends of the tunnel.
const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
const VNI: u32 = 0x1001;
/// Bytes in front of the inner frame, and of the outer Ethernet header.
const OUTER_LEN: usize = 50;
const ETHERNET_LEN: usize = 14;

/// A node with [`TASK`] behind `lo`.
fn load(sandbox: &Sandbox) -> Mesh {
    let mut mesh = sandbox.load();
    mesh.set_config(Config {
        e1h_ifindex: ifindex("lo"),
        vtep: u32::from_ne_bytes(VTEP.octets()),
        vni: (VNI << 8).to_be(),
        mac: Mac::new(overlay_mac(OWN)),
        ..Config::default()
    })
    .unwrap();
    mesh.set_ingress_macs(&BTreeMap::from([(overlay_mac(OTHER), 1)]))
        .unwrap();
    let port = TaskPort::new(overlay_mac(TASK), (TASK, 16), None);
    mesh.set_task_ports(&BTreeMap::from([(ifindex("lo"), port)]))
        .unwrap();
    mesh
}

fn between(mut frame: Frame, from: Ipv4Addr, to: Ipv4Addr) -> Frame {
    frame.source_mac = overlay_mac(from);
    frame.destination_mac = overlay_mac(to);
    frame
}

/// A client's request, from the ingress node that it came to.
fn request() -> Frame {
    between(Frame::tcp((CLIENT, 40_000), (TASK, 80)), OTHER, TASK)
}

/// A task's answer to a client of this node.
fn answer(tcp_flags: u8) -> Frame {
    let frame = Frame {
        tcp_flags,
        ..Frame::tcp((STRANGER, 80), (CLIENT, 40_000))
    };
    between(frame, STRANGER, OWN)
}

fn outer(frame: &[u8]) -> Frame {
    // The flag that there is a VNI; its three bytes and a zero byte.
    let mut payload = vec![0x08, 0, 0, 0];
    payload.extend((VNI << 8).to_be_bytes());
    payload.extend(frame);
    Frame {
        payload,
        ..Frame::udp((PEER, 50_000), (VTEP, 4789))
    }
}

fn packed(frame: &Frame) -> Vec<u8> {
    outer(&frame.bytes()).bytes()
}

fn arrives(mesh: &Mesh, packet: &[u8]) -> (i32, Vec<u8>) {
    run_on(mesh, Program::MeshUplink, packet, ifindex("lo"))
}

#[test]
fn what_is_inside_goes_into_the_ingress_namespace() {
    sandboxed(|sandbox| {
        let mesh = load(sandbox);
        let udp = between(Frame::udp((CLIENT, 40_000), (TASK, 53)), OTHER, TASK);
        let fragment = Frame {
            fragment_offset: 0x2000,
            ..request()
        };
        for frame in [request(), udp, fragment, answer(ACK), answer(SYN | ACK)] {
            let (verdict, sent) = arrives(&mesh, &packed(&frame));
            assert_eq!(verdict, REDIRECT);
            assert_eq!(sent, frame.bytes());
        }
    });
}

#[test]
fn what_is_not_quite_ordinary_is_left_to_the_host_as_it_is() {
    sandboxed(|sandbox| {
        let mesh = load(sandbox);
        let ordinary = packed(&request());
        let with = |offset: usize, byte: u8| {
            let mut packet = ordinary.clone();
            packet[offset] = byte;
            packet
        };
        let ip = ETHERNET_LEN;
        let udp = ip + 20;
        let vxlan = udp + 8;
        let arp = Frame {
            ether_type: 0x0806,
            ..request()
        };
        let ipv6 = Frame {
            ether_type: 0x86dd,
            ..answer(ACK)
        };
        let with_options = Frame {
            header_words: 6,
            ..outer(&request().bytes())
        };
        let left = [
            ("another end", with(ip + 19, 77)),
            ("congestion", with(ip + 1, 0x03)),
            ("a fragment", with(ip + 6, 0x20)),
            ("a checksum", with(udp + 6, 1)),
            ("no VNI", with(vxlan, 0)),
            ("a reserved flag", with(vxlan + 1, 1)),
            ("another network", with(vxlan + 6, 0x02)),
            ("an extension", with(vxlan + 7, 1)),
            ("options", with_options.bytes()),
            ("ARP", packed(&arp)),
            ("IPv6", packed(&ipv6)),
            (
                "another node's task",
                packed(&between(request(), OTHER, STRANGER)),
            ),
            ("from a task", packed(&between(request(), STRANGER, TASK))),
            ("nothing inside", ordinary[..OUTER_LEN + 4].to_vec()),
        ];
        for (what, packet) in left {
            let (verdict, after) = arrives(&mesh, &packet);
            assert_eq!((verdict, after == packet), (NEXT, true), "{what}");
        }
        assert_eq!(arrives(&mesh, &ordinary).0, REDIRECT);
    });
}

#[test]
fn nothing_is_unpacked_until_the_end_of_the_tunnel_is_known() {
    sandboxed(|sandbox| {
        let mut mesh = load(sandbox);
        let config = Config {
            e1h_ifindex: ifindex("lo"),
            mac: Mac::new(overlay_mac(OWN)),
            ..Config::default()
        };
        mesh.set_config(config).unwrap();
        assert_eq!(arrives(&mesh, &packed(&request())).0, NEXT);
    });
}

#[test]
fn unpacked_frames_go_to_the_task_and_to_the_client() {
    sandboxed(|sandbox| {
        let mesh = load(sandbox);
        let lo = ifindex("lo");
        let shortcut = |frame: &[u8]| run_on(&mesh, Program::ShortcutIn, frame, lo);
        let flows = mesh.flow_count();
        assert_eq!(shortcut(&request().bytes()), (REDIRECT, request().bytes()));
        assert_eq!(mesh.flow_count(), flows + 1, "and the flow is remembered");

        // To IPVS, which knows whose answer it is; and it is no request to learn from.
        let unknown = answer(ACK).bytes();
        assert_eq!(shortcut(&unknown), (NEXT, unknown.clone()));
        run_on(&mesh, Program::ShortcutLearn, &unknown, lo);

        // A request of the client's is balanced; from then on its answers are known.
        let asked = Frame::tcp((CLIENT, 40_000), (NODE, 8080));
        let balanced = Frame {
            destination: STRANGER,
            destination_port: 80,
            ..between(asked.clone(), OWN, STRANGER)
        };
        assert_eq!(shortcut(&asked.bytes()).0, NEXT);
        run_on(&mesh, Program::ShortcutLearn, &balanced.bytes(), lo);
        let (verdict, sent) = shortcut(&unknown);
        assert_eq!(verdict, REDIRECT);
        assert_eq!(sent[26..30], NODE.octets());
        assert_eq!(sent[34..36], 8080_u16.to_be_bytes());
        assert_eq!(sum(&sent[14..34]), 0xffff, "header checksum");
        assert_eq!(shortcut(&answer(FIN | ACK).bytes()).0, NEXT);
    });
}
