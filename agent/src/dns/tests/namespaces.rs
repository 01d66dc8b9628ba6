//! Whole name servers, asked by the C library from inside a task's namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::{RData, Record};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn, bind,
    listen, recvmsg, setsockopt, socket, sockopt,
};
use swarm_model::{
    DesiredState, Meta, NetworkId, ServiceId, Task, TaskId, TaskSpec, TaskStatus, Timestamp,
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::kept::SocketStore;
use super::super::records::Asker;
use super::super::resolv_conf::resolv_conf_for_container;
use super::super::server::{NameServerConfig, NameServers};
use super::super::socket::{OpenError, Sockets};
use super::{on, world};
use crate::network::{Netns, NetnsDir};
use crate::session::Assigned;

/// A host with one task that has a namespace.
struct Host {
    dir: TempDir,
    netns_dir: NetnsDir,
    netns: Netns,
    task: TaskId,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Host {
    fn new() -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            let required = std::env::var_os("SWARM_TEST_REQUIRE_KERNEL");
            assert!(required.is_none_or(|value| value != "1"), "needs root");
            eprintln!("SKIPPED: needs root");
            return None;
        }
        let dir = TempDir::new().unwrap();
        let netns_dir = NetnsDir::new(dir.path().join("netns"));
        let task = TaskId::random(&mut rand::rng());
        let netns = netns_dir.create(&format!("task-{task}")).unwrap();
        let host = Self {
            dir,
            netns_dir,
            netns,
            task,
            stop: CancellationToken::new(),
            tracker: TaskTracker::new(),
        };
        // The C library asks for addresses of a family only where it has one that is not loopback.
        for line in [
            "link set lo up",
            "link add d0 type veth peer name d1",
            "link set d0 up",
            "addr add 192.0.2.1/24 dev d0",
            "addr add 2001:db8::1/64 dev d0 nodad",
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            assert!(host.inside("ip", &words).0, "{line}");
        }
        Some(host)
    }

    /// Name servers that forward to `upstream`.
    fn names(&self, upstream: Ipv4Addr) -> NameServers {
        self.names_with(upstream, SocketStore::default())
    }

    fn names_with(&self, upstream: Ipv4Addr, sockets: SocketStore) -> NameServers {
        let resolv_conf = self.dir.path().join("resolv.conf");
        std::fs::write(&resolv_conf, format!("nameserver {upstream}\n")).unwrap();
        let config = NameServerConfig {
            run_dir: self.dir.path().to_owned(),
            resolv_conf,
            sockets: Arc::new(sockets),
        };
        NameServers::new(config, self.stop.clone(), self.tracker.clone())
    }

    fn inside(&self, program: &str, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new(program);
        command.args(arguments);
        let output = self.netns.run(|| command.output()).unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.success(), text)
    }

    /// The first column of what the C library knows in `database` of `key`, in the namespace and
    /// with a container's `/etc/resolv.conf` and these further options.
    async fn getent(&self, options: &str, database: &str, key: &str) -> BTreeSet<String> {
        let conf = self.dir.path().join("container.conf");
        let text = resolv_conf_for_container("search example.test\n");
        assert!(text.starts_with("nameserver 127.0.0.11\n"));
        std::fs::write(&conf, format!("{text}options {options}\n")).unwrap();
        let script = "mount --bind \"$1\" /etc/resolv.conf && exec getent \"$2\" \"$3\"";
        let conf = conf.to_str().unwrap().to_owned();
        let netns = self.netns.clone();
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh", &conf, database, key]);
        let output = tokio::task::spawn_blocking(move || netns.run(|| command.output()));
        let output = output.await.unwrap().unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let column = usize::from(database == "hosts" && key.parse::<Ipv4Addr>().is_ok());
        text.lines()
            .filter_map(|line| line.split_whitespace().nth(column))
            .map(str::to_owned)
            .collect()
    }

    async fn end(self) {
        self.stop.cancel();
        self.tracker.close();
        let ended = tokio::time::timeout(Duration::from_secs(5), self.tracker.wait());
        ended.await.expect("everything ends");
        self.netns_dir
            .delete(&format!("task-{}", self.task))
            .unwrap();
    }
}

fn set(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_c_library_finds_the_swarms_names_over_udp_and_tcp() {
    let Some(host) = Host::new() else { return };
    let names = host.names(Ipv4Addr::LOCALHOST);
    let world = world();
    names.answer_from(world.records);
    let asker = on(&[&world.back]);
    names.open(&host.task, asker.clone()).await.unwrap();
    // Repeatable.
    names.open(&host.task, asker).await.unwrap();
    for options in ["attempts:3", "use-vc", "edns0"] {
        for (database, key, expected) in [
            ("ahostsv4", "web", set(&["10.1.0.2"])),
            ("ahostsv4", "WeB.back", set(&["10.1.0.2"])),
            ("ahostsv4", "tasks.web", set(&["10.1.0.11", "10.1.0.12"])),
            ("ahostsv4", "web.1.task1", set(&["10.1.0.11"])),
            ("ahostsv4", "tasks.idle", set(&[])),
            ("ahostsv6", "web", set(&["fd00:1::a01:2"])),
            ("hosts", "10.1.0.11", set(&["web.1.task1.back"])),
            ("hosts", "10.1.0.99", set(&[])),
        ] {
            let found = host.getent(options, database, key).await;
            assert_eq!(found, expected, "{options} {database} {key}");
        }
        // Does not fit a datagram.
        let big = host.getent(options, "ahostsv4", "tasks.big").await;
        assert_eq!(big.len(), 300, "{options}");
    }

    names.close(&host.task).await;
    assert_eq!(host.getent("", "ahostsv4", "web").await, set(&[]));
    let again = names.open(&host.task, Asker::default()).await;
    assert!(again.is_ok(), "{again:?}");
    let unknown = TaskId::random(&mut rand::rng());
    let none = names.open(&unknown, Asker::default()).await;
    assert!(matches!(none, Err(OpenError::NoNetns)), "{none:?}");
    host.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_names_are_asked_for_outside_and_not_for_internal_networks() {
    let Some(host) = Host::new() else { return };
    // Others run this test, too.
    let (upstream, socket) = std::iter::repeat_with(|| {
        let address = Ipv4Addr::from_bits(127 << 24 | 53 << 16 | u32::from(rand::random::<u16>()));
        Some((address, UdpSocket::bind((address, 53)).ok()?))
    })
    .take(100)
    .flatten()
    .next()
    .unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let question = query.queries[0].clone();
            let mut reply = query.into_response();
            if question.query_type() == hickory_proto::rr::RecordType::A {
                let data = RData::A(Ipv4Addr::new(192, 0, 2, 80).into());
                reply.add_answer(Record::from_rdata(question.name, 60, data));
            }
            socket.send_to(&reply.to_vec().unwrap(), from).unwrap();
        }
    });
    let names = host.names(upstream);
    let world = world();
    names.answer_from(world.records);
    names.open(&host.task, on(&[&world.back])).await.unwrap();
    for options in ["attempts:3", "use-vc"] {
        let found = host.getent(options, "ahostsv4", "www.example.test").await;
        assert_eq!(found, set(&["192.0.2.80"]), "{options}");
    }
    names.open(&host.task, on(&[&world.inside])).await.unwrap();
    let found = host
        .getent("attempts:1", "ahostsv4", "www.example.test")
        .await;
    assert_eq!(found, set(&[]));
    host.end().await;
}

fn task(id: &TaskId, networks: &[&NetworkId]) -> Task {
    let attachments = networks.iter().map(|network| swarm_model::Attachment {
        network: (*network).clone(),
        address: Ipv4Addr::new(10, 1, 0, 11),
        aliases: Vec::new(),
    });
    Task {
        id: id.clone(),
        meta: Meta::default(),
        service_id: ServiceId::random(&mut rand::rng()),
        service_name: "web".to_owned(),
        slot: 1,
        node_id: None,
        spec: TaskSpec::default(),
        template_version: 1,
        desired_state: DesiredState::Running,
        desired_since: Timestamp(0),
        not_before: Timestamp(0),
        status: TaskStatus::default(),
        ingress_address: None,
        attachments: attachments.collect(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_agent_answers_from_what_was_said_last() {
    let Some(host) = Host::new() else { return };
    let mut said = Assigned::default();
    let network = swarm_model::Network {
        id: NetworkId::random(&mut rand::rng()),
        meta: Meta::default(),
        spec: swarm_model::NetworkSpec {
            name: "back".to_owned(),
            ..Default::default()
        },
        subnet: "10.1.0.0/24".parse().unwrap(),
        gateway: Ipv4Addr::new(10, 1, 0, 1),
        subnet6: None,
        vni: swarm_model::Vni::FIRST,
        error: String::new(),
    };
    let service = crate::session::NetworkService {
        name: "db".to_owned(),
        aliases: Vec::new(),
        vip: Some(Ipv4Addr::new(10, 1, 0, 2)),
        mode: swarm_model::EndpointMode::Vip,
    };
    let services = said.network_services.entry(network.id.clone()).or_default();
    services.insert(ServiceId::random(&mut rand::rng()), service);
    let own = task(&host.task, &[&network.id]);
    said.tasks.insert(own.id.clone(), own);
    said.networks.insert(network.id.clone(), network);
    let said = watch::Sender::new(Arc::new(said));

    let silent = Ipv4Addr::LOCALHOST;
    for _ in 0..2 {
        // Each time another agent: nobody opens the server, nobody says anything new.
        let names = host.names(silent);
        let following = tokio::spawn(names.clone().follow(said.subscribe()));
        let found = tokio::time::timeout(Duration::from_secs(30), async {
            while host.getent("attempts:1", "ahostsv4", "db").await != set(&["10.1.0.2"]) {}
        });
        found.await.expect("the server is opened again");
        following.abort();
        names.close(&host.task).await;
        assert_eq!(host.getent("attempts:1", "ahostsv4", "db").await, set(&[]));
    }

    // One that was closed stays closed, though the manager still lists its task.
    let names = host.names(silent);
    names.close(&host.task).await;
    let following = tokio::spawn(names.clone().follow(said.subscribe()));
    said.send_modify(|_| {});
    tokio::task::yield_now().await;
    assert_eq!(host.getent("attempts:1", "ahostsv4", "db").await, set(&[]));
    following.abort();
    host.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_wait_in_kept_sockets_for_the_next_agent() {
    let Some(host) = Host::new() else { return };
    let world = world();
    for options in ["attempts:1 timeout:20", "attempts:1 timeout:20 use-vc"] {
        // All that there is between two agents.
        let sockets = Sockets::open(&host.netns).unwrap();
        let names = host.names_with(
            Ipv4Addr::LOCALHOST,
            SocketStore::with(None, [(host.task.clone(), sockets)].into()),
        );
        names.answer_from(world.records.clone());
        let (found, ()) = tokio::join!(host.getent(options, "ahostsv4", "web"), async {
            let waits = || {
                host.inside("ss", &["-Hntu", "dst", "127.0.0.11:53"])
                    .1
                    .contains("53")
            };
            let waiting = tokio::time::timeout(Duration::from_secs(20), async {
                while !waits() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
            waiting.await.expect("the query is sent");
            names.open(&host.task, on(&[&world.back])).await.unwrap();
        });
        assert_eq!(found, set(&["10.1.0.2"]), "{options}");
        names.close(&host.task).await;
    }
    host.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_are_given_to_the_service_manager_and_taken_back() {
    let Some(host) = Host::new() else { return };
    let path = host.dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let said = || {
        let mut text = [0; 512];
        let mut buffer = [IoSliceMut::new(&mut text)];
        let mut control = nix::cmsg_space!([std::os::fd::RawFd; 4]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message =
            recvmsg::<()>(manager.as_raw_fd(), &mut buffer, Some(&mut control), flags).unwrap();
        let sockets = message.cmsgs().unwrap().map(|message| match message {
            ControlMessageOwned::ScmRights(sockets) => sockets.len(),
            other => panic!("{other:?}"),
        });
        let (sockets, length) = (sockets.sum::<usize>(), message.bytes);
        (String::from_utf8(text[..length].to_vec()).unwrap(), sockets)
    };
    let notify = SocketAddr::from_pathname(&path).unwrap();
    let names = host.names_with(
        Ipv4Addr::LOCALHOST,
        SocketStore::with(Some(notify), BTreeMap::new()),
    );
    names.open(&host.task, Asker::default()).await.unwrap();
    let kept = format!("FDSTORE=1\nFDPOLL=0\nFDNAME=dns-{}", host.task);
    assert_eq!(said(), (kept, 2));
    names.close(&host.task).await;
    let forgotten = format!("FDSTOREREMOVE=1\nFDNAME=dns-{}", host.task);
    assert_eq!(said(), (forgotten, 0));
    host.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_server_in_a_task_shares_the_port() {
    let Some(host) = Host::new() else { return };
    let names = host.names(Ipv4Addr::LOCALHOST);
    let world = world();
    names.answer_from(world.records);
    names.open(&host.task, on(&[&world.back])).await.unwrap();
    let everywhere = || {
        [SockType::Datagram, SockType::Stream].map(|kind| {
            let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
            setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
            setsockopt(&socket, sockopt::ReusePort, &true).unwrap();
            let address = SockaddrIn::new(0, 0, 0, 0, 53);
            bind(socket.as_raw_fd(), &address).unwrap();
            if kind == SockType::Stream {
                listen(&socket, Backlog::new(1).unwrap()).unwrap();
            }
            socket
        })
    };
    let others = host.netns.run(everywhere).unwrap();
    for options in ["attempts:3", "use-vc"] {
        let found = host.getent(options, "ahostsv4", "web").await;
        assert_eq!(found, set(&["10.1.0.2"]), "{options}");
    }
    drop(others);
    host.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_holds_nobody_up() {
    let Some(host) = Host::new() else { return };
    let names = host.names(Ipv4Addr::LOCALHOST);
    let world = world();
    names.answer_from(world.records);
    names.open(&host.task, on(&[&world.back])).await.unwrap();
    let query = super::query("web", hickory_proto::rr::RecordType::A, None);
    let query = query.to_vec().unwrap();
    let flooded = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for length in (0..20_000).map(|number| number % (query.len() + 1)) {
            let _ = socket.send_to(&query[..length], "127.0.0.11:53");
        }
        // Connections that say nothing, eight more than are served.
        let connect = |_| {
            let stream = TcpStream::connect("127.0.0.11:53").unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        };
        (0..40).map(connect).collect::<Vec<_>>()
    };
    let idle = host.netns.run(flooded).unwrap();
    let found = host.getent("attempts:3", "ahostsv4", "web").await;
    assert_eq!(found, set(&["10.1.0.2"]));
    let closed = |stream: &&TcpStream| matches!(stream.peek(&mut [0]), Ok(0));
    let refused = tokio::time::timeout(Duration::from_secs(5), async {
        while idle.iter().filter(closed).count() != 8 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    refused.await.expect("those that are too many are closed");
    host.end().await;
}
