//! `swarmctl network prune`.

use std::io::{BufRead as _, Write as _};

use swarm_api::v1;

use crate::connect::{Sockets, answer, request};

/// Removes the networks that no service uses.
#[derive(Debug, clap::Args)]
pub(crate) struct Prune {
    /// Do not ask first
    #[arg(short, long)]
    force: bool,
}

impl Prune {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        if !self.force && !is_sure()? {
            return Ok(());
        }
        let message = v1::PruneNetworksRequest {};
        let mut control = sockets.control().await?;
        let pruned = answer(control.prune_networks(request(message)).await)?;
        if !pruned.names.is_empty() {
            println!("Deleted Networks:");
        }
        for name in pruned.names {
            println!("{name}");
        }
        Ok(())
    }
}

/// Asks on the terminal; no answer is no.
fn is_sure() -> std::io::Result<bool> {
    print!(
        "WARNING! This will remove all networks that no service uses.\n\
         Are you sure you want to continue? [y/N] "
    );
    std::io::stdout().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(is_yes(&line))
}

fn is_yes(line: &str) -> bool {
    matches!(line.trim(), "y" | "Y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        assert!(is_yes("y\n") && is_yes(" Y \n") && is_yes("yes"));
        for line in ["", "\n", "n\n", "yep\n", "yn"] {
            assert!(!is_yes(line), "{line:?}");
        }
    }
}
