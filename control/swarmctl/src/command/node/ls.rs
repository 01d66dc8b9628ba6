//! `swarmctl node ls`.

use std::collections::BTreeSet;

use swarm_api::v1;
use swarm_model::Node;

use crate::connect::{Sockets, answer, request};
use crate::table::{ListOptions, Table, capitalised};

/// Lists the nodes.
#[derive(Debug, clap::Args)]
pub(crate) struct Ls {
    #[command(flatten)]
    list: ListOptions,
}

impl Ls {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let found = answer(
            sockets
                .control()
                .await?
                .list_nodes(request(v1::ListNodesRequest {}))
                .await,
        )?;
        let reachable: BTreeSet<_> = found.reachable_managers.into_iter().collect();
        let mut rows = Vec::with_capacity(found.nodes.len());
        for node in found.nodes {
            let node = Node::try_from(node)?;
            let this = if node.id.as_str() == found.self_id && !self.list.quiet {
                " *"
            } else {
                ""
            };
            rows.push([
                format!("{}{this}", node.id),
                node.description.hostname.clone(),
                capitalised(node.status.state.as_str()),
                capitalised(node.spec.availability.as_str()),
                manager_status(&node, reachable.contains(node.id.as_str())),
                node.description.agent_version.clone(),
            ]);
        }
        rows.sort_by(|a, b| a[1].cmp(&b[1]));
        let table = Table {
            columns: [
                ("ID", "ID"),
                ("HOSTNAME", "Hostname"),
                ("STATUS", "Status"),
                ("AVAILABILITY", "Availability"),
                ("MANAGER STATUS", "ManagerStatus"),
                ("ENGINE VERSION", "EngineVersion"),
            ],
            rows,
        };
        print!("{}", table.render(self.list));
        Ok(())
    }
}

/// In Docker's words; `is_reachable` as the leader sees it.
fn manager_status(node: &Node, is_reachable: bool) -> String {
    let text = match &node.manager {
        None => "",
        Some(manager) if manager.leader => "Leader",
        Some(_) if is_reachable => "Reachable",
        Some(_) => "Unreachable",
    };
    text.to_owned()
}
