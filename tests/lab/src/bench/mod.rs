//! The mesh benchmark, the part inside the lab: ours, Docker's and plain VXLAN forwarding, set up
//! side by side and measured in turn.
//!
//! Each system has two hosts of its own on the underlay, one task (the test image) on the second,
//! and is asked by the lab's client through the first. So every request takes as many hops with
//! each of them, and one system's packet filters are on nobody else's path. Within a round every
//! row of the table is measured on all systems directly one after another, in an order that
//! changes from round to round: what slows the machine down for a while slows all of them down.
//!
//! What an update or a dead host costs is measured by [`lost`].

mod docker;
pub mod lost;
mod measure;
mod ours;
mod plain;
pub mod report;

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command::{DEFAULT_DEADLINE, run};
use crate::topology::Node;
use crate::{Lab, WebAnswer, wait_until};
pub use report::{Environment, Report, Row, Sample, System};

/// Most rounds of one run: an hour's worth.
pub const MAX_ROUNDS: u32 = 100;

/// Longest measurement of one cell, in seconds.
pub const MAX_CELL_S: u32 = 60;

/// How long the first answer of a system may take once its service is up.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// Time of the unmeasured run before each cell, in seconds.
const WARM_UP_S: u32 = 1;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Times that every cell is measured.
    pub rounds: u32,
    /// Length of one measurement in seconds, without its warm-up.
    pub cell_s: u32,
    /// Which systems.
    pub systems: Vec<System>,
}

/// Where the client finds the task of one system.
#[derive(Debug, Clone)]
struct Target {
    system: System,
    address: std::net::Ipv4Addr,
    web_port: u16,
    stream_port: u16,
}

/// Sets the systems up, measures them, takes them down again. What it does is said on standard
/// error.
///
/// # Errors
/// When a system cannot be set up, gives a wrong answer, or a measurement fails. Everything is
/// taken down then, too.
pub fn mesh(options: &Options) -> Result<Report> {
    ensure!(
        (1..=MAX_ROUNDS).contains(&options.rounds),
        "1 to {MAX_ROUNDS} rounds"
    );
    ensure!(
        (1..=MAX_CELL_S).contains(&options.cell_s),
        "1 to {MAX_CELL_S} seconds per cell"
    );
    let lab = Lab::attach()?;
    plain::remove()?;
    docker::remove()?;
    let report = set_up_and_measure(&lab, options);
    let cleaned = clean_systems(&options.systems);
    let report = report?;
    cleaned?;
    Ok(report)
}

/// Takes down whatever a run that was killed has left.
///
/// # Errors
/// When something cannot be removed.
pub fn clean() -> Result<()> {
    clean_systems(&System::ALL)
}

fn clean_systems(systems: &[System]) -> Result<()> {
    for system in systems {
        match system {
            System::Plain => plain::remove(),
            System::Docker => docker::remove(),
            System::Ours => ours::remove(),
        }
        .with_context(|| format!("cannot take down {system}"))?;
    }
    Ok(())
}

fn set_up_and_measure(lab: &Lab, options: &Options) -> Result<Report> {
    let mut targets = Vec::new();
    let mut notes = Vec::new();
    // Ours first: it makes the lab's hosts anew.
    for system in options.systems.iter().rev() {
        eprintln!("setting up {system}");
        let target = match system {
            System::Plain => plain::set_up(),
            System::Docker => docker::set_up(),
            System::Ours => ours::set_up(),
        };
        targets.insert(
            0,
            target.with_context(|| format!("cannot set up {system}"))?,
        );
    }
    for target in &targets {
        notes.push(check(lab, target).with_context(|| format!("{} is not right", target.system))?);
    }
    measure::prepare()?;
    let mut report = Report {
        environment: environment()?,
        rounds: options.rounds,
        cell_s: options.cell_s,
        systems: options.systems.clone(),
        notes,
        samples: Vec::new(),
    };
    for round in 0..options.rounds {
        for (index, row) in Row::ALL.into_iter().enumerate() {
            let mut line = format!("round {} of {}, {row}:", round + 1, options.rounds);
            let first = (round as usize + index) % targets.len();
            for target in targets.iter().cycle().skip(first).take(targets.len()) {
                measure::cell(lab.client(), target, row, WARM_UP_S)?;
                let sample = measure::cell(lab.client(), target, row, options.cell_s)?;
                line += &format!("  {} {}", target.system, row.shown(sample.value));
                report.samples.push(Sample { round, ..sample });
            }
            eprintln!("{line}");
        }
    }
    Ok(report)
}

/// Waits for an answer and compares what the task saw with what it should have seen.
fn check(lab: &Lab, target: &Target) -> Result<String> {
    let url = target.url();
    let answer = wait_until(ANSWER_DEADLINE, &format!("an answer from {url}"), || {
        let curl = ["curl", "-sSf", "--max-time", "2", &url];
        lab.client().exec(&curl)?.success()?.parse::<WebAnswer>()
    })?;
    let (seen, own) = (answer.client.ip(), lab.client().address());
    ensure!(
        target.system == System::Docker || seen == own,
        "the task saw the client as {seen} and not as {own}"
    );
    let note = format!(
        "{}: the task saw the client ({own}) as {seen}",
        target.system
    );
    eprintln!("{note}");
    Ok(note)
}

fn environment() -> Result<Environment> {
    let word = |program: &str, arguments: &[&str]| -> Result<String> {
        Ok(crate::command::must(program, arguments)?.trim().to_owned())
    };
    Ok(Environment {
        kernel: word("uname", &["-r"])?,
        cpus: word("nproc", &[])?.parse().context("nproc")?,
        docker: word("dockerd", &["--version"])?,
    })
}

impl Target {
    fn url(&self) -> String {
        format!("http://{}:{}/", self.address, self.web_port)
    }
}

/// A host on the underlay that only the benchmark has: no agent runs there.
fn extra_host(name: &str, octet: u8) -> Node {
    Node {
        name: name.into(),
        address: std::net::Ipv4Addr::new(10, 99, 0, octet),
        address6: std::net::Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, octet.into()),
    }
}

/// Whether the host's network namespace is there.
fn exists(node: &Node) -> bool {
    std::path::Path::new("/run/netns").join(&node.name).exists()
}

/// Runs a program on a host to its end; it has to succeed.
fn on(node: &Node, program: &str, arguments: &[&str], stdin: &str) -> Result<String> {
    let mut command = node.command(program);
    run(command.args(arguments), stdin.as_bytes(), DEFAULT_DEADLINE)?.success()
}

/// Removes the empty groups that killed containers leave behind.
fn remove_cgroup(name: &str) -> Result<()> {
    let path = format!("/sys/fs/cgroup/{name}");
    if std::path::Path::new(&path).exists() {
        crate::command::must("find", &[&path, "-depth", "-type", "d", "-delete"])?;
    }
    Ok(())
}
