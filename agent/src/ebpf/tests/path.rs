//! Whole paths with real sockets: from a client into the ingress namespace and back, and from an
//! ingress node to a task and back. IPVS, which sits between the two, is tested in the lab.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use nix::libc;

use super::frame::{Frame, NODE, TASK};
use super::sandbox::{Netns, Sandbox, ifindex, mac_text, overlay_mac, run, sandboxed, sysctl};
use crate::ebpf::{
    Attached, Config, Counter, Mac, Mesh, Program, Protocol, PublishedKey, PublishedValue, TaskPort,
};

const DEADLINE: Duration = Duration::from_secs(5);
/// How long to wait for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(300);

const PORT: u16 = 8080;
/// Clients on the uplink's own network, behind a router there, and on another interface.
const NEAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
pub(super) const ROUTED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);

/// Answers each connection and each datagram with the address it came from.
fn serve_peer_addresses(port: u16) {
    let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, peer)) = tcp.accept() {
            let _ = stream.write_all(peer.to_string().as_bytes());
        }
    });
    thread::spawn(move || {
        let mut datagram = vec![0; 65_536];
        while let Ok((_, peer)) = udp.recv_from(&mut datagram) {
            let _ = udp.send_to(peer.to_string().as_bytes(), peer);
        }
    });
}

fn ask_tcp(source: Ipv4Addr, server: SocketAddr) -> std::io::Result<String> {
    // The standard library cannot bind before connecting; the route's source address decides.
    let mut stream = TcpStream::connect_timeout(&server, DEADLINE)?;
    assert_eq!(stream.local_addr()?.ip(), IpAddr::from(source));
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    assert_eq!(
        answer,
        stream.local_addr()?.to_string(),
        "the server saw another client"
    );
    Ok(answer)
}

fn ask_udp(socket: &UdpSocket, server: SocketAddr, timeout: Duration) -> std::io::Result<String> {
    socket.set_read_timeout(Some(timeout))?;
    socket.send_to(b"?", server)?;
    let mut answer = [0; 64];
    let (len, from) = socket.recv_from(&mut answer)?;
    assert_eq!(from, server, "the answer came from another address");
    Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
}

/// The thread's own network namespace is the host: two uplinks with clients, and the ingress
/// namespace, in which a server stands for IPVS and the tasks.
struct Host {
    mesh: Mesh,
    near: Netns,
    elsewhere: Netns,
    _ingress: Netns,
}

impl Host {
    fn new(sandbox: &Sandbox) -> Self {
        let (near, elsewhere, ingress) = (Netns::new(), Netns::new(), Netns::new());
        for (uplink, client, address) in [
            ("up0", &near, "192.0.2.10/24"),
            ("up1", &elsewhere, "198.51.100.1/24"),
        ] {
            let peer = format!("peer name c0 mtu 9000 netns {}", client.path());
            run(
                "ip",
                &format!("link add {uplink} mtu 9000 type veth {peer}"),
            );
            run("ip", &format!("addr add {address} dev {uplink}"));
            run("ip", &format!("link set {uplink} up"));
            client.ip("link set c0 up");
        }
        near.ip("addr add 192.0.2.77/24 dev c0");
        near.ip("addr add 203.0.113.9/32 dev lo");
        elsewhere.ip("addr add 198.51.100.77/24 dev c0");
        elsewhere.ip("route add default via 198.51.100.1");
        run("ip", "route add 203.0.113.0/24 via 192.0.2.77");
        run("ip", "route add default via 192.0.2.77");

        run(
            "ip",
            &format!(
                "link add sw-e1h type veth peer name e1 netns {}",
                ingress.path()
            ),
        );
        run("ip", "link set sw-e1h up");
        sysctl("net.ipv4.ip_forward", "1");
        let link = run("ip", "-json link show sw-e1h");
        let link: serde_json::Value = serde_json::from_str(&link).unwrap();
        let gateway_mac = link[0]["address"].as_str().unwrap();
        ingress.inside(|| {
            run("ip", "link set e1 up");
            run("ip", &format!("addr add {NODE}/32 dev lo"));
            run(
                "ip",
                &format!("neigh add 169.254.255.1 lladdr {gateway_mac} dev e1 nud permanent"),
            );
            run("ip", "route add default via 169.254.255.1 dev e1 onlink");
            sysctl("net.ipv4.conf.all.rp_filter", "0");
            sysctl("net.ipv4.conf.e1.rp_filter", "0");
            serve_peer_addresses(PORT);
        });

        let mut mesh = sandbox.load();
        let uplink_ifindex = ifindex("up0");
        mesh.set_config(Config {
            e1h_ifindex: ifindex("sw-e1h"),
            uplink_ifindex,
            ..Config::default()
        })
        .unwrap();
        mesh.set_node_addresses(&BTreeSet::from([NODE.into()]))
            .unwrap();
        let key = |protocol| PublishedKey::new(NODE.into(), PORT, protocol);
        let value = PublishedValue {
            service: 1,
            flags: 0,
        };
        let both = BTreeMap::from([(key(Protocol::Tcp), value), (key(Protocol::Udp), value)]);
        mesh.set_published(&both).unwrap();
        attach(&mesh);
        Self {
            mesh,
            near,
            elsewhere,
            _ingress: ingress,
        }
    }
}

fn attach(mesh: &Mesh) {
    for uplink in ["up0", "up1"] {
        mesh.attach(Program::MeshUplink, ifindex(uplink)).unwrap();
    }
    mesh.attach(Program::MeshOut, ifindex("sw-e1h")).unwrap();
}

fn server() -> SocketAddr {
    (NODE, PORT).into()
}

#[test]
fn clients_everywhere_are_answered_and_seen_by_their_own_address() {
    sandboxed(|sandbox| {
        let host = Host::new(sandbox);
        for (client, address) in [
            (&host.near, NEAR),
            (&host.near, ROUTED),
            (&host.elsewhere, ELSEWHERE),
        ] {
            client.inside(|| {
                let socket = UdpSocket::bind((address, 0)).unwrap();
                let answer = ask_udp(&socket, server(), DEADLINE).unwrap();
                assert_eq!(answer, socket.local_addr().unwrap().to_string());
                if address == ROUTED {
                    run(
                        "ip",
                        &format!("route replace {NODE}/32 dev c0 src {address}"),
                    );
                }
                ask_tcp(address, server()).unwrap();
            });
        }
        let counters = host.mesh.counters().unwrap();
        assert_eq!(
            counters[&Counter::OutByUplink] + counters[&Counter::OutUnroutable],
            0
        );
        assert!(host.mesh.service_stats().unwrap()[&1].packets >= 6);
    });
}

#[test]
fn an_unpublished_port_is_the_hosts_and_refuses_at_once() {
    sandboxed(|sandbox| {
        let mut host = Host::new(sandbox);
        host.near.inside(|| ask_tcp(NEAR, server())).unwrap();
        host.mesh.set_published(&BTreeMap::new()).unwrap();
        let error = host.near.inside(|| ask_tcp(NEAR, server())).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

/// What a published port without a ready task is: nobody in the ingress namespace listens.
#[test]
fn a_published_port_without_a_balancer_refuses_at_once_and_hides_the_hosts() {
    sandboxed(|sandbox| {
        let mut host = Host::new(sandbox);
        let port = PORT + 1;
        let _hidden = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
        let key = PublishedKey::new(NODE.into(), port, Protocol::Tcp);
        let value = PublishedValue {
            service: 1,
            flags: 0,
        };
        host.mesh
            .set_published(&BTreeMap::from([(key, value)]))
            .unwrap();
        for _ in 0..8 {
            let asked = host
                .near
                .inside(|| ask_tcp(NEAR, SocketAddr::from((NODE, port))));
            let error = asked.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        }
    });
}

#[test]
fn headers_outside_the_linear_part_are_pulled_in() {
    sandboxed(|sandbox| {
        let host = Host::new(sandbox);
        let link = run("ip", "-json link show up0");
        let link: serde_json::Value = serde_json::from_str(&link).unwrap();
        let mac: Vec<u8> = link[0]["address"]
            .as_str()
            .unwrap()
            .split(':')
            .map(|octet| u8::from_str_radix(octet, 16).unwrap())
            .collect();
        host.near.inside(|| {
            let socket = UdpSocket::bind((NEAR, 0)).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            let client = socket.local_addr().unwrap();
            // Resolves the neighbours both ways, which a raw frame does not.
            ask_udp(&socket, server(), DEADLINE).unwrap();
            for header_words in [5, 15] {
                let frame = Frame {
                    destination_mac: mac.clone().try_into().unwrap(),
                    header_words,
                    // Above a page a packet socket leaves only the Ethernet header linear.
                    payload: vec![0; 6_000],
                    ..Frame::udp((NEAR, client.port()), (NODE, PORT))
                };
                send_raw("c0", &frame.bytes());
                let mut answer = [0; 64];
                let (len, _) = socket.recv_from(&mut answer).unwrap();
                assert_eq!(&answer[..len], client.to_string().as_bytes());
            }
        });
    });
}

#[allow(
    unsafe_code,
    reason = "nix has no constructor for packet socket addresses"
)]
fn send_raw(interface: &str, frame: &[u8]) {
    use std::os::fd::AsRawFd as _;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    let packet = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::empty(),
        None,
    )
    .unwrap();
    // SAFETY: all zero is a valid socket address.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = ifindex(interface).cast_signed();
    // SAFETY: pointers and lengths are those of the frame and the address, which outlive the call.
    let sent = unsafe {
        libc::sendto(
            packet.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of_val(&to) as libc::socklen_t,
        )
    };
    assert_eq!(
        usize::try_from(sent),
        Ok(frame.len()),
        "{}",
        std::io::Error::last_os_error()
    );
}

pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
pub(super) const NODE_A: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 2);
pub(super) const NODE_B: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 3);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 4);

/// The thread's own network namespace is the ingress network's on the task's host. Bridge ports
/// stand for the VXLAN tunnel to other nodes, each of which has the client's address.
pub(super) struct TaskHost {
    pub(super) mesh: Mesh,
    pub(super) task: Netns,
    pub(super) node_a: Netns,
    pub(super) node_b: Netns,
    stranger: Netns,
}

impl TaskHost {
    pub(super) fn new(sandbox: &Sandbox) -> Self {
        let gateway_mac = mac_text(overlay_mac(GATEWAY));
        run(
            "ip",
            &format!("link add br0 address {gateway_mac} type bridge"),
        );
        run("ip", &format!("addr add {GATEWAY}/16 dev br0"));
        run("ip", "link set br0 up");
        let task = Self::port("t1", TASK);
        task.ip(&format!(
            "neigh add {GATEWAY} lladdr {gateway_mac} dev eth0 nud permanent"
        ));
        task.ip(&format!("route add default via {GATEWAY}"));
        task.inside(|| serve_peer_addresses(80));
        let node = |port, address| {
            let node = Self::port(port, address);
            node.ip(&format!("addr add {ROUTED}/32 dev lo"));
            node.ip(&format!("route add {TASK}/32 dev eth0 src {ROUTED}"));
            node
        };
        let (node_a, node_b) = (node("xa", NODE_A), node("xb", NODE_B));
        let stranger = node("xs", STRANGER);

        let mut mesh = sandbox.load();
        let macs = [(overlay_mac(NODE_A), 1), (overlay_mac(NODE_B), 2)];
        mesh.set_ingress_macs(&BTreeMap::from(macs)).unwrap();
        mesh.attach(Program::FlowLearn, ifindex("t1")).unwrap();
        mesh.attach(Program::FlowReturn, ifindex("t1")).unwrap();
        Self {
            mesh,
            task,
            node_a,
            node_b,
            stranger,
        }
    }

    /// A namespace behind a port of the bridge.
    fn port(port: &str, address: Ipv4Addr) -> Netns {
        let netns = Netns::new();
        let mac = mac_text(overlay_mac(address));
        let peer = format!("peer name eth0 address {mac} netns {}", netns.path());
        run("ip", &format!("link add {port} type veth {peer}"));
        run("ip", &format!("link set {port} master br0 up"));
        netns.ip(&format!("addr add {address}/16 dev eth0"));
        netns.ip("link set eth0 up");
        netns
    }
}

fn task() -> SocketAddr {
    (TASK, 80).into()
}

#[test]
fn a_task_answers_through_the_node_that_asked() {
    sandboxed(|sandbox| {
        let host = TaskHost::new(sandbox);
        for node in [&host.node_a, &host.node_b] {
            node.inside(|| ask_tcp(ROUTED, task())).unwrap();
        }
        // One client socket's worth of tuple, over two nodes in turn.
        for node in [&host.node_a, &host.node_b, &host.node_a] {
            node.inside(|| {
                let socket = UdpSocket::bind((ROUTED, 5353)).unwrap();
                let answer = ask_udp(&socket, task(), DEADLINE).unwrap();
                // The second node's flow has another port; see `translation`.
                assert!(answer.starts_with(&format!("{ROUTED}:")), "{answer}");
            });
        }
    });
}

#[test]
fn requests_and_answers_pass_the_tunnel_without_the_bridge() {
    sandboxed(|sandbox| {
        let mut host = TaskHost::new(sandbox);
        // The tunnel to node A, which the bridge does not know.
        run("ip", "link set xa nomaster");
        let task_mac = mac_text(overlay_mac(TASK));
        host.node_a.ip(&format!(
            "neigh add {TASK} lladdr {task_mac} dev eth0 nud permanent"
        ));
        let tunnel = ifindex("xa");
        host.mesh.attach(Program::ShortcutOut, tunnel).unwrap();
        let ask = |host: &TaskHost, deadline| {
            host.node_a.inside(|| {
                let socket = UdpSocket::bind((ROUTED, 0)).unwrap();
                ask_udp(&socket, task(), deadline)
            })
        };
        assert!(ask(&host, SILENCE).is_err(), "neither way is there");

        let port = TaskPort::new(overlay_mac(TASK), (TASK, 16), None);
        let ports = BTreeMap::from([(ifindex("t1"), port)]);
        host.mesh.set_task_ports(&ports).unwrap();
        assert!(ask(&host, SILENCE).is_err(), "there is no way back");

        let config = Config {
            vxlan_ifindex: tunnel,
            mac: Mac::new(overlay_mac(GATEWAY)),
            ..Config::default()
        };
        host.mesh.set_config(config).unwrap();
        ask(&host, DEADLINE).unwrap();
        host.node_a.inside(|| ask_tcp(ROUTED, task())).unwrap();
        // Node B is behind the bridge still; and this node's own answers stay here.
        host.mesh
            .set_config(Config {
                mac: Mac::new(overlay_mac(NODE_B)),
                ..config
            })
            .unwrap();
        host.node_b.inside(|| ask_tcp(ROUTED, task())).unwrap();
    });
}

#[test]
fn a_node_that_is_not_an_ingress_node_gets_no_answer_this_way() {
    sandboxed(|sandbox| {
        let host = TaskHost::new(sandbox);
        host.stranger.inside(|| {
            let socket = UdpSocket::bind((ROUTED, 0)).unwrap();
            assert!(ask_udp(&socket, task(), SILENCE).is_err());
        });
        let counters = host.mesh.counters().unwrap();
        assert_eq!(counters[&Counter::FlowLearned], 0);
        // The task's own traffic still finds the local gateway.
        host.task.inside(|| {
            let socket = UdpSocket::bind((TASK, 0)).unwrap();
            socket.connect((GATEWAY, 9)).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket.send(b"?").unwrap();
            // Nobody listens there: the gateway's refusal is the sign of life.
            let error = socket.recv(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        });
    });
}

#[test]
fn a_transfer_survives_the_agents_successor() {
    const CHUNK: usize = 1 << 20;
    sandboxed(|sandbox| {
        let host = TaskHost::new(sandbox);
        let listener = host.task.inside(|| TcpListener::bind((TASK, 81)).unwrap());
        let echo = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap()
        });
        let stream = host
            .node_a
            .inside(|| TcpStream::connect_timeout(&(TASK, 81).into(), DEADLINE).unwrap());
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let exchange = |seed: u8| {
            let sent: Vec<u8> = (0..CHUNK).map(|at| (at as u8).wrapping_mul(seed)).collect();
            let mut received = vec![0; CHUNK];
            thread::scope(|scope| {
                scope.spawn(|| (&stream).write_all(&sent).unwrap());
                (&stream).read_exact(&mut received).unwrap();
            });
            assert!(sent == received, "the bytes came back changed");
        };
        exchange(3);

        let TaskHost {
            mesh,
            task: _task,
            node_a: _node_a,
            ..
        } = host;
        let old = mesh.program_id(Program::FlowReturn).unwrap();
        drop(mesh);
        exchange(5);
        let successor = sandbox.load();
        for program in [Program::FlowLearn, Program::FlowReturn] {
            let outcome = successor.attach(program, ifindex("t1")).unwrap();
            assert!(matches!(outcome, Attached::Replaced(_)), "{outcome:?}");
        }
        assert_ne!(successor.program_id(Program::FlowReturn).unwrap(), old);
        exchange(7);
        let learned = successor.counters().unwrap()[&Counter::FlowLearned];
        assert_eq!(learned, 1, "the successor did not have to learn it anew");
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(echo.join().unwrap(), 3 * CHUNK as u64);
    });
}
