//! `swarm-agent`: the node daemon. One runs on every host of a swarm, as root; it is all that a host
//! needs to have started.
//!
//! ```text
//! manager ──session──> Assigned ──worker──> containers
//!    ^                    └──────network──> namespaces, VXLAN, IPVS, eBPF
//!    └── statuses, applied generations ──────────┘
//! ```
//!
//! Invariants:
//! * Containers, networks and the mesh outlive this process; the next one adopts them.
//! * What the managers want is known from the session alone, and kept on disk for the time when no
//!   manager answers.
//! * A host that is in no swarm runs nothing of it.

mod bench;
mod config;
mod dns;
mod ebpf;
mod error_text;
mod identity;
mod metrics;
mod network;
mod node;
mod runtime;
mod selftest;
mod session;
mod shared_map;
mod worker;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use config::Config;
pub(crate) use error_text::error_text;
pub(crate) use shared_map::SharedMap;

/// What is logged unless `SWARM_LOG` says otherwise. The DNS codec warns of what it reads, and what it
/// reads is whatever a container sends.
const LOGGED: &str = "info,hickory_proto=error";

/// The node daemon of a swarm.
#[derive(clap::Parser)]
#[command(version, about)]
struct Arguments {
    #[command(flatten)]
    config: Config,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Loads, attaches and removes the mesh's eBPF programs by hand.
    #[command(hide = true)]
    Ebpf(ebpf::command::EbpfArgs),
    /// Measures what many services cost on one node.
    #[command(hide = true)]
    BenchServices(bench::BenchArgs),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // While there is one thread.
    drop(dns::SocketStore::of_process());
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("SWARM_LOG").unwrap_or_else(|_| EnvFilter::new(LOGGED)),
        )
        .with_writer(std::io::stderr)
        .init();
    let result = match arguments.command {
        Some(Command::Ebpf(arguments)) => ebpf::command::run(&arguments),
        Some(Command::BenchServices(arguments)) => bench::run(&arguments),
        None => run(arguments.config),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("swarm-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    anyhow::ensure!(
        nix::unistd::Uid::effective().is_root(),
        "root is needed to make namespaces and load eBPF programs: start it as a system service, or \
         with sudo"
    );
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?
        .block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let socket = config.agent_socket();
    let _lock = node::lock(&config.run_dir)?;
    let metrics = match config.metrics_addr {
        Some(address) => Some(metrics::listen(address).await?),
        None => None,
    };
    let agent = Arc::new(node::Agent::start(config).await?);
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    if let Some(listener) = metrics {
        tokio::spawn(metrics::serve(listener, agent.clone(), stop.clone()));
    }
    let server = node::serve(agent.clone(), &socket, stop.clone());
    tokio::pin!(server);
    let result = tokio::select! {
        result = &mut server => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    stop.cancel();
    agent.stop().await;
    result?;
    Ok(())
}
