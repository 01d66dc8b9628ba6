//! `swarm-agent bench-services`: what many services cost on one node.
//!
//! In a network and a mount namespace of its own it does what an agent does with what a manager
//! says, from the bytes of an assignment to the acknowledgement that it is in the kernel, and
//! measures that: all of them at once, then one more at a time, then one less, then rest, then
//! something broken by hand. Everything but the sender is the product's own.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use prost::Message as _;
use serde::Serialize;
use swarm_api::v1;
use swarm_model::{NodeId, TaskId, TaskStatus};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dns::{NameServerConfig, NameServers, SocketStore};
use crate::network::{NetworkConfig, Passes, Reconciler};
use crate::session::Assigned;
use crate::worker::NetworkFeed;

/// Tasks of each service.
const TASKS: u32 = 4;

/// The first published port: below it are those that processes draw from by themselves.
const FIRST_PORT: u32 = 10_000;

/// Nodes beside this one; tasks are on all of them in turn, and on this one never: what a task of
/// its own costs a node is not what is measured.
const PEERS: u32 = 3;

/// Services that are added one by one.
const MORE: u32 = 21;

/// Between two of them: longer than a debounced pass needs, and at no fixed place between two passes
/// of the timer.
const BETWEEN: Duration = Duration::from_millis(730);

/// How long it rests.
const REST: Duration = Duration::from_secs(20);

/// Times that something is broken by hand.
const BREAKS: u32 = 3;

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(600);

/// Arguments of `swarm-agent bench-services`.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Services of four tasks each
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    services: u32,
    /// With IPv6 on the ingress network and on the uplink
    #[arg(long)]
    ipv6: bool,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Figures {
    services: u32,
    tasks: u32,
    ipv6: bool,
    /// From the bytes of the complete assignment to the kernel.
    cold_seconds: f64,
    /// Netlink messages and entries of maps for all of them.
    cold_messages: u64,
    cold_map_entries: u64,
    one_more: Steps,
    one_less: Steps,
    /// A pass that looks at everything and finds nothing to do.
    full_pass_ms: f64,
    /// One that leaves out the tables of which the kernel tells every change.
    untold_pass_ms: f64,
    /// Share of one processor while nothing changes.
    rest_cpu: f64,
    /// From a service deleted in the kernel by hand until it is back, the longest.
    repair_seconds: f64,
    /// Resident at the end, and at most.
    resident_mb: f64,
    resident_peak_mb: f64,
    /// The same before the first assignment.
    resident_empty_mb: f64,
}

/// One change at a time: milliseconds from its bytes to the kernel.
#[derive(Debug, Serialize)]
struct Steps {
    median_ms: f64,
    fastest_ms: f64,
    slowest_ms: f64,
    /// Netlink messages of each, and entries of maps.
    messages: u64,
    map_entries: u64,
    /// How many were done by increment.
    increments: u64,
}

/// Measures, and prints the figures as JSON.
///
/// # Errors
/// When this is not root, or something is not in the kernel within ten minutes.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    ensure!(
        nix::unistd::Uid::effective().is_root(),
        "root is needed to make namespaces"
    );
    // While there is one thread.
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("make namespaces")?;
    let nothing = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing).context("keep mounts to ourselves")?;
    let directory = PathBuf::from(format!("/run/swarm-bench-{}", std::process::id()));
    fs::create_dir_all(directory.join("bpf")).context("make a directory")?;
    let bpffs = directory.join("bpf");
    mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), nothing).context("mount bpffs")?;
    uplink(args.ipv6)?;
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?
        .block_on(measure(args, &directory));
    // What is left is in a mount namespace that ends with this process.
    let _ = nix::mount::umount(&bpffs);
    let _ = fs::remove_dir_all(&directory);
    println!("{}", serde_json::to_string_pretty(&outcome?)?);
    Ok(())
}

/// A link to the outside, with an address on it.
fn uplink(ipv6: bool) -> Result<()> {
    let mut lines = vec![
        "link set lo up",
        "link add eth0 type veth peer name wire",
        "addr add 192.0.2.1/24 dev eth0",
        "link set eth0 up",
        "link set wire up",
        "route add default via 192.0.2.254",
    ];
    if ipv6 {
        lines.push("addr add 2001:db8::1/64 dev eth0 nodad");
    }
    for line in lines {
        let status = Command::new("ip").args(line.split(' ')).status();
        ensure!(status.context("run ip")?.success(), "ip {line} failed");
    }
    Ok(())
}

/// The agent's parts that networks need, and what they are told.
struct Node {
    assigned: watch::Sender<Arc<Assigned>>,
    /// Of no task: it has none.
    _statuses: watch::Sender<Arc<BTreeMap<TaskId, TaskStatus>>>,
    applied: watch::Receiver<(u64, u64)>,
    network: Arc<Reconciler>,
    base: Assigned,
}

impl Node {
    fn start(directory: &Path, stop: &CancellationToken) -> Result<Self> {
        let network = Arc::new(Reconciler::start(&NetworkConfig {
            run_dir: directory.to_owned(),
            bpffs_dir: directory.join("bpf").join("node"),
        })?);
        let assigned = watch::Sender::new(Arc::new(Assigned::default()));
        let names = NameServers::new(
            NameServerConfig {
                run_dir: directory.to_owned(),
                resolv_conf: PathBuf::from("/etc/resolv.conf"),
                sockets: SocketStore::of_process(),
            },
            stop.clone(),
            TaskTracker::new(),
        );
        tokio::spawn(names.clone().follow(assigned.subscribe()));
        let sender = watch::Sender::new((0, 0));
        let applied = sender.subscribe();
        let (statuses, of_statuses) = watch::channel(Arc::new(BTreeMap::new()));
        let feed = NetworkFeed {
            node_id: node_id(0)?,
            network: network.clone(),
            names,
            assigned: assigned.subscribe(),
            statuses: of_statuses,
            applied: sender,
            problems: watch::Sender::default(),
        };
        tokio::spawn(feed.run());
        Ok(Self {
            assigned,
            _statuses: statuses,
            applied,
            network,
            base: Assigned {
                session: 1,
                ..Assigned::default()
            },
        })
    }

    /// Hears a message as a session does, and waits until it is in the kernel.
    async fn hear(&mut self, bytes: &[u8]) -> Result<Duration> {
        let begun = Instant::now();
        let message = v1::Assignments::decode(bytes)?;
        let generation = message.generation;
        self.base = self.base.after(message)?;
        self.assigned.send_replace(Arc::new(self.base.clone()));
        let reached = self.applied.wait_for(|applied| applied.1 >= generation);
        match tokio::time::timeout(DEADLINE, reached).await {
            Ok(reached) => reached.map(drop)?,
            Err(_) => bail!(
                "generation {generation} is not in the kernel: {:?}",
                self.network.applied().borrow()
            ),
        }
        Ok(begun.elapsed())
    }

    /// Hears changes, one after the other with a pause before each.
    async fn hear_each(
        &mut self,
        generation: &mut u64,
        changes: impl Iterator<Item = (Vec<v1::Assignment>, Vec<v1::AssignmentKey>)>,
    ) -> Result<Vec<Duration>> {
        let mut took = Vec::new();
        for (put, remove) in changes {
            tokio::time::sleep(BETWEEN).await;
            *generation += 1;
            let message = v1::Assignments {
                generation: *generation,
                complete: false,
                put,
                remove,
            };
            took.push(self.hear(&message.encode_to_vec()).await?);
        }
        Ok(took)
    }
}

async fn measure(args: &BenchArgs, directory: &Path) -> Result<Figures> {
    let stop = CancellationToken::new();
    let mut node = Node::start(directory, &stop)?;
    let mut generation = 1;
    let first = v1::Assignments {
        generation,
        complete: true,
        put: [
            own(args.ipv6)?,
            (0..args.services).flat_map(of_service).collect(),
        ]
        .concat(),
        remove: Vec::new(),
    };
    let bytes = first.encode_to_vec();
    drop(first);
    let resident_empty_mb = resident("VmRSS")?;
    eprintln!("{} services at once ({} bytes)", args.services, bytes.len());
    let cold = node.hear(&bytes).await?;
    drop(bytes);
    eprintln!("in the kernel after {:.2} s", cold.as_secs_f64());
    let passes = node.network.passes();
    let after_cold = *passes.borrow();

    let all = args.services..args.services + MORE;
    let put = all.clone().map(|number| (of_service(number), Vec::new()));
    let more = node.hear_each(&mut generation, put).await?;
    eprintln!("one more: {more:.1?}");
    let after_more = *passes.borrow();
    let remove = all.map(|number| (Vec::new(), keys_of_service(number)));
    let less = node.hear_each(&mut generation, remove).await?;
    eprintln!("one less: {less:.1?}");
    let after_less = *passes.borrow();

    let (before, begun) = (cpu()?, Instant::now());
    tokio::time::sleep(REST).await;
    let rest_cpu = (cpu()? - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    let rested = *passes.borrow();
    let mut repair = Duration::ZERO;
    for number in 0..BREAKS {
        tokio::time::sleep(BETWEEN).await;
        repair = repair.max(repaired(directory, number).await?);
    }
    let figures = Figures {
        services: args.services,
        tasks: args.services * TASKS,
        ipv6: args.ipv6,
        cold_seconds: cold.as_secs_f64(),
        cold_messages: after_cold.full.messages,
        cold_map_entries: after_cold.full.map_entries,
        one_more: Steps::of(more, after_cold, after_more),
        one_less: Steps::of(less, after_more, after_less),
        full_pass_ms: rested.full.last.as_secs_f64() * 1e3,
        untold_pass_ms: rested.untold.last.as_secs_f64() * 1e3,
        rest_cpu,
        repair_seconds: repair.as_secs_f64(),
        resident_mb: resident("VmRSS")?,
        resident_peak_mb: resident("VmHWM")?,
        resident_empty_mb,
    };
    node.network.teardown().await?;
    Ok(figures)
}

impl Steps {
    /// Of these, between whose first and last so much was done.
    fn of(mut all: Vec<Duration>, before: Passes, after: Passes) -> Self {
        let increments = after.increments.count - before.increments.count;
        let messages = after.increments.messages - before.increments.messages;
        let entries = after.increments.map_entries - before.increments.map_entries;
        all.sort_unstable();
        let ms = |at: usize| all.get(at).map_or(0.0, |took| took.as_secs_f64() * 1e3);
        Self {
            median_ms: ms(all.len() / 2),
            fastest_ms: ms(0),
            slowest_ms: ms(all.len().saturating_sub(1)),
            messages: messages / increments.max(1),
            map_entries: entries / increments.max(1),
            increments,
        }
    }
}

/// Deletes a service from the kernel's table, and waits until it is back.
async fn repaired(directory: &Path, number: u32) -> Result<Duration> {
    let netns = format!("--net={}", directory.join("netns/ingress").display());
    let at = format!("192.0.2.1:{}", FIRST_PORT + number);
    let ipvsadm = |arguments: &[&str]| {
        let mut command = Command::new("nsenter");
        command.args([netns.as_str(), "ipvsadm"]).args(arguments);
        command.output().context("run ipvsadm")
    };
    ensure!(ipvsadm(&["-D", "-t", &at])?.status.success(), "ipvsadm -D");
    let begun = Instant::now();
    while ipvsadm(&["-L", "-n", "-t", &at])?
        .stdout
        .windows(2)
        .filter(|two| two == b"->")
        .count()
        <= TASKS as usize
    {
        ensure!(begun.elapsed() < DEADLINE, "{at} is not put right");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(begun.elapsed())
}

fn id(kind: char, number: u32) -> String {
    format!("{kind}{number:024}")
}

fn node_id(number: u32) -> Result<NodeId> {
    id('n', number).parse().context("a node's id")
}

fn assignment(item: v1::assignment::Item) -> v1::Assignment {
    v1::Assignment { item: Some(item) }
}

/// The ingress network and its nodes.
fn own(ipv6: bool) -> Result<Vec<v1::Assignment>> {
    let network = swarm_model::Network {
        id: id('k', 1).parse().context("a network's id")?,
        meta: swarm_model::Meta::default(),
        spec: swarm_model::NetworkSpec {
            name: "ingress".to_owned(),
            ingress: true,
            ..swarm_model::NetworkSpec::default()
        },
        subnet: "10.128.0.0/15".parse()?,
        gateway: Ipv4Addr::new(10, 128, 0, 1),
        subnet6: ipv6.then(|| "fd00:a::/64".parse()).transpose()?,
        vni: swarm_model::Vni::FIRST,
        error: String::new(),
    };
    let peer = |number: u32| {
        assignment(v1::assignment::Item::Peer(v1::NetworkPeer {
            node_id: id('n', number),
            ingress_address: Ipv4Addr::from_bits(0x0a80_0001 + number).to_string(),
            data_path_address: format!("192.0.2.{}", number + 1),
        }))
    };
    let network = assignment(v1::assignment::Item::Network(Box::new((&network).into())));
    Ok(std::iter::once(network)
        .chain((0..=PEERS).map(peer))
        .collect())
}

/// A service with its tasks.
fn of_service(number: u32) -> Vec<v1::Assignment> {
    let port = swarm_model::PortConfig {
        published: u16::try_from(FIRST_PORT + number).unwrap_or(u16::MAX),
        target: 80,
        ..swarm_model::PortConfig::default()
    };
    let service = v1::PublishedService {
        service_id: id('s', number),
        index: number + 1,
        ports: vec![(&port).into()],
        name: format!("service-{number}"),
    };
    let tasks = (0..TASKS).map(|task| {
        let task = number * TASKS + task;
        assignment(v1::assignment::Item::Endpoint(v1::TaskEndpoint {
            task_id: id('t', task),
            service_id: id('s', number),
            node_id: id('n', 1 + task % PEERS),
            address: Ipv4Addr::from_bits(0x0a80_0100 + task).to_string(),
            state: v1::EndpointState::Ready.into(),
        }))
    });
    std::iter::once(assignment(v1::assignment::Item::Service(service)))
        .chain(tasks)
        .collect()
}

fn keys_of_service(number: u32) -> Vec<v1::AssignmentKey> {
    use v1::assignment_key::Key;
    let tasks = (0..TASKS).map(|task| Key::EndpointTaskId(id('t', number * TASKS + task)));
    let keys = std::iter::once(Key::ServiceId(id('s', number))).chain(tasks);
    keys.map(|key| v1::AssignmentKey { key: Some(key) })
        .collect()
}

/// Processor time of this process.
fn cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let used = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(u64::try_from(
        used.num_microseconds(),
    )?))
}

/// A line of `/proc/self/status`, in MB.
fn resident(name: &str) -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status").context("read our own memory")?;
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = value.and_then(|value| value.trim_matches([':', ' ', '\t']).strip_suffix(" kB"));
    let kib: f64 = kib.context("no such line")?.trim().parse()?;
    Ok(kib * 1024.0 / 1e6)
}
