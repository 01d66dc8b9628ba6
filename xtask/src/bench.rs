//! `cargo xtask bench`: ours against Docker's and plain VXLAN forwarding in one lab, and parts alone.
//!
//! * `mesh`: how fast the routing mesh is;
//! * `update`: what clients lose by rolling updates;
//! * `failover`: for how long clients lose requests with a host;
//! * `services`: what thousands of services cost on one node;
//! * `ebpf`: what a packet costs in each program, here and not in the lab ([`crate::ebpf`]);
//! * `control`: what managers cost and how fast they are, here (`tests/bench`).
//!
//! The measuring of the others happens inside the lab (`swarm_lab::bench`); here are the lab's start and end,
//! and the report.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand, value_parser};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use swarm_lab::bench::lost::{Failover, Lost, MAX_REQUESTS, Update};
use swarm_lab::bench::{Environment, MAX_CELL_S, MAX_ROUNDS, Report, System};

use crate::interrupt::{self, Verdict};
use crate::lab::{ExecOptions, Lab, UpOptions};
use crate::process::shown;
use crate::workspace::Workspace;

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// The routing mesh: ours, Docker's and plain VXLAN forwarding, in turn.
    Mesh(MeshArgs),
    /// The mesh's eBPF programs: nanoseconds a packet on this machine's kernel (needs root).
    Ebpf {
        /// Write the figures to this file.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Rolling updates under load: requests that were not answered, ours and Docker's.
    Update(UpdateArgs),
    /// A dead host under load: for how long requests fail, ours and Docker's.
    Failover(LostArgs),
    /// Thousands of services on one node, in the lab: all at once, one more, one less, rest, memory.
    Services(ServicesArgs),
    /// The managers, with simulated agents on this machine: proposals, a thousand agents, 20,000 tasks,
    /// a leader that is lost, the scheduler alone.
    Control {
        /// Options of the measurement itself; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
}

/// `cargo xtask bench update ...`.
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Requests to be made to each system at least.
    #[arg(long, default_value_t = 20_000, value_parser = value_parser!(u64).range(1..=MAX_REQUESTS))]
    requests: u64,
    #[command(flatten)]
    lost: LostArgs,
}

/// `cargo xtask bench failover ...`, and what `update` has in common with it.
#[derive(Debug, Args)]
pub(crate) struct LostArgs {
    /// Write the results to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Which systems, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "docker,ours")]
    systems: Vec<System>,
    /// Leave the lab up afterwards.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    lab: UpOptions,
}

/// `cargo xtask bench services ...`.
#[derive(Debug, Args)]
pub(crate) struct ServicesArgs {
    /// Services of four tasks each.
    #[arg(long, default_value_t = 5_000, value_parser = value_parser!(u32).range(1..=15_000))]
    services: u32,
    /// With IPv6 on the ingress network and on the node's uplink.
    #[arg(long)]
    ipv6: bool,
    /// Write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the lab up afterwards.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    lab: UpOptions,
}

/// `cargo xtask bench mesh ...`.
#[derive(Debug, Args)]
pub(crate) struct MeshArgs {
    /// Write the medians to this file, and everything they come from.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Times that every cell of the table is measured.
    #[arg(long, default_value_t = 15, value_parser = value_parser!(u32).range(1..=i64::from(MAX_ROUNDS)))]
    rounds: u32,
    /// Length of one measurement, in seconds.
    #[arg(long, default_value_t = 2, value_parser = value_parser!(u32).range(1..=i64::from(MAX_CELL_S)))]
    seconds: u32,
    /// Leave the lab up afterwards.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    lab: UpOptions,
}

/// Runs `cargo xtask bench ...`.
///
/// # Errors
/// When something cannot be set up or measured: the message names the logs. A bar that is missed
/// is shown, and no error.
pub(crate) fn run(workspace: &Workspace, command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Mesh(args) => mesh(workspace, args),
        BenchCommand::Ebpf { json } => crate::ebpf::bench(json.as_deref()),
        BenchCommand::Control { options } => {
            let mut command =
                workspace.cargo(&["run", "--release", "--package", "swarm-bench", "--"]);
            shown(command.args(options))
        }
        BenchCommand::Services(args) => services(workspace, args),
        BenchCommand::Update(args) => {
            let requests = args.requests.to_string();
            let argv = ["update", "--requests", &requests];
            lost(workspace, &args.lost, &argv, |system, it: &Update| {
                let counts = &it.counts;
                format!(
                    "{system}: {} of {} requests failed in {} rolling updates ({:.0} s); {} were sent \
                     twice, {} connections closed between requests",
                    counts.failed,
                    counts.requests,
                    it.updates,
                    it.seconds,
                    counts.retried,
                    counts.reopened
                )
            })
        }
        BenchCommand::Failover(args) => {
            lost(workspace, args, &["failover"], |system, it: &Failover| {
                format!(
                    "{system}: requests failed for {:.1} s after a host had died ({} of {})",
                    it.seconds_failing, it.counts.failed, it.counts.requests
                )
            })
        }
    }
}

fn mesh(workspace: &Workspace, args: &MeshArgs) -> Result<()> {
    ensure!(args.lab.hosts >= 2, "the benchmark needs two hosts");
    let (report, place) = in_lab(workspace, &args.lab, args.keep, |lab| {
        let report = measure(lab, args)?;
        let place = place(lab, &report.environment);
        Ok((report, place))
    })?;
    println!("\n{place}\n{}", report.table());
    if let Some(path) = &args.json {
        let mut json = report.json();
        json["place"] = json!(place);
        write(path, &json)?;
    }
    Ok(())
}

/// What many services cost: has an agent in the lab measure itself, and shows the figures.
fn services(workspace: &Workspace, args: &ServicesArgs) -> Result<()> {
    let count = args.services.to_string();
    let mut argv = vec!["swarm-agent", "bench-services", "--services", &count];
    argv.extend(args.ipv6.then_some("--ipv6"));
    let (mut json, ground) = in_lab(workspace, &args.lab, args.keep, |lab| {
        let json: Value = report(lab, &argv)?;
        Ok((json, lab.ground().to_string()))
    })?;
    json["place"] = json!(ground);
    println!("{}", serde_json::to_string_pretty(&json)?);
    match &args.json {
        Some(path) => write(path, &json),
        None => Ok(()),
    }
}

/// What clients lose: has the lab count, and shows each system's result in a line.
fn lost<T>(
    workspace: &Workspace,
    args: &LostArgs,
    what: &[&str],
    line: impl Fn(System, &T) -> String,
) -> Result<()>
where
    T: Serialize + DeserializeOwned,
{
    ensure!(args.lab.hosts >= 2, "the benchmark needs two hosts");
    let systems: Vec<String> = args.systems.iter().map(ToString::to_string).collect();
    let systems = systems.join(",");
    let mut argv = vec!["lab-guest", "bench"];
    argv.extend(what);
    argv.extend(["--systems", &systems]);
    let (lost, place) = in_lab(workspace, &args.lab, args.keep, |lab| {
        let lost: Lost<T> = report(lab, &argv)?;
        let place = place(lab, &lost.environment);
        Ok((lost, place))
    })?;
    println!("\n{place}");
    for (system, result) in &lost.systems {
        println!("{}", line(*system, result));
    }
    if let Some(path) = &args.json {
        let mut json = serde_json::to_value(&lost.systems)?;
        json["place"] = json!(place);
        write(path, &json)?;
    }
    Ok(())
}

/// Does something in a lab that is up, or is brought up for it; takes down what a benchmark has set
/// up when it is interrupted in a lab that stays.
fn in_lab<T>(
    workspace: &Workspace,
    options: &UpOptions,
    keep: bool,
    work: impl FnOnce(&Lab) -> Result<T>,
) -> Result<T> {
    let was_up = Lab::attach(workspace).is_ok();
    let lab = Lab::borrow(workspace, options, keep)?;
    let stays_up = was_up || keep;
    let interrupted = workspace.clone();
    let _on_signal = interrupt::on_signal(move |_| {
        if stays_up && let Ok(lab) = Lab::attach(&interrupted) {
            let clean = ["lab-guest", "bench", "clean"];
            lab.exec(None, &clean, ExecOptions::default()).ok();
        }
        Verdict::End
    });
    work(&lab).with_context(|| {
        let directory = lab.log_dir();
        format!(
            "the benchmark failed; the lab's logs are in {}",
            directory.display()
        )
    })
}

/// What was measured on, in a line.
fn place(lab: &Lab, environment: &Environment) -> String {
    format!(
        "{}, {} processors, Linux {}; {}",
        lab.ground(),
        environment.cpus,
        environment.kernel,
        environment.docker
    )
}

fn write(path: &Path, json: &Value) -> Result<()> {
    std::fs::write(path, serde_json::to_vec_pretty(json)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Has the lab measure.
fn measure(lab: &Lab, args: &MeshArgs) -> Result<Report> {
    let without_agents = [System::Plain, System::Docker];
    let systems: &[System] = if args.lab.no_agents {
        &without_agents
    } else {
        &System::ALL
    };
    let systems: Vec<String> = systems.iter().map(ToString::to_string).collect();
    let (rounds, seconds) = (args.rounds.to_string(), args.seconds.to_string());
    let systems = systems.join(",");
    let argv = [
        "lab-guest",
        "bench",
        "mesh",
        "--rounds",
        &rounds,
        "--seconds",
        &seconds,
        "--systems",
        &systems,
    ];
    report(lab, &argv)
}

/// Runs a command in the lab that writes a report to its standard output, and shows what it says
/// meanwhile.
fn report<T: DeserializeOwned>(lab: &Lab, argv: &[&str]) -> Result<T> {
    let mut report = Vec::new();
    let code = lab.stream(None, argv, ExecOptions::default(), |is_error, bytes| {
        if is_error {
            // When nobody reads our output any more there is nobody to tell either.
            std::io::stderr().write_all(bytes).ok();
        } else {
            report.extend_from_slice(bytes);
        }
    })?;
    ensure!(code == 0, "`{}` ended with code {code}", argv.join(" "));
    serde_json::from_slice(&report).context("cannot read the report from the lab")
}
