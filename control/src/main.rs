//! The manager of a swarm: `swarm-control`.
//!
//! A child of `swarm-agent` on hosts whose role is manager, without privileges. It keeps the swarm's
//! state in a replicated log, decides what runs where, and answers nodes and people.
//!
//! * `store` holds the state in memory; `raft` is the log under it.
//! * `orchestrate`, `allocate`, `schedule` decide, purely; `leader` lets them, on the leader.
//! * `dispatch` tells agents what to do and hears what they did.
//! * `ca` makes certificates; `serve` answers calls and knows who may make which.
//! * `config`, `bootstrap`, `run` and `failure` put it together.
//!
//! Invariants:
//! * Every change of the state goes through `Store::update`, and so through the log.
//! * The process ends when its agent does (its standard input closes), and the data plane does not
//!   notice when it ends.
//! * Secrets (the root's key, join secrets) are in the log and in memory, and in no message printed.
//!
//! Deliberately absent: anything that touches the kernel or containers.

mod allocate;
mod bootstrap;
mod ca;
mod clock;
mod config;
mod dispatch;
mod failure;
mod leader;
mod orchestrate;
mod raft;
mod run;
mod schedule;
mod serve;
mod store;

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use config::{Cli, Command};
use failure::Failure;

/// Names what is logged, in the syntax of `tracing-subscriber`: `debug`, `swarm_control=trace`.
const LOG_VARIABLE: &str = "SWARM_LOG";

fn main() -> ExitCode {
    let Cli {
        command: Command::Run(config),
    } = Cli::parse();
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .with_env_var(LOG_VARIABLE)
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Failure::Runtime)
        .and_then(|runtime| runtime.block_on(run::run(config)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let code = failure.exit_code();
            eprintln!("swarm-control: {:#}", anyhow::Error::from(failure));
            code
        }
    }
}
