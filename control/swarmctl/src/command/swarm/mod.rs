//! `swarmctl swarm`.

mod ca;
mod external_ca;
mod init;
mod join;
mod join_token;
mod leave;
mod status;
mod unlock;
mod unlock_key;
mod update;

use crate::connect::Sockets;

/// Make, join and leave a swarm.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum SwarmCommand {
    /// Show the swarm's root certificate, or change it
    Ca(ca::Ca),
    /// Make a swarm, with this host as its manager
    Init(init::Init),
    /// Join a swarm
    Join(join::Join),
    /// Show what a host needs to join
    JoinToken(join_token::JoinToken),
    /// Leave the swarm
    Leave(leave::Leave),
    /// Show how this host stands
    Status(status::Status),
    /// Unlock the manager on this host, which was restarted
    Unlock(unlock::Unlock),
    /// Show the key that managers are unlocked with
    UnlockKey(unlock_key::UnlockKey),
    /// Change settings of the swarm
    Update(update::Update),
}

impl SwarmCommand {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        match self {
            Self::Ca(verb) => verb.run(sockets).await,
            Self::Init(verb) => verb.run(sockets).await,
            Self::Join(verb) => verb.run(sockets).await,
            Self::JoinToken(verb) => verb.run(sockets).await,
            Self::Leave(verb) => verb.run(sockets).await,
            Self::Status(verb) => verb.run(sockets).await,
            Self::Unlock(verb) => verb.run(sockets).await,
            Self::UnlockKey(verb) => verb.run(sockets).await,
            Self::Update(verb) => verb.run(sockets).await,
        }
    }
}
