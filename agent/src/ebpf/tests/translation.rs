//! Clients that a task sees under another port, or another address and port.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use super::frame::{ACK, CLIENT, FIN, RST, SYN, TASK};
use super::packet::Packet;
use super::path::{GATEWAY, NODE_A, NODE_B, ROUTED, TaskHost};
use super::sandbox::{Netns, Sandbox, ifindex, mac_text, overlay_mac, sandboxed, sysctl};
use super::verdicts::{DROP, NEXT, counter, run_on};
use crate::ebpf::{Counter, Mesh, Program, Protocol, PublishedKey, TaskPort, target_flag};

const DEADLINE: Duration = Duration::from_secs(5);
const CLIENT_PORT: u16 = 40_000;

fn v6(address: Ipv4Addr) -> Ipv6Addr {
    let prefix = Ipv6Addr::new(0xfd00, 0, 0, 5, 0, 0, 0, 0).to_bits();
    Ipv6Addr::from_bits(prefix | u128::from(address.to_bits()))
}

/// The address, or its twin.
fn ip(address: Ipv4Addr, ipv6: bool) -> IpAddr {
    if ipv6 {
        v6(address).into()
    } else {
        address.into()
    }
}

/// A node whose task has targets at ports 80 and 81, of TCP and UDP.
fn describe(mesh: &mut Mesh, port: &str, flags: u32) {
    let task = TaskPort::new(overlay_mac(TASK), (TASK, 16), Some((v6(TASK), 64)));
    mesh.set_task_ports(&BTreeMap::from([(ifindex(port), task)]))
        .unwrap();
    let macs = [(overlay_mac(NODE_A), 1), (overlay_mac(NODE_B), 2)];
    mesh.set_ingress_macs(&BTreeMap::from(macs)).unwrap();
    let mut targets = BTreeMap::new();
    for ipv6 in [false, true] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for port in [80, 81] {
                let target = PublishedKey::new(ip(TASK, ipv6), port, protocol);
                targets.insert(target, target_flag::PUBLISHED | flags);
            }
        }
    }
    mesh.set_targets(&targets).unwrap();
}

/// The address of a client, which is on no network of ours, or its twin.
fn outside(address: Ipv4Addr, ipv6: bool) -> IpAddr {
    let prefix = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0).to_bits();
    if ipv6 {
        Ipv6Addr::from_bits(prefix | u128::from(address.to_bits())).into()
    } else {
        address.into()
    }
}

/// Made-up packets between a client and the task's port.
struct Flow {
    ipv6: bool,
    tcp: bool,
    port: u16,
}

impl Flow {
    fn all() -> impl Iterator<Item = Self> {
        [(false, false), (false, true), (true, false), (true, true)]
            .into_iter()
            .map(|(ipv6, tcp)| Self {
                ipv6,
                tcp,
                port: CLIENT_PORT,
            })
    }

    fn packet(&self, from: (IpAddr, u16), to: (IpAddr, u16), flags: u8) -> Packet {
        if self.tcp {
            Packet::tcp(from, to, flags)
        } else {
            Packet::udp(from, to)
        }
    }

    fn client(&self) -> IpAddr {
        outside(CLIENT, self.ipv6)
    }

    fn task(&self) -> (IpAddr, u16) {
        (ip(TASK, self.ipv6), 80)
    }

    /// From the client through a node.
    fn request(&self, node: Ipv4Addr, flags: u8) -> Packet {
        Packet {
            source_mac: overlay_mac(node),
            ..self.packet((self.client(), self.port), self.task(), flags)
        }
    }

    fn answer(&self, to: (IpAddr, u16), flags: u8) -> Packet {
        Packet {
            source_mac: overlay_mac(TASK),
            ..self.packet(self.task(), to, flags)
        }
    }

    /// As whom the task sees a client's packet; the packet has to be right otherwise.
    fn seen(&self, mesh: &Mesh, node: Ipv4Addr, flags: u8) -> (IpAddr, u16) {
        let packet = self.request(node, flags);
        let (verdict, after) = run_on(
            mesh,
            Program::FlowLearn,
            &summed(packet.bytes()),
            ifindex("lo"),
        );
        assert_eq!(verdict, NEXT);
        let seen = source(&after);
        let expected = Packet {
            source_mac: packet.source_mac,
            ..self.packet(seen, self.task(), flags)
        };
        assert_eq!(
            after,
            summed(expected.bytes()),
            "more than the client changed"
        );
        seen
    }

    /// Whether the task's answer to `seen` goes to the client by `node`.
    fn is_answered(&self, mesh: &Mesh, seen: (IpAddr, u16), node: Ipv4Addr, flags: u8) {
        let answer = summed(self.answer(seen, flags).bytes());
        let (verdict, after) = run_on(mesh, Program::FlowReturn, &answer, ifindex("lo"));
        assert_eq!(verdict, NEXT);
        let client = (self.client(), self.port);
        let mut expected = summed(self.answer(client, flags).bytes());
        expected[..6].copy_from_slice(&overlay_mac(node));
        assert_eq!(after, expected);
    }
}

fn is_ipv6(frame: &[u8]) -> bool {
    frame[12] == 0x86
}

/// Source address and port of a packet without options or extensions.
fn source(frame: &[u8]) -> (IpAddr, u16) {
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    if is_ipv6(frame) {
        let address: [u8; 16] = frame[22..38].try_into().unwrap();
        (address.into(), port(54))
    } else {
        let address: [u8; 4] = frame[26..30].try_into().unwrap();
        (address.into(), port(34))
    }
}

/// With the right checksums of IPv4 and of TCP, UDP, ICMP or ICMPv6 (RFC 1071).
fn summed(mut frame: Vec<u8>) -> Vec<u8> {
    let put = |frame: &mut [u8], at: usize, sum: u16| {
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    };
    let (transport, protocol, addresses) = if is_ipv6(&frame) {
        (54, frame[20], 22..54)
    } else {
        put(&mut frame, 24, 0);
        let sum = checksum(&frame[14..34]);
        put(&mut frame, 24, sum);
        (34, frame[23], 26..34)
    };
    let at = transport
        + match protocol {
            6 => 16,
            17 => 6,
            _ => 2,
        };
    put(&mut frame, at, 0);
    let mut summed = Vec::new();
    if protocol != 1 {
        summed.extend(&frame[addresses]);
        summed.extend([0, protocol]);
        summed.extend(
            u16::try_from(frame.len() - transport)
                .unwrap()
                .to_be_bytes(),
        );
    }
    summed.extend(&frame[transport..]);
    let sum = checksum(&summed);
    put(&mut frame, at, sum);
    frame
}

fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[test]
fn of_two_nodes_that_bring_one_client_tuple_the_second_gets_a_port_of_its_own() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        describe(&mut mesh, "lo", 0);
        for (number, flow) in (1..).zip(Flow::all()) {
            let own = (flow.client(), CLIENT_PORT);
            assert_eq!(flow.seen(&mesh, NODE_A, SYN), own);
            let other = flow.seen(&mesh, NODE_B, SYN);
            assert_eq!(other.0, own.0);
            assert!(other.1 >= 0x8000 && other != own, "{other:?}");
            // Both go on, whichever was last.
            for _ in 0..2 {
                flow.is_answered(&mesh, own, NODE_A, SYN | ACK);
                flow.is_answered(&mesh, other, NODE_B, SYN | ACK);
                assert_eq!(flow.seen(&mesh, NODE_B, ACK), other);
                assert_eq!(flow.seen(&mesh, NODE_A, ACK), own);
            }
            assert_eq!(counter(&mesh, Counter::Collisions), number);
            assert_eq!(counter(&mesh, Counter::Translated), number);
        }
    });
}

#[test]
fn a_client_with_a_port_that_was_given_away_gets_another_one_too() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        describe(&mut mesh, "lo", 0);
        for flow in Flow::all() {
            flow.seen(&mesh, NODE_A, SYN);
            let given = flow.seen(&mesh, NODE_B, SYN);
            let late = Flow {
                port: given.1,
                ..flow
            };
            for node in [NODE_A, NODE_B] {
                let seen = late.seen(&mesh, node, SYN);
                assert_ne!(seen, given, "by {node}");
                late.is_answered(&mesh, seen, node, SYN | ACK);
            }
            let flow = Flow {
                port: CLIENT_PORT,
                ..late
            };
            flow.is_answered(&mesh, given, NODE_B, ACK);
        }
    });
}

#[test]
fn a_finished_connection_keeps_its_tuple_while_the_task_may_remember_it() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        describe(&mut mesh, "lo", 0);
        let flow = Flow::all().find(|flow| flow.tcp).unwrap();
        let own = (flow.client(), CLIENT_PORT);
        flow.seen(&mesh, NODE_A, SYN);
        flow.is_answered(&mesh, own, NODE_A, FIN | ACK);
        flow.seen(&mesh, NODE_A, FIN | ACK);
        let other = flow.seen(&mesh, NODE_B, SYN);
        assert_ne!(other, own);
        // The first node's next connection is the first one's, as without the other node.
        assert_eq!(flow.seen(&mesh, NODE_A, SYN), own);
        // A reset leaves nothing to remember: the port that it frees may be given again.
        flow.is_answered(&mesh, other, NODE_B, RST);
        assert_eq!(flow.seen(&mesh, NODE_B, SYN), other);
    });
}

#[test]
fn with_snat_a_task_sees_the_ingress_nodes_address() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        describe(&mut mesh, "lo", target_flag::SNAT);
        for flow in Flow::all() {
            for node in [NODE_A, NODE_B] {
                let seen = flow.seen(&mesh, node, SYN);
                assert_eq!(seen, (ip(node, flow.ipv6), CLIENT_PORT), "its port is free");
                flow.is_answered(&mesh, seen, node, SYN | ACK);
                assert_eq!(flow.seen(&mesh, node, ACK), seen);
            }
        }
        assert_eq!(counter(&mesh, Counter::Collisions), 0);
        // Another client with the same port.
        let flow = Flow::all().next().unwrap();
        let other = Packet {
            source: IpAddr::from([203, 0, 113, 10]),
            ..flow.request(NODE_A, 0)
        };
        let lo = ifindex("lo");
        let (_, after) = run_on(&mesh, Program::FlowLearn, &summed(other.bytes()), lo);
        let seen = source(&after);
        assert_eq!(seen.0, IpAddr::from(NODE_A));
        assert_ne!(seen.1, CLIENT_PORT);
        // Without an entry there is no client to answer: not sent to the node itself.
        assert_eq!(counter(&mesh, Counter::TranslationFailed), 0);
        let mut ports: BTreeSet<u16> = BTreeSet::from([CLIENT_PORT, seen.1]);
        for last in 11..100 {
            let other = Packet {
                source: IpAddr::from([203, 0, 113, last]),
                ..flow.request(NODE_A, 0)
            };
            let (_, after) = run_on(&mesh, Program::FlowLearn, &summed(other.bytes()), lo);
            assert!(ports.insert(source(&after).1), "a port was given twice");
        }
    });
}

#[test]
fn snat_begins_and_ends_with_a_connection() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        describe(&mut mesh, "lo", 0);
        let flow = Flow::all().find(|flow| flow.tcp).unwrap();
        let own = (flow.client(), CLIENT_PORT);
        assert_eq!(flow.seen(&mesh, NODE_A, SYN), own);
        describe(&mut mesh, "lo", target_flag::SNAT);
        assert_eq!(flow.seen(&mesh, NODE_A, ACK), own, "this one goes on");
        let seen = flow.seen(&mesh, NODE_A, SYN);
        assert_eq!(seen.0, ip(NODE_A, flow.ipv6));
        describe(&mut mesh, "lo", 0);
        assert_eq!(flow.seen(&mesh, NODE_A, ACK), seen, "this one too");
        assert_eq!(flow.seen(&mesh, NODE_A, SYN), own);
    });
}

/// The packet inside an error, and who gets it, is translated too.
#[test]
fn errors_reach_the_client_and_the_task() {
    sandboxed(|sandbox| {
        for flags in [0, target_flag::SNAT] {
            let mut mesh = sandbox.load();
            describe(&mut mesh, "lo", flags);
            for flow in Flow::all().filter(|flow| !flow.tcp) {
                let flow = Flow {
                    port: CLIENT_PORT + u16::try_from(flags).unwrap(),
                    ..flow
                };
                let (unreachable, too_big) = if flow.ipv6 { (1, 2) } else { (3, 3) };
                let (client, router) = (flow.client(), flow.client());
                flow.seen(&mesh, NODE_A, 0);
                let seen = flow.seen(&mesh, NODE_B, 0);
                assert_ne!(seen, (client, flow.port));
                let (task, target) = flow.task();
                let run = |program, packet: Packet, mac| {
                    let packet = Packet {
                        source_mac: mac,
                        ..packet
                    };
                    let frame = summed(packet.bytes());
                    let (verdict, after) = run_on(&mesh, program, &frame, ifindex("lo"));
                    assert_eq!(verdict, NEXT);
                    after
                };
                // The task has no such port.
                let inner = |from| sum_inner(Packet::udp(from, (task, target)));
                let error = error(task, unreachable, seen.0, &inner(seen));
                let after = run(Program::FlowReturn, error, overlay_mac(TASK));
                let expected = Packet {
                    source_mac: overlay_mac(TASK),
                    ..self::error(task, unreachable, client, &inner((client, flow.port)))
                };
                let mut expected = summed(expected.bytes());
                expected[..6].copy_from_slice(&overlay_mac(NODE_B));
                assert_eq!(after, expected);
                // A router outside cannot pass an answer on.
                let inner = |to| sum_inner(Packet::udp((task, target), to));
                let error = self::error(router, too_big, task, &inner((client, flow.port)));
                let after = run(Program::FlowLearn, error, overlay_mac(NODE_B));
                let expected = Packet {
                    source_mac: overlay_mac(NODE_B),
                    ..self::error(router, too_big, task, &inner(seen))
                };
                assert_eq!(after, summed(expected.bytes()));
            }
        }
    });
}

/// The IP packet that an error carries, with the checksum of an IPv4 header.
fn sum_inner(packet: Packet) -> Vec<u8> {
    let frame = packet.bytes();
    let mut bytes = frame[14..].to_vec();
    if !is_ipv6(&frame) {
        let sum = checksum(&bytes[..20]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

fn error(from: IpAddr, kind: u8, to: IpAddr, about: &[u8]) -> Packet {
    let empty = Packet::udp((to, 0), (from, 0));
    let mut packet = Packet::error(from, kind, &empty);
    packet.body.truncate(8);
    packet.body.extend(about);
    packet
}

#[test]
fn without_a_memory_of_the_client_nothing_is_sent_to_whom_the_task_sees() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        describe(&mut mesh, "lo", target_flag::SNAT);
        let flow = Flow::all().next().unwrap();
        let seen = flow.seen(&mesh, NODE_A, 0);
        mesh.forget_translations();
        let answer = summed(flow.answer(seen, 0).bytes());
        let (verdict, _) = run_on(&mesh, Program::FlowReturn, &answer, ifindex("lo"));
        assert_eq!(verdict, DROP);
        assert_eq!(counter(&mesh, Counter::TranslationFailed), 1);
        // The client's next packet has it back.
        let again = flow.seen(&mesh, NODE_A, 0);
        flow.is_answered(&mesh, again, NODE_A, 0);
    });
}

/// Real sockets: clients with one address and port behind two nodes, and a task that answers.
struct Sockets {
    host: TaskHost,
}

impl Sockets {
    /// With `direct`, packets of the nodes come as from a tunnel that skips the bridge.
    fn new(sandbox: &Sandbox, flags: u32, direct: bool) -> Self {
        let mut host = TaskHost::new(sandbox);
        describe(&mut host.mesh, "t1", flags);
        let gateway_mac = mac_text(overlay_mac(GATEWAY));
        let task_mac = mac_text(overlay_mac(TASK));
        host.task
            .ip(&format!("addr add {}/64 dev eth0 nodad", v6(TASK)));
        host.task.ip(&format!(
            "neigh add {} lladdr {gateway_mac} dev eth0 nud permanent",
            v6(GATEWAY)
        ));
        host.task
            .ip(&format!("-6 route add default via {}", v6(GATEWAY)));
        for (node, address) in [(&host.node_a, NODE_A), (&host.node_b, NODE_B)] {
            node.ip(&format!("addr add {}/64 dev eth0 nodad", v6(address)));
            node.ip(&format!(
                "addr add {}/128 dev lo nodad",
                outside(ROUTED, true)
            ));
            let (task, client) = (v6(TASK), outside(ROUTED, true));
            node.ip(&format!(
                "-6 route add {task}/128 dev eth0 src {client} metric 1"
            ));
            node.ip(&format!(
                "neigh add {task} lladdr {task_mac} dev eth0 nud permanent"
            ));
            // Every client has the same port.
            node.inside(|| {
                sysctl(
                    "net.ipv4.ip_local_port_range",
                    &format!("{CLIENT_PORT} {CLIENT_PORT}"),
                );
            });
            // Who the task sees under the node's own address is found there.
            for address in [address.to_string(), v6(address).to_string()] {
                let mac = match address.parse().unwrap() {
                    IpAddr::V4(address) => overlay_mac(address),
                    IpAddr::V6(address) => {
                        overlay_mac(Ipv4Addr::from_bits(address.to_bits() as u32))
                    }
                };
                let mac = mac_text(mac);
                host.task.ip(&format!(
                    "neigh replace {address} lladdr {mac} dev eth0 nud permanent"
                ));
            }
        }
        if direct {
            for tunnel in ["xa", "xb"] {
                let tunnel = ifindex(tunnel);
                host.mesh.attach(Program::ShortcutOut, tunnel).unwrap();
            }
        }
        Self { host }
    }

    fn nodes(&self) -> [(&Netns, Ipv4Addr); 2] {
        [(&self.host.node_a, NODE_A), (&self.host.node_b, NODE_B)]
    }
}

/// Two connections at once, with the client's end and the task's.
fn connect_both(sockets: &Sockets, listener: &TcpListener) -> Vec<(TcpStream, TcpStream)> {
    let to = listener.local_addr().unwrap();
    let connect = |(node, _): (&Netns, Ipv4Addr)| {
        let client = node
            .inside(|| TcpStream::connect_timeout(&to, DEADLINE))
            .unwrap();
        let local = client.local_addr().unwrap();
        assert_eq!(local, (outside(ROUTED, to.is_ipv6()), CLIENT_PORT).into());
        let (task, _) = listener.accept().unwrap();
        (client, task)
    };
    sockets.nodes().map(connect).into()
}

/// Half a megabyte each way at once, on each of the connections, so that they are merged and
/// segmented.
fn exchange(pairs: &[(TcpStream, TcpStream)]) {
    const LEN: usize = 512 * 1024;
    thread::scope(|scope| {
        for (number, (client, task)) in (1..).zip(pairs) {
            for (from, to) in [(client, task), (task, client)] {
                let sent: Vec<u8> = (0..LEN).map(|at| (at as u8).wrapping_mul(number)).collect();
                let wanted = sent.clone();
                scope.spawn(move || (&*from).write_all(&sent).unwrap());
                scope.spawn(move || {
                    to.set_read_timeout(Some(DEADLINE)).unwrap();
                    let mut received = vec![0; LEN];
                    (&*to).read_exact(&mut received).unwrap();
                    assert!(received == wanted, "the bytes came changed");
                });
            }
        }
    });
}

#[test]
fn connections_with_one_client_tuple_over_two_nodes_both_work() {
    sandboxed(|sandbox| {
        let sockets = Sockets::new(sandbox, 0, false);
        for ipv6 in [false, true] {
            let at = SocketAddr::new(ip(TASK, ipv6), 81);
            let listener = sockets.host.task.inside(|| TcpListener::bind(at)).unwrap();
            let pairs = connect_both(&sockets, &listener);
            let peers: Vec<_> = pairs
                .iter()
                .map(|(_, task)| task.peer_addr().unwrap())
                .collect();
            let own = SocketAddr::new(outside(ROUTED, ipv6), CLIENT_PORT);
            assert_eq!(peers[0], own);
            assert_eq!(peers[1].ip(), own.ip());
            assert_ne!(peers[1].port(), CLIENT_PORT);
            exchange(&pairs);
            exchange(&pairs);
        }
    });
}

#[test]
fn connections_with_snat_come_from_the_ingress_nodes() {
    sandboxed(|sandbox| {
        let sockets = Sockets::new(sandbox, target_flag::SNAT, true);
        // Such a task may know no way to the client at all.
        sockets.host.task.ip("route del default");
        sockets.host.task.ip("-6 route del default");
        for ipv6 in [false, true] {
            let at = SocketAddr::new(ip(TASK, ipv6), 81);
            let listener = sockets.host.task.inside(|| TcpListener::bind(at)).unwrap();
            let pairs = connect_both(&sockets, &listener);
            for ((_, task), (_, node)) in pairs.iter().zip(sockets.nodes()) {
                assert_eq!(task.peer_addr().unwrap().ip(), ip(node, ipv6));
            }
            exchange(&pairs);
        }
    });
}

#[test]
fn datagrams_are_answered_in_fragments_too_and_refusals_arrive() {
    for flags in [0, target_flag::SNAT] {
        sandboxed(move |sandbox| {
            let sockets = Sockets::new(sandbox, flags, flags == 0);
            for ipv6 in [false, true] {
                let at = SocketAddr::new(ip(TASK, ipv6), 81);
                let server = sockets.host.task.inside(|| UdpSocket::bind(at)).unwrap();
                server.set_read_timeout(Some(DEADLINE)).unwrap();
                let mut clients = Vec::new();
                for (node, address) in sockets.nodes() {
                    let own = SocketAddr::new(outside(ROUTED, ipv6), CLIENT_PORT);
                    let client = node.inside(|| UdpSocket::bind(own)).unwrap();
                    client.set_read_timeout(Some(DEADLINE)).unwrap();
                    client.connect(at).unwrap();
                    clients.push((client, address));
                }
                for len in [1, 1400, 5000] {
                    let sent = vec![len as u8; len];
                    let mut buffer = vec![0; 6000];
                    for (client, node) in &clients {
                        client.send(&sent).unwrap();
                        let (received, from) = server.recv_from(&mut buffer).unwrap();
                        assert!(buffer[..received] == sent);
                        let expected = if flags == 0 {
                            outside(ROUTED, ipv6)
                        } else {
                            ip(*node, ipv6)
                        };
                        assert_eq!(from.ip(), expected);
                        server.send_to(&sent, from).unwrap();
                        let received = client.recv(&mut buffer).unwrap();
                        assert!(buffer[..received] == sent);
                    }
                }
                drop(server);
                for (client, _) in &clients {
                    client.send(b"?").unwrap();
                    let refused = client.recv(&mut [0]).unwrap_err();
                    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
                }
            }
        });
    }
}
