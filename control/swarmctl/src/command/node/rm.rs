//! `swarmctl node rm`.

use swarm_api::v1;

use crate::connect::{Sockets, answer, request};

/// Removes nodes.
#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    /// Remove them although they are not down; their tasks are replaced
    #[arg(short, long)]
    force: bool,
    /// Ids, names, or beginnings of ids that fit only one
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
}

impl Rm {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let mut control = sockets.control().await?;
        for reference in self.nodes {
            let message = v1::RemoveNodeRequest {
                reference: reference.clone(),
                force: self.force,
            };
            answer(control.remove_node(request(message)).await)?;
            println!("{reference}");
        }
        Ok(())
    }
}
