//! What a packet costs in each program, by `BPF_PROG_TEST_RUN` on this kernel.
//!
//! Each program runs on the path that an established flow's packets take, with the maps filled and
//! warm; the verdict shows that it was that path. The kernel times many runs over the same packet
//! in a row. The shortcut's programs rewrite their packet: they are given a pair of connections each
//! of which turns the packet into the other's, and as many runs as the packet has hops to live.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use aya::programs::{TestRun as _, TestRunOptions};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;
use serde::Serialize;

use super::{
    Config, Mac, Mesh, Program, Protocol, PublishedKey, PublishedValue, TaskPort, target_flag,
};

/// Nanoseconds a packet may cost in a program.
const BAR_NS: u64 = 150;

/// Runs that the kernel times as one; their mean is one sample.
const REPEAT: u32 = 100_000;

/// Runs over a packet that is rewritten: below its time to live. The others' number as samples.
const REWRITES: u32 = 250;

/// The only interface of a new namespace: loopback has index 1 in all of them.
const INTERFACE: u32 = 1;

const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 9), 40_000);
const NODE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 10), 8080);
const TASK: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 255, 1, 1), 80);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
/// This node on the ingress network.
const OWN: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 2);

/// No address of an overlay network.
const UPLINK_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

/// Offset of the time to live in a frame.
const TTL: usize = 14 + 8;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// What was measured of a program.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// Its name.
    pub(super) program: &'static str,
    /// What it is given.
    pub(super) packet: &'static str,
    /// What it said, a `TC_ACT_*` number.
    pub(super) verdict: i32,
    /// Median of the samples, in nanoseconds a packet.
    pub(super) median_ns: u64,
    /// The smallest.
    pub(super) min_ns: u64,
    /// The largest.
    pub(super) max_ns: u64,
    /// Samples.
    pub(super) samples: usize,
}

#[derive(Serialize)]
struct Report<'a> {
    bar_ns: u64,
    kernel: String,
    programs: &'a [Row],
}

/// Runs `swarm-agent ebpf bench`: prints a table against the bar and writes `json`.
pub(super) fn run(pin_dir: &Path, json: Option<&PathBuf>, samples: usize) -> Result<()> {
    let rows = apart(pin_dir, samples)?;
    println!(
        "{:<15} {:<38} {:>8} {:>8} {:>8}  bar {BAR_NS} ns",
        "program", "packet", "median", "min", "max"
    );
    for row in &rows {
        let Row {
            program,
            packet,
            median_ns,
            min_ns,
            max_ns,
            ..
        } = row;
        let kept = if *median_ns <= BAR_NS {
            "kept"
        } else {
            "MISSED"
        };
        println!("{program:<15} {packet:<38} {median_ns:>8} {min_ns:>8} {max_ns:>8}  {kept}");
    }
    if let Some(path) = json {
        let kernel = nix::sys::utsname::uname().context("cannot ask for the kernel's version")?;
        let report = Report {
            bar_ns: BAR_NS,
            kernel: kernel.release().to_string_lossy().into_owned(),
            programs: &rows,
        };
        let text = serde_json::to_string_pretty(&report).context("cannot write JSON")?;
        std::fs::write(path, text + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Measures in a network namespace of its own, so that nothing of the host's is in the way, on one
/// processor.
fn apart(pin_dir: &Path, samples: usize) -> Result<Vec<Row>> {
    std::thread::scope(|scope| {
        let measured = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            stay_on_one_processor()?;
            let mesh = prepared(pin_dir)?;
            let rows = measure(&mesh, samples);
            drop(mesh);
            Mesh::remove_pins(pin_dir)?;
            rows
        });
        measured
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the measurement has panicked")))
    })
}

/// Lets the calling thread run on the first processor it may run on, and no other.
pub(super) fn stay_on_one_processor() -> Result<()> {
    let here = Pid::from_raw(0);
    let allowed = sched_getaffinity(here).context("cannot ask for the processors")?;
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu) == Ok(true));
    let mut one = CpuSet::new();
    one.set(first.unwrap_or_default())
        .context("cannot choose a processor")?;
    sched_setaffinity(here, &one).context("cannot stay on a processor")
}

/// The programs with maps as on a node with a published service and a task of it.
pub(super) fn prepared(pin_dir: &Path) -> Result<Mesh> {
    let mut mesh = Mesh::load(pin_dir)?;
    mesh.set_config(Config {
        e1h_ifindex: INTERFACE,
        uplink_ifindex: INTERFACE,
        vxlan_ifindex: INTERFACE,
        mac: Mac::new(mac(OWN)),
        ..Config::default()
    })?;
    let key = PublishedKey::new(NODE.0.into(), NODE.1, Protocol::Tcp);
    let value = PublishedValue {
        service: 1,
        flags: 0,
    };
    mesh.set_published(&BTreeMap::from([(key, value)]))?;
    mesh.set_node_addresses(&BTreeSet::from([NODE.0.into()]))?;
    mesh.set_ingress_macs(&BTreeMap::from([(mac(GATEWAY), 1)]))?;
    let port = TaskPort::new(mac(TASK.0), (TASK.0, 16), None);
    mesh.set_task_ports(&BTreeMap::from([(INTERFACE, port)]))?;
    let target = PublishedKey::new(TASK.0.into(), TASK.1, Protocol::Tcp);
    mesh.set_targets(&BTreeMap::from([(target, target_flag::PUBLISHED)]))?;
    Ok(mesh)
}

/// Every program on its path.
pub(super) fn measure(mesh: &Mesh, samples: usize) -> Result<Vec<Row>> {
    super::way_out::lead_to(CLIENT.0, mac(CLIENT.0))?;
    let request = frame(GATEWAY, CLIENT, TASK, ACK);
    let answer = frame(TASK.0, TASK, CLIENT, ACK);
    let asked = frame(GATEWAY, CLIENT, NODE, ACK);
    let reply = frame(TASK.0, NODE, CLIENT, ACK);
    // A flow is learned by its first packet.
    once(mesh, Program::FlowLearn, &frame(GATEWAY, CLIENT, TASK, SYN))?;
    let known = "established connection";
    let many = |program, packet, frame: &[u8]| {
        repeated(mesh, program, (packet, frame), REPEAT, samples.max(1))
    };
    let mut rows = vec![
        many(Program::MeshUplink, "to a published port", &asked)?,
        many(
            Program::MeshUplink,
            "to another port",
            &frame(GATEWAY, CLIENT, (NODE.0, 22), ACK),
        )?,
        many(Program::MeshOut, "reply to a client", &reply)?,
        many(Program::MeshOut, "from a task to the outside", &answer)?,
        many(Program::FlowLearn, known, &request)?,
        many(Program::FlowReturn, known, &answer)?,
    ];
    // A shortcut is learned by a packet that IPVS has balanced in between. There and back again, in
    // frames to the uplink both: one to a task's MAC address has come by the tunnel.
    let to_uplink = |frame: &[u8]| [&UPLINK_MAC, &frame[UPLINK_MAC.len()..]].concat();
    let [asked, request] = [asked, request].map(|frame| to_uplink(&frame));
    let answer = [&mac(OWN), &answer[UPLINK_MAC.len()..]].concat();
    for (from, to) in [(&asked, &request), (&request, &asked)] {
        once(mesh, Program::ShortcutIn, from)?;
        once(mesh, Program::ShortcutLearn, to)?;
    }
    let rewrites = samples.max(1) * 50;
    for (program, frame) in [
        (Program::ShortcutIn, &asked),
        (Program::ShortcutOut, &answer),
    ] {
        let mut frame = frame.clone();
        frame[TTL] = u8::MAX;
        rows.push(repeated(
            mesh,
            program,
            (known, &frame),
            REWRITES,
            rewrites,
        )?);
    }
    rows.push(many(Program::ShortcutLearn, "nothing to learn", &request)?);
    Ok(rows)
}

fn repeated(
    mesh: &Mesh,
    program: Program,
    (packet, frame): (&'static str, &[u8]),
    repeat: u32,
    samples: usize,
) -> Result<Row> {
    // Warms caches and maps.
    test_run(mesh, program, frame, (repeat / 10).max(1))?;
    let mut verdict = 0;
    let mut times = Vec::with_capacity(samples);
    for _ in 0..samples {
        let (said, time_ns) = test_run(mesh, program, frame, repeat)?;
        verdict = said;
        times.push(time_ns);
    }
    Ok(row(program, packet, verdict, times))
}

fn row(program: Program, packet: &'static str, verdict: i32, mut times: Vec<u64>) -> Row {
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    Row {
        program: program.name(),
        packet,
        verdict,
        median_ns: at(times.len() / 2),
        min_ns: at(0),
        max_ns: at(times.len().saturating_sub(1)),
        samples: times.len(),
    }
}

fn once(mesh: &Mesh, program: Program, frame: &[u8]) -> Result<()> {
    test_run(mesh, program, frame, 1).map(drop)
}

/// Verdict, and nanoseconds a packet.
fn test_run(mesh: &Mesh, program: Program, frame: &[u8], repeat: u32) -> Result<(i32, u64)> {
    // `__sk_buff::ifindex` is the 11th word of the context (linux/bpf.h).
    let mut context = [0_u8; 192];
    context[40..44].copy_from_slice(&INTERFACE.to_ne_bytes());
    let result = mesh
        .classifier(program)?
        .test_run(TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::default()
        })
        .with_context(|| format!("cannot run {program}"))?;
    let time_ns = u64::try_from(result.duration.as_nanos()).unwrap_or(u64::MAX);
    Ok((result.return_value.cast_signed(), time_ns))
}

/// The MAC address of whoever has `address` on the overlay.
fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

/// An Ethernet frame with a TCP packet without data; its checksums are left out, for no program
/// looks at them.
fn frame(sender: Ipv4Addr, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), tcp_flags: u8) -> Vec<u8> {
    let mut frame = [mac(to.0), mac(sender)].concat();
    frame.extend([
        0x08,
        0x00,
        0x45,
        0,
        0,
        40,
        0,
        1,
        0x40,
        0,
        64,
        Protocol::Tcp as u8,
        0,
        0,
    ]);
    frame.extend(from.0.octets());
    frame.extend(to.0.octets());
    frame.extend(from.1.to_be_bytes());
    frame.extend(to.1.to_be_bytes());
    frame.extend([
        0, 0, 0, 1, 0, 0, 0, 1, 0x50, tcp_flags, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    frame
}
