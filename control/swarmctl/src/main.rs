//! `swarmctl`: what a person does with a swarm, in Docker's grammar.
//!
//! `swarm init`, `join` and `leave`, and `mesh`, talk to this host's agent, everything else to this
//! host's manager; both by local sockets, so that the right to open them is the right to command.
//!
//! Exit codes: 0 done, 1 refused or failed (one line on standard error says what to do) or `mesh
//! check` has found a difference, 2 the command line was not understood.

mod command;
mod connect;
mod network;
mod port;
mod shown;
mod table;
mod time;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;

/// Commands a swarm.
#[derive(clap::Parser)]
#[command(
    name = "swarmctl",
    version,
    about,
    propagate_version = true,
    max_term_width = 100
)]
struct Arguments {
    /// Directory of the agent's and the manager's sockets
    #[arg(
        long,
        env = "SWARM_RUN_DIR",
        default_value = "/run/swarm",
        global = true
    )]
    run_dir: PathBuf,
    /// Ask a majority of the managers first, so that the answer holds all that was acknowledged before
    #[arg(long, global = true)]
    consistent: bool,
    #[command(subcommand)]
    command: command::Command,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let consistency = if arguments.consistent {
        connect::Consistency::Linearizable
    } else {
        connect::Consistency::Memory
    };
    let sockets = connect::Sockets::new(arguments.run_dir, consistency);
    match runtime.block_on(arguments.command.run(&sockets)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {}", connect::error_text(&error));
            ExitCode::FAILURE
        }
    }
}
