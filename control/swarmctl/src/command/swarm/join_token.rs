//! `swarmctl swarm join-token`.

use swarm_api::v1;

use crate::connect::{Sockets, answer, request};

/// Shows what a host needs to join.
#[derive(Debug, clap::Args)]
pub(crate) struct JoinToken {
    /// Make a new token first; the old one lets nobody in any more
    #[arg(long)]
    rotate: bool,
    /// Print the token alone
    #[arg(short, long)]
    quiet: bool,
    /// What the host is to become
    #[arg(value_enum)]
    role: TokenRole,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum TokenRole {
    Worker,
    Manager,
}

impl JoinToken {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let (role, name) = match self.role {
            TokenRole::Worker => (v1::Role::Worker, "worker"),
            TokenRole::Manager => (v1::Role::Manager, "manager"),
        };
        let message = v1::GetJoinTokenRequest {
            role: role.into(),
            rotate: self.rotate,
        };
        let found = answer(
            sockets
                .control()
                .await?
                .get_join_token(request(message))
                .await,
        )?;
        if self.quiet {
            println!("{}", found.token);
            return Ok(());
        }
        if self.rotate {
            println!("Successfully rotated {name} join token.\n");
        }
        println!("To add a {name} to this swarm, run the following command:\n");
        println!(
            "    swarmctl swarm join --token {} {}",
            found.token, found.manager_address
        );
        Ok(())
    }
}
