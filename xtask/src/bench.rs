//! `cargo xtask bench mesh`: the mesh against Docker's and plain VXLAN forwarding, in one lab.
//!
//! The measuring happens inside the lab (`swarm_lab::bench`); here are the lab's start and end,
//! and the report.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand, value_parser};
use serde_json::json;
use swarm_lab::bench::{MAX_CELL_S, MAX_ROUNDS, Report, System};

use crate::interrupt::{self, Verdict};
use crate::lab::{ExecOptions, Lab, UpOptions};
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
}

/// `cargo xtask bench mesh ...`.
#[derive(Debug, Args)]
pub(crate) struct MeshArgs {
    /// Write the medians to this file, and everything they come from.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Times that every cell of the table is measured.
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(1..=i64::from(MAX_ROUNDS)))]
    rounds: u32,
    /// Length of one measurement, in seconds.
    #[arg(long, default_value_t = 4, value_parser = value_parser!(u32).range(1..=i64::from(MAX_CELL_S)))]
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
    }
}

fn mesh(workspace: &Workspace, args: &MeshArgs) -> Result<()> {
    ensure!(args.lab.hosts >= 2, "the benchmark needs two hosts");
    let was_up = Lab::attach(workspace).is_ok();
    let lab = Lab::borrow(workspace, &args.lab, args.keep)?;
    let stays_up = was_up || args.keep;
    let interrupted = workspace.clone();
    let _on_signal = interrupt::on_signal(move |_| {
        if stays_up && let Ok(lab) = Lab::attach(&interrupted) {
            let clean = ["lab-guest", "bench", "clean"];
            lab.exec(None, &clean, ExecOptions::default()).ok();
        }
        Verdict::End
    });
    let report = measure(&lab, args).with_context(|| {
        let directory = lab.log_dir();
        format!(
            "the benchmark failed; the lab's logs are in {}",
            directory.display()
        )
    })?;
    let place = format!(
        "{}, {} processors, Linux {}; {}",
        lab.ground(),
        report.environment.cpus,
        report.environment.kernel,
        report.environment.docker
    );
    println!("\n{place}\n{}", report.table());
    if let Some(path) = &args.json {
        let mut json = report.json();
        json["place"] = json!(place);
        std::fs::write(path, serde_json::to_vec_pretty(&json)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Has the lab measure, and shows what it says meanwhile.
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
    let mut report = Vec::new();
    let code = lab.stream(None, &argv, ExecOptions::default(), |is_error, bytes| {
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
