//! `swarmctl swarm ca`.

use swarm_api::v1;

use crate::connect::{Sockets, answer, request};

/// Shows the swarm's root certificate.
#[derive(Debug, clap::Args)]
pub(crate) struct Ca {}

impl Ca {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let message = v1::GetClusterRequest {};
        let mut control = sockets.control().await?;
        let cluster = answer(control.get_cluster(request(message)).await)?;
        print!("{}", cluster.root_ca_pem);
        Ok(())
    }
}
