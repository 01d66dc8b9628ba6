//! `swarmctl network`.

mod create;
mod inspect;
mod ls;
mod prune;
mod rm;

use crate::connect::Sockets;

/// Make networks for services.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum NetworkCommand {
    /// Create a network
    Create(create::Create),
    /// List the networks
    Ls(ls::Ls),
    /// Show everything about networks, as JSON
    Inspect(inspect::Inspect),
    /// Remove networks
    Rm(rm::Rm),
    /// Remove the networks that no service uses
    Prune(prune::Prune),
}

impl NetworkCommand {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        match self {
            Self::Create(verb) => verb.run(sockets).await,
            Self::Ls(verb) => verb.run(sockets).await,
            Self::Inspect(verb) => verb.run(sockets).await,
            Self::Rm(verb) => verb.run(sockets).await,
            Self::Prune(verb) => verb.run(sockets).await,
        }
    }
}
