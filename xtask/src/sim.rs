//! `cargo xtask sim`: whole clusters of the managers' cores on virtual time, from seeds.

use anyhow::Result;
use clap::Args;

use crate::process::shown;
use crate::workspace::Workspace;

/// Seeds that every change is tried with.
pub(crate) const USUAL_SEEDS: u64 = 2000;

/// `cargo xtask sim ...`.
#[derive(Debug, Args)]
pub(crate) struct SimArgs {
    /// How many seeds to run.
    #[arg(long, default_value_t = USUAL_SEEDS)]
    seeds: u64,
    /// The first of them.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    from: u64,
    /// Print everything that happens; one seed after the other.
    #[arg(long)]
    trace: bool,
    /// Threads; as many as there are processors when absent.
    #[arg(long)]
    jobs: Option<usize>,
}

impl Default for SimArgs {
    fn default() -> Self {
        Self {
            seeds: USUAL_SEEDS,
            from: 1,
            trace: false,
            jobs: None,
        }
    }
}

/// Runs `cargo xtask sim`. Optimised: a seed takes a tenth of the time.
///
/// # Errors
/// When it does not compile, or a seed fails; which one, and how to run it again, is shown.
pub(crate) fn run(workspace: &Workspace, args: &SimArgs) -> Result<()> {
    let mut command = workspace.cargo(&["run", "--release", "--package", "swarm-sim", "--"]);
    command.args(["--seeds", &args.seeds.to_string()]);
    command.args(["--from", &args.from.to_string()]);
    if args.trace {
        command.arg("--trace");
    }
    if let Some(jobs) = args.jobs {
        command.args(["--jobs", &jobs.to_string()]);
    }
    shown(&mut command)
}
