//! The verbs, one file each.

mod events;
mod mesh;
mod network;
mod node;
mod service;
mod swarm;

use std::process::ExitCode;

use crate::connect::Sockets;

/// What can be done.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make, join and leave a swarm
    #[command(subcommand)]
    Swarm(swarm::SwarmCommand),
    /// Look at the hosts of the swarm, and change them
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Make networks for services
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Look into the data plane of this host
    #[command(subcommand)]
    Mesh(mesh::MeshCommand),
    /// Show what changes in the swarm
    Events(events::Events),
    /// Run services
    #[command(subcommand)]
    Service(service::ServiceCommand),
}

impl Command {
    /// Gives the code to exit with.
    pub(crate) async fn run(self, sockets: &Sockets) -> anyhow::Result<ExitCode> {
        match self {
            Self::Mesh(command) => return command.run(sockets).await,
            Self::Swarm(command) => command.run(sockets).await,
            Self::Node(command) => command.run(sockets).await,
            Self::Network(command) => command.run(sockets).await,
            Self::Events(command) => command.run(sockets).await,
            Self::Service(command) => command.run(sockets).await,
        }?;
        Ok(ExitCode::SUCCESS)
    }
}
