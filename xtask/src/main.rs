//! The project's own tool. `cargo xtask demo` shows the swarm, `cargo xtask test` tests it; both
//! install what they need and bring up the lab by themselves.

mod bench;
mod demo;
mod dist;
mod ebpf;
mod fuzz;
mod interrupt;
mod lab;
mod lint;
mod mirror;
mod process;
mod product;
mod progress;
mod setup;
mod sim;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// The project's own tool.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what is missing, or say what to install.
    Setup,
    /// Build the eBPF programs, or try them on an interface.
    Ebpf(ebpf::EbpfArgs),
    /// A swarm's worth of hosts on a kernel of their own.
    #[command(subcommand)]
    Lab(lab::LabCommand),
    /// Show what a swarm does, from nothing to gone.
    Demo(demo::DemoArgs),
    /// Test everything, or one part of it.
    Test(test::TestArgs),
    /// Run whole clusters on virtual time, from seeds.
    Sim(sim::SimArgs),
    /// Feed what reads bytes from outside with what a fuzzer makes up.
    Fuzz(fuzz::FuzzArgs),
    /// Measure: against Docker's mesh and plain forwarding, the programs, the managers.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Check format, lints, documentation, licences.
    Lint,
    /// Build release binaries and systemd units into one archive.
    Dist,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    interrupt::listen()?;
    let workspace = Workspace::find()?;
    match task {
        Task::Setup => setup::run()?,
        Task::Ebpf(args) => ebpf::run(args)?,
        Task::Lab(command) => return lab::run(&workspace, command),
        Task::Demo(args) => demo::run(&workspace, &args)?,
        Task::Test(args) => test::run(&workspace, &args)?,
        Task::Sim(args) => sim::run(&workspace, &args)?,
        Task::Fuzz(args) => fuzz::run(&workspace, &args)?,
        Task::Bench(command) => bench::run(&workspace, &command)?,
        Task::Lint => lint::run(&workspace)?,
        Task::Dist => dist::run(&workspace)?,
    }
    Ok(ExitCode::SUCCESS)
}
