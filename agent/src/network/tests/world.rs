//! Nodes on one wire, each with namespaces of its own.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv6Net};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use swarm_model::{NetworkId, NodeId, PortConfig, ServiceId, TaskId};
use tempfile::TempDir;

use crate::SharedMap;
use crate::network::desired::{
    Attachment, Backend, BackendState, Desired, IngressNetwork, LocalNode, LocalTask, Overlay,
    Peer, Service, Task, address6,
};
use crate::network::netns::{Netns, NetnsDir};
use crate::network::reconcile::{NetworkConfig, Reconciler};

/// How long anything may take that should be there within two intervals between passes: as long as
/// an emulated machine needs for it that has other things to do.
pub(in crate::network) const DEADLINE: Duration = Duration::from_secs(30);

/// Where these tests can run; nothing where not, after saying so.
pub(in crate::network) fn as_root() -> Option<()> {
    if nix::unistd::Uid::effective().is_root() {
        return Some(());
    }
    assert!(
        !required("SWARM_TEST_REQUIRE_KERNEL"),
        "these tests need root"
    );
    eprintln!("SKIPPED: needs root");
    None
}

fn required(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

fn id<T: std::str::FromStr>(kind: char, number: u8) -> T {
    let text = format!("{kind}{number:03}{:021}", 0);
    text.parse().unwrap_or_else(|_| panic!("{text} is an id"))
}

pub(in crate::network) fn task_id(number: u8) -> TaskId {
    id('t', number)
}

/// The address of a task made by [`task_id`].
pub(in crate::network) fn address_of(task: &TaskId) -> IpAddr {
    let number: u8 = task.as_str()[1..4].parse().unwrap();
    IpAddr::from([10, 255, 1, number])
}

/// How a task made by [`task_id`] is connected.
pub(in crate::network) fn local(task: &TaskId) -> LocalTask {
    LocalTask {
        address: address_of(task),
        egress: true,
        attachments: Vec::new(),
    }
}

/// The IPv6 addresses of the network.
const SUBNET6: &str = "fd00:a::/64";

/// The twin of [`address_of`].
pub(in crate::network) fn address6_of(task: &TaskId) -> IpAddr {
    address6(SUBNET6.parse().unwrap(), address_of(task)).unwrap()
}

/// The address of a task on a user's network.
pub(in crate::network) fn on_network(network: u8, task: u8) -> IpAddr {
    IpAddr::from([10, 0, network, 10 + task])
}

/// A user's network without IPv6; the others have it.
pub(in crate::network) const IPV4_ALONE: u8 = 9;

fn network6(network: u8) -> Ipv6Net {
    format!("fd00:b:{network:x}::/64").parse().unwrap()
}

/// The twin of [`on_network`].
pub(in crate::network) fn on_network6(network: u8, task: u8) -> IpAddr {
    address6(network6(network), on_network(network, task)).unwrap()
}

/// Runs a program inside a namespace and returns what it printed.
pub(in crate::network) fn command(netns: &Netns, line: &str) -> String {
    try_command(netns, line).unwrap_or_else(|| panic!("{line} did not succeed"))
}

/// The same; nothing where it fails or does not exist.
pub(in crate::network) fn try_command(netns: &Netns, line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    let output = netns.run(|| command.output()).unwrap().ok()?;
    if !output.status.success() {
        eprintln!("{line}: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Whether a condition comes true within a time.
pub(in crate::network) fn within(time: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + time;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(in crate::network) fn listen(netns: &Netns, port: u16) -> TcpListener {
    listen_at(netns, (Ipv4Addr::UNSPECIFIED, port).into())
}

/// At both IP versions: a peer's IPv4 address is told as an IPv6 one.
pub(in crate::network) fn listen_both(netns: &Netns, port: u16) -> TcpListener {
    listen_at(netns, (Ipv6Addr::UNSPECIFIED, port).into())
}

fn listen_at(netns: &Netns, at: SocketAddr) -> TcpListener {
    netns.run(|| TcpListener::bind(at)).unwrap().unwrap()
}

pub(in crate::network) fn connect(netns: &Netns, to: SocketAddr) -> io::Result<TcpStream> {
    netns
        .run(|| TcpStream::connect_timeout(&to, DEADLINE))
        .unwrap()
}

/// One node.
pub(in crate::network) struct Node {
    pub(in crate::network) host: Netns,
    pub(in crate::network) config: NetworkConfig,
    reconciler: Option<Reconciler>,
}

impl Node {
    pub(in crate::network) fn reconciler(&self) -> &Reconciler {
        self.reconciler.as_ref().expect("started")
    }

    pub(in crate::network) fn netns_path(&self, name: &str) -> PathBuf {
        self.config.run_dir.join("netns").join(name)
    }

    fn netns(&self, name: &str) -> Option<Netns> {
        NetnsDir::new(self.config.run_dir.join("netns"))
            .open(name)
            .unwrap()
    }

    pub(in crate::network) fn try_ingress(&self) -> Option<Netns> {
        self.netns("ingress")
    }

    pub(in crate::network) fn ingress(&self) -> Netns {
        self.try_ingress().expect("an ingress namespace")
    }

    /// The namespace of a user's network, when there is one.
    pub(in crate::network) fn overlay(&self, number: u8) -> Option<Netns> {
        let network: NetworkId = id('k', number);
        self.netns(&format!("net-{}", network.short()))
    }

    pub(in crate::network) fn task(&self, task: &TaskId) -> Netns {
        self.try_task(task).expect("a namespace of the task")
    }

    pub(super) fn try_task(&self, task: &TaskId) -> Option<Netns> {
        self.netns(&format!("task-{task}"))
    }

    fn start(&mut self) {
        let Self { host, config, .. } = self;
        self.reconciler = Some(host.run(|| Reconciler::start(config)).unwrap().unwrap());
    }
}

/// Nodes 1 to n at 192.0.2.n and 2001:db8::n, and a client at 192.0.2.100 and 2001:db8::100, on one
/// wire.
pub(in crate::network) struct World {
    nodes: Vec<Node>,
    pub(in crate::network) client: Netns,
    /// Whether the nodes' data-path addresses are IPv6.
    pub(in crate::network) underlay_ipv6: bool,
    generation: AtomicU64,
    networks: Mutex<BTreeMap<u8, Vec<u8>>>,
    _wire: Netns,
    bpffs: PathBuf,
    _dir: TempDir,
}

impl World {
    /// Nodes whose networks are looked after.
    pub(in crate::network) fn new(nodes: u8) -> Self {
        let mut world = Self::bare(nodes);
        world.nodes.iter_mut().for_each(Node::start);
        world
    }

    /// Nodes that are left alone.
    pub(in crate::network) fn bare(nodes: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bpffs = dir.path().join("bpf");
        std::fs::create_dir(&bpffs).unwrap();
        mount(
            Some("bpf"),
            &bpffs,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        let wire = Netns::anonymous().unwrap();
        command(&wire, "ip link add wire type bridge");
        command(&wire, "ip link set wire up");
        let plug = |number: u8| {
            let netns = Netns::anonymous().unwrap();
            let name = format!("p{number}");
            command(
                &netns,
                &format!("ip link add eth0 type veth peer name {name}"),
            );
            // By file descriptor: the namespace has no name.
            hand_over(&netns, &name, &wire);
            command(&wire, &format!("ip link set {name} master wire up"));
            command(&netns, &format!("ip addr add 192.0.2.{number}/24 dev eth0"));
            command(
                &netns,
                &format!("ip addr add 2001:db8::{number}/64 dev eth0 nodad"),
            );
            command(&netns, "ip link set eth0 up");
            command(&netns, "ip link set lo up");
            command(&netns, "ip route add default via 192.0.2.254");
            command(&netns, "ip route add ::/0 via 2001:db8::fe");
            netns
        };
        let node = |number| Node {
            host: plug(number),
            config: NetworkConfig {
                run_dir: dir.path().join(format!("run{number}")),
                bpffs_dir: bpffs.join(format!("node{number}")),
            },
            reconciler: None,
        };
        Self {
            nodes: (1..=nodes).map(node).collect(),
            client: plug(100),
            underlay_ipv6: false,
            generation: AtomicU64::new(0),
            networks: Mutex::default(),
            _wire: wire,
            bpffs,
            _dir: dir,
        }
    }

    pub(in crate::network) fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// Ends a node's reconciler, and waits until it has ended.
    pub(in crate::network) fn stop(&mut self, number: usize) {
        let reconciler = self.nodes[number - 1].reconciler.take().expect("started");
        let applied = reconciler.applied();
        drop(reconciler);
        let ended = within(DEADLINE, || applied.has_changed().is_err());
        assert!(ended, "the thread did not end with its last owner");
    }

    /// Starts another.
    pub(in crate::network) fn start(&mut self, number: usize) {
        self.nodes[number - 1].start();
    }

    /// From now on, a task is on these networks of users: number n is 10.0.n.0/24 and, but for
    /// [`IPV4_ALONE`], fd00:b:n::/64.
    pub(in crate::network) fn attach(&self, task: u8, networks: &[u8]) {
        let mut all = self.networks.lock().unwrap();
        all.insert(task, networks.to_vec());
    }

    /// How a task is connected.
    pub(in crate::network) fn local(&self, task: u8) -> LocalTask {
        let all = self.networks.lock().unwrap();
        let networks = all.get(&task).cloned().unwrap_or_default();
        let attachment = |(interface, number): (usize, u8)| Attachment {
            interface,
            network: id('k', number),
            overlay: Overlay {
                vni: 4096 + u32::from(number),
                subnet: IpNet::new(IpAddr::from([10, 0, number, 0]), 24).unwrap(),
                subnet6: (number != IPV4_ALONE).then(|| network6(number)),
                gateway: IpAddr::from([10, 0, number, 1]),
                mtu: None,
            },
            address: on_network(number, task),
        };
        LocalTask {
            attachments: (1..).zip(networks).map(attachment).collect(),
            ..local(&task_id(task))
        }
    }

    fn members(&self, tasks: &[(u8, u8)]) -> BTreeMap<NetworkId, SharedMap<TaskId, Task>> {
        let mut members: BTreeMap<_, SharedMap<_, _>> = BTreeMap::new();
        let all = self.networks.lock().unwrap();
        for (task, node) in tasks {
            for number in all.get(task).into_iter().flatten() {
                let address = on_network(*number, *task);
                let node = id('n', *node);
                let of = members.entry(id('k', *number)).or_default();
                of.insert(task_id(*task), Task { address, node });
            }
        }
        members
    }

    /// What `node` is told of tasks (number, node) and services (port, task numbers).
    pub(in crate::network) fn desired(
        &self,
        node: u8,
        tasks: &[(u8, u8)],
        services: &[(u16, &[u8])],
    ) -> Desired {
        let node_id = |number| id::<NodeId>('n', number);
        let ingress = |number: u8| IpAddr::from([10, 255, 0, number]);
        let vtep = |number: u8| match self.underlay_ipv6 {
            false => IpAddr::from([192, 0, 2, number]),
            true => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()]),
        };
        let all = 1..=u8::try_from(self.nodes.len()).unwrap();
        Desired {
            local: LocalNode {
                id: node_id(node),
                vtep: vtep(node),
                ingress: ingress(node),
            },
            network: IngressNetwork {
                vni: 4096,
                subnet: "10.255.0.0/16".parse().unwrap(),
                subnet6: Some(SUBNET6.parse().unwrap()),
            },
            peers: all
                .filter(|number| *number != node)
                .map(|number| {
                    (
                        node_id(number),
                        Peer {
                            ingress: ingress(number),
                            vtep: vtep(number),
                        },
                    )
                })
                .collect(),
            tasks: tasks
                .iter()
                .map(|(task, on)| {
                    let task = task_id(*task);
                    (
                        task.clone(),
                        Task {
                            address: address_of(&task),
                            node: node_id(*on),
                        },
                    )
                })
                .collect(),
            local_tasks: tasks
                .iter()
                .filter(|(_, on)| *on == node)
                .map(|(task, _)| (task_id(*task), self.local(*task)))
                .collect(),
            task_sockets: BTreeMap::new(),
            virtual_services: BTreeMap::new(),
            members: self.members(tasks),
            services: (1..)
                .zip(services)
                .map(|(index, (published, members))| {
                    let backend = |task: &u8| Backend {
                        address: address_of(&task_id(*task)),
                        local: tasks.contains(&(*task, node)),
                        state: BackendState::Ready,
                    };
                    let port = PortConfig {
                        published: *published,
                        target: 80,
                        ..PortConfig::default()
                    };
                    let datagrams = PortConfig {
                        protocol: swarm_model::Protocol::Udp,
                        ..port.clone()
                    };
                    let service = Service {
                        index,
                        ports: vec![port, datagrams],
                        backends: members.iter().map(backend).collect(),
                    };
                    (id::<ServiceId>('s', u8::try_from(index).unwrap()), service)
                })
                .collect(),
        }
    }

    /// Tells every node and waits until every kernel is so.
    pub(in crate::network) async fn place(&self, tasks: &[(u8, u8)], services: &[(u16, &[u8])]) {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        for (number, node) in (1..).zip(&self.nodes) {
            let desired = Arc::new(self.desired(number, tasks, services));
            node.reconciler().apply(desired, generation);
        }
        for node in &self.nodes {
            let mut applied = node.reconciler().applied();
            let reached = applied.wait_for(|applied| applied.generation == Some(generation));
            if tokio::time::timeout(DEADLINE, reached).await.is_err() {
                panic!(
                    "not applied: {:#?}",
                    node.reconciler().applied().borrow().failures
                );
            }
        }
    }

    /// Whether the kernel balances; false after saying so.
    pub(in crate::network) fn has_ipvs(&self) -> bool {
        let problems = self.nodes[0]
            .reconciler()
            .applied()
            .borrow()
            .problems
            .clone();
        if problems.is_empty() {
            return true;
        }
        assert!(!required("SWARM_TEST_REQUIRE_IPVS"), "{problems:?}");
        eprintln!("SKIPPED: {problems:?}");
        false
    }
}

/// Moves a link to another namespace that has no name.
pub(in crate::network) fn hand_over(from: &Netns, name: &str, to: &Netns) {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    let path = format!("/proc/{}/fd/{}", std::process::id(), to.as_fd().as_raw_fd());
    command(from, &format!("ip link set {name} netns {path}"));
}

impl Drop for World {
    fn drop(&mut self) {
        for number in 1..=self.nodes.len() {
            if self.node(number).reconciler.is_some() && !std::thread::panicking() {
                self.stop(number);
            }
            let node = self.node(number);
            let dir = NetnsDir::new(node.config.run_dir.join("netns"));
            for name in dir.list().unwrap_or_default() {
                let _ = dir.delete(&name);
            }
        }
        let _ = umount2(&self.bpffs, MntFlags::MNT_DETACH);
    }
}
