//! The program: its arguments, its log, its exit code.

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::{Cli, Command};
use crate::failure::Failure;
use crate::run;

/// Names what is logged, in the syntax of `tracing-subscriber`: `debug`, `swarm_control=trace`.
const LOG_VARIABLE: &str = "SWARM_LOG";

/// What `swarm-control` does, from its arguments to its exit code. To be called once a process.
#[must_use]
pub fn main() -> ExitCode {
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
