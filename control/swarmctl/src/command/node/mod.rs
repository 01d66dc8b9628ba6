//! `swarmctl node`.

mod inspect;
mod ls;
mod rm;
mod role;
mod update;

use crate::connect::Sockets;

/// Look at the hosts of the swarm, and change them.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum NodeCommand {
    /// List the nodes
    Ls(ls::Ls),
    /// Show everything about nodes, as JSON
    Inspect(inspect::Inspect),
    /// Change a node: pause or drain it, give it labels or another role
    Update(update::Update),
    /// Make nodes managers
    Promote(role::Promote),
    /// Make managers workers
    Demote(role::Demote),
    /// Remove nodes that are down or have left
    Rm(rm::Rm),
}

impl NodeCommand {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        match self {
            Self::Ls(verb) => verb.run(sockets).await,
            Self::Inspect(verb) => verb.run(sockets).await,
            Self::Update(verb) => verb.run(sockets).await,
            Self::Promote(verb) => verb.run(sockets).await,
            Self::Demote(verb) => verb.run(sockets).await,
            Self::Rm(verb) => verb.run(sockets).await,
        }
    }
}
