//! `swarmctl network ls`.

use swarm_api::v1;

use crate::connect::{Sockets, answer, request};
use crate::table::{ListOptions, Table};

/// Lists the networks.
#[derive(Debug, clap::Args)]
pub(crate) struct Ls {
    #[command(flatten)]
    list: ListOptions,
}

impl Ls {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let message = v1::ListNetworksRequest {};
        let mut control = sockets.control().await?;
        let found = answer(control.list_networks(request(message)).await)?;
        let rows = found.networks.into_iter().map(|network| {
            [
                if self.list.quiet {
                    network.id
                } else {
                    network.id.chars().take(12).collect()
                },
                network.spec.unwrap_or_default().name,
                "overlay".to_owned(),
                "swarm".to_owned(),
                network.subnet,
            ]
        });
        let table = Table {
            columns: [
                ("NETWORK ID", "ID"),
                ("NAME", "Name"),
                ("DRIVER", "Driver"),
                ("SCOPE", "Scope"),
                ("SUBNET", "Subnet"),
            ],
            rows: rows.collect(),
        };
        print!("{}", table.render(self.list));
        Ok(())
    }
}
