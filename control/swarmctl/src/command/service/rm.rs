//! `swarmctl service rm`.

use swarm_api::v1;

use crate::connect::{Sockets, answer, request};

/// Removes services. Their ports refuse from then on; connections that are open have until the
/// grace period of their task ends.
#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    /// Ids, names, or beginnings of ids that fit only one
    #[arg(value_name = "SERVICE", required = true)]
    services: Vec<String>,
}

impl Rm {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let mut control = sockets.control().await?;
        for reference in self.services {
            let message = v1::RemoveServiceRequest {
                reference: reference.clone(),
            };
            answer(control.remove_service(request(message)).await)?;
            println!("{reference}");
        }
        Ok(())
    }
}
