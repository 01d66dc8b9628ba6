//! `swarmctl swarm status`.

use swarm_api::v1;

use crate::connect::{Sockets, answer, request};
use crate::table::Format;

/// Shows how this host stands.
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Status {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let found = answer(
            sockets
                .agent()
                .await?
                .get_status(request(v1::GetStatusRequest {}))
                .await,
        )?;
        let role = match found.role() {
            v1::Role::Worker => "worker",
            v1::Role::Manager => "manager",
            v1::Role::Unspecified => "",
        };
        match self.format {
            Format::Json => println!(
                "{}",
                serde_json::json!({
                    "State": found.state,
                    "NodeID": found.node_id,
                    "ClusterID": found.cluster_id,
                    "Role": role,
                    "Managers": found.managers,
                    "Connected": found.connected,
                    "Error": found.error,
                })
            ),
            Format::Table => {
                println!("Swarm: {}", found.state);
                if found.state == "active" {
                    println!("Node: {} ({role})", found.node_id);
                    println!("Cluster: {}", found.cluster_id);
                    println!("Managers: {}", found.managers.join(", "));
                    println!("Connected: {}", if found.connected { "yes" } else { "no" });
                    if !found.error.is_empty() {
                        println!("Problem: {}", found.error);
                    }
                }
            }
        }
        Ok(())
    }
}
