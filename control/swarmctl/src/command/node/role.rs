//! `swarmctl node promote` and `swarmctl node demote`.

use swarm_api::v1;

use crate::connect::{Sockets, answer, request};

/// Makes nodes managers.
#[derive(Debug, clap::Args)]
pub(crate) struct Promote {
    /// `self`, ids, names, or beginnings of ids that fit only one
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
}

/// Makes managers workers.
#[derive(Debug, clap::Args)]
pub(crate) struct Demote {
    /// `self`, ids, names, or beginnings of ids that fit only one
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
}

impl Promote {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        for node in self.nodes {
            if set(sockets, &node, v1::Role::Manager).await? {
                println!("Node {node} promoted to a manager in the swarm.");
            } else {
                println!("Node {node} is already a manager.");
            }
        }
        Ok(())
    }
}

impl Demote {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        for node in self.nodes {
            if set(sockets, &node, v1::Role::Worker).await? {
                println!("Manager {node} demoted in the swarm.");
            } else {
                println!("Node {node} is already a worker.");
            }
        }
        Ok(())
    }
}

/// Gives `node` the role; whether it had another one.
pub(super) async fn set(sockets: &Sockets, node: &str, role: v1::Role) -> anyhow::Result<bool> {
    let message = v1::SetNodeRoleRequest {
        reference: node.to_owned(),
        role: role.into(),
    };
    let mut control = sockets.control().await?;
    Ok(answer(control.set_node_role(request(message)).await)?.changed)
}
