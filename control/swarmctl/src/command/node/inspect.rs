//! `swarmctl node inspect`.

use swarm_api::v1;
use swarm_model::Node;

use crate::connect::{Sockets, answer, request};

/// Shows everything about nodes.
#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// `self`, ids, names, or beginnings of ids that fit only one
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
}

impl Inspect {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let mut control = sockets.control().await?;
        let mut found = Vec::with_capacity(self.nodes.len());
        for reference in self.nodes {
            let message = v1::GetNodeRequest { reference };
            let node = answer(control.get_node(request(message)).await)?
                .node
                .unwrap_or_default();
            found.push(Node::try_from(node)?);
        }
        println!("{}", serde_json::to_string_pretty(&found)?);
        Ok(())
    }
}
