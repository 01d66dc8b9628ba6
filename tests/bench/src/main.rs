//! What the managers of a swarm cost and how fast they are: whole `swarm-control` processes on the
//! loopback, and agents that are simulated but speak the real protocol over real TLS.
//!
//! * `host`: a manager's process, and what the kernel says that it uses.
//! * `client`: connections: the local socket, TLS.
//! * `agent`, `fleet`: simulated agents, and what they saw.
//! * `swarm`: managers and agents together, and what a person asks of them.
//! * `measure`: what is measured. `report`: what is shown, against which bars.
//!
//! The managers are this very program: with `run` as its first word it is `swarm-control`. So what is
//! measured is what was built with it, and nothing else has to be found.
//!
//! The agents are not the product's: the agent is a program that needs root and a kernel with
//! everything, and a thousand of its sessions would spend the processor that is measured on what they
//! do with an assignment. These read it, note it, acknowledge it and report.
//!
//! Invariants:
//! * Nothing but the loopback is used, and all files are in one temporary directory.
//! * Managers end with this program, however it ends: their standard input closes.
//! * Every wait has a deadline.

mod agent;
mod client;
mod fleet;
mod host;
mod measure;
mod report;
mod swarm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, value_parser};

use measure::Sizes;
use report::Report;

/// The first word that makes this program a manager.
const MANAGER_COMMAND: &str = "run";

/// The managers of a swarm, measured.
#[derive(Debug, Parser)]
struct Arguments {
    /// Write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Simulated agents.
    #[arg(long, default_value_t = 1000, value_parser = value_parser!(u32).range(1..=5000))]
    agents: u32,
    /// Tasks of each of them before any service is scaled.
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u32).range(0..=100))]
    tasks: u32,
    /// Tasks that a service is scaled to.
    #[arg(long, default_value_t = 20_000, value_parser = value_parser!(u32).range(1..=40_000))]
    scale: u32,
    /// Managers of the swarm with the agents.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=7))]
    managers: u32,
    /// Writers at a time, where there are several.
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u32).range(2..=256))]
    writers: u32,
    /// Length of what is measured over time, in seconds.
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Nodes of the scheduler's measurement.
    #[arg(long, default_value_t = 5000, value_parser = value_parser!(u32).range(1..=10_000))]
    nodes: u32,
    /// Give managers no time to come to rest: figures mean nothing then.
    #[arg(long, hide = true)]
    brief: bool,
    /// What to measure, separated by commas; everything when absent.
    #[arg(long, value_delimiter = ',')]
    only: Vec<measure::Part>,
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(MANAGER_COMMAND) {
        return swarm_control::main();
    }
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let sizes = Sizes {
        agents: arguments.agents as usize,
        tasks_per_agent: arguments.tasks as usize,
        scale: arguments.scale as usize,
        managers: arguments.managers as usize,
        writers: arguments.writers as usize,
        span: Duration::from_secs(arguments.seconds.into()),
        nodes: arguments.nodes as usize,
        rest: measure::REST * u32::from(!arguments.brief),
        down: measure::DOWN * u32::from(!arguments.brief),
    };
    let total = sizes.agents * sizes.tasks_per_agent + sizes.scale;
    ensure!(
        total <= 60_000,
        "{total} tasks are more than the ingress network has addresses for: ask for fewer"
    );
    let mut report = Report::default();
    // Before the runtime is there: it takes a processor for itself.
    if measure::Part::Scheduler.is_in(&arguments.only) {
        measure::scheduler(sizes.nodes, &mut report);
    }
    let runtime =
        tokio::runtime::Runtime::new().context("cannot start the asynchronous runtime")?;
    runtime.block_on(async {
        tokio::select! {
            result = measure::all(sizes, &arguments.only, &mut report) => result,
            signal = tokio::signal::ctrl_c() => {
                signal.context("cannot wait for a signal")?;
                anyhow::bail!("interrupted")
            }
        }
    })?;
    println!("\n{}", report.table());
    if let Some(path) = &arguments.json {
        let json = serde_json::to_vec_pretty(&report.json())?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
