//! `swarmctl service inspect`.

use crate::connect::Sockets;

/// Shows everything about services.
#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// Ids, names, or beginnings of ids that fit only one
    #[arg(value_name = "SERVICE", required = true)]
    services: Vec<String>,
}

impl Inspect {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let mut control = sockets.control().await?;
        let mut found = Vec::with_capacity(self.services.len());
        for reference in self.services {
            found.push(super::find(&mut control, &reference).await?);
        }
        println!("{}", serde_json::to_string_pretty(&found)?);
        Ok(())
    }
}
