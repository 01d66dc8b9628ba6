//! The verbs, one file each.

mod network;
mod node;
mod service;
mod swarm;

use crate::connect::Sockets;

/// What can be done.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make, join and leave a swarm
    #[command(subcommand)]
    Swarm(swarm::SwarmCommand),
    /// Look at the hosts of the swarm
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Make networks for services
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Run services
    #[command(subcommand)]
    Service(service::ServiceCommand),
}

impl Command {
    pub(crate) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        match self {
            Self::Swarm(command) => command.run(sockets).await,
            Self::Node(command) => command.run(sockets).await,
            Self::Network(command) => command.run(sockets).await,
            Self::Service(command) => command.run(sockets).await,
        }
    }
}
