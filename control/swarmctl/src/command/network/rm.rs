//! `swarmctl network rm`.

use swarm_api::v1;

use crate::connect::{Sockets, answer, request};

/// Removes networks that no service uses.
#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    /// Ids, names, or beginnings of ids that fit only one
    #[arg(value_name = "NETWORK", required = true)]
    networks: Vec<String>,
}

impl Rm {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let mut control = sockets.control().await?;
        for reference in self.networks {
            let message = v1::RemoveNetworkRequest {
                reference: reference.clone(),
            };
            answer(control.remove_network(request(message)).await)?;
            println!("{reference}");
        }
        Ok(())
    }
}
