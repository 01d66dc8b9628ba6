//! The socket programs with real sockets: a host, its tasks and their servers in namespaces of
//! their own, on one wire.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::sandbox::{Netns, Sandbox, run, sandboxed};
use crate::ebpf::{
    Counter, Mesh, Protocol, SocketLinks, SocketProgram, SocketScope, SocketService, SocketTables,
    SocketTarget, netns_cookie, scope, scope_flag,
};

const DEADLINE: Duration = Duration::from_secs(5);

/// On the wire: the host, and tasks of which each answers with its own address.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
const TASKS: [Ipv4Addr; 3] = [
    Ipv4Addr::new(10, 255, 1, 1),
    Ipv4Addr::new(10, 255, 1, 2),
    Ipv4Addr::new(10, 255, 1, 3),
];
/// Nobody has these: a virtual address, a second one without a ready task, an address of the node.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const EMPTY_VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const PUBLISHED: u16 = 8080;
const TARGET: u16 = 80;

const NETWORK: u64 = scope::LAST + 1;
const SLOT: u64 = 7;
const SLOT6: u64 = 8;
const EMPTY_SLOT: u64 = 9;

/// The address by the same rule that the swarm has: the IPv4 address in the low 32 bits.
fn v6(address: Ipv4Addr) -> Ipv6Addr {
    let prefix = Ipv6Addr::new(0xfd00, 0x5, 0, 0, 0, 0, 0, 0).to_bits();
    Ipv6Addr::from_bits(prefix | u128::from(address.to_bits()))
}

fn cookie_here() -> u64 {
    netns_cookie(&UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap()).unwrap()
}

/// Answers each connection and each datagram with its own address.
fn serve(address: Ipv4Addr, port: u16) {
    let name = address.to_string();
    let tcp = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
    let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
    let answer = name.clone();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    thread::spawn(move || {
        while let Ok((_, peer)) = udp.recv_from(&mut [0; 64]) {
            let _ = udp.send_to(name.as_bytes(), peer);
        }
    });
}

/// The test thread's namespace is the host's.
struct World {
    mesh: Mesh,
    tables: SocketTables,
    tasks: Vec<Netns>,
}

impl World {
    fn new(sandbox: &Sandbox) -> Self {
        run("ip", "link add br0 type bridge");
        run("ip", &format!("addr add {HOST}/16 dev br0"));
        run("ip", &format!("addr add {}/64 dev br0 nodad", v6(HOST)));
        run("ip", "link set br0 up");
        let tasks: Vec<Netns> = (1..)
            .zip(TASKS)
            .map(|(number, address)| Self::task(&format!("t{number}"), address))
            .collect();
        let tables = Self::tables(&tasks);
        let mut mesh = sandbox.load();
        mesh.set_sockets(&tables).unwrap();
        mesh.attach_sockets().unwrap();
        Self {
            mesh,
            tables,
            tasks,
        }
    }

    fn task(port: &str, address: Ipv4Addr) -> Netns {
        let netns = Netns::new();
        let peer = format!("peer name eth0 netns {}", netns.path());
        run("ip", &format!("link add {port} type veth {peer}"));
        run("ip", &format!("link set {port} master br0 up"));
        netns.ip(&format!("addr add {address}/16 dev eth0"));
        netns.ip(&format!("addr add {}/64 dev eth0 nodad", v6(address)));
        netns.ip("link set eth0 up");
        netns.inside(|| serve(address, TARGET));
        netns
    }

    /// The first two tasks are behind the service; the third is on no network of its own.
    fn tables(tasks: &[Netns]) -> SocketTables {
        let task = |networks| SocketScope {
            networks,
            flags: scope_flag::PUBLISHED,
        };
        let host = SocketScope {
            networks: scope::NONE,
            flags: scope_flag::PUBLISHED | scope_flag::LOOPBACK,
        };
        let scopes = [NETWORK, NETWORK, scope::NONE].map(task);
        let cookies = tasks.iter().map(|task| task.inside(cookie_here));
        let mut services = BTreeMap::from([
            (
                SocketService::any_port(NETWORK, VIP.into()),
                SocketTarget::new(SLOT, None),
            ),
            (
                SocketService::any_port(NETWORK, v6(VIP).into()),
                SocketTarget::new(SLOT6, None),
            ),
            (
                SocketService::any_port(NETWORK, EMPTY_VIP.into()),
                SocketTarget::new(EMPTY_SLOT, None),
            ),
        ]);
        let at: [IpAddr; 2] = [NODE.into(), Ipv4Addr::LOCALHOST.into()];
        for address in at {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                services.insert(
                    SocketService::port(scope::PUBLISHED, address, PUBLISHED, protocol),
                    SocketTarget::new(SLOT, Some(TARGET)),
                );
            }
        }
        for (protocol, slot) in [(Protocol::Tcp, SLOT), (Protocol::Udp, SLOT6)] {
            services.insert(
                SocketService::port(
                    scope::PUBLISHED,
                    Ipv6Addr::LOCALHOST.into(),
                    PUBLISHED,
                    protocol,
                ),
                SocketTarget::new(slot, Some(TARGET)),
            );
        }
        let backends = [TASKS[0], TASKS[1]];
        SocketTables {
            scopes: cookies.zip(scopes).chain([(cookie_here(), host)]).collect(),
            services: services.into(),
            slots: Arc::new(BTreeMap::from([
                (SLOT, backends.map(IpAddr::from).into()),
                (SLOT6, backends.map(|address| v6(address).into()).into()),
                (EMPTY_SLOT, BTreeSet::new()),
            ])),
        }
    }

    fn set_backends(&mut self, tasks: &[Ipv4Addr]) {
        let backends = tasks.iter().map(|address| IpAddr::from(*address));
        Arc::make_mut(&mut self.tables.slots).insert(SLOT, backends.collect());
        self.mesh.set_sockets(&self.tables).unwrap();
    }

    fn refused(&self) -> u64 {
        self.mesh.counters().unwrap()[&Counter::SocketNoBackend]
    }
}

/// Asks by a connection; checks that the peer is shown as asked.
fn ask_tcp(server: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, DEADLINE)?;
    assert_eq!(stream.peer_addr()?, server);
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn udp_socket(server: SocketAddr) -> UdpSocket {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

/// Asks by a datagram; checks that the answer is shown as from who was asked.
fn ask_udp(socket: &UdpSocket, server: SocketAddr) -> std::io::Result<String> {
    socket.send_to(b"?", server)?;
    let mut answer = [0; 64];
    let (len, from) = socket.recv_from(&mut answer)?;
    assert_eq!(from, server, "the answer came from another address");
    Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
}

fn ask_connected_udp(server: SocketAddr) -> std::io::Result<String> {
    let socket = udp_socket(server);
    socket.connect(server)?;
    assert_eq!(socket.peer_addr()?, server);
    socket.send(b"?")?;
    let mut answer = [0; 64];
    let (len, from) = socket.recv_from(&mut answer)?;
    assert_eq!(from, server, "the answer came from another address");
    Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
}

/// Asks many times in every way; gives everybody who answered.
fn answerers(server: SocketAddr) -> BTreeSet<String> {
    let ways: [fn(SocketAddr) -> std::io::Result<String>; 3] = [
        ask_tcp,
        |server| ask_udp(&udp_socket(server), server),
        ask_connected_udp,
    ];
    let mut all = None;
    for ask in ways {
        let answered: BTreeSet<String> = (0..24).map(|_| ask(server).unwrap()).collect();
        assert_eq!(*all.get_or_insert_with(|| answered.clone()), answered);
    }
    all.unwrap()
}

fn names(tasks: &[Ipv4Addr]) -> BTreeSet<String> {
    tasks.iter().map(ToString::to_string).collect()
}

fn mapped(address: Ipv4Addr) -> IpAddr {
    address.to_ipv6_mapped().into()
}

#[test]
fn a_virtual_address_leads_to_every_ready_task_by_any_port() {
    sandboxed(|sandbox| {
        let world = World::new(sandbox);
        let asker = &world.tasks[0];
        let both = names(&TASKS[..2]);
        for address in [VIP.into(), v6(VIP).into(), mapped(VIP)] {
            let answered = asker.inside(|| answerers((address, TARGET).into()));
            assert_eq!(answered, both, "asked at {address}");
        }
        // Another port is another server, by the same address.
        asker.inside(|| serve(HOST, 5000));
        world.tasks[1].inside(|| serve(HOST, 5000));
        let answered = asker.inside(|| answerers((VIP, 5000).into()));
        assert_eq!(answered, names(&[HOST]));
    });
}

#[test]
fn the_choice_is_even() {
    sandboxed(|sandbox| {
        let world = World::new(sandbox);
        let first = world.tasks[0].inside(|| {
            let answers = (0..200).map(|_| ask_tcp((VIP, TARGET).into()).unwrap());
            answers.filter(|from| *from == TASKS[0].to_string()).count()
        });
        // Of a fair coin this fails once in 10^11 runs.
        assert!((52..=148).contains(&first), "{first} of 200");
    });
}

#[test]
fn a_service_without_a_ready_task_refuses_at_once() {
    sandboxed(|sandbox| {
        let world = World::new(sandbox);
        world.tasks[0].inside(|| {
            let server = (EMPTY_VIP, TARGET).into();
            let started = std::time::Instant::now();
            let errors = [
                ask_tcp(server).unwrap_err(),
                ask_udp(&udp_socket(server), server).unwrap_err(),
                ask_connected_udp(server).unwrap_err(),
            ];
            for error in errors {
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
            }
            assert!(started.elapsed() < DEADLINE);
        });
        assert_eq!(world.refused(), 3);
    });
}

#[test]
fn a_virtual_address_is_nothing_outside_its_network() {
    sandboxed(|sandbox| {
        let world = World::new(sandbox);
        for outsider in [&world.tasks[2], &Netns::new()] {
            outsider.inside(|| {
                let error = ask_tcp((VIP, TARGET).into()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "{error}");
            });
        }
        let error = ask_tcp((VIP, TARGET).into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "{error}");
        assert_eq!(world.refused(), 0);
    });
}

#[test]
fn a_published_port_answers_on_the_node_itself() {
    sandboxed(|sandbox| {
        let _world = World::new(sandbox);
        let both = names(&TASKS[..2]);
        for address in [NODE, Ipv4Addr::LOCALHOST] {
            for address in [address.into(), mapped(address)] {
                assert_eq!(answerers((address, PUBLISHED).into()), both, "{address}");
            }
        }
        assert_eq!(answerers((Ipv6Addr::LOCALHOST, PUBLISHED).into()), both);
        // The unspecified address is the loopback's, and shown as such.
        let mut stream = TcpStream::connect(("0.0.0.0", PUBLISHED)).unwrap();
        assert_eq!(stream.peer_addr().unwrap().ip(), Ipv4Addr::LOCALHOST);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(both.contains(&answer), "{answer}");
        // Only there, only that port, only while it is published.
        for server in ["127.0.0.2:8080", "127.0.0.1:8081"] {
            let error = ask_tcp(server.parse().unwrap()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{server}");
        }
    });
}

#[test]
fn a_task_reaches_published_ports_of_its_node_its_own_too() {
    sandboxed(|sandbox| {
        let mut world = World::new(sandbox);
        let server = (NODE, PUBLISHED).into();
        for task in &world.tasks {
            assert_eq!(task.inside(|| answerers(server)), names(&TASKS[..2]));
        }
        world.set_backends(&TASKS[..1]);
        let answered = world.tasks[0].inside(|| answerers(server));
        assert_eq!(answered, names(&TASKS[..1]));
        // The loopback address of a task is its own.
        let error = world.tasks[0].inside(|| ask_tcp(([127, 0, 0, 1], PUBLISHED).into()));
        assert_eq!(error.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn who_listens_on_the_host_keeps_its_loopback_port_and_nothing_else() {
    sandboxed(|sandbox| {
        let _world = World::new(sandbox);
        serve(HOST, PUBLISHED);
        for address in [
            Ipv4Addr::LOCALHOST.into(),
            Ipv6Addr::LOCALHOST.into(),
            mapped(Ipv4Addr::LOCALHOST),
        ] {
            let answered = answerers((address, PUBLISHED).into());
            assert_eq!(answered, names(&[HOST]), "{address}");
        }
        assert_eq!(answerers((NODE, PUBLISHED).into()), names(&TASKS[..2]));
    });
}

#[test]
fn an_unconnected_socket_stays_with_its_task_until_that_one_goes() {
    sandboxed(|sandbox| {
        let mut world = World::new(sandbox);
        let server: SocketAddr = (VIP, TARGET).into();
        let sockets: Vec<(UdpSocket, String)> = world.tasks[0].inside(|| {
            let asked = |_| {
                let socket = udp_socket(server);
                let first = ask_udp(&socket, server).unwrap();
                (socket, first)
            };
            (0..12).map(asked).collect()
        });
        let all_stay = || {
            for (socket, first) in &sockets {
                assert_eq!(ask_udp(socket, server).unwrap(), *first);
            }
        };
        all_stay();
        world.set_backends(&TASKS);
        all_stay();
        world.set_backends(&TASKS[1..]);
        for (socket, first) in &sockets {
            let now = ask_udp(socket, server).unwrap();
            assert_ne!(now, TASKS[0].to_string());
            assert!(now == *first || *first == TASKS[0].to_string());
            assert_eq!(ask_udp(socket, server).unwrap(), now);
        }
        world.set_backends(&[]);
        let error = ask_udp(&sockets[0].0, server).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn tables_change_by_the_difference() {
    sandboxed(|sandbox| {
        let mut world = World::new(sandbox);
        let nothing = crate::ebpf::Changed::default();
        assert_eq!(world.mesh.set_sockets(&world.tables).unwrap(), nothing);
        Arc::make_mut(&mut world.tables.slots).insert(SLOT, [TASKS[0].into()].into());
        let changed = world.mesh.set_sockets(&world.tables).unwrap();
        assert_eq!((changed.written, changed.removed), (1, 1));

        // What somebody breaks by hand is put right.
        let path = sandbox.pin("sock_slot");
        let key = SLOT.to_ne_bytes().map(|byte| byte.to_string()).join(" ");
        let delete = format!("map delete pinned {} key {key}", path.display());
        run("bpftool", &delete);
        let changed = world.mesh.set_sockets(&world.tables).unwrap();
        assert_eq!((changed.written, changed.removed), (1, 0));

        // Nothing is left of what is no longer desired.
        world.mesh.set_sockets(&SocketTables::default()).unwrap();
        for map in ["sock_scope", "sock_service", "sock_slot", "sock_backend"] {
            let dump = format!("-j map dump pinned {}", sandbox.pin(map).display());
            assert_eq!(run("bpftool", &dump).trim(), "[]", "{map}");
        }
    });
}

fn pin(sandbox: &Sandbox, program: SocketProgram) -> std::path::PathBuf {
    sandbox.bpffs_dir().join("links").join(program.name())
}

#[test]
fn the_links_outlive_the_agent_and_the_next_one_replaces_them_without_a_gap() {
    sandboxed(|sandbox| {
        let World { mesh, tasks, .. } = World::new(sandbox);
        let attached = |mesh: &Mesh| mesh.socket_links().unwrap();
        assert_eq!(attached(&mesh), SocketLinks::Current);
        let asker = &tasks[0];
        let server: SocketAddr = (VIP, TARGET).into();
        let socket = asker.inside(|| udp_socket(server));
        let first = ask_udp(&socket, server).unwrap();
        drop(mesh);
        asker.inside(|| ask_tcp(server).unwrap());

        let mut successor = sandbox.load();
        assert_eq!(attached(&successor), SocketLinks::Outdated);
        thread::scope(|scope| {
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            let asking = scope.spawn(|| {
                asker.inside(move || {
                    let mut asked = 0;
                    while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                        ask_tcp(server).unwrap();
                        asked += 1;
                    }
                    asked
                })
            });
            for _ in 0..5 {
                successor = sandbox.load();
                successor.attach_sockets().unwrap();
            }
            drop(stop);
            assert!(asking.join().unwrap() > 0);
        });
        assert_eq!(attached(&successor), SocketLinks::Current);
        assert_eq!(
            ask_udp(&socket, server).unwrap(),
            first,
            "what was learned is kept"
        );
        let links = std::fs::read_dir(sandbox.bpffs_dir().join("links")).unwrap();
        assert_eq!(
            links.count(),
            SocketProgram::ALL.len(),
            "one link each is left"
        );
    });
}

#[test]
fn a_link_that_somebody_breaks_is_mended() {
    sandboxed(|sandbox| {
        let mut world = World::new(sandbox);
        let ask = |world: &World| world.tasks[0].inside(|| ask_tcp((VIP, TARGET).into()));
        let path = pin(sandbox, SocketProgram::Connect4);
        let shown = run(
            "bpftool",
            &format!("-j link show pinned {}", path.display()),
        );
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        for forced in [true, false] {
            if forced {
                run("bpftool", &format!("link detach id {}", shown["id"]));
            } else {
                std::fs::remove_file(&path).unwrap();
            }
            assert!(ask(&world).is_err());
            assert_eq!(world.mesh.socket_links().unwrap(), SocketLinks::Outdated);
            world.mesh.attach_sockets().unwrap();
            assert_eq!(world.mesh.socket_links().unwrap(), SocketLinks::Current);
            ask(&world).unwrap();
        }
    });
}

#[test]
fn leaving_detaches() {
    sandboxed(|sandbox| {
        let World { mesh, tasks, .. } = World::new(sandbox);
        Mesh::remove_pins(&sandbox.bpffs_dir()).unwrap();
        assert!(!sandbox.bpffs_dir().exists());
        assert_eq!(mesh.socket_links().unwrap(), SocketLinks::Absent);
        let error = tasks[0].inside(|| ask_tcp((VIP, TARGET).into()));
        assert_eq!(error.unwrap_err().kind(), ErrorKind::NetworkUnreachable);
        Mesh::remove_pins(&sandbox.bpffs_dir()).unwrap();
    });
}
