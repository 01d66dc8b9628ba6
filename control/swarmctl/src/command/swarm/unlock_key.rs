//! `swarmctl swarm unlock-key`.

use swarm_api::v1;

use crate::connect::{Sockets, answer, request};

/// Shows the key that managers are unlocked with.
#[derive(Debug, clap::Args)]
pub(crate) struct UnlockKey {
    /// Make a new key first; managers that run take it over, others need the old one once more
    #[arg(long)]
    rotate: bool,
    /// Print the key alone
    #[arg(short, long)]
    quiet: bool,
}

impl UnlockKey {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let message = v1::GetUnlockKeyRequest {
            rotate: self.rotate,
        };
        let mut control = sockets.control().await?;
        let found = answer(control.get_unlock_key(request(message)).await)?;
        if found.unlock_key.is_empty() {
            anyhow::bail!(
                "no unlock key is set: autolock is off; turn it on with `swarmctl swarm update --autolock`"
            );
        }
        if self.quiet {
            println!("{}", found.unlock_key);
            return Ok(());
        }
        if self.rotate {
            println!("Successfully rotated manager unlock key.\n");
        }
        println!("{}", how_to_unlock(&found.unlock_key));
        Ok(())
    }
}

/// What to do with the key, in Docker's words.
pub(super) fn how_to_unlock(unlock_key: &str) -> String {
    format!(
        "To unlock a swarm manager after it restarts, run the `swarmctl swarm unlock`\n\
         command and provide the following key:\n\n    {unlock_key}\n\n\
         Please remember to store this key in a password manager, since without it you\n\
         will not be able to restart the manager."
    )
}
