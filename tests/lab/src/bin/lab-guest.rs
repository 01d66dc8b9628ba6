//! The inside of the lab: first process, server, and everything that sets the hosts up.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use swarm_lab::agent::Agent;
use swarm_lab::init::Place;
use swarm_lab::load::{self, Clients};
use swarm_lab::topology::{Node, Topology};
use swarm_lab::{Lab, bench, image, init, server, services};

/// The inside of the lab.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Be the first process.
    Init {
        /// Root file system, when this machine's own kernel is used.
        #[arg(long, requires = "share")]
        root: Option<PathBuf>,
        /// Shared directory, likewise.
        #[arg(long)]
        share: Option<PathBuf>,
    },
    /// Run the commands that come from the outside.
    Serve,
    /// Set up hosts, containerd, registry and agents; what is there already stays.
    Up {
        /// How many hosts besides the client.
        #[arg(long, default_value_t = 3)]
        hosts: u8,
        /// Leave the agents out.
        #[arg(long)]
        no_agents: bool,
    },
    /// Show hosts and processes.
    Status,
    /// Handle the agent of one host, or of `all`.
    Agent {
        /// What to do.
        action: Action,
        /// `h1` .. `hN`, or `all`.
        host: String,
    },
    /// Pull or plug the cable of one host.
    Link {
        /// `h1` .. `hN`, or `client`.
        host: String,
        /// `up` or `down`.
        state: LinkState,
    },
    /// Make every host anew and start every agent in no swarm.
    Fresh,
    /// Measure ours against Docker's and plain VXLAN forwarding.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Ask a service without a pause until standard input ends, and count what is not answered.
    Load(Clients),
    /// Answer datagrams with the sender's address (part of the test image).
    UdpEcho,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Set the systems up, measure them, take them down; the report is JSON on standard output.
    Mesh {
        /// Times that every cell is measured.
        #[arg(long)]
        rounds: u32,
        /// Length of one measurement, in seconds.
        #[arg(long)]
        seconds: u32,
        /// Which systems, separated by commas.
        #[arg(long, value_delimiter = ',', default_value = "plain,docker,ours")]
        systems: Vec<bench::System>,
    },
    /// Count what clients lose by rolling updates; JSON as above.
    Update {
        /// Requests to be made at least.
        #[arg(long)]
        requests: u64,
        /// Which systems, separated by commas.
        #[arg(long, value_delimiter = ',', default_value = "docker,ours")]
        systems: Vec<bench::System>,
    },
    /// Measure for how long clients lose requests with a host; JSON as above.
    Failover {
        /// Which systems, separated by commas.
        #[arg(long, value_delimiter = ',', default_value = "docker,ours")]
        systems: Vec<bench::System>,
    },
    /// Take down what a killed run has left.
    Clean,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Action {
    /// Start it and wait until it serves.
    Start,
    /// SIGTERM, and wait for the end.
    Stop,
    /// SIGKILL.
    Kill,
    /// Stop and start.
    Restart,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LinkState {
    /// Plugged in.
    Up,
    /// Pulled.
    Down,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Init { root, share } => init::init(&match (root, share) {
            (Some(root), Some(share)) => Place::Native { root, share },
            _ => Place::Machine,
        }),
        Command::Serve => server::serve(),
        Command::Up { hosts, no_agents } => up(hosts, no_agents),
        Command::Status => status(),
        Command::Agent { action, host } => agents(action, &host),
        Command::Link { host, state } => Topology::load()?
            .host(&host)?
            .set_link(state == LinkState::Up),
        Command::Fresh => Lab::fresh().map(drop),
        Command::Bench(command) => run_bench(command),
        Command::Load(clients) => load::drive(&clients),
        Command::UdpEcho => image::udp_echo(),
    }
}

fn up(hosts: u8, no_agents: bool) -> Result<()> {
    let topology = match Topology::load() {
        Ok(topology) => topology,
        Err(_) => timed("hosts", || {
            let topology = Topology::of(hosts)?;
            topology.create()?;
            Ok(topology)
        })?,
    };
    timed("containerd", services::start_containerd)?;
    timed("registry", || {
        let has_images = image::restore()?;
        services::start_registry()?;
        if has_images {
            Ok(())
        } else {
            timed("test images", image::build)
        }
    })?;
    if !no_agents {
        for node in topology.agents() {
            timed(&format!("agent of {}", node.name), || {
                Agent::of(node).start()
            })?;
        }
    }
    Ok(())
}

fn run_bench(command: BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Mesh {
            rounds,
            seconds,
            systems,
        } => {
            let report = bench::mesh(&bench::Options {
                rounds,
                cell_s: seconds,
                systems,
            })?;
            println!("{}", serde_json::to_string(&report)?);
            Ok(())
        }
        BenchCommand::Update { requests, systems } => {
            let lost = bench::lost::update(requests, &systems)?;
            println!("{}", serde_json::to_string(&lost)?);
            Ok(())
        }
        BenchCommand::Failover { systems } => {
            let lost = bench::lost::failover(&systems)?;
            println!("{}", serde_json::to_string(&lost)?);
            Ok(())
        }
        BenchCommand::Clean => bench::clean(),
    }
}

fn timed<T>(what: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let result = step()?;
    println!("{what}: {:.1} s", started.elapsed().as_secs_f64());
    Ok(result)
}

fn status() -> Result<()> {
    let topology = Topology::load()?;
    println!("{:<8} {:<14} AGENT", "HOST", "ADDRESS");
    for node in &topology.hosts {
        let agent = match Agent::of(node).pid() {
            Some(pid) => format!("running, process {pid}"),
            None => "-".into(),
        };
        println!("{:<8} {:<14} {agent}", node.name, node.address.to_string());
    }
    println!(
        "registry {}: web:latest web:1 web:2 broken:latest",
        services::registry()
    );
    Ok(())
}

fn agents(action: Action, host: &str) -> Result<()> {
    let topology = Topology::load()?;
    let nodes: Vec<&Node> = match host {
        "all" => topology.agents().collect(),
        name => vec![topology.host(name)?],
    };
    for node in nodes {
        let agent = Agent::of(node);
        match action {
            Action::Start => agent.start()?,
            Action::Stop => agent.stop()?,
            Action::Kill => agent.kill()?,
            Action::Restart => agent.restart()?,
        }
    }
    Ok(())
}
